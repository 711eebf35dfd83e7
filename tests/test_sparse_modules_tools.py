# SPDX-License-Identifier: Apache-2.0
"""Fsp, the hash table, points to voxels, weights of other packages, fused copies."""

import copy
import itertools
import math

import numpy
import pytest
import torch
import torch.nn.functional as F
from flexor import nn as fnn
from flexor import sparse as spconv
from flexor.sparse import functional as Fsp
from flexor.sparse import ops
from flexor.sparse.hash import HashTable
from flexor.sparse.utils import Point2VoxelCPU3d, PointToVoxel, gather_features_by_pc_voxel_id
from flexor.testing import assert_close
from sparse_cases import BATCH, RANGE, SHAPES, UNet, points, voxels, wave
from torch import nn


def make(channels=3, keep=0.3, ndim=3):
    indices = voxels(ndim, keep)
    features = wave(len(indices), channels, step=1.3).requires_grad_()
    return spconv.SparseConvTensor(features, indices, SHAPES[ndim], BATCH)


def parts(x):
    """Two tensors with some voxels in common."""
    first, second = x.select_by_index(slice(0, 40)), x.select_by_index(slice(25, 60))
    return first, second.replace_feature(second.features * 2)


@pytest.mark.parametrize("add", [Fsp.sparse_add, Fsp.sparse_add_hash_based, lambda *t: spconv.AddTableMisaligned()(t)])
def test_sparse_add(add):
    x = make()
    total = add(*parts(x))
    assert len(total.indices) == 60 and total.indices.dtype == torch.int32 and total.indice_dict == {}
    assert torch.equal(total.indices, x.indices[:60][row_order(x.indices[:60])])
    first, second = parts(x)
    assert_close(total.dense(), first.dense() + second.dense(), 1e-12)
    total.features.sum().backward()
    expected = torch.cat([torch.full((25,), 1.0), torch.full((15,), 3.0), torch.full((20,), 2.0)])
    assert torch.equal(x.features.grad[:60, 0], expected.double())


def row_order(indices):
    return torch.tensor(sorted(range(len(indices)), key=lambda i: indices[i].tolist()))


def test_sparse_add_keeps_the_maps_of_one_that_has_all_voxels():
    x = spconv.SparseConv3d(3, 4, 2, 2, indice_key="d").double()(make())
    part = x.select_by_index(slice(3, 9))
    total = Fsp.sparse_add(part, x)
    assert total.index is x.index and "d" in total.indice_dict
    assert_close(total.dense(), part.dense() + x.dense(), 1e-12)
    assert spconv.SparseInverseConv3d(4, 3, 2, "d").double()(total).spatial_shape == SHAPES[3]


CONVS = {
    "subm": (lambda: spconv.SubMConv3d(3, 4, 3, indice_key="k"), Fsp.indice_subm_conv),
    "subm-even": (lambda: spconv.SubMConv3d(3, 4, [2, 1, 3], indice_key="k"), Fsp.indice_subm_conv),
    "conv": (lambda: spconv.SparseConv3d(3, 4, 3, 2, 1, indice_key="k"), Fsp.indice_conv),
    "transpose": (lambda: spconv.SparseConvTranspose3d(3, 4, 3, 2, 1, indice_key="k"), Fsp.indice_conv),
}


@pytest.mark.parametrize("of", ["table", "map", "columns", "columns-map"])
@pytest.mark.parametrize("name", CONVS)
def test_convolution_of_tables(name, of):
    """Tables of pairs, as spconv hands them out and takes them, compute what the layer does; so does a map."""
    build, function = CONVS[name]
    layer, x = build().double(), make()
    expected = layer(x)
    data, rows = expected.find_indice_pair("k"), len(expected.indices)
    if of == "table":
        found = function(x.features, layer.weight, data.indice_pairs, data.indice_pair_num, rows, bias=layer.bias)
    elif of == "map":
        found = function(x.features, layer.weight, data.map, bias=layer.bias)
    else:
        table = data.pair_fwd if of == "columns" else data.map
        found = Fsp.implicit_gemm(x.features, layer.weight, table, num_activate_out=rows, bias=layer.bias)
    inputs = [x.features, *layer.parameters()]
    grad = wave(*found.shape, step=0.9)
    assert_close(found, expected.features, 1e-12)
    grads = [torch.autograd.grad(y, inputs, grad) for y in (found, expected.features)]
    for a, b in zip(*grads, strict=True):
        assert_close(a, b, 1e-12)


