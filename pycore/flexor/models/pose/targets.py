# SPDX-License-Identifier: Apache-2.0
"""What the networks are trained towards: Gaussian heatmaps, SimCC labels, and the losses."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ...ops import _check
from .geometry import check_size

KINDS = ("biased", "unbiased", "udp")


def gaussian_targets(
    joints: Tensor,
    visible: Tensor,
    input_size: tuple[int, int],
    heatmap_size: tuple[int, int],
    *,
    sigma: float = 2.0,
    kind: str = "biased",
) -> tuple[Tensor, Tensor]:
    """A Gaussian of height 1 on every joint's heatmap.

        biased:    exp(-|p - m|^2 / 2 sigma^2) where |p - m|_max <= 3 sigma;  m = int(u + 1/2)
        unbiased:  exp(-|p - u|^2 / 2 sigma^2);  u = joint / stride, stride = W/w, for DARK
        udp:       exp(-|p - u|^2 / 2 sigma^2) where |p - int(u + 1/2)|_max <= 3 sigma;  stride = (W - 1)/(w - 1)

    Args:
        joints: (B, K, 2), x before y, in pixels of the network's input; floating point.
        visible: (B, K), above 0.5 for joints to be learned; numbers.
        input_size: (H, W) of the network's input.
        heatmap_size: (h, w).
        sigma: heatmap pixels: 2 for inputs of 256 x 192, 3 for 384 x 288.
        kind: one of these three.

    Returns:
        Heatmaps (B, K, h, w) and weights (B, K), 1 or 0, both float32 (float64 for float64 joints). Weight and
        heatmap are 0 for joints that are invisible, not finite, outside [0, W] x [0, H], or whose square of 3 sigma
        misses the map.

    Raises:
        ValueError: shapes that do not fit, sizes or a sigma that are not positive, an unknown kind.
        TypeError: joints that are not floating point.

    Source:
        biased: Xiao et al., ECCV 2018; unbiased: Zhang et al., Distribution-Aware Coordinate Representation for Human
        Pose Estimation, CVPR 2020, section 3.3; udp: Huang et al., CVPR 2020.
    """
    name = "gaussian_targets"
    _check_joints(name, joints, visible)
    _check.one_of(name, "kind", kind, KINDS)
    smallest = 2 if kind == "udp" else 1
    for argument, size in (("input_size", input_size), ("heatmap_size", heatmap_size)):
        check_size(name, argument, size, smallest)
    _check_sigma(name, sigma)
    places = joints.to(_dtype(joints)).nan_to_num(nan=-1.0, posinf=-1.0, neginf=-1.0)
    image, map_ = (places.new_tensor([size[1], size[0]]) for size in (input_size, heatmap_size))
    center = places * ((map_ - 1) / (image - 1) if kind == "udp" else map_ / image)
    middle = (center + 0.5).trunc()  # as Python's int: -0.2 is pixel 0
    reach = 3 * sigma
    learned = (visible > 0.5) & ((places >= 0) & (places <= image)).all(2)
    learned &= ((middle + reach >= 0) & (middle - reach < map_)).all(2)
    axes = []
    for axis in (0, 1):
        pixel = torch.arange(heatmap_size[1 - axis], dtype=places.dtype, device=places.device)
        mean = middle if kind == "biased" else center
        bell = torch.exp(-(pixel - mean[..., axis, None]).square() / (2 * sigma**2))
        window = (pixel - middle[..., axis, None]).abs() <= reach
        axes.append(bell if kind == "unbiased" else bell * window)
    weights = learned.to(places.dtype)
    return axes[1][..., :, None] * axes[0][..., None, :] * weights[..., None, None], weights


def simcc_targets(
    joints: Tensor,
    visible: Tensor,
    input_size: tuple[int, int],
    *,
    sigma: tuple[float, float] = (4.9, 5.66),
    split: float = 2.0,
    normalise: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """A Gaussian over the bins of each coordinate.

        x[i] = exp(-(i - round(split joint_x))^2 / 2 sigma_x^2),  divided by sigma_x sqrt(2 pi) if normalise;  y alike

    Args:
        joints: (B, K, 2), x before y, in pixels of the network's input; floating point.
        visible: (B, K), above 0.5 for joints to be learned; numbers.
        input_size: (H, W) of the network's input.
        sigma: of x and of y, in bins: RTMPose has (4.9, 5.66) for inputs of 256 x 192 and (6, 6.93) for 384 x 288.
        split: bins a pixel.
        normalise: divide by the integral; RTMPose does not.

    Returns:
        x (B, K, split W), y (B, K, split H) and weights (B, K), 1 or 0, all float32 (float64 for float64 joints).
        They are 0 for joints that are invisible, not finite, or farther than 3 sigma outside.

    Raises:
        ValueError: shapes that do not fit, a size, sigma or split that is not positive.
        TypeError: joints that are not floating point.

    Source:
        Li et al., SimCC, ECCV 2022; Jiang et al., RTMPose, arXiv 2303.07399, section 3.3.
    """
    name = "simcc_targets"
    _check_joints(name, joints, visible)
    check_size(name, "input_size", input_size)
    _check_sigma(name, *sigma)
    if not split > 0:
        raise ValueError(f"{name}: split must be a positive number of bins a pixel, got {split}")
    finite = joints.isfinite().all(2)
    middle = (joints.to(_dtype(joints)).nan_to_num(posinf=0.0, neginf=0.0) * split).round()
    bins = [round(input_size[1] * split), round(input_size[0] * split)]
    learned, axes = (visible > 0.5) & finite, []
    for axis in (0, 1):
        place = torch.arange(bins[axis], dtype=middle.dtype, device=middle.device)
        mean = middle[..., axis]
        learned = learned & (mean + 3 * sigma[axis] >= 0) & (mean - 3 * sigma[axis] < bins[axis])
        bell = torch.exp(-(place - mean[..., None]).square() / (2 * sigma[axis] ** 2))
        axes.append(bell / (sigma[axis] * math.sqrt(2 * math.pi)) if normalise else bell)
    weights = learned.to(middle.dtype)
    return axes[0] * weights[..., None], axes[1] * weights[..., None], weights


def joints_mse_loss(prediction: Tensor, target: Tensor, weights: Tensor, *, half: bool = False) -> Tensor:
    """The mean squared error of weighted heatmaps.

        L = 1/K sum_j mean_{b,p} (w_bj P_bjp - w_bj G_bjp)^2,  halved if half

    Args:
        prediction, target: (B, K, h, w).
        weights: (B, K).
        half: HRNet, SimpleBaseline and OKDHP have the factor 1/2, DCPose and FAMI-Pose do not.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes that do not fit.
    """
    name = "joints_mse_loss"
    _check.tensor(name, "prediction", prediction, "B K h w")
    _check.shape(name, "target.shape", target, tuple(prediction.shape), "prediction's")
    _check.shape(name, "weights.shape", weights, tuple(prediction.shape[:2]), "(B, K)")
    scale = weights[..., None, None]
    loss = F.mse_loss(prediction * scale, target * scale)
    return loss / 2 if half else loss


def simcc_loss(
    prediction: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor], weights: Tensor, *, beta: float = 10.0
) -> Tensor:
    """The divergence of predicted from target distributions over the bins of both coordinates.

        L = 1/K sum_{b,j} w_bj sum_axis mean_i t_i (log t_i - log p_i);   p = softmax(beta prediction), t alike

    A sum over the batch, as published, not a mean.

    Args:
        prediction: x (B, K, split W) and y (B, K, split H).
        target: the same shapes, as `simcc_targets` gives them.
        weights: (B, K).
        beta: inverse temperature of both softmaxes.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes that do not fit.

    Source:
        Jiang et al., RTMPose, arXiv 2303.07399, section 3.3.
    """
    total = weights.new_zeros(())
    for axis, p, t in zip("xy", prediction, target, strict=True):
        _check.tensor("simcc_loss", f"prediction {axis}", p, "B K bins")
        _check.shape("simcc_loss", f"target {axis}.shape", t, tuple(p.shape), "prediction's")
        _check.shape("simcc_loss", "weights.shape", weights, tuple(p.shape[:2]), "(B, K)")
        divergence = F.kl_div((beta * p).log_softmax(2), (beta * t).softmax(2), reduction="none").mean(2)
        total = total + (divergence * weights).sum()
    return total / max(weights.shape[1], 1)


def _dtype(joints: Tensor) -> torch.dtype:
    return torch.float64 if joints.dtype == torch.float64 else torch.float32


def _check_joints(name: str, joints: Tensor, visible: Tensor) -> None:
    _check.tensor(name, "joints", joints, "B K 2")
    _check.floating(name, "joints", joints)
    _check.shape(name, "joints.shape", joints, (*joints.shape[:2], 2), "(B, K, 2)")
    _check.tensor(name, "visible", visible, "B K")
    _check.shape(name, "visible.shape", visible, tuple(joints.shape[:2]), "(B, K)")


def _check_sigma(name: str, *sigmas: float) -> None:
    if not all(math.isfinite(sigma) and sigma > 0 for sigma in sigmas):
        raise ValueError(f"{name}: sigma must be positive, got {', '.join(map(str, sigmas))}")
