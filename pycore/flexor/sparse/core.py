# SPDX-License-Identifier: Apache-2.0
"""`SparseConvTensor`, what a convolution leaves under its indice_key, and spconv's enumerations."""

from __future__ import annotations

import time
from collections.abc import Sequence
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..nn.sparse_tensor import SparseTensor, voxels_of
from ..ops import SparseIndex, SparseMap
from . import pairs


class ConvAlgo(Enum):
    """Accepted wherever spconv takes it; there is one algorithm here, and layers of one indice_key may differ."""

    Native = 0
    MaskImplicitGemm = 1
    MaskSplitImplicitGemm = 2


class Activation(Enum):
    """What `SparseConvolution(act_type=...)` applies last; `cumm.tensorview.gemm.Activation` is taken too."""

    None_ = 0
    ReLU = 1
    Sigmoid = 2
    LeakyReLU = 3


class IndiceData:
    """What a layer with an indice_key leaves for others: who is whose neighbour, and by which geometry.

    `map` is what the layers here use. spconv's own tables are made from it when they are read, in spconv's format:
    `indice_pairs` (2, K, N) int32, input rows then output rows, -1 behind the last, and `indice_pair_num` (K,), where
    a submanifold layer lists only the taps before the centre; `pair_fwd` (K, N_out) and `pair_bwd` (K, N_in), the
    row at the other end of each tap or -1.
    """

    def __init__(
        self,
        map: SparseMap,
        is_subm: bool,
        algo: Any,
        ksize: list[int],
        stride: list[int],
        dilation: list[int],
        padding: list[int],
        voxel_num: Any = None,
    ) -> None:
        self.map, self.is_subm, self.algo = map, is_subm, algo
        self.ksize, self.stride, self.dilation, self.padding = ksize, stride, dilation, padding
        self.voxel_num = voxel_num

    @property
    def indices(self) -> Tensor:
        return self.map.input.indices

    @property
    def out_indices(self) -> Tensor:
        return self.map.out.indices

    @property
    def spatial_shape(self) -> list[int]:
        return _sizes(self.map.input)

    @property
    def out_spatial_shape(self) -> list[int]:
        return _sizes(self.map.out)

    @property
    def indice_pairs(self) -> Tensor:
        return pairs.padded(self.map, self.is_subm)[0]

    @property
    def indice_pair_num(self) -> Tensor:
        return pairs.padded(self.map, self.is_subm)[1]

    @property
    def pair_fwd(self) -> Tensor:
        return pairs.neighbours(self.map)

    @property
    def pair_bwd(self) -> Tensor:
        return pairs.neighbours(self.map.transposed())


ImplicitGemmIndiceData = IndiceData  # one class has both tables


