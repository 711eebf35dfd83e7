# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _C, reference
from ..reference.sparse_conv import sparse_conv_backward
from . import _check, _vmap
from ._operator import Dims, Grads, Needs, Operator, may_be_differentiated
from .sparse_index import SparseMap

_NAME = "sparse_conv"


def sparse_conv(
    features: Tensor,
    weight: Tensor,
    map: SparseMap,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    groups: int = 1,
    slope: float | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """Convolves the features of sparse voxels.

        output[o] = act(bias + residual[o] + sum over pairs (o, i, k) of map of weight[:, k] @ features[i])

    with act(v) = v where v > 0, else slope * v.

    Args:
        features: (N_in, Cin), float64, float32, float16 or bfloat16; any strides; rows as in `map.input.indices`.
        weight: (Cout, *map.kernel, Cin / groups), features' dtype.
        map: of a `SparseIndex`: `submanifold`, `strided`, `generative`, or the `transposed()` of one, which makes an
            inverse convolution.
        bias: (Cout,), features' dtype, or None.
        residual: (N_out, Cout), features' dtype, or None.
        groups: channels convolve within their group.
        slope: of the activation below 0: None for no activation, 0 for a ReLU.
        backend: "reference", "cpu", "triton" or "cuda" in place of the automatic choice.

    Returns:
        (N_out, Cout) in features' dtype, rows as in `map.out.indices`.

    Raises:
        ValueError: shapes that do not fit one another or the map, tensors on different devices.
        TypeError: dtypes that are mixed or not floating point, a map that is none.
        RuntimeError: a backend asked for by name that cannot run here.

    Notes:
        Differentiable in every tensor, to any order. Sums are in float32 (float64 for float64). On the CPU, bits do
        not depend on threads.

    Source:
        Graham et al., 3D Semantic Segmentation with Submanifold Sparse Convolutional Networks, CVPR 2018; weights and
        numbers are those of spconv 2.3.
    """
    if not isinstance(map, SparseMap):
        raise TypeError(f"{_NAME}: map must be a SparseMap, got {type(map).__name__}")
    kernel = _taps_in_line(weight, map)
    tensors = features, kernel, bias, residual
    if not may_be_differentiated(tensors):
        return _operator(tensors, (map.tensors, None, groups, slope), backend)
    transposed = [] if map.mirrored else map.transposed().tensors
    output = _operator(tensors, (map.tensors, transposed, groups, None), backend)
    if slope is None:
        return output
    return F.relu(output) if slope == 0 else F.leaky_relu(output, slope)


class _SparseConv(Operator):
    """weight is (Cout, K, Cin / groups). A transposed_map is [] where map is mirrored, None for no input gradient."""

    name = _NAME
    tensors = ("Tensor features", "Tensor weight", "Tensor? bias", "Tensor? residual")
    params = ("Tensor[] map", "Tensor[]? transposed_map", "int groups", "float? slope")

    def check(self, *args: Any) -> None:
        features, weight, bias, residual, map, _, groups, slope = args
        _check_tensors(features, weight, bias, residual)
        _check.same_device(_NAME, features=features, weight=weight, bias=bias, residual=residual, map=map[0])
        _check_channels(features, weight, groups)
        _check.rows(_NAME, "features.shape[0]", features.shape[0], map[1].shape[0], "the map's inputs")
        if bias is not None:
            _check.shape(_NAME, "bias.shape", bias, (weight.shape[0],), "(weight.shape[0],)")
        if residual is not None:
            _check.rows(_NAME, "residual.shape[0]", residual.shape[0], map[0].shape[0], "the map's outputs")
            _check.rows(_NAME, "residual.shape[1]", residual.shape[1], weight.shape[0], "weight.shape[0]")
        if slope is not None and not math.isfinite(slope):
            raise ValueError(f"{_NAME}: slope must be a finite number or None, got {slope}")
        _check.fits(_NAME, "output", (map[0].shape[0], weight.shape[0]), features.dtype)

    def empty_output(self, *args: Any) -> Tensor:
        features, weight, _, _, map, *_ = args
        return features.new_empty(map[0].shape[0], weight.shape[0])

    def cpu_forward(self, *args: Any) -> Tensor:
        *tensors, map, _, groups, slope = args
        if slope is not None and not math.isfinite(slope):
            self.check(*args)  # the kernel would take these
        output = self.empty_output(*args)
        _C.sparse_conv_forward(output, *tensors, map, groups, math.nan if slope is None else slope)
        return output

    def cpu_backward(self, grads: Grads, *args: Any) -> None:
        grad_output, features, weight, _, _, map, transposed, groups, slope = args
        _check_differentiable(grads[0] is not None, transposed, slope)
        _C.sparse_conv_backward(grad_output, features, weight, map, transposed or [], *grads[:3], groups)
        if grads[3] is not None:
            grads[3].copy_(grad_output)

    def triton_forward(self, *args: Any) -> Tensor:
        from ..kernels import sparse_conv as kernel

        return kernel.forward(*args)

    def triton_backward(self, needs: Needs, deterministic: bool, *args: Any) -> Grads:
        from ..kernels import sparse_conv as kernel

        *_, transposed, _, slope = args
        _check_differentiable(needs[0], transposed, slope)
        return kernel.backward(*args, tuple(needs), deterministic)

    def reference_forward(self, *args: Any) -> Tensor:
        *tensors, map, _, groups, slope = args
        return reference.sparse_conv(*tensors, map, groups, slope)

    def reference_backward(self, *args: Any) -> Grads:
        grad_output, *tensors, map, _, groups, slope = args
        _check_differentiable(False, None, slope)
        return sparse_conv_backward(grad_output, *tensors, map, groups)

    def vmap_forward(self, batch: int, in_dims: Dims, *args: Any) -> tuple[Tensor, int]:
        """A call for every element: each has all rows of the map."""
        tensors = _vmap.leading(batch, in_dims, *args[:4])
        return torch.stack([self.op(*_vmap.element(tensors, i), *args[4:]) for i in range(batch)]), 0

    def vmap_backward(self, batch: int, in_dims: Dims, *args: Any) -> tuple[Grads, Dims]:
        tensors = _vmap.leading(batch, in_dims, *args[:5])
        return _vmap.stacked([self.backward_op(*_vmap.element(tensors, i), *args[5:]) for i in range(batch)])

    def autocast(self, dtype: torch.dtype, *args: Any) -> tuple[Any, ...]:
        """All in low precision, as a convolution's; float64 stays."""
        if args[0].dtype == torch.float64:
            return args
        return *(None if t is None else t.to(dtype) for t in args[:4]), *args[4:]


def _taps_in_line(weight: Any, map: SparseMap) -> Tensor:
    """(Cout, *kernel, Cin / groups) as (Cout, K, Cin / groups)"""
    dims = len(map.kernel)
    if not isinstance(weight, Tensor):
        raise TypeError(f"{_NAME}: weight must be a tensor, got {type(weight).__name__}")
    if weight.dim() != dims + 2 or tuple(weight.shape[1:-1]) != map.kernel:
        raise ValueError(
            f"{_NAME}: weight must be (Cout, *kernel, Cin / groups) with the map's kernel {map.kernel}, "
            f"got {tuple(weight.shape)}"
        )
    return weight if dims == 1 else weight.flatten(1, -2)


def _check_tensors(features: Any, weight: Any, bias: Any, residual: Any) -> None:
    _check.tensor(_NAME, "features", features, "N_in Cin")
    _check.floating(_NAME, "features", features)
    for name, value, layout in (("weight", weight, "Cout K Cin/groups"), ("bias", bias, "Cout")):
        if value is not None:
            _check.tensor(_NAME, name, value, layout)
            _check.same_dtype(_NAME, name, value, features, of="features'")
    if residual is not None:
        _check.tensor(_NAME, "residual", residual, "N_out Cout")
        _check.same_dtype(_NAME, "residual", residual, features, of="features'")


def _check_channels(features: Tensor, weight: Tensor, groups: int) -> None:
    cout, _, per_group = weight.shape
    if min(weight.shape) < 1:
        raise ValueError(f"{_NAME}: weight must have no empty dimension, got {tuple(weight.shape)}")
    if groups < 1 or cout % groups:
        raise ValueError(f"{_NAME}: groups must be 1 or more and divide weight.shape[0] = {cout}, got {groups}")
    if features.shape[1] != per_group * groups:
        raise ValueError(
            f"{_NAME}: features.shape[1] must be weight.shape[-1] * groups = {per_group * groups}, "
            f"got {features.shape[1]} (groups {groups})"
        )


def _check_differentiable(input_gradient: bool, transposed: Any, slope: float | None) -> None:
    """Of calls that come straight to torch.ops.flexor: ops.sparse_conv hands over what a gradient needs."""
    if slope is not None:
        raise NotImplementedError(f"{_NAME}: gradients need slope None, the activation coming after; got {slope}")
    if input_gradient and transposed is None:
        raise NotImplementedError(f"{_NAME}: the gradient of features needs a transposed_map, got None")


_operator = _SparseConv()
