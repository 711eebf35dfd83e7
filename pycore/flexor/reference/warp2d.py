# SPDX-License-Identifier: Apache-2.0
"""Warping in plain PyTorch, by a dense flow or by an affine matrix."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .bilinear import Corner, compute_dtype, corners, nearest, read, write


def warp2d(input: Tensor, flow: Tensor, mode: str = "bilinear", padding_mode: str = "zeros") -> Tensor:
    """Reads the input at p + flow(p); see `flexor.ops.warp2d`, whose twin this is."""
    y, x = _flow_positions(flow.to(compute_dtype(input)))
    return _sample(input, y, x, mode, padding_mode, flow.shape[2:])


def warp2d_backward(
    grad_output: Tensor, input: Tensor, flow: Tensor, mode: str, padding_mode: str
) -> tuple[Tensor, Tensor]:
    """Gradients of `warp2d` for (input, flow), written out so that they differentiate."""
    y, x = _flow_positions(flow.to(compute_dtype(input)))
    grad_input, grad_y, grad_x = _sample_backward(grad_output, input, y, x, mode, padding_mode)
    return grad_input, torch.stack((grad_x, grad_y), 1).reshape(flow.shape).to(flow.dtype)


def affine_warp2d(
    input: Tensor,
    matrix: Tensor,
    size: tuple[int, int] | None = None,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
) -> Tensor:
    """Reads the input at M^-1 p; see `flexor.ops.affine_warp2d`, whose twin this is."""
    size = (input.shape[2], input.shape[3]) if size is None else size
    return inverse_affine_warp2d(input, invert_affine(matrix).to(compute_dtype(input)), size, mode, padding_mode)


def inverse_affine_warp2d(
    input: Tensor, inverse_matrix: Tensor, size: tuple[int, int], mode: str, padding_mode: str
) -> Tensor:
    """Reads the input at A p, for A = inverse_matrix [B, 2, 3] from destination to source pixels."""
    y, x = _affine_positions(inverse_matrix.to(compute_dtype(input)), size)
    return _sample(input, y, x, mode, padding_mode, size)


def inverse_affine_warp2d_backward(
    grad_output: Tensor, input: Tensor, inverse_matrix: Tensor, size: tuple[int, int], mode: str, padding_mode: str
) -> tuple[Tensor, Tensor]:
    """Gradients of `inverse_affine_warp2d` for (input, inverse_matrix), written out so that they differentiate."""
    y, x = _affine_positions(inverse_matrix.to(compute_dtype(input)), size)
    grad_input, grad_y, grad_x = _sample_backward(grad_output, input, y, x, mode, padding_mode)
    rows = torch.stack((grad_x, grad_y), 1)[:, :, None]  # [B, 2, 1, oh*ow]
    return grad_input, (rows * _pixels(size, rows)).sum(3).to(inverse_matrix.dtype)


def invert_affine(matrix: Tensor) -> Tensor:
    """The inverse of [B, 2, 3] affine maps, in float32 at least; a singular one becomes infinite or NaN."""
    matrix = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    a, b, c, d = matrix[:, 0, 0], matrix[:, 0, 1], matrix[:, 1, 0], matrix[:, 1, 1]
    linear = torch.stack((d, -b, -c, a), 1).reshape(-1, 2, 2) / (a * d - b * c)[:, None, None]
    shift = -(linear * matrix[:, None, :, 2]).sum(2, keepdim=True)  # no matmul: autocast and TF32 would round it
    return torch.cat((linear, shift), 2)


def _pixels(size: tuple[int, int], like: Tensor) -> Tensor:
    """Every destination pixel as a column (x, y, 1): [3, oh*ow]."""
    y = torch.arange(size[0], device=like.device, dtype=like.dtype).repeat_interleave(size[1])
    x = torch.arange(size[1], device=like.device, dtype=like.dtype).repeat(size[0])
    return torch.stack((x, y, torch.ones_like(x)))


def _affine_positions(inverse_matrix: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    x, y, one = _pixels(size, inverse_matrix)
    sources = [m[:, 0:1] * x + m[:, 1:2] * y + m[:, 2:3] * one for m in inverse_matrix.unbind(1)]
    return sources[1], sources[0]


def _flow_positions(flow: Tensor) -> tuple[Tensor, Tensor]:
    height, width = flow.shape[2:]
    y = flow[:, 1] + torch.arange(height, device=flow.device, dtype=flow.dtype)[:, None]
    x = flow[:, 0] + torch.arange(width, device=flow.device, dtype=flow.dtype)
    return y.reshape(-1, height * width), x.reshape(-1, height * width)


def _into_image(y: Tensor, size: int) -> Tensor:
    """Clamps to the image; a clamped coordinate, one on the border included, is a constant. NaN stays."""
    y = torch.where(y >= size - 1, torch.full_like(y, size - 1), y)
    return torch.where(y <= 0, torch.zeros_like(y), y)


def _corners(y: Tensor, x: Tensor, input: Tensor, mode: str, padding_mode: str) -> Iterator[Corner]:
    height, width = input.shape[2:]
    if padding_mode == "border":
        y, x = _into_image(y, height), _into_image(x, width)
    return (corners if mode == "bilinear" else nearest)(y, x, height, width)


def _sample(input: Tensor, y: Tensor, x: Tensor, mode: str, padding_mode: str, size: tuple[int, int]) -> Tensor:
    image = input.to(y.dtype).flatten(2)
    output = image.new_zeros(*input.shape[:2], y.shape[1])
    for corner in _corners(y, x, input, mode, padding_mode):
        output = output + corner.weight[:, None] * read(image, corner)
    return output.reshape(*input.shape[:2], *size).to(input.dtype)


def _sample_backward(
    grad_output: Tensor, input: Tensor, y: Tensor, x: Tensor, mode: str, padding_mode: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for the input, in its dtype, and for y and x, [B, P] in theirs."""
    image, grad = input.to(y.dtype).flatten(2), grad_output.to(y.dtype).flatten(2)
    grad_image, grad_y, grad_x = torch.zeros_like(image), torch.zeros_like(y), torch.zeros_like(x)
    for corner in _corners(y, x, input, mode, padding_mode):
        products = (grad * read(image, corner)).sum(1)
        grad_image = write(grad_image, corner, corner.weight[:, None] * grad)
        grad_y = grad_y + corner.weight_dy * products
        grad_x = grad_x + corner.weight_dx * products
    if padding_mode == "border":
        grad_y = grad_y.masked_fill((y <= 0) | (y >= input.shape[2] - 1), 0)
        grad_x = grad_x.masked_fill((x <= 0) | (x >= input.shape[3] - 1), 0)
    return grad_image.reshape(input.shape).to(input.dtype), grad_y, grad_x
