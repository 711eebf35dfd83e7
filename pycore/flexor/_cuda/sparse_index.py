# SPDX-License-Identifier: Apache-2.0
"""Indices and maps of sparse convolution on a GPU, like those of `flexor.reference.sparse_index`.

Kernels do what needs a hash or atomics, PyTorch sorts and sums in between. A set of blocks that grows is a hash table
of keys and occupancy masks, with room for twice the blocks that there could be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..reference.sparse_index import AXES, MAX_ROWS, SHIFTS, Relation, _bounded, _four, _frame, _reach
from . import neighbours
from .launch import Source, i32, i64, launch, struct, why_not

Ints = Sequence[int]

THREADS = 128
BLOCK_VOXELS = 64
SOURCE = Source("sparse3d", "sparse_index")


def sparse_index(indices: Tensor, batch_size: int, lower: Ints | None, upper: Ints | None) -> list[Tensor]:
    """The six parts of the index of voxels `(N, 1 + D)`."""
    rows, dims = indices.shape[0], indices.shape[1] - 1
    if why_not() or not 0 < rows <= MAX_ROWS:
        return reference.sparse_index(indices, batch_size, lower, upper)
    (least_batch, *low), (last_batch, *high) = torch.stack(indices.aminmax(dim=0)).tolist()
    inside = least_batch >= 0 and (batch_size < 0 or last_batch < batch_size)
    if lower is not None and upper is not None:
        inside = inside and all(a <= b <= c < d for a, b, c, d in zip(lower, low, high, upper, strict=True))
    if not inside:
        return reference.sparse_index(indices, batch_size, lower, upper)  # says which row it is
    # The frame begins with the bounds, so that the order is the same for every part of a scene.
    first, last = _four(low if lower is None else lower, 0), _four(high, 0)
    whole = _frame(dims, first, last, last_batch + 1)
    frame = torch.tensor(whole, device=indices.device)
    blocks = _BlockSet(min(rows, _blocks_within(whole)), frame, dims)
    slot_of = indices.new_empty(rows, dtype=torch.int32)
    bit_of = indices.new_empty(rows, dtype=torch.uint8)
    _run(
        f"sparse_voxel_blocks_{_suffix(indices)}", -(-rows // THREADS), THREADS,
        indices.contiguous(), i64(rows), i32(dims), frame, *blocks.arguments, slot_of, bit_of,
    )  # fmt: skip
    total, keys, masks, bases, slots = blocks.collect()
    if total != rows:
        return reference.sparse_index(indices, batch_size, lower, upper)  # says which voxel is there twice
    order = torch.empty_like(slot_of)
    _run(
        "sparse_voxel_ranks", -(-rows // THREADS), THREADS,
        slot_of, bit_of, i64(rows), blocks.keys, masks, bases, order,
    )  # fmt: skip
    return [order, keys, masks, bases, slots, frame]


def sparse_output_index(
    parts: Sequence[Tensor],
    dims: int,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    transposed: bool,
    lower: Ints | None,
    upper: Ints | None,
    wide: bool,
) -> list[Tensor]:
    """Coordinates of every voxel that the input reaches, in the order of their ranks, then their index."""
    if why_not() or not parts[0].shape[0]:
        return reference.sparse_output_index(
            parts, dims, kernel, stride, padding, dilation, transposed, lower, upper, wide
        )
    relation = Relation.of(kernel, stride, padding, dilation, transposed)
    in_frame = parts[5].cpu()
    first, last = _bounded(*_reach(in_frame, dims, relation), lower, upper)
    out_frame = _frame(dims, first, [max(a, b) for a, b in zip(first, last, strict=True)], int(in_frame[8]))
    frame = torch.tensor(out_frame, device=parts[0].device)
    blocks = _BlockSet(_most_blocks(parts, dims, relation, out_frame), frame, dims)
    _, in_keys, in_masks, *_ = parts
    _run(
        "sparse_reached_blocks", in_keys.shape[0], BLOCK_VOXELS,
        in_keys, in_masks, parts[5], i32(dims), _struct(relation), struct(*first, *last), frame, *blocks.arguments,
    )  # fmt: skip
    rows, keys, masks, bases, slots = blocks.collect()
    if rows > MAX_ROWS:
        raise ValueError(f"sparse_output_index: the output would have {rows} voxels, more than 2**31 - 1")
    indices = keys.new_empty(rows, 1 + dims, dtype=torch.int64 if wide else torch.int32)
    _run(
        f"sparse_write_voxels_{_suffix(indices)}", keys.shape[0], BLOCK_VOXELS,
        keys, masks, bases, frame, i32(dims), indices,
    )  # fmt: skip
    order = torch.arange(rows, dtype=torch.int32, device=keys.device)
    return [indices, order, keys, masks, bases, slots, frame]


def sparse_map(
    out_parts: Sequence[Tensor],
    in_parts: Sequence[Tensor],
    dims: int,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    transposed: bool,
) -> list[Tensor]:
    """The pairs of two indices at every tap, as `neighbours` has them."""
    taps = math.prod(kernel)
    in_order, in_keys, in_masks, in_bases, in_slots, in_frame = in_parts
    if why_not() or not in_slots.shape[0]:  # of an index without slots, made in plain PyTorch
        lists = reference.sparse_map(out_parts, in_parts, dims, kernel, stride, padding, dilation, transposed)
        return neighbours.from_lists([out_parts[0], in_order, *lists], taps)
    order, keys, masks, bases, _, frame = out_parts
    table = torch.empty(order.shape[0], taps, dtype=torch.int32, device=order.device)
    row_masks = table.new_empty(order.shape[0], -(-taps // neighbours.WORD))
    input = struct(*(t.data_ptr() for t in (in_keys, in_masks, in_bases, in_slots)), in_slots.shape[0])
    _run(
        "sparse_neighbours", keys.shape[0], BLOCK_VOXELS,
        keys, masks, bases, order, frame, input, in_order, in_frame,
        i32(dims), _struct(Relation.of(kernel, stride, padding, dilation, transposed)), i32(taps), table, row_masks,
    )  # fmt: skip
    return [table, row_masks, neighbours.mask_order(row_masks, order)]


class _BlockSet:
    """A set of at most so many blocks."""

    def __init__(self, most: int, frame: Tensor, dims: int) -> None:
        self.frame, self.dims = frame, dims
        self.keys = frame.new_full((_slots_for(most),), -1)
        self.masks = torch.zeros_like(self.keys)

    @property
    def arguments(self) -> tuple[Any, ...]:
        return self.keys, self.masks, i64(self.keys.shape[0])

    def collect(self) -> tuple[int, Tensor, Tensor, Tensor, Tensor]:
        """How many voxels it has, and keys, masks, bases and slots of its blocks in order. `self.keys` then has a
        block's number at its slot."""
        slot_of_block = (self.keys >= 0).nonzero()[:, 0]
        count = slot_of_block.shape[0]
        grid = -(-count // THREADS), THREADS
        codes = torch.empty_like(slot_of_block)
        _run("sparse_block_codes", *grid, self.keys[slot_of_block], i64(count), i32(self.dims), self.frame, codes)
        slot_of_block = slot_of_block[codes.argsort()]
        keys, masks = torch.empty_like(codes), torch.empty_like(codes)
        sizes = codes.new_empty(count, dtype=torch.int32)
        slots = sizes.new_full((_slots_for(count),), -1)
        _run(
            "sparse_collect_blocks", *grid,
            slot_of_block, i64(count), self.keys, self.masks, keys, masks, sizes, slots, i64(slots.shape[0]),
        )  # fmt: skip
        bases = torch.nn.functional.pad(sizes.cumsum(0, dtype=torch.int64), (1, 0))
        return int(bases[-1]), keys, masks, bases.int(), slots


def _run(name: str, blocks: int, threads: int, *args: Any) -> None:
    launch(SOURCE, name, blocks, threads, *args)


def _slots_for(blocks: int) -> int:
    """The least power of two, 2 or more, that is twice as many."""
    return 1 << max(1, (2 * blocks - 1).bit_length())


def _suffix(indices: Tensor) -> str:
    return "i64" if indices.dtype == torch.int64 else "i32"


def _struct(relation: Relation) -> Any:
    *window, transposed = relation
    return struct(*(value for values in window for value in values), int(transposed))


def _most_blocks(parts: Sequence[Tensor], dims: int, relation: Relation, frame: Sequence[int]) -> int:
    """No output set has more blocks: as many as its frame, as its pairs, as those around each input block."""
    rows, in_blocks = parts[0].shape[0], parts[1].shape[0]
    around = 1
    for axis, shift in enumerate(SHIFTS[dims]):
        reach = (relation.kernel[axis] - 1) * relation.dilation[axis]
        if relation.transposed:
            span = ((1 << shift) - 1) * relation.stride[axis] + reach + 1
        else:
            span = ((1 << shift) - 1 + reach) // relation.stride[axis] + 1
        around *= (span + (1 << shift) - 2 >> shift) + 1
    return min(rows * math.prod(relation.kernel), in_blocks * around, _blocks_within(frame))


def _blocks_within(frame: Sequence[int]) -> int:
    return frame[8] << sum(frame[AXES : 2 * AXES])
