# SPDX-License-Identifier: Apache-2.0
"""Indices and maps on every backend: against a dictionary of coordinates, and each tensor against the reference."""

import functools
import gc
import itertools
import weakref
from typing import NamedTuple

import pytest
import torch
from flexor import ops, reference
from flexor.reference.sparse_conv import pairs
from flexor.reference.sparse_index import SHIFTS, voxels
from flexor.testing import running, ways
from hypothesis import given, settings
from hypothesis import strategies as st
from sparse_voxels import scene, triples

WAYS = [way for way in ways("sparse_index") if way.device == "cpu"]
WAY = pytest.mark.parametrize("way", WAYS, ids=str)
SHAPES = {1: (700,), 2: (29, 31), 3: (13, 9, 17), 4: (5, 7, 6, 9)}
DIMS = pytest.mark.parametrize("dims", SHAPES)


class Window(NamedTuple):
    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    transposed: bool = False

    def lists(self, dims):
        return *((value,) * dims for value in self[:4]), self.transposed


WINDOWS = {
    "k3": Window(3, 1, 1),
    "k1": Window(1),
    "k1s2": Window(1, 2),
    "k2s2": Window(2, 2),
    "k3s2": Window(3, 2, 1),
    "k3s3p2": Window(3, 3, 2),
    "k4s2": Window(4, 2, 1),
    "k3d2": Window(3, 1, 2, 2),
    "k3s2d3": Window(3, 2, 1, 3),
    "k2s5": Window(2, 5),
    "t-k2s2": Window(2, 2, transposed=True),
    "t-k3s2": Window(3, 2, 1, transposed=True),
    "t-k3": Window(3, 1, 1, transposed=True),
    "t-k3s2d2": Window(3, 2, 2, 2, transposed=True),
    "t-k1s3": Window(1, 3, transposed=True),
}
WINDOW = pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS.keys())


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def without_slots(parts):
    return [*parts[:4], parts[5]]


def make(dims, window, index):
    """Output and map, bounded where the index is."""
    method = index.generative if window.transposed else index.strided
    return method(*window[:4])


@DIMS
def test_rows_go_along_the_curve(dims):
    """The order, from its definition: bits of block coordinates interleaved, then the place within the block."""
    indices = scene(SHAPES[dims], 300, low=-5)
    order, _, masks, bases, *_ = reference.sparse_index(indices, -1, None, None)
    shifts = SHIFTS[dims][4 - dims :]
    assert sum(shifts) == 6
    low = [int(v) >> s for v, s in zip(indices[:, 1:].amin(0), shifts, strict=True)]
    high = [int(v) >> s for v, s in zip(indices[:, 1:].amax(0), shifts, strict=True)]
    widths = [(b - a).bit_length() for a, b in zip(low, high, strict=True)]

    def place(row):
        batch, *at = row
        code = [batch]
        for level in reversed(range(max(widths))):
            code += [
                ((v >> s) - a) >> level & 1 for v, s, a, w in zip(at, shifts, low, widths, strict=True) if level < w
            ]
        return code, [v & ((1 << s) - 1) for v, s in zip(at, shifts, strict=True)]

    rows = indices.tolist()
    assert order.tolist() == sorted(range(len(rows)), key=lambda i: place(rows[i]))
    assert bases[-1] == len(rows) and bases.diff().tolist() == [
        m.bit_count() if m >= 0 else (m % 2**64).bit_count() for m in masks.tolist()
    ]


@DIMS
def test_coordinates_come_back(dims):
    indices = scene(SHAPES[dims], 200, low=-7)
    parts = reference.sparse_index(indices, -1, None, None)
    batch, at = voxels(parts, dims)
    assert torch.equal(torch.cat([batch[:, None], at[:, 4 - dims :]], 1).int(), indices[parts[0].long()])


