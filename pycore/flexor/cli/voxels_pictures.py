# SPDX-License-Identifier: Apache-2.0
"""Voxels drawn as lit cubes, and the pictures of `flexor voxels` made of them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from . import pictures

Colours = NDArray[np.float32]  # (N, 3) in 0..1
MOST_CUBES = 80_000
OVERSAMPLING = 2
BACKGROUND = (228, 231, 236)  # white walls stand out from it, dark ones too
LIGHT = (0.70, 0.86, 1.0)  # of the sides facing x, y and z
HIT, WRONG, MISSED, CONTEXT = (0.13, 0.55, 0.33), (0.86, 0.20, 0.18), (0.22, 0.42, 0.85), (0.70, 0.70, 0.73)


@dataclass(frozen=True)
class View:
    """An orthographic camera that looks at voxels from above, z up, and the frame that it draws.

    Args:
        axes: (3, 3), rows: right, up and towards the camera.
        low, high: (2,), of what is seen, voxels along right and up.
        size: pixels, width and height.
    """

    axes: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    size: tuple[int, int]

    @classmethod
    def of(cls, coords: NDArray, width: int = 620) -> View:
        """The one, of some directions, from which most voxels are seen."""
        directions = [(azimuth, elevation) for elevation in (28, 50) for azimuth in range(20, 380, 45)]
        sample = coords[:: max(1, len(coords) // 20_000)]
        axes = max((_axes(*direction) for direction in directions), key=lambda axes: _seen(sample, axes))
        corners = np.stack(np.meshgrid(*[(0, 1)] * 3), -1).reshape(-1, 3)
        flat = [(coords + corner) @ axes[:2].T for corner in corners]
        low, high = np.percentile(np.concatenate(flat), [0.3, 99.7], axis=0)  # a few strays may fall outside
        margin = 0.03 * (high - low).max()
        low, high = low - margin, high + margin
        height = round(width * float(np.clip((high - low)[1] / (high - low)[0], 0.4, 1.1)))
        return cls(axes, low, high, (width, height))

    def pixels(self, points: NDArray) -> NDArray[np.float64]:
        """Where points (..., 3) fall in the oversampled picture."""
        size = OVERSAMPLING * np.array(self.size)
        scale = float((size / (self.high - self.low)).min())
        middle = (points @ self.axes[:2].T - (self.low + self.high) / 2) * scale
        return middle * (1, -1) + size / 2


def _axes(azimuth: float, elevation: float) -> NDArray[np.float64]:
    a, e = np.radians([azimuth, elevation])
    towards = np.array([np.cos(a) * np.cos(e), np.sin(a) * np.cos(e), np.sin(e)])
    right = np.array([-np.sin(a), np.cos(a), 0])
    return np.stack([right, np.cross(towards, right), towards])


def _seen(coords: NDArray, axes: NDArray[np.float64]) -> int:
    """How many voxels are in front of all others that fall on the same place, as wide as a voxel."""
    flat = np.floor(coords @ axes[:2].T).astype(np.int64)
    return len(np.unique(flat, axis=0))


def draw(coords: NDArray, colours: Colours, view: View) -> NDArray[np.uint8]:
    """Voxels (N, 3) as cubes, those further away first; of more than MOST_CUBES eight become one."""
    size = 1
    while len(coords) > MOST_CUBES:
        size *= 2
        coords, colours = _coarser(coords, colours)
    picture = Image.new("RGB", (OVERSAMPLING * view.size[0], OVERSAMPLING * view.size[1]), BACKGROUND)
    if len(coords):
        _paint(picture, coords, colours, view, size)
    return np.asarray(picture.resize(view.size, Image.Resampling.BOX))


def _paint(picture: Image.Image, coords: NDArray, colours: Colours, view: View, size: int) -> None:
    sides = np.where(view.axes[2] > 0, 1, 0)  # of each axis, the face that looks at the camera
    present = {tuple(cell) for cell in coords.tolist()}
    polygons, fills, depths = [], [], []
    for axis in range(3):
        step = np.zeros(3, int)
        step[axis] = 1 if sides[axis] else -1
        open_to_camera = np.array([tuple(cell) not in present for cell in (coords + step).tolist()])
        u, v = (other for other in range(3) if other != axis)
        corners = np.zeros((4, 3))
        corners[:, axis] = sides[axis]
        corners[1:3, u] = 1
        corners[2:4, v] = 1
        chosen = coords[open_to_camera]
        polygons.append(view.pixels((chosen[:, None] + corners) * size).reshape(-1, 8))
        fills.append(np.clip(colours[open_to_camera] * LIGHT[axis], 0, 1))
        depths.append((chosen + corners.mean(0)) @ view.axes[2])
    order = np.argsort(np.concatenate(depths), kind="stable")
    shades = np.round(255 * np.concatenate(fills)[order]).astype(np.uint8).tolist()
    brush = ImageDraw.Draw(picture)
    for corners_flat, shade in zip(np.concatenate(polygons)[order].tolist(), shades, strict=True):
        brush.polygon(corners_flat, fill=tuple(shade))


def _coarser(coords: NDArray, colours: Colours) -> tuple[NDArray, Colours]:
    cells, inverse, count = np.unique(coords // 2, axis=0, return_inverse=True, return_counts=True)
    sums = [np.bincount(inverse.ravel(), weights=channel, minlength=len(cells)) for channel in colours.T]
    return cells, (np.stack(sums, -1) / count[:, None]).astype(np.float32)


def colours_of(coords: NDArray, values: NDArray[np.float32]) -> Colours:
    """Colour itself; intensity along a colour map, full at the 98th percentile; height where there is neither."""
    if values.shape[1] == 3:
        return values
    scalar = values[:, 0] if values.shape[1] else coords[:, 2].astype(np.float32)
    low, high = np.percentile(scalar, [2, 98])
    return _mapped("viridis", (scalar - low) / max(high - low, 1e-6))


def colours_of_features(features: NDArray[np.float32]) -> Colours:
    """The three directions of greatest variance as red, green and blue."""
    centred = features - features.mean(0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    main = centred @ axes[:, ::-1][:, :3]
    main = np.pad(main, ((0, 0), (0, 3 - main.shape[1])))
    low, high = np.percentile(main, [2, 98], axis=0)
    return (0.1 + 0.8 * np.clip((main - low) / np.maximum(high - low, 1e-6), 0, 1)).astype(np.float32)


def colours_of_classes(classes: NDArray[np.int64]) -> Colours:
    return np.asarray(matplotlib.colormaps["tab20"](classes % 20)[:, :3], np.float32)


def _mapped(name: str, scalar: NDArray) -> Colours:
    return np.asarray(matplotlib.colormaps[name](np.clip(scalar, 0, 1))[:, :3], np.float32)


Panel = tuple[str, str, NDArray, Colours]  # title, remark, voxels, colours


def sheet(rows: Sequence[Sequence[Panel]], view: View) -> bytes:
    """Voxels from one point of view in titled panels, as PNG."""
    drawn = [[(title, remark, draw(coords, colours, view)) for title, remark, coords, colours in row] for row in rows]
    file = io.BytesIO()
    pictures.panels(drawn).save(file, format="png")
    return file.getvalue()


def verdict(kept: NDArray, truth: NDArray, said: NDArray) -> tuple[NDArray, Colours]:
    """Voxels that were left in grey; said and true in green, said and not true in red, true and not said in blue."""
    cells = {tuple(cell) for cell in truth.tolist()}
    claimed = {tuple(cell) for cell in said.tolist()}
    hit, wrong, missed = cells & claimed, claimed - cells, cells - claimed
    parts = [(kept, CONTEXT)]
    for found, colour in ((hit, HIT), (wrong, WRONG), (missed, MISSED)):
        parts.append((np.array(sorted(found), kept.dtype).reshape(-1, 3), colour))
    colours = [np.tile(np.array(colour, np.float32), (len(voxels), 1)) for voxels, colour in parts]
    return np.concatenate([voxels for voxels, _ in parts]), np.concatenate(colours)


def curves(history: Sequence[dict[str, float]], lines: dict[str, dict[str, float | None]]) -> bytes:
    """Held-out figures after each epoch beside horizontal lines to compare with, as PNG.

    Args:
        history: of each epoch, with the keys cpu_seconds, iou and perhaps value_error.
        lines: by figure, what else has which value.
    """
    titles = {"iou": "IoU of held-out blocks", "value_error": "error of their values (0 to 1)"}
    shown = [key for key in titles if key in history[0]]
    figure = Figure(figsize=(4.6 * len(shown), 3.4), layout="constrained")
    for axes, key in zip(np.atleast_1d(figure.subplots(1, len(shown))), shown, strict=True):
        _curve(axes, history, key, lines.get(key, {}))
        axes.set(xlabel="CPU seconds", title=titles[key])
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()


def _curve(axes: Any, history: Sequence[dict[str, float]], key: str, lines: dict[str, float | None]) -> None:
    seconds = [entry["cpu_seconds"] for entry in history]
    axes.plot(seconds, [entry[key] for entry in history], color="#0f766e", marker="o", ms=3, label="U-Net")
    for (name, value), style in zip(lines.items(), ("--", ":"), strict=False):
        if value is not None:
            axes.axhline(value, color="#71717a", ls=style, lw=1.2, label=name)
    axes.grid(alpha=0.2)
    axes.legend(frameon=False, fontsize=8)
