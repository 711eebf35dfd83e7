# SPDX-License-Identifier: Apache-2.0
"""Scans with blocks of voxels taken out: what is left, which voxels might be missing, and which are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from .voxels import MOST_ALONG_AN_AXIS, Voxels, ranks

Ints = NDArray[np.int64]
AROUND = np.stack(np.meshgrid(*[(-1, 0, 1)] * 3, indexing="ij"), -1).reshape(27, 3)


@dataclass(frozen=True)
class BlockSettings:
    """Which voxels are taken out and which are asked about.

    Space is cut into cubes of `block` voxels. Whether a cube is taken out depends on its place alone, never on what it
    holds. Asked about are the voxels of such cubes that are at most `reach` voxels from one that was left.

    Args:
        block: edge of a cube, voxels.
        reach: the largest difference along an axis, at most `block`.
        hold_out: share of the cubes that training never sees.
        drop: share of the other cubes that a training step takes out.
    """

    block: int = 6
    reach: int = 4
    hold_out: float = 0.15
    drop: float = 0.15


@dataclass(frozen=True)
class Holes:
    """A scan without some of its blocks.

    Args:
        coords: (N, 3) int32, the voxels that were left and those asked about, in the order of ranks.
        values: (N, C) float32, of the former; 0 of the latter.
        asked: (N,) whether it is asked about.
        counted: (N,) whether its answer counts: in training it does not where a held-out block is asked about.
        occupied: (N,) whether it is a voxel of the scan. Of the asked and not counted ones nothing is said: False.
        truth: (N, C) float32, the values of occupied voxels.
        beyond: voxels of the scan in the blocks that count, too far from any that was left to be asked about.
    """

    coords: NDArray[np.int32]
    values: NDArray[np.float32]
    asked: NDArray[np.bool_]
    counted: NDArray[np.bool_]
    occupied: NDArray[np.bool_]
    truth: NDArray[np.float32]
    beyond: int


def blocks_chosen(cells: NDArray, share: float, seed: int, round: int) -> NDArray[np.bool_]:
    """A `share` of all blocks (M, 3), by a hash of the place, the seed and the round."""
    mixed = np.full(len(cells), np.uint64(seed % 2**32) << np.uint64(32) | np.uint64(round % 2**32))
    for axis in range(3):
        mixed = _mix(mixed ^ cells[:, axis].astype(np.int64).view(np.uint64))
    return mixed < np.uint64(min(max(share, 0.0), 1 - 2.0**-53) * 2.0**64)


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64 (Steele et al., Fast splittable pseudorandom number generators, OOPSLA 2014)."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


class BlockedScan:
    """The voxels of a scan by blocks.

    Args:
        voxels: of the scan.
        settings: see BlockSettings.
    """

    def __init__(self, voxels: Voxels, settings: BlockSettings) -> None:
        self.voxels, self.settings = voxels, settings
        self.cells = voxels.coords.astype(np.int64) // settings.block
        self.held_out = blocks_chosen(self.cells, settings.hold_out, 0, 0)

    def training(self, seed: int, step: int) -> Holes:
        """Blocks taken out at random, beside the held-out ones, which do not count."""
        taken = blocks_chosen(self.cells, self.settings.drop, seed + 1, step)

        def missing(cells: Ints) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
            held_out = blocks_chosen(cells, self.settings.hold_out, 0, 0)
            return held_out | blocks_chosen(cells, self.settings.drop, seed + 1, step), ~held_out

        return self._without(self.held_out | taken, taken & ~self.held_out, missing)

    def test(self) -> Holes:
        """The held-out blocks taken out."""

        def missing(cells: Ints) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
            held_out = blocks_chosen(cells, self.settings.hold_out, 0, 0)
            return held_out, held_out

        return self._without(self.held_out, self.held_out, missing)

    def _without(self, taken: NDArray[np.bool_], wanted: NDArray[np.bool_], missing) -> Holes:
        coords, values = self.voxels.coords, self.voxels.values
        asked = candidates(coords[~taken], missing, self.settings.block, self.settings.reach)
        counted = missing(asked // self.settings.block)[1]
        keys = _key(coords[wanted])
        order = np.argsort(keys)
        found = np.searchsorted(keys[order], _key(asked)).clip(max=max(len(keys) - 1, 0))
        row = np.flatnonzero(wanted)[order][found] if len(keys) else np.zeros(len(asked), np.int64)
        occupied = (keys[order][found] == _key(asked)) if len(keys) else np.zeros(len(asked), bool)

        kept = int((~taken).sum())
        joined = np.concatenate([coords[~taken], asked]).astype(np.int32)
        none = np.zeros((len(asked), values.shape[1]), np.float32)
        given = np.concatenate([values[~taken], none])
        truth = np.concatenate([values[~taken], np.where(occupied[:, None], values[row], 0)])
        is_asked = np.arange(len(joined)) >= kept
        is_counted = np.concatenate([np.zeros(kept, bool), counted])
        is_occupied = np.concatenate([np.ones(kept, bool), occupied])
        order = ranks(joined)
        beyond = int(wanted.sum() - occupied.sum())
        return Holes(*(a[order] for a in (joined, given, is_asked, is_counted, is_occupied, truth)), beyond)


def candidates(kept: NDArray, missing, block: int, reach: int) -> Ints:
    """The voxels asked about: a function of the voxels that were left and of the places of the missing blocks.

    Args:
        kept: (N, 3), voxels that were left, none of them in a missing block.
        missing: says of blocks (M, 3) which are missing (M,), and more that is not used here.
        block: edge of a block.
        reach: how far from a kept voxel, along each axis; at most `block`.

    Returns:
        (A, 3), all voxels of missing blocks within reach of a kept one.
    """
    cells = kept.astype(np.int64) // block
    full, row = np.unique(_key(cells), return_inverse=True)
    bitmaps = np.zeros((len(full) + 1, block, block, block), np.uint8)  # the last one stands for blocks without voxels
    bitmaps[(row, *(kept - cells * block).T)] = 1
    around = np.unique((_cell(full)[:, None] + AROUND).reshape(-1, 3), axis=0)
    asked = around[missing(around)[0]]
    if not len(asked):
        return np.zeros((0, 3), np.int64)
    wide = block + 2 * reach
    near = np.zeros((len(asked), wide, wide, wide), np.uint8)
    ends = [(slice(0, reach), slice(-reach, None)), (slice(reach, -reach), slice(None)), (slice(-reach, None), slice(0, reach))]
    for offset in AROUND:
        place = np.searchsorted(full, _key(asked + offset)).clip(max=len(full) - 1)
        place = np.where(full[place] == _key(asked + offset), place, len(full))
        to, source = zip(*(ends[axis + 1] for axis in offset), strict=True)
        near[(slice(None), *to)] = bitmaps[place][(slice(None), *source)]
    reached = torch.from_numpy(near)[:, None].float()
    for axis in range(3):
        window = [1, 1, 1]
        window[axis] = 2 * reach + 1
        reached = F.max_pool3d(reached, window, stride=1)
    which, *inside = np.nonzero(reached[:, 0].numpy())
    return asked[which] * block + np.stack(inside, -1)


def _key(coords: NDArray) -> Ints:
    """Coordinates (N, 3), from -1 on, as one number each, in the same order."""
    x, y, z = (coords.astype(np.int64) + 1).T
    return (x * 2 * MOST_ALONG_AN_AXIS + y) * 2 * MOST_ALONG_AN_AXIS + z


def _cell(keys: Ints) -> Ints:
    rest, z = np.divmod(keys, 2 * MOST_ALONG_AN_AXIS)
    return np.stack([*np.divmod(rest, 2 * MOST_ALONG_AN_AXIS), z], -1) - 1
