# SPDX-License-Identifier: Apache-2.0
"""Deformable convolution whose offsets and masks a convolution predicts from other features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flexor.nn import DeformConv2d, ModulatedDeformConv2d


class Branch(NamedTuple):
    """Two convolutions, which predict offsets and masks, and the layer that they steer."""

    offset: nn.Conv2d
    mask: nn.Conv2d
    deform: DeformConv2d | ModulatedDeformConv2d


def predicted_deform_conv2d(input: Tensor, features: Tensor, branch: Branch) -> Tensor:
    """deform(input, offset(features), mask(features)).

    Offsets and masks come from one convolution: its weight is put together at every call, so that it is always that of
    the parameters. The mask is any number, as in the published networks: no sigmoid.

    Args:
        input: (B, C, h, w), what is sampled.
        features: (B, F, h, w), what the two convolutions see.

    Returns:
        (B, O, h, w).
    """
    offset, mask, deform = branch
    weight = torch.cat((offset.weight, mask.weight))
    bias = None if offset.bias is None or mask.bias is None else torch.cat((offset.bias, mask.bias))
    predicted = offset._conv_forward(features, weight, bias)
    offsets, masks = predicted.split((offset.out_channels, mask.out_channels), 1)
    return deform(input, offsets, masks)


def mean_of_predicted(input: Tensor, features: Tensor, branches: Sequence[Branch], kept_bytes: int = 0) -> Tensor:
    """The mean of `predicted_deform_conv2d` over branches, with the offsets of one branch in memory at a time.

    Without gradients each branch's offsets and masks are freed when its output has been added. With gradients the
    backward predicts them again, branch by branch, so that memory does not grow with their number.

    Args:
        input: (B, C, h, w), what is sampled.
        features: (B, F, h, w), what offsets and masks are predicted from.
        branches: at least one; all give as many channels.
        kept_bytes: offsets and masks of as many branches as fit are kept for the backward instead.

    Returns:
        (B, O, h, w).

    Raises:
        ValueError: no branches.
    """
    if not branches:
        raise ValueError("mean_of_predicted: branches must not be empty")
    total: Tensor | None = None
    for branch in branches:
        kept_bytes -= _predicted_bytes(features, branch)
        if torch.is_grad_enabled() and kept_bytes < 0:
            part = checkpoint(
                predicted_deform_conv2d, input, features, branch, use_reentrant=False, preserve_rng_state=False
            )
        else:
            part = predicted_deform_conv2d(input, features, branch)
        total = part if total is None else total.add_(part)
    assert total is not None
    return total / len(branches)


def _predicted_bytes(features: Tensor, branch: Branch) -> int:
    channels = branch.offset.out_channels + branch.mask.out_channels
    return features.shape[0] * channels * features.shape[2] * features.shape[3] * features.element_size()
