# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _C, reference
from ..reference.sparse_pool import sparse_pool_backward
from . import _check, _vmap
from ._operator import Dims, Grads, Needs, Operator, may_be_differentiated
from .sparse_index import SparseMap

_NAME = "sparse_pool"
_MODES = ("max", "max0", "avg")


def sparse_pool(features: Tensor, map: SparseMap, mode: str = "max", *, backend: str | None = None) -> Tensor:
    """Pools the features of the voxels that are there in every window.

        max:  output[o] = max over pairs (o, i, k) of map of features[i]
        max0: the same and 0, as spconv has it
        avg:  output[o] = mean over pairs (o, i, k) of map of features[i]

    An output without any pair is 0.

    Args:
        features: (N_in, C), float64, float32, float16 or bfloat16; any strides; rows as in `map.input.indices`.
        map: of a `SparseIndex`, most often `strided`.
        mode: "max", "max0" or "avg".
        backend: "reference", "cpu", "triton" or "cuda" in place of the automatic choice.

    Returns:
        (N_out, C) in features' dtype, rows as in `map.out.indices`.

    Raises:
        ValueError: rows that are not the map's, another mode.
        TypeError: features that are not floating point, a map that is none.
        RuntimeError: a backend asked for by name that cannot run here.

    Notes:
        Differentiable to any order; a maximum's gradient goes to every input equal to it, as in spconv. NaN passes
        through. On the CPU, bits do not depend on threads.

    Source:
        spconv 2.3, SparseMaxPool and SparseAvgPool.
    """
    if not isinstance(map, SparseMap):
        raise TypeError(f"{_NAME}: map must be a SparseMap, got {type(map).__name__}")
    transposed = None
    if may_be_differentiated((features,)):
        transposed = [] if map.mirrored else map.transposed().tensors
    return _operator((features,), (map.tensors, transposed, mode), backend)


class _SparsePool(Operator):
    """A transposed_map is [] where map is mirrored, None for no gradient."""

    name = _NAME
    tensors = ("Tensor features",)
    params = ("Tensor[] map", "Tensor[]? transposed_map", "str mode")

    def check(self, *args: Any) -> None:
        features, map, _, mode = args
        _check.tensor(_NAME, "features", features, "N_in C")
        _check.floating(_NAME, "features", features)
        _check.same_device(_NAME, features=features, map=map[0])
        _check.one_of(_NAME, "mode", mode, _MODES)
        _check.rows(_NAME, "features.shape[0]", features.shape[0], map[1].shape[0], "the map's inputs")
        _check.fits(_NAME, "output", (map[0].shape[0], features.shape[1]), features.dtype)

    def empty_output(self, features: Tensor, map: Any, *_: Any) -> Tensor:
        return features.new_empty(map[0].shape[0], features.shape[1])

    def cpu_forward(self, features: Tensor, map: Any, transposed: Any, mode: str) -> Tensor:
        output = self.empty_output(features, map)
        _C.sparse_pool_forward(output, features, map, mode)
        return output

    def cpu_backward(self, grads: Grads, grad_output: Tensor, *args: Any) -> None:
        features, map, transposed, mode = args
        _check_differentiable(transposed)
        output = grad_output if mode == "avg" else self.cpu_forward(*args)  # a pass over it is cheaper than keeping it
        if grads[0] is not None:
            _C.sparse_pool_backward(grad_output, output, features, map, transposed, grads[0], mode)

    def triton_forward(self, *args: Any) -> Tensor:
        from ..kernels import sparse_pool as kernel

        return kernel.forward(*args)

    def triton_backward(self, needs: Needs, deterministic: bool, *args: Any) -> Grads:
        from ..kernels import sparse_pool as kernel

        _check_differentiable(args[3])
        return kernel.backward(*args, tuple(needs), deterministic)

    def reference_forward(self, features: Tensor, map: Any, transposed: Any, mode: str) -> Tensor:
        return reference.sparse_pool(features, map, mode)

    def reference_backward(self, grad_output: Tensor, features: Tensor, map: Any, transposed: Any, mode: str) -> Grads:
        return sparse_pool_backward(grad_output, features, map, mode)

    def vmap_forward(self, batch: int, in_dims: Dims, *args: Any) -> tuple[Tensor, int]:
        """One call, the elements side by side as channels."""
        (features,) = _vmap.into_channels(*_vmap.leading(batch, in_dims, args[0]))
        return _vmap.out_of_channels(batch, self.op(features, *args[1:])), 0

    def vmap_backward(self, batch: int, in_dims: Dims, *args: Any) -> tuple[Grads, Dims]:
        tensors = _vmap.into_channels(*_vmap.leading(batch, in_dims, *args[:2]))
        (grad,) = self.backward_op(*tensors, *args[2:])
        return (None if grad is None else _vmap.out_of_channels(batch, grad),), (None if grad is None else 0,)

    def autocast(self, dtype: torch.dtype, *args: Any) -> tuple[Any, ...]:
        """As it comes, like PyTorch's pooling."""
        return args


def _check_differentiable(transposed: Any) -> None:
    """Of calls that come straight to torch.ops.flexor: ops.sparse_pool hands over what a gradient needs."""
    if transposed is None:
        raise NotImplementedError(f"{_NAME}: the gradient of features needs a transposed_map, got None")


_operator = _SparsePool()
