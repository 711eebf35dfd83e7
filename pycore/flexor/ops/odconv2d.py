# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _C, reference
from ..reference.odconv2d import odconv2d_backward, output_size
from . import _check, _vmap
from ._operator import Dims, Grads, Ints, Needs, Operator, empty_image

Pair = int | Sequence[int]

_NAME = "odconv2d"


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
    *,
    backend: str | None = None,
) -> Tensor:
    """Convolves every sample with its own mixture of n kernels, scaled along every axis of a kernel.

        output[b, o, p] = f[b, o] * sum over i of a[b, i] * sum over c, k of
            s[b, k] * weight[i, o, c, k] * channel[b, c] * input[b, c, p * stride - padding + k * dilation]

    with channel, f, s and a the attentions to channels, filters, taps and kernels, k = (i, j) a tap, p an output
    pixel, c over the channels of o's group, and zeros around the input.

    Args:
        input: (B, Ci, H, W), float64, float32, float16 or bfloat16; any strides, also expanded. B may be 0.
        weight: (n, Co, Ci / groups, kh, kw), input's dtype.
        channel_attention: (B, Ci) or (B, Ci, 1, 1), any values, or None for ones. Every attention has input's dtype,
            or float32 beside half-precision input.
        filter_attention: (B, Co) or (B, Co, 1, 1), or None for ones.
        spatial_attention: (B, kh * kw) or (B, 1, 1, 1, kh, kw), or None for ones.
        kernel_attention: (B, n) or (B, n, 1, 1, 1, 1); None only for n = 1, and then one.
        stride: step between output pixels, an int or (y, x).
        padding: rows and columns of zeros around the input, an int or (y, x).
        dilation: distance between taps, an int or (y, x).
        groups: number of groups that channels and filters are cut into.
        backend: "reference", "cpu", "triton" or "cuda" in place of the automatic choice.

    Returns:
        (B, Co, oh, ow) in input's dtype; channels_last when input is.

    Raises:
        ValueError: shapes that do not fit, tensors on different devices, an output without pixels.
        TypeError: dtypes that are mixed or not floating point.
        RuntimeError: a backend asked for by name that cannot run here.

    Notes:
        Differentiable in every tensor, to any order. Sums are in float32 (float64 for float64). What one sample holds,
        NaN included, reaches no other. On the CPU, bits do not depend on threads.

    Source:
        Li, Zhou and Yao, Omni-Dimensional Dynamic Convolution, ICLR 2022, where the three attentions inside a
        kernel are shared by all n of them, as in the authors' code.
    """
    if type(stride) is not tuple or type(padding) is not tuple or type(dilation) is not tuple:
        stride, padding, dilation = _pair(stride), _pair(padding), _pair(dilation)
    attentions = (
        _flat("channel_attention", channel_attention, (1, 1)),
        _flat("filter_attention", filter_attention, (1, 1)),
        _flat_spatial(spatial_attention, weight),
        _flat("kernel_attention", kernel_attention, (1, 1, 1, 1)),
    )
    return _operator((input, weight, *attentions), (stride, padding, dilation, groups), backend)


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
    *,
    backend: str | None = None,
) -> Tensor:
    """Convolves every sequence with its own mixture of n kernels: `odconv2d` along one axis.

        output[b, o, p] = f[b, o] * sum over i of a[b, i] * sum over c, k of
            s[b, k] * weight[i, o, c, k] * channel[b, c] * input[b, c, p * stride - padding + k * dilation]

    Args:
        input: (B, Ci, L), float64, float32, float16 or bfloat16; any strides. B may be 0.
        weight: (n, Co, Ci / groups, k), input's dtype.
        channel_attention: (B, Ci) or None. Attentions have input's dtype, or float32 beside half-precision input.
        filter_attention: (B, Co) or None.
        spatial_attention: (B, k) or None.
        kernel_attention: (B, n); None only for n = 1.
        stride, padding, dilation: ints, in positions of the sequence.
        groups: number of groups that channels and filters are cut into.
        backend: "reference", "cpu", "triton" or "cuda" in place of the automatic choice.

    Returns:
        (B, Co, ol) in input's dtype.

    Raises:
        ValueError, TypeError, RuntimeError: as `odconv2d`, which sees a height of 1.

    Source:
        `odconv2d`.
    """
    _check.tensor("odconv1d", "input", input, "B Ci L")
    _check.tensor("odconv1d", "weight", weight, "n Co Ci/groups k")
    attentions = channel_attention, filter_attention, spatial_attention, kernel_attention
    geometry = (1, stride), (0, padding), (1, dilation), groups
    return odconv2d(input.unsqueeze(2), weight.unsqueeze(3), *attentions, *geometry, backend=backend).squeeze(2)


