# SPDX-License-Identifier: Apache-2.0
"""From a person's box to the network's input and back: boxes, crop matrices, crops, points."""

from __future__ import annotations

import math

import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ...ops import affine_warp2d

ENLARGE = 1.25  # of a box before it is cropped, in every top-down recipe since SimpleBaseline
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, red green blue


def box_to_center_extent(
    box: ArrayLike | Tensor, size: tuple[int, int], *, enlarge: float = ENLARGE
) -> tuple[Tensor, Tensor]:
    """Center and sides of the region that a box's crop shows: the box grown to the crop's aspect, then enlarged.

        center = (x + w/2, y + h/2);   a = W/H;   (w, h) -> (w, w/a) if w > a h else (a h, h);   extent = enlarge (w, h)

    Args:
        box: (..., 4), left, top, width, height, pixels.
        size: (H, W) of the crop.
        enlarge: what the region's sides are multiplied by.

    Returns:
        Center (..., 2) and extent (..., 2), x before y, float64, pixels. The originals' `scale` is extent / 200.

    Raises:
        ValueError: a box that is not finite or has no extent, a size or enlarge that is not positive.
    """
    return _center_extent("box_to_center_extent", box, size, enlarge)


def crop_affine(
    box: ArrayLike | Tensor,
    size: tuple[int, int],
    *,
    enlarge: float = ENLARGE,
    rotation: float | Tensor = 0.0,
    udp: bool = False,
    udp_box_intervals: bool = False,
) -> Tensor:
    """The matrix that takes image pixels to pixels of a box's crop.

        biased:  p' = W/e_x R (p - center) + (W, H)/2                          e = extent, R turns by -rotation
        UDP:     p' = ((W - 1)/e_x, (H - 1)/e_y) * R (p - center) + (W - 1, H - 1)/2
        UDP with udp_box_intervals:  p' = (W - 1)/(e_x - 1) R (p - center) + (W - 1, H - 1)/2

    Args:
        box: (..., 4), left, top, width, height, pixels; grown and enlarged as `box_to_center_extent` does.
        size: (H, W) of the crop. With the heatmap's size the points are heatmap pixels.
        enlarge: what the region's sides are multiplied by.
        rotation: degrees by which the cropped region is turned in the image, clockwise as one sees it, a number or
            (...); the person in the crop turns the other way.
        udp: unbiased data processing: sides are counted in pixel intervals.
        udp_box_intervals: counts the box's sides in intervals too, as FAMI-Pose's training crops do; the released
            decoding does not undo it.

    Returns:
        (..., 2, 3) float64.

    Raises:
        ValueError: as `box_to_center_extent`; udp_box_intervals without udp, or with a region no wider than a pixel.

    Source:
        Xiao et al., Simple Baselines for Human Pose Estimation and Tracking, ECCV 2018 (biased); Huang et al., The
        Devil is in the Details: Delving into Unbiased Data Processing for Human Pose Estimation, CVPR 2020 (UDP).
    """
    if udp_box_intervals and not udp:
        raise ValueError("crop_affine: udp_box_intervals needs udp=True: the biased crop counts no intervals")
    check_size("crop_affine", "size", size, 1 + int(udp))
    center, extent = _center_extent("crop_affine", box, size, enlarge)
    if udp_box_intervals and bool((extent[..., 0] <= 1).any()):
        raise ValueError("crop_affine: udp_box_intervals needs regions wider than a pixel: drop narrower boxes first")
    sides = center.new_tensor([size[1], size[0]]) - int(udp)
    if udp and not udp_box_intervals:
        scale = sides / extent
    else:
        scale = (sides[0] / (extent[..., :1] - int(udp))).expand_as(extent)
    linear = scale[..., None] * _turn(rotation, center)
    shift = sides[:, None] / 2 - linear @ center[..., None]
    return torch.cat([linear, shift], -1)


