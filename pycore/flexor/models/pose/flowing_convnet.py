# SPDX-License-Identifier: Apache-2.0
"""Flowing ConvNets: heatmaps of the frames around one are brought there by optical flow and pooled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops import warp2d
from ._checks import check_images, check_joints

__all__ = [
    "FlowingConvNet",
    "FusedHeatmaps",
    "SpatialFusionNet",
    "flowing_convnet",
    "resize_flow",
    "spatial_fusion_loss",
]

# Channels and side of the kernel; each is followed by a ReLU.
HEATMAP_LAYERS = ((128, 5), (128, 5), (128, 5), (256, 9), (512, 9), (256, 1), (256, 1))
FUSION_LAYERS = ((64, 7), (64, 13), (128, 13), (256, 1))


class FusedHeatmaps(NamedTuple):
    """Heatmaps (B, joints, H/4, W/4) of both heads: with spatial fusion, and those without that it starts from."""

    fused: Tensor
    heatmaps: Tensor


class SpatialFusionNet(nn.Module):
    """Heatmaps of one image, and layers with large kernels that learn which of them fit together.

        conv1, pool, conv2, pool, conv3 .. conv7 -> conv8;   cat(conv3, conv7) -> conv1_fusion .. conv5_fusion

    Layers have the names of the released Caffe file, and a ReLU after each but conv5_fusion.

    Args:
        joints: heatmaps; 7 of the upper body in FLIC.

    Raises:
        ValueError: joints below 1; images of another shape, or with sides that are not multiples of 4.
        TypeError: joints that are no integer; images that are not floating point.

    Source:
        Pfister, Charles and Zisserman, Flowing ConvNets for Human Pose Estimation in Videos, ICCV 2015;
        the numbers are those of heatmap-flic-fusion in github.com/tpfister/caffe-heatmap, which was trained on RGB
        images of 256x256 from 0 to 255.
    """

    def __init__(self, joints: int = 7) -> None:
        super().__init__()
        check_joints("SpatialFusionNet", joints)
        self._add("", 3, (*HEATMAP_LAYERS, (joints, 1)))
        seen = HEATMAP_LAYERS[2][0] + HEATMAP_LAYERS[-1][0]
        self._add("_fusion", seen, (*FUSION_LAYERS, (joints, 1)))

    def _add(self, suffix: str, inputs: int, layers: Sequence[tuple[int, int]]) -> None:
        for number, (outputs, side) in enumerate(layers, start=1):
            conv = nn.Conv2d(inputs, outputs, side, padding=side // 2)
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
            self.add_module(f"conv{number}{suffix}", conv)
            inputs = outputs

    def forward(self, images: Tensor) -> FusedHeatmaps:
        """Images (B, 3, H, W) to both heads' heatmaps."""
        check_images("SpatialFusionNet", images, multiple=4)
        hidden = F.max_pool2d(self._relu("conv1", images), 2)
        hidden = F.max_pool2d(self._relu("conv2", hidden), 2)
        early = late = self._relu("conv3", hidden)
        for number in range(4, len(HEATMAP_LAYERS) + 1):
            late = self._relu(f"conv{number}", late)
        fused = torch.cat((early, late), 1)
        for number in range(1, len(FUSION_LAYERS) + 1):
            fused = self._relu(f"conv{number}_fusion", fused)
        return FusedHeatmaps(self.get_submodule("conv5_fusion")(fused), self._relu("conv8", late))

    def _relu(self, name: str, input: Tensor) -> Tensor:
        return F.relu(self.get_submodule(name)(input), inplace=True)


