# SPDX-License-Identifier: Apache-2.0
"""Voxels to convolve over: a synthetic room, a synthetic lidar sweep, and scans from files."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flexor.models.points import read_points

Array = NDArray[np.float64]

SEED = 0
SWEEP_POINTS = 120_000  # of a 64-beam lidar's turn
SCAN_VOXEL = 0.05


@dataclass(frozen=True)
class Scene:
    """A set of voxels.

    Args:
        name: "indoor", "lidar", or the file's.
        voxel: edge of a voxel, metres.
        path: of a scan; a batch of copies of it that holds at least SWEEP_POINTS points stands for a whole sweep.
    """

    name: str
    voxel: float
    path: str = ""

    @property
    def title(self) -> str:
        return f"{self.name} {self.voxel:g} m" if self.path else self.name

    @classmethod
    def of(cls, scan: str) -> Scene:
        """Of `PATH` or `PATH@VOXEL`. Raises: ValueError for a voxel that is no number above 0."""
        path, at, voxel = scan.rpartition("@")
        try:
            size = float(voxel) if at else SCAN_VOXEL
        except ValueError:
            size = 0.0
        if not 0 < size < float("inf"):
            raise ValueError(f"bench sparse: a scan is PATH or PATH@VOXEL with the voxel's edge in metres, got {scan}")
        return cls(Path(path or voxel).name, size, path or voxel)


INDOOR = Scene("indoor", 0.046)
LIDAR = Scene("lidar", 0.05)


@functools.cache
def voxels(scene: Scene) -> Tensor:
    """(N, 4) int32: sample and coordinates from 0 up, each once, rows in random order."""
    points = _points(scene)
    copies = -(-SWEEP_POINTS // len(points)) if scene.path else 1
    sites = np.unique(np.floor(points / scene.voxel).astype(np.int64), axis=0)
    sites -= sites.min(0)
    samples = np.repeat(np.arange(copies), len(sites))
    rows = np.column_stack([samples, np.tile(sites, (copies, 1))]).astype(np.int32)
    return torch.from_numpy(np.random.default_rng(SEED).permutation(rows))


def samples(scene: Scene) -> int:
    """Of its batch."""
    return int(voxels(scene)[:, 0].max()) + 1 if scene.path else 1


def bounds(scene: Scene) -> list[int]:
    """A spatial shape: multiples of 64, so that halving it six times loses no voxel."""
    return [64 * (int(last) // 64 + 1) for last in voxels(scene)[:, 1:].amax(0)]


def _points(scene: Scene) -> Array:
    if scene.path:
        return read_points(scene.path).xyz
    if scene.name not in ("indoor", "lidar"):
        raise ValueError(f"bench sparse: a synthetic scene is indoor or lidar, got {scene.name}")
    return indoor(scene.voxel / 2) if scene.name == "indoor" else lidar()


def indoor(step: float) -> Array:
    """A room of 8 x 6 x 3 m as surfaces: floor, three walls, 12 tilted boards, 10 balls; noise of 4 mm.

    Args:
        step: distance of points on a surface, metres.
    """
    random = np.random.default_rng(SEED)
    x, y, z = np.eye(3)
    far = np.array([8.0, 0, 0])
    surfaces = [
        _board(0 * far, x, y, 8, 6, step),
        _board(0 * far, x, z, 8, 3, step),
        _board(0 * far, y, z, 6, 3, step),
        _board(far, y, z, 6, 3, step),
    ]
    low, high = np.array([1, 1, 0.5]), np.array([7, 5, 2])
    for _ in range(12):
        frame = np.linalg.qr(random.normal(size=(3, 3)))[0]
        surfaces.append(_board(random.uniform(low, high), frame[0], frame[1], *random.uniform(0.5, 1.5, 2), step))
    for _ in range(10):
        centre, radius = random.uniform(low, high), random.uniform(0.2, 0.6)
        directions = random.normal(size=(int(6 * np.pi * (radius / step) ** 2), 3))
        surfaces.append(centre + radius * directions / np.linalg.norm(directions, axis=1, keepdims=True))
    points = np.concatenate(surfaces)
    return points + random.normal(scale=0.004, size=points.shape)


def _board(corner: Array, u: Array, v: Array, width: float, height: float, step: float) -> Array:
    along, across = np.arange(0, width, step), np.arange(0, height, step)
    return (corner + along[:, None, None] * u + across[None, :, None] * v).reshape(-1, 3)


def lidar(beams: int = 64, turns: int = 2000, reach: float = 50.0) -> Array:
    """What a spinning lidar 1.7 m above a street sees: rings on the ground, two rows of houses, cars; noise of 2 cm.

    Args:
        beams: between 24.8 degrees down and 2 up, each turned so many times a round.
        reach: metres; rays that hit nothing so near give no point.
    """
    random = np.random.default_rng(SEED)
    elevation = np.radians(np.linspace(-24.8, 2, beams))[:, None]
    azimuth = np.linspace(-np.pi, np.pi, turns, endpoint=False)[None]
    flat = np.cos(elevation)
    rays = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation) + 0 * azimuth], -1)
    rays = rays.reshape(-1, 3)
    with np.errstate(divide="ignore"):
        inverse = 1 / rays
    distance = np.where(rays[:, 2] < 0, -1.7 * inverse[:, 2], np.inf)
    for side in (-1, 1):
        for x in range(-50, 50, 10):  # houses, some further back than others
            depth = 9 + random.uniform(0, 5)
            front = np.sort([side * depth, side * (depth + 8)])
            distance = np.minimum(distance, _to_box(inverse, (x, front[0], -1.7), (x + 9, front[1], 8)))
        for x in range(-45, 45, 6):  # parked cars
            start = x + random.uniform(0, 1.5)
            edge = np.sort([side * 4.5, side * 6.3])
            distance = np.minimum(distance, _to_box(inverse, (start, edge[0], -1.7), (start + 4.2, edge[1], -0.2)))
    seen = distance < reach
    return rays[seen] * (distance[seen] + random.normal(scale=0.02, size=seen.sum()))[:, None]


def _to_box(inverse: Array, low: tuple[float, ...], high: tuple[float, ...]) -> Array:
    """Distance from the origin, outside of the box, along rays given by their inverses; infinite where they miss."""
    near, far = np.array(low) * inverse, np.array(high) * inverse
    enter, leave = np.minimum(near, far).max(1), np.maximum(near, far).min(1)
    return np.where((enter > 0) & (enter <= leave), enter, np.inf)
