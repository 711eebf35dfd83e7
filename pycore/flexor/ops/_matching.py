# SPDX-License-Identifier: Apache-2.0
"""What the two matchings have in common: an input, and kernels of every sample's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from . import _check, _vmap
from ._operator import Dims, Grads, Operator, empty_image

Pair = int | Sequence[int]


def pair(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, Sequence) else (value, value)


class MatchingOperator(Operator):
    """Arguments (input, kernel, padding); the output has kernel.shape[1] channels."""

    tensors = ("Tensor input", "Tensor kernel")
    params = ("SymInt[2] padding",)
    kernel_layout: ClassVar[str]

    def check(self, *args: Any) -> None:
        input, kernel, padding = args
        name = self.name
        _check.tensor(name, "input", input, "B C H W")
        _check.tensor(name, "kernel", kernel, self.kernel_layout)
        _check.floating(name, "input", input)
        _check.same_dtype(name, "kernel", kernel, input)
        _check.same_device(name, input=input, kernel=kernel)
        _check.integers(name, "padding", padding, 0, "an integer not below 0")
        if min(kernel.shape[1:]) < 1:
            raise ValueError(f"{name}: kernel must have no empty dimension but the batch, got {tuple(kernel.shape)}")
        self._check_sizes(input, kernel, padding)

    def _check_sizes(self, input: Tensor, kernel: Tensor, padding: Sequence[int]) -> None:
        name, channels = self.name, kernel.dim() - 3
        described = f"(input {tuple(input.shape)}, kernel {tuple(kernel.shape)})"
        if kernel.shape[0] != input.shape[0]:
            raise ValueError(
                f"{name}: kernel.shape[0] must be input.shape[0] = {input.shape[0]}, as every sample has its own "
                f"kernels, got {kernel.shape[0]} {described}"
            )
        if kernel.shape[channels] != input.shape[1]:
            raise ValueError(
                f"{name}: kernel.shape[{channels}] must be input.shape[1] = {input.shape[1]}, "
                f"got {kernel.shape[channels]} {described}"
            )
        h, w = (input.shape[d] + 2 * padding[d - 2] for d in (2, 3))
        kh, kw = kernel.shape[-2:]
        if kh > h or kw > w:
            raise ValueError(
                f"{name}: kernel {kh}x{kw} must fit into the padded input {h}x{w} "
                f"(input {input.shape[2]}x{input.shape[3]}, padding {tuple(padding)})"
            )
        _check.fits(name, "output", (*kernel.shape[:2], h - kh + 1, w - kw + 1), input.dtype)

    def empty_output(self, input: Tensor, kernel: Tensor, padding: Sequence[int]) -> Tensor:
        (b, k), (kh, kw), (_, _, h, w) = kernel.shape[:2], kernel.shape[-2:], input.shape
        return empty_image(input, b, k, h + 2 * padding[0] - kh + 1, w + 2 * padding[1] - kw + 1)

    def vmap_forward(self, batch: int, in_dims: Dims, *args: Any) -> tuple[Tensor, int]:
        tensors = _vmap.into_batch(*_vmap.leading(batch, in_dims, *args[:2]))
        return _vmap.out_of_batch(batch, self.op(*tensors, *args[2:])), 0

    def vmap_backward(self, batch: int, in_dims: Dims, *args: Any) -> tuple[Grads, Dims]:
        tensors = _vmap.into_batch(*_vmap.leading(batch, in_dims, *args[:3]))
        grads = self.backward_op(*tensors, *args[3:])
        grads = tuple(None if g is None else _vmap.out_of_batch(batch, g) for g in grads)
        return grads, tuple(None if g is None else 0 for g in grads)

    def autocast(self, dtype: torch.dtype, *args: Any) -> tuple[Any, ...]:
        """Both in low precision, as a convolution's; float64 stays."""
        input, kernel, *params = args
        return args if input.dtype == torch.float64 else (input.to(dtype), kernel.to(dtype), *params)
