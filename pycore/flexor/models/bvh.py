# SPDX-License-Identifier: Apache-2.0
"""BVH files: the hierarchy, forward kinematics, and which joints are Human3.6M's 17."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_ARM = (("arm", "upperarm", "shldr", "shoulder"), ("forearm", "lowerarm", "elbow"), ("hand", "wrist"))
_LEG = (("upleg", "upperleg", "thigh", "hip"), ("leg", "lowerleg", "shin", "calf", "knee"), ("foot", "ankle"))


def _sided(side: str, limb: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
    """Spellings of a limb's joints: RightUpLeg, UpperLeg_R, rThigh."""
    return tuple(
        tuple(name for part in parts for name in (side + part, side[0] + part, part + side, part + side[0]))
        for parts in limb
    )


# For each of the 17, the spellings taken for it, the best first; without case, punctuation and prefixes.
_SPELLINGS = (
    ("hips", "pelvis", "hip", "root"),
    *_sided("right", _LEG),
    *_sided("left", _LEG),
    ("chest", "spine1", "spine", "torso", "abdomen", "lowerback"),
    ("neck", "neck1", "lowerneck"),
    ("head",),
    ("headtopend", "headtop", "headend", "headnub", "headsite"),
    *_sided("left", _ARM),
    *_sided("right", _ARM),
)
_TITLES = (
    *("pelvis", "right hip", "right knee", "right ankle", "left hip", "left knee", "left ankle"),
    *("spine", "neck", "head", "end of the head", "left shoulder", "left elbow", "left wrist"),
    *("right shoulder", "right elbow", "right wrist"),
)
_NECK, _HEAD_METRES = 8, 0.12


@dataclass(frozen=True)
class BvhJoint:
    """A joint: its parent's index (-1 for the root), its offset, and its channels' names in the order of the file."""

    name: str
    parent: int
    offset: tuple[float, float, float]
    channels: tuple[str, ...]


def read_bvh(path: Path, unit: float, rate: float) -> NDArray[np.float32]:
    """The 17 joints of a BVH file, (poses, 17, 3) in metres.

    A head whose end lies in its joint ends 12 cm farther from the neck.

    Args:
        path: the file.
        unit: metres a unit of the file.
        rate: poses a second to keep; every n-th frame is taken, n = round(frames a second / rate), at least 1.

    Raises:
        ValueError: a file that is no BVH, or lacks joints; those are listed.
    """
    skeleton, frame_time, motion = parse_bvh(path.read_text(encoding="utf-8", errors="replace"))
    chosen = choose_joints([joint.name for joint in skeleton])
    step = max(1, round(1 / (frame_time * rate)))
    joints = forward_kinematics(skeleton, motion[::step])[:, chosen] * unit
    neck, head, top = joints[:, _NECK], joints[:, _NECK + 1], joints[:, _NECK + 2]
    if np.linalg.norm(top - head, axis=-1).max() < 1e-3:
        length = np.linalg.norm(head - neck, axis=-1, keepdims=True).clip(min=1e-9)
        joints[:, _NECK + 2] = head + _HEAD_METRES * (head - neck) / length
    return joints.astype(np.float32)


def parse_bvh(text: str) -> tuple[list[BvhJoint], float, NDArray[np.float64]]:
    """The skeleton, seconds a frame, and the channels' values (frames, channels); an End Site is named "HeadSite"."""
    hierarchy, motion_found, motion = text.partition("MOTION")
    if "HIERARCHY" not in hierarchy or not motion_found:
        raise ValueError("not a BVH file: it has no HIERARCHY and MOTION")
    skeleton = _parse_hierarchy(hierarchy.split("HIERARCHY", 1)[1].split())
    header = re.match(r"\s*Frames:\s*(\d+)\s*Frame\s+Time:\s*(\S+)\s*", motion)
    if header is None:
        raise ValueError("MOTION must begin with Frames: and Frame Time:")
    frames, width = int(header[1]), sum(len(joint.channels) for joint in skeleton)
    try:
        frame_time = float(header[2])
        values = np.array(motion[header.end() :].split(), dtype=np.float64)
    except ValueError as error:
        raise ValueError(f"MOTION holds something that is no number: {error}") from None
    if frames < 1 or frame_time <= 0 or values.size != frames * width:
        raise ValueError(
            f"MOTION must hold {frames} frames of {width} channels, got {values.size} numbers, {frame_time} s a frame"
        )
    return skeleton, frame_time, values.reshape(frames, width)


