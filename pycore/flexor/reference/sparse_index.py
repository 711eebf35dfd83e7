# SPDX-License-Identifier: Apache-2.0
"""Indices and maps of sparse convolution in plain PyTorch, on any device: six and three tensors as the kernels make.

An index is `[order, keys, masks, bases, slots, frame]`. Voxels lie in blocks of 64, which are sorted along a Morton
curve; a voxel's rank is its place in that order, `bases[block] + popcount(masks[block] below its bit)`, and
`order[rank]` its row. A block's key packs the batch and the block's coordinates, counted from `frame[0:4]`, into
fields of `frame[4:8]` bits. There are always four axes, those that a set lacks being 0 and in front. Slots, which a
kernel finds blocks through, stay empty here: a sorted search does that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

AXES = 4
TILE = 256  # output ranks whose pairs are listed together
KEY_BITS = 63
MAX_ROWS = 2**31 - 1
SHIFTS = {1: (0, 0, 0, 6), 2: (0, 0, 3, 3), 3: (0, 2, 2, 2), 4: (1, 1, 2, 2)}  # log2 of a block's extents

Ints = Sequence[int]

_TOO_WIDE = (
    "sparse_index: the coordinates span too much: block numbers along all axes and the batch must fit 63 bits together"
)


class Relation(NamedTuple):
    """in = out * stride - padding + tap * dilation, or transposed with in and out exchanged; four axes."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool

    @classmethod
    def of(cls, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints, transposed: bool) -> Relation:
        lists = ((kernel, 1), (stride, 1), (padding, 0), (dilation, 1))
        return cls(*(_four(values, fill) for values, fill in lists), transposed)

    def taps(self) -> Iterator[tuple[int, ...]]:
        """Where each tap is, dilated and padded."""
        for tap in range(math.prod(self.kernel)):
            at = []
            for size, padding, dilation in zip(*(reversed(v) for v in (self.kernel, self.padding, self.dilation))):  # noqa: B905
                at.append(tap % size * dilation - padding)
                tap //= size
            yield tuple(reversed(at))

    def multiplied(self, coordinates: Tensor, tap: Ints) -> Tensor:
        return coordinates * coordinates.new_tensor(self.stride) + coordinates.new_tensor(tap)

    def divided(self, coordinates: Tensor, tap: Ints) -> tuple[Tensor, Tensor]:
        """And whether there is a whole result."""
        stride = coordinates.new_tensor(self.stride)
        moved = coordinates - coordinates.new_tensor(tap)
        return moved.div(stride, rounding_mode="floor"), (moved % stride == 0).all(1)


