# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from . import _check, _sparse

_NAME = "SparseIndex"

_MOST_TAPS = 2**16
_MOST_STEP = 2**30  # of strides, paddings and dilations

Size = int | Sequence[int]


class SparseIndex:
    """Where the voxels of a sparse tensor are, and every map that convolutions have asked of it.

    Building one sorts the voxels by blocks of 64 along a Morton curve; the rows stay as they came. Output sets of
    strided and transposed convolutions come in that order. Everything is built when first needed and kept, so that
    layers on the same index share their maps.

    Args:
        indices: (N, 1 + D), int32 or int64, batch first and then D = 1 to 4 coordinates, each row once. N may be 0.
        spatial_shape: D sizes; coordinates are 0 to size - 1. None for no bounds: coordinates may be negative, and
            outputs reach as far as the kernel does.
        batch_size: samples; batch numbers are below it. None to measure it, which a compiled graph cannot.
        backend: "reference", "cpu", "triton" or "cuda" in place of the automatic choice.

    Raises:
        ValueError: columns or sizes that do not fit; on first use, coordinates out of range or there twice, or that
            span more than 63 bits of blocks.
        TypeError: indices of another dtype.

    Source:
        Coordinates, output sets and sizes are those of spconv 2.3; the blocks follow VDB-like grids.
    """

    def __init__(
        self,
        indices: Tensor,
        *,
        spatial_shape: Sequence[int] | None = None,
        batch_size: int | None = None,
        backend: str | None = None,
    ) -> None:
        _check_indices(indices)
        dims = indices.shape[1] - 1
        self.indices = indices
        self.spatial_shape = None if spatial_shape is None else _sizes(spatial_shape, dims)
        if batch_size is not None and batch_size < 0:
            raise ValueError(f"{_NAME}: batch_size must not be below 0, got {batch_size}")
        self.backend = backend
        self._batch_size = batch_size
        self._parts: list[Tensor] | None = None
        self._made: dict[Any, Any] = {}  # maps refer to indices, never the other way: no cycles keep memory

    @property
    def dims(self) -> int:
        return self.indices.shape[1] - 1

    @property
    def device(self) -> torch.device:
        return self.indices.device

    @property
    def batch_size(self) -> int:
        if self._batch_size is None:
            self._batch_size = int(self.parts[5][8])
        return self._batch_size

    @property
    def parts(self) -> list[Tensor]:
        """`[order, keys, masks, bases, slots, frame]`, see flexor.reference.sparse_index; `order[rank]` is a row."""
        if self._parts is None:
            batch_size = -1 if self._batch_size is None else self._batch_size
            self._parts = _sparse.sparse_index(self.indices, batch_size, *self._bounds(), self.backend)
        return self._parts

    def __len__(self) -> int:
        return self.indices.shape[0]

    def __repr__(self) -> str:
        return (
            f"SparseIndex({self.indices.shape[0]} voxels, spatial_shape={self.spatial_shape}, "
            f"batch_size={self._batch_size}, {self.indices.dtype} on {self.device})"
        )

    def in_block_order(self) -> SparseIndex:
        """The same voxels, row `parts[0][rank]` as row `rank`: what lies together is stored together."""
        if "sorted" not in self._made:
            order, *parts = self.parts
            indices = self.indices.index_select(0, order)
            index = SparseIndex(
                indices, spatial_shape=self.spatial_shape, batch_size=self._batch_size, backend=self.backend
            )
            index._parts = [torch.arange(order.shape[0], dtype=order.dtype, device=order.device), *parts]
            self._made["sorted"] = index
        return self._made["sorted"]

    def submanifold(self, kernel: Size, dilation: Size = 1) -> SparseMap:
        """The map of a convolution whose outputs are its inputs, the kernel's middle `kernel // 2` on each."""
        sizes, dilation = self._axes(kernel=(kernel, 1), dilation=(dilation, 1))
        padding = tuple(k // 2 * d for k, d in zip(sizes, dilation, strict=True))
        key = "submanifold", sizes, dilation
        if key not in self._made:
            self._made[key] = _Pairs(sizes, (1,) * self.dims, padding, dilation, False)
        return SparseMap(self, self, self._made[key])

    def strided(self, kernel: Size, stride: Size, padding: Size, dilation: Size = 1) -> tuple[SparseIndex, SparseMap]:
        """The outputs with an input within their kernel, and the map: in = out * stride - padding + tap * dilation.

        An axis of the output has `(size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1` cells.
        """
        return self._outputs(kernel, stride, padding, dilation, None)

    def generative(
        self, kernel: Size, stride: Size, padding: Size, dilation: Size = 1, output_padding: Size = 0
    ) -> tuple[SparseIndex, SparseMap]:
        """The outputs that a transposed convolution reaches, and the map: out = in * stride - padding + tap * dilation.

        An axis of the output has `(size - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding + 1`
        cells; an output_padding below 0 leaves cells out.
        """
        return self._outputs(kernel, stride, padding, dilation, output_padding)

    def _outputs(
        self, kernel: Size, stride: Size, padding: Size, dilation: Size, output_padding: Size | None
    ) -> tuple[SparseIndex, SparseMap]:
        window = self._axes(kernel=(kernel, 1), stride=(stride, 1), padding=(padding, 0), dilation=(dilation, 1))
        transposed = output_padding is not None
        extra = self._axes(output_padding=(output_padding, None))[0] if transposed else None
        key = "outputs", window, extra
        if key not in self._made:
            shape = None if self.spatial_shape is None else _output_shape(self.spatial_shape, window, extra)
            bounds = (None, None) if shape is None else ((0,) * self.dims, shape)
            wide = self.indices.dtype == torch.int64
            indices, *parts = _sparse.sparse_output_index(
                self.parts, self.dims, *window, transposed, *bounds, wide, self.backend
            )
            out = SparseIndex(indices, spatial_shape=shape, batch_size=self._batch_size, backend=self.backend)
            out._parts = parts
            self._made[key] = out, _Pairs(*window, transposed)
        out, pairs = self._made[key]
        return out, SparseMap(out, self, pairs)

    def _bounds(self) -> tuple[Sequence[int] | None, Sequence[int] | None]:
        return (None, None) if self.spatial_shape is None else ((0,) * self.dims, self.spatial_shape)

    def _axes(self, **given: tuple[Size | None, int | None]) -> tuple[tuple[int, ...], ...]:
        return tuple(_per_axis(name, value, self.dims, least) for name, (value, least) in given.items())


class _Pairs:
    """The tensors of a map and of its transpose, once they have been built."""

    def __init__(self, *relation: Any) -> None:
        self.relation = relation  # kernel, stride, padding, dilation, transposed
        self.built: list[list[Tensor] | None] = [None, None]


class SparseMap:
    """Which input meets which output at which tap of a kernel; made by the methods of a `SparseIndex`.

    Attributes:
        out, input: the indices of the outputs and of the inputs.
        kernel: D sizes; taps are numbered row-major.
        mirrored: whether the transpose is the same with the taps in reverse, as of an odd submanifold kernel.
        tensors: on a CPU `[out_order, in_order, in_rows, places, offsets]`: tile t has outputs of rank 256 * t and
            on, its pairs at tap k are those from `offsets[t * K + k]` to before `offsets[t * K + k + 1]`, and pair p
            is of input rank `in_rows[p]` and output rank `256 * t + places[p]`, ascending within a list.
    """

    def __init__(self, out: SparseIndex, input: SparseIndex, pairs: _Pairs, flipped: bool = False) -> None:
        self.out, self.input = out, input
        self._pairs, self._flipped = pairs, flipped

    @property
    def kernel(self) -> tuple[int, ...]:
        return self._pairs.relation[0]

    @property
    def mirrored(self) -> bool:
        return self.out is self.input and all(size % 2 for size in self.kernel)

    @property
    def tensors(self) -> list[Tensor]:
        side = int(self._flipped)  # compilers of older PyTorch do not index by a bool
        built = self._pairs.built[side]
        if built is None:
            *window, transposed = self._pairs.relation
            built = self._pairs.built[side] = _sparse.sparse_map(
                self.out.parts, self.input.parts, self.out.dims, *window, transposed != self._flipped, self.out.backend
            )
        return [self.out.parts[0], self.input.parts[0], *built]

    def transposed(self) -> SparseMap:
        """The map from outputs to inputs, taps numbered as they are: of input gradients and inverse convolution."""
        return SparseMap(self.input, self.out, self._pairs, not self._flipped)

    def __repr__(self) -> str:
        sizes = "x".join(map(str, self.kernel))
        return f"SparseMap({self.input.indices.shape[0]} -> {self.out.indices.shape[0]} voxels, kernel {sizes})"


def _check_indices(indices: Any) -> None:
    _check.tensor(_NAME, "indices", indices, "N 1+D")
    if indices.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{_NAME}: indices must be int32 or int64, got {indices.dtype}")
    if not 2 <= indices.shape[1] <= 5:
        raise ValueError(
            f"{_NAME}: indices must have 2 to 5 columns, the batch and 1 to 4 coordinates, got {tuple(indices.shape)}"
        )


def _sizes(spatial_shape: Sequence[int], dims: int) -> tuple[int, ...]:
    sizes = tuple(spatial_shape)
    if len(sizes) != dims or not all(isinstance(s, int | torch.SymInt) and 1 <= s < 2**63 for s in sizes):
        raise ValueError(
            f"{_NAME}: spatial_shape must be {dims} sizes from 1 to 2**63 - 1, one for each coordinate, got {sizes}"
        )
    return sizes


def _per_axis(name: str, value: Any, dims: int, least: int | None) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, Sequence) else (value,) * dims
    whole = all(isinstance(v, int) and not isinstance(v, bool) and (least is None or v >= least) for v in values)
    if len(values) != dims or not whole:
        wanted = "integers" if least is None else f"integers not below {least}"
        raise ValueError(f"{_NAME}: {name} must be {wanted}, one or {dims} of them, got {value!r}")
    if max(values) >= _MOST_STEP or (name == "kernel" and math.prod(values) > _MOST_TAPS):
        limit = f"have at most {_MOST_TAPS} taps" if name == "kernel" else "be below 2**30"
        raise ValueError(f"{_NAME}: {name} must {limit}, got {value!r}")
    return values


