# SPDX-License-Identifier: Apache-2.0
"""The humanoid motions that the package pybullet ships (pybullet_data/data/motions), as 17 joints."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .bvh import axis_rotation

# The humanoid of pybullet_data/humanoid/humanoid.urdf in the order of a frame's numbers: joint, parent, offset from
# it in metres (x forward, y up, z to the right; a quarter of the URDF's numbers), numbers of its rotation
# (4: quaternion w x y z, 1: angle around z).
_SKELETON: tuple[tuple[str, str, tuple[float, float, float], int], ...] = (
    ("root", "", (0, 0, 0), 4),
    ("chest", "root", (0, 0.236151, 0), 4),
    ("neck", "chest", (0, 0.223894, 0), 4),
    ("right_hip", "root", (0, 0, 0.084887), 4),
    ("right_knee", "right_hip", (0, -0.421546, 0), 1),
    ("right_ankle", "right_knee", (0, -0.409870, 0), 4),
    ("right_shoulder", "chest", (-0.024050, 0.243500, 0.183110), 4),
    ("right_elbow", "right_shoulder", (0, -0.274788, 0), 1),
    ("left_hip", "root", (0, 0, -0.084887), 4),
    ("left_knee", "left_hip", (0, -0.421546, 0), 1),
    ("left_ankle", "left_knee", (0, -0.409870, 0), 4),
    ("left_shoulder", "chest", (-0.024050, 0.243500, -0.183110), 4),
    ("left_elbow", "left_shoulder", (0, -0.274788, 0), 1),
    # The rest does not move by itself: hands, and the centre and the top of the ball that is the head.
    ("right_wrist", "right_elbow", (0, -0.258947, 0), 0),
    ("left_wrist", "left_elbow", (0, -0.258947, 0), 0),
    ("head", "neck", (0, 0.175, 0), 0),
    ("top", "neck", (0, 0.2775, 0), 0),
)
_ORDER = (
    *("root", "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle"),
    *("chest", "neck", "head", "top", "left_shoulder", "left_elbow", "left_wrist"),
    *("right_shoulder", "right_elbow", "right_wrist"),
)
_NUMBERS = 1 + 3 + sum(count for *_, count in _SKELETON)


def motion_files() -> list[Path]:
    """The humanoid motions of the installed pybullet, without importing it; empty where there is none."""
    found = importlib.util.find_spec("pybullet_data")
    if found is None or found.origin is None:
        return []
    folder = Path(found.origin).parent / "data" / "motions"
    return sorted(folder.glob("humanoid3d_*.txt")) + sorted(folder.glob("walker/*.txt"))


def read_deepmimic(path: Path) -> NDArray[np.float32]:
    """The 17 joints of a motion, every frame of it, (frames, 17, 3) in metres, y up.

    Spine and thorax are the humanoid's chest and neck joints; nose and head are the centre and the top of its head.

    Raises:
        ValueError: a file that is no such motion.
    """
    frames = _frames(path)
    turns = _turns(frames)
    positions: dict[str, NDArray[np.float64]] = {"": frames[:, 1:4]}
    rotations: dict[str, NDArray[np.float64]] = {"": np.tile(np.eye(3), (len(frames), 1, 1))}
    for name, parent, offset, _ in _SKELETON:
        positions[name] = positions[parent] + rotations[parent] @ np.array(offset, dtype=np.float64)
        if name in turns:
            rotations[name] = rotations[parent] @ turns[name]
    return np.stack([positions[name] for name in _ORDER], axis=1).astype(np.float32)


def read_deepmimic_turns(path: Path) -> dict[str, NDArray[np.float64]]:
    """Every joint's rotations (frames, 3, 3) within its parent, in the humanoid's axes: x forward, y up, z right.

    Raises:
        ValueError: a file that is no such motion.
    """
    return _turns(_frames(path))


def _frames(path: Path) -> NDArray[np.float64]:
    # Some files have a comma after the last frame.
    text = re.sub(r",(\s*[\]}])", r"\1", path.read_text())
    frames = np.array(json.loads(text)["Frames"], dtype=np.float64)
    if frames.ndim != 2 or frames.shape[1] != _NUMBERS:
        raise ValueError(f"{path}: frames of a humanoid have {_NUMBERS} numbers, got {frames.shape}")
    return frames


def _turns(frames: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    turns: dict[str, NDArray[np.float64]] = {}
    column = 4
    for name, _, _, count in _SKELETON:
        values = frames[:, column : column + count]
        column += count
        if count == 4:
            turns[name] = quaternion_rotation(values)
        elif count == 1:
            turns[name] = axis_rotation(2, values[:, 0])
    return turns


def quaternion_rotation(quaternion: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotations (N, 3, 3) of quaternions (N, 4), w x y z, of any length but 0."""
    w, x, y, z = (quaternion / np.linalg.norm(quaternion, axis=-1, keepdims=True)).T
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)
