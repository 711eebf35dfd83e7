# SPDX-License-Identifier: Apache-2.0
"""Joints from heatmaps and from SimCC vectors: argmax, quarter offset, DARK, UDP, flip test."""

from __future__ import annotations

import math

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ...ops import _check
from .geometry import ENLARGE, crop_affine, to_image
from .skeleton import Skeleton

METHODS = ("argmax", "quarter", "dark", "udp")
NOTHING_FOUND = ("keep", "zero", "minus_one")


def decode_heatmaps(
    heatmaps: Tensor,
    method: str = "quarter",
    *,
    blur: int = 11,
    max_step: float = math.inf,
    nothing_found: str = "keep",
) -> tuple[Tensor, Tensor]:
    """The place and the height of every heatmap's peak.

        argmax:   p = the highest pixel (the first of several), score = its value
        quarter:  p + 1/4 (sign(h[x+1] - h[x-1]), sign(h[y+1] - h[y-1]))   if 1 < x < w-1 and 1 < y < h-1
        dark:     p - H^-1 g of log max(blurred, 1e-10), differences over two pixels   if 1 < x < w-2 and 1 < y < h-2
        udp:      p - (H + eps I)^-1 g of log clip(blurred, 0.001, 50), differences over one pixel, mirrored borders

    blurred is the heatmap under a Gaussian of `blur` taps and deviation 0.3 ((blur - 1)/2 - 1) + 0.8, zeros around
    it, scaled so that its highest value stays; g and H are first and second derivatives at p.

    Args:
        heatmaps: (B, K, h, w), floating point. NaN is never a peak.
        method: one of these four.
        blur: taps of the Gaussian in dark and udp, odd: 11 for heatmaps of deviation 2, 17 for 3.
        max_step: steps of dark and udp longer than this many heatmap pixels are not taken. Published code takes all:
            where a map has no peak, H is nearly singular and a joint lands thousands of pixels away.
        nothing_found: the point where no value is above 0: "keep" the highest pixel; "zero" gives (0, 0), as HRNet's
            and DCPose's released code does; "minus_one" gives (-1, -1), as mmpose does.

    Returns:
        Points (B, K, 2), x before y, in heatmap pixels, and scores (B, K), both float32 (float64 for float64 maps).
        A heatmap that is NaN everywhere has points of NaN and score 0.

    Raises:
        ValueError: a shape that is not (B, K, h, w) with pixels, an unknown method or choice, an even blur.
        TypeError: a dtype that is not floating point.

    Source:
        quarter: Newell et al., Stacked Hourglass Networks, ECCV 2016, section 4.1; dark: Zhang et al.,
        Distribution-Aware Coordinate Representation for Human Pose Estimation, CVPR 2020, section 3.2; udp: Huang et
        al., The Devil is in the Details, CVPR 2020.
    """
    name = "decode_heatmaps"
    _check_maps(name, heatmaps)
    _check.one_of(name, "method", method, METHODS)
    _check.one_of(name, "nothing_found", nothing_found, NOTHING_FOUND)
    if blur < 1 or blur % 2 == 0:
        raise ValueError(f"{name}: blur must be an odd number of taps, got {blur}")
    if not max_step > 0:
        raise ValueError(f"{name}: max_step must be a positive number of pixels, got {max_step}")
    maps = heatmaps.detach() if heatmaps.dtype == torch.float64 else heatmaps.detach().float()
    width = maps.shape[3]
    scores, flat = maps.where(~maps.isnan(), -torch.inf).flatten(2).max(2)
    pixel = torch.stack([flat % width, flat // width], -1)
    points = pixel.to(maps.dtype)
    if method != "argmax":
        refine = {"quarter": _quarter, "dark": _dark, "udp": _udp}[method]
        step = refine(maps.nan_to_num(nan=0.0), pixel, blur)
        points = points + torch.where(step.norm(dim=-1, keepdim=True) <= max_step, step, 0.0)
    return _settle(points, scores, maps.isnan().flatten(2).all(2), nothing_found)


def decode_simcc(
    simcc_x: Tensor, simcc_y: Tensor, split: float = 2.0, *, nothing_found: str = "keep"
) -> tuple[Tensor, Tensor]:
    """The joints of SimCC vectors, one classification a coordinate.

        p = (argmax x, argmax y) / split;   score = min(max x, max y)

    Args:
        simcc_x: (B, K, split W), floating point. NaN is never a peak.
        simcc_y: (B, K, split H).
        split: bins a pixel.
        nothing_found: the point where the score is not above 0: "keep" the peaks; "zero" gives (0, 0); "minus_one"
            gives (-1, -1) / split, as mmpose does.

    Returns:
        Points (B, K, 2), x before y, in pixels of the network's input, and scores (B, K), both float32 (float64 for
        float64 vectors). Where a vector is NaN everywhere, points are NaN and the score 0.

    Raises:
        ValueError: shapes that do not fit, a split that is not positive, an unknown choice.
        TypeError: a dtype that is not floating point.

    Source:
        Li et al., SimCC: A Simple Coordinate Classification Perspective for Human Pose Estimation, ECCV 2022.
    """
    name = "decode_simcc"
    for argument, value in (("simcc_x", simcc_x), ("simcc_y", simcc_y)):
        _check.tensor(name, argument, value, "B K bins")
        _check.floating(name, argument, value)
    if simcc_x.shape[:2] != simcc_y.shape[:2] or 0 in (simcc_x.shape[2], simcc_y.shape[2]):
        raise ValueError(
            f"{name}: simcc_x and simcc_y must be (B, K, bins) with the same B and K and at least one bin, got "
            f"{tuple(simcc_x.shape)} and {tuple(simcc_y.shape)}"
        )
    if not split > 0:
        raise ValueError(f"{name}: split must be a positive number of bins a pixel, got {split}")
    _check.one_of(name, "nothing_found", nothing_found, NOTHING_FOUND)
    dtype = torch.float64 if simcc_x.dtype == torch.float64 else torch.float32
    x, y = (v.detach().to(dtype) for v in (simcc_x, simcc_y))
    empty = x.isnan().all(2) | y.isnan().all(2)
    (height_x, at_x), (height_y, at_y) = (v.where(~v.isnan(), -torch.inf).max(2) for v in (x, y))
    points, scores = _settle(
        torch.stack([at_x, at_y], -1).to(dtype), torch.minimum(height_x, height_y), empty, nothing_found
    )
    return points / split, scores


def heatmap_to_image(
    points: Tensor,
    boxes: ArrayLike | Tensor,
    heatmap_size: tuple[int, int],
    *,
    enlarge: float = ENLARGE,
    rotation: float | Tensor = 0.0,
    udp: bool = False,
    whole_pixels: bool = False,
) -> Tensor:
    """Heatmap points as image pixels, without the detour over the network's input.

        biased: p = center + extent_x / w (p' - (w, h)/2);   UDP: p = p' extent / (w - 1, h - 1) + center - extent/2

    Args:
        points: (B, K, 2), heatmap pixels, as `decode_heatmaps` gives them. For SimCC points use the input's size.
        boxes: (B, 4), left, top, width, height, the boxes that were cropped.
        heatmap_size: (h, w).
        enlarge, rotation, udp: as in `flexor.models.pose.geometry.crop_affine`.
        whole_pixels: cut the fractions off, as DCPose's demo does.

    Returns:
        (B, K, 2) float64, image pixels.

    Raises:
        ValueError: as `crop_affine` and `to_image`.
    """
    matrix = crop_affine(boxes, heatmap_size, enlarge=enlarge, rotation=rotation, udp=udp)
    return to_image(points, matrix.to(points.device), whole_pixels=whole_pixels)


def flip_heatmaps(heatmaps: Tensor, skeleton: Skeleton, *, shift: bool) -> Tensor:
    """Heatmaps of a mirrored crop, mirrored back: columns reversed, left and right joints exchanged.

    The flip test is the mean of this and the heatmaps of the crop itself.

    Args:
        heatmaps: (B, K, h, w).
        skeleton: of the K joints.
        shift: move the result one pixel to the right (the first column stays). Biased crops need it: their input has
            4 pixels a heatmap pixel, so that mirrored heatmaps lie 3/4 pixel to the left. UDP's do not.

    Returns:
        (B, K, h, w), heatmaps' dtype.

    Raises:
        ValueError: a shape that is not (B, K, h, w) with the skeleton's K.

    Source:
        The released code of Xiao et al., ECCV 2018 (shift), and Huang et al., CVPR 2020 (why UDP needs none).
    """
    _check.tensor("flip_heatmaps", "heatmaps", heatmaps, "B K h w")
    _check_joints("flip_heatmaps", "heatmaps", heatmaps, skeleton)
    flipped = heatmaps[:, list(skeleton.mirror)].flip(3)
    return torch.cat([flipped[..., :1], flipped[..., :-1]], 3) if shift else flipped


def flip_simcc(simcc_x: Tensor, simcc_y: Tensor, skeleton: Skeleton) -> tuple[Tensor, Tensor]:
    """SimCC vectors of a mirrored crop, mirrored back: x reversed, left and right joints exchanged in both.

    Args:
        simcc_x, simcc_y: (B, K, bins).
        skeleton: of the K joints.

    Returns:
        The two, in their shapes.

    Raises:
        ValueError: shapes that are not (B, K, bins) with the skeleton's K.
    """
    for argument, value in (("simcc_x", simcc_x), ("simcc_y", simcc_y)):
        _check.tensor("flip_simcc", argument, value, "B K bins")
        _check_joints("flip_simcc", argument, value, skeleton)
    mirror = list(skeleton.mirror)
    return simcc_x[:, mirror].flip(2), simcc_y[:, mirror]


def _quarter(maps: Tensor, pixel: Tensor, blur: int) -> Tensor:
    at = _Neighbours(maps, pixel)
    step = torch.stack([at(1, 0) - at(-1, 0), at(0, 1) - at(0, -1)], -1).sign() / 4
    return step * at.inside(1)[..., None]


def _dark(maps: Tensor, pixel: Tensor, blur: int) -> Tensor:
    at = _Neighbours(_blurred(maps, blur).clamp(min=1e-10).log(), pixel)
    gx, gy = (at(1, 0) - at(-1, 0)) / 2, (at(0, 1) - at(0, -1)) / 2
    hxx, hyy = (at(2, 0) - 2 * at(0, 0) + at(-2, 0)) / 4, (at(0, 2) - 2 * at(0, 0) + at(0, -2)) / 4
    hxy = (at(1, 1) - at(1, -1) - at(-1, 1) + at(-1, -1)) / 4
    return _newton_step(gx, gy, hxx, hxy, hyy) * at.inside(2)[..., None]


def _udp(maps: Tensor, pixel: Tensor, blur: int) -> Tensor:
    at = _Neighbours(_blurred(maps, blur).clamp(0.001, 50).log(), pixel)
    gx, gy = (at(1, 0) - at(-1, 0)) / 2, (at(0, 1) - at(0, -1)) / 2
    eps = torch.finfo(torch.float32).eps
    hxx, hyy = at(1, 0) - 2 * at(0, 0) + at(-1, 0) + eps, at(0, 1) - 2 * at(0, 0) + at(0, -1) + eps
    hxy = (at(1, 1) - at(1, 0) - at(0, 1) + 2 * at(0, 0) - at(-1, 0) - at(0, -1) + at(-1, -1)) / 2
    return _newton_step(gx, gy, hxx, hxy, hyy)


def _newton_step(gx: Tensor, gy: Tensor, hxx: Tensor, hxy: Tensor, hyy: Tensor) -> Tensor:
    """-H^-1 g, and 0 where H has no inverse or the result is not finite."""
    determinant = hxx * hyy - hxy * hxy
    step = torch.stack([hxy * gy - hyy * gx, hxy * gx - hxx * gy], -1) / determinant[..., None]
    return torch.where(step.isfinite().all(-1, keepdim=True), step, 0.0)


class _Neighbours:
    """A map's values around each joint's pixel; beyond the borders the map is mirrored about its outermost pixels."""

    def __init__(self, maps: Tensor, pixel: Tensor) -> None:
        self.size = maps.shape[2:]
        self.flat, self.x, self.y = maps.flatten(2), pixel[..., 0], pixel[..., 1]

    def __call__(self, dx: int, dy: int) -> Tensor:
        height, width = self.size
        index = _mirrored(self.y + dy, height) * width + _mirrored(self.x + dx, width)
        return self.flat.gather(2, index[..., None])[..., 0]

    def inside(self, margin: int) -> Tensor:
        """Pixels with 1 < x < w - margin and 1 < y < h - margin, as the released code has it."""
        height, width = self.size
        return (self.x > 1) & (self.x < width - margin) & (self.y > 1) & (self.y < height - margin)


def _mirrored(index: Tensor, size: int) -> Tensor:
    index = index.abs()
    return torch.where(index < size, index, 2 * (size - 1) - index).clamp(0, size - 1)


def _blurred(maps: Tensor, taps: int) -> Tensor:
    """Under a Gaussian, with zeros around, then scaled to the same maximum."""
    rows, columns = (_band(size, taps, maps) for size in maps.shape[2:])
    blurred = rows @ maps @ columns  # banded; ten times faster than two convolutions of one channel
    return blurred * (maps.amax((2, 3), keepdim=True) / blurred.amax((2, 3), keepdim=True))


def _band(size: int, taps: int, like: Tensor) -> Tensor:
    """The symmetric matrix (size, size) that blurs a vector."""
    deviation = 0.3 * ((taps - 1) * 0.5 - 1) + 0.8
    place = torch.arange(max(size, taps), device=like.device, dtype=like.dtype)
    weights = torch.exp(-(place[:taps] - taps // 2).square() / (2 * deviation**2))
    apart = (place[:size, None] - place[:size]).abs()
    band = torch.exp(-apart.square() / (2 * deviation**2)) / weights.sum()
    return torch.where(apart <= taps // 2, band, 0.0)


def _settle(points: Tensor, scores: Tensor, empty: Tensor, nothing_found: str) -> tuple[Tensor, Tensor]:
    """The points of joints that were not found, by the caller's choice; NaN where there was nothing to look at."""
    if nothing_found != "keep":
        constant = 0.0 if nothing_found == "zero" else -1.0
        points = torch.where((scores > 0)[..., None], points, constant)
    return torch.where(empty[..., None], torch.nan, points), torch.where(empty, 0.0, scores)


def _check_maps(name: str, heatmaps: Tensor) -> None:
    _check.tensor(name, "heatmaps", heatmaps, "B K h w")
    _check.floating(name, "heatmaps", heatmaps)
    if 0 in heatmaps.shape[2:]:
        raise ValueError(f"{name}: heatmaps must have at least one pixel, got {tuple(heatmaps.shape)}")


def _check_joints(name: str, argument: str, value: Tensor, skeleton: Skeleton) -> None:
    if value.shape[1] != len(skeleton):
        raise ValueError(
            f"{name}: {argument} must have {len(skeleton)} joints ({skeleton.name}) on dimension 1, got "
            f"{tuple(value.shape)}"
        )
