# SPDX-License-Identifier: Apache-2.0
"""Motion capture seen by virtual cameras: what lifting networks are trained on and measured with."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .mocap import PELVIS, Clips, MocapError

Floats = NDArray[np.float32]
IMAGE_PX, FOCAL_PX = 1000.0, 1145.0  # as Human3.6M's cameras, about


@dataclass(frozen=True)
class ViewSettings:
    """Virtual cameras and a detector's errors, all uniform in their ranges.

    A pinhole camera without distortion, its focal length 1145 and its picture 1000x1000 pixels, looks level with the
    horizon's roll at 0 towards a point near the pelvis, from any side.

    Args:
        distance: range of the camera's horizontal distance from the pelvis, metres.
        height: range of the camera's height over the floor (y = 0), metres.
        aim: how far the point looked at may be from the pelvis along each axis, metres.
        noise: standard deviation of a joint's error along each axis, pixels.
        outliers: share of joints whose error has ten times that deviation.
        misses: share of joints found anywhere in the person's bounding box instead.
    """

    distance: tuple[float, float] = (3.5, 6.0)
    height: tuple[float, float] = (0.5, 2.5)
    aim: float = 0.3
    noise: float = 4.0
    outliers: float = 0.02
    misses: float = 0.005


@dataclass(frozen=True)
class Samples:
    """Poses as cameras see them.

    Args:
        inputs: (N, 17, 2), detected joints, (pixel - 500) / 500, x right and y down.
        targets: (N, 17, 3), metres from the pelvis along the camera's axes: x right, y down, z away.
        pose: (N,), which of the clips' poses each is.
    """

    inputs: Floats
    targets: Floats
    pose: NDArray[np.int64]


def see(joints: Floats, settings: ViewSettings, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Inputs and targets, as `Samples` has them, of poses (N, 17, 3), each with a camera of its own."""
    count = len(joints)
    pelvis = joints[:, PELVIS].astype(np.float64)
    azimuth = rng.uniform(0, 2 * np.pi, count)
    distance = rng.uniform(*settings.distance, count)
    eye = pelvis + distance[:, None] * np.stack([np.sin(azimuth), np.zeros(count), np.cos(azimuth)], -1)
    eye[:, 1] = rng.uniform(*settings.height, count)
    forward = _unit(pelvis + rng.uniform(-settings.aim, settings.aim, (count, 3)) - eye)
    right = _unit(np.cross(forward, [0.0, 1.0, 0.0]))
    axes = np.stack([right, np.cross(forward, right), forward], 1)

    camera = np.einsum("nij,nkj->nki", axes, joints - eye[:, None])
    pixels = IMAGE_PX / 2 + FOCAL_PX * camera[..., :2] / camera[..., 2:].clip(min=0.1)
    pixels = _detected(pixels, settings, rng)
    inputs = (pixels - IMAGE_PX / 2) / (IMAGE_PX / 2)
    return inputs.astype(np.float32), (camera - camera[:, PELVIS, None]).astype(np.float32)


def _detected(pixels: NDArray[np.float64], settings: ViewSettings, rng: np.random.Generator) -> NDArray[np.float64]:
    shape = pixels.shape[:2]
    scale = np.where(rng.random(shape) < settings.outliers, 10 * settings.noise, settings.noise)
    found = pixels + scale[..., None] * rng.standard_normal(pixels.shape)
    low, high = pixels.min(1, keepdims=True), pixels.max(1, keepdims=True)
    missed = rng.random(shape) < settings.misses
    return np.where(missed[..., None], rng.uniform(low, high, pixels.shape), found)


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def held_out_clips(clips: Clips, share: float) -> NDArray[np.bool_]:
    """Which clips are for the test alone: those whose name's SHA-1, as a fraction of its range, is below `share`.

    The choice depends on a clip's name only, not on a seed, nor on the other clips.

    Raises:
        MocapError: nothing left to train on, or to test with.
    """
    held = [int.from_bytes(hashlib.sha1(name.encode()).digest()[:8], "big") < share * 2**64 for name in clips.names]
    if all(held) or not any(held):
        raise MocapError(
            f"{clips.source}: of {len(held)} clips {sum(held)} are held out at a share of {share:g}; "
            "at least one must be, and one not"
        )
    return np.array(held)


def actions_of_clips(clips: Clips, pattern: str) -> list[str]:
    """Each clip's action: the first group of a regular expression that matches the beginning of its name.

    Raises:
        MocapError: a pattern that is wrong or fits no name.
    """
    try:
        matches = [re.match(pattern, name) for name in clips.names]
        actions = [match[1] if match else "" for match in matches]
    except (re.error, IndexError) as error:
        raise MocapError(f"--action {pattern}: not a regular expression with a group ({error})") from None
    for name, action in zip(clips.names, actions, strict=True):
        if not action:
            raise MocapError(f"--action {pattern}: finds no action in the clip name {name}")
    return actions


class TrainingSet:
    """The poses of the clips that are not held out, in a shuffled order without end, each time seen anew.

    Args:
        clips: the clips.
        held_out: which of them are not for training.
        settings: cameras and detector.
        seed: of the order, the cameras and the detector.
    """

    def __init__(self, clips: Clips, held_out: NDArray[np.bool_], settings: ViewSettings, seed: int) -> None:
        self.joints = clips.joints[~held_out[clips.clip_of_pose()]]
        self.settings, self.seed = settings, seed
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    def batch(self, step: int, size: int) -> tuple[Floats, Floats]:
        """Inputs and targets of a step; the same for the same seed, step and size, whatever came before."""
        places = np.arange(step * size, (step + 1) * size)
        rounds, places = np.divmod(places, len(self.joints))
        chosen = np.concatenate([self._shuffle(int(r))[places[rounds == r]] for r in np.unique(rounds)])
        return see(self.joints[chosen], self.settings, np.random.default_rng([self.seed, 1, step]))

    def _shuffle(self, turn: int) -> NDArray[np.int64]:
        if self._order[0] != turn:
            self._order = turn, np.random.default_rng([self.seed, 0, turn]).permutation(len(self.joints))
        return self._order[1]

    def sample(self) -> tuple[Floats, Floats]:
        """Inputs and targets of every pose, seen once."""
        return see(self.joints, self.settings, np.random.default_rng([self.seed, 2]))

    def mean_target(self) -> Floats:
        """The mean pose in front of the cameras, (17, 3): what one can answer without looking."""
        return self.sample()[1].mean(0)


def held_out_samples(clips: Clips, held_out: NDArray[np.bool_], settings: ViewSettings, views: int) -> Samples:
    """Every pose of the held-out clips, seen by `views` cameras; the same ones for every model and seed."""
    pose = np.tile(np.flatnonzero(held_out[clips.clip_of_pose()]), views)
    inputs, targets = see(clips.joints[pose], settings, np.random.default_rng([0, 3]))
    return Samples(inputs, targets, pose)
