# SPDX-License-Identifier: Apache-2.0
"""How training crops differ from the annotated boxes: half bodies, scale, rotation, mirror images, colours, gaps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .geometry import ENLARGE, MEAN, STD, crop_affine
from .skeleton import Skeleton

HALF_BODY_ENLARGE = 1.5
FEWEST = 2  # joints that make a half body


@dataclass(frozen=True)
class Augmentation:
    """Chances and widths of what is done to a training crop; the defaults are those of the HRNet family.

    Args:
        half_body: chance that a person with more than 8 visible joints is cut to its upper or lower half.
        scale: deviation of the box's factor, 1 + scale N(0, 1), clipped to 1 +- scale.
        rotate: chance of a rotation.
        rotation: its deviation, degrees, clipped to twice as much.
        flip: chance of a mirror image.
        shift: deviation of the box's centre, as a share of its sides.
        colour: greatest change of brightness, contrast and saturation, as a share.
        gap: chance that a rectangle of the crop becomes grey.
    """

    half_body: float = 0.3
    scale: float = 0.35
    rotate: float = 0.6
    rotation: float = 45.0
    flip: float = 0.5
    shift: float = 0.0
    colour: float = 0.0
    gap: float = 0.0


@dataclass(frozen=True)
class View:
    """How a person is cut out.

    Args:
        matrix: (2, 3), image to crop pixels.
        mirrored: whether joints change sides.
    """

    matrix: Tensor
    mirrored: bool


def view(
    box: NDArray[np.float64],
    joints: NDArray[np.float64],
    visible: NDArray[np.bool_],
    skeleton: Skeleton,
    size: tuple[int, int],
    augmentation: Augmentation | None,
    rng: np.random.Generator,
    *,
    enlarge: float = ENLARGE,
    udp: bool = False,
) -> View:
    """Draw the crop of a person.

    Args:
        box: (4,), left, top, width, height, pixels.
        joints, visible: (K, 2) pixels, and (K,) which are annotated.
        skeleton: whose joints they are.
        size: (H, W) of the crop.
        augmentation: None cuts the box out as it is.
        rng: draws it.
        enlarge, udp: as `crop_affine` has them.
    """
    if augmentation is None:
        return View(crop_affine(box, size, enlarge=enlarge, udp=udp), False)
    if visible.sum() > 8 and rng.random() < augmentation.half_body:
        half = half_body(joints, visible, skeleton, rng)
        if half is not None:
            box, enlarge = half, enlarge * HALF_BODY_ENLARGE / ENLARGE
    factor = float(
        np.clip(1 + augmentation.scale * rng.standard_normal(), 1 - augmentation.scale, 1 + augmentation.scale)
    )
    turn = 0.0
    if rng.random() < augmentation.rotate:
        limit = 2 * augmentation.rotation
        turn = float(np.clip(augmentation.rotation * rng.standard_normal(), -limit, limit))
    moved = box.copy()
    moved[:2] += augmentation.shift * rng.standard_normal(2) * box[2:].max()
    matrix = crop_affine(moved, size, enlarge=enlarge * factor, rotation=turn, udp=udp)
    mirrored = bool(rng.random() < augmentation.flip)
    if mirrored:
        matrix = matrix.clone()
        matrix[0] = -matrix[0]
        matrix[0, 2] += size[1] - 1
    return View(matrix, mirrored)


def half_body(
    joints: NDArray[np.float64], visible: NDArray[np.bool_], skeleton: Skeleton, rng: np.random.Generator
) -> NDArray[np.float64] | None:
    """The box (4,) around the visible joints of the upper body (chance 0.69) or of the lower.

    The other half is taken where the one that was drawn has too few; None where both have, or where all its joints
    coincide, which the released code does not guard against.
    """
    upper = np.isin(np.arange(len(skeleton)), skeleton.upper_body)
    first_upper = rng.standard_normal() < 0.5  # so the released code draws it, not uniformly
    for chosen in (upper, ~upper) if first_upper else (~upper, upper):
        points = joints[chosen & visible]
        if len(points) > FEWEST:
            low, high = points.min(0), points.max(0)
            centre, sides = points.mean(0), high - low
            return np.concatenate([centre - sides / 2, sides]) if sides.max() > 0 else None
    return None


def recolour(crop: Tensor, augmentation: Augmentation | None, rng: np.random.Generator) -> Tensor:
    """A normalised crop (..., 3, H, W) with other colours and a gap, the same for all frames of a window."""
    if augmentation is None:
        return crop
    if augmentation.colour > 0:
        mean, std = (crop.new_tensor(values)[:, None, None] for values in (MEAN, STD))
        brightness, contrast, saturation = (1 + augmentation.colour * rng.uniform(-1, 1, 3)).tolist()
        pixels = (crop * std + mean) * brightness
        grey = pixels.mean(-3, keepdim=True)
        pixels = grey + saturation * (pixels - grey)
        middle = pixels.mean((-3, -2, -1), keepdim=True)
        crop = ((middle + contrast * (pixels - middle)).clamp(0, 1) - mean) / std
    if rng.random() < augmentation.gap:
        height, width = crop.shape[-2:]
        h, w = (int(side * rng.uniform(0.1, 0.35)) for side in (height, width))
        top, left = int(rng.integers(height - h)), int(rng.integers(width - w))
        crop = crop.clone()
        crop[..., top : top + h, left : left + w] = torch.tensor(rng.standard_normal((3, 1, 1)), dtype=crop.dtype)
    return crop