def crop(
    image: NDArray | Tensor,
    matrix: Tensor,
    size: tuple[int, int],
    *,
    normalise: bool = True,
    swap_red_and_blue: bool = False,
) -> Tensor:
    """Cuts a person out of an image: bilinear, black outside, then each channel (value/255 - mean) / std.

        output[c, p'] = (image[M^-1 p', c] / 255 - mean_c) / std_c

    Positions and values are not rounded; OpenCV's warpAffine rounds positions to 1/32 pixel and values to whole
    levels.

    Args:
        image: (H, W, 3) uint8, red green blue, an array or a tensor on any device.
        matrix: (2, 3) or (N, 2, 3), from image to crop pixels, as `crop_affine` gives it.
        size: (h, w) of the crop.
        normalise: subtract ImageNet's mean and divide by its deviation; without, values stay in 0..1.
        swap_red_and_blue: feed blue as red, as DCPose's demo does, which reads images with OpenCV.

    Returns:
        (3, h, w) or (N, 3, h, w) float32, on the image's device.

    Raises:
        TypeError: an image that is not uint8.
        ValueError: shapes that do not fit, a matrix that is not finite or cannot be inverted.
    """
    pixels = torch.as_tensor(image)
    if pixels.dtype != torch.uint8:
        raise TypeError(f"crop: image must be uint8 with values 0..255, got {pixels.dtype}")
    if pixels.dim() != 3 or pixels.shape[2] != 3:
        raise ValueError(f"crop: image must be (H, W, 3), got {tuple(pixels.shape)}")
    check_size("crop", "size", size)
    matrices = _matrices("crop", matrix)
    if matrices.dim() > 3:
        raise ValueError(f"crop: matrix must be (2, 3) or (N, 2, 3), got {tuple(matrices.shape)}")
    if swap_red_and_blue:
        pixels = pixels.flip(2)
    crops = [_cut(pixels, m, size) for m in matrices.reshape(-1, 2, 3)]
    output = torch.stack(crops) if crops else pixels.new_empty((0, 3, *size), dtype=torch.float32)
    output = output / 255
    if normalise:
        output = (output - output.new_tensor(MEAN)[:, None, None]) / output.new_tensor(STD)[:, None, None]
    return output if matrices.dim() == 3 else output[0]


def to_crop(points: ArrayLike | Tensor, matrix: Tensor) -> Tensor:
    """Image points as pixels of a crop: p' = M p.

    Args:
        points: (..., K, 2), x before y.
        matrix: (..., 2, 3), from image to crop.

    Returns:
        (..., K, 2) float64.
    """
    m = _matrices("to_crop", matrix)
    return _points("to_crop", points, m) @ m[..., :2].mT + m[..., None, :, 2]


def to_image(points: ArrayLike | Tensor, matrix: Tensor, *, whole_pixels: bool = False) -> Tensor:
    """A crop's points as image pixels: p = M^-1 p'.

    Args:
        points: (..., K, 2), x before y.
        matrix: (..., 2, 3), from image to crop.
        whole_pixels: cut the fractions off, as DCPose's demo does.

    Returns:
        (..., K, 2) float64.

    Raises:
        ValueError: shapes that do not fit, a matrix that is not finite or cannot be inverted.
    """
    m = _matrices("to_image", matrix)
    found = (_points("to_image", points, m) - m[..., None, :, 2]) @ torch.linalg.inv(m[..., :2]).mT
    return found.trunc() if whole_pixels else found


