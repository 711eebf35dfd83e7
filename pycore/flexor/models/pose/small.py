# SPDX-License-Identifier: Apache-2.0
"""The small pose network: residual blocks, a feature pyramid, heatmaps; made for one CPU core."""

from __future__ import annotations

import math
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from ._checks import check_images, check_joints
from .resnet import BasicBlock

__all__ = ["WEIGHTS", "SmallPose", "small"]

WIDTHS, BLOCKS = (32, 64, 128, 192), (1, 2, 2, 2)
STEM, PYRAMID = 24, 64  # channels
SIGMA = 1.5  # heatmap pixels, of the Gaussians it is trained towards
WEIGHTS = Path(__file__).parent / "weights" / "small.safetensors"  # trained; small.json beside them says how


class SmallPose(nn.Module):
    """Images (B, 3, H, W) to heatmaps (B, joints, H/4, W/4), each a distribution over its pixels.

        heatmap = 2 pi sigma^2 softmax(final_layer(features)),  sigma = 1.5: 1 at the peak of a Gaussian of that width

        stem (H/4) -> stages of residual blocks at H/4 .. H/32 -> top-down pyramid back to H/4 -> 3x3 -> final_layer

    The pyramid adds each stage's features, by a 1x1 convolution, to the doubled map of the stage after it.

    Args:
        joints: number of heatmaps.

    Raises:
        ValueError: joints below 1; images of another shape, or with sides that are not multiples of 32.
        TypeError: joints that are no integer; images that are not floating point.

    Source:
        blocks: He et al., Deep Residual Learning for Image Recognition, CVPR 2016; pyramid: Lin et al., Feature Pyramid
        Networks for Object Detection, CVPR 2017, figure 3; heatmaps: Xiao et al., ECCV 2018. The widths are ours.
    """

    def __init__(self, joints: int = 17) -> None:
        super().__init__()
        check_joints("SmallPose", joints)
        self.stem = nn.Sequential(*_conv(3, STEM, 2), *_conv(STEM, WIDTHS[0], 2))
        inputs = (WIDTHS[0], *WIDTHS)
        self.stages = nn.ModuleList(
            nn.Sequential(
                BasicBlock(inputs[k], width, 2 if k else 1), *(BasicBlock(width, width) for _ in range(blocks - 1))
            )
            for k, (width, blocks) in enumerate(zip(WIDTHS, BLOCKS, strict=True))
        )
        self.lateral = nn.ModuleList(nn.Conv2d(width, PYRAMID, 1) for width in WIDTHS)
        self.smooth = nn.ModuleList(nn.Sequential(*_conv(PYRAMID, PYRAMID)) for _ in WIDTHS[1:])
        self.head = nn.Sequential(*_conv(PYRAMID, PYRAMID))
        self.final_layer = nn.Conv2d(PYRAMID, joints, 1)
        nn.init.normal_(self.final_layer.weight, std=0.001)
        nn.init.zeros_(self.final_layer.bias)  # type: ignore[arg-type]

    def features(self, images: Tensor) -> Tensor:
        """What the heatmaps are made of: images (B, 3, H, W) to (B, 64, H/4, W/4)."""
        check_images("SmallPose", images)
        x = self.stem(images)
        levels = []
        for stage, lateral in zip(self.stages, self.lateral, strict=True):
            x = stage(x)
            levels.append(lateral(x))
        y = levels.pop()
        for smooth in self.smooth:
            below = levels.pop()
            y = smooth(F.interpolate(y, size=below.shape[-2:]) + below)
        return self.head(y)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.final_layer(self.features(images)).float()
        return 2 * math.pi * SIGMA**2 * maps.flatten(2).softmax(2).view_as(maps)


def small(joints: int = 17) -> SmallPose:
    """The small network with random weights; see `SmallPose`. The trained ones are in the file `WEIGHTS`."""
    return SmallPose(joints)


def _conv(inputs: int, outputs: int, stride: int = 1) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
