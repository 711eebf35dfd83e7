# SPDX-License-Identifier: Apache-2.0
"""FAMI-Pose: features of neighbouring frames, aligned with those of the key frame, and then joined with them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flexor.nn import Conv3x3, DeformConv2d
from flexor.ops import affine_warp2d

from ._checks import check_images, check_joints
from .conv_norm import Chain, ConvNorm
from .frozen import OnBackbone
from .hrnet import hrnet_w48
from .inference import by_winograd
from .mutual_information import DIVERGENCES, Divergence, information_terms
from .predicted_deform import Branch, predicted_deform_conv2d
from .resnet import BasicBlock

__all__ = ["FAMIPose", "fami_pose"]

SUPPORTS = 4  # frames beside the key frame
_WIDTH = 48  # HRNet-W48's features
_OFFSET_GROUPS, _DILATION, _TAPS = 12, 3, 9
_SMALLEST, _LARGEST = 65, 96  # sides of features that five halvings, rounded up, bring to 3


class FAMIPose(OnBackbone):
    """A key frame (B, 3, H, W) and four others (B, 12, H, W) to the key frame's heatmaps (B, joints, H/4, W/4).

        z_k, z_1 .. z_4 = the backbone's features of the key frame and of the supporting ones
        moved_i(p) = z_i(p - t_i), t_i = global(z_i - z_k)                global alignment: a shift of the whole map
        merged = sup_agg(moved_1, .., moved_4)
        u = dcn_2(dcn_1(combined(merged, z_k)))                           local alignment, each steered by its input
        aligned = dcn_4(dcn_3(merged steered by u))
        joined = agg(z_k, aligned), heatmaps = agg_final_layer(joined)

    dcn_1 to dcn_4 are deformable convolutions of 3x3 taps, dilation 3 and 12 offset groups. Masks are not squashed.

    Args:
        joints: number of heatmaps.
        freeze_backbone: the backbone's parameters get no gradients, as published.
        freeze_statistics: the backbone stays in evaluation mode in training too. Published: False, so that the running
            statistics of its batch norms follow the training data even where its parameters are frozen.
        information: "as_released" or "corrected" also returns the six terms of the mutual-information objective, see
            `flexor.models.pose.mutual_information`; the official model does so in its training phase.
        backbone: gives 48 channels of features; HRNet-W48 by default, as published.

    Returns:
        (heatmaps, the backbone's heatmaps of the key frame), and third, where `information` asks, the list of terms.

    Raises:
        ValueError: images of another shape, sides that are not multiples of 32 from 288 to 384, another `information`.
        TypeError: images that are not floating point.

    Notes:
        64,655,204 parameters with 17 joints. `supporting` are frames -2, -1, +1, +2, in this order; the key frame
        stands in for one that is missing. t is in pixels of the features, (x, y).

    Source:
        Liu et al., Temporal Feature Alignment and Mutual Information Maximization for Video-Based Human Pose
        Estimation, CVPR 2022, figure 2; names of github.com/Pose-Group/FAMI-Pose, class Alignment_V15.
    """

    def __init__(
        self,
        joints: int = 17,
        freeze_backbone: bool = True,
        freeze_statistics: bool = False,
        information: Divergence | None = None,
        backbone: nn.Module | None = None,
    ) -> None:
        super().__init__(freeze_backbone, freeze_statistics)
        check_joints("FAMIPose", joints)
        if information is not None and information not in DIVERGENCES:
            raise ValueError(
                f"FAMIPose: information must be one of {', '.join(DIVERGENCES)} or None, got {information!r}"
            )
        self.information = information
        self.hrnet = hrnet_w48(joints) if backbone is None else backbone
        self.feat_global_offset_layers = nn.Sequential(
            _blocks(_WIDTH, 16, 1),
            *(ConvNorm(16, 16, stride=2) for _ in range(5)),
            nn.Flatten(),
            nn.Linear(16 * 3 * 3, 64),
            nn.Linear(64, 64),
            nn.Linear(64, 2),
        )
        self.combined_feat_layers = _blocks(2 * _WIDTH, _WIDTH, 1)
        for number in range(1, 5):
            self.add_module(f"dcn_offset_{number}", _steering_conv(2 * _OFFSET_GROUPS * _TAPS))
            self.add_module(f"dcn_mask_{number}", _steering_conv(_OFFSET_GROUPS * _TAPS))
            layer = DeformConv2d(_WIDTH, _WIDTH, 3, padding=_DILATION, dilation=_DILATION)
            self.add_module(f"dcn_{number}", layer)
        self.sup_agg_block = _blocks(SUPPORTS * _WIDTH, _WIDTH, 2)
        self.init_feature_agg_block = _blocks(2 * _WIDTH, _WIDTH, 3)
        self.agg_final_layer = Conv3x3(_WIDTH, joints)
        self._initialise()
        self.backbone.requires_grad_(not freeze_backbone)

    @property
    def backbone(self) -> Any:
        return self.hrnet

    def forward(self, key: Tensor, supporting: Tensor) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, list[Tensor]]:
        """key (B, 3, H, W); supporting (B, 12, H, W): frames -2, -1, +1, +2."""
        check_images("FAMIPose", key, 3, "key")
        check_images("FAMIPose", supporting, 3 * SUPPORTS, "supporting")
        if len(key) != len(supporting) or key.shape[2:] != supporting.shape[2:]:
            raise ValueError(
                f"FAMIPose: key and supporting must have the same B, H and W, got {tuple(key.shape)} and "
                f"{tuple(supporting.shape)}"
            )
        check_feature_size(key)
        features = self.backbone.features(torch.cat((key, *supporting.split(3, 1))))
        rough = self.backbone.final_layer(features[: len(key)])
        heatmaps, merged, joined = self.align(features)
        if self.information is None:
            return heatmaps, rough
        terms = information_terms(
            self.backbone.final_layer, heatmaps, features[: len(key)], merged, joined, self.information
        )
        return heatmaps, rough, terms

    def align(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Everything behind the backbone: (5*B, 48, h, w), key frames first, to (heatmaps, merged, joined)."""
        key, *supporting = features.chunk(1 + SUPPORTS)
        merged = self.sup_agg_block(torch.cat([self.move(each, key) for each in supporting], 1))
        steering = self.combined_feat_layers(torch.cat((merged, key), 1))
        for number in (1, 2):
            steering = predicted_deform_conv2d(steering, steering, self.branch(number))
        aligned = predicted_deform_conv2d(merged, steering, self.branch(3))
        aligned = predicted_deform_conv2d(aligned, aligned, self.branch(4))
        joined = self.init_feature_agg_block(torch.cat((key, aligned), 1))
        return self.agg_final_layer(joined), merged, joined

    def move(self, features: Tensor, key: Tensor) -> Tensor:
        """Global alignment: features (B, 48, h, w), shifted so that they meet those of the key frame."""
        shift = self.feat_global_offset_layers(features - key)
        still = torch.eye(2, dtype=shift.dtype, device=shift.device).expand(len(shift), 2, 2)
        return affine_warp2d(features, torch.cat((still, shift[..., None]), 2))

    def branch(self, number: int) -> Branch:
        """Local alignment 1 to 4: its two convolutions and the layer that they steer."""
        offset, mask = (self.get_submodule(f"dcn_{kind}_{number}.conv") for kind in ("offset", "mask"))
        return Branch(offset, mask, self.get_submodule(f"dcn_{number}"))  # type: ignore[arg-type]

    def _initialise(self) -> None:
        """As published: small convolutions, no biases; other weights as their layers draw them."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.001)
            if isinstance(module, (nn.Conv2d, nn.Linear, DeformConv2d)) and module.bias is not None:
                nn.init.zeros_(module.bias)


def _blocks(inputs: int, outputs: int, blocks: int) -> Chain:
    """So many residual blocks in a row, the first of which changes the channels."""
    rest = (BasicBlock(outputs, outputs) for _ in range(blocks - 1))
    return by_winograd(Chain(BasicBlock(inputs, outputs), *rest))


def _steering_conv(outputs: int) -> nn.ModuleDict:
    return nn.ModuleDict({"conv": Conv3x3(_WIDTH, outputs, _DILATION)})


def check_feature_size(key: Tensor) -> None:
    """Refuses sizes that the global alignment's fully connected layers do not fit."""
    if any(not _SMALLEST <= side // 4 <= _LARGEST for side in key.shape[2:]):
        height, width = key.shape[2:]
        raise ValueError(
            f"FAMIPose: height and width of key must be multiples of 32 from 288 to 384, got {height} x {width}: "
            "the global alignment ends in a layer for 3x3 maps"
        )


def fami_pose(joints: int = 17, **options: Any) -> FAMIPose:
    """FAMI-Pose on HRNet-W48; see `FAMIPose`."""
    return FAMIPose(joints, **options)
