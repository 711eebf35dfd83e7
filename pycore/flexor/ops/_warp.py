# SPDX-License-Identifier: Apache-2.0
"""What the warps have in common: two tensors, input and where to read it, and two modes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _check, _vmap
from ._operator import Dims, Grads, Operator

MODES = ("bilinear", "nearest")
PADDING_MODES = ("zeros", "border")


class WarpOperator(Operator):
    """Arguments (input, where, ..., mode, padding_mode)."""

    def vmap_forward(self, batch: int, in_dims: Dims, *args: Any) -> tuple[Tensor, int]:
        tensors = _vmap.into_batch(*_vmap.leading(batch, in_dims, *args[:2]))
        return _vmap.out_of_batch(batch, self.op(*tensors, *args[2:])), 0

    def vmap_backward(self, batch: int, in_dims: Dims, *args: Any) -> tuple[Grads, Dims]:
        tensors = _vmap.into_batch(*_vmap.leading(batch, in_dims, *args[:3]))
        grads = self.backward_op(*tensors, *args[3:])
        grads = tuple(None if g is None else _vmap.out_of_batch(batch, g) for g in grads)
        return grads, tuple(None if g is None else 0 for g in grads)

    def autocast(self, dtype: torch.dtype, *args: Any) -> tuple[Any, ...]:
        """The input as it comes; positions in float32 unless they already have input's dtype."""
        input, where, *params = args
        return input, where if where.dtype in (input.dtype, torch.float64) else where.float(), *params


def check_modes(op: str, mode: str, padding_mode: str) -> None:
    _check.one_of(op, "mode", mode, MODES)
    _check.one_of(op, "padding_mode", padding_mode, PADDING_MODES)


def check_input(op: str, input: Any) -> None:
    _check.tensor(op, "input", input, "B C H W")
    _check.floating(op, "input", input)


def kernel_modes(mode: str, padding_mode: str) -> tuple[int, bool]:
    """The modes as flexor._C takes them."""
    return MODES.index(mode), bool(PADDING_MODES.index(padding_mode))


def plain_size(size: int | Sequence[int]) -> tuple[int, ...]:
    return tuple(size) if isinstance(size, Sequence) else (size, size)
