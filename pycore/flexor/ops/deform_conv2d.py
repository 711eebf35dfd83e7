# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _C, reference
from ..reference.deform_conv2d import deform_conv2d_backward
from . import _check, _vmap
from ._operator import Dims, Grads, Ints, Needs, Operator, empty_image

Pair = int | Sequence[int]

_NAME = "deform_conv2d"


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    mask: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """Convolves the input where each tap reads at its own displaced, fractional position.

        output[n, o, p] = bias[o] + sum over c, k of
            weight[o, c, k] * mask[n, g, k, p] * input[n, c, p * stride - padding + k * dilation + offset[n, g, k, p]]

    with g the offset group of channel c, k = (i, j) a tap, p an output pixel, and the input read bilinearly with zeros
    around it. The number of groups is C / weight.shape[1], the number of offset groups DG is
    offset.shape[1] / (2 * kh * kw).

    Args:
        input: (N, C, H, W), float64, float32, float16 or bfloat16; any strides, also expanded. N may be 0.
        offset: (N, 2 * DG * kh * kw, oh, ow), pixels; channel (g * kh * kw + tap) * 2 is dy, the next one dx.
            Has input's dtype, or float32 beside half-precision input.
        weight: (O, C / groups, kh, kw), input's dtype.
        bias: (O,), input's dtype, or None.
        stride: step between output pixels, an int or (y, x).
        padding: rows and columns of zeros around the input, an int or (y, x).
        dilation: distance between taps, an int or (y, x).
        mask: (N, DG * kh * kw, oh, ow), any values, dtype as for offset, or None for ones.
        backend: "reference", "cpu", "triton" or "cuda" in place of the automatic choice.

    Returns:
        (N, O, oh, ow) in input's dtype; channels_last when input is.

    Raises:
        ValueError: shapes that do not fit, tensors on different devices, an output without pixels.
        TypeError: dtypes that are mixed or not floating point.
        RuntimeError: a backend asked for by name that cannot run here.

    Notes:
        Differentiable in every tensor, to any order. Sums are in float32 (float64 for float64). At whole coordinates
        the derivative is right-sided, also at exactly -1, where the value is still 0. A NaN offset makes its own
        output pixel NaN; an infinite one reads 0 and has no gradient. On the CPU, bits do not depend on threads.

    Source:
        Dai et al., Deformable Convolutional Networks, ICCV 2017, eq. 2; with mask Zhu et al., Deformable ConvNets v2,
        CVPR 2019, eq. 1. Arguments and semantics are torchvision's.
    """
    if type(stride) is not tuple or type(padding) is not tuple or type(dilation) is not tuple:
        stride, padding, dilation = _pair(stride), _pair(padding), _pair(dilation)
    return _operator((input, offset, weight, bias, mask), (stride, padding, dilation), backend)


def _pair(value: Any) -> tuple[int, int]:
    return tuple(value) if isinstance(value, Sequence) else (value, value)


class _DeformConv2d(Operator):
    name = _NAME
    tensors = ("Tensor input", "Tensor offset", "Tensor weight", "Tensor? bias", "Tensor? mask")
    params = ("int[2] stride", "int[2] padding", "int[2] dilation")

    def check(self, *args: Any) -> None:
        input, offset, weight, bias, mask, stride, padding, dilation = args
        _check_tensors(input, offset, weight, bias, mask)
        _check.integers(_NAME, "stride", stride, 1, "a positive integer")
        _check.integers(_NAME, "padding", padding, 0, "an integer not below 0")
        _check.integers(_NAME, "dilation", dilation, 1, "a positive integer")
        _check_groups(input, offset, weight, bias)
        _check_sizes(input, offset, weight, mask, stride, padding, dilation)

    def empty_output(self, input: Tensor, offset: Tensor, weight: Tensor, *_: Any) -> Tensor:
        n, _, oh, ow = offset.shape
        return empty_image(input, n, weight.shape[0], oh, ow)

    def cpu_forward(
        self,
        input: Tensor,
        offset: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        mask: Tensor | None,
        stride: Ints,
        padding: Ints,
        dilation: Ints,
    ) -> Tensor:
        n, _, oh, ow = offset.shape
        (sy, sx), (py, px), (dy, dx) = stride, padding, dilation
        output = empty_image(input, n, weight.shape[0], oh, ow)
        _C.deform_conv2d_forward(output, input, offset, weight, bias, mask, sy, sx, py, px, dy, dx, 0, 0)
        return output

    def cpu_backward(self, grads: Grads, *args: Any) -> None:
        grad_output, input, offset, weight, _, mask, stride, padding, dilation = args
        _C.deform_conv2d_backward(grad_output, input, offset, weight, mask, *grads, *stride, *padding, *dilation, 0, 0)

    def triton_forward(self, *args: Any) -> Tensor:
        from ..kernels import deform_conv2d as kernel

        return kernel.forward(*args, *_groups(*args[:3]))

    def triton_backward(self, needs: Needs, deterministic: bool, *args: Any) -> Grads:
        from ..kernels import deform_conv2d as kernel

        grad_output, input, offset, weight, _, mask, *geometry = args
        groups = _groups(input, offset, weight)
        return kernel.backward(
            grad_output, input, offset, weight, mask, *geometry, *groups, tuple(needs), deterministic
        )

    def reference_forward(self, *args: Any) -> Tensor:
        *tensors, mask, stride, padding, dilation = args
        return reference.deform_conv2d(*tensors, stride, padding, dilation, mask)

    def reference_backward(self, *args: Any) -> Grads:
        return deform_conv2d_backward(*args)

    def vmap_forward(self, batch: int, in_dims: Dims, *args: Any) -> tuple[Tensor, int]:
        input, offset, weight, bias, mask = _vmap.leading(batch, in_dims, *args[:5])
        if in_dims[2] is None and in_dims[3] is None:
            input, offset, mask = _vmap.into_batch(input, offset, mask)
            return _vmap.out_of_batch(batch, self.op(input, offset, *args[2:4], mask, *args[5:])), 0
        input, offset, mask = _vmap.into_channels(input, offset, mask)
        weight, bias = _vmap.into_batch(weight, bias)
        return _vmap.out_of_channels(batch, self.op(input, offset, weight, bias, mask, *args[5:])), 0

    def vmap_backward(self, batch: int, in_dims: Dims, *args: Any) -> tuple[Grads, Dims]:
        """As many convolutions side by side as groups of one, so that each has its own gradient of the weight."""
        grad_output, input, offset, weight, bias, mask = _vmap.leading(batch, in_dims, *args[:6])
        grad_output, input, offset, mask = _vmap.into_channels(grad_output, input, offset, mask)
        weight, bias = _vmap.into_batch(weight, bias)
        folded = self.backward_op(grad_output, input, offset, weight, bias, mask, *args[6:])
        undo = (_vmap.out_of_channels,) * 2 + (_vmap.out_of_batch,) * 2 + (_vmap.out_of_channels,)
        grads = tuple(None if g is None else out(batch, g) for out, g in zip(undo, folded, strict=True))
        return grads, tuple(None if g is None else 0 for g in grads)

    def autocast(self, dtype: torch.dtype, *args: Any) -> tuple[Any, ...]:
        """Input, weight and bias in low precision; offset and mask keep the float32 that positions need."""
        input, offset, weight, bias, mask, *params = args
        if input.dtype == torch.float64:
            return args
        offset, mask = (t if t is None or t.dtype == dtype else t.float() for t in (offset, mask))
        return input.to(dtype), offset, weight.to(dtype), None if bias is None else bias.to(dtype), mask, *params


