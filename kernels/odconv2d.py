# SPDX-License-Identifier: Apache-2.0
"""Omni-dimensional dynamic convolution in Triton, forward and backward; the methods are told in `_scaled_conv`,
`_scaled_conv_bwd_weight` and, for one channel a group, `_depthwise`. No weight of an image is ever stored."""

from __future__ import annotations

import torch

from . import _depthwise
from ._common import check_supported
from ._scaled_conv import Geometry, Scales, scaled_conv
from ._scaled_conv_bwd_weight import scale_gradients

NAME = "odconv2d"
Attention = torch.Tensor | None


def forward(
    input: torch.Tensor,
    weight: torch.Tensor,
    channel_attention: Attention,
    filter_attention: Attention,
    spatial_attention: Attention,
    kernel_attention: Attention,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> torch.Tensor:
    """Output (batch, outputs, output_height, output_width) in the input's dtype and memory format."""
    check_supported(NAME, input)
    geometry = Geometry(stride, padding, dilation, groups)
    scales = Scales.of(channel_attention, filter_attention, spatial_attention, kernel_attention)
    size = geometry.output_size(input.shape[2:], weight.shape[3:])
    convolve = _depthwise.scaled_conv if is_depthwise(weight, groups) else scaled_conv
    return convolve(NAME, input, weight, scales, size, geometry)


def backward(
    grad_output: torch.Tensor,
    input: torch.Tensor,
    weight: torch.Tensor,
    channel_attention: Attention,
    filter_attention: Attention,
    spatial_attention: Attention,
    kernel_attention: Attention,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    needs: tuple[bool, bool, bool, bool, bool, bool],
    deterministic: bool,
) -> tuple[torch.Tensor | None, ...]:
    """Gradients of (input, weight, channel, filter, spatial, kernel attention) in their dtypes, None where `needs`
    is false. They are deterministic whether asked to be or not."""
    check_supported(NAME, input)
    geometry = Geometry(stride, padding, dilation, groups)
    scales = Scales.of(channel_attention, filter_attention, spatial_attention, kernel_attention)
    tensors = (input, weight, channel_attention, filter_attention, spatial_attention, kernel_attention)
    needs = tuple(need and t is not None for need, t in zip(needs, tensors, strict=True))
    if grad_output.numel() == 0:
        return tuple(torch.zeros_like(t) if need else None for t, need in zip(tensors, needs, strict=True))
    depthwise = is_depthwise(weight, groups)
    grad_input = None
    if needs[0]:
        convolve = _depthwise.scaled_conv if depthwise else scaled_conv
        size = (input.shape[2], input.shape[3])
        grad_input = convolve(NAME, grad_output, weight, scales.swapped, size, geometry, transposed=True)
    others = (None,) * 5
    if any(needs[1:]):
        gradients = _depthwise.scale_gradients if depthwise else scale_gradients
        others = gradients(NAME, grad_output, input, weight, scales, geometry, needs[1:])
    grads = zip((grad_input, *others), tensors, needs, strict=True)
    return tuple(grad.to(t.dtype) if need else None for grad, t, need in grads)


def is_depthwise(weight: torch.Tensor, groups: int) -> bool:
    return weight.shape[2] == 1 and weight.shape[1] == groups
