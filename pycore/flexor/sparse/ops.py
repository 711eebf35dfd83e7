# SPDX-License-Identifier: Apache-2.0
"""Sizes and tables of pairs, for code that makes its own under spconv."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..ops import SparseIndex, SparseMap
from . import pairs
from .core import ConvAlgo

__all__ = [
    "ConvAlgo",
    "get_conv_output_size",
    "get_deconv_output_size",
    "get_indice_pairs",
    "global_pool_rearrange",
    "maximum_value_int_",
]

Ints = Sequence[int]


def get_conv_output_size(input_size: Ints, kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints) -> list[int]:
    """`(size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1` an axis, 1 where kernel is -1."""
    window = zip(input_size, kernel_size, stride, padding, dilation, strict=True)
    return [1 if k == -1 else (size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in window]


def get_deconv_output_size(
    input_size: Ints, kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints, output_padding: Ints
) -> list[int]:
    """`(size - 1) * stride - 2 * padding + kernel + output_padding` an axis: spconv counts no dilation."""
    window = zip(input_size, kernel_size, stride, padding, output_padding, strict=True)
    return [(size - 1) * s - 2 * p + k + extra for size, k, s, p, extra in window]


def window_map(
    index: SparseIndex,
    ksize: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    out_padding: Ints,
    subm: bool = False,
    transpose: bool = False,
) -> SparseMap:
    """The map of spconv's convolution; a submanifold one ignores stride and padding."""
    if subm:
        return index.submanifold(tuple(ksize), tuple(dilation))
    window = tuple(ksize), tuple(stride), tuple(padding), tuple(dilation)
    if not transpose:
        return index.strided(*window)[1]
    extra = tuple(o - (d - 1) * (k - 1) for o, d, k in zip(out_padding, dilation, ksize, strict=True))
    return index.generative(*window, extra)[1]


def get_indice_pairs(
    indices: Tensor,
    batch_size: int,
    spatial_shape: Ints,
    algo: ConvAlgo,
    ksize: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    out_padding: Ints,
    subm: bool = False,
    transpose: bool = False,
    num_out_act_bound: int = -1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output indices, and the pairs and their numbers as `IndiceData` has them; algo and the bound are not used."""
    index = SparseIndex(indices, spatial_shape=spatial_shape, batch_size=batch_size)
    map = window_map(index, ksize, stride, padding, dilation, out_padding, subm, transpose)
    return map.out.indices, *pairs.padded(map, subm)


def global_pool_rearrange(coords: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
    """(batch_size, N) rows of each sample, in order, -1 behind them, and (batch_size,) how many; int32."""
    samples, rows = coords[:, 0].sort(stable=True)
    counts = torch.bincount(samples, minlength=batch_size)
    place = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[samples.long()]
    table = torch.full((batch_size, len(rows)), -1, dtype=torch.int32, device=coords.device)
    table[samples.long(), place] = rows.int()
    return table, counts.int()


def maximum_value_int_(ten: Tensor, value: int) -> None:
    """Raises each entry to at least value."""
    ten.clamp_(min=value)