def test_inverse_convolution_of_tables():
    x = make()
    y = spconv.SparseConv3d(3, 4, 3, 2, 1, indice_key="k").double()(x)
    layer, data = spconv.SparseInverseConv3d(4, 5, 3, "k").double(), y.find_indice_pair("k")
    expected = F.leaky_relu(layer(y).features, 0.1)
    more = {"bias": layer.bias, "act_alpha": 0.1, "act_type": spconv.Activation.LeakyReLU}
    table = data.indice_pairs, data.indice_pair_num, len(x.indices)
    assert_close(Fsp.indice_inverse_conv(y.features, layer.weight, *table, **more), expected, 1e-12)
    assert_close(Fsp.indice_inverse_conv(y.features, layer.weight, data.map, **more), expected, 1e-12)


def test_pooling_of_tables():
    """Every input equal to a maximum gets its gradient."""
    x = make()
    x = x.replace_feature((x.features * 4).round())
    y = spconv.SparseMaxPool3d(3, 2, 1, indice_key="k")(x)
    data, mean = y.find_indice_pair("k"), spconv.SparseAvgPool3d(3, 2, 1)(x).features
    rows, grad = len(y.indices), wave(*y.features.shape)
    maxima = [
        y.features,
        Fsp.indice_maxpool(x.features, data.indice_pairs, data.indice_pair_num, rows),
        Fsp.indice_maxpool(x.features, data.map),
        Fsp.indice_maxpool_implicit_gemm(x.features, data.pair_fwd, data.pair_bwd, rows),
        Fsp.indice_maxpool_implicit_gemm(x.features, data.map),
    ]
    means = [
        mean,
        Fsp.indice_avgpool_implicit_gemm(x.features, data.pair_fwd, None, rows),
        Fsp.indice_avgpool_implicit_gemm(x.features, data.map),
    ]
    for group in (maxima, means):
        grads = [torch.autograd.grad(value, x.features, grad, retain_graph=True)[0] for value in group]
        for value, gradient in zip(group, grads, strict=True):
            assert_close(value, group[0], 1e-12)
            assert_close(gradient, grads[0], 1e-12)


def test_sizes_and_pairs():
    assert ops.get_conv_output_size([7, 6, 5], [3, 3, -1], [2] * 3, [1] * 3, [1] * 3) == [4, 3, 1]
    assert ops.get_deconv_output_size([4, 3], [3, 2], [2, 2], [1, 0], [2, 1], [1, 0]) == [8, 6]
    x = make()
    window = [3] * 3, [2] * 3, [1] * 3, [1] * 3, [0] * 3
    found = ops.get_indice_pairs(x.indices, BATCH, SHAPES[3], ops.ConvAlgo.Native, *window)
    y = spconv.SparseConv3d(3, 4, 3, 2, 1, indice_key="k").double()(x)
    data = y.find_indice_pair("k")
    for a, b in zip(found, (y.indices, data.indice_pairs, data.indice_pair_num), strict=True):
        assert torch.equal(a, b)
    rows, counts = ops.global_pool_rearrange(x.indices, 3)
    assert counts.tolist() == torch.bincount(x.indices[:, 0], minlength=3).tolist()
    assert rows[1, : counts[1]].tolist() == (x.indices[:, 0] == 1).nonzero()[:, 0].tolist() and rows[2].max() == -1
    value = torch.tensor([3])
    ops.maximum_value_int_(value, 5)
    assert value.item() == 5