def _cut(pixels: Tensor, matrix: Tensor, size: tuple[int, int]) -> Tensor:
    """One crop, 0..255. Only the part of the image that the crop shows becomes floating point."""
    height, width = size
    corners = pixels.new_tensor([[0, 0], [width - 1, 0], [0, height - 1], [width - 1, height - 1]], dtype=torch.float64)
    seen = to_image(corners, matrix)
    limit = torch.tensor([pixels.shape[1], pixels.shape[0]], dtype=torch.float64, device=seen.device)
    low = torch.minimum((seen.amin(0).floor() - 1).clamp(min=0), limit).int().tolist()
    high = torch.minimum((seen.amax(0).ceil() + 2).clamp(min=0), limit).int().tolist()
    part = pixels[low[1] : high[1], low[0] : high[0]].permute(2, 0, 1)[None].float()
    if part.numel() == 0:
        return torch.zeros((3, height, width), device=pixels.device)
    moved = matrix.clone()
    moved[:, 2] += matrix[:, :2] @ matrix.new_tensor(low)
    return affine_warp2d(part, moved[None].to(part.device), size)[0]


def _turn(rotation: float | Tensor, like: Tensor) -> Tensor:
    """Rotation matrices (..., 2, 2) by -rotation degrees."""
    angle = torch.deg2rad(torch.as_tensor(rotation, dtype=torch.float64, device=like.device))
    if not bool(torch.isfinite(angle).all()):
        raise ValueError(f"crop_affine: rotation must be finite, got {rotation}")
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, sin], -1), torch.stack([-sin, cos], -1)], -2)


def check_size(op: str, argument: str, size: tuple[int, int], smallest: int = 1) -> None:
    """Refuses what is not (height, width) in pixels; UDP, which counts intervals, needs two of each."""
    if len(size) != 2 or not all(isinstance(side, int) and side >= smallest for side in size):
        raise ValueError(f"{op}: {argument} must be (height, width), integers not below {smallest}, got {tuple(size)}")


def _center_extent(op: str, box: ArrayLike | Tensor, size: tuple[int, int], enlarge: float) -> tuple[Tensor, Tensor]:
    boxes = _boxes(op, box)
    check_size(op, "size", size)
    if not (math.isfinite(enlarge) and enlarge > 0):
        raise ValueError(f"{op}: enlarge must be a positive number, got {enlarge}")
    aspect = size[1] / size[0]
    w = torch.maximum(boxes[..., 2], aspect * boxes[..., 3])
    return boxes[..., :2] + boxes[..., 2:] / 2, enlarge * torch.stack([w, w / aspect], -1)


def _boxes(op: str, box: ArrayLike | Tensor) -> Tensor:
    boxes = torch.as_tensor(box, dtype=torch.float64)
    if boxes.dim() < 1 or boxes.shape[-1] != 4:
        raise ValueError(f"{op}: box must be (..., 4): left, top, width, height, got {tuple(boxes.shape)}")
    sides = boxes[..., 2:]
    if not bool(torch.isfinite(boxes).all() and (sides >= 0).all() and (sides.amax(-1) > 0).all()):
        raise ValueError(
            f"{op}: a box must be finite, its sides not negative and not both 0, got {boxes.tolist()}: "
            "drop such boxes first"
        )
    return boxes


def _matrices(op: str, matrix: Tensor) -> Tensor:
    m = torch.as_tensor(matrix, dtype=torch.float64)
    if m.dim() < 2 or tuple(m.shape[-2:]) != (2, 3):
        raise ValueError(f"{op}: matrix must be (..., 2, 3), got {tuple(m.shape)}")
    if not bool(torch.isfinite(m).all() and (torch.linalg.det(m[..., :2]) != 0).all()):
        raise ValueError(f"{op}: matrix must be finite and invertible, got {m.tolist()}")
    return m


def _points(op: str, points: ArrayLike | Tensor, matrix: Tensor) -> Tensor:
    p = torch.as_tensor(points, dtype=torch.float64, device=matrix.device)
    if p.dim() < 2 or p.shape[-1] != 2:
        raise ValueError(f"{op}: points must be (..., K, 2), got {tuple(p.shape)}")
    if matrix.dim() > 2 and p.shape[:-2] != matrix.shape[:-2]:
        raise ValueError(
            f"{op}: points (..., K, 2) and matrix (..., 2, 3) must agree in front, got {tuple(p.shape)} and "
            f"{tuple(matrix.shape)}"
        )
    return p
