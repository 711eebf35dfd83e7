# SPDX-License-Identifier: Apache-2.0
"""Intra prediction in plain PyTorch, on any device: H.265 clause 8.4.4.2, and nearest in place of bilinear.

The border of an n x n block is one line of 4n + 1 samples, from the bottom left up to the corner and on to the top
right: the corner p[-1][-1] is at 2n, p[-1][y] at 2n - 1 - y, p[x][-1] at 2n + 1 + x.
"""

from __future__ import annotations

import torch
from torch import Tensor

PLANAR, DC, HORIZONTAL, VERTICAL = 0, 1, 10, 26
MODES = 35
FIRST_VERTICAL = 18

# Of modes 2 to 34, in 1/32 of a sample a row, from the last horizontal mode to the first and the vertical ones alike.
ANGLES = dict(zip(range(18, 35), (-32, -26, -21, -17, -13, -9, -5, -2, 0, 2, 5, 9, 13, 17, 21, 26, 32), strict=True))
ANGLES |= {36 - mode: angle for mode, angle in ANGLES.items() if mode > 18}
FRACTIONAL = tuple(mode for mode in sorted(ANGLES) if ANGLES[mode] % 32)  # those that nearest changes

_INVERSE_ANGLES = {-2: -4096, -5: -1638, -9: -910, -13: -630, -17: -482, -21: -390, -26: -315, -32: -256}


def intra_predict(
    border: Tensor,
    mode: Tensor,
    available: Tensor | None = None,
    bit_depth: int = 8,
    nearest: bool = False,
    component: str = "luma",
    smoothing: bool = True,
    strong_smoothing: bool = True,
    edge_filter: bool = True,
) -> Tensor:
    """Blocks (N, n, n) from borders (N, 4n + 1) and modes (N,); see `flexor.ops.intra_predict`."""
    size = border.shape[1] // 4
    lines = substituted(border.to(torch.int32), available, bit_depth)
    blocks = lines.new_empty((border.shape[0], size, size))
    for value in mode.unique().tolist():
        rows = (mode == value).nonzero()[:, 0]
        line = lines[rows]
        if smoothing and component != "chroma" and smooths(size, value):
            line = smoothed(line, bit_depth, strong=strong_smoothing and component == "luma")
        edges = edge_filter and component == "luma" and size < 32
        blocks[rows] = predicted(line, value, nearest, edges, bit_depth).to(blocks.dtype)
    return blocks.to(border.dtype)


def substituted(border: Tensor, available: Tensor | None, bit_depth: int) -> Tensor:
    """8.4.4.2.2: what is not available repeats what comes before it, the beginning what comes first."""
    if available is None:
        return border
    places = torch.arange(border.shape[1], device=border.device).expand_as(border)
    last = torch.where(available, places, -1).cummax(1).values
    first = available.int().argmax(1, keepdim=True)
    filled = border.gather(1, torch.where(last < 0, first, last))
    return torch.where(available.any(1, keepdim=True), filled, 1 << (bit_depth - 1))


def smooths(size: int, mode: int) -> bool:
    """8.4.4.2.3: whether blocks of this size and mode are predicted from a smoothed border."""
    if mode == DC or size == 4:
        return False
    return min(abs(mode - VERTICAL), abs(mode - HORIZONTAL)) > {8: 7, 16: 1}.get(size, 0)


def smoothed(border: Tensor, bit_depth: int, strong: bool) -> Tensor:
    """[1 2 1] / 4 along the border; from 32 on, a straight line instead where the border nearly is one."""
    size = border.shape[1] // 4
    middle = (border[:, :-2] + 2 * border[:, 1:-1] + border[:, 2:] + 2) >> 2
    smooth = torch.cat([border[:, :1], middle, border[:, -1:]], 1)
    if not strong or size < 32:
        return smooth
    bottom, corner, right = border[:, :1], border[:, 2 * size, None], border[:, -1:]
    bend = torch.cat([corner + right - 2 * border[:, 3 * size, None], corner + bottom - 2 * border[:, size, None]], 1)
    straight = (bend.abs() < 1 << (bit_depth - 5)).all(1, keepdim=True)
    steps = torch.arange(2 * size, device=border.device, dtype=border.dtype)
    sides = [
        ((2 * size - steps) * start + steps * end + size) >> size.bit_length()
        for start, end in ((bottom, corner), (corner, right))
    ]
    return torch.where(straight, torch.cat([*sides, right], 1), smooth)


def predicted(border: Tensor, mode: int, nearest: bool, edges: bool, bit_depth: int) -> Tensor:
    """8.4.4.2.4 to 8.4.4.2.6: blocks from borders that are ready, all of one mode; edges are those of DC, 10 and 26."""
    size = border.shape[1] // 4
    left, corner, top = (
        border[:, :, None].flip(1)[:, 2 * size + 1 :],
        border[:, 2 * size],
        border[:, None, 2 * size + 1 :],
    )
    if mode == PLANAR:
        steps = torch.arange(1, size + 1, device=border.device, dtype=border.dtype)
        across = (size - steps) * left[:, :size] + steps * top[:, :, size, None]
        down = (size - steps[:, None]) * top[:, :, :size] + steps[:, None] * left[:, size, None]
        return (across + down + size) >> size.bit_length()
    if mode == DC:
        mean = (left[:, :size].sum((1, 2)) + top[:, :, :size].sum((1, 2)) + size) >> size.bit_length()
        block = mean[:, None, None].repeat(1, size, size)
        if edges:
            block[:, 0] = (top[:, 0, :size] + 3 * mean[:, None] + 2) >> 2
            block[:, :, 0] = (left[:, :size, 0] + 3 * mean[:, None] + 2) >> 2
            block[:, 0, 0] = (left[:, 0, 0] + 2 * mean + top[:, 0, 0] + 2) >> 2
        return block
    first, second, part = _places(size, ANGLES[mode], border.device)
    line = border if mode >= FIRST_VERTICAL else border.flip(1)  # a horizontal mode is a vertical one, transposed
    a, b = line[:, first], line[:, second]
    block = torch.where(part >= 16, b, a) if nearest else ((32 - part) * a + part * b + 16) >> 5
    if edges and mode in (HORIZONTAL, VERTICAL):
        slope = (line[:, : 2 * size].flip(1)[:, :size] - corner[:, None]) >> 1
        block[:, :, 0] = (block[:, :, 0] + slope).clamp(0, (1 << bit_depth) - 1)
    return block if mode >= FIRST_VERTICAL else block.mT


def _places(size: int, angle: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Where in a border the two samples of every sample of a block are, (n, n), and the second's weight in 1/32."""
    steps = torch.arange(size, device=device)
    whole, part = ((steps + 1) * angle) >> 5, ((steps + 1) * angle) & 31
    first = steps + whole[:, None] + 1
    second = first + (part[:, None] > 0)
    inverse = _INVERSE_ANGLES.get(angle, 0)

    def place(along: Tensor) -> Tensor:  # before the corner, the samples of the other side, projected
        return 2 * size + torch.where(along < 0, -((along * inverse + 128) >> 8), along)

    return place(first), place(second), part[:, None]
