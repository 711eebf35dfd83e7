# SPDX-License-Identifier: Apache-2.0
"""SimpleBaseline: a ResNet, three transposed convolutions, heatmaps."""

from __future__ import annotations

from torch import Tensor, nn

from ._checks import check_joints
from .resnet import ResNet

__all__ = ["SimpleBaseline", "simple_baseline"]

WIDTH = 256  # channels of each transposed convolution


class SimpleBaseline(ResNet):
    """Images (B, 3, H, W) to heatmaps (B, joints, H/4, W/4), through a ResNet and three doublings of its resolution.

        ResNet -> 3 x (4x4 transposed convolution of stride 2, batch norm, ReLU) -> final_layer

    The names are the official ones, so that torchvision's for the ResNet.

    Args:
        depth: of the ResNet: 18, 34, 50, 101 or 152.
        joints: number of heatmaps.

    Raises:
        ValueError: another depth, joints below 1; images of another shape, or with sides that are not multiples of 32.
        TypeError: joints that are no integer; images that are not floating point.

    Source:
        Xiao, Wu and Wei, Simple Baselines for Human Pose Estimation and Tracking, ECCV 2018, section 2; names and
        initialisation of github.com/microsoft/human-pose-estimation.pytorch.
    """

    def __init__(self, depth: int = 50, joints: int = 17) -> None:
        super().__init__(depth)
        check_joints("SimpleBaseline", joints)
        deconvs = [nn.ConvTranspose2d(inputs, WIDTH, 4, 2, 1, bias=False) for inputs in (self.channels, WIDTH, WIDTH)]
        steps = ((deconv, nn.BatchNorm2d(WIDTH), nn.ReLU(inplace=True)) for deconv in deconvs)
        self.deconv_layers = nn.Sequential(*(layer for step in steps for layer in step))
        self.final_layer = nn.Conv2d(WIDTH, joints, 1)
        for layer in (*deconvs, self.final_layer):
            nn.init.normal_(layer.weight, std=0.001)
        nn.init.zeros_(self.final_layer.bias)  # type: ignore[arg-type]

    def features(self, images: Tensor) -> Tensor:
        """What the heatmaps are made of: images (B, 3, H, W) to (B, 256, H/4, W/4)."""
        return self.deconv_layers(super().forward(images))

    def forward(self, images: Tensor) -> Tensor:
        return self.final_layer(self.features(images))


def simple_baseline(depth: int = 50, joints: int = 17) -> SimpleBaseline:
    """SimpleBaseline on a ResNet of depth 18, 34, 50, 101 or 152; see `SimpleBaseline`."""
    return SimpleBaseline(depth, joints)
