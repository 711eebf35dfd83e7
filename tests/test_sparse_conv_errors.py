# SPDX-License-Identifier: Apache-2.0
"""What sparse_conv and SparseIndex say to arguments that do not fit, on every backend."""

import pytest
import torch
from flexor import ops
from flexor.testing import running, ways
from sparse_voxels import scene

WAYS = [way for way in ways("sparse_conv") if way.device == "cpu"]
WAY = pytest.mark.parametrize("way", WAYS, ids=str)
SHAPE = (9, 7, 8)
INDEX = ops.SparseIndex(scene(SHAPE, 40), spatial_shape=SHAPE, batch_size=2)
MAP = INDEX.submanifold((3, 1, 3))


def bad(**changes):
    arguments = {
        "features": torch.zeros(40, 6),
        "weight": torch.zeros(4, 3, 1, 3, 6),
        "map": MAP,
        "bias": torch.zeros(4),
        "residual": torch.zeros(40, 4),
    }
    return arguments | changes


CONV_ERRORS = {
    "map": (bad(map=INDEX), TypeError, "map must be a SparseMap, got SparseIndex"),
    "features-rank": (bad(features=torch.zeros(6)), ValueError, r"features must have 2 dimensions .*got \(6,\)"),
    "features-none": (bad(features=None), TypeError, "features must be a tensor, got NoneType"),
    "features-dtype": (bad(features=torch.zeros(40, 6).int()), TypeError, "features must be float64.*got torch.int32"),
    "features-sparse": (bad(features=torch.zeros(40, 6).to_sparse()), TypeError, "must be a strided tensor"),
    "features-rows": (
        bad(features=torch.zeros(41, 6)),
        ValueError,
        r"features.shape\[0\] must be the map's inputs = 40, got 41",
    ),
    "features-channels": (
        bad(features=torch.zeros(40, 5)),
        ValueError,
        r"features.shape\[1\] must be weight.shape\[-1\] \* groups = 6, got 5 \(groups 1\)",
    ),
    "weight-none": (bad(weight=None), TypeError, "weight must be a tensor, got NoneType"),
    "weight-rank": (bad(weight=torch.zeros(4, 9, 6)), ValueError, r"map's kernel \(3, 1, 3\), got \(4, 9, 6\)"),
    "weight-kernel": (
        bad(weight=torch.zeros(4, 3, 3, 1, 6)),
        ValueError,
        r"weight must be \(Cout, \*kernel, Cin / groups\) with the map's kernel \(3, 1, 3\), got \(4, 3, 3, 1, 6\)",
    ),
    "weight-dtype": (
        bad(weight=torch.zeros(4, 3, 1, 3, 6).double()),
        TypeError,
        "weight must have features' dtype torch.float32, got torch.float64",
    ),
    "no-filters": (
        bad(weight=torch.zeros(0, 3, 1, 3, 6), bias=None, residual=None),
        ValueError,
        r"weight must have no empty dimension, got \(0, 9, 6\)",
    ),
    "no-channels": (
        bad(features=torch.zeros(40, 0), weight=torch.zeros(4, 3, 1, 3, 0)),
        ValueError,
        "weight must have no empty dimension",
    ),
    "groups": (
        bad(weight=torch.zeros(4, 3, 1, 3, 2), groups=3),
        ValueError,
        r"groups must be 1 or more and divide weight.shape\[0\] = 4, got 3",
    ),
    "groups-0": (bad(groups=0), ValueError, "groups must be 1 or more"),
    "groups-channels": (bad(groups=2), ValueError, r"weight.shape\[-1\] \* groups = 12, got 6 \(groups 2\)"),
    "bias-shape": (bad(bias=torch.zeros(5)), ValueError, r"bias.shape must be .* = \(4,\), got \(5,\)"),
    "bias-rank": (bad(bias=torch.zeros(4, 1)), ValueError, "bias must have 1 dimensions"),
    "bias-dtype": (bad(bias=torch.zeros(4).half()), TypeError, "bias must have features' dtype"),
    "residual-rows": (
        bad(residual=torch.zeros(39, 4)),
        ValueError,
        r"residual.shape\[0\] must be the map's outputs = 40, got 39",
    ),
    "residual-channels": (
        bad(residual=torch.zeros(40, 6)),
        ValueError,
        r"residual.shape\[1\] must be weight.shape\[0\] = 4, got 6",
    ),
    "residual-dtype": (bad(residual=torch.zeros(40, 4).double()), TypeError, "residual must have features' dtype"),
    "slope": (bad(slope=float("nan")), ValueError, "slope must be a finite number or None, got nan"),
    "slope-infinite": (bad(slope=float("inf")), ValueError, "slope must be a finite number or None, got inf"),
    "backend": (bad(backend="numpy"), ValueError, "backend must be one of cpu, cuda, reference, triton, got 'numpy'"),
    "backend-cuda": (bad(backend="cuda"), RuntimeError, "sparse_conv: backend 'cuda' cannot run"),
    "device": (
        bad(bias=torch.zeros(4, device="meta")),
        ValueError,
        "all tensors must be on one device, got features on cpu",
    ),
}


