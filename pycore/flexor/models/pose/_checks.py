# SPDX-License-Identifier: Apache-2.0
"""Checks that the pose networks share."""

from __future__ import annotations

from torch import Tensor


def check_joints(name: str, joints: int) -> None:
    """Refuses a number of joints that is not a positive integer."""
    if isinstance(joints, bool) or not isinstance(joints, int):
        raise TypeError(f"{name}: joints must be an integer, got {joints!r}")
    if joints < 1:
        raise ValueError(f"{name}: joints must be at least 1, got {joints}")


def check_images(name: str, images: Tensor, channels: int = 3, argument: str = "images", multiple: int = 32) -> None:
    """Refuses what is not a batch of float images of that many channels, whose sides are multiples of `multiple`."""
    if images.dim() != 4 or images.shape[1] != channels:
        raise ValueError(f"{name}: {argument} must be (B, {channels}, H, W), got {tuple(images.shape)}")
    height, width = images.shape[2:]
    if height % multiple or width % multiple or height == 0 or width == 0:
        raise ValueError(
            f"{name}: height and width of {argument} must be multiples of {multiple}, got {height} x {width}: "
            "crop or pad the images to such a size"
        )
    if not images.is_floating_point():
        raise TypeError(f"{name}: {argument} must be floating point, normalised to mean 0, got {images.dtype}")
