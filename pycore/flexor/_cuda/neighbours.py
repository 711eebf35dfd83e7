# SPDX-License-Identifier: Apache-2.0
"""Maps as the GPU kernels read them: for every output row, the input row behind each tap.

neighbours  (N_out, K) int32, rows, -1 where there is no voxel
row_masks   (N_out, ceil(K / 32)) int32, the taps that a row has, one bit each
mask_order  (N_out,) int32, rows with like masks beside one another, in the order of their ranks where masks are
            the same
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..reference.sparse_conv import pairs
from ..reference.sparse_index import TILE

WORD = 32


def from_lists(map: Sequence[Tensor], taps: int | None = None) -> list[Tensor]:
    """Of a map in lists of pairs, `[out_order, in_order, in_rows, places, offsets]`; taps can be counted if it has
    rows."""
    rows, lists = map[0].shape[0], map[4].shape[0] - 1
    taps = taps or lists // max(1, -(-rows // TILE))
    tap, out_rows, in_rows = pairs(map)
    neighbours = torch.full((rows, taps), -1, dtype=torch.int32, device=map[0].device)
    neighbours[out_rows, tap] = in_rows.int()
    row_masks = _row_masks(neighbours)
    return [neighbours, row_masks, mask_order(row_masks, map[0])]


def mask_order(row_masks: Tensor, out_order: Tensor) -> Tensor:
    """Rows sorted by their masks, the last word first."""
    order = out_order
    for word in row_masks.unbind(1):
        order = order[word[order.long()].argsort(stable=True)]
    return order


def _row_masks(neighbours: Tensor) -> Tensor:
    words = []
    for part in neighbours.split(WORD, 1):
        bits = 1 << torch.arange(part.shape[1], device=part.device)
        words.append(((part >= 0) * bits).sum(1).int())
    return torch.stack(words, 1)
