# SPDX-License-Identifier: Apache-2.0
"""What both directions of the grid convolution share: the tables of what every cell reads, and the operands."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ._common import compute_type, index_type
from ._gemm import dot_precision, uses_tensor_cores

NAME = "grid_conv"


@triton.jit
def load_term(terms, term):
    """Output cell, input cell and weight of a term."""
    return tl.load(terms + 3 * term), tl.load(terms + 3 * term + 1), tl.load(terms + 3 * term + 2)


@triton.jit
def load_attention(attention, sample, valid, cell, weight, CELLS: tl.constexpr, TAPS: tl.constexpr):
    return tl.load(attention + sample * (TAPS * CELLS) + weight % TAPS * CELLS + cell, mask=valid, other=0.0)


class Tables(NamedTuple):
    """The terms of a grid convolution on one device, in the three orders that kernels go through them."""

    by_output: torch.Tensor  # (terms, 3): output cell, input cell, weight
    output_starts: torch.Tensor  # (cells + 1,)
    by_input: torch.Tensor
    input_starts: torch.Tensor
    by_weight: torch.Tensor
    weight_starts: torch.Tensor
    of_attention: torch.Tensor  # (taps, cells, 2): places in by_input, or their number where there is no second term


def border_cell(at: int, size: int, border: str) -> int | None:
    """The place on an axis that is read at `at`; None for a zero."""
    if border == "c":
        return at % size
    return min(max(at, 0), size - 1) if border == "r" or 0 <= at < size else None


@functools.lru_cache(maxsize=32)
def tables(size: tuple[int, int], kernel: tuple[int, int], borders: str, device: torch.device) -> Tables:
    """Weight t is the tap's of branch 1, taps + t that of branch 2, 2 taps + t their sum."""
    taps, cells = kernel[0] * kernel[1], size[0] * size[1]
    terms = []
    for cell in range(cells):
        for tap in range(taps):
            y = cell // size[1] + tap // kernel[1] - kernel[0] // 2
            x = cell % size[1] + tap % kernel[1] - kernel[1] // 2
            read = []
            for border in borders:
                row, column = border_cell(y, size[0], border), border_cell(x, size[1], border)
                read.append(None if row is None or column is None else row * size[1] + column)
            if len(read) == 2 and read[0] == read[1] is not None:
                terms.append((cell, read[0], 2 * taps + tap))
            else:
                terms += [
                    (cell, source, branch * taps + tap) for branch, source in enumerate(read) if source is not None
                ]

    def ordered(key: int, count: int) -> tuple[torch.Tensor, torch.Tensor, list[tuple[int, int, int]]]:
        rows = sorted(terms, key=lambda term: (term[key], term))
        starts = [sum(term[key] < i for term in rows) for i in range(count + 1)]
        make = functools.partial(torch.tensor, dtype=torch.int32, device=device)
        return make(rows), make(starts), rows

    by_output, output_starts, _ = ordered(0, cells)
    by_input, input_starts, rows = ordered(1, cells)
    by_weight, weight_starts, _ = ordered(2, (2 * len(borders) - 1) * taps)
    places: list[list[int]] = [[] for _ in range(taps * cells)]
    for place, (cell, _, weight) in enumerate(rows):
        places[weight % taps * cells + cell].append(place)
    pairs = [(found + [len(rows)] * 2)[:2] for found in places]
    of_attention = torch.tensor(pairs, device=device).view(taps, cells, 2)
    return Tables(by_output, output_starts, by_input, input_starts, by_weight, weight_starts, of_attention)


class GridTile(NamedTuple):
    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    num_warps: int
    num_stages: int

    @classmethod
    def of(cls, m: int, n: int, k: int, input: torch.Tensor, limits: tuple[int, int, int]) -> GridTile:
        """No larger than the matrices. Without tensor cores operands live in registers, hence more warps."""
        sizes = (
            max(16, min(limit, triton.next_power_of_2(size))) for size, limit in zip((m, n, k), limits, strict=True)
        )
        tensor_cores = uses_tensor_cores(input)
        return cls(*sizes, num_warps=4 if tensor_cores else 8, num_stages=3 if tensor_cores else 2)


class Call(NamedTuple):
    """The operands of one call as the kernels read them."""

    input: torch.Tensor  # channels_last
    weight: torch.Tensor  # (weights, channels, outputs), in the order of the tables
    attention: torch.Tensor | None
    tables: Tables
    taps: int
    cells: int

    @classmethod
    def of(
        cls,
        input: torch.Tensor,
        weight1: torch.Tensor,
        weight2: torch.Tensor | None,
        attention: torch.Tensor | None,
        borders: str,
    ) -> Call:
        kernel = (weight1.shape[2], weight1.shape[3])
        weights = weight1[None]
        if weight2 is not None:
            compute = torch.float64 if input.dtype == torch.float64 else torch.float32
            both = weight1.to(compute) + weight2.to(compute)
            weights = torch.stack((weight1, weight2, both.to(weight1.dtype)))
        return cls(
            input.contiguous(memory_format=torch.channels_last),
            weights.flatten(3).permute(0, 3, 2, 1).flatten(0, 1),
            None if attention is None else attention.contiguous(),
            tables((input.shape[2], input.shape[3]), kernel, borders, input.device),
            kernel[0] * kernel[1],
            input.shape[2] * input.shape[3],
        )

    def constants(self, *images: torch.Tensor) -> dict[str, object]:
        spans = [None if t is None else t[None] for t in (self.input, self.attention, *images)]
        return {
            "CELLS": self.cells,
            "TAPS": self.taps,
            "INDEX": index_type(*spans, self.weight[None]),
            "COMPUTE": compute_type(self.input),
            "PRECISION": dot_precision(self.input),
        }


def padded(weight: torch.Tensor) -> torch.Tensor:
    """Contiguous, with zeros up to a multiple of 16 on the last axis, so that rows are whole vectors."""
    columns = weight.shape[-1]
    packed = weight.new_zeros(*weight.shape[:-1], triton.cdiv(columns, 16) * 16)
    packed[..., :columns].copy_(weight)
    return packed