@pytest.mark.parametrize("key", [torch.int32, torch.int64])
@pytest.mark.parametrize("kind", [torch.int32, torch.int64, torch.float32, torch.float64])
def test_hash_table(key, kind):
    table, known = HashTable(torch.device("cpu"), key, kind), {}
    assert table.query(torch.tensor([1], dtype=key))[1].all() and table.items()[2].item() == 0
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        keys = torch.randint(-50, 50, (40,), generator=generator).to(key)
        values = torch.randint(0, 1000, (40,), generator=generator).to(kind)
        table.insert(keys, values)
        known |= dict(zip(keys.tolist(), values.tolist(), strict=True))
    wanted = torch.arange(-60, 60).to(key)
    values, missing = table.query(wanted)
    assert values.dtype == kind and missing.dtype == torch.bool
    assert missing.tolist() == [k not in known for k in wanted.tolist()]
    assert values.tolist() == [known.get(k, 0) for k in wanted.tolist()]
    given, _ = table.query(wanted, torch.full((120,), 7, dtype=kind))
    assert given.tolist() == [known.get(k, 7) for k in wanted.tolist()]
    refused = table.insert_exist_keys(wanted, torch.full((120,), 9, dtype=kind))
    assert refused.dtype == torch.uint8 and torch.equal(refused > 0, missing)
    keys, values, count = table.items()
    assert keys.tolist() == sorted(known) and values.eq(9).all() and count.tolist() == [len(known)]
    assert table.items(3)[0].tolist() == sorted(known)[:3]
    assert table.assign_arange_().item() == len(known) and table.items()[1].tolist() == list(range(len(known)))
    table.insert(torch.tensor([1000], dtype=key))
    assert 1000 in table.items()[0]


def slowly(cloud, vsize, coors_range, columns, most, per_voxel):
    """The definition, a point at a time."""
    dims = len(vsize)
    size, low, high = (torch.tensor(v).flip(0) for v in (vsize, coors_range[:dims], coors_range[dims:]))
    grid = ((high - low) / size).round()
    cells, ids, rows = {}, [], {}
    for i, point in enumerate(cloud):
        cell = ((point[:dims].flip(0) - low) / size).floor()
        cell = tuple(cell.int().tolist()) if ((cell >= 0) & (cell < grid)).all() else None
        if cell is not None and cell not in cells and len(cells) < most:
            cells[cell] = len(cells)
        ids.append(cells.get(cell, -1))
        if ids[-1] >= 0 and len(rows.setdefault(ids[-1], [])) < per_voxel:
            rows[ids[-1]].append(i)
    return torch.tensor(list(cells)), ids, [rows[v] for v in range(len(cells))]


