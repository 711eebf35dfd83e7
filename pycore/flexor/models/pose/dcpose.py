# SPDX-License-Identifier: Apache-2.0
"""DCPose: the heatmaps of a frame, corrected by what those of the frames before and after say."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flexor.nn import Conv3x3, ModulatedDeformConv2d

from ._checks import check_images, check_joints
from .conv_norm import Chain, ConvNorm
from .frozen import OnBackbone
from .hrnet import hrnet_w48
from .predicted_deform import Branch, mean_of_predicted

__all__ = ["DCPose", "dcpose"]

DILATIONS = (3, 6, 9, 12, 15)
KEPT_BYTES = 64 << 20  # five branches of one sample at 384x288
_COMBINED = 64  # channels that offsets and masks are predicted from


class DCPose(OnBackbone):
    """Three frames (B, 9, H, W) to the heatmaps of the first (B, joints, H/4, W/4).

        c, p, n = the backbone's heatmaps of the current, the previous and the next frame
        support = PTM(c, u p, v n)                         pose temporal merger
        features = combine(PRF(c - p, u (c - p), c - n, v (c - n)), support)      pose residual fusion
        heatmaps = mean over d of deform_d(support, offsets_d(features), masks_d(features))       pose correction

    with d = 3, 6, 9, 12, 15 the dilation of all convolutions of a correction branch, and u = (n - c) / (n - p),
    v = (c - p) / (n - p) in frame numbers: the nearer neighbour weighs more. Masks are not squashed.

    Args:
        joints: number of heatmaps.
        freeze_backbone: the backbone's parameters get no gradients, as published. It also decides what is returned,
            as in the official code.
        freeze_statistics: the backbone stays in evaluation mode in training too. Published: False, so that the running
            statistics of its batch norms follow the training data even where its parameters are frozen.
        backbone: estimates the heatmaps of one frame; HRNet-W48 by default, as published.
        kept_bytes: in training, offsets and masks of as many correction branches as fit into this are kept for the
            backward; those of the others are predicted twice. They take 12.7 MB a branch and sample at 384x288.

    Returns:
        The heatmaps. With `freeze_backbone=False` the pair of the backbone's heatmaps of the current frame and those:
        the published loss is then the sum over both.

    Raises:
        ValueError: images of another shape, or with sides that are not multiples of 32; a margin of another shape.
        TypeError: images that are not floating point.

    Notes:
        65,198,798 parameters with 17 joints. `frames` are the current, previous and next one, in this order, cropped
        by one box. At the ends of a clip repeat the frame and leave the margin at 1.

    Source:
        Liu et al., Deep Dual Consecutive Network for Human Pose Estimation, CVPR 2021, figure 2; names of
        github.com/Pose-Group/DCPose, class DcPose_RSN.
    """

    def __init__(
        self,
        joints: int = 17,
        freeze_backbone: bool = True,
        freeze_statistics: bool = False,
        backbone: nn.Module | None = None,
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        super().__init__(freeze_backbone, freeze_statistics)
        check_joints("DCPose", joints)
        self.kept_bytes = kept_bytes
        self.rough_pose_estimation_net = hrnet_w48(joints) if backbone is None else backbone
        self.diff_temporal_fuse = residual_steps(4 * joints, 2 * joints, 2)
        self.support_temporal_fuse = residual_steps(3 * joints, joints, 1)
        self.offset_mask_combine_conv = residual_steps(3 * joints, _COMBINED, 2)
        taps = 9 * joints  # of a 3x3 kernel for every joint
        self.offsets_list = nn.ModuleList(nn.Sequential(_dilated_conv(2 * taps, d)) for d in DILATIONS)
        self.masks_list = nn.ModuleList(nn.Sequential(_dilated_conv(taps, d)) for d in DILATIONS)
        self.modulated_deform_conv_list = nn.ModuleList(
            nn.ModuleDict({"deform_conv": ModulatedDeformConv2d(joints, joints, 3, 1, d, d, deform_groups=joints)})
            for d in DILATIONS
        )
        self._initialise()
        self.backbone.requires_grad_(not freeze_backbone)

    def forward(self, frames: Tensor, margin: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Frames (B, 9, H, W): current, previous, next; margin (B, 2): c - p and n - c in frames, both at least 1."""
        check_images("DCPose", frames, 9, "frames")
        check_margin(frames, margin)
        rough = self.backbone(torch.cat(frames.split(3, 1)))
        corrected = self.correct(rough, margin)
        return corrected if self.freeze_backbone else (rough[: len(frames)], corrected)

    def correct(self, rough: Tensor, margin: Tensor) -> Tensor:
        """Everything behind the backbone: its heatmaps (3*B, joints, h, w) of all current, previous and next frames."""
        support, features = self.merge(rough, margin)
        return mean_of_predicted(support, features, self.branches(), self.kept_bytes)

    def merge(self, rough: Tensor, margin: Tensor) -> tuple[Tensor, Tensor]:
        """The support (B, joints, h, w), which is corrected, and the features (B, 64, h, w) that say how."""
        current, before, after = rough.chunk(3)
        shares = (margin.to(rough) / margin.sum(1, keepdim=True))[..., None, None, None]
        to_before, to_after = shares[:, 1], shares[:, 0]
        from_before, from_after = current - before, current - after
        differences = _interleave(from_before, from_before * to_before, from_after, from_after * to_after)
        support = self.support_temporal_fuse(_interleave(current, before * to_before, after * to_after))
        features = torch.cat((self.diff_temporal_fuse(differences), support), 1)
        return support, self.offset_mask_combine_conv(features)

    def branches(self) -> list[Branch]:
        """The correction branches, one a dilation."""
        layers = zip(self.offsets_list, self.masks_list, self.modulated_deform_conv_list, strict=True)
        return [Branch(offset[0], mask[0], deform["deform_conv"]) for offset, mask, deform in layers]  # type: ignore[index]

    @property
    def backbone(self) -> nn.Module:
        return self.rough_pose_estimation_net

    def _initialise(self) -> None:
        """As published: small convolutions, and correction layers that copy the support where masks are 1."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.001)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, ModulatedDeformConv2d):
                nn.init.dirac_(module.weight)


class ResidualSteps(nn.Module):
    """Four branches of 1 to 4 convolutions, each fed by its neighbour, around a shortcut (residual steps block).

        x_1..x_4 = the quarters of conv_bn_relu1(x)
        y[r, c] = f_rc(y[r, c-1] + y[r-1, c]) with y[r, 0] = x_r, and the second term only where c < r
        y = relu(conv_bn_relu3(y[1, 1], y[2, 2], y[3, 3], y[4, 4]) + shortcut(x))

    Args:
        inputs: channels of x; a quarter has 26/64 of them, rounded down.
        outputs: channels of y.
        project: whether the shortcut is a 1x1 convolution and batch norm; else it is x.

    Source:
        Cai et al., Learning Delicate Local Representations for Multi-Person Pose Estimation, ECCV 2020, figure 3.
    """

    def __init__(self, inputs: int, outputs: int, project: bool) -> None:
        super().__init__()
        width = inputs * 26 // 64
        self.conv_bn_relu1 = ConvNorm(inputs, 4 * width, 1)
        for row in range(1, 5):
            for column in range(1, row + 1):
                self.add_module(f"conv_bn_relu2_{row}_{column}", ConvNorm(width, width))
        self.conv_bn_relu3 = ConvNorm(4 * width, outputs, 1, relu=False)
        self.downsample = ConvNorm(inputs, outputs, 1, relu=False) if project else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        above: list[Tensor] = []  # the row before, by column
        last = []
        for row, quarter in enumerate(self.conv_bn_relu1(x).chunk(4, 1), 1):
            found, y = [], quarter
            for column in range(1, row + 1):
                y = self.get_submodule(f"conv_bn_relu2_{row}_{column}")(y + above[column - 1] if column < row else y)
                found.append(y)
            above = found
            last.append(y)
        y = self.conv_bn_relu3(torch.cat(last, 1))
        y += self.downsample(x)
        return F.relu(y, inplace=True)


def residual_steps(inputs: int, outputs: int, blocks: int) -> Chain:
    """So many `ResidualSteps` in a row, the first of which changes the channels."""
    chain = (ResidualSteps(outputs, outputs, False) for _ in range(blocks - 1))
    return Chain(ResidualSteps(inputs, outputs, True), *chain)


def _dilated_conv(outputs: int, dilation: int) -> nn.Conv2d:
    return Conv3x3(_COMBINED, outputs, dilation, bias=False)


def _interleave(*maps: Tensor) -> Tensor:
    """Maps of (B, joints, h, w) to (B, joints * maps, h, w): all of the first joint, all of the second, ..."""
    return torch.stack(maps, 2).flatten(1, 2)


def check_margin(frames: Tensor, margin: Tensor) -> None:
    """Refuses what is not a pair of distances for every sample."""
    if margin.shape != (len(frames), 2):
        raise ValueError(
            f"DCPose: margin must be (B, 2) = {(len(frames), 2)}, frames to the previous and to the next one, "
            f"got {tuple(margin.shape)}"
        )


def dcpose(joints: int = 17, **options: Any) -> DCPose:
    """DCPose on HRNet-W48; see `DCPose`."""
    return DCPose(joints, **options)
