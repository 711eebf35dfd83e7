# SPDX-License-Identifier: Apache-2.0
"""Features on a set of voxels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..ops import SparseIndex

REDUCTIONS = ("sum", "mean", "amax", "amin")

_T = TypeVar("_T", bound="SparseTensor")


class SparseTensor:
    """A feature vector for each active voxel.

    Maps between voxels are found at the first convolution that needs them and kept with the index, so that every
    tensor on the same voxels (`replace`, submanifold and transposed convolutions) shares them.

    Args:
        features: (N, C).
        indices: (N, 1 + D) int32 or int64, the sample first, then D = 1..4 coordinates, no row twice; or the
            `flexor.ops.SparseIndex` of another tensor.
        spatial_shape: D sizes that bound the coordinates from 0 up, or None: any coordinates, negative ones too.
        batch_size: samples, or None: measured.

    Raises:
        ValueError: features that are not one row a voxel.

    Source:
        Graham et al., 3D Semantic Segmentation with Submanifold Sparse Convolutional Networks, CVPR 2018.
    """

    def __init__(
        self,
        features: Tensor,
        indices: Tensor | SparseIndex,
        spatial_shape: Sequence[int] | None = None,
        batch_size: int | None = None,
    ) -> None:
        if isinstance(indices, Tensor):
            indices = SparseIndex(indices, spatial_shape=spatial_shape, batch_size=batch_size)
        check_rows(type(self).__name__, features, indices.indices)
        self._features, self._index = features, indices

    @property
    def features(self) -> Tensor:
        return self._features

    @property
    def index(self) -> SparseIndex:
        return self._index

    @property
    def indices(self) -> Tensor:
        return self.index.indices

    @property
    def spatial_shape(self) -> Any:
        return self.index.spatial_shape

    @property
    def batch_size(self) -> Any:
        return self.index.batch_size

    def replace(self: _T, features: Tensor, index: SparseIndex | None = None) -> _T:
        """Other features on the same voxels, or on those of another index."""
        index = self.index if index is None else index
        check_rows(type(self).__name__, features, index.indices)
        return self._with(features, index)

    def _with(self: _T, features: Any, index: Any) -> _T:
        new = object.__new__(type(self))
        new.__dict__.update(self.__dict__, _features=features, _index=index)
        return new

    @classmethod
    def coalesce(
        cls: type[_T],
        features: Tensor,
        indices: Tensor,
        spatial_shape: Sequence[int] | None = None,
        batch_size: int | None = None,
        reduce: str = "mean",
    ) -> _T:
        """A tensor from rows of which several may lie in one voxel: these become one row, in lexicographic order.

        Args:
            features: (N, C).
            indices: (N, 1 + D) int32 or int64.
            spatial_shape, batch_size: as for the class.
            reduce: "sum", "mean", "amax" or "amin".

        Returns:
            One row a voxel; the gradient goes to every row that was merged.

        Raises:
            ValueError: another reduction, features that are not one row a voxel.
        """
        if reduce not in REDUCTIONS:
            raise ValueError(f"{cls.__name__}.coalesce: reduce must be one of {', '.join(REDUCTIONS)}, got {reduce!r}")
        check_rows(f"{cls.__name__}.coalesce", features, indices)
        voxels, place = unique_rows(indices)
        return cls(reduce_rows(features, place, len(voxels), reduce), voxels, spatial_shape, batch_size)

    @classmethod
    def from_dense(cls: type[_T], dense: Tensor) -> _T:
        """The voxels of a (B, C, *spatial) tensor where any channel is not 0, in lexicographic order."""
        return cls(*voxels_of(dense.movedim(1, -1)), dense.shape[2:], dense.shape[0])

    def dense(self, channels_first: bool = True) -> Tensor:
        """(B, C, *spatial), or (B, *spatial, C), 0 where no voxel is.

        Raises:
            ValueError: without a spatial shape, or a coordinate outside it.
        """
        if self.spatial_shape is None:
            raise ValueError(f"{type(self).__name__}.dense: there is no spatial_shape; give one with the indices")
        sizes = [self.batch_size, *self.spatial_shape]
        check_inside(f"{type(self).__name__}.dense", self.indices, sizes)
        dense = self.features.new_zeros(*sizes, self.features.shape[1])
        dense = dense.index_put(self.indices.long().unbind(1), self.features)
        return dense.movedim(-1, 1).contiguous() if channels_first else dense

    def select(self: _T, rows: Tensor) -> _T:
        """The voxels of a mask (N,) or of row numbers."""
        index = SparseIndex(self.indices[rows], spatial_shape=self.spatial_shape, batch_size=self.batch_size)
        return self.replace(self.features[rows], index)

    def in_block_order(self: _T) -> tuple[_T, Tensor]:
        """The same with rows in the order of blocks of voxels, and where each row here is there: `rows[place]` is rows.

        Layers read neighbours; with rows in this order they find them in cache.
        """
        order = self.index.parts[0]
        place = torch.zeros_like(order).scatter_(
            0, order.long(), torch.arange(order.shape[0], dtype=order.dtype, device=order.device)
        )
        return self.replace(self.features.index_select(0, order), self.index.in_block_order()), place

    def to(self: _T, *args: Any, **kwargs: Any) -> _T:
        """As `Tensor.to` for the features; the voxels follow to another device."""
        features = self.features.to(*args, **kwargs)
        if features.device == self.indices.device:
            return self.replace(features)
        indices = self.indices.to(features.device)
        return self.replace(features, SparseIndex(indices, **_bounds(self)))

    def __add__(self: _T, other: SparseTensor | Tensor) -> _T:
        return self.replace(self.features + _features_of(other))

    __radd__ = __add__

    def __repr__(self) -> str:
        sizes = None if self.spatial_shape is None else list(self.spatial_shape)
        return f"{type(self).__name__}(features={tuple(self.features.shape)}, spatial_shape={sizes})"


def _bounds(tensor: SparseTensor) -> dict[str, Any]:
    return {"spatial_shape": tensor.spatial_shape, "batch_size": tensor.batch_size}


def _features_of(value: SparseTensor | Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, SparseTensor):
        return value.features
    raise TypeError(f"SparseTensor: + takes a SparseTensor on the same voxels or a tensor, got {type(value).__name__}")


def check_rows(name: str, features: Tensor, indices: Tensor) -> None:
    """Raises unless features are (N, C) for N indices; where N is not known before a run, the run checks."""
    if features.dim() != 2:
        raise ValueError(f"{name}: features must have 2 dimensions (N, C), got {tuple(features.shape)}")
    if torch.compiler.is_compiling():
        torch._check(features.shape[0] == indices.shape[0])
    elif features.shape[0] != indices.shape[0]:
        raise ValueError(
            f"{name}: features must have one row a voxel = {indices.shape[0]}, got {features.shape[0]}; "
            "for a part of the voxels take select_by_index or select"
        )


def enough_rows(indices: Tensor, training: bool) -> None:
    """While compiling, has the run check that a new set of voxels is not empty, or in training has two.

    `torch.nn.BatchNorm1d` asks for this, and a size that only a run knows cannot answer while compiling.
    """
    if torch.compiler.is_compiling():
        least = 2 if training else 1
        torch._check(indices.shape[0] >= least, lambda: f"compiled code needs {least} voxels or more at every level")


def check_inside(name: str, indices: Tensor, sizes: Sequence[int]) -> None:
    """Raises, with one of them, unless all indices lie in [0, sizes). Not while compiling."""
    if torch.compiler.is_compiling():
        return
    outside = ((indices < 0) | (indices >= torch.tensor(list(sizes), device=indices.device))).any(1)
    if outside.any():
        row = int(outside.nonzero()[0])
        raise ValueError(
            f"{name}: row {row} of indices is {indices[row].tolist()}, outside of [batch_size, *spatial_shape] = "
            f"{list(sizes)}; drop such rows, or check the order of axes (spatial_shape is in the order of indices)"
        )


def row_keys(indices: Tensor) -> Tensor:
    """(N,) int64: as ordered, and as equal, as the rows.

    Raises:
        ValueError: coordinates too far apart to be numbered in 63 bits.
    """
    if len(indices) == 0:
        return indices.new_zeros(0, dtype=torch.int64)
    lowest, highest = indices.amin(0).tolist(), indices.amax(0).tolist()
    keys, count = torch.zeros_like(indices[:, 0], dtype=torch.int64), 1
    for column, low, high in zip(indices.unbind(1), lowest, highest, strict=True):
        span = high - low + 1
        count *= span
        if count >= 2**63:
            raise ValueError(f"indices from {lowest} to {highest} span more than 63 bits can number")
        keys = keys * span + (column.long() - low)
    return keys


def unique_rows(indices: Tensor) -> tuple[Tensor, Tensor]:
    """Each row once, in lexicographic order, and (N,) which of these each row is."""
    keys, place = torch.unique(row_keys(indices), return_inverse=True)
    rows = torch.arange(len(indices), device=indices.device)
    first = torch.full_like(keys, len(indices)).scatter_reduce(0, place, rows, "amin")
    return indices[first], place


def reduce_rows(features: Tensor, place: Tensor, count: int, reduce: str) -> Tensor:
    """(count, C): rows with the same place, (N,) int64, reduced to one, sums in float32 or better; 0 where none is."""
    exact = features if features.dtype == torch.float64 else features.float()
    start = {"amax": -torch.inf, "amin": torch.inf}.get(reduce, 0.0)  # a 0 would take part of a gradient at 0
    reduced = exact.new_full((count, features.shape[1]), start)
    reduced = reduced.scatter_reduce(0, place[:, None].expand_as(features), exact, reduce, include_self=False)
    some = torch.zeros(count, dtype=torch.bool, device=place.device).index_fill(0, place, True)
    return torch.where(some[:, None], reduced, 0.0).to(features.dtype)


def voxels_of(dense: Tensor) -> tuple[Tensor, Tensor]:
    """Features (N, C) and int32 indices of a channels-last tensor where any channel is not 0."""
    places = dense.detach().ne(0).any(-1).nonzero()
    return dense[places.unbind(1)], places.int()


def _flatten(tensor: SparseTensor) -> tuple[list[Any], Any]:
    return [tensor._features, tensor._index], None


def _unflatten(children: Any, context: Any) -> SparseTensor:
    tensor = object.__new__(SparseTensor)
    tensor._features, tensor._index = children
    return tensor


pytree.register_pytree_node(SparseTensor, _flatten, _unflatten, serialized_type_name="flexor.nn.SparseTensor")
