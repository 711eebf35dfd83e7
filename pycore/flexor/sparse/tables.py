# SPDX-License-Identifier: Apache-2.0
"""Modules that join or add several tensors, under spconv's names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .core import SparseConvTensor
from .functional import check_alike, sparse_add_hash_based
from .modules import SparseModule


class _Table(SparseModule):
    def input_spatial_size(self, out_size: Any) -> Any:
        return out_size


class JoinTable(_Table):
    """Channels of several tensors on the same voxels, one after another; they need not be as many in each.

    Raises:
        ValueError: other shapes or row counts.
    """

    def forward(self, input: Sequence[SparseConvTensor]) -> SparseConvTensor:
        check_alike("JoinTable", input, rows=True, channels=False)
        return input[0].replace(torch.cat([tensor.features for tensor in input], 1))


class AddTable(_Table):
    """The sum of several tensors on the same voxels.

    Raises:
        ValueError: other shapes, row or channel counts.
    """

    def forward(self, input: Sequence[SparseConvTensor]) -> SparseConvTensor:
        check_alike("AddTable", input, rows=True)
        features = input[0].features
        for tensor in input[1:]:
            features = features + tensor.features
        return input[0].replace(features)


class AddTableMisaligned(_Table):
    """The sum of several tensors over the union of their voxels; see `functional.sparse_add`."""

    def forward(self, input: Sequence[SparseConvTensor]) -> SparseConvTensor:
        return sparse_add_hash_based(*input)


class ConcatTable(SparseModule):
    """The list of what each of its modules makes of the input."""

    def forward(self, input: Any) -> list[Any]:
        return [module(input) for module in self._modules.values()]  # type: ignore[misc]

    def add(self, module: nn.Module) -> ConcatTable:
        self.add_module(str(len(self._modules)), module)
        return self

    def input_spatial_size(self, out_size: Any) -> Any:
        return self._modules["0"].input_spatial_size(out_size)  # type: ignore[union-attr, operator]