class SparseConvTensor(SparseTensor):
    """spconv's tensor: features of active voxels, and the maps that layers of one indice_key share.

    Args:
        features: (N, C).
        indices: (N, 1 + D) int32 or int64, the sample first, no row twice, in the order of axes of spatial_shape.
        spatial_shape: D sizes.
        batch_size: samples.
        grid, voxel_num, permanent_thrust_allocator, enable_timer, force_algo: kept or ignored; nothing here needs them.
        indice_dict: maps by indice_key.
        benchmark: whether layers that have a name write their times into `benchmark_record`.

    Raises:
        ValueError: shapes that do not fit. A row that is there twice, or out of range, is found by the first layer.

    Source:
        spconv.pytorch.SparseConvTensor 2.3.8.
    """

    def __init__(
        self,
        features: Tensor,
        indices: Tensor,
        spatial_shape: Sequence[int],
        batch_size: int,
        grid: Tensor | None = None,
        voxel_num: Tensor | None = None,
        indice_dict: dict[str, Any] | None = None,
        benchmark: bool = False,
        permanent_thrust_allocator: bool = False,
        enable_timer: bool = False,
        force_algo: ConvAlgo | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"SparseConvTensor: batch_size must be at least 1, got {batch_size}")
        sizes = [int(size) for size in spatial_shape]
        super().__init__(features, SparseIndex(indices, spatial_shape=sizes, batch_size=int(batch_size)))
        self._version = _version(indices)
        self.indice_dict: dict[str, Any] = {} if indice_dict is None else indice_dict
        self.grid: Tensor | None = torch.zeros(0) if grid is None else grid
        self.voxel_num, self.int8_scale = voxel_num, None
        self.benchmark = benchmark
        self.benchmark_record: dict[str, Any] = {}
        self.thrust_allocator, self._timer, self.force_algo = None, None, force_algo

    @property
    def features(self) -> Tensor:
        return self._features

    @features.setter
    def features(self, value: Tensor) -> None:
        raise ValueError(
            "SparseConvTensor: features cannot be set; x = x.replace_feature(features) makes a tensor that has them"
        )

    @property
    def index(self) -> SparseIndex:
        """What maps are found through and kept with."""
        if self._version != _version(self._index.indices):
            self._move()
        return self._index

    def _move(self, **changed: Any) -> None:
        """Other voxels, which share no maps with those before."""
        old = self._index
        given = {"indices": old.indices, "spatial_shape": old.spatial_shape, "batch_size": old.batch_size, **changed}
        indices = given.pop("indices")
        self._index, self._version = SparseIndex(indices, **given), _version(indices)

    @property
    def indices(self) -> Tensor:
        return self._index.indices

    @indices.setter
    def indices(self, value: Tensor) -> None:
        self._move(indices=value)

    @property
    def spatial_shape(self) -> list[int]:
        return _sizes(self._index)

    @spatial_shape.setter
    def spatial_shape(self, value: Sequence[int]) -> None:
        self._move(spatial_shape=[int(size) for size in value])

    @property
    def batch_size(self) -> int:
        return self._index.batch_size

    @batch_size.setter
    def batch_size(self, value: int) -> None:
        self._move(batch_size=value)

    def checked_index(self, layer: str) -> SparseIndex:
        """The index, built, so that rows which it cannot take are an error that says where and what to do."""
        index = self.index
        if torch.compiler.is_compiling():
            return index
        try:
            _ = index.parts
        except ValueError as error:
            raise ValueError(
                f"{layer}: {error}. SparseConvTensor.coalesce(features, indices, spatial_shape, batch_size, "
                "reduce='mean') merges rows of one voxel; x.select_by_index(mask) drops rows; spatial_shape is in the "
                "order of indices' columns"
            ) from error
        return index

    def _with(self, features: Any, index: Any) -> SparseConvTensor:
        new: SparseConvTensor = super()._with(features, index)
        new._version = _version(index.indices)
        return new

    def replace_feature(self, feature: Tensor) -> SparseConvTensor:
        """Other features on the same voxels; everything else, indice_dict included, is shared."""
        return self.replace(feature)

    def shadow_copy(self) -> SparseConvTensor:
        """A new tensor with the same members."""
        return self.replace(self.features)

    def select_by_index(self, valid_indices: Tensor) -> SparseConvTensor:
        """The voxels of a mask (N,) or of row numbers; no maps are shared with what they are a part of."""
        new = self.select(valid_indices)
        new.indice_dict = {}
        return new

    def minus(self) -> SparseConvTensor:
        return self.replace(-self.features)

    def find_indice_pair(self, key: str | None) -> IndiceData | None:
        return None if key is None else self.indice_dict.get(key)

    @classmethod
    def from_dense(cls, x: Tensor) -> SparseConvTensor:
        """The voxels of a (B, *spatial, C) tensor, channels last as spconv has it, where any channel is not 0."""
        return cls(*voxels_of(x), x.shape[1:-1], x.shape[0])

    @property
    def spatial_size(self) -> int:
        size = 1
        for extent in self.spatial_shape:
            size *= extent
        return size

    @property
    def is_quantized(self) -> bool:
        return self.features.dtype == torch.qint8

    def q_scale(self) -> float:
        if not self.is_quantized:
            raise ValueError(f"SparseConvTensor: q_scale needs quantized features, got {self.features.dtype}")
        return self.features.q_scale()

    def dequantize(self) -> SparseConvTensor:
        return self.replace(self.features.dequantize())

    def __iadd__(self, other: SparseTensor | Tensor) -> SparseConvTensor:
        return self + other

    def __repr__(self) -> str:
        return f"SparseConvTensor[shape={self._features.shape}]"

    def clock(self) -> float:
        """Seconds, where layers are timed."""
        if not self.benchmark:
            return 0.0
        if self.features.is_cuda:
            torch.cuda.synchronize(self.features.device)
        return time.perf_counter()

    def record(self, layer: Any, started: float, mapped: float, output: SparseConvTensor, **params: Any) -> None:
        """Notes a call of a named layer in benchmark_record, as spconv does."""
        if not self.benchmark:
            return
        if layer.name is None:
            raise ValueError(f"{type(layer).__name__}: benchmark=True needs layers with a name, got name=None")
        entry = self.benchmark_record.setdefault(
            layer.name,
            {"type": type(layer).__name__, "indice_gen_time": [], "time": [], "num_points": [], "num_out_points": []},
        )
        entry["params"] = params
        entry["indice_gen_time"].append(mapped - started)
        entry["time"].append(output.clock() - mapped)
        entry["num_points"].append(self.features.shape[0])
        entry["num_out_points"].append(output.features.shape[0])


