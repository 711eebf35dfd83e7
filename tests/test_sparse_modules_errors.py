# SPDX-License-Identifier: Apache-2.0
"""Every message of flexor.sparse and of the sparse layers of flexor.nn: what was expected, what came, what to do."""

import pytest
import torch
from flexor import nn as fnn
from flexor import sparse as spconv
from flexor.sparse import functional as Fsp
from flexor.sparse.hash import HashTable
from flexor.sparse.utils import Point2VoxelCPU3d, PointToVoxel
from sparse_cases import voxels
from torch import nn

SHAPE = [7, 6, 5]


def make(channels=3, rows=None, **change):
    indices = voxels(3)[:rows]
    values = {"features": torch.randn(len(indices), channels), "indices": indices, "spatial_shape": SHAPE}
    return spconv.SparseConvTensor(**{**values, "batch_size": 2, **change})


def bad_row(*row, at=4):
    indices = voxels(3)
    indices[at] = torch.tensor(row, dtype=torch.int32)
    return make(indices=indices)


def keyed(first, second, channels=3):
    return second(first(make(channels)))


def subm(cin=3, cout=3, kernel=3, key="k", **more):
    return spconv.SubMConv3d(cin, cout, kernel, indice_key=key, **more)


def down(cin=3, cout=3, kernel=3, key="k"):
    return spconv.SparseConv3d(cin, cout, kernel, 2, 1, indice_key=key)


def moved(x):
    return spconv.SparseConvTensor(x.features, x.indices.flip(0), x.spatial_shape, 2, indice_dict=x.indice_dict)


def loaded(model, weight, layout="spconv1"):
    return spconv.load_weights(model, {"weight": weight}, layout, strict=False)


