# SPDX-License-Identifier: Apache-2.0
"""What the kernels over sparse maps share: which row reads what, and which taps a block of rows has."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .._cuda.neighbours import from_lists
from ._common import index_type

WORD = tl.constexpr(32)  # taps a word of a row mask


@triton.jit
def ordered_rows(order, block, rows, INDEX: tl.constexpr, BLOCK_M: tl.constexpr):
    """Rows of one block in the given order, and which of them exist; the others are row 0."""
    place = tl.cast(block, INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
    valid = place < rows
    return tl.load(order + place, mask=valid, other=0).to(INDEX), valid


@triton.jit
def either(a, b):
    return a | b


@triton.jit
def block_taps(row_masks, row, row_valid, word, WORDS: tl.constexpr):
    """The taps, as bits of one word, that any row of a block has."""
    masks = tl.load(row_masks + row * WORDS + word, mask=row_valid, other=0)
    return tl.reduce(masks, 0, either).to(tl.uint32, bitcast=True)


@triton.jit
def count_bits(mask):
    mask = mask - ((mask >> 1) & 0x55555555)
    mask = (mask & 0x33333333) + ((mask >> 2) & 0x33333333)
    mask = (mask + (mask >> 4)) & 0x0F0F0F0F
    mask = mask + (mask >> 8)
    return ((mask + (mask >> 16)) & 63).to(tl.int32)


@triton.jit
def lowest_bit(mask):
    """Place of the lowest set bit: a power of two has it as its exponent in float32."""
    power = mask ^ (mask & (mask - 1))
    return (power.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127


@triton.jit
def load_gathered(values, width, source, channel, channel_valid, INDEX: tl.constexpr):
    """Rows `source` (-1: zeros) of a (rows, width) matrix at the given channels, as (BLOCK_M, channels)."""
    valid = (source >= 0) & tl.expand_dims(channel_valid, 0)
    at = source.to(INDEX) * width + tl.expand_dims(channel, 0)
    return tl.load(values + at, mask=valid, other=0.0)


class Map(NamedTuple):
    """A map as the kernels read it: output row r takes from input row neighbours[r, tap], -1 for none."""

    neighbours: torch.Tensor  # (rows, taps) int32
    row_masks: torch.Tensor  # (rows, words) int32: the taps that a row has, 32 a word
    order: torch.Tensor  # (rows,) int32: rows with like masks beside each other

    @classmethod
    def of(cls, tensors: list[torch.Tensor]) -> Map:
        """From the tensors of a SparseMap: orders of both sides, then these three, or lists of pairs."""
        return cls(*(tensors[2:] if tensors[2].dim() == 2 else from_lists(tensors)))

    @property
    def rows(self) -> int:
        return self.neighbours.shape[0]

    @property
    def taps(self) -> int:
        return self.neighbours.shape[1]


def row_index_type(*tensors: torch.Tensor | None) -> tl.dtype:
    """int32 if it reaches every element of each tensor, else int64."""
    return index_type(*(None if t is None else t[None] for t in tensors))
