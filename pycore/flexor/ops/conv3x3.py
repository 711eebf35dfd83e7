# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _C, reference
from ..reference.conv3x3 import conv3x3_backward
from . import _check, _vmap
from ._operator import Dims, Grads, Needs, Operator, empty_image

_NAME = "conv3x3"


def conv3x3(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, dilation: int = 1, *, backend: str | None = None
) -> Tensor:
    """Convolves with 3x3 taps at stride 1, padded by the dilation, so that the output has the input's size.

        output[b, o, y, x] = bias[o] + sum over c, i, j of
            weight[o, c, i, j] * input[b, c, y + (i - 1) * dilation, x + (j - 1) * dilation]

    Args:
        input: (B, C, H, W), float64, float32, float16 or bfloat16; any strides. B may be 0.
        weight: (O, C, 3, 3), input's dtype.
        bias: (O,), input's dtype, or None.
        dilation: distance between taps, also the rows and columns of zeros around the input.
        backend: "reference" or "cpu" in place of the automatic choice.

    Returns:
        (B, O, H, W) in input's dtype; channels_last when input is.

    Raises:
        ValueError: shapes that do not fit, a dilation below 1, tensors on different devices.
        TypeError: dtypes that are mixed or not floating point.
        RuntimeError: a backend asked for by name that cannot run here.

    Notes:
        Differentiable in every tensor, to any order. On the CPU both directions use Winograd's F(2x2, 3x3), with 16
        products in place of 36 for four outputs, at any dilation: sums are in float32 (float64 for float64) and
        differ from a direct sum by rounding; what is not finite spreads to the outputs of its tile, up to two
        dilations away. Bits do not depend on threads. Elsewhere it is PyTorch's own convolution.

    Source:
        Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016, section 4.1.
    """
    return _operator((input, weight, bias), (dilation,), backend)


class _Conv3x3(Operator):
    name = _NAME
    tensors = ("Tensor input", "Tensor weight", "Tensor? bias")
    params = ("int dilation",)

    def check(self, *args: Any) -> None:
        input, weight, bias, dilation = args
        _check.tensor(_NAME, "input", input, "B C H W")
        _check.tensor(_NAME, "weight", weight, "O C 3 3")
        _check.floating(_NAME, "input", input)
        _check.same_dtype(_NAME, "weight", weight, input)
        if bias is not None:
            _check.tensor(_NAME, "bias", bias, "O")
            _check.same_dtype(_NAME, "bias", bias, input)
            _check.shape(_NAME, "bias.shape", bias, weight.shape[:1], "(weight.shape[0],)")
        _check.same_device(_NAME, input=input, weight=weight, bias=bias)
        expected = (weight.shape[0], input.shape[1], 3, 3)
        _check.shape(_NAME, "weight.shape", weight, expected, "(O, input.shape[1], 3, 3)")
        if min(weight.shape) < 1 or min(input.shape[2:]) < 1:
            raise ValueError(
                f"{_NAME}: input and weight must have no empty dimension but the batch, got {tuple(input.shape)} and "
                f"{tuple(weight.shape)}"
            )
        if isinstance(dilation, bool) or not isinstance(dilation, int) or dilation < 1:
            raise ValueError(f"{_NAME}: dilation must be a positive integer, got {dilation!r}")

    def empty_output(self, input: Tensor, weight: Tensor, *_: Any) -> Tensor:
        return empty_image(input, input.shape[0], weight.shape[0], *input.shape[2:])

    def cpu_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
        output = self.empty_output(input, weight)
        _C.conv3x3_forward(output, input, weight, bias, dilation)
        return output

    def cpu_backward(self, grads: Grads, *args: Any) -> None:
        grad_output, input, weight, _, dilation = args
        _C.conv3x3_backward(grad_output, input, weight, *grads, dilation)

    def triton_forward(self, *args: Any) -> Tensor:
        raise NotImplementedError(f"{_NAME}: there is no Triton kernel")

    def triton_backward(self, needs: Needs, deterministic: bool, *args: Any) -> Grads:
        raise NotImplementedError(f"{_NAME}: there is no Triton kernel")

    def reference_forward(self, *args: Any) -> Tensor:
        return reference.conv3x3(*args)

    def reference_backward(self, *args: Any) -> Grads:
        return conv3x3_backward(*args)

    def vmap_forward(self, batch: int, in_dims: Dims, *args: Any) -> tuple[Tensor, int]:
        tensors = _vmap.leading(batch, in_dims, *args[:3])
        if in_dims[1] is None and in_dims[2] is None:
            (input,) = _vmap.into_batch(tensors[0])
            return _vmap.out_of_batch(batch, self.op(input, *args[1:])), 0
        return torch.stack([self.op(*_vmap.element(tensors, i), *args[3:]) for i in range(batch)]), 0

    def vmap_backward(self, batch: int, in_dims: Dims, *args: Any) -> tuple[Grads, Dims]:
        tensors = _vmap.leading(batch, in_dims, *args[:4])
        return _vmap.stacked([self.backward_op(*_vmap.element(tensors, i), *args[4:]) for i in range(batch)])

    def autocast(self, dtype: torch.dtype, *args: Any) -> tuple[Any, ...]:
        """All in low precision, as a convolution's; float64 stays."""
        if args[0].dtype == torch.float64:
            return args
        return *(None if t is None else t.to(dtype) for t in args[:3]), *args[3:]


_operator = _Conv3x3()
