# SPDX-License-Identifier: Apache-2.0
"""HRNet: branches of several resolutions side by side, which exchange what they know after every four blocks."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ._checks import check_images, check_joints
from .resnet import BasicBlock, Bottleneck, conv3x3

__all__ = ["HRNet", "HighResolutionModule", "hrnet_w32", "hrnet_w48"]


class HRNet(nn.Module):
    """Images (B, 3, H, W) to heatmaps (B, joints, H/4, W/4), through features that keep that resolution.

        stem, layer1 -> stage2 (2 branches) -> stage3 (3) -> stage4 (4) -> the finest branch -> final_layer

    Branch b has `width` * 2^b channels at H/2^(b+2) x W/2^(b+2). A transition gives each stage its branches: what is
    new comes from the coarsest one before it.

    Args:
        width: channels of the finest branch, 32 or 48 as published.
        joints: number of heatmaps.

    Raises:
        ValueError: width or joints below 1; images of another shape, or with sides that are not multiples of 32.
        TypeError: joints that are no integer; images that are not floating point.

    Source:
        Sun et al., Deep High-Resolution Representation Learning for Human Pose Estimation, CVPR 2019, figure 1 and
        section 3; names of github.com/leoxiaobin/deep-high-resolution-net.pytorch.
    """

    def __init__(self, width: int = 48, joints: int = 17) -> None:
        super().__init__()
        check_joints("HRNet", joints)
        if width < 1:
            raise ValueError(f"HRNet: width must be at least 1, got {width}")
        widths = [width * 2**branch for branch in range(4)]
        self.conv1 = nn.Conv2d(3, 64, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.conv2 = nn.Conv2d(64, 64, 3, 2, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(Bottleneck(64, 64), *(Bottleneck(256, 64) for _ in range(3)))
        self.transition1 = nn.ModuleList([_conv(256, width), nn.Sequential(_conv(256, 2 * width, 2))])
        self.stage2 = nn.Sequential(HighResolutionModule(widths[:2]))
        self.transition2 = _transition(widths[:3])
        self.stage3 = nn.Sequential(*(HighResolutionModule(widths[:3]) for _ in range(4)))
        self.transition3 = _transition(widths)
        self.stage4 = nn.Sequential(*(HighResolutionModule(widths, outputs) for outputs in (4, 4, 1)))
        self.final_layer = nn.Conv2d(width, joints, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.001)
        nn.init.zeros_(self.final_layer.bias)  # type: ignore[arg-type]

    def features(self, images: Tensor) -> Tensor:
        """What the heatmaps are made of: images (B, 3, H, W) to (B, `width`, H/4, W/4)."""
        check_images("HRNet", images)
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        x = self.layer1(x)
        branches = self.stage2([transition(x) for transition in self.transition1])
        branches = self.stage3(_with_coarser(branches, self.transition2))
        branches = self.stage4(_with_coarser(branches, self.transition3))
        return branches[0]

    def forward(self, images: Tensor) -> Tensor:
        return self.final_layer(self.features(images))


class HighResolutionModule(nn.Module):
    """Four residual blocks a branch, then every branch receives the sum of all, brought to its resolution.

        y_i = relu(sum_j fuse_layers[i][j](branches[j](x_j)))

    From coarse to fine that is a 1x1 convolution and nearest upsampling, from fine to coarse a chain of strided 3x3
    convolutions, each followed by batch norm.

    Args:
        widths: channels of each branch, from the finest on; each is half as high and wide as the one before.
        outputs: how many branches, from the finest on, are returned. None for all.

    Source:
        Sun et al., CVPR 2019, section 3, "Repeated multi-scale fusion".
    """

    def __init__(self, widths: list[int], outputs: int | None = None) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(*(BasicBlock(w, w) for _ in range(4))) for w in widths)
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_fuse_layer(widths, i, j) for j in range(len(widths))) for i in range(len(widths[:outputs]))
        )

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        inputs = [branch(x) for branch, x in zip(self.branches, inputs, strict=True)]
        return [F.relu(self._sum(row, inputs), inplace=True) for row in self.fuse_layers]

    @staticmethod
    def _sum(row: nn.Module, inputs: list[Tensor]) -> Tensor:
        terms = (layer(x) for layer, x in zip(row, inputs, strict=True))  # type: ignore[call-overload]
        total: Tensor = next(terms) + next(terms)
        for term in terms:
            total += term
        return total


def _fuse_layer(widths: list[int], to: int, start: int) -> nn.Module:
    if start > to:
        upsample = nn.Upsample(scale_factor=2.0 ** (start - to), mode="nearest")
        return nn.Sequential(*_conv(widths[start], widths[to], kernel=1, relu=False), upsample)
    steps = [_conv(widths[start], widths[start], 2) for _ in range(to - start - 1)]
    if start < to:
        steps.append(_conv(widths[start], widths[to], 2, relu=False))  # the sum has one
    return nn.Sequential(*steps)


def _transition(widths: list[int]) -> nn.ModuleList:
    """Every branch stays as it is; a new one, half the size of the last, is added."""
    new = nn.Sequential(_conv(widths[-2], widths[-1], 2))
    return nn.ModuleList([*(nn.Identity() for _ in widths[:-1]), new])


def _with_coarser(branches: list[Tensor], transition: nn.ModuleList) -> list[Tensor]:
    return [layer(x) for layer, x in zip(transition, [*branches, branches[-1]], strict=True)]


def _conv(inputs: int, outputs: int, stride: int = 1, kernel: int = 3, relu: bool = True) -> nn.Sequential:
    conv = conv3x3(inputs, outputs, stride) if kernel == 3 else nn.Conv2d(inputs, outputs, kernel, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), *([nn.ReLU(inplace=True)] if relu else []))


def hrnet_w32(joints: int = 17) -> HRNet:
    """HRNet-W32, 28.5 million parameters; see `HRNet`."""
    return HRNet(32, joints)


def hrnet_w48(joints: int = 17) -> HRNet:
    """HRNet-W48, 63.6 million parameters; see `HRNet`."""
    return HRNet(48, joints)
