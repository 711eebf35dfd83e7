# SPDX-License-Identifier: Apache-2.0
"""The poses of the rendered data set: pybullet's humanoid motions, and poses drawn within a body's limits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from ..deepmimic import motion_files, read_deepmimic_turns
from .rendered_body import TURNS

Array = NDArray[np.float64]

HELD_OUT = ("humanoid3d_dance_b", "humanoid3d_spinkick", "humanoid3d_getup_facedown", "turn_left1", "turn_right0")
# The humanoid's axes (x forward, y up, z right) as the body's (x left, y back, z up).
_AXES = np.array([[0.0, 0.0, -1.0], [-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
_MIRROR = [TURNS.index({"r": "left" + n[5:], "l": "right" + n[4:]}.get(n[0], n) if "_" in n else n) for n in TURNS]


def motions(held_out: bool) -> list[Array]:
    """Rotation vectors (frames, 13, 3) of the motions that are held out, or of the others.

    Raises:
        FileNotFoundError: without the package pybullet.
    """
    files = [f for f in motion_files() if (f.stem in HELD_OUT) == held_out]
    if not files:
        raise FileNotFoundError("rendered people need the motions of the package pybullet: pip install pybullet")
    return [_rotation_vectors(read_deepmimic_turns(file)) for file in files]


def _rotation_vectors(turns: dict[str, Array]) -> Array:
    """Axes changed, the walking direction taken out: a camera turns around the person anyway."""
    stacked = np.stack([_AXES @ turns[name] @ _AXES.T for name in TURNS], axis=1)
    vectors = Rotation.from_matrix(stacked.reshape(-1, 3, 3)).as_rotvec()
    return vectors.reshape(-1, len(TURNS), 3)


def mirrored(pose: Array) -> Array:
    """The pose (13, 3) that a mirror shows."""
    return pose[_MIRROR] * np.array([1.0, -1.0, -1.0])


def moved(pose: Array, rng: np.random.Generator, degrees: float) -> Array:
    """Every joint turned further by a random rotation."""
    noise = Rotation.from_rotvec(np.deg2rad(degrees) * rng.standard_normal(pose.shape))
    return (Rotation.from_rotvec(pose) * noise).as_rotvec()


def drawn(rng: np.random.Generator) -> Array:
    """A pose (13, 3) within the limits of a body: standing, walking, sitting, reaching, seldom lying."""
    pose = np.zeros((len(TURNS), 3))
    put = dict(zip(TURNS, pose, strict=True))
    put["root"][:] = _root(rng)
    put["chest"][:] = np.deg2rad(rng.normal([8, 0, 0], [18, 10, 15]))
    put["neck"][:] = np.deg2rad(rng.normal([4, 0, 0], [14, 10, 28]))
    put["chest"][0] *= 1.0
    legs, same = rng.random(), rng.random() < 0.4
    draws = [_leg(rng, legs) for _ in range(2)]
    for k, side in enumerate(("left", "right")):
        hip, knee = draws[0] if same else draws[k]
        put[f"{side}_hip"][:] = hip if side == "left" else hip * [1, -1, -1]
        put[f"{side}_knee"][0] = knee
        put[f"{side}_ankle"][:] = np.deg2rad(rng.normal(0, [15, 6, 8]))
        shoulder, elbow = _arm(rng)
        put[f"{side}_shoulder"][:] = shoulder if side == "left" else shoulder * [1, -1, -1]
        put[f"{side}_elbow"][0] = -elbow
    return pose


def _root(rng: np.random.Generator) -> Array:
    kind = rng.random()
    if kind < 0.82:
        return np.deg2rad(rng.normal(0, [7, 6, 0]))
    if kind < 0.93:
        return np.deg2rad(rng.normal(0, [40, 30, 0]))
    return Rotation.random(random_state=int(rng.integers(1 << 31))).as_rotvec()


def _leg(rng: np.random.Generator, kind: float) -> tuple[Array, float]:
    """The left hip's rotation vector and the knee's angle."""
    if kind < 0.4:  # standing
        bend, spread, knee = rng.normal(3, 8), rng.normal(4, 5), abs(rng.normal(3, 6))
    elif kind < 0.65:  # walking, running
        bend, spread = rng.normal(15, 28), rng.normal(3, 5)
        knee = abs(rng.normal(25, 30))
    elif kind < 0.82:  # sitting, crouching
        bend, spread, knee = rng.normal(85, 15), rng.normal(8, 9), rng.normal(82, 22)
    else:
        bend, spread, knee = rng.uniform(-25, 110), rng.normal(12, 18), rng.uniform(0, 130)
    swing = Rotation.from_rotvec(np.deg2rad([-bend, 0, 0])) * Rotation.from_rotvec(np.deg2rad([0, -spread, 0]))
    return (swing * Rotation.from_rotvec(np.deg2rad([0, 0, rng.normal(8, 12)]))).as_rotvec(), np.deg2rad(max(knee, 0))


def _arm(rng: np.random.Generator) -> tuple[Array, float]:
    """The left shoulder's rotation vector and the elbow's angle."""
    kind = rng.random()
    if kind < 0.45:  # hanging
        direction = np.array([abs(rng.normal(0.15, 0.15)), rng.normal(-0.05, 0.25), -1.0])
        elbow = abs(rng.normal(15, 25))
    else:
        direction = rng.standard_normal(3)
        while direction[1] > 0.4 * np.linalg.norm(direction) or direction[0] < -0.4 * np.linalg.norm(direction):
            direction = rng.standard_normal(3)
        elbow = rng.uniform(0, 140) if rng.random() < 0.7 else abs(rng.normal(10, 15))
    direction /= np.linalg.norm(direction)
    down = np.array([0.0, 0.0, -1.0])
    axis = np.cross(down, direction)
    sine = np.linalg.norm(axis)
    swing = Rotation.from_rotvec(axis / max(sine, 1e-9) * np.arctan2(sine, down @ direction))
    twist = Rotation.from_rotvec(np.deg2rad([0, 0, rng.normal(0, 35)]))
    return (swing * twist).as_rotvec(), float(np.deg2rad(elbow))
