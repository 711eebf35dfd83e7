# SPDX-License-Identifier: Apache-2.0
"""Omni-dimensional dynamic convolution in plain PyTorch: the kernels of every sample are built, then applied."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .bilinear import compute_dtype

Pair = tuple[int, int]


def odconv2d(
    input: Tensor,
    weight: Tensor,
    channel_attention: Tensor | None = None,
    filter_attention: Tensor | None = None,
    spatial_attention: Tensor | None = None,
    kernel_attention: Tensor | None = None,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> Tensor:
    """Convolves every sample with its own mixture of kernels; see `flexor.ops.odconv2d`, whose twin this is."""
    dtype = compute_dtype(input)
    scaled = _scaled(input.to(dtype), channel_attention)
    columns = _columns(scaled, weight, stride, padding, dilation, groups)
    kernels = _mixed(weight.to(dtype), spatial_attention, kernel_attention)
    output = _grouped(kernels, groups) @ columns  # [B, G, Co/G, oh*ow]
    size = output_size(input, weight, stride, padding, dilation)
    output = output.reshape(input.shape[0], weight.shape[1], *size)
    return _scaled(output, filter_attention).to(input.dtype)


def odconv1d(
    input: Tensor,
    weight: Tensor,
    channel_attention: Tensor | None = None,
    filter_attention: Tensor | None = None,
    spatial_attention: Tensor | None = None,
    kernel_attention: Tensor | None = None,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
) -> Tensor:
    """`odconv2d` along one axis; see `flexor.ops.odconv1d`."""
    attentions = channel_attention, filter_attention, spatial_attention, kernel_attention
    geometry = (1, stride), (0, padding), (1, dilation), groups
    return odconv2d(input.unsqueeze(2), weight.unsqueeze(3), *attentions, *geometry).squeeze(2)


def odconv2d_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    channel_attention: Tensor | None,
    filter_attention: Tensor | None,
    spatial_attention: Tensor | None,
    kernel_attention: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of `odconv2d` for its six tensors, written out so that they differentiate."""
    dtype = compute_dtype(input)
    b, n, (kh, kw) = input.shape[0], weight.shape[0], weight.shape[3:]
    image, kernels = input.to(dtype), weight.to(dtype)
    columns = _columns(_scaled(image, channel_attention), weight, stride, padding, dilation, groups)
    mixed = _grouped(_mixed(kernels, spatial_attention, kernel_attention), groups)

    grad = grad_output.to(dtype)
    grad_filter = None
    if filter_attention is not None:
        output = (mixed @ columns).reshape(grad.shape)
        grad_filter = (grad * output).sum((2, 3)).to(filter_attention.dtype)
    grad = _scaled(grad, filter_attention).reshape(b, groups, weight.shape[1] // groups, columns.shape[3])

    grad_columns = (mixed.mT @ grad).reshape(b, input.shape[1] * kh * kw, columns.shape[3])
    grad_scaled = F.fold(grad_columns, input.shape[2:], (kh, kw), dilation, padding, stride)
    grad_channel = None
    if channel_attention is not None:
        grad_channel = (grad_scaled * image).sum((2, 3)).to(channel_attention.dtype)

    grad_mixed = (grad @ columns.mT).reshape(b, *weight.shape[1:])
    grad_spatial = grad_kernel = None
    if spatial_attention is not None:
        products = grad_mixed * _mixed(kernels, None, kernel_attention)
        grad_spatial = products.sum((1, 2)).reshape(b, kh * kw).to(spatial_attention.dtype)
        grad_mixed = grad_mixed * spatial_attention.to(dtype).reshape(b, 1, 1, kh, kw)
    if kernel_attention is None:
        grad_weight = grad_mixed.sum(0, keepdim=True)
    else:
        flat = grad_mixed.reshape(b, weight[0].numel())
        grad_weight = kernel_attention.to(dtype).mT @ flat
        grad_kernel = (flat @ kernels.reshape(n, flat.shape[1]).mT).to(kernel_attention.dtype)
    return (
        _scaled(grad_scaled, channel_attention).to(input.dtype),
        grad_weight.reshape(weight.shape).to(weight.dtype),
        grad_channel,
        grad_filter,
        grad_spatial,
        grad_kernel,
    )


def output_size(input: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> tuple[int, int]:
    """Rows and columns of the output; not positive where the kernel is larger than the padded input."""
    oh = (input.shape[2] + 2 * padding[0] - dilation[0] * (weight.shape[3] - 1) - 1) // stride[0] + 1
    ow = (input.shape[3] + 2 * padding[1] - dilation[1] * (weight.shape[4] - 1) - 1) // stride[1] + 1
    return oh, ow


def _scaled(image: Tensor, attention: Tensor | None) -> Tensor:
    """[B, C, H, W] times an attention [B, C]."""
    return image if attention is None else image * attention.to(image.dtype)[:, :, None, None]


def _mixed(weight: Tensor, spatial: Tensor | None, kernel: Tensor | None) -> Tensor:
    """The kernels of every sample, or of all of them when nothing differs: [B or 1, Co, Ci/G, kh, kw]."""
    if kernel is None:
        mixed = weight
    else:
        n, *shape = weight.shape
        mixed = (kernel.to(weight.dtype) @ weight.reshape(n, weight[0].numel())).reshape(-1, *shape)
    if spatial is None:
        return mixed
    return mixed * spatial.to(weight.dtype).reshape(-1, 1, 1, *weight.shape[3:])


def _columns(input: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair, groups: int) -> Tensor:
    """What every output pixel reads, as the right-hand matrices of the convolution: [B, G, Ci/G*K, oh*ow]."""
    columns = F.unfold(input, weight.shape[3:], dilation, padding, stride)
    return columns.unflatten(1, (groups, columns.shape[1] // groups))


def _grouped(kernels: Tensor, groups: int) -> Tensor:
    """Kernels [B, Co, Ci/G, kh, kw] as [B, G, Co/G, Ci/G*K]."""
    return kernels.flatten(2).unflatten(1, (groups, kernels.shape[1] // groups))
