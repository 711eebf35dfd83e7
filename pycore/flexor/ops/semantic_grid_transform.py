# SPDX-License-Identifier: Apache-2.0
"""From the joints of a skeleton to the cells of a grid and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _check

# Which joint of Human3.6M's 17 each cell holds; a pair is their midpoint, which the inverse drops.
HANDCRAFTED: tuple[tuple[int | tuple[int, int], ...], ...] = (
    (7, 7, 7, 7, 7),
    (0, 8, 8, 8, 0),
    (1, 14, (8, 9), 11, 4),
    (2, 15, 9, 12, 5),
    (3, 16, 10, 13, 6),
)
JOINTS = 17
_CELLS = [cell for row in HANDCRAFTED for cell in row]
_PLACES = [[place for place, cell in enumerate(_CELLS) if cell == joint] for joint in range(JOINTS)]


def semantic_grid_transform(
    joints: Tensor, assignment: str | Tensor = "handcrafted", grid_shape: Sequence[int] = (5, 5)
) -> Tensor:
    """Lays the joints of skeletons out on a grid.

        grid[b, c, p] = sum over joints j of assignment[p, j] * joints[b, j, c]

    Args:
        joints: (B, J, C), floating point, any unit.
        assignment: (h * w, J), joints' dtype, one row a cell in row-major order; or "handcrafted", the published
            layout of Human3.6M's 17 joints on 5x5 cells, whose centre is the midpoint of joints 8 and 9.
        grid_shape: (h, w) of the grid, cells.

    Returns:
        (B, C, h, w) in joints' dtype.

    Raises:
        ValueError: an assignment that does not fit the joints or the grid; "handcrafted" for others than 17 joints
            and 5x5 cells.
        TypeError: dtypes that differ or are not floating point.

    Source:
        Kang et al., 3D Human Pose Lifting with Grid Convolution, AAAI 2023, eq. 1 to 3.
    """
    name = "semantic_grid_transform"
    _check.tensor(name, "joints", joints, "B J C")
    _check.floating(name, "joints", joints)
    h, w = grid_shape
    if isinstance(assignment, str):
        _check.one_of(name, "assignment", assignment, ("handcrafted",))
        _check_handcrafted(name, joints.shape[1], h, w)
        each = joints.unbind(1)
        cells = [each[c] if isinstance(c, int) else (each[c[0]] + each[c[1]]) / 2 for c in _CELLS]
        return torch.stack(cells, 2).unflatten(2, (h, w))
    _check_assignment(name, assignment, joints, joints.shape[1], h * w, f"({h}*{w} cells, {joints.shape[1]} joints)")
    return (joints.mT @ assignment.mT).unflatten(2, (h, w))


def inverse_semantic_grid_transform(
    grid: Tensor, assignment: str | Tensor = "handcrafted", uncovered: str = "error"
) -> Tensor:
    """Reads the joints of skeletons back from a grid, each the weighted mean of its cells.

        joints[b, j, c] = sum over cells p of assignment[p, j] * grid[b, c, p] / (1e-8 + sum over p of assignment[p, j])

    Args:
        grid: (B, C, h, w), floating point, any unit.
        assignment: (h * w, J), grid's dtype, not negative; or "handcrafted": plain means over a joint's cells.
        uncovered: what becomes of a joint without a cell (a column of zeros): "error", or "zero" for zeros. Only
            "error" looks at the values, which waits for a GPU and cannot be compiled.

    Returns:
        (B, J, C) in grid's dtype.

    Raises:
        ValueError: an assignment that does not fit the grid or leaves joints uncovered; "handcrafted" for other than
            5x5 cells.
        TypeError: dtypes that differ or are not floating point.

    Source:
        Kang et al., 3D Human Pose Lifting with Grid Convolution, AAAI 2023, and its official code.
    """
    name = "inverse_semantic_grid_transform"
    _check.tensor(name, "grid", grid, "B C h w")
    _check.floating(name, "grid", grid)
    _check.one_of(name, "uncovered", uncovered, ("error", "zero"))
    h, w = grid.shape[2:]
    if isinstance(assignment, str):
        _check.one_of(name, "assignment", assignment, ("handcrafted",))
        _check_handcrafted(name, JOINTS, h, w)
        cells = grid.flatten(2).unbind(2)
        return torch.stack([_mean([cells[place] for place in places]) for places in _PLACES], 1)
    _check_assignment(name, assignment, grid, None, h * w, f"({h}*{w} cells, joints)")
    weight = assignment.sum(0)
    if uncovered == "error" and not weight.all():
        missing = (weight == 0).nonzero().flatten().tolist()
        raise ValueError(
            f"{name}: the assignment leaves joints {missing} without a cell (uncovered='zero' gives zeros)"
        )
    return (grid.flatten(2) @ assignment / (weight + 1e-8)).mT


def _mean(tensors: list[Tensor]) -> Tensor:
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total + tensor
    return total if len(tensors) == 1 else total / len(tensors)


def _check_handcrafted(name: str, joints: int, h: int, w: int) -> None:
    if (joints, h, w) != (JOINTS, 5, 5):
        raise ValueError(
            f"{name}: the handcrafted assignment is for {JOINTS} joints on 5x5 cells, got {joints} joints on {h}x{w}"
        )


def _check_assignment(name: str, assignment: Any, like: Tensor, joints: int | None, cells: int, meaning: str) -> None:
    _check.tensor(name, "assignment", assignment, "cells J")
    if assignment.dtype != like.dtype:
        raise TypeError(f"{name}: assignment must have dtype {like.dtype}, got {assignment.dtype}")
    expected = (cells, assignment.shape[1] if joints is None else joints)
    _check.shape(name, "assignment.shape", assignment, expected, meaning)