@pytest.mark.parametrize("empty_mean", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("most", [1000, 30])
def test_point_to_voxel(most, dtype, empty_mean):
    cloud, arguments = points(400).to(dtype), ([0.5, 0.6, 0.4], RANGE, 4, most, 3)
    cloud[7, 1], cloud[9] = torch.nan, torch.inf
    voxelizer = PointToVoxel(*arguments)
    made, indices, counts, ids = voxelizer.generate_voxel_with_id(cloud, empty_mean=empty_mean)
    exact = cloud if dtype == torch.float64 else cloud.float()
    cells, expected_ids, rows = slowly(exact, *arguments)
    assert torch.equal(indices, cells.int()) and ids.tolist() == expected_ids and ids[7] == ids[9] == -1
    assert counts.tolist() == list(map(len, rows))
    for voxel, inside in zip(made, rows, strict=True):
        there = cloud[inside].float()
        assert torch.equal(voxel[: len(inside)], there)
        rest = there.mean(0) if empty_mean else torch.zeros(4)
        assert_close(voxel[len(inside) :], rest.expand(3 - len(inside), 4), 1e-6)
    for a, b in zip(voxelizer(cloud, empty_mean=empty_mean), (made, indices, counts), strict=True):
        assert torch.equal(a, b)
    assert voxelizer.grid_size == [5, 5, 8] and voxelizer.grid_stride == [40, 8, 1] and voxelizer.ndim == 3
    assert voxelizer.vsize == pytest.approx([0.4, 0.6, 0.5]) and voxelizer.coors_range == [0, 0, 0, 2, 3, 4]


def test_point_to_voxel_without_points():
    voxelizer = PointToVoxel([0.5] * 3, RANGE, 4, 100, 3)
    for cloud in (torch.zeros(0, 4), torch.full((5, 4), 100.0)):
        made, indices, counts, ids = voxelizer.generate_voxel_with_id(cloud, empty_mean=True)
        assert made.shape == (0, 3, 4) and indices.shape == (0, 3) and len(counts) == 0
        assert ids.tolist() == [-1] * len(cloud)


def test_older_voxelizer():
    older, cloud = Point2VoxelCPU3d([0.5] * 3, RANGE, 4, 100, 3), points(200)
    for given in (cloud, cloud.numpy()):
        for mean in (False, True):
            method = older.point_to_voxel_empty_mean if mean else older.point_to_voxel
            expected = PointToVoxel([0.5] * 3, RANGE, 4, 100, 3)(cloud, empty_mean=mean)
            for a, b in zip(method(given), expected, strict=True):
                assert isinstance(a.numpy(), numpy.ndarray) and torch.equal(a, b)


def test_gather_features():
    voxelizer, cloud = PointToVoxel([0.5] * 3, RANGE, 4, 100, 3), points(200)
    *_, ids = voxelizer.generate_voxel_with_id(cloud)
    rows = torch.randn(100, 2, requires_grad=True)
    gathered = gather_features_by_pc_voxel_id(rows, ids, -5)
    assert torch.equal(gathered[ids >= 0], rows[ids[ids >= 0]]) and gathered[ids < 0].eq(-5).all()
    gathered.sum().backward()
    assert torch.equal(rows.grad[:, 0], torch.bincount(ids[ids >= 0], minlength=100).float())


def neighbour_sum(x, kernel, weight_at, dims=3):
    """Submanifold, the obvious way: weight_at(tap) is (Cin, Cout) of the neighbour at tap - kernel // 2."""
    place = {tuple(row): i for i, row in enumerate(x.indices.tolist())}
    output = torch.zeros(len(x.indices), weight_at((0,) * dims).shape[1], dtype=torch.float64)
    for (sample, *site), row in place.items():
        for tap in itertools.product(*map(range, kernel)):
            other = place.get((sample, *(s + t - k // 2 for s, t, k in zip(site, tap, kernel, strict=True))))
            if other is not None:
                output[row] += x.features[other] @ weight_at(tap)
    return output


LAYOUTS = {
    "spconv1": lambda w, k: lambda tap: w[tap],
    "spconv2": lambda w, k: lambda tap: w.view(4, 6) if math.prod(k) == 1 else w[(slice(None), *tap)].t(),
    "scn": lambda w, k: lambda tap: w.view(*k, 4, 6)[tap],
    "minkowski": lambda w, k: lambda tap: w.view(-1, 4, 6)[tap[0] + k[0] * (tap[1] + k[1] * tap[2])],
}


def saved(layout, kernel):
    """A weight as that package keeps it, Cin 4 and Cout 6."""
    taps = math.prod(kernel)
    shape = {"spconv1": (*kernel, 4, 6), "spconv2": (6, *kernel, 4), "scn": (taps, 1, 4, 6), "minkowski": (taps, 4, 6)}
    if taps == 1 and layout in ("scn", "minkowski"):
        return wave(4, 6)
    return wave(*shape[layout])


@pytest.mark.parametrize("kind", [spconv.SubMConv3d, fnn.SubmanifoldConv3d])
@pytest.mark.parametrize("kernel", [(3, 1, 5), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_load_weights(layout, kernel, kind):
    """A layer with another package's weight computes what that weight means there."""
    model = nn.ModuleDict({"conv": kind(4, 6, kernel), "norm": nn.BatchNorm1d(6)}).double()
    weight, bias = saved(layout, kernel), wave(6, step=2.0)
    theirs = {"conv.weight": weight, "conv.bias": bias}
    norm = {f"norm.{key}": value for key, value in nn.BatchNorm1d(6).state_dict().items()}
    if layout == "minkowski":
        theirs = {"conv.kernel": weight, "conv.bias": bias[None]}
        norm = {key.replace("norm.", "norm.bn."): value for key, value in norm.items()}
    before = dict(theirs)
    result = spconv.load_weights(model, {**theirs, **norm}, layout)
    assert not result.missing_keys and not result.unexpected_keys
    assert list(theirs) == list(before) and all(theirs[key] is before[key] for key in theirs)
    x = make(4)
    expected = neighbour_sum(x, kernel, LAYOUTS[layout](weight, kernel)) + bias
    assert_close(model["conv"](x).features, expected, 1e-12)


def test_load_grouped_weights_of_sparseconvnet():
    layer, weight = spconv.SubMConv3d(4, 6, 3, groups=2, bias=False).double(), wave(27, 2, 2, 3)
    spconv.load_weights(layer, {"weight": weight}, "scn")
    full = torch.stack([torch.block_diag(*taps) for taps in weight])
    x = make(4)
    assert_close(layer(x).features, neighbour_sum(x, (3, 3, 3), lambda t: full[t[0] * 9 + t[1] * 3 + t[2]]), 1e-12)


@pytest.mark.parametrize("layout", ["KRSC", "RSKC", "RSCK"])
def test_saved_weight_layout(layout, monkeypatch):
    """One permutation, where spconv 2.3.8 does two; one tap is the same memory in every layout."""
    monkeypatch.setenv("SPCONV_SAVED_WEIGHT_LAYOUT", layout)
    layer, shape = spconv.SparseConv3d(4, 6, (3, 1, 2)), {"K": 6, "RS": (3, 1, 2), "C": 4}
    weight = layer.weight.detach().clone()
    axes = {"KRSC": (0, 1, 2, 3, 4), "RSKC": (1, 2, 3, 0, 4), "RSCK": (1, 2, 3, 4, 0)}[layout]
    state = {"weight": weight.permute(axes).contiguous(), "bias": torch.zeros(6)}
    fresh = spconv.SparseConv3d(4, 6, (3, 1, 2))
    fresh.load_state_dict(state)
    assert torch.equal(fresh.weight, weight) and shape and state["weight"].shape == weight.permute(axes).shape
    one = spconv.SubMConv3d(4, 6, 1, bias=False)
    one.load_state_dict({"weight": wave(1, 1, 1, 4, 6)})
    assert torch.equal(one.weight.flatten(), wave(24).float())


class Chains(nn.Module):
    """What fuses, and what must not."""

    def __init__(self, s):
        super().__init__()
        self.a = s.SparseSequential(s.SubMConv3d(3, 4, 3, bias=False), nn.BatchNorm1d(4, eps=1e-3), nn.ReLU())
        self.b = s.SparseSequential(
            s.SparseConv3d(4, 5, 3, 2, 1, indice_key="d"), s.SparseBatchNorm(5), nn.LeakyReLU(0.3)
        )
        self.c = s.SparseSequential(s.SubMConv3d(5, 5, 1), nn.BatchNorm1d(5, affine=False), s.SparseReLU(), nn.ReLU())
        self.d = s.SparseSequential(s.SparseInverseConv3d(5, 4, 3, "d"), nn.ReLU(), nn.BatchNorm1d(4))
        twice = s.SubMConv3d(4, 4, 3)
        self.e = s.SparseSequential(twice, nn.BatchNorm1d(4), twice, nn.BatchNorm1d(4, track_running_stats=False))

    def forward(self, x):
        return self.e(self.d(self.c(self.b(self.a(x)))))


def trained(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d) and module.track_running_stats:
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
        if isinstance(module, nn.BatchNorm1d) and module.affine:
            nn.init.uniform_(module.weight, -1, 2)
            nn.init.uniform_(module.bias, -1, 1)
    return model.double().eval()


def test_fuse():
    model, x = trained(Chains(spconv)), make()
    before = copy.deepcopy(model.state_dict())
    fused = spconv.fuse(model)
    assert_close(fused(x).features, model(x).features, 1e-12)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    kinds = [[type(m).__name__ for m in chain] for chain in (fused.a, fused.b, fused.c, fused.d, fused.e)]
    assert kinds[0] == ["SubMConv3d", "SparseIdentity", "SparseIdentity"]
    assert kinds[1] == ["SparseConv3d", "SparseIdentity", "SparseIdentity"] and fused.b[0].act_alpha == 0.3
    assert kinds[2] == ["SubMConv3d", "SparseIdentity", "SparseIdentity", "ReLU"]
    assert kinds[3] == ["SparseInverseConv3d", "SparseIdentity", "BatchNorm1d"]
    assert kinds[4] == ["SubMConv3d", "BatchNorm1d", "SubMConv3d", "BatchNorm1d"]
    assert "act=LeakyReLU" in repr(fused.b[0])
    assert_close(spconv.fuse(fused)(x).features, model(x).features, 1e-12)


def test_fuse_unet():
    model, x = trained(UNet(spconv)), make()
    assert_close(spconv.fuse(model)(x).features, model(x).features, 1e-12)


def test_fuse_torch_style():
    chain = fnn.SparseSequential(
        fnn.SubmanifoldConv3d(3, 4, 3, bias=False), fnn.SparseBatchNorm(4), nn.ReLU(), fnn.SparseConv3d(4, 5, 2, 2)
    )
    chain.append(fnn.SparseBatchNorm(5)).append(nn.LeakyReLU(0.1))
    model, x = trained(chain), make()
    fused = spconv.fuse(model)
    assert fused[0].slope == 0 and fused[3].slope == 0.1 and "slope=0.1" in repr(fused[3])
    assert_close(fused(x).features, model(x).features, 1e-12)
