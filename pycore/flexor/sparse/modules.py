# SPDX-License-Identifier: Apache-2.0
"""Containers, norms and activations under spconv's names."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..nn import SparseTensor, sparse
from .core import SparseConvTensor, sparse_conv_tensor

VOXEL_COUNT = "max_num_voxels_during_training"

_SPCONV = "spconv.pytorch.modules"


class SparseModule(sparse.SparseModule):
    """What a `SparseSequential` gives the whole tensor to; other modules get its features."""

    def __init__(self, name: str | None = None) -> None:
        super().__init__()
        self.name = name
        self._sparse_unique_name = ""


class CountsVoxels(SparseModule):
    """A layer that can keep the largest number of voxels that it has put out, in a buffer of its state_dict."""

    def count_voxels(self, device: Any = None) -> None:
        self.register_buffer(VOXEL_COUNT, torch.zeros(1, dtype=torch.int32, device=device))

    def get_max_num_voxels(self) -> Tensor | None:
        return getattr(self, VOXEL_COUNT, None)

    def note_voxels(self, rows: int) -> None:
        count = self.get_max_num_voxels()
        if count is not None:
            count.clamp_(min=rows)


def is_spconv_module(module: nn.Module) -> bool:
    """Whether a `SparseSequential` gives this module the tensor, as also modules made for an installed spconv's."""
    if isinstance(module, sparse.SparseModule | SparseBatchNorm | SparseReLU):
        return True
    return any(base.__module__ == _SPCONV and base.__name__ == "SparseModule" for base in type(module).__mro__)


def is_sparse_conv(module: nn.Module) -> bool:
    from .conv import SparseConvolution  # not above: it is a SparseModule

    return isinstance(module, SparseConvolution)


class SparseSequential(SparseModule):
    """Modules one after another; those that are no `SparseModule` are applied to the features, unless there are none.

    Args:
        modules: in order, or one OrderedDict of them.
        named: further ones.

    Raises:
        ValueError: a name that is there twice.
    """

    def __init__(self, *args: Any, **kwargs: nn.Module) -> None:
        super().__init__()
        if len(args) == 1 and isinstance(args[0], OrderedDict):
            named = args[0]
        else:
            named = OrderedDict((str(i), module) for i, module in enumerate(args))
        for name, module in (*named.items(), *kwargs.items()):
            if name in self._modules:
                raise ValueError(f"SparseSequential: there is a module {name!r} already")
            self.add_module(name, module)

    def __getitem__(self, idx: int) -> nn.Module:
        if not -len(self) <= idx < len(self):
            raise IndexError(f"SparseSequential: index must be in [-{len(self)}, {len(self)}), got {idx}")
        return list(self._modules.values())[idx]  # type: ignore[return-value]

    def __len__(self) -> int:
        return len(self._modules)

    def add(self, module: nn.Module, name: str | None = None) -> None:
        """Appends a module, by default under its number."""
        name = str(len(self)) if name is None else name
        if name in self._modules:
            raise KeyError(f"SparseSequential: there is a module {name!r} already")
        self.add_module(name, module)

    def forward(self, input: Any) -> Any:
        for module in self._modules.values():
            input = module(input) if is_spconv_module(module) else on_features(module, input)  # type: ignore[misc, arg-type]
        return input


def on_features(apply: Callable[[Tensor], Tensor], input: Any) -> Any:
    """Applies it to a tensor's features, unless it has no rows; to anything else itself."""
    if not isinstance(input, SparseTensor) and not hasattr(input, "indice_dict"):
        return apply(input)
    input = sparse_conv_tensor(input)
    # A row count that only a run knows cannot decide what is compiled.
    if not torch.compiler.is_compiling() and input.features.shape[0] == 0:
        return input
    return input.replace(apply(input.features))


def assign_name_for_sparse_modules(module: nn.Module) -> None:
    """Tells every sparse module its name in the model."""
    for name, child in module.named_modules():
        if isinstance(child, SparseModule):
            child._sparse_unique_name = name


class SparseBatchNorm(nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` over the rows of a sparse tensor."""

    def forward(self, input: Any) -> Any:
        return on_features(super().forward, input)


class SparseSyncBatchNorm(nn.SyncBatchNorm):
    """`torch.nn.SyncBatchNorm` over the rows of a sparse tensor."""

    def forward(self, input: Any) -> Any:
        return on_features(super().forward, input)


class SparseReLU(nn.ReLU):
    def forward(self, input: Any) -> Any:
        return on_features(super().forward, input)


class SparseIdentity(nn.Identity):
    def forward(self, input: Any) -> Any:
        return input


class Identity(nn.Module):
    def forward(self, input: Any) -> Any:
        return input

    def input_spatial_size(self, out_size: Any) -> Any:
        return out_size


class ToDense(SparseModule):
    """(B, C, *spatial)."""

    def forward(self, x: SparseConvTensor) -> Tensor:
        return sparse_conv_tensor(x).dense()


class RemoveGrid(SparseModule):
    """Drops the grid that old code allocates."""

    def forward(self, x: SparseConvTensor) -> SparseConvTensor:
        x.grid = None
        return x


class PrintTensorMeta(nn.Module):
    """Prints the least, the largest and the mean feature."""

    def forward(self, x: Any) -> Any:
        features = x if isinstance(x, Tensor) else x.features
        print(features.min(), features.max(), features.mean())
        return x
