# SPDX-License-Identifier: Apache-2.0
"""Open-loop search of intra modes in plain PyTorch, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from .intra_predict import FRACTIONAL, MODES, predicted, smoothed, smooths, substituted

BILINEAR = tuple((mode, "bilinear") for mode in range(MODES))
CANDIDATES = BILINEAR + tuple((mode, "nearest") for mode in FRACTIONAL)


def intra_search(
    pictures: Tensor,
    size: int = 8,
    metric: str = "satd",
    nearest: bool = True,
    bit_depth: int = 8,
    strong_smoothing: bool = True,
    ctb_size: int | None = 64,
) -> Tensor:
    """Costs (B, rows, columns, 63 or 35) of every candidate for every block; see `flexor.ops.intra_search`."""
    batch, height, width = pictures.shape
    rows, columns = -(-height // size), -(-width // size)
    x, y, available = border_places(rows, columns, size, height, width, ctb_size)
    device = pictures.device
    samples = pictures.to(torch.int32)
    border = samples[:, y.clamp(0, height - 1).to(device), x.clamp(0, width - 1).to(device)].flatten(0, 2)
    border = substituted(border, available.to(device).expand(batch, -1, -1, -1).flatten(0, 2), bit_depth)
    down, right = torch.arange(rows * size).clamp(max=height - 1), torch.arange(columns * size).clamp(max=width - 1)
    padded = samples[:, down.to(device)[:, None], right.to(device)]
    original = padded.unflatten(1, (rows, size)).unflatten(3, (columns, size)).transpose(2, 3).flatten(0, 2)
    smooth = smoothed(border, bit_depth, strong_smoothing)
    cost = satd if metric == "satd" else sad
    costs = []
    for mode, interpolation in CANDIDATES if nearest else BILINEAR:
        line = smooth if smooths(size, mode) else border
        block = predicted(line, mode, interpolation == "nearest", size < 32, bit_depth)
        costs.append(cost(original - block))
    return torch.stack(costs, 1).to(torch.int32).view(batch, rows, columns, len(costs))


def border_places(
    rows: int, columns: int, size: int, height: int, width: int, ctb_size: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """x, y and availability, each (rows, columns, 4n + 1), of the border of every block.

    A sample is available inside the picture, and, with a ctb_size, where its block comes before this one in the
    order of coding: coding tree blocks row by row, in each the blocks along a Z curve.
    """
    side = torch.arange(2 * size)
    along = torch.cat([torch.full((2 * size,), -1), torch.tensor([-1]), side])
    down = torch.cat([side.flip(0), torch.tensor([-1]), torch.full((2 * size,), -1)])
    block_y, block_x = torch.arange(rows)[:, None, None], torch.arange(columns)[:, None]
    x, y = torch.broadcast_tensors(block_x * size + along, block_y * size + down)
    available = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    if ctb_size is not None:
        there = _order(x, y, size, columns * size, ctb_size)
        available &= there < _order(block_x * size, block_y * size, size, columns * size, ctb_size)
    return x, y, available


def _order(x: Tensor, y: Tensor, size: int, width: int, ctb_size: int) -> Tensor:
    """A number that grows in the order of coding."""
    across = -(-width // ctb_size) + 1  # a border may reach beyond the last one
    order = (y // ctb_size * across + x // ctb_size) * (ctb_size // size) ** 2
    x, y, bit = x % ctb_size // size, y % ctb_size // size, 1
    while bit < ctb_size // size:
        order = order + (x & bit) * bit + (y & bit) * bit * 2
        bit *= 2
    return order


def sad(difference: Tensor) -> Tensor:
    return difference.abs().sum((1, 2))


def satd(difference: Tensor) -> Tensor:
    """Magnitudes of Hadamard coefficients, summed: (sum + 2) >> 2 of each 8 x 8 part, (sum + 1) >> 1 of 4 x 4."""
    part = min(8, difference.shape[1])
    parts = difference.unflatten(1, (-1, part)).unflatten(3, (-1, part)).transpose(2, 3).flatten(1, 2)
    matrix = torch.ones(1, 1, dtype=difference.dtype, device=difference.device)
    while matrix.shape[0] < part:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    rows = (parts[..., None] * matrix).sum(3)  # products of integer matrices, on every device
    coefficients = (matrix[:, :, None] * rows[..., None, :, :]).sum(3)
    sums = coefficients.abs().sum((2, 3))
    return (((sums + 2) >> 2) if part == 8 else ((sums + 1) >> 1)).sum(1)
