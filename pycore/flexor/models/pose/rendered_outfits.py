# SPDX-License-Identifier: Apache-2.0
"""What the rendered people wear, and the colours of their skin and hair."""

from __future__ import annotations

import colorsys

import numpy as np
from numpy.typing import NDArray

from .rendered_scene import (
    ARMS,
    EYES,
    FACE,
    HAIR,
    HANDS,
    LEGS,
    LOOSE_HAIR,
    SHIRT,
    SHOES,
    SKIRT,
    TROUSERS,
    TRUNK,
    Layer,
)

Array = NDArray[np.float64]
_DARK, _LIGHT = np.array([0.035, 0.018, 0.011]), np.array([0.75, 0.48, 0.37])  # skin, linear
_HAIR = np.array(
    [[0.01, 0.008, 0.007], [0.04, 0.02, 0.01], [0.12, 0.06, 0.03], [0.4, 0.27, 0.12], [0.25, 0.06, 0.02], [0.4] * 3]
)


def outfit(rng: np.random.Generator, patches: int) -> list[Layer]:
    """A person's layers.

    Args:
        rng: draws them.
        patches: how many photographs there are for cloth.
    """
    tone = rng.beta(1.3, 1.1)
    skin = _DARK ** (1 - tone) * _LIGHT**tone * rng.uniform(0.85, 1.15, 3)
    hair = _HAIR[rng.integers(len(_HAIR))] * rng.uniform(0.6, 1.6)
    if rng.random() < 0.05:
        hair = _colour(rng)
    body = np.stack([skin, hair])
    beard = rng.uniform(0.3, 1.0) if rng.random() < 0.2 else 0.0
    seed = float(rng.uniform(0, 10))
    layers = [
        Layer(FACE, body, limits=(-0.05, 0.645, beard), shine=0.05, seed=seed),
        Layer(EYES, np.array([[0.7] * 3, [0.02, 0.015, 0.01]])),
        Layer(HANDS, body if rng.random() < 0.95 else np.stack([_colour(rng)] * 2), seed=seed),
        *_head(rng, hair),
    ]
    return layers + _upper(rng, body, patches) + _lower(rng, body, patches)


def _upper(rng: np.random.Generator, body: Array, patches: int) -> list[Layer]:
    bare = [Layer(ARMS, body), Layer(TRUNK, body)]
    if rng.random() < 0.03:
        return bare
    sleeve = float(
        rng.choice([rng.uniform(-0.05, 0.1), rng.uniform(0.3, 0.75), rng.uniform(1.6, 2.0)], p=[0.12, 0.45, 0.43])
    )
    low = float(rng.uniform(-0.14, 0.1) if rng.random() < 0.9 else rng.uniform(0.1, 0.25))
    limits = (low, float(rng.uniform(0.5, 0.575)), sleeve)
    shirt = _cloth(rng, SHIRT, limits, float(rng.choice([0.008, 0.018, 0.03, 0.045])), patches)
    return [*(bare[:1] if sleeve < 1.7 else []), *(bare[1:] if low > 0.05 or limits[1] < 0.54 else []), shirt]


def _lower(rng: np.random.Generator, body: Array, patches: int) -> list[Layer]:
    layers: list[Layer] = []
    kind = rng.random()
    hem = -0.95
    top = float(rng.uniform(0.08, 0.17))
    if kind < 0.14:
        hem = -0.1
        layers.append(_cloth(rng, SKIRT, (float(rng.uniform(-0.85, -0.25)), 9.0, 9.0), 0.0, patches))
    elif kind < 0.38:
        hem = float(rng.uniform(-0.6, -0.12))
    elif kind < 0.5:
        hem = float(rng.uniform(-0.9, -0.7))
    loose = float(rng.choice([0.004, 0.012, 0.022, 0.04]))
    layers.append(_cloth(rng, TROUSERS, (hem, top, 0.0), loose, patches))
    if hem > -0.9:
        layers.append(Layer(LEGS, body, limits=(0.0, hem + 0.05, 0.0)))
    if rng.random() < 0.93:
        high = float(rng.choice([-0.88, -0.85, -0.72]))
        layers.append(_cloth(rng, SHOES, (0.0, high, 0.0), float(rng.uniform(0.006, 0.016)), patches))
    elif hem <= -0.9:
        layers.append(Layer(LEGS, body, limits=(0.0, -0.85, 0.0)))
    return layers


def _head(rng: np.random.Generator, hair: Array) -> list[Layer]:
    kind = rng.random()
    colours = np.stack([hair, hair])
    line = (float(rng.uniform(-0.1, -0.06)), float(rng.uniform(0.735, 0.775)), 0.0)
    if kind < 0.08:
        return []
    if kind < 0.2:  # a hat, a helmet, a scarf
        cover = np.stack([_colour(rng), _colour(rng)])
        return [
            Layer(
                HAIR, cover, limits=(-0.2, float(rng.uniform(0.71, 0.76)), 0.0), loose=float(rng.uniform(0.012, 0.05))
            )
        ]
    layers = [Layer(HAIR, colours, limits=line, loose=float(rng.uniform(0.004, 0.03)), seed=float(rng.uniform(0, 9)))]
    if kind > 0.65:
        layers.append(Layer(LOOSE_HAIR, colours, seed=float(rng.uniform(0, 9))))
    return layers


def _cloth(
    rng: np.random.Generator, kind: int, limits: tuple[float, float, float], loose: float, patches: int
) -> Layer:
    plain = rng.random() < (0.45 if kind == SHIRT else 0.7)
    pattern = 0 if plain else int(rng.integers(1, 8 if kind == SHIRT else 7))
    scale = float(np.exp(rng.uniform(np.log(3), np.log(30))))
    colours = np.stack([_colour(rng), _colour(rng)])
    shine = float(max(rng.normal(0, 0.15), 0))
    return Layer(
        kind, colours, pattern, scale, limits, loose, int(rng.integers(patches)), shine, float(rng.uniform(0, 9))
    )


def _colour(rng: np.random.Generator) -> Array:
    """A cloth's colour, linear: often grey, black, white or denim."""
    kind = rng.random()
    if kind < 0.35:
        return np.full(3, rng.choice([0.01, 0.03, 0.1, 0.3, 0.8])) * rng.uniform(0.7, 1.3, 3)
    if kind < 0.45:
        return np.array([0.04, 0.07, 0.18]) * rng.uniform(0.4, 2.5)
    return np.array(colorsys.hsv_to_rgb(rng.random(), rng.beta(2, 1.5), 1.0)) ** 2.2 * rng.uniform(0.03, 0.9)
