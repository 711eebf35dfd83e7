# SPDX-License-Identifier: Apache-2.0
"""Reading an image between its pixels: the arithmetic that deformable convolution and warping share.

Everything here is differentiable PyTorch, in both modes and to any order. Derivatives at whole
coordinates are right-sided, because floor has none and the cell to the right is the one that is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Corner(NamedTuple):
    """One of the four pixels around each position; every field is shaped like the positions."""

    index: Tensor  # into the flattened image, 0 where the corner is outside
    inside: Tensor
    weight: Tensor
    weight_dy: Tensor  # derivative of weight with respect to y
    weight_dx: Tensor


def compute_dtype(input: Tensor) -> torch.dtype:
    """The dtype that coordinates and sums have: float64 for float64, else float32."""
    return torch.float64 if input.dtype == torch.float64 else torch.float32


def corners(y: Tensor, x: Tensor, height: int, width: int) -> Iterator[Corner]:
    """Yields the corners around positions: bilinear, with everything outside the image zero.

    A position with a NaN in it has NaN weights and no corner inside; an infinite one has no corner inside.
    """
    poison = torch.zeros_like(y).masked_fill(y.isnan() | x.isnan(), torch.nan)
    y, x = y.masked_fill(y.isinf(), -2.0), x.masked_fill(x.isinf(), -2.0)
    top, left = y.floor(), x.floor()
    y, x = y - top + poison, x - left + poison
    for down in (0, 1):
        for right in (0, 1):
            row, column = top + down, left + right
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            index = row.masked_fill(~inside, 0).long() * width + column.masked_fill(~inside, 0).long()
            weight_y, weight_x = (y if down else 1 - y), (x if right else 1 - x)
            yield Corner(
                index, inside, weight_y * weight_x, weight_x if down else -weight_x, weight_y if right else -weight_y
            )


def nearest(y: Tensor, x: Tensor, height: int, width: int) -> Iterator[Corner]:
    """Yields the one pixel nearest to each position, halves to even; its weight does not depend on the position."""
    weight = torch.ones_like(y).masked_fill(y.isnan() | x.isnan(), torch.nan)
    row, column = y.round(), x.round()
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    index = row.masked_fill(~inside, 0).long() * width + column.masked_fill(~inside, 0).long()
    yield Corner(index, inside, weight, torch.zeros_like(y), torch.zeros_like(x))


def read(image: Tensor, corner: Corner) -> Tensor:
    """Gathers image [B, C, H*W] at a corner [B, P]: [B, C, P], 0 outside."""
    if image.shape[2] == 0:
        return image.new_zeros(image.shape[:2] + corner.index.shape[1:])
    values = image.gather(2, corner.index[:, None].expand(-1, image.shape[1], -1))
    return values.masked_fill(~corner.inside[:, None], 0)


def write(image: Tensor, corner: Corner, values: Tensor) -> Tensor:
    """Image [B, C, H*W] with values [B, C, P] added at a corner [B, P], the adjoint of `read`."""
    if image.shape[2] == 0:
        return image
    values = values.masked_fill(~corner.inside[:, None], 0)
    return image.scatter_add(2, corner.index[:, None].expand(-1, image.shape[1], -1), values)
