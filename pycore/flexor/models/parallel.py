# SPDX-License-Identifier: Apache-2.0
"""Several processes that train as one: the same gradients as one process with the whole batch.

Each process takes its share of every batch. Batch norms take their statistics over all shares, which need not have the
same number of rows, dropout draws the whole batch's mask in every process and uses its share of it, and gradients are
averaged.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn.sparse_norm import SparseBatchNorm


def start() -> bool:
    """Join the other processes if torchrun started this one; whether it did."""
    if "WORLD_SIZE" not in os.environ or not dist.is_available():
        return False
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    return True


def stop() -> None:
    """Leave the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def wait() -> None:
    """Until all processes are here."""
    if size() > 1:
        dist.barrier()


def share(batch: Tensor) -> Tensor:
    """This process's part of a batch that all have."""
    part = len(batch) // size()
    return batch[rank() * part : (rank() + 1) * part]


def total(value: float) -> float:
    """The sum of every process's value."""
    if size() == 1:
        return value
    return float(add_up(torch.tensor(value, dtype=torch.float64)))


def add_up(values: Tensor) -> Tensor:
    """The sum of every process's values, in place."""
    if size() > 1:
        dist.all_reduce(values)
    return values


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its mean over the processes."""
    if size() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def synchronise(model: nn.Module) -> nn.Module:
    """Make a model's batch norms and dropouts act on the whole batch of all processes. Its state_dict is unchanged."""
    for module in model.modules():
        if isinstance(module, SparseBatchNorm):  # of whatever class it is, which may do more than the norm
            kind = type(module)
            module.__class__ = type(f"_WholeBatch{kind.__name__}", (_WholeBatchSparseNorm, kind), {})
        elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.__class__ = _WholeBatchNorm
        elif isinstance(module, (nn.Dropout, nn.Dropout2d)):
            per_channel = isinstance(module, nn.Dropout2d)
            module.__class__ = _WholeBatchDropout2d if per_channel else _WholeBatchDropout
    return model


class _Sum(torch.autograd.Function):
    """The sum over the processes, whose gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        whole = part.clone()
        dist.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradient)


class _WholeBatchNorm(nn.BatchNorm1d):
    # torch's own SyncBatchNorm refuses tensors on the CPU.

    def forward(self, input: Tensor) -> Tensor:
        return _whole_batch_norm(self, input)


class _WholeBatchSparseNorm(SparseBatchNorm):
    def _normed(self, features: Tensor) -> Tensor:
        return _whole_batch_norm(self, features)


def _whole_batch_norm(norm: nn.BatchNorm1d, input: Tensor) -> Tensor:
    if not norm.training:
        return F.batch_norm(input, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
    dims = [0, *range(2, input.dim())]
    count = max(total(input.numel() // input.shape[1]), 2.0)  # fewer have no variance
    mean = _Sum.apply(input.sum(dims)) / count
    view = (-1, *(1,) * (input.dim() - 2))
    centred = input - mean.view(view)
    variance = _Sum.apply(centred.square().sum(dims)) / count
    assert norm.running_mean is not None and norm.running_var is not None and norm.momentum is not None
    assert norm.num_batches_tracked is not None
    norm.running_mean.lerp_(mean.detach(), norm.momentum)
    norm.running_var.lerp_(variance.detach() * count / (count - 1), norm.momentum)
    norm.num_batches_tracked += 1
    scale = norm.weight * (variance + norm.eps).rsqrt()
    return centred * scale.view(view) + norm.bias.view(view)


class _WholeBatchDropout(nn.Dropout):
    def forward(self, input: Tensor) -> Tensor:
        return self._dropped(input, input.shape)

    def _dropped(self, input: Tensor, shape: torch.Size) -> Tensor:
        if not self.training or self.p == 0:
            return input
        keep = 1 - self.p
        mask = torch.zeros((shape[0] * size(), *shape[1:]), dtype=input.dtype).bernoulli_(keep).div_(keep)
        return input * share(mask).to(input.device)


class _WholeBatchDropout2d(_WholeBatchDropout):
    def forward(self, input: Tensor) -> Tensor:
        return self._dropped(input, torch.Size((*input.shape[:2], *(1,) * (input.dim() - 2))))