@WINDOW
@DIMS
def test_oracle(dims, window):
    """Every pair by dictionary; every output by brute force."""
    lists = window.lists(dims)
    indices = scene(SHAPES[dims], 90, low=-3)
    with running(WAYS[0]):
        index = ops.SparseIndex(indices)
        out, map = make(dims, window, index)
        turned = map.transposed()
        found = {tuple(t) for t in torch.stack(pairs(map.tensors), 1).tolist()}
        back = {tuple(t) for t in torch.stack(pairs(turned.tensors), 1).tolist()}
    assert found == triples(out.indices, indices, *lists)
    assert {(tap, b, a) for tap, a, b in found} == back
    reached = set()
    kernel, stride, padding, dilation, _ = lists
    for batch, *at in indices.tolist():
        for tap in itertools.product(*map_ranges(kernel)):
            moved = [t * d - p for t, d, p in zip(tap, dilation, padding, strict=True)]
            if window.transposed:
                reached.add((batch, *(a * s + m for a, s, m in zip(at, stride, moved, strict=True))))
            elif all((a - m) % s == 0 for a, s, m in zip(at, stride, moved, strict=True)):
                reached.add((batch, *((a - m) // s for a, s, m in zip(at, stride, moved, strict=True))))
    assert {tuple(row) for row in out.indices.tolist()} == reached
    assert len(out) == len(reached)


def map_ranges(kernel):
    return [range(k) for k in kernel]


@functools.cache
def built(way, dims, window, bounded):
    """All parts of an index, of its output's and of both maps, in more tiles than one."""
    torch.manual_seed(0)
    rows, low, dtype = 300 if dims == 4 else 600, *((66, torch.int32) if bounded else (-11, torch.int64))
    indices = scene(SHAPES[dims], rows, batches=3, low=low, dtype=dtype)
    shape = [size + 2 * low for size in SHAPES[dims]] if bounded else None
    with running(way):
        index = ops.SparseIndex(indices, spatial_shape=shape)
        out, map = make(dims, window, index)
        maps = map, map.transposed(), index.submanifold(window.kernel, window.dilation)
        tensors = [*without_slots(index.parts), out.indices, *without_slots(out.parts)]
        return tensors + [t for m in maps for t in m.tensors]


@pytest.mark.parametrize("bounded", [True, False])
@WINDOW
@DIMS
@pytest.mark.parametrize("way", WAYS[1:], ids=str)
def test_same_as_the_reference(way, dims, window, bounded):
    assert_equal(built(way, dims, window, bounded), built(WAYS[0], dims, window, bounded))


@WAY
def test_reads_what_another_backend_made(way):
    indices = scene(SHAPES[3], 300)
    lists = WINDOWS["k3s2"].lists(3)
    with running(way):
        index = ops.SparseIndex(indices)
        parts = index.parts
    made = [reference.sparse_index(indices, -1, None, None), parts]
    outputs = [reference.sparse_output_index(p, 3, *lists, None, None, False) for p in made]
    assert_equal(*map(without_slots_of_output, outputs))
    with running(way):
        op = torch.ops.flexor
        outputs += [op.sparse_output_index(p, 3, *lists, None, None, False, None) for p in made]
        maps = [op.sparse_map(o[1:], i, 3, *lists, None) for o in outputs for i in made]
    for output in outputs[1:]:
        assert_equal(without_slots_of_output(output), without_slots_of_output(outputs[0]))
    for found in maps[1:]:
        assert_equal(found, maps[0])


def without_slots_of_output(output):
    return [output[0], *without_slots(output[1:])]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_fuzzed(data):
    """Any coordinates, kernels, strides and bounds; every instruction set against the reference."""
    dims = data.draw(st.integers(1, 4))
    far = data.draw(st.sampled_from([0, -(2**20), 2**30, 2**40, -(2**55), 2**60]))
    near = st.integers(-9, 9) if data.draw(st.booleans()) else st.sampled_from([-300, -64, -1, 0, 3, 64, 511])
    rows = data.draw(
        st.lists(st.tuples(st.integers(0, 2), *(near for _ in range(dims))), min_size=0, max_size=24, unique=True)
    )
    indices = torch.tensor(rows, dtype=torch.int64).reshape(-1, 1 + dims)
    indices[:, 1:] += far

    def numbers(low, high):
        return tuple(data.draw(st.integers(low, high)) for _ in range(dims))

    window = numbers(1, 4), numbers(1, 3), numbers(0, 3), numbers(1, 3), data.draw(st.booleans())
    bounds = (None, None)
    if data.draw(st.booleans()):
        lower = numbers(-3, 3)
        bounds = lower, tuple(a + b for a, b in zip(lower, numbers(1, 9), strict=True))

    def run(way):
        op = torch.ops.flexor
        with running(way):
            index = op.sparse_index(indices, -1, None, None, None)
            output = op.sparse_output_index(index, dims, *window, *bounds, True, None)
            forward = op.sparse_map(output[1:], index, dims, *window, None)
            backward = op.sparse_map(index, output[1:], dims, *window[:4], not window[4], None)
        return [*without_slots(index), *without_slots_of_output(output), *forward, *backward]

    expected = run(WAYS[0])
    for way in WAYS[1:]:
        assert_equal(run(way), expected)
    parts = reference.sparse_index(indices, -1, None, None)
    output = reference.sparse_output_index(parts, dims, *window, *bounds, True)
    lists = reference.sparse_map(output[1:], parts, dims, *window)
    found = torch.stack(pairs([output[1], parts[0], *lists]), 1).tolist()
    assert {tuple(t) for t in found} == triples(output[0], indices, *window)


@pytest.mark.parametrize("count", [20_000])
@WAY
def test_threads_do_not_change_bits(way, count):
    indices = scene((60, 60, 40), count)
    results = []
    for threads in (1, 2):
        with running(way, threads):
            index = ops.SparseIndex(indices)
            out, map = index.strided(3, 2, 1)
            results.append([*index.parts, out.indices, *out.parts, *map.tensors, *index.submanifold(3).tensors])
    assert_equal(*results)


@DIMS
@WAY
def test_no_voxels(way, dims):
    with running(way):
        for shape in (None, SHAPES[dims]):
            index = ops.SparseIndex(torch.empty(0, 1 + dims, dtype=torch.int32), spatial_shape=shape)
            assert len(index) == 0 and index.batch_size == 1
            for method in (index.strided, index.generative):
                out, map = method(3, 2, 1)
                assert out.indices.shape == (0, 1 + dims) and out.indices.dtype == torch.int32
                assert [t.numel() for t in map.tensors] == [0, 0, 0, 0, 1]
                assert [t.numel() for t in map.transposed().tensors] == [0, 0, 0, 0, 1]
            assert index.submanifold(3).tensors[4].tolist() == [0]


@WAY
def test_no_outputs(way):
    """Voxels that no output can have under its kernel."""
    with running(way):
        index = ops.SparseIndex(torch.tensor([[0, 1], [0, 3]]), spatial_shape=(5,), batch_size=4)
        out, map = index.strided(1, 2, 0)
        assert len(out) == 0 and out.spatial_shape == (3,) and out.batch_size == 4
        assert map.tensors[4].tolist() == [0] and map.transposed().tensors[4].tolist() == [0, 0]


@WAY
def test_rows_and_strides_of_any_layout(way):
    indices = scene(SHAPES[3], 300)
    turned = indices.T.contiguous().T
    sliced = torch.cat([indices, indices], 1)[:, :4]
    apart = indices.repeat_interleave(2, 0)[::2]
    with running(way):
        expected = ops.SparseIndex(indices).parts
        for changed in (turned, sliced, apart):
            assert_equal(ops.SparseIndex(changed).parts, expected)


@WAY
def test_far_voxels(way):
    """Wherever a scene lies, its maps are the same."""
    indices = scene(SHAPES[3], 200, dtype=torch.int64)
    results = []
    with running(way):
        for offset in (0, 2**40, -(2**60), 2**61):
            moved = indices.clone()
            moved[:, 1:] += offset
            index = ops.SparseIndex(moved)
            results.append([index.parts[0], *index.submanifold(3).tensors, *index.submanifold(5).tensors])
    for result in results[1:]:
        assert_equal(result, results[0])


def test_shapes():
    index = ops.SparseIndex(scene(SHAPES[3], 100), spatial_shape=SHAPES[3], batch_size=2)
    for kernel, stride, padding, dilation in ((3, 2, 1, 1), ((3, 1, 2), (2, 1, 3), (0, 0, 1), 1), (3, 1, 0, 2)):
        conv = torch.nn.Conv3d(1, 1, kernel, stride, padding, dilation, device="meta")
        turned = torch.nn.ConvTranspose3d(1, 1, kernel, stride, padding, dilation=dilation, device="meta")
        grid = torch.empty(1, 1, *SHAPES[3], device="meta")
        assert index.strided(kernel, stride, padding, dilation)[0].spatial_shape == conv(grid).shape[2:]
        assert index.generative(kernel, stride, padding, dilation)[0].spatial_shape == turned(grid).shape[2:]
    assert index.generative(3, 2, 1, output_padding=1)[0].spatial_shape == tuple(2 * s for s in SHAPES[3])
    assert index.generative(3, 2, 1, output_padding=(-1, 0, 1))[0].spatial_shape == (24, 17, 34)
    assert ops.SparseIndex(index.indices).strided(2, 2, 0)[0].spatial_shape is None


def test_maps_are_kept_and_shared():
    index = ops.SparseIndex(scene(SHAPES[3], 100))
    assert index.submanifold(3).tensors[2] is index.submanifold((3, 3, 3), 1).tensors[2]
    assert index.submanifold(3).tensors[2] is not index.submanifold(3, 2).tensors[2]
    (out, map), (again, same) = index.strided(2, 2, 0), index.strided([2, 2, 2], 2, (0, 0, 0))
    assert out is again and map.tensors[2] is same.tensors[2]
    turned = map.transposed()
    assert turned.out is index and turned.input is out
    assert turned.tensors[2] is same.transposed().tensors[2] and turned.transposed().tensors[2] is map.tensors[2]
    assert index.generative(2, 2, 0)[0] is not out
    assert index.submanifold(3).mirrored and not index.submanifold(2).mirrored and not map.mirrored
    assert index.submanifold((3, 1, 5)).mirrored and not index.submanifold((3, 1, 4)).mirrored
    assert not index.strided(3, 1, 1)[1].mirrored


def test_nothing_refers_to_itself():
    """Maps and indices go when the last reference does, without the cycle collector."""
    gc.disable()
    try:
        index = ops.SparseIndex(scene(SHAPES[3], 100))
        out, map = index.strided(3, 2, 1)
        tensors = [index.submanifold(3).tensors[2], map.tensors[2], map.transposed().tensors[2], out.indices]
        watched = [weakref.ref(t) for t in tensors]
        del index, out, map, tensors
        assert not any(ref() is not None for ref in watched)
    finally:
        gc.enable()


def test_pytree():
    tree = torch.utils._pytree
    index = ops.SparseIndex(scene(SHAPES[3], 100), spatial_shape=SHAPES[3], batch_size=2)
    leaves = tree.tree_leaves(index)
    assert len(leaves) == 1 and leaves[0] is index.indices
    assert index.parts and len(tree.tree_leaves(index)) == 7
    copy = tree.tree_map(torch.clone, index)
    assert copy.spatial_shape == index.spatial_shape and copy.batch_size == 2
    assert_equal(copy.parts, index.parts)
    out, map = index.strided(3, 2, 1)
    assert_equal(tree.tree_map(torch.clone, map).tensors, map.tensors)
    turned = tree.tree_map(torch.clone, map.transposed())
    assert_equal(turned.tensors, map.transposed().tensors)
    assert turned.out.spatial_shape == index.spatial_shape
    assert tree.tree_map(torch.clone, index.submanifold(3)).mirrored
    again = tree.tree_unflatten(
        tree.tree_leaves(map), tree.treespec_loads(tree.treespec_dumps(tree.tree_structure(map)))
    )
    assert_equal(again.tensors, map.tensors)
    assert again.kernel == map.kernel and again.out.spatial_shape == out.spatial_shape


def test_maps_made_in_inference_mode_can_train():
    index = ops.SparseIndex(scene(SHAPES[3], 100))
    weight = torch.randn(4, 3, 3, 3, 5)
    features = torch.randn(100, 5)[: len(index)].requires_grad_()
    with torch.inference_mode():
        ops.sparse_conv(features.detach(), weight, index.submanifold(3), backend="reference")
    ops.sparse_conv(features, weight, index.submanifold(3), backend="reference").sum().backward()
    assert features.grad.isfinite().all()


def test_repr():
    index = ops.SparseIndex(torch.tensor([[0, 1, 2]]), spatial_shape=(3, 4))
    assert repr(index) == "SparseIndex(1 voxels, spatial_shape=(3, 4), batch_size=None, torch.int64 on cpu)"
    assert repr(index.strided(2, 2, 0)[1]) == "SparseMap(1 -> 1 voxels, kernel 2x2)"
