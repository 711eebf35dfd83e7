# SPDX-License-Identifier: Apache-2.0
"""Sparse pooling in plain PyTorch: over the voxels that are there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .bilinear import compute_dtype
from .sparse_conv import pairs


def sparse_pool(features: Tensor, map: Sequence[Tensor], mode: str = "max") -> Tensor:
    """Pools sparse features (N_in, C) over the voxels of every window; see `flexor.ops.sparse_pool`."""
    _, outputs, inputs = pairs(map)
    rows = features.to(compute_dtype(features))[inputs]
    if mode == "avg":
        total = rows.new_zeros(map[0].shape[0], features.shape[1]).index_add(0, outputs, rows)
        return (total / _counts(map, outputs, rows)).to(features.dtype)
    largest = _largest(rows.detach(), outputs, map, mode)
    tied = (rows.detach() == largest[outputs]) & rows.detach().isfinite()
    moving = torch.where(tied, rows - rows.detach(), 0)  # zero, and all that a derivative sees
    return largest.index_add(0, outputs, moving).to(features.dtype)


def sparse_pool_backward(grad_output: Tensor, features: Tensor, map: Sequence[Tensor], mode: str) -> tuple[Tensor]:
    """Gradient of `sparse_pool`, written out so that it differentiates: a maximum's goes to every input equal to it."""
    _, outputs, inputs = pairs(map)
    dtype = compute_dtype(features)
    grad, input = grad_output.to(dtype), features.to(dtype)
    if mode == "avg":
        shares = (grad / _counts(map, outputs, grad))[outputs]
    else:
        rows = input.detach()[inputs]
        shares = torch.where(rows == _largest(rows, outputs, map, mode)[outputs], grad[outputs], 0)
    return (torch.zeros_like(input).index_add(0, inputs, shares).to(features.dtype),)


def _counts(map: Sequence[Tensor], outputs: Tensor, like: Tensor) -> Tensor:
    """Voxels in each window, at least one."""
    return outputs.bincount(minlength=map[0].shape[0]).clamp(min=1).to(like.dtype)[:, None]


def _largest(rows: Tensor, outputs: Tensor, map: Sequence[Tensor], mode: str) -> Tensor:
    """0 where a window has no voxel."""
    start = rows.new_zeros(map[0].shape[0], rows.shape[1])
    index = outputs[:, None].expand_as(rows)
    return start.scatter_reduce(0, index, rows, "amax", include_self=mode == "max0")