def _parse_hierarchy(tokens: list[str]) -> list[BvhJoint]:
    skeleton: list[BvhJoint] = []
    open_joints: list[int] = []
    words = iter(tokens)
    try:
        for word in words:
            if word == "}":
                open_joints.pop()
                continue
            parent = open_joints[-1] if open_joints else -1
            name = next(words)
            if word == "End":
                name = skeleton[parent].name + "Site"
            elif word not in ("ROOT", "JOINT"):
                raise ValueError(f"HIERARCHY: expected ROOT, JOINT, End or }}, got {word}")
            _expect(words, "{")
            _expect(words, "OFFSET")
            offset = (float(next(words)), float(next(words)), float(next(words)))
            channels: tuple[str, ...] = ()
            if word != "End":
                _expect(words, "CHANNELS")
                channels = tuple(next(words).lower() for _ in range(int(next(words))))
                if not all(re.fullmatch("[xyz](position|rotation)", channel) for channel in channels):
                    raise ValueError(f"HIERARCHY: {name} has channels {' '.join(channels)}")
            open_joints.append(len(skeleton))
            skeleton.append(BvhJoint(name, parent, offset, channels))
    except (StopIteration, IndexError):
        raise ValueError("HIERARCHY ends too early") from None
    if open_joints or not skeleton:
        raise ValueError("HIERARCHY ends too early")
    return skeleton


def _expect(words: object, expected: str) -> None:
    word = next(words)  # type: ignore[call-overload]
    if word != expected:
        raise ValueError(f"HIERARCHY: expected {expected}, got {word}")


def forward_kinematics(skeleton: list[BvhJoint], motion: NDArray[np.float64]) -> NDArray[np.float64]:
    """Positions (frames, joints, 3) in the file's units; position channels, where a joint has them, are its offset."""
    frames = len(motion)
    positions = np.empty((frames, len(skeleton), 3))
    rotations = np.empty((frames, len(skeleton), 3, 3))
    column = 0
    for index, joint in enumerate(skeleton):
        offset = np.tile(np.array(joint.offset), (frames, 1))
        rotation = np.tile(np.eye(3), (frames, 1, 1))
        for channel in joint.channels:
            axis, value = "xyz".index(channel[0]), motion[:, column]
            if channel.endswith("position"):
                offset[:, axis] = value
            else:
                rotation = rotation @ axis_rotation(axis, np.deg2rad(value))
            column += 1
        if joint.parent < 0:
            positions[:, index], rotations[:, index] = offset, rotation
        else:
            parent = rotations[:, joint.parent]
            positions[:, index] = positions[:, joint.parent] + np.einsum("fij,fj->fi", parent, offset)
            rotations[:, index] = parent @ rotation
    return positions


def axis_rotation(axis: int, angle: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotations (N, 3, 3) by angles (N,) in radians around a coordinate axis."""
    cos, sin = np.cos(angle), np.sin(angle)
    rotation = np.zeros((len(angle), 3, 3))
    i, j = (axis + 1) % 3, (axis + 2) % 3
    rotation[:, axis, axis] = 1
    rotation[:, i, i] = rotation[:, j, j] = cos
    rotation[:, i, j], rotation[:, j, i] = -sin, sin
    return rotation


def choose_joints(names: list[str]) -> list[int]:
    """The index of each of Human3.6M's 17 joints among a skeleton's names.

    Raises:
        ValueError: some are not there; they are listed with the names that are.
    """
    plain = [re.sub("[^a-z0-9]", "", re.sub("^(.*:|mixamorig|joint_)", "", name.lower())) for name in names]
    chosen = [next((plain.index(s) for s in spellings if s in plain), -1) for spellings in _SPELLINGS]
    missing = [title for title, index in zip(_TITLES, chosen, strict=True) if index < 0]
    if missing:
        raise ValueError(f"no joint for: {', '.join(missing)}; the file has {', '.join(names)}")
    return chosen
