# SPDX-License-Identifier: Apache-2.0
"""Batch normalisation over voxels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .sparse import SparseModule
from .sparse_tensor import SparseTensor


class SparseBatchNorm(SparseModule, nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` over voxels, also where only a run of the compiled code knows how many there are.

    Of fewer than two voxels, which have no variance, the running statistics serve and stay as they are, where
    `torch.nn.BatchNorm1d` raises in training. It takes plain features (N, C) too.

    Args:
        num_features, eps, momentum, affine: as for `torch.nn.BatchNorm1d`; running statistics are always kept.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1, affine: bool = True) -> None:
        super().__init__(num_features, eps, momentum, affine)

    def forward(self, input: Any) -> Any:
        if not isinstance(input, SparseTensor):
            return self._normed(input)
        return input.replace(self._normed(input.features))

    def _normed(self, features: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # torch's own asks whether there are any rows
            return self._learnt(features) if self.training else self._known(features)
        learns = self.training and features.shape[0] >= 2
        momentum = float(self._momentum(1)) if learns else 0.0
        statistics = self.running_mean, self.running_var
        return F.batch_norm(features, *statistics, self.weight, self.bias, learns, momentum, self.eps)

    def _momentum(self, batches: Any) -> Any:
        """Counts these batches, one or none; what their statistics weigh."""
        self.num_batches_tracked.add_(batches)
        return 1 / self.num_batches_tracked.clamp(min=1).double() if self.momentum is None else self.momentum

    def _learnt(self, features: Tensor) -> Tensor:
        """The formula, for any number of rows."""
        exact = features if features.dtype == torch.float64 else features.float()
        rows = torch.full((), features.shape[0], dtype=exact.dtype, device=exact.device)
        many = rows >= 2
        mean = exact.sum(0) / rows.clamp(min=1)
        var = (exact - mean).square().sum(0) / rows.clamp(min=1)
        weight = many.to(exact.dtype) * self._momentum(many)
        with torch.no_grad():
            unbiased = var * rows / (rows - 1).clamp(min=1)
            for running, value in ((self.running_mean, mean), (self.running_var, unbiased)):
                running.lerp_(value.to(running.dtype), weight.to(running.dtype))
        mean, var = torch.where(many, mean, self.running_mean), torch.where(many, var, self.running_var)
        return self._scaled(exact, mean, var).to(features.dtype)

    def _known(self, features: Tensor) -> Tensor:
        exact = features if features.dtype == torch.float64 else features.float()
        return self._scaled(exact, self.running_mean, self.running_var).to(features.dtype)

    def _scaled(self, features: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        normed = (features - mean) * (var + self.eps).rsqrt()
        return normed if self.weight is None else normed * self.weight + self.bias