def sparse_index(indices: Tensor, batch_size: int, lower: Ints | None, upper: Ints | None) -> list[Tensor]:
    """The index of voxels `(N, 1 + D)`, batch first; see `flexor.ops.SparseIndex`.

    A batch_size below 0 is measured. With bounds, upper exclusive, every voxel must lie between them.
    """
    dims = indices.shape[1] - 1
    if indices.shape[0] > MAX_ROWS:
        raise ValueError(f"sparse_index: indices must have at most 2**31 - 1 rows, got {indices.shape[0]}")
    batch, sites = indices[:, 0].long(), _in_four(indices[:, 1:].long())
    _check_range(indices, batch_size, lower, upper)
    # The frame begins with the bounds, for one order of all parts of a scene, and ends with the voxels.
    first = _four(lower, 0) if lower is not None and upper is not None else None
    if not indices.shape[0]:
        first = first or (0,) * AXES
        return _sorted_index(batch, sites, dims, _frame(dims, first, first, 1))
    low, high = first or sites.amin(0).tolist(), sites.amax(0).tolist()
    parts = _sorted_index(batch, sites, dims, _frame(dims, low, high, int(batch.max()) + 1))
    _check_duplicates(indices, parts[0])
    return parts


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
    relation = Relation.of(kernel, stride, padding, dilation, transposed)
    batch, sites = voxels(parts, dims)
    first, last = _bounded(*_reach(parts[5], dims, relation), lower, upper)
    reached = []
    for tap in relation.taps():
        at, there = (relation.multiplied(sites, tap), None) if transposed else relation.divided(sites, tap)
        at = torch.cat([batch[:, None], at], 1)
        reached.append(at if there is None else at[there])
    found = torch.cat(reached).unique(dim=0)
    inside = (found[:, 1:] >= found.new_tensor(first)) & (found[:, 1:] <= found.new_tensor(last))
    found = found[inside.all(1)]
    if found.shape[0] > MAX_ROWS:
        raise ValueError(f"sparse_output_index: the output would have {found.shape[0]} voxels, more than 2**31 - 1")
    frame = _frame(dims, first, [max(a, b) for a, b in zip(first, last, strict=True)], int(parts[5][8]))
    order, *rest = _sorted_index(found[:, 0], found[:, 1:], dims, frame)
    columns = [0, *range(1 + AXES - dims, 1 + AXES)]
    indices = found[order.long()][:, columns].to(torch.int64 if wide else torch.int32)
    return [indices, torch.arange(order.shape[0], dtype=torch.int32, device=order.device), *rest]


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
    """Pairs of an output and an input voxel, listed by tile of 256 outputs and tap: `[in_rows, places, offsets]`.

    The pairs of tile t and tap k are those from `offsets[t * K + k]` to before `offsets[t * K + k + 1]`: input rank
    `in_rows[p]`, output rank `256 * t + places[p]`, ascending.
    """
    relation = Relation.of(kernel, stride, padding, dilation, transposed)
    batch, sites = voxels(out_parts, dims)
    rows = batch.shape[0]
    tiles = -(-rows // TILE)
    neighbours = []
    for tap in relation.taps():
        at, there = relation.divided(sites, tap) if transposed else (relation.multiplied(sites, tap), None)
        ranks = _ranks(in_parts, dims, batch, at)
        ranks = ranks if there is None else ranks.masked_fill(~there, -1)
        neighbours.append(torch.nn.functional.pad(ranks, (0, tiles * TILE - rows), value=-1).view(tiles, 1, TILE))
    table = torch.cat(neighbours, 1)
    there = table >= 0
    offsets = torch.nn.functional.pad(there.sum(2).flatten().cumsum(0), (1, 0))
    return [table[there].int(), there.nonzero()[:, 2].to(torch.uint8), offsets]


def voxels(parts: Sequence[Tensor], dims: int) -> tuple[Tensor, Tensor]:
    """Batch (N,) and coordinates (N, 4) of every rank of an index."""
    _, keys, masks, *_, frame = parts
    bits = torch.arange(64, device=masks.device)
    block, bit = ((masks[:, None] >> bits) & 1).nonzero().unbind(1)
    shifts, sites, key = SHIFTS[dims], [], keys[block]
    for axis in reversed(range(AXES)):
        first, width = int(frame[axis]), int(frame[AXES + axis])
        sites.append((((key & ((1 << width) - 1)) + first) << shifts[axis]) + (bit & ((1 << shifts[axis]) - 1)))
        key, bit = key >> width, bit >> shifts[axis]
    return key, torch.stack(sites[::-1], 1)


def _sorted_index(batch: Tensor, sites: Tensor, dims: int, frame: list[int]) -> list[Tensor]:
    keys, bits = _keys(batch, sites, dims, frame)
    codes = _morton(keys, frame)
    order = bits.argsort(stable=True)
    order = order[codes[order].argsort(stable=True)]
    _, block, counts = codes[order].unique_consecutive(return_inverse=True, return_counts=True)
    ends = counts.cumsum(0)
    masks = torch.zeros_like(ends).index_add(0, block, torch.ones_like(bits) << bits[order])
    bases = torch.nn.functional.pad(ends, (1, 0)).int()
    slots = torch.empty(0, dtype=torch.int32, device=keys.device)
    return [order.int(), keys[order][ends - counts], masks, bases, slots, torch.tensor(frame, device=keys.device)]


def _keys(batch: Tensor, sites: Tensor, dims: int, frame: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Each voxel's block and its bit in there; the key is -1 outside the frame."""
    key, bit, inside = batch, torch.zeros_like(batch), torch.ones_like(batch, dtype=torch.bool)
    for axis, shift in enumerate(SHIFTS[dims]):
        first, width = int(frame[axis]), int(frame[AXES + axis])
        field = (sites[:, axis] >> shift) - first
        inside = inside & (field >= 0) & (field >> width == 0)
        key = (key << width) | field
        bit = (bit << shift) | (sites[:, axis] & ((1 << shift) - 1))
    return key.masked_fill(~inside, -1), bit


def _morton(keys: Tensor, frame: Sequence[int]) -> Tensor:
    """Bits of a key's fields interleaved, the last axis lowest, fields that have ended left out; the batch on top."""
    fields = {}
    for axis in reversed(range(AXES)):
        fields[axis] = keys & ((1 << frame[AXES + axis]) - 1)
        keys = keys >> frame[AXES + axis]
    code, to = torch.zeros_like(keys), 0
    for level in range(KEY_BITS):
        for axis in reversed(range(AXES)):
            if level < frame[AXES + axis]:
                code |= ((fields[axis] >> level) & 1) << to
                to += 1
    return code | (keys << to)


def _ranks(parts: Sequence[Tensor], dims: int, batch: Tensor, sites: Tensor) -> Tensor:
    """Ranks of voxels in an index, -1 of those that it lacks."""
    _, keys, masks, bases, _, frame = parts
    if not keys.shape[0]:
        return torch.full_like(batch, -1)
    key, bit = _keys(batch, sites, dims, frame.tolist())
    in_order, block_of = keys.sort()
    block = block_of[torch.searchsorted(in_order, key).clamp(max=keys.shape[0] - 1)]
    mask = masks[block]
    there = (keys[block] == key) & ((mask >> bit) & 1 == 1)
    return (bases[block] + _popcount(mask & ((torch.ones_like(bit) << bit) - 1))).masked_fill(~there, -1)


def _popcount(values: Tensor) -> Tensor:
    """Of integers that are not negative, as every mask below a bit is."""
    values = values - ((values >> 1) & 0x5555555555555555)
    values = (values & 0x3333333333333333) + ((values >> 2) & 0x3333333333333333)
    values = (values + (values >> 4)) & 0x0F0F0F0F0F0F0F0F
    return ((values * 0x0101010101010101) >> 56) & 0xFF


def _reach(frame: Tensor, dims: int, relation: Relation) -> tuple[list[int], list[int]]:
    """The first and the last coordinates that a frame's voxels could reach."""
    first, last = [], []
    for axis, shift in enumerate(SHIFTS[dims]):
        low = int(frame[axis]) << shift
        high = ((int(frame[axis]) + (1 << int(frame[AXES + axis]))) << shift) - 1
        near, far = -relation.padding[axis], (relation.kernel[axis] - 1) * relation.dilation[axis]
        stride = relation.stride[axis]
        if relation.transposed:
            first.append(low * stride + near)
            last.append(high * stride + near + far)
        else:
            first.append((low - near - far) // stride)
            last.append((high - near) // stride)
    if min(first) < -(2**63) or max(last) >= 2**63:
        raise ValueError(_TOO_WIDE)
    return first, last


def _bounded(first: list[int], last: list[int], lower: Ints | None, upper: Ints | None) -> tuple[list[int], list[int]]:
    """The same between bounds: a frame begins with them, so that the order is the same for any part of a scene."""
    if lower is None or upper is None:
        return first, last
    return list(_four(lower, 0)), [min(a, b - 1) for a, b in zip(last, _four(upper, 1), strict=True)]


def _frame(dims: int, low: Ints, high: Ints, batches: int) -> list[int]:
    """Of the blocks between two voxels, both in it."""
    blocks = [(a >> shift, b >> shift) for a, b, shift in zip(low, high, SHIFTS[dims], strict=True)]
    bits = [(b - a).bit_length() for a, b in blocks]
    if sum(bits) + (batches - 1).bit_length() > KEY_BITS or any(b - a > 2**62 for a, b in zip(low, high, strict=True)):
        raise ValueError(_TOO_WIDE)
    return [*(a for a, _ in blocks), *bits, batches, 0, 0, 0]


def _check_range(indices: Tensor, batch_size: int, lower: Ints | None, upper: Ints | None) -> None:
    if (indices[:, 0] < 0).any():
        row = int((indices[:, 0] < 0).nonzero()[0])
        raise ValueError(
            f"sparse_index: indices[:, 0] is the batch and must not be negative, got {_row(indices, row)} in row {row}"
        )
    bad = indices[:, 0] >= batch_size if batch_size >= 0 else torch.zeros_like(indices[:, 0], dtype=torch.bool)
    if lower is not None and upper is not None:
        for values, least, end in zip(indices[:, 1:].unbind(1), lower, upper, strict=True):
            bad = bad | (values < least) | (values >= end)
    if bad.any():
        row = int(bad.nonzero()[0])
        size = f" {batch_size}" if batch_size >= 0 else ""
        raise ValueError(
            f"sparse_index: indices must lie in the batch size{size} and the spatial shape, got {_row(indices, row)} "
            f"in row {row}"
        )


def _check_duplicates(indices: Tensor, order: Tensor) -> None:
    in_order = indices[order.long()]
    same = (in_order[1:] == in_order[:-1]).all(1)
    if same.any():
        second, rank = order[1:][same].min(0)
        first = order[:-1][same][rank]
        raise ValueError(
            f"sparse_index: indices must be unique, but rows {first} and {second} are both "
            f"{_row(indices, int(second))}; merge them first"
        )


def _row(indices: Tensor, row: int) -> tuple[int, ...]:
    return tuple(indices[row].tolist())


def _four(values: Ints, fill: int) -> tuple[int, ...]:
    return (*(fill for _ in range(AXES - len(values))), *(int(v) for v in values))


def _in_four(sites: Tensor) -> Tensor:
    return torch.nn.functional.pad(sites, (AXES - sites.shape[1], 0))
