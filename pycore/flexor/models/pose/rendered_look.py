# SPDX-License-Identifier: Apache-2.0
"""What a camera does to a rendered picture: things before the people, blur, colours, noise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

Pixels = NDArray[np.uint8]


def put_before(
    pixels: Pixels, thing: Pixels, box: NDArray[np.float64], rng: np.random.Generator
) -> tuple[Pixels, Callable[[NDArray], NDArray[np.bool_]]]:
    """Paste a thing (h, w, 4) before a person; the picture, and which points (..., 2) the thing hides.

    Args:
        pixels: (H, W, 3).
        thing: red green blue and opacity.
        box: (4,), left, top, right, bottom of the person.
        rng: draws size, turn and place.
    """
    height, width = pixels.shape[:2]
    side = max(rng.uniform(0.2, 0.55) * min(max(box[2:] - box[:2]), height), 8.0)
    image = Image.fromarray(thing)
    scale = side / max(image.size)
    stretch = np.exp(rng.normal(0, 0.25))
    size = (max(round(image.width * scale * stretch), 4), max(round(image.height * scale / stretch), 4))
    image = image.resize(size, Image.Resampling.BOX).rotate(float(rng.normal(0, 35)), expand=True)
    place = (rng.uniform(box[:2], np.maximum(box[2:], box[:2] + 1)) - np.array(image.size) / 2).astype(int)
    whole = Image.fromarray(pixels)
    whole.paste(image, (int(place[0]), int(place[1])), image)
    covered = Image.new("L", (width, height))
    covered.paste(image.getchannel("A"), (int(place[0]), int(place[1])))
    mask = np.asarray(covered) > 127

    def hidden(points: NDArray) -> NDArray[np.bool_]:
        at = np.clip(np.round(points), 0, [width - 1, height - 1]).astype(int)
        return mask[at[..., 1], at[..., 0]]

    return np.asarray(whole), hidden


def degrade(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Blur of lens and motion, few pixels, colours, noise."""
    x = pixels.astype(np.float32)
    if rng.random() < 0.45:
        x = ndimage.gaussian_filter(x, (*[rng.uniform(0.3, 1.4)] * 2, 0), truncate=2.5)
    if rng.random() < 0.15:
        x = _smear(x, rng)
    if rng.random() < 0.15:
        small = Image.fromarray(x.clip(0, 255).astype(np.uint8))
        share = rng.uniform(0.35, 0.7)
        coarse = small.resize((int(small.width * share), int(small.height * share)), Image.Resampling.BILINEAR)
        x = np.asarray(coarse.resize(small.size, Image.Resampling.BICUBIC), np.float32)
    gain = np.exp(0.12 * rng.standard_normal()) * (1 + 0.06 * rng.standard_normal(3))
    x = 255 * np.clip(x * gain / 255, 0, 1) ** np.exp(0.2 * rng.standard_normal())
    x = (x - 128) * np.exp(0.15 * rng.standard_normal()) + 128 + 10 * rng.standard_normal()
    if rng.random() < 0.5:
        noise = rng.standard_normal(x.shape[:2] + (3 if rng.random() < 0.5 else 1,), dtype=np.float32)
        x = x + noise * rng.uniform(1, 12)
    return x.clip(0, 255).astype(np.uint8)


def _smear(x: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Motion blur along a line."""
    length, angle = int(rng.integers(3, 10)), rng.uniform(0, np.pi)
    steps = np.linspace(-0.5, 0.5, length) * length
    moved = [ndimage.shift(x, (s * np.sin(angle), s * np.cos(angle), 0), order=0, mode="nearest") for s in steps]
    return np.mean(moved, axis=0)