class FlowingConvNet(nn.Module):
    """Heatmaps of a frame from those of its neighbours: each is warped by its optical flow, then all are pooled.

        output_j(p) = sum over i of w[j, i] * H[i, j](p + flow_i(p)),   flow of the frame itself 0

    Parametric pooling: w is a number for every joint and frame, the same at every pixel; at first the mean. The flow
    comes from outside, from any method. The temporal part was never released: warping by the flow and learnt pooling
    are the paper's, the mean as a start, no bias and 15 neighbours on a side are our choice.

    Args:
        joints: heatmaps.
        neighbours: n; the window is 2 n + 1 frames, the middle one is estimated.

    Raises:
        ValueError: a negative number of neighbours; a clip or a flow of other shapes.

    Source:
        Pfister, Charles and Zisserman, Flowing ConvNets for Human Pose Estimation in Videos, ICCV 2015.
    """

    def __init__(self, joints: int = 7, neighbours: int = 15) -> None:
        super().__init__()
        if neighbours < 0:
            raise ValueError(f"FlowingConvNet: neighbours must be at least 0, got {neighbours}")
        self.joints, self.frames = joints, 2 * neighbours + 1
        self.spatial = SpatialFusionNet(joints)
        self.pooling = nn.Conv2d(joints * self.frames, joints, 1, groups=joints, bias=False)
        nn.init.constant_(self.pooling.weight, 1 / self.frames)

    def forward(self, clip: Tensor, flow: Tensor) -> Tensor:
        """The middle frame's heatmaps.

        Args:
            clip: (B, 2 n + 1, 3, H, W), in the order of time.
            flow: see `pool`.

        Returns:
            (B, joints, H/4, W/4).
        """
        if clip.dim() != 5 or clip.shape[1] != self.frames:
            raise ValueError(f"FlowingConvNet: clip must be (B, {self.frames}, 3, H, W), got {tuple(clip.shape)}")
        return self.pool(torch.stack([self.spatial(frame).fused for frame in clip.unbind(1)], 1), flow)

    def pool(self, heatmaps: Tensor, flow: Tensor) -> Tensor:
        """The middle frame's heatmaps from all frames', so that a stream computes those of a frame once.

        Args:
            heatmaps: (B, 2 n + 1, joints, h, w), in the order of time.
            flow: (B, 2 n, 2, fh, fw), x before y, in pixels of its own size: how far each pixel of the middle frame
                is from its place in the neighbour, neighbours in the order of time. It is resized to h x w.

        Returns:
            (B, joints, h, w).
        """
        if heatmaps.dim() != 5 or heatmaps.shape[1:3] != (self.frames, self.joints):
            expected = f"(B, {self.frames}, {self.joints}, h, w)"
            raise ValueError(f"FlowingConvNet: heatmaps must be {expected}, got {tuple(heatmaps.shape)}")
        batch, middle, size = heatmaps.shape[0], self.frames // 2, heatmaps.shape[3:]
        if flow.dim() != 5 or flow.shape[:3] != (batch, self.frames - 1, 2):
            expected = f"({batch}, {self.frames - 1}, 2, fh, fw)"
            raise ValueError(f"FlowingConvNet: flow must be {expected}, got {tuple(flow.shape)}")
        others = torch.cat((heatmaps[:, :middle], heatmaps[:, middle + 1 :]), 1)
        warped = warp2d(others.flatten(0, 1), resize_flow(flow.flatten(0, 1), size)).view_as(others)
        aligned = torch.cat((warped[:, :middle], heatmaps[:, middle, None], warped[:, middle:]), 1)
        return self.pooling(aligned.transpose(1, 2).flatten(1, 2))


def resize_flow(flow: Tensor, size: Sequence[int]) -> Tensor:
    """Optical flow at another size: the mean of the pixels that a new one covers, in units of the new pixels.

    Args:
        flow: (N, 2, fh, fw), x before y, in pixels of its own size.
        size: (h, w).

    Returns:
        (N, 2, h, w), in pixels of that size.
    """
    scale = flow.new_tensor([size[1] / flow.shape[3], size[0] / flow.shape[2]])
    return F.adaptive_avg_pool2d(flow, (size[0], size[1])) * scale[:, None, None]


def spatial_fusion_loss(found: FusedHeatmaps, target: Tensor) -> Tensor:
    """Half the sum of squared errors of both heads, whose gradient is that of the released Caffe layer.

    Args:
        found: of SpatialFusionNet.
        target: (B, joints, h, w).

    Raises:
        ValueError: a target of another shape.
    """
    if target.shape != found.fused.shape:
        expected = tuple(found.fused.shape)
        raise ValueError(f"spatial_fusion_loss: target must be {expected}, got {tuple(target.shape)}")
    return sum(((head - target).square().sum() for head in found), start=target.new_zeros(())) / 2


def flowing_convnet(joints: int = 7, neighbours: int = 15) -> FlowingConvNet:
    """A FlowingConvNet with random weights; arguments as the class has them."""
    return FlowingConvNet(joints, neighbours)
