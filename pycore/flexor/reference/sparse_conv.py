# SPDX-License-Identifier: Apache-2.0
"""Sparse convolution in plain PyTorch: gather, multiply, scatter; the oracle and the second derivative."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .bilinear import compute_dtype
from .sparse_index import TILE


class Pairs(NamedTuple):
    """Outputs and inputs that meet at one tap, as rows of their features."""

    tap: int
    outputs: Tensor
    inputs: Tensor


def sparse_conv(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    map: Sequence[Tensor],
    groups: int = 1,
    slope: float | None = None,
) -> Tensor:
    """Convolves sparse features (N_in, Cin) with weights (Cout, K, Cin/groups); see `flexor.ops.sparse_conv`."""
    dtype = compute_dtype(features)
    input, kernel = features.to(dtype), weight.to(dtype)
    output = input.new_zeros(map[0].shape[0], weight.shape[0])
    if bias is not None:
        output = output + bias.to(dtype)
    if residual is not None:
        output = output + residual.to(dtype)
    for tap, outputs, inputs in pairs_by_tap(map, weight.shape[1]):
        output = output.index_add(0, outputs, _product(input[inputs], kernel[:, tap], groups))
    if slope is not None:
        output = F.relu(output) if slope == 0 else F.leaky_relu(output, slope)
    return output.to(features.dtype)


def sparse_conv_backward(
    grad_output: Tensor,
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    map: Sequence[Tensor],
    groups: int = 1,
) -> tuple[Tensor | None, ...]:
    """Gradients of `sparse_conv` without an activation for its four tensors, written out so that they differentiate."""
    dtype = compute_dtype(features)
    grad, input, kernel = grad_output.to(dtype), features.to(dtype), weight.to(dtype)
    grad_features, grad_taps = torch.zeros_like(input), [torch.zeros_like(kernel[:, 0])] * weight.shape[1]
    for tap, outputs, inputs in pairs_by_tap(map, weight.shape[1]):
        rows, split = _grouped(grad[outputs], groups), _split(kernel[:, tap], groups)
        grad_features = grad_features.index_add(0, inputs, _joined(rows @ split))
        grad_taps[tap] = (rows.mT @ _grouped(input[inputs], groups)).reshape(grad_taps[tap].shape)
    return (
        grad_features.to(features.dtype),
        torch.stack(grad_taps, 1).to(weight.dtype),
        None if bias is None else grad.sum(0).to(bias.dtype),
        None if residual is None else grad_output.to(residual.dtype, copy=True),
    )


def pairs_by_tap(map: Sequence[Tensor], taps: int) -> Iterator[Pairs]:
    """The pairs of every tap that has any."""
    tap, outputs, inputs = pairs(map)
    order = tap.argsort(stable=True)
    counts = tap.bincount(minlength=taps).tolist()
    for k, rows in enumerate(order.split(counts)):
        if rows.shape[0]:
            yield Pairs(k, outputs[rows], inputs[rows])


def pairs(map: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Tap, output row and input row of every pair of a map, in lists or in a table of neighbours."""
    out_order, in_order = map[0].long(), map[1].long()
    if map[2].dim() == 2:  # (N_out, K) rows or -1, as on a GPU
        outputs, tap = (map[2] >= 0).nonzero().unbind(1)
        return tap, outputs, map[2][outputs, tap].long()
    in_ranks, places, offsets = map[2:]
    tiles = -(-out_order.shape[0] // TILE)
    taps = (offsets.shape[0] - 1) // max(tiles, 1)
    lists = torch.arange(tiles * taps, device=offsets.device).repeat_interleave(offsets.diff())
    out_ranks = lists.div(max(taps, 1), rounding_mode="floor") * TILE + places
    return lists % max(taps, 1), out_order[out_ranks], in_order[in_ranks.long()]


def _product(rows: Tensor, kernel: Tensor, groups: int) -> Tensor:
    """(P, Cin) by (Cout, Cin / groups)"""
    return _joined(_grouped(rows, groups) @ _split(kernel, groups).mT)


def _grouped(rows: Tensor, groups: int) -> Tensor:
    """(P, C) as (groups, P, C / groups)"""
    return rows.reshape(rows.shape[0], groups, -1).transpose(0, 1)


def _joined(rows: Tensor) -> Tensor:
    return rows.transpose(0, 1).reshape(rows.shape[1], -1)


def _split(kernel: Tensor, groups: int) -> Tensor:
    """(Cout, C) as (groups, Cout / groups, C)"""
    return kernel.reshape(groups, -1, kernel.shape[1])
