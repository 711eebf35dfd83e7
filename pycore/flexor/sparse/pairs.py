# SPDX-License-Identifier: Apache-2.0
"""spconv's tables of neighbours, made from a map."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..ops import SparseMap
from ..reference.sparse_index import TILE


def neighbours(map: SparseMap) -> Tensor:
    """(K, N_out) int32: the input row that each output row meets at each tap, or -1."""
    if map.out.indices.is_cuda:
        return map.tensors[2].t().contiguous()
    taps = math.prod(map.kernel)
    out_order, in_order, ranks, places, offsets = map.tensors
    listed = torch.arange(len(offsets) - 1).repeat_interleave(offsets.diff())  # tile * taps + tap of each pair
    outputs = out_order[torch.div(listed, taps, rounding_mode="floor") * TILE + places]
    table = torch.full((taps, len(out_order)), -1, dtype=torch.int32)
    table[listed % taps, outputs.long()] = in_order[ranks.long()]
    return table


def padded(map: SparseMap, subm: bool) -> tuple[Tensor, Tensor]:
    """(2, K, N_in) int32, each tap's input and output rows and -1 behind them, and how many each tap has.

    Of an odd submanifold kernel, as in spconv, only the taps before the centre are counted, though all are there: the
    centre is every row with itself, and a tap behind it is the pairs of the tap that it mirrors, exchanged.
    """
    table = neighbours(map)
    half, mirrored = len(table) // 2, subm and map.mirrored
    taps, outputs = (table[:half] if mirrored else table).ge(0).nonzero().unbind(1)
    counts = torch.bincount(taps, minlength=len(table))
    place = torch.arange(len(taps), device=taps.device) - (counts.cumsum(0) - counts)[taps]
    pairs = table.new_full((2, len(table), len(map.input)), -1)
    pairs[0, taps, place] = table[taps, outputs]
    pairs[1, taps, place] = outputs.int()
    if mirrored:
        pairs[:, half + 1 :] = pairs[:, :half].flip(0, 1)
        pairs[:, half] = torch.arange(len(map.input), device=table.device)
    return pairs, counts.int()
