# SPDX-License-Identifier: Apache-2.0
"""Cross-correlation with kernels of every sample's own, in plain PyTorch: a sum over the taps of a kernel."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .bilinear import compute_dtype

Pair = tuple[int, int]


def xcorr2d(input: Tensor, kernel: Tensor, padding: Pair = (0, 0)) -> Tensor:
    """Sums over the channels; see `flexor.ops.xcorr2d`, whose twin this is."""
    dtype = compute_dtype(input)
    oh, ow = _output_size(input, kernel, padding)
    output = input.new_zeros(input.shape[0], kernel.shape[1], oh * ow, dtype=dtype)
    for i, j, window in _windows(input.to(dtype), kernel, padding):
        output = output + kernel[..., i, j].to(dtype) @ window.flatten(2)
    return output.unflatten(2, (oh, ow)).to(input.dtype)


def xcorr2d_backward(grad_output: Tensor, input: Tensor, kernel: Tensor, padding: Pair) -> tuple[Tensor, Tensor]:
    """Gradients of `xcorr2d` for (input, kernel), written out so that they differentiate."""
    dtype = compute_dtype(input)
    grad = grad_output.to(dtype).flatten(2)
    grad_input, taps = input.new_zeros(input.shape, dtype=dtype), []
    for i, j, window in _windows(input.to(dtype), kernel, padding):
        spread = kernel[..., i, j].to(dtype).mT @ grad
        grad_input = grad_input + _unwindow(spread.unflatten(2, grad_output.shape[2:]), i, j, input, padding)
        taps.append(grad @ window.flatten(2).mT)
    return grad_input.to(input.dtype), _kernel_of(taps, kernel)


def xcorr2d_depthwise(input: Tensor, kernel: Tensor, padding: Pair = (0, 0)) -> Tensor:
    """Correlates every channel on its own; see `flexor.ops.xcorr2d_depthwise`, whose twin this is."""
    dtype = compute_dtype(input)
    output = input.new_zeros(*kernel.shape[:2], *_output_size(input, kernel, padding), dtype=dtype)
    for i, j, window in _windows(input.to(dtype), kernel, padding):
        output = output + kernel[..., i, j].to(dtype)[..., None, None] * window
    return output.to(input.dtype)


def xcorr2d_depthwise_backward(
    grad_output: Tensor, input: Tensor, kernel: Tensor, padding: Pair
) -> tuple[Tensor, Tensor]:
    """Gradients of `xcorr2d_depthwise` for (input, kernel), written out so that they differentiate."""
    dtype = compute_dtype(input)
    grad = grad_output.to(dtype)
    grad_input, taps = input.new_zeros(input.shape, dtype=dtype), []
    for i, j, window in _windows(input.to(dtype), kernel, padding):
        spread = kernel[..., i, j].to(dtype)[..., None, None] * grad
        grad_input = grad_input + _unwindow(spread, i, j, input, padding)
        taps.append((grad * window).sum((2, 3)))
    return grad_input.to(input.dtype), _kernel_of(taps, kernel)


def _output_size(input: Tensor, kernel: Tensor, padding: Pair) -> tuple[int, int]:
    kh, kw = kernel.shape[-2:]
    return input.shape[2] + 2 * padding[0] - kh + 1, input.shape[3] + 2 * padding[1] - kw + 1


def _windows(input: Tensor, kernel: Tensor, padding: Pair) -> Iterator[tuple[int, int, Tensor]]:
    """For every tap (i, j), the part of the padded input that it is multiplied with: [B, C, oh, ow]."""
    oh, ow = _output_size(input, kernel, padding)
    padded = F.pad(input, (padding[1], padding[1], padding[0], padding[0]))
    for i in range(kernel.shape[-2]):
        for j in range(kernel.shape[-1]):
            yield i, j, padded[..., i : i + oh, j : j + ow]


def _unwindow(window: Tensor, i: int, j: int, input: Tensor, padding: Pair) -> Tensor:
    """The transpose of cutting out a window: back to its place in an input of zeros, without the padding."""
    (height, width), (oh, ow) = input.shape[2:], window.shape[2:]
    top, left = i - padding[0], j - padding[1]
    return F.pad(window, (left, width - left - ow, top, height - top - oh))


def _kernel_of(taps: list[Tensor], kernel: Tensor) -> Tensor:
    return torch.stack(taps, -1).unflatten(-1, kernel.shape[-2:]).to(kernel.dtype)
