# SPDX-License-Identifier: Apache-2.0
"""Which cell every tap of a grid convolution reads, as the lists of terms told in `grid_conv`."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch


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
