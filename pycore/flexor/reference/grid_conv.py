# SPDX-License-Identifier: Apache-2.0
"""Grid convolution in plain PyTorch: the oracle, the last resort, and the second derivative."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .bilinear import compute_dtype

Size = tuple[int, int]


def grid_conv(
    input: Tensor,
    weight1: Tensor,
    weight2: Tensor | None = None,
    bias1: Tensor | None = None,
    bias2: Tensor | None = None,
    attention: Tensor | None = None,
    borders: str = "cr",
) -> Tensor:
    """Convolves a grid of any size with one kernel a border; see `flexor.ops.grid_conv`, whose twin this is."""
    dtype = compute_dtype(input)
    products = []
    for weight, (index, inside) in _branches(input, weight1, weight2, borders):
        columns = _modulated(_read(input.to(dtype), index), attention, inside)
        products.append(weight.to(dtype).flatten(1) @ columns.flatten(1, 2))
    output = products[0] if weight2 is None else products[0] + products[1]
    for bias in (bias1, bias2):
        if bias is not None:
            output = output + bias.to(dtype)[:, None]
    return output.reshape(input.shape[0], weight1.shape[0], *input.shape[2:]).to(input.dtype)


def grid_conv_backward(
    grad_output: Tensor,
    input: Tensor,
    weight1: Tensor,
    weight2: Tensor | None,
    bias1: Tensor | None,
    bias2: Tensor | None,
    attention: Tensor | None,
    borders: str,
) -> tuple[Tensor | None, ...]:
    """Gradients of `grid_conv` for its six tensors, written out so that they differentiate."""
    dtype = compute_dtype(input)
    grad, image = grad_output.to(dtype).flatten(2), input.to(dtype)
    grad_image, grad_attention, grad_weights = torch.zeros_like(image).flatten(2), 0, []
    for weight, (index, inside) in _branches(input, weight1, weight2, borders):
        columns = _read(image, index)
        grad_columns = (weight.to(dtype).flatten(1).mT @ grad).reshape(columns.shape)
        grad_attention = grad_attention + (grad_columns * columns).masked_fill(~inside, 0).sum(1)
        grad_image = grad_image.index_add(2, index.flatten(), _modulated(grad_columns, attention, inside).flatten(2))
        grad_weight = (grad @ _modulated(columns, attention, inside).flatten(1, 2).mT).sum(0)
        grad_weights.append(grad_weight.reshape(weight.shape).to(weight.dtype))
    grad_biases = [None if bias is None else grad.sum((0, 2)).to(bias.dtype) for bias in (bias1, bias2)]
    return (
        grad_image.reshape(input.shape).to(input.dtype),
        grad_weights[0],
        grad_weights[1] if weight2 is not None else None,
        *grad_biases,
        None if attention is None else grad_attention.reshape(attention.shape).to(attention.dtype),
    )


def _branches(
    input: Tensor, weight1: Tensor, weight2: Tensor | None, borders: str
) -> Iterator[tuple[Tensor, tuple[Tensor, Tensor]]]:
    """Each weight with the cells that its taps read."""
    weights = [weight1] if weight2 is None else [weight1, weight2]
    for weight, border in zip(weights, borders, strict=True):
        yield weight, _cells(input, weight.shape[2:], border)


def _cells(input: Tensor, kernel: Size, border: str) -> tuple[Tensor, Tensor]:
    """What each tap of each cell reads, [kh*kw, h*w]: an index into the flattened grid, and whether it is on it."""
    h, w = input.shape[2:]
    (row, row_inside), (column, column_inside) = (
        _line(size, taps, border, input.device) for size, taps in zip((h, w), kernel, strict=True)
    )
    index = row[:, None, :, None] * w + column[:, None, :]  # [kh, kw, h, w]
    inside = row_inside[:, None, :, None] & column_inside[:, None, :]
    return index.reshape(-1, h * w), inside.reshape(-1, h * w)


def _line(size: int, taps: int, border: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """The same along one axis: [taps, size]."""
    cell = torch.arange(size, device=device) + torch.arange(taps, device=device)[:, None] - taps // 2
    if border == "c":
        cell = cell % size
    inside = (cell >= 0) & (cell < size) if border == "z" else torch.ones_like(cell, dtype=torch.bool)
    return cell.clamp(0, size - 1), inside


def _read(image: Tensor, index: Tensor) -> Tensor:
    """Columns [B, C, kh*kw, h*w]."""
    return image.flatten(2).index_select(2, index.flatten()).unflatten(2, index.shape)


def _modulated(columns: Tensor, attention: Tensor | None, inside: Tensor) -> Tensor:
    """Columns under the attention, zero where a tap leaves the grid, whatever the attention is there."""
    if attention is not None:
        columns = columns * attention.to(columns.dtype).flatten(2)[:, None]
    return columns.masked_fill(~inside, 0)