@pytest.mark.parametrize(("arguments", "kind", "message"), CONV_ERRORS.values(), ids=CONV_ERRORS.keys())
@WAY
def test_conv_errors(way, arguments, kind, message):
    with running(way), pytest.raises(kind, match=message):
        ops.sparse_conv(**arguments)


def test_rows_of_an_inverse_convolution():
    map = INDEX.strided(2, 2, 0)[1].transposed()
    with pytest.raises(ValueError, match=rf"features.shape\[0\] must be the map's inputs = {len(map.input)}, got 40"):
        ops.sparse_conv(torch.zeros(40, 3), torch.zeros(4, 2, 2, 2, 3), map)


def test_gradients_that_the_op_alone_cannot_give():
    features, weight = torch.zeros(40, 6, requires_grad=True), torch.zeros(4, 9, 6)
    op = torch.ops.flexor.sparse_conv
    with pytest.raises(NotImplementedError, match="the gradient of features needs a transposed_map, got None"):
        op(features, weight, None, None, MAP.tensors, None, 1, None, None).sum().backward()
    with pytest.raises(NotImplementedError, match="gradients need slope None, the activation"):
        op(features, weight, None, None, MAP.tensors, [], 1, 0.5, None).sum().backward()


def rows(*at, dtype=torch.int32):
    return torch.tensor(at, dtype=dtype)


GOOD = rows((0, 1, 2, 3), (1, 4, 5, 6))
INDEX_ERRORS = {
    "none": ({"indices": None}, TypeError, "indices must be a tensor, got NoneType"),
    "rank": ({"indices": GOOD[0]}, ValueError, r"indices must have 2 dimensions \(N, 1\+D\), got \(4,\)"),
    "dtype": ({"indices": GOOD.float()}, TypeError, "indices must be int32 or int64, got torch.float32"),
    "int16": ({"indices": GOOD.short()}, TypeError, "indices must be int32 or int64, got torch.int16"),
    "columns-1": ({"indices": GOOD[:, :1]}, ValueError, r"indices must have 2 to 5 columns, .* got \(2, 1\)"),
    "columns-6": (
        {"indices": torch.zeros(2, 6).int()},
        ValueError,
        r"indices must have 2 to 5 columns, .* got \(2, 6\)",
    ),
    "shape-axes": (
        {"indices": GOOD, "spatial_shape": (5, 6)},
        ValueError,
        r"spatial_shape must be 3 sizes from 1 to 2\*\*63 - 1, one for each coordinate, got \(5, 6\)",
    ),
    "shape-0": ({"indices": GOOD, "spatial_shape": (5, 0, 7)}, ValueError, r"spatial_shape must be .* got \(5, 0, 7\)"),
    "shape-float": ({"indices": GOOD, "spatial_shape": (5, 6.0, 7)}, ValueError, "spatial_shape must be"),
    "shape-huge": ({"indices": GOOD, "spatial_shape": (5, 6, 2**63)}, ValueError, "spatial_shape must be"),
    "batch-size": ({"indices": GOOD, "batch_size": -1}, ValueError, "batch_size must not be below 0, got -1"),
    "batch": (
        {"indices": GOOD, "batch_size": 1},
        ValueError,
        r"must lie in the batch size 1 and the spatial shape, got \(1, 4, 5, 6\) in row 1",
    ),
    "no-batches": ({"indices": GOOD, "batch_size": 0}, ValueError, r"got \(0, 1, 2, 3\) in row 0"),
    "negative-batch": (
        {"indices": rows((0, 1), (-1, 2))},
        ValueError,
        r"indices\[:, 0\] is the batch and must not be negative, got \(-1, 2\) in row 1",
    ),
    "outside": (
        {"indices": GOOD, "spatial_shape": (5, 5, 7)},
        ValueError,
        r"must lie in the batch size and the spatial shape, got \(1, 4, 5, 6\) in row 1",
    ),
    "negative": (
        {"indices": rows((0, 3, -1)), "spatial_shape": (4, 4)},
        ValueError,
        r"got \(0, 3, -1\) in row 0",
    ),
    "twice": (
        {"indices": rows((0, 7), (1, 7), (0, 9), (1, 7), (0, 9))},
        ValueError,
        r"indices must be unique, but rows 1 and 3 are both \(1, 7\); merge them first",
    ),
    "too-wide": (
        {"indices": rows((0, 0, 0, 0), (0, 2**40, 2**40, 2**40), dtype=torch.int64)},
        ValueError,
        "the coordinates span too much: block numbers along all axes and the batch must fit 63 bits together",
    ),
    "whole-range": (
        {"indices": rows((0, -(2**63)), (0, 2**63 - 1), dtype=torch.int64)},
        ValueError,
        "the coordinates span too much",
    ),
    "batches-too-wide": (
        {"indices": rows((0, 0), (2**62, 2**20), dtype=torch.int64)},
        ValueError,
        "the coordinates span too much",
    ),
    "backend": (
        {"indices": GOOD, "backend": "numpy"},
        ValueError,
        "backend must be one of cpu, cuda, reference, triton",
    ),
}