def _groups(input: Tensor, offset: Tensor, weight: Tensor) -> tuple[int, int]:
    """The groups of the convolution and of the offsets, as the shapes say."""
    _, channels, kh, kw = weight.shape
    return input.shape[1] // channels, offset.shape[1] // (2 * kh * kw)


def _check_tensors(input: Any, offset: Any, weight: Any, bias: Any, mask: Any) -> None:
    _check.tensor(_NAME, "input", input, "N C H W")
    _check.tensor(_NAME, "offset", offset, "N 2*DG*kh*kw oh ow")
    _check.tensor(_NAME, "weight", weight, "O C/groups kh kw")
    _check.floating(_NAME, "input", input)
    _check.same_dtype(_NAME, "offset", offset, input, or_float32=True)
    _check.same_dtype(_NAME, "weight", weight, input)
    if bias is not None:
        _check.tensor(_NAME, "bias", bias, "O")
        _check.same_dtype(_NAME, "bias", bias, input)
    if mask is not None:
        _check.tensor(_NAME, "mask", mask, "N DG*kh*kw oh ow")
        _check.same_dtype(_NAME, "mask", mask, input, or_float32=True)
    _check.same_device(_NAME, input=input, offset=offset, weight=weight, bias=bias, mask=mask)


def _check_groups(input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    c, (o, per_group, kh, kw) = input.shape[1], weight.shape
    described = f"weight {tuple(weight.shape)}"
    if o < 1 or per_group < 1 or kh < 1 or kw < 1:
        raise ValueError(f"{_NAME}: weight must have no empty dimension, got {tuple(weight.shape)}")
    if c < 1 or c % per_group != 0:
        raise ValueError(
            f"{_NAME}: input.shape[1] must be groups*weight.shape[1], a multiple of {per_group}, got {c} ({described})"
        )
    groups = c // per_group
    if o % groups != 0:
        raise ValueError(
            f"{_NAME}: weight.shape[0] must be a multiple of groups = input.shape[1]/weight.shape[1] = {groups}, "
            f"got {o}"
        )
    offset_groups = max(offset.shape[1] // (2 * kh * kw), 1)
    if offset.shape[1] != 2 * offset_groups * kh * kw:
        raise ValueError(
            f"{_NAME}: offset.shape[1] must be 2*offset_groups*kh*kw = {2 * offset_groups * kh * kw}, "
            f"got {offset.shape[1]} ({described}, offset_groups {offset_groups})"
        )
    if c % offset_groups != 0:
        raise ValueError(
            f"{_NAME}: input.shape[1] must be a multiple of offset_groups = {offset_groups}, got {c} "
            f"(offset {tuple(offset.shape)}, {described})"
        )
    if bias is not None:
        _check.shape(_NAME, "bias.shape", bias, (o,), "(weight.shape[0],)")


def _check_sizes(
    input: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, stride: Ints, padding: Ints, dilation: Ints
) -> None:
    n, _, h, w = input.shape
    o, _, kh, kw = weight.shape
    oh = (h + 2 * padding[0] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    ow = (w + 2 * padding[1] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    if oh < 1 or ow < 1:
        raise ValueError(
            f"{_NAME}: the output would have no pixels, oh = {oh}, ow = {ow} (input {h}x{w}, kernel {kh}x{kw}, "
            f"stride {tuple(stride)}, padding {tuple(padding)}, dilation {tuple(dilation)})"
        )
    _check.shape(_NAME, "offset.shape", offset, (n, offset.shape[1], oh, ow), "(N, 2*offset_groups*kh*kw, oh, ow)")
    if mask is not None:
        _check.shape(_NAME, "mask.shape", mask, (n, offset.shape[1] // 2, oh, ow), "(N, offset_groups*kh*kw, oh, ow)")
    _check.fits(_NAME, "output", (n, o, oh, ow), input.dtype)


_operator = _DeformConv2d()