def _output_shape(
    shape: Sequence[int], window: Sequence[Sequence[int]], extra: Sequence[int] | None
) -> tuple[int, ...]:
    kernel, stride, padding, dilation = window
    sizes = []
    for axis, size in enumerate(shape):
        reach = dilation[axis] * (kernel[axis] - 1)
        if extra is None:
            sizes.append((size + 2 * padding[axis] - reach - 1) // stride[axis] + 1)
        else:
            sizes.append((size - 1) * stride[axis] - 2 * padding[axis] + reach + extra[axis] + 1)
    if min(sizes) < 1 or max(sizes) >= 2**63:
        added = "" if extra is None else f", output_padding {tuple(extra)}"
        raise ValueError(
            f"{_NAME}: the output would be {'x'.join(map(str, sizes))} cells (spatial_shape {tuple(shape)}, kernel "
            f"{kernel}, stride {stride}, padding {padding}, dilation {dilation}{added})"
        )
    return tuple(sizes)


def _flatten_index(index: SparseIndex) -> tuple[list[Tensor], Any]:
    context = index.spatial_shape, index._batch_size, index.backend
    return [index.indices, *(index._parts or ())], context


def _unflatten_index(tensors: Any, context: Any) -> SparseIndex:
    indices, *parts = tensors
    index = object.__new__(SparseIndex)  # leaves need not be tensors
    index.indices, (index.spatial_shape, index._batch_size, index.backend) = indices, context
    index._parts, index._made = parts or None, {}
    return index


def _flatten_map(map: SparseMap) -> tuple[list[Any], Any]:
    built = map._pairs.built  # absent ones are no children: None would be a leaf
    same, which = map.out is map.input, tuple(lists is not None for lists in built)
    sides = [map.out] if same else [map.out, map.input]
    return [sides, [lists for lists in built if lists is not None]], (map._pairs.relation, map._flipped, which)


def _unflatten_map(children: Any, context: Any) -> SparseMap:
    (sides, given), (relation, flipped, which) = children, context
    pairs, given = _Pairs(*relation), iter(given)
    pairs.built = [next(given) if there else None for there in which]
    return SparseMap(sides[0], sides[-1], pairs, flipped)


def _as_tuples(context: Any) -> Any:
    """A context that came through JSON, which knows lists only."""
    return tuple(map(_as_tuples, context)) if isinstance(context, list) else context


def _register(node: type, flatten: Callable[..., Any], unflatten: Callable[..., Any]) -> None:
    def flatten_with_keys(value: Any) -> tuple[list[Any], Any]:
        children, context = flatten(value)
        return [(_pytree.SequenceKey(i), child) for i, child in enumerate(children)], context

    _pytree.register_pytree_node(
        node,
        flatten,
        unflatten,
        serialized_type_name=f"flexor.ops.{node.__name__}",
        to_dumpable_context=lambda context: context,
        from_dumpable_context=_as_tuples,
        flatten_with_keys_fn=flatten_with_keys,
    )


_register(SparseIndex, _flatten_index, _unflatten_index)
_register(SparseMap, _flatten_map, _unflatten_map)
torch.serialization.add_safe_globals([SparseIndex, SparseMap, _Pairs])  # nothing but tensors and numbers