def sparse_conv_tensor(value: Any) -> SparseConvTensor:
    """Value itself, or the same for a tensor of `flexor.nn`, or of an spconv that is installed beside this package."""
    if isinstance(value, SparseConvTensor):
        return value
    if isinstance(value, SparseTensor):
        if value.spatial_shape is None:
            raise ValueError("flexor.sparse needs a spatial_shape, which this SparseTensor lacks; flexor.nn does not")
        tensor = SparseConvTensor(value.features, value.indices, value.spatial_shape, value.batch_size)
        tensor._index = value.index
        return tensor
    if not hasattr(value, "indice_dict"):
        raise TypeError(f"expected a SparseConvTensor, got {type(value).__name__}")
    bounds = value.spatial_shape, value.batch_size
    maps = {key: data for key, data in value.indice_dict.items() if isinstance(data, IndiceData)}
    return SparseConvTensor(value.features, value.indices, *bounds, indice_dict=maps)


def expand_nd(ndim: int, val: Any) -> list[int]:
    """One number for all axes, or one an axis, as a list."""
    values = [val] * ndim if isinstance(val, int) else list(val)
    if len(values) != ndim:
        raise ValueError(f"expected one number or {ndim} of them, got {values}")
    return [int(v) for v in values]


def _sizes(index: SparseIndex) -> list[int]:
    return list(index.spatial_shape or ())


def _version(indices: Tensor) -> int:
    """How often indices were written to in place, where this is counted."""
    return 0 if torch.compiler.is_compiling() or indices.is_inference() else indices._version


def _flatten(tensor: SparseConvTensor) -> tuple[list[Any], Any]:
    children = [tensor._features, tensor.index, tensor.grid, tensor.voxel_num, tensor.indice_dict]
    return children, (tensor.benchmark, tensor.benchmark_record, tensor.force_algo, tensor.int8_scale)


def _unflatten(children: Any, context: Any) -> SparseConvTensor:
    """Whatever the children are: a mapping over the tree may have made anything of its tensors."""
    tensor = object.__new__(SparseConvTensor)
    tensor._features, tensor._index, tensor.grid, tensor.voxel_num, tensor.indice_dict = children
    tensor.benchmark, tensor.benchmark_record, tensor.force_algo, tensor.int8_scale = context
    tensor.thrust_allocator, tensor._timer = None, None
    indices = getattr(tensor._index, "indices", None)
    tensor._version = _version(indices) if isinstance(indices, Tensor) else 0
    return tensor


def _flatten_data(data: IndiceData) -> tuple[list[Any], Any]:
    geometry = data.ksize, data.stride, data.dilation, data.padding
    return [data.map, data.voxel_num], (data.is_subm, data.algo, *geometry)


def _unflatten_data(children: Any, context: Any) -> IndiceData:
    map, voxel_num = children
    is_subm, algo, ksize, stride, dilation, padding = context
    return IndiceData(map, is_subm, algo, ksize, stride, dilation, padding, voxel_num)


pytree.register_pytree_node(
    SparseConvTensor, _flatten, _unflatten, serialized_type_name="flexor.sparse.SparseConvTensor"
)
pytree.register_pytree_node(IndiceData, _flatten_data, _unflatten_data, serialized_type_name="flexor.sparse.IndiceData")
