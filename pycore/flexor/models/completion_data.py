# SPDX-License-Identifier: Apache-2.0
"""Scans with blocks of voxels taken out: what is left, which voxels might be missing, and which are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from .points import PointsError
from .voxels import MOST_ALONG_AN_AXIS, Voxels, ranks

Ints = NDArray[np.int64]
Missing = Callable[[Ints], tuple[NDArray[np.bool_], NDArray[np.bool_]]]  # of blocks: missing or not, and counted or not
NEAREST = 8
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
        crop: a training step is given no more than a box of this edge, somewhere in the scan; voxels.
    """

    block: int = 6
    reach: int = 4
    hold_out: float = 0.15
    drop: float = 0.15
    crop: int = 512


@dataclass(frozen=True)
class Holes:
    """A scan without some of its blocks.

    Args:
        coords: (N, 3) int32, the voxels that were left and those asked about, in the order of ranks.
        near: (N, 8, C) float32, the values of the eight nearest voxels that were left, the nearest first; of a voxel
            that was left only its own.
        closeness: (N, 8) float32, -2 log of their distances: its softmax weighs them by the inverse square. 0 for
            voxels that were left.
        asked: (N,) whether it is asked about.
        counted: (N,) whether its answer counts: in training it does not where a held-out block is asked about.
        occupied: (N,) whether it is a voxel of the scan. Of the asked and not counted ones nothing is said: False.
        truth: (N, C) float32, the values of occupied voxels.
        beyond: voxels of the scan in the blocks that count, too far from any that was left to be asked about.
    """

    coords: NDArray[np.int32]
    near: NDArray[np.float32]
    closeness: NDArray[np.float32]
    asked: NDArray[np.bool_]
    counted: NDArray[np.bool_]
    occupied: NDArray[np.bool_]
    truth: NDArray[np.float32]
    beyond: int

    @property
    def distance(self) -> NDArray[np.float32]:
        """(N,), to the nearest voxel that was left, in voxels; 0 for those that were left."""
        return np.where(self.asked, np.exp(self.closeness[:, 0] / -2), np.float32(0))

    @property
    def nearest(self) -> NDArray[np.float32]:
        """(N, C), the value of that one."""
        return self.near[:, 0]

    @property
    def interpolated(self) -> NDArray[np.float32]:
        """(N, C), the mean of the eight, weighted by the inverse square of their distance."""
        weights = np.exp(self.closeness - self.closeness.max(1, keepdims=True))
        return np.einsum("nk,nkc->nc", weights / weights.sum(1, keepdims=True), self.near)


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
        if self.held_out.all() or not self.held_out.any():
            raise PointsError(
                f"{voxels.source}: {int(self.held_out.sum())} of {len(voxels)} voxels lie in held-out blocks; "
                "give smaller voxels or blocks, or another --hold-out"
            )

    def training(self, seed: int, step: int) -> Holes:
        """Blocks taken out at random, and the held-out ones, which do not count; mirrored and turned about z."""
        held_out, drop = self.settings.hold_out, self.settings.drop

        def missing(cells: Ints) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
            hidden = blocks_chosen(cells, held_out, 0, 0)
            return hidden | blocks_chosen(cells, drop, seed + 1, step), ~hidden

        random = np.random.default_rng([seed, step])
        return self._without(missing, int(random.integers(8)), self._window(random))

    def test(self) -> Holes:
        """The held-out blocks taken out."""

        def missing(cells: Ints) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
            hidden = blocks_chosen(cells, self.settings.hold_out, 0, 0)
            return hidden, hidden

        return self._without(missing, 0, np.ones(len(self.voxels), bool))

    def _window(self, random: np.random.Generator) -> NDArray[np.bool_]:
        """Which voxels lie in a box around one that is not held out; all of them along an axis that is short enough."""
        coords, crop = self.voxels.coords, self.settings.crop
        middle = coords[random.choice(np.flatnonzero(~self.held_out))]
        low = np.clip(middle - crop // 2, 0, np.maximum(coords.max(0) + 1 - crop, 0))
        return ((coords >= low) & (coords < low + crop)).all(1)

    def _without(self, missing: Missing, symmetry: int, window: NDArray[np.bool_]) -> Holes:
        """What is left within a window, and all that is asked about because of it."""
        gone, counts = missing(self.cells)
        coords, values = self.voxels.coords, self.voxels.values
        left, wanted = window & ~gone, np.flatnonzero(gone & counts)
        kept, kept_values = coords[left], values[left]
        asked = candidates(kept, missing, self.settings.block, self.settings.reach)
        near, closeness = _near(asked, kept, kept_values)
        row, occupied = _find(asked, coords[wanted])

        truth = np.concatenate([kept_values, np.zeros((len(asked), values.shape[1]), np.float32)])
        truth[len(kept) :][occupied] = values[wanted[row[occupied]]]
        before = len(kept)
        columns: dict[str, Any] = {
            "coords": _turned(np.concatenate([kept, asked]).astype(np.int32), symmetry),
            "near": np.concatenate([np.repeat(kept_values[:, None], NEAREST, 1), near]),
            "closeness": np.concatenate([np.zeros((before, NEAREST), np.float32), closeness]),
            "asked": _padded(np.ones(len(asked), bool), before, False),
            "counted": _padded(missing(asked // self.settings.block)[1], before, False),
            "occupied": _padded(occupied, before, True),
            "truth": truth,
        }
        order = ranks(columns["coords"])
        sorted_columns = {name: column[order] for name, column in columns.items()}
        return Holes(**sorted_columns, beyond=len(wanted) - int(occupied.sum()))


def _turned(coords: NDArray[np.int32], symmetry: int) -> NDArray[np.int32]:
    """Coordinates from 0 on, mirrored along x and y and with these exchanged, as the bits of the symmetry say."""
    if symmetry & 1:
        coords = coords[:, [1, 0, 2]]
    for axis, bit in ((0, 2), (1, 4)):
        if symmetry & bit and len(coords):
            coords = coords.copy()
            coords[:, axis] = coords[:, axis].max() - coords[:, axis]
    return coords


def _near(
    asked: NDArray, kept: NDArray, values: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Values and closeness of the nearest kept voxels; where there are fewer, the last one again."""
    if not len(asked):
        return np.zeros((0, NEAREST, values.shape[1]), np.float32), np.zeros((0, NEAREST), np.float32)
    distance, row = cKDTree(kept).query(asked, k=np.minimum(np.arange(1, NEAREST + 1), len(kept)))
    return values[row], (-2 * np.log(distance)).astype(np.float32)


def _padded(column: NDArray, before: int, value: Any) -> NDArray:
    return np.concatenate([np.full(before, value, column.dtype), column])


def _find(sought: NDArray, coords: NDArray) -> tuple[Ints, NDArray[np.bool_]]:
    """For each of the sought, a row of coords, and whether it is that."""
    if not len(coords) or not len(sought):
        return np.zeros(len(sought), np.int64), np.zeros(len(sought), bool)
    keys = _key(coords)
    order = np.argsort(keys)
    row = order[np.searchsorted(keys[order], _key(sought)).clip(max=len(keys) - 1)]
    return row, keys[row] == _key(sought)


def candidates(kept: NDArray, missing: Missing, block: int, reach: int) -> Ints:
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
    ends = [
        (slice(0, reach), slice(-reach, None)),
        (slice(reach, -reach), slice(None)),
        (slice(-reach, None), slice(0, reach)),
    ]
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