HASH = torch.device("cpu"), torch.int32, torch.float32
ERRORS = {
    # the tensor
    "rows": (lambda: make(features=torch.zeros(4, 3)), ValueError, r"features must have one row a voxel = 81, got 4"),
    "dims": (lambda: make(features=torch.zeros(81)), ValueError, r"features must have 2 dimensions \(N, C\), got"),
    "replace-rows": (lambda: make().replace_feature(torch.zeros(2, 3)), ValueError, "one row a voxel = 81, got 2"),
    "batch-size": (lambda: make(batch_size=0), ValueError, "batch_size must be at least 1, got 0"),
    "shape-length": (lambda: make(spatial_shape=[4, 4]), ValueError, "spatial_shape must be 3 sizes"),
    "shape-zero": (lambda: make(spatial_shape=[4, 4, 0]), ValueError, "spatial_shape must be 3 sizes from 1"),
    "index-dtype": (lambda: make(indices=voxels(3).float()), TypeError, "indices must be int32 or int64, got"),
    "index-columns": (lambda: make(indices=voxels(3)[:, :1]), ValueError, "indices must have 2 to 5 columns"),
    "setter": (lambda: setattr(make(), "features", 0), ValueError, r"x = x.replace_feature\(features\)"),
    "add": (lambda: make() + 1, TypeError, r"\+ takes a SparseTensor on the same voxels or a tensor, got int"),
    "q-scale": (lambda: make().q_scale(), ValueError, "q_scale needs quantized features, got torch.float32"),
    "coalesce": (
        lambda: spconv.SparseConvTensor.coalesce(torch.zeros(81, 1), voxels(3), SHAPE, 2, "median"),
        ValueError,
        "reduce must be one of sum, mean, amax, amin, got 'median'",
    ),
    "dense-outside": (lambda: bad_row(1, 7, 0, 0).dense(), ValueError, r"row 4 of indices is \[1, 7, 0, 0\], outside"),
    # rows that no index can take
    "duplicate": (
        lambda: subm()(make(indices=torch.zeros(2, 4, dtype=torch.int32), features=torch.zeros(2, 3))),
        ValueError,
        r"(?s)SubMConv3d: .*rows 0 and 1 .*SparseConvTensor.coalesce\(features, indices, spatial_shape, batch_size",
    ),
    "outside": (
        lambda: down()(bad_row(1, 7, 0, 0)),
        ValueError,
        r"(?s)SparseConv3d: .*\(1, 7, 0, 0\).*select_by_index\(mask\)",
    ),
    "negative": (
        lambda: spconv.SparseMaxPool3d(2)(bad_row(0, 0, -1, 0)),
        ValueError,
        r"SparseMaxPool3d: .*\(0, 0, -1, 0\)",
    ),
    "sample": (lambda: subm()(bad_row(2, 0, 0, 0)), ValueError, r"SubMConv3d: .*\(2, 0, 0, 0\)"),
    # convolutions
    "no-tensor": (lambda: subm()(torch.zeros(3, 3)), TypeError, "expected a SparseConvTensor, got Tensor"),
    "channels": (lambda: subm(5)(make()), ValueError, "input must have in_channels = 5 channels, got 3"),
    "groups": (
        lambda: subm(4, 6, groups=4),
        ValueError,
        "groups must divide in_channels = 4 and out_channels = 6, got 4",
    ),
    "axes": (lambda: subm(kernel=[3, 3]), ValueError, r"expected one number or 3 of them, got \[3, 3\]"),
    "one-tap-padding": (lambda: spconv.SparseConv3d(3, 3, 1, 1, 1), ValueError, "padding must be 0 where kernel"),
    "vanished": (lambda: spconv.SparseConv3d(3, 4, 9)(make()), ValueError, "kernel"),
    "residual": (lambda: subm()(make(), make(rows=5)), ValueError, r"residual.shape\[0\]"),
    "activation": (
        lambda: Fsp.activate(torch.zeros(1), type("A", (), {"name": "Tanh"})(), 0.0),
        NotImplementedError,
        "act_type must be one of None_, ReLU, Sigmoid, LeakyReLU, got Tanh",
    ),
    # indice_key
    "taken": (lambda: keyed(down(), down()), ValueError, "SparseConv3d: indice_key 'k' is taken; only submanifold"),
    "taken-by-conv": (lambda: keyed(down(), subm()), ValueError, "SubMConv3d: indice_key 'k' is taken"),
    "pool-taken": (
        lambda: keyed(down(), spconv.SparseMaxPool3d(2, indice_key="k")),
        ValueError,
        "SparseMaxPool3d: indice_key 'k' is taken",
    ),
    "subm-kernel": (lambda: keyed(subm(), subm(kernel=5)), ValueError, r"kernel_size must be that of .* = \[3, 3, 3\]"),
    "subm-dilation": (lambda: keyed(subm(), subm(dilation=2)), ValueError, r"dilation must be .*got \[2, 2, 2\]"),
    "subm-shape": (
        lambda: keyed(spconv.SparseSequential(subm(), down(key="d")), subm()),
        ValueError,
        "spatial_shape of the input must be",
    ),
    "subm-rows": (
        lambda: subm()(make(rows=9, indice_dict=subm()(make()).indice_dict)),
        ValueError,
        "rows of the input must be that of the layer with indice_key 'k' = 81, got 9",
    ),
    "subm-voxels": (lambda: subm()(moved(subm()(make()))), ValueError, "row for row; got others"),
    "inverse-unknown": (
        lambda: keyed(down(key="d"), spconv.SparseInverseConv3d(3, 3, 3, "k")),
        ValueError,
        r"no layer before has indice_key 'k'.*Known: \['d'\]",
    ),
    "inverse-subm": (lambda: keyed(subm(), spconv.SparseInverseConv3d(3, 3, 3, "k")), ValueError, "needs no inverse"),
    "inverse-kernel": (
        lambda: keyed(down(), spconv.SparseInverseConv3d(3, 3, 2, "k")),
        ValueError,
        r"kernel_size must be that of the layer with indice_key 'k' = \[3, 3, 3\], got \[2, 2, 2\]",
    ),
    "inverse-shape": (
        lambda: keyed(spconv.SparseSequential(down(), down(key="d")), spconv.SparseInverseConv3d(3, 3, 3, "k")),
        ValueError,
        "spatial_shape of the input must be",
    ),
    "inverse-voxels": (
        lambda: spconv.SparseInverseConv3d(3, 3, 3, "k")(moved(down()(make()))),
        ValueError,
        "row for row; got others",
    ),
    # containers, tables
    "sequential-name": (
        lambda: spconv.SparseSequential(nn.ReLU(), **{"0": nn.ReLU()}),
        ValueError,
        "a module '0' already",
    ),
    "sequential-add": (
        lambda: spconv.SparseSequential(nn.ReLU()).add(nn.ReLU(), "0"),
        KeyError,
        "a module '0' already",
    ),
    "sequential-index": (lambda: spconv.SparseSequential(nn.ReLU())[1], IndexError, r"must be in \[-1, 1\), got 1"),
    "join": (
        lambda: spconv.JoinTable()([make(), make(rows=5)]),
        ValueError,
        r"JoinTable: features.shape\[0\] of tensor 1",
    ),
    "add-table": (
        lambda: spconv.AddTable()([make(), make(4)]),
        ValueError,
        r"features.shape\[1\] of tensor 1 .* = 3, got 4",
    ),
    "add-misaligned": (
        lambda: spconv.AddTableMisaligned()([make(), make(spatial_shape=[8, 8, 8])]),
        ValueError,
        r"sparse_add: spatial_shape of tensor 1 must be that of tensor 0 = \[7, 6, 5\], got \[8, 8, 8\]",
    ),
    "add-nothing": (lambda: Fsp.sparse_add(), ValueError, "at least one SparseConvTensor, got none"),
    "benchmark": (lambda: subm()(make(benchmark=True)), ValueError, "benchmark=True needs layers with a name"),
    "fuse": (lambda: spconv.fuse(subm()), ValueError, "model must be in evaluation mode"),
    "pair-num": (
        lambda: Fsp.indice_conv(torch.zeros(3, 2), torch.zeros(2, 3, 2), torch.zeros(2, 3, 3)),
        ValueError,
        r"indice_pair_num must be a tensor \(K,\)",
    ),
    # weights
    "layout": (
        lambda: spconv.load_weights(subm(), {}, "caffe"),
        ValueError,
        "layout must be one of spconv1, spconv2, scn",
    ),
    "weight-size": (lambda: loaded(subm(), torch.zeros(3, 3, 3, 3, 4)), ValueError, r"must have the 243 numbers of"),
    "missing": (lambda: spconv.load_weights(subm(), {}, "scn"), RuntimeError, "Missing key"),
    # hash table, voxels
    "hash-key": (
        lambda: HashTable(HASH[0], torch.float32, torch.int32),
        TypeError,
        "key_dtype must be one of torch.int32",
    ),
    "hash-value": (lambda: HashTable(HASH[0], torch.int32, torch.int8), TypeError, "value_dtype must be one of"),
    "hash-insert": (
        lambda: HashTable(*HASH).insert(torch.zeros(2)),
        TypeError,
        "keys must be torch.int32, got torch.float32",
    ),
    "hash-shape": (
        lambda: HashTable(*HASH).insert(torch.zeros(2, dtype=torch.int32), torch.zeros(3)),
        ValueError,
        r"values must have shape \(2,\), got \(3,\)",
    ),
    "voxel-range": (lambda: PointToVoxel([1, 1], [0, 0, 1], 2, 5, 5), ValueError, r"2 \* len\(vsize_xyz\) = 4 numbers"),
    "voxel-size": (lambda: PointToVoxel([1, 0], [0, 0, 1, 1], 2, 5, 5), ValueError, "at least one cell an axis"),
    "voxel-nan": (lambda: PointToVoxel([1.0], [0, float("nan")], 2, 5, 5), ValueError, "at least one cell an axis"),
    "voxel-limits": (
        lambda: PointToVoxel([1], [0, 1], 2, 0, 5),
        ValueError,
        "must be at least 1 and num_point_features",
    ),
    "voxel-points": (
        lambda: PointToVoxel([1], [0, 1], 2, 5, 5)(torch.zeros(4, 3)),
        ValueError,
        r"pc must be \(P, num_point_features\) = \(P, 2\) on cpu, got \(4, 3\)",
    ),
    "voxel-numpy": (
        lambda: Point2VoxelCPU3d([1] * 3, [0, 0, 0, 1, 1, 1], 4, 5, 5).point_to_voxel(torch.zeros(4, 3).numpy()),
        ValueError,
        "pc must be",
    ),
    # flexor.nn
    "nn-groups": (lambda: fnn.SubmanifoldConv3d(4, 6, 3, groups=4), ValueError, "groups must divide in_channels = 4"),
    "nn-axes": (
        lambda: fnn.SparseConv2d(4, 6, (3, 3, 3)),
        ValueError,
        r"SparseConv2d: expected one number or 2 of them",
    ),
    "nn-target": (
        lambda: fnn.SparseConvTranspose3d(3, 3, 3, 2, 1)(make(), make()),
        ValueError,
        "(?s)target must be a tensor that a convolution .* made the input's voxels from",
    ),
    "nn-dense": (
        lambda: fnn.SparseTensor(torch.zeros(81, 3), voxels(3)).dense(),
        ValueError,
        "there is no spatial_shape; give one",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_message(name):
    call, kind, message = ERRORS[name]
    with pytest.raises(kind, match=message):
        call()


def test_saved_weight_layout(monkeypatch):
    monkeypatch.setenv("SPCONV_SAVED_WEIGHT_LAYOUT", "NHWC")
    with pytest.raises(ValueError, match="must be one of KRSC, RSKC, RSCK, got 'NHWC'"):
        subm().load_state_dict(subm().state_dict())


def test_span_of_63_bits():
    far = torch.tensor([[0, -(2**62), 0], [0, 2**62, 2**60]])
    with pytest.raises(ValueError, match="span more than 63 bits can number"):
        fnn.SparseTensor.coalesce(torch.zeros(2, 1), far)
