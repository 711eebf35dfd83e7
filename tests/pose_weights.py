# SPDX-License-Identifier: Apache-2.0
"""Weights that tests and the makers of their golden files draw alike from a key and a shape; no value is 0."""

import zlib

import numpy as np
import torch
from torch import Tensor


def drawn(key: str, shape: tuple[int, ...], gain: float = 2.0) -> Tensor:
    """A weight of that name and shape, of about its usual size: float32, the same on every machine."""
    random = np.random.default_rng(zlib.crc32(key.encode()))
    values = random.standard_normal(shape, dtype=np.float32)
    if len(shape) > 1:
        return torch.from_numpy(values * np.float32((gain / np.prod(shape[1:])) ** 0.5))
    one = key.endswith(("running_var", "weight"))
    return torch.from_numpy(1 + np.abs(values) / 4 if one else values / 10)


def drawn_state(state: dict[str, Tensor], gain: float = 2.0) -> dict[str, Tensor]:
    """A state_dict with these keys and shapes."""
    return {
        key: drawn(key, tuple(value.shape), gain) if value.is_floating_point() else torch.tensor(7)
        for key, value in state.items()
    }


def video_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """For DCPose and FAMI-Pose: neither the backbone's features nor the offsets of the head explode."""
    gains = {"rough_pose_estimation_net": 0.4, "hrnet": 0.2}
    found = {}
    for key, value in state.items():
        found |= drawn_state({key: value}, gains.get(key.split(".")[0], 1.0))
    return found
