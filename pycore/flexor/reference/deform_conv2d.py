# SPDX-License-Identifier: Apache-2.0
"""Deformable convolution in plain PyTorch: the oracle, the last resort, and the second derivative."""

from __future__ import annotations

import torch
from torch import Tensor

from .bilinear import compute_dtype, corners, read, write

Pair = tuple[int, int]


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    mask: Tensor | None = None,
) -> Tensor:
    """Convolves the input at displaced positions; see `flexor.ops.deform_conv2d`, whose twin this is."""
    dtype = compute_dtype(input)
    samples = _sample(input, offset, weight, stride, padding, dilation)
    columns = _columns(samples, mask, input, weight)
    output = _grouped(weight.to(dtype), columns.shape[1]) @ columns  # [N, G, O/G, oh*ow]
    output = output.reshape(input.shape[0], weight.shape[0], *offset.shape[2:])
    if bias is not None:
        output = output + bias.to(dtype)[:, None, None]
    return output.to(input.dtype)


def deform_conv2d_backward(
    grad_output: Tensor,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of `deform_conv2d` for (input, offset, weight, bias, mask), written out so that they differentiate."""
    dtype = compute_dtype(input)
    n, c, h, w = input.shape
    taps = weight.shape[2] * weight.shape[3]
    dg = offset.shape[1] // (2 * taps)
    groups = c // weight.shape[1]
    spatial = offset.shape[2:]
    positions = taps * spatial[0] * spatial[1]

    grad = grad_output.to(dtype).reshape(n, groups, weight.shape[0] // groups, spatial[0] * spatial[1])
    grad_columns = _grouped(weight.to(dtype), groups).mT @ grad  # [N, G, C/G*K, oh*ow]
    grad_columns = grad_columns.reshape(n * dg, c // dg, positions)
    modulation = 1 if mask is None else mask.to(dtype).reshape(n * dg, 1, positions)
    grad_samples = grad_columns * modulation

    y, x = _positions(offset.to(dtype), weight.shape[2:], stride, padding, dilation)
    image = input.to(dtype).reshape(n * dg, c // dg, h * w)
    samples = torch.zeros_like(grad_samples)
    grad_image, grad_y, grad_x = torch.zeros_like(image), torch.zeros_like(y), torch.zeros_like(x)
    for corner in corners(y, x, h, w):
        values = read(image, corner)
        samples = samples + corner.weight[:, None] * values
        grad_image = write(grad_image, corner, corner.weight[:, None] * grad_samples)
        products = (grad_samples * values).sum(1)
        grad_y = grad_y + corner.weight_dy * products
        grad_x = grad_x + corner.weight_dx * products

    columns = _columns(samples, mask, input, weight)
    grad_offset = torch.stack((grad_y.reshape(-1, *spatial), grad_x.reshape(-1, *spatial)), 1)
    return (
        grad_image.reshape(input.shape).to(input.dtype),
        grad_offset.reshape(offset.shape).to(offset.dtype),
        (grad @ columns.mT).sum(0).reshape(weight.shape).to(weight.dtype),
        None if bias is None else grad.sum((0, 3)).reshape(bias.shape).to(bias.dtype),
        None if mask is None else (grad_columns * samples).sum(1).reshape(mask.shape).to(mask.dtype),
    )


def _positions(offset: Tensor, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> tuple[Tensor, Tensor]:
    """Where every tap of every output pixel reads: y and x, each [N*dg, K*oh*ow], in pixels of the input."""
    n, channels, oh, ow = offset.shape
    kh, kw = kernel
    dg = channels // (2 * kh * kw)
    displacement = offset.reshape(n, dg, kh, kw, 2, oh, ow)

    def grid(taps: int, pixels: int, axis: int) -> Tensor:
        tap = torch.arange(taps, device=offset.device, dtype=offset.dtype) * dilation[axis]
        pixel = torch.arange(pixels, device=offset.device, dtype=offset.dtype) * stride[axis] - padding[axis]
        return tap[:, None] + pixel

    y = displacement[..., 0, :, :] + grid(kh, oh, 0)[:, None, :, None]  # [N, dg, kh, kw, oh, ow]
    x = displacement[..., 1, :, :] + grid(kw, ow, 1)[:, None, :]
    return y.reshape(n * dg, kh * kw * oh * ow), x.reshape(n * dg, kh * kw * oh * ow)


def _sample(input: Tensor, offset: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    """The input at every position, before the mask: [N*dg, C/dg, K*oh*ow]."""
    dtype = compute_dtype(input)
    n, c, h, w = input.shape
    dg = offset.shape[1] // (2 * weight.shape[2] * weight.shape[3])
    y, x = _positions(offset.to(dtype), weight.shape[2:], stride, padding, dilation)
    image = input.to(dtype).reshape(n * dg, c // dg, h * w)
    samples = image.new_zeros(n * dg, c // dg, y.shape[1])
    for corner in corners(y, x, h, w):
        samples = samples + corner.weight[:, None] * read(image, corner)
    return samples


def _columns(samples: Tensor, mask: Tensor | None, input: Tensor, weight: Tensor) -> Tensor:
    """Samples times mask as the right-hand matrices of the convolution: [N, G, C/G*K, oh*ow]."""
    if mask is not None:
        samples = samples * mask.to(samples.dtype).reshape(samples.shape[0], 1, samples.shape[2])
    n, c, taps = input.shape[0], input.shape[1], weight.shape[2] * weight.shape[3]
    groups = c // weight.shape[1]
    return samples.reshape(n, groups, weight.shape[1] * taps, samples.shape[2] // taps)


def _grouped(weight: Tensor, groups: int) -> Tensor:
    """Weight [O, C/G, kh, kw] as [G, O/G, C/G*K]."""
    return weight.reshape(groups, weight.shape[0] // groups, -1)
