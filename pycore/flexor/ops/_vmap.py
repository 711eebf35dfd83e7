# SPDX-License-Identifier: Apache-2.0
"""Batching rules: how one call does the work of a vmapped dimension, as images or as channel groups."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def leading(batch: int, in_dims: Sequence[int | None], *tensors: Tensor | None) -> list[Tensor | None]:
    """The vmapped dimension first; a tensor without one is expanded."""
    return [
        None if t is None else t.expand(batch, *t.shape) if dim is None else t.movedim(dim, 0)
        for t, dim in zip(tensors, in_dims, strict=True)
    ]


def into_batch(*tensors: Tensor | None) -> list[Tensor | None]:
    """[V, N, ...] -> [V*N, ...]"""
    return [None if t is None else t.flatten(0, 1) for t in tensors]


def out_of_batch(batch: int, tensor: Tensor) -> Tensor:
    """[V*N, ...] -> [V, N, ...]"""
    return tensor.unflatten(0, (batch, tensor.shape[0] // batch))


def into_channels(*tensors: Tensor | None) -> list[Tensor | None]:
    """[V, N, C, ...] -> [N, V*C, ...]"""
    return [None if t is None else t.movedim(0, 1).flatten(1, 2) for t in tensors]


def out_of_channels(batch: int, tensor: Tensor) -> Tensor:
    """[N, V*C, ...] -> [V, N, C, ...]"""
    return tensor.unflatten(1, (batch, tensor.shape[1] // batch)).movedim(1, 0)


def element(tensors: Sequence[Tensor | None], i: int) -> list[Tensor | None]:
    """One of the vmapped dimension that comes first."""
    return [None if t is None else t[i] for t in tensors]


def stacked(each: Sequence[Sequence[Tensor | None]]) -> tuple[tuple[Tensor | None, ...], tuple[int | None, ...]]:
    """Gradients of all elements, each element's in a row, and where they have the vmapped dimension."""
    grads = tuple(None if column[0] is None else torch.stack(column) for column in zip(*each, strict=True))
    return grads, tuple(None if g is None else 0 for g in grads)
