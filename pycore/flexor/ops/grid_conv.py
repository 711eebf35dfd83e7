# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _C, reference
from ..reference.grid_conv import grid_conv_backward
from . import _check, _vmap
from ._operator import Dims, Grads, Needs, Operator, empty_image

_NAME = "grid_conv"
_LETTERS = "crz"


def grid_conv(
    input: Tensor,
    weight1: Tensor,
    weight2: Tensor | None = None,
    bias1: Tensor | None = None,
    bias2: Tensor | None = None,
    attention: Tensor | None = None,
    borders: str = "cr",
    *,
    backend: str | None = None,
) -> Tensor:
    """Convolves a grid with one or two kernels, each with a border of its own and all under one attention.

        output[b, o, p] = sum over branches r of
            bias_r[o] + sum over c, t of attention[b, t, p] * weight_r[o, c, t] * input[b, c, border_r(p + t)]

    with p an output cell and t a tap, counted from the centre of the kernel.

    Args:
        input: (B, Ci, h, w), float64, float32, float16 or bfloat16; any strides. B may be 0.
        weight1: (Co, Ci, kh, kw), input's dtype; kh and kw odd, also larger than the grid.
        weight2: like weight1, or None for a single branch.
        bias1, bias2: (Co,), input's dtype, or None.
        attention: (B, kh * kw, h, w), any values, input's dtype or float32 beside half-precision input; also as
            (B, 1, kh * kw, h * w), save under torch.jit.trace. None for ones.
        borders: one letter a branch, what a tap beyond the border reads: "c" the cell on the other side (the grid
            is circular), "r" the nearest cell (replicated), "z" zero.
        backend: "reference", "cpu", "triton" or "cuda" in place of the automatic choice.

    Returns:
        (B, Co, h, w) in input's dtype; channels_last when input is.

    Raises:
        ValueError: shapes that do not fit, even kernels, borders that are not one letter a branch, tensors on
            different devices.
        TypeError: dtypes that are mixed or not floating point.
        RuntimeError: a backend asked for by name that cannot run here.

    Notes:
        Differentiable in every tensor, to any order. Sums are in float32 (float64 for float64). On the CPU, bits do
        not depend on threads.

    Source:
        Kang et al., 3D Human Pose Lifting with Grid Convolution, AAAI 2023, where one branch is circular.
    """
    if isinstance(attention, Tensor) and isinstance(input, Tensor) and not torch.jit.is_tracing():
        attention = _by_cell(attention, input)
    return _operator((input, weight1, weight2, bias1, bias2, attention), (borders,), backend)


class _GridConv(Operator):
    name = _NAME
    tensors = (
        "Tensor input",
        "Tensor weight1",
        "Tensor? weight2",
        "Tensor? bias1",
        "Tensor? bias2",
        "Tensor? attention",
    )
    params = ("str borders",)

    def check(self, *args: Any) -> None:
        *tensors, borders = args
        _check_tensors(*tensors)
        _check_shapes(*tensors)
        _check_borders(borders, 1 if tensors[2] is None else 2)

    def empty_output(self, input: Tensor, weight1: Tensor, *_: Any) -> Tensor:
        n, _, h, w = input.shape
        return empty_image(input, n, weight1.shape[0], h, w)

    def cpu_forward(self, *args: Any) -> Tensor:
        _, weight1, weight2, _, bias2, *_ = args
        if not weight1.numel() or (weight2 is None and bias2 is not None):
            self.check(*args)  # the kernel could take these
        output = self.empty_output(*args)
        _C.grid_conv_forward(output, *args)
        return output

    def cpu_backward(self, grads: Grads, *args: Any) -> None:
        grad_output, input, weight1, weight2, _, _, attention, borders = args
        _C.grid_conv_backward(grad_output, input, weight1, weight2, attention, *grads, borders)

    def triton_forward(self, *args: Any) -> Tensor:
        from ..kernels import grid_conv as kernel

        return kernel.forward(*args)

    def triton_backward(self, needs: Needs, deterministic: bool, *args: Any) -> Grads:
        from ..kernels import grid_conv as kernel

        return kernel.backward(*args, tuple(needs), deterministic)

    def reference_forward(self, *args: Any) -> Tensor:
        return reference.grid_conv(*args)

    def reference_backward(self, *args: Any) -> Grads:
        return grid_conv_backward(*args)

    def vmap_forward(self, batch: int, in_dims: Dims, *args: Any) -> tuple[Tensor, int]:
        """One call over all grids where they share the kernels; else a call for every set of kernels."""
        tensors = _vmap.leading(batch, in_dims, *args[:6])
        if _shared_kernels(in_dims):
            input, attention = _vmap.into_batch(tensors[0], tensors[5])
            return _vmap.out_of_batch(batch, self.op(input, *args[1:5], attention, *args[6:])), 0
        return torch.stack([self.op(*_vmap.element(tensors, i), *args[6:]) for i in range(batch)]), 0

    def vmap_backward(self, batch: int, in_dims: Dims, *args: Any) -> tuple[Grads, Dims]:
        *_, needs, _ = args
        tensors = _vmap.leading(batch, in_dims, *args[:7])
        if not _shared_kernels(in_dims[1:]) or any(needs[1:5]):
            return _vmap.stacked([self.backward_op(*_vmap.element(tensors, i), *args[7:]) for i in range(batch)])
        grad_output, input, attention = _vmap.into_batch(tensors[0], tensors[1], tensors[6])
        folded = self.backward_op(grad_output, input, *args[2:6], attention, *args[7:])
        grads = tuple(None if g is None else _vmap.out_of_batch(batch, g) for g in folded)
        return grads, tuple(None if g is None else 0 for g in grads)

    def autocast(self, dtype: torch.dtype, *args: Any) -> tuple[Any, ...]:
        """Input, weights and biases in low precision; an attention in another dtype becomes float32."""
        *tensors, attention, borders, backend = args
        if tensors[0].dtype == torch.float64:
            return args
        if attention is not None and attention.dtype != dtype:
            attention = attention.float()
        return *(None if t is None else t.to(dtype) for t in tensors), attention, borders, backend


