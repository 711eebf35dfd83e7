# SPDX-License-Identifier: Apache-2.0
"""Motion capture as clips of 17 joints in Human3.6M's order: from an npz file, BVH files or pybullet's motions."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .bvh import read_bvh
from .deepmimic import motion_files, read_deepmimic

JOINTS = (
    "pelvis",
    *("right hip", "right knee", "right ankle"),
    *("left hip", "left knee", "left ankle"),
    *("spine", "thorax", "nose", "head"),
    *("left shoulder", "left elbow", "left wrist"),
    *("right shoulder", "right elbow", "right wrist"),
)
PARENTS = (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 9, 8, 11, 12, 8, 14, 15)
PELVIS, HEAD = 0, 10

PYBULLET = "pybullet"


class MocapError(ValueError):
    """Motion capture that cannot be used, and why."""


@dataclass(frozen=True)
class Clips:
    """Clips of poses, one after another.

    Args:
        joints: (N, 17, 3) float32, metres, y up.
        start: (clips + 1,) int64, where each clip starts; the last is N.
        names: a name a clip.
        source: the file or folder, or "pybullet".
        digest: SHA-256 of the joints, starts and names, hexadecimal.
    """

    joints: NDArray[np.float32]
    start: NDArray[np.int64]
    names: tuple[str, ...]
    source: str
    digest: str

    def clip_of_pose(self) -> NDArray[np.int64]:
        """The clip of every pose, (N,)."""
        return np.repeat(np.arange(len(self.names)), np.diff(self.start))


def load_clips(source: str, unit: float = 0.01, rate: float = 10.0) -> Clips:
    """Read motion capture.

    Args:
        source: an npz file with `joints` (N, 17, 3) metres, `start` (clips + 1) and `name` (clips); a BVH file; a
            folder with BVH files in it or below; or "pybullet" for the motions of the installed pybullet.
        unit: metres a BVH unit.
        rate: poses a second kept of a BVH file. The other two are taken whole.

    Raises:
        MocapError: a file that is absent, cannot be read, lacks arrays or joints, or whose poses are no poses.
    """
    if source == PYBULLET:
        files = motion_files()
        if not files:
            raise MocapError("the default motions are pybullet's: pip install pybullet, or give --data FILE")
        return _checked([(_clip_name(file), read_deepmimic(file)) for file in files], source)
    path = Path(source)
    if not path.exists():
        raise MocapError(f"{source}: no such file or folder")
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() == ".bvh")
        if not files:
            raise MocapError(f"{source}: no .bvh file in this folder")
        return _checked([(str(f.relative_to(path).with_suffix("")), _bvh(f, unit, rate)) for f in files], source)
    if path.suffix.lower() == ".bvh":
        return _checked([(path.stem, _bvh(path, unit, rate))], source)
    return _npz(path)


def _clip_name(file: Path) -> str:
    return file.stem.removeprefix("humanoid3d_")


def _bvh(file: Path, unit: float, rate: float) -> NDArray[np.float32]:
    try:
        return read_bvh(file, unit, rate)
    except (OSError, ValueError) as error:
        raise MocapError(f"{file}: {error}") from None


def _npz(path: Path) -> Clips:
    try:
        with path.open("rb") as stream:
            file = np.load(stream, allow_pickle=False)
            arrays = {"one array": file} if isinstance(file, np.ndarray) else dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise MocapError(f"{path}: not an npz or BVH file that can be read ({error})") from None
    if not {"joints", "start", "name"} <= arrays.keys():
        holds = ", ".join(arrays) or "nothing"
        raise MocapError(f"{path}: must hold the arrays joints, start and name, holds {holds}")
    joints, start, names = (arrays[key] for key in ("joints", "start", "name"))

    if joints.ndim != 3 or joints.shape[1:] != (17, 3) or joints.dtype.kind != "f":
        raise MocapError(f"{path}: joints must be floating point (N, 17, 3), got {joints.dtype} {joints.shape}")
    if start.ndim != 1 or start.dtype.kind not in "iu" or len(start) < 2:
        raise MocapError(f"{path}: start must be integers (clips + 1,), got {start.dtype} {start.shape}")
    if start[0] != 0 or start[-1] != len(joints) or (np.diff(start.astype(np.int64)) <= 0).any():
        raise MocapError(f"{path}: start must rise from 0 to the {len(joints)} poses, got {start[0]} to {start[-1]}")
    if names.shape != (len(start) - 1,) or names.dtype.kind != "U":
        raise MocapError(f"{path}: name must be {len(start) - 1} strings, one a clip, got {names.dtype} {names.shape}")
    clips = np.split(joints.astype(np.float32), start[1:-1])
    return _checked(list(zip(names.tolist(), clips, strict=True)), str(path))


def _checked(clips: list[tuple[str, NDArray[np.float32]]], source: str) -> Clips:
    for name, poses in clips:
        wrong = np.argwhere(~np.isfinite(poses))
        if len(wrong):
            frame, joint, _ = wrong[0]
            raise MocapError(f"{source}: clip {name}, pose {frame}: the {JOINTS[joint]} is not a finite number")
    joints = np.concatenate([poses for _, poses in clips])
    size = float(np.median(np.linalg.norm(joints[:, HEAD] - joints[:, PELVIS], axis=-1)))
    if not 0.2 < size < 2:
        hint = ": give --unit" if Path(source).suffix.lower() != ".npz" and source != PYBULLET else ""
        raise MocapError(f"{source}: from pelvis to head it is {size:.3g} m; joints must be in metres{hint}")
    start = np.concatenate([[0], np.cumsum([len(poses) for _, poses in clips])])
    names = tuple(name for name, _ in clips)
    digest = hashlib.sha256(joints.tobytes() + start.tobytes() + "\n".join(names).encode()).hexdigest()
    return Clips(joints, start, names, source, digest)
