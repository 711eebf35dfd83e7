# SPDX-License-Identifier: Apache-2.0
"""flexor.sparse as a whole: its tensor, its layers against dense ones, and what spconv leaves broken on a CPU."""

import pytest
import torch
import torch.nn.functional as F
from flexor import sparse as spconv
from flexor.sparse.core import Activation, SparseConvTensor
from flexor.testing import assert_close
from sparse_cases import BATCH, SHAPES, UNet, voxels, wave
from torch import nn

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def make(ndim=3, channels=3, dtype=torch.float64, keep=0.3):
    indices = voxels(ndim, keep)
    return SparseConvTensor(wave(len(indices), channels, step=1.3).to(dtype), indices, SHAPES[ndim], BATCH)


def dense_conv(layer, x):
    """The same layer by F.conv, on the dense tensor, with the taps of a KRSC weight."""
    ndim = layer.ndim
    dense, weight = x.dense().double(), layer.weight.double().movedim(-1, 1)
    stride, padding = layer.stride, layer.padding
    if layer.subm:
        stride, padding = 1, [k // 2 * d for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
    bias = None if layer.bias is None else layer.bias.double()
    if layer.transposed:
        groups = layer.groups
        weight = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
        convolve = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[ndim - 1]
        return convolve(dense, weight, bias, stride, padding, 0, groups, layer.dilation)
    convolve = (F.conv1d, F.conv2d, F.conv3d)[ndim - 1]
    output = convolve(dense, weight, bias, stride, padding, layer.dilation, layer.groups)
    return output[(..., *map(slice, x.spatial_shape))] if layer.subm else output  # an even kernel's has a cell more


def at(dense, indices):
    """Rows of a dense (B, C, *spatial) tensor."""
    return dense.movedim(1, -1)[indices.long().unbind(1)]


LAYERS = {
    "subm": lambda: spconv.SubMConv3d(4, 6, 3),
    "subm-even": lambda: spconv.SubMConv3d(4, 6, [2, 3, 3]),
    "subm-grouped": lambda: spconv.SubMConv3d(4, 6, 3, groups=2),
    "subm-depthwise": lambda: spconv.SubMConv3d(4, 4, 3, groups=4, bias=False),
    "subm-1x1-grouped": lambda: spconv.SubMConv3d(4, 6, 1, groups=2),
    "subm-1d": lambda: spconv.SubMConv1d(4, 6, 5, dilation=2),
    "conv": lambda: spconv.SparseConv3d(4, 6, 3, 2, 1),
    "conv-grouped": lambda: spconv.SparseConv2d(4, 6, 2, 2, groups=2),
    "transpose": lambda: spconv.SparseConvTranspose3d(4, 6, 3, 2, 1),
    "transpose-depthwise": lambda: spconv.SparseConvTranspose2d(4, 4, 2, 2, groups=4),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_layer(name, training, dtype):
    """Forward at every output, and that no other dense output is reached; bias in evaluation too."""
    layer = LAYERS[name]().to(dtype).train(training)
    x = make(layer.ndim, 4, dtype)
    output = layer(x)
    expected = dense_conv(layer, x)
    assert output.features.dtype == dtype and output.dense().shape == expected.shape
    rows = at(expected, output.indices)
    baseline = rows.to(dtype) if dtype.itemsize == 2 else None
    assert_close(output.features, rows, 1e-12 if dtype == torch.float64 else 1e-5, baseline)
    if not layer.subm:
        bias = 0 if layer.bias is None else layer.bias.double().view(-1, *(1 for _ in range(layer.ndim)))
        reached = (expected - bias).abs().sum(1) > 1e-9
        assert torch.equal(reached, output.replace(torch.ones_like(output.features)).dense().sum(1) > 0)


@pytest.mark.parametrize("name", LAYERS)
def test_gradients(name):
    layer = LAYERS[name]().double()
    x = make(layer.ndim, 4)
    x.features.requires_grad_()
    output = layer(x)
    grad = wave(*output.features.shape, step=0.77)
    inputs = [x.features, *layer.parameters()]
    expected = torch.autograd.grad(at(dense_conv(layer, x), output.indices), inputs, grad)
    for found, exact in zip(torch.autograd.grad(output.features, inputs, grad), expected, strict=True):
        assert_close(found, exact, 1e-12)


def test_one_tap_is_the_memory_of_the_weight():
    x = make(3, 4)
    for layer in (spconv.SubMConv3d(4, 6, 1), spconv.SparseConv3d(4, 6, 1), spconv.SparseInverseConv3d(4, 6, 1, None)):
        layer.double()
        output = layer(x)
        assert output.index is x.index
        assert_close(output.features, x.features @ layer.weight.view(4, 6) + layer.bias, 1e-12)
    assert layer.state_dict()["weight"].shape == (6, 1, 1, 1, 4)


def test_even_and_odd_inverse_convolutions_undo_pooling():
    x = make(3, 3)
    for kernel, stride in ((2, 2), (3, 2)):
        down = spconv.SparseMaxPool3d(kernel, stride, indice_key="pool")(x)
        up = spconv.SparseInverseConv3d(3, 5, kernel, "pool").double()
        output = up(down)
        assert torch.equal(output.indices, x.indices) and output.index is x.index and output.spatial_shape == SHAPES[3]
        weight = up.weight.movedim(-1, 1).transpose(0, 1)
        extra = [n - (m - 1) * stride - kernel for n, m in zip(SHAPES[3], down.spatial_shape, strict=True)]
        expected = F.conv_transpose3d(down.dense(), weight, up.bias, stride, 0, extra)
        assert_close(output.features, at(expected, x.indices), 1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_maxpool_starts_from_zero_and_avgpool_counts_what_is_there(training):
    x = make(3, 3)
    ones = x.replace(torch.ones_like(x.features))
    window = 3, 2, 1
    maximum, mean = (
        spconv.SparseMaxPool3d(*window).train(training)(x),
        spconv.SparseAvgPool3d(*window).train(training)(x),
    )
    assert maximum.features.min() == 0
    assert_close(maximum.features, at(F.max_pool3d(x.dense(), *window).clamp(min=0), maximum.indices), 1e-12)
    total, count = (F.avg_pool3d(t.dense(), *window) for t in (x, ones))
    assert_close(mean.features, at(total / count, mean.indices), 1e-12)
    assert spconv.SparseMaxPool3d(2).stride == [2, 2, 2] and spconv.pool.SparseMaxPool(3).stride == [1, 1, 1]
    assert spconv.SparseAvgPool3d(5, 5)(x).features.isfinite().all()  # more than 32 taps


def test_global_pools():
    x = make(2, 3, torch.bfloat16)
    x = SparseConvTensor(x.features, x.indices, x.spatial_shape, 3)  # the last sample is empty
    for layer, reduce in ((spconv.SparseGlobalAvgPool(), torch.mean), (spconv.SparseGlobalMaxPool(), torch.amax)):
        output = layer(x)
        assert output.shape == (3, 3) and output.dtype == torch.bfloat16 and output[2].eq(0).all()
        for sample in (0, 1):
            rows = x.features[x.indices[:, 0] == sample].double()
            assert_close(output[sample], reduce(rows, 0).bfloat16(), 0.01)


@pytest.mark.parametrize("training", [True, False])
def test_empty(training):
    """Zero rows go through every layer, forward and backward."""
    net = UNet(spconv).train(training)
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm1d)):
        norm.eval()
    x = SparseConvTensor(torch.zeros(0, 3, requires_grad=True), torch.zeros(0, 4, dtype=torch.int32), [8, 8, 8], 2)
    output = net(x)
    assert output.features.shape == (0, 5) and output.spatial_shape == [8, 8, 8]
    output.features.sum().backward()
    assert x.features.grad.shape == (0, 3) and net.down[0].weight.grad.eq(0).all()
    assert spconv.SparseGlobalMaxPool()(output).shape == (2, 5) and output.dense().shape == (2, 5, 8, 8, 8)
    assert spconv.SparseConvTranspose3d(3, 2, 2, 2)(x).spatial_shape == [16, 16, 16]


def test_int64_indices():
    x = make()
    wide = SparseConvTensor(x.features, x.indices.long(), x.spatial_shape, BATCH)
    layer = spconv.SparseConv3d(3, 4, 3, 2, 1).double()
    output = layer(wide)
    assert output.indices.dtype == torch.int64 and torch.equal(output.indices, layer(x).indices.long())
    assert_close(output.features, layer(x).features, 1e-12)


@pytest.mark.parametrize("act", Activation, ids=str)
@pytest.mark.parametrize("kernel", [1, 3])
def test_activation_after_residual(kernel, act):
    """act(conv + bias + add_input), in training too, whoever's enumeration the activation is of."""
    theirs = type("Foreign", (), {"name": act.name})()
    layer = spconv.SparseConvolution(3, 3, 4, kernel, subm=True, act_type=theirs, act_alpha=0.2).double()
    plain = spconv.SparseConvolution(3, 3, 4, kernel, subm=True).double()
    plain.load_state_dict(layer.state_dict())
    x, added = make(), make(channels=4)
    v = plain(x).features + added.features
    expected = {"None_": v, "ReLU": F.relu(v), "Sigmoid": v.sigmoid(), "LeakyReLU": F.leaky_relu(v, 0.2)}[act.name]
    for training in (True, False):
        layer.train(training)
        assert_close(layer(x, add_input=added).features, expected, 1e-12)
        with torch.no_grad():
            assert_close(layer(x, added).features, expected, 1e-12)


@pytest.mark.parametrize("kernel", [1, 3])
def test_autocast(kernel):
    layer, x = spconv.SubMConv3d(4, 6, kernel), make(3, 4, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(x)
    assert output.features.dtype == torch.bfloat16
    assert_close(output.features, layer(x).features, 0.02)
    output.features.sum().backward()
    assert layer.weight.grad.dtype == torch.float32


def test_attributes_and_state_dict():
    layer = spconv.SparseConv3d(
        3, 4, (3, 1, 2), 2, padding=[1, 0, 1], indice_key="a", record_voxel_count=True, name="n"
    )
    lists = layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.output_padding
    assert lists == ([3, 1, 2], [2, 2, 2], [1, 0, 1], [1, 1, 1], [0, 0, 0])
    facts = layer.ndim, layer.groups, layer.subm, layer.transposed, layer.inverse, layer.indice_key, layer.name
    assert facts == (3, 1, False, False, False, "a", "n") and layer.is_inverseable() and not layer.conv1x1
    shapes = {key: tuple(value.shape) for key, value in layer.state_dict().items()}
    assert shapes == {"weight": (4, 3, 1, 2, 3), "bias": (4,), "max_num_voxels_during_training": (1,)}
    assert list(spconv.SubMConv3d(3, 4, 3, bias=False).state_dict()) == ["weight"]
    assert spconv.SubMConv2d(3, 4, 3).algo == spconv.core.ConvAlgo.Native
    layer = spconv.SparseConv3d(16, 16, 3)
    bound = 1 / (27 * 16) ** 0.5
    assert 0.9 * bound < layer.weight.abs().max() <= bound and layer.bias.abs().max() <= bound
    assert "indice_key='k'" in repr(spconv.SubMConv3d(4, 4, 3, bias=False, groups=2, dilation=2, indice_key="k"))
    assert "padding=[1, 1, 1]" in repr(spconv.SparseMaxPool3d(3, 2, 1))


def test_voxel_count():
    conv, pool = (
        spconv.SparseConv3d(3, 4, 3, 2, 1, record_voxel_count=True),
        spconv.SparseMaxPool3d(2, record_voxel_count=True),
    )
    for layer in (conv, pool):
        counts = [layer(make(dtype=torch.float32, keep=keep)).features.shape[0] for keep in (0.4, 0.1)]
        assert layer.get_max_num_voxels().item() == counts[0] > counts[1]
    old = {"weight": conv.weight, "bias": conv.bias}
    conv.load_state_dict(old)  # a checkpoint from before
    assert spconv.SubMConv3d(3, 4, 3).get_max_num_voxels() is None


def test_tensor_members():
    x = make()
    assert x.spatial_size == 7 * 6 * 5 and x.grid.numel() == 0 and x.voxel_num is None and x.indice_dict == {}
    assert str(x) == f"SparseConvTensor[shape={x.features.shape}]"
    other = x.replace_feature(x.features * 2)
    assert other.indices is x.indices and other.indice_dict is x.indice_dict and other.index is x.index
    assert torch.equal(x.shadow_copy().features, x.features) and torch.equal(x.minus().features, -x.features)
    assert torch.equal((x + x).features, x.features * 2) and torch.equal((x.features + x).features, x.features * 2)
    before = y = x.replace_feature(x.features.clone())
    y += x
    y += x.features
    assert torch.equal(y.features, x.features * 3) and torch.equal(before.features, x.features)
    assert x.find_indice_pair(None) is None and x.find_indice_pair("nothing") is None
    assert x.dense().shape == (BATCH, 3, 7, 6, 5) and x.dense(channels_first=False).shape == (BATCH, 7, 6, 5, 3)
    assert torch.equal(at(x.dense(), x.indices), x.features)
    assert x.replace_feature(x.features[:, :1]).features.shape[1] == 1


def test_from_dense_and_back():
    dense = make().dense(channels_first=False).requires_grad_()
    x = SparseConvTensor.from_dense(dense)
    assert x.indices.dtype == torch.int32 and x.spatial_shape == SHAPES[3] and torch.equal(x.dense(False), dense)
    x.features.sum().backward()
    assert torch.equal(dense.grad.sum(-1) > 0, dense.abs().sum(-1) > 0)


def test_select_by_index():
    x = spconv.SubMConv3d(3, 3, 3, indice_key="k").double()(make())
    mask = wave(len(x.indices)) > 0
    for chosen in (mask, mask.nonzero()[:, 0]):
        part = x.select_by_index(chosen)
        assert torch.equal(part.indices, x.indices[mask]) and torch.equal(part.features, x.features[mask])
        assert part.indice_dict == {} and "k" in x.indice_dict
    layer = spconv.SubMConv3d(3, 4, 3).double()
    assert_close(layer(part).features, at(dense_conv(layer, part), part.indices), 1e-12)


def test_indices_may_be_set():
    """As code for spconv does; maps are then found again, also after a write in place."""
    layer, x = spconv.SubMConv3d(3, 4, 3).double(), make()
    layer(x)
    x.indices, x.spatial_shape, x.batch_size = x.indices + torch.tensor([1, 0, 2, 0]), [7, 9, 5], 3
    assert x.spatial_shape == [7, 9, 5] and x.batch_size == 3
    assert_close(layer(x).features, at(dense_conv(layer, x), x.indices), 1e-12)
    x.indices[:, 1] = 6 - x.indices[:, 1]
    assert_close(layer(x).features, at(dense_conv(layer, x), x.indices), 1e-12)
    with torch.inference_mode():
        assert layer(make()).features.shape[1] == 4


@pytest.mark.filterwarnings("ignore:.*quantize")
def test_quantized_members():
    x = make(dtype=torch.float32)
    quantized = x.replace_feature(torch.quantize_per_tensor(x.features, 0.5, 0, torch.qint8))
    assert quantized.is_quantized and quantized.q_scale() == 0.5 and not x.is_quantized
    assert_close(quantized.dequantize().features, x.features, 0.3)


@pytest.mark.parametrize("reduce", ["sum", "mean", "amax", "amin"])
def test_coalesce(reduce):
    x = make()
    twice = torch.cat([x.indices, x.indices.flip(0)])
    features = torch.cat([x.features, x.features.flip(0) * 3]).requires_grad_()
    merged = SparseConvTensor.coalesce(features, twice, x.spatial_shape, BATCH, reduce)
    pair = torch.stack([x.features, x.features * 3])
    expected = pair.mean(0) if reduce == "mean" else getattr(pair, reduce)(0)
    assert isinstance(merged, SparseConvTensor) and len(merged.indices) == len(x.indices)
    assert torch.equal(merged.dense(), x.replace_feature(expected).dense())
    merged.features.sum().backward()
    assert features.grad.sum() == pytest.approx(merged.features.numel() * (2 if reduce == "sum" else 1))


def test_maps_are_shared_without_a_key():
    x = make()
    first, second = (spconv.SubMConv3d(3, 3, 3).double() for _ in range(2))
    y = second(first(x).replace_feature(x.features))
    assert y.index is x.index and len(x.index._made) == 1
    strided = [spconv.SparseConv3d(3, 4, 3, 2, 1).double()(t) for t in (x, y)]
    assert strided[0].index is strided[1].index


def test_indice_key():
    x = make(channels=4)
    subm = spconv.SparseSequential(*(spconv.SubMConv3d(4, 4, 3, indice_key="s") for _ in range(2))).double()
    y = subm(x)
    assert x.indice_dict == {} and list(y.indice_dict) == ["s"]
    data = y.find_indice_pair("s")
    assert data.is_subm and data.ksize == [3, 3, 3] and data.spatial_shape == data.out_spatial_shape == SHAPES[3]
    assert data.indices is x.indices and data.out_indices is x.indices and data.map.out is x.index
    z = spconv.SparseConv3d(4, 4, 3, 2, 1, indice_key="d").double()(y)
    assert sorted(z.indice_dict) == ["d", "s"] and list(y.indice_dict) == ["s"]
    pairs, data = z.find_indice_pair("d").pair_fwd, z.find_indice_pair("d")
    assert pairs.shape == (27, len(z.indices)) and data.pair_bwd.shape == (27, len(x.indices))
    taps, outputs = (pairs >= 0).nonzero().unbind(1)
    assert torch.equal(data.pair_bwd[taps, pairs[taps, outputs].long()], outputs.int())
    one = spconv.SubMConv3d(4, 4, 1, indice_key="d").double()  # one tap comes before all rules, as in spconv
    assert one(z).features.shape == z.features.shape


def test_sequential():
    layers = [spconv.SubMConv3d(3, 4, 3), nn.BatchNorm1d(4), nn.ReLU()]
    net = spconv.SparseSequential(*layers)
    assert list(net.state_dict())[:3] == ["0.weight", "0.bias", "1.weight"] and len(net) == 3
    assert net[0] is layers[0] and net[-1] is layers[2] and net[1] is layers[1]
    net.add(spconv.SparseIdentity())
    net.add(nn.Linear(4, 2), "head")
    assert list(net._modules) == ["0", "1", "2", "3", "head"]
    named = spconv.SparseSequential(conv=layers[0], norm=layers[1])
    ordered = spconv.SparseSequential(spconv.modules.OrderedDict(conv=layers[0], norm=layers[1]))
    assert list(named.state_dict()) == list(ordered.state_dict())
    x = make(dtype=torch.float32)
    expected = F.linear(F.relu(F.batch_norm(layers[0](x).features, None, None, training=True)), *net.head.parameters())
    assert_close(net(x).features, expected, 1e-5)
    dense = spconv.SparseSequential(layers[0], spconv.ToDense(), nn.Conv3d(4, 2, 1))
    assert dense(x).shape == (BATCH, 2, 7, 6, 5)
    spconv.assign_name_for_sparse_modules(dense)
    assert dense[0]._sparse_unique_name == "0"
    assert spconv.modules.is_spconv_module(layers[0]) and not spconv.modules.is_spconv_module(layers[1])
    assert spconv.modules.is_sparse_conv(layers[0]) and not spconv.modules.is_sparse_conv(dense)


def test_norms_and_small_modules(capsys):
    x = make(dtype=torch.float32)
    norm, plain = spconv.SparseBatchNorm(3), nn.BatchNorm1d(3)
    assert torch.equal(norm(x).features, plain(x.features)) and torch.equal(norm(x.features), plain(x.features))
    assert list(norm.state_dict()) == list(plain.state_dict()) == list(spconv.SparseSyncBatchNorm(3).state_dict())
    assert spconv.SparseSyncBatchNorm(3).eval()(x).features.shape == x.features.shape
    assert torch.equal(spconv.SparseReLU()(x).features, x.features.relu())
    assert (
        spconv.SparseIdentity()(x) is x and spconv.Identity()(x) is x and spconv.Identity().input_spatial_size(5) == 5
    )
    assert spconv.RemoveGrid()(x) is x and x.grid is None
    spconv.modules.PrintTensorMeta()(x)
    assert "tensor" in capsys.readouterr().out


def test_tables():
    x = make()
    y = x.replace_feature(x.features[:, :2])
    assert torch.equal(spconv.JoinTable()([x, y]).features, torch.cat([x.features, y.features], 1))
    assert torch.equal(spconv.AddTable()([x, x, x]).features, x.features + x.features + x.features)
    both = spconv.ConcatTable().add(spconv.SparseIdentity()).add(spconv.SubMConv3d(3, 4, 3).double())
    assert [t.features.shape[1] for t in both(x)] == [3, 4] and spconv.JoinTable()(both(x)).features.shape[1] == 7
    assert spconv.AddTable().input_spatial_size(4) == 4


def test_benchmark_record():
    x = make(dtype=torch.float32)
    x.benchmark = True
    net = spconv.SparseSequential(
        spconv.SparseConv3d(3, 4, 3, 2, 1, name="down"), spconv.SparseMaxPool3d(2, name="pool"), nn.ReLU()
    )
    net(x)
    record = x.benchmark_record
    assert list(record) == ["down", "pool"] and record["down"]["num_points"] == [len(x.indices)]
    assert record["down"]["params"]["kernel_size"] == [3, 3, 3] and record["down"]["time"][0] > 0
    assert record["pool"]["num_points"] == record["down"]["num_out_points"]