def _by_cell(attention: Tensor, input: Tensor) -> Tensor:
    """(B, 1, kh*kw, h*w) as (B, kh*kw, h, w); every other shape as it is."""
    if attention.dim() != 4 or attention.shape[1] != 1 or attention.shape[2] == 1 or input.dim() != 4:
        return attention
    b, _, taps, cells = attention.shape
    h, w = input.shape[2:]
    return attention.reshape(b, taps, h, w) if cells == h * w else attention


def _shared_kernels(in_dims: Dims) -> bool:
    return all(dim is None for dim in in_dims[1:5])


def _check_tensors(input: Any, weight1: Any, weight2: Any, bias1: Any, bias2: Any, attention: Any) -> None:
    _check.tensor(_NAME, "input", input, "B Ci h w")
    _check.floating(_NAME, "input", input)
    _check.tensor(_NAME, "weight1", weight1, "Co Ci kh kw")
    _check.same_dtype(_NAME, "weight1", weight1, input)
    if weight2 is not None:
        _check.tensor(_NAME, "weight2", weight2, "Co Ci kh kw")
        _check.same_dtype(_NAME, "weight2", weight2, input)
    for name, bias in (("bias1", bias1), ("bias2", bias2)):
        if bias is not None:
            _check.tensor(_NAME, name, bias, "Co")
            _check.same_dtype(_NAME, name, bias, input)
    if attention is not None:
        _check.tensor(_NAME, "attention", attention, "B kh*kw h w")
        _check.same_dtype(_NAME, "attention", attention, input, or_float32=True)
    _check.same_device(
        _NAME, input=input, weight1=weight1, weight2=weight2, bias1=bias1, bias2=bias2, attention=attention
    )


def _check_shapes(
    input: Tensor,
    weight1: Tensor,
    weight2: Tensor | None,
    bias1: Tensor | None,
    bias2: Tensor | None,
    attention: Tensor | None,
) -> None:
    (b, channels, h, w), (o, per_kernel, kh, kw) = input.shape, weight1.shape
    if o < 1 or per_kernel < 1:
        raise ValueError(f"{_NAME}: weight1 must have no empty dimension, got {tuple(weight1.shape)}")
    if kh % 2 == 0 or kw % 2 == 0:
        raise ValueError(f"{_NAME}: the kernel must have odd sides, got {kh}x{kw} (weight1 {tuple(weight1.shape)})")
    if channels != per_kernel:
        raise ValueError(
            f"{_NAME}: input.shape[1] must be weight1.shape[1] = {per_kernel}, got {channels} "
            f"(weight1 {tuple(weight1.shape)})"
        )
    if h < 1 or w < 1:
        raise ValueError(f"{_NAME}: the grid must have cells, got {h}x{w}")
    if weight2 is not None:
        _check.shape(_NAME, "weight2.shape", weight2, tuple(weight1.shape), "weight1.shape")
    elif bias2 is not None:
        raise ValueError(f"{_NAME}: bias2 must be None where weight2 is None, got {tuple(bias2.shape)}")
    for name, bias in (("bias1", bias1), ("bias2", bias2)):
        if bias is not None:
            _check.shape(_NAME, f"{name}.shape", bias, (o,), "(weight1.shape[0],)")
    if attention is not None:
        _check.shape(_NAME, "attention.shape", attention, (b, kh * kw, h, w), "(B, kh*kw, h, w)")
    _check.fits(_NAME, "output", (b, o, h, w), input.dtype)


def _check_borders(borders: Any, branches: int) -> None:
    if not isinstance(borders, str) or len(borders) != branches or not set(borders) <= set(_LETTERS):
        which = "one letter, weight2 being None," if branches == 1 else "two letters, one a branch,"
        raise ValueError(f"{_NAME}: borders must be {which} each 'c', 'r' or 'z', got {borders!r}")


_operator = _GridConv()