def _pair(value: Any) -> tuple[int, int]:
    return tuple(value) if isinstance(value, Sequence) else (value, value)


def _flat(name: str, attention: Any, ones: tuple[int, ...]) -> Any:
    """[B, _] from the official view [B, _, *ones]; what is no such view is left for `check` to judge."""
    if attention is None:
        return None
    if isinstance(attention, int | float):  # the published code's stand-in for no attention
        raise TypeError(f"{_NAME}: {name} must be a tensor or None, got {type(attention).__name__}")
    if not isinstance(attention, Tensor) or attention.dim() == 2 or attention.shape[2:] != ones:
        return attention
    return attention.flatten(1)


def _flat_spatial(attention: Any, weight: Tensor) -> Any:
    """[B, kh*kw] from the official view [B, 1, 1, 1, kh, kw]."""
    attention = _flat("spatial_attention", attention, ())
    if not isinstance(attention, Tensor) or attention.dim() != 6 or attention.shape[1:4] != (1, 1, 1):
        return attention
    return attention.flatten(1) if attention.shape[4:] == weight.shape[3:] else attention


class _ODConv2d(Operator):
    name = _NAME
    tensors = (
        "Tensor input",
        "Tensor weight",
        "Tensor? channel_attention",
        "Tensor? filter_attention",
        "Tensor? spatial_attention",
        "Tensor? kernel_attention",
    )
    params = ("int[2] stride", "int[2] padding", "int[2] dilation", "int groups")

    def check(self, *args: Any) -> None:
        tensors, (stride, padding, dilation, groups) = args[:6], args[6:]
        _check_tensors(*tensors)
        _check.integers(_NAME, "stride", stride, 1, "a positive integer")
        _check.integers(_NAME, "padding", padding, 0, "an integer not below 0")
        _check.integers(_NAME, "dilation", dilation, 1, "a positive integer")
        _check_groups(tensors[0], tensors[1], groups)
        _check_attentions(*tensors)
        _check_sizes(tensors[0], tensors[1], stride, padding, dilation)

    def empty_output(self, input: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        oh, ow = output_size(input, weight, *rest[4:7])
        return empty_image(input, input.shape[0], weight.shape[1], oh, ow)

    def cpu_forward(
        self,
        input: Tensor,
        weight: Tensor,
        channel: Tensor | None,
        filter: Tensor | None,
        spatial: Tensor | None,
        kernel: Tensor | None,
        stride: Ints,
        padding: Ints,
        dilation: Ints,
        groups: int,
    ) -> Tensor:
        oh, ow = output_size(input, weight, stride, padding, dilation)
        output = empty_image(input, input.shape[0], weight.shape[1], oh, ow)
        (sy, sx), (py, px), (dy, dx) = stride, padding, dilation
        _C.odconv2d_forward(output, input, weight, channel, filter, spatial, kernel, sy, sx, py, px, dy, dx, groups)
        return output

    def cpu_backward(self, grads: Grads, *args: Any) -> None:
        *tensors, stride, padding, dilation, groups = args
        _C.odconv2d_backward(*tensors, *grads, *stride, *padding, *dilation, groups)

    def triton_forward(self, *args: Any) -> Tensor:
        from ..kernels import odconv2d as kernel

        return kernel.forward(*args)

    def triton_backward(self, needs: Needs, deterministic: bool, *args: Any) -> Grads:
        from ..kernels import odconv2d as kernel

        return kernel.backward(*args, tuple(needs), deterministic)

    def reference_forward(self, *args: Any) -> Tensor:
        return reference.odconv2d(*args)

    def reference_backward(self, *args: Any) -> Grads:
        return odconv2d_backward(*args)

    def vmap_forward(self, batch: int, in_dims: Dims, *args: Any) -> tuple[Tensor, int]:
        """More samples of one batch; kernels of their own cannot share a call, since an attention spans all groups."""
        if in_dims[1] is None:
            input, _, *attentions = _vmap.into_batch(*_vmap.leading(batch, in_dims, *args[:6]))
            return _vmap.out_of_batch(batch, self.op(input, args[1], *attentions, *args[6:])), 0
        tensors = _vmap.leading(batch, in_dims, *args[:6])
        return torch.stack([self.op(*_nth(i, tensors), *args[6:]) for i in range(batch)]), 0

    def vmap_backward(self, batch: int, in_dims: Dims, *args: Any) -> tuple[Grads, Dims]:
        tensors, (*params, needs, backend) = _vmap.leading(batch, in_dims, *args[:7]), args[7:]
        if in_dims[2] is None and not needs[1]:
            grad_output, input, _, *attentions = _vmap.into_batch(*tensors)
            folded = self.backward_op(grad_output, input, args[2], *attentions, *params, needs, backend)
            grads = tuple(None if g is None else _vmap.out_of_batch(batch, g) for g in folded)
        else:
            each = [self.backward_op(*_nth(i, tensors), *params, needs, backend) for i in range(batch)]
            grads = tuple(None if same[0] is None else torch.stack(same) for same in zip(*each, strict=True))
        return grads, tuple(None if g is None else 0 for g in grads)

    def autocast(self, dtype: torch.dtype, *args: Any) -> tuple[Any, ...]:
        """Input and weight in low precision; attentions are small and keep their float32."""
        input, weight, *attentions = args[:6]
        if input.dtype == torch.float64:
            return args
        attentions = [t if t is None or t.dtype == dtype else t.float() for t in attentions]
        return input.to(dtype), weight.to(dtype), *attentions, *args[6:]


def _nth(index: int, tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [None if t is None else t[index] for t in tensors]


def _check_tensors(
    input: Any,
    weight: Any,
    channel_attention: Any,
    filter_attention: Any,
    spatial_attention: Any,
    kernel_attention: Any,
) -> None:
    _check.tensor(_NAME, "input", input, "B Ci H W")
    _check.tensor(_NAME, "weight", weight, "n Co Ci/groups kh kw")
    _check.floating(_NAME, "input", input)
    _check.same_dtype(_NAME, "weight", weight, input)
    attentions = {
        "channel_attention": (channel_attention, "(B, Ci) or (B, Ci, 1, 1)"),
        "filter_attention": (filter_attention, "(B, Co) or (B, Co, 1, 1)"),
        "spatial_attention": (spatial_attention, "(B, kh*kw) or (B, 1, 1, 1, kh, kw)"),
        "kernel_attention": (kernel_attention, "(B, n) or (B, n, 1, 1, 1, 1)"),
    }
    for name, (value, layouts) in attentions.items():
        if value is None:
            continue
        if value.layout != torch.strided:
            raise TypeError(f"{_NAME}: {name} must be a strided tensor, got {value.layout}")
        if value.dim() != 2:
            raise ValueError(f"{_NAME}: {name} must be {layouts}, got {tuple(value.shape)}")
        _check.same_dtype(_NAME, name, value, input, or_float32=True)
    named = {name: value for name, (value, _) in attentions.items()}
    _check.same_device(_NAME, input=input, weight=weight, **named)


def _check_groups(input: Tensor, weight: Tensor, groups: Any) -> None:
    if not isinstance(groups, int | torch.SymInt) or groups < 1:
        raise ValueError(f"{_NAME}: groups must be a positive integer, got {groups!r}")
    shape = tuple(weight.shape)
    if min(shape) < 1:
        raise ValueError(f"{_NAME}: weight must have no empty dimension (n, Co, Ci/groups, kh, kw), got {shape}")
    if input.shape[1] != groups * shape[2]:
        raise ValueError(
            f"{_NAME}: input.shape[1] must be groups*weight.shape[2] = {groups * shape[2]}, got {input.shape[1]} "
            f"(weight {shape}, groups {groups})"
        )
    if shape[1] % groups != 0:
        raise ValueError(f"{_NAME}: weight.shape[1] must be a multiple of groups = {groups}, got {shape[1]}")


def _check_attentions(
    input: Tensor,
    weight: Tensor,
    channel_attention: Tensor | None,
    filter_attention: Tensor | None,
    spatial_attention: Tensor | None,
    kernel_attention: Tensor | None,
) -> None:
    (b, ci), (n, co, _, kh, kw) = input.shape[:2], weight.shape
    if kernel_attention is None and n != 1:
        raise ValueError(f"{_NAME}: kernel_attention may be None only for one kernel, weight has {n}")
    for name, value, size, meaning in (
        ("channel_attention.shape", channel_attention, ci, "(B, Ci)"),
        ("filter_attention.shape", filter_attention, co, "(B, Co)"),
        ("spatial_attention.shape", spatial_attention, kh * kw, "(B, kh*kw)"),
        ("kernel_attention.shape", kernel_attention, n, "(B, n)"),
    ):
        if value is not None:
            _check.shape(_NAME, name, value, (b, size), meaning)


def _check_sizes(input: Tensor, weight: Tensor, stride: Ints, padding: Ints, dilation: Ints) -> None:
    (b, _, h, w), (_, co, _, kh, kw) = input.shape, weight.shape
    oh, ow = output_size(input, weight, stride, padding, dilation)
    if oh < 1 or ow < 1:
        raise ValueError(
            f"{_NAME}: the kernel must not be larger than the padded input, got oh = {oh}, ow = {ow} (input {h}x{w}, "
            f"kernel {kh}x{kw}, stride {tuple(stride)}, padding {tuple(padding)}, dilation {tuple(dilation)})"
        )
    _check.fits(_NAME, "output", (b, co, oh, ow), input.dtype)


_operator = _ODConv2d()
