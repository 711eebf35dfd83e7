# SPDX-License-Identifier: Apache-2.0
"""A scan as voxels: their coordinates and mean values, how sparse they are, and the blocks they lie in."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..nn.sparse_tensor import SparseTensor
from ..ops import SparseIndex
from .points import Points, PointsError

POINTS_A_VOXEL = 2.5
MOST_ALONG_AN_AXIS = 1 << 20  # so that three coordinates make one 63-bit number


@dataclass(frozen=True)
class Voxels:
    """The voxels of a scan that hold a point, sorted as the kernels like them best.

    Args:
        coords: (N, 3) int32, x, y, z, from 0 on.
        values: (N, C) float32, the mean of the points' values.
        voxel_of_point: (P,) int64, a row of coords for each point.
        size: edge of a voxel, in the scan's unit.
        origin: (3,) float64, the corner of voxel 0, 0, 0.
        source: the file.
    """

    coords: NDArray[np.int32]
    values: NDArray[np.float32]
    voxel_of_point: NDArray[np.int64]
    size: float
    origin: NDArray[np.float64]
    source: str

    def __len__(self) -> int:
        return len(self.coords)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the box around all voxels."""
        x, y, z = (self.coords.max(0) + 1).tolist()
        return x, y, z


def default_size(points: Points) -> float:
    """The smallest of 1, 2, 5, 10, 20, 50, ... (and of 0.1, 0.01 and so on) whose voxels hold 2.5 points on average.

    Then surfaces are closed: finer voxels would be as many as the points, with few neighbours to convolve.
    """
    extent = float(np.ptp(points.xyz, axis=0).max())
    power = math.floor(math.log10(extent / 4096)) if extent > 0 else 0
    for size in (digit * 10.0**exponent for exponent in range(power, power + 5) for digit in (1, 2, 5)):
        if POINTS_A_VOXEL * len(np.unique(_keys(points, size))) <= len(points):
            return float(f"{size:g}")
    return float(f"{size:g}")


def voxelise(points: Points, size: float | None = None) -> Voxels:
    """Put points into voxels.

        coords = floor((xyz - min(xyz)) / size)

    Args:
        points: of a scan.
        size: edge of a voxel in the scan's unit. None: see default_size.

    Returns:
        Each voxel that holds a point, once, in the order of flexor.ops.SparseIndex's ranks.

    Raises:
        PointsError: a size that is not above 0, or so small that the scan is longer than 2^20 voxels.
    """
    size = default_size(points) if size is None else size
    if not (size > 0 and np.isfinite(size)):
        raise PointsError(f"{points.source}: a voxel's size must be above 0, got {size:g}")
    origin = points.xyz.min(0)
    extent = np.ptp(points.xyz, axis=0).max()
    if not extent / size < MOST_ALONG_AN_AXIS:
        raise PointsError(
            f"{points.source}: is {extent:.6g} long, more than {MOST_ALONG_AN_AXIS} voxels of {size:g}; "
            "give a larger --voxel, or remove far outliers"
        )
    keys, inverse, count = np.unique(_keys(points, size), return_inverse=True, return_counts=True)
    coords = np.stack([keys >> 40, (keys >> 20) & (MOST_ALONG_AN_AXIS - 1), keys & (MOST_ALONG_AN_AXIS - 1)], -1)
    channels = points.values.T
    sums = [np.bincount(inverse, weights=channel, minlength=len(keys)) / count for channel in channels]
    values = np.stack(sums, -1) if sums else np.zeros((len(keys), 0))
    order = ranks(coords)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return Voxels(
        coords[order].astype(np.int32), values[order].astype(np.float32), place[inverse], size, origin, points.source
    )


def _keys(points: Points, size: float) -> NDArray[np.int64]:
    """Each point's voxel as one number."""
    cells = ((points.xyz - points.xyz.min(0)) / size).astype(np.int64)
    return (cells[:, 0] << 40) | (cells[:, 1] << 20) | cells[:, 2]


def ranks(coords: NDArray) -> NDArray[np.int64]:
    """The order in which kernels run fastest over these voxels (N, 3): rows of it, along a curve of blocks."""
    return _index(coords).parts[0].numpy().astype(np.int64)


def tensor_of(coords: NDArray, features: torch.Tensor, device: str = "cpu") -> SparseTensor:
    """One scan as a sparse tensor."""
    indices = torch.from_numpy(np.pad(coords, ((0, 0), (1, 0))).astype(np.int32))
    return SparseTensor(features.to(device), indices.to(device), batch_size=1)


def _index(coords: NDArray) -> SparseIndex:
    return SparseIndex(torch.from_numpy(np.pad(coords, ((0, 0), (1, 0))).astype(np.int32)), batch_size=1)


@dataclass(frozen=True)
class Level:
    """How sparse one level of a U-Net is.

    Args:
        voxels: that are active.
        shape: of the box around them.
        occupancy: active voxels over the voxels of that box.
        neighbours: of the 26 around a voxel, how many are active, on average.
        pairs: of the map of a 3x3x3 convolution: voxels times (neighbours + 1).
    """

    voxels: int
    shape: tuple[int, int, int]
    occupancy: float
    neighbours: float
    pairs: int


def sparsity(coords: NDArray, levels: int = 7) -> list[Level]:
    """How sparse voxels (N, 3) are, as they are and then at half the resolution each, `levels` times in all."""
    index, found = _index(coords), []
    for _ in range(levels):
        cells = index.indices[:, 1:]
        shape = (cells.amax(0) - cells.amin(0) + 1).tolist()
        pairs = int(index.submanifold(3).tensors[2].numel())
        count = len(index)
        box = shape[0] * shape[1] * shape[2]
        found.append(Level(count, (shape[0], shape[1], shape[2]), count / box, pairs / count - 1, pairs))
        index, _ = index.strided(2, 2, 0)
    return found