@pytest.mark.parametrize(("arguments", "kind", "message"), INDEX_ERRORS.values(), ids=INDEX_ERRORS.keys())
@WAY
def test_index_errors(way, arguments, kind, message):
    """Where the numbers of the coordinates are wrong, on first use."""
    with running(way), pytest.raises(kind, match=message):
        ops.SparseIndex(**arguments).parts  # noqa: B018


def index(**options):
    return ops.SparseIndex(GOOD, **options)


WINDOW_ERRORS = {
    "kernel-0": (lambda: index().submanifold(0), "kernel must be integers not below 1, one or 3 of them, got 0"),
    "kernel-float": (lambda: index().submanifold(3.0), "kernel must be integers not below 1"),
    "kernel-axes": (lambda: index().submanifold((3, 3)), r"kernel must be .* one or 3 of them, got \(3, 3\)"),
    "kernel-huge": (lambda: index().submanifold(41), r"kernel must have at most 65536 taps, got 41"),
    "stride-0": (lambda: index().strided(3, 0, 1), "stride must be integers not below 1, one or 3 of them, got 0"),
    "stride-huge": (lambda: index().strided(3, 2**30, 1), r"stride must be below 2\*\*30, got 1073741824"),
    "padding": (lambda: index().strided(3, 1, -1), "padding must be integers not below 0, one or 3 of them, got -1"),
    "dilation": (lambda: index().submanifold(3, (1, 1, 0)), r"dilation must be .* not below 1, .* got \(1, 1, 0\)"),
    "output-padding": (
        lambda: index().generative(3, 1, 1, 1, 0.5),
        "output_padding must be integers, one or 3 of them, got 0.5",
    ),
    "no-output": (
        lambda: index(spatial_shape=(5, 6, 7)).strided(6, 1, 0),
        r"the output would be 0x1x2 cells \(spatial_shape \(5, 6, 7\), kernel \(6, 6, 6\), stride \(1, 1, 1\), padding",
    ),
    "no-generated": (
        lambda: index(spatial_shape=(5, 6, 7)).generative(1, 1, 3),
        r"the output would be -1x0x1 cells .* padding \(3, 3, 3\), dilation \(1, 1, 1\), output_padding \(0, 0, 0\)\)",
    ),
    "generated-overflow": (
        lambda: index(spatial_shape=(2**40, 2**62, 7)).generative(2, 4, 0),
        "the output would be 4398046511102x18446744073709551614x26 cells",
    ),
    "beyond-int32": (
        lambda: ops.SparseIndex(rows((0, 2**30))).generative(2, 2, 0),
        "outputs lie beyond int32 coordinates; give the indices as int64",
    ),
    "below-int32": (
        lambda: ops.SparseIndex(rows((0, -(2**31)))).strided(3, 1, 1),
        "outputs lie beyond int32 coordinates; give the indices as int64",
    ),
    "beyond-int64": (
        lambda: ops.SparseIndex(rows((0, 2**61), dtype=torch.int64)).generative(2, 8, 0),
        "the coordinates span too much",
    ),
}


@pytest.mark.parametrize(("function", "message"), WINDOW_ERRORS.values(), ids=WINDOW_ERRORS.keys())
@WAY
def test_window_errors(way, function, message):
    with running(way), pytest.raises(ValueError, match=message):
        function()


@WAY
def test_int32_to_its_ends(way):
    """The last blocks of int32 may be left by the kernel, not by the voxels."""
    with running(way):
        out, map = ops.SparseIndex(rows((0, 2**31 - 1), (0, -(2**31)))).strided(2, 2, 0)
        assert out.indices.tolist() == [[0, -(2**30)], [0, 2**30 - 1]] and map.tensors[2].tolist() == [0, 1]
        edge = ops.SparseIndex(rows((0, 2**31 - 3))).generative(3, 1, 0)[0]
        assert edge.indices[:, 1].tolist() == [2**31 - 3, 2**31 - 2, 2**31 - 1]
        wide = ops.SparseIndex(rows((0, 2**30), dtype=torch.int64)).generative(2, 2, 0)[0]
        assert wide.indices[:, 1].tolist() == [2**31, 2**31 + 1]
