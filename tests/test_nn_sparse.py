# SPDX-License-Identifier: Apache-2.0
"""The torch-style sparse layers of flexor.nn, against dense ones."""

import inspect

import pytest
import torch
import torch.nn.functional as F
from flexor import nn as fnn
from flexor import sparse
from flexor.testing import assert_close
from sparse_cases import BATCH, SHAPES, voxels, wave
from torch import nn


def make(ndim=3, channels=3, shape=True, keep=0.3):
    indices = voxels(ndim, keep)
    features = wave(len(indices), channels, step=1.3).requires_grad_()
    return fnn.SparseTensor(features, indices, SHAPES[ndim] if shape else None, BATCH)


def at(dense, indices):
    return dense.movedim(1, -1)[indices.long().unbind(1)]


@pytest.mark.parametrize("kernel", [1, 3, (1, 2, 3)], ids=str)
def test_submanifold(kernel):
    """One tap, too, is a convolution with its weight, not with the memory of it."""
    layer, x = fnn.SubmanifoldConv3d(3, 4, kernel).double(), make()
    assert layer.padding == tuple(k // 2 for k in layer.kernel_size) and layer.weight.shape == (
        4,
        *layer.kernel_size,
        3,
    )
    output = layer(x, residual=layer(x))
    dense = F.conv3d(x.dense(), layer.weight.movedim(-1, 1), layer.bias, 1, layer.padding)
    assert output.index is x.index
    assert_close(output.features, 2 * at(dense, x.indices), 1e-12)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_convolution_and_its_transpose(ndim):
    sizes = {"stride": 2, "padding": 1, "dilation": 2, "groups": 3}
    down = getattr(fnn, f"SparseConv{ndim}d")(3, 6, 3, **sizes).double()
    up = getattr(fnn, f"SparseConvTranspose{ndim}d")(6, 3, 3, output_padding=1, **sizes).double()
    convolve = (F.conv1d, F.conv2d, F.conv3d)[ndim - 1]
    transpose = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[ndim - 1]
    x = make(ndim)
    y = down(x)
    assert_close(
        y.features, at(convolve(x.dense(), down.weight.movedim(-1, 1), down.bias, 2, 1, 2, 3), y.indices), 1e-12
    )
    z = up(y)
    weight = up.weight.movedim(-1, 1).unflatten(0, (3, -1)).transpose(1, 2).flatten(0, 1)
    dense = transpose(y.dense(), weight, up.bias, 2, 1, 1, 3, 2)
    assert list(dense.shape[2:]) == list(z.spatial_shape)  # torch's formula, with dilation
    assert_close(z.features, at(dense, z.indices), 1e-12)
    back = up(y, target=x, residual=x)
    assert back.index is x.index
    extra = [n - (m - 1) * 2 + 2 - 5 for n, m in zip(SHAPES[ndim], y.spatial_shape, strict=True)]
    dense = transpose(y.dense(), weight, up.bias, 2, 1, extra, 3, 2)
    assert_close(back.features, at(dense, x.indices) + x.features, 1e-12)
    back.features.sum().backward()
    assert x.features.grad.isfinite().all() and x.features.grad.ne(0).any()


def test_target_may_be_a_copy():
    x, y = make(), make()
    down, up = fnn.SparseConv3d(3, 4, 2, 2).double(), fnn.SparseConvTranspose3d(4, 3, 2, 2).double()
    assert_close(up(down(x), y).features, up(down(x), x).features, 1e-12)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_pools(ndim):
    """The maximum starts from minus infinity; the mean counts what is there."""
    x = make(ndim)
    x = x.replace(x.features - 2)
    ones = x.replace(torch.ones_like(x.features))
    maximum = getattr(fnn, f"SparseMaxPool{ndim}d")(3, 2, 1)(x)
    mean = getattr(fnn, f"SparseAvgPool{ndim}d")(3, 2, 1)(x)
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[ndim - 1]
    average = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[ndim - 1]
    low = torch.where(ones.dense() > 0, x.dense(), -torch.inf)
    assert maximum.features.max() < 0
    assert_close(maximum.features, at(pool(low, 3, 2, 1), maximum.indices), 1e-12)
    assert_close(mean.features, at(average(x.dense(), 3, 2, 1) / average(ones.dense(), 3, 2, 1), mean.indices), 1e-12)
    assert fnn.SparseMaxPool3d(2).stride == (2, 2, 2)
    rows = [x.features[x.indices[:, 0] == b] for b in range(BATCH)]
    assert_close(fnn.SparseGlobalMaxPool()(x), torch.stack([r.amax(0) for r in rows]), 1e-12)
    assert_close(fnn.SparseGlobalAvgPool()(x), torch.stack([r.mean(0) for r in rows]), 1e-12)


def test_negative_coordinates_without_a_shape():
    x = make()
    moved = fnn.SparseTensor(x.features, x.indices.long() - torch.tensor([0, 4, 2, 6]))
    assert moved.spatial_shape is None and moved.batch_size == BATCH
    subm, down = fnn.SubmanifoldConv3d(3, 4, 3).double(), fnn.SparseConv3d(3, 4, 2, 2).double()
    assert_close(subm(moved).features, subm(x).features, 1e-12)
    whole, part = down(moved), down(fnn.SparseTensor(x.features, x.indices, [8, 6, 6], BATCH))
    order = [
        torch.tensor(sorted(range(len(t.indices)), key=lambda i, t=t: t.indices[i].tolist())) for t in (whole, part)
    ]
    assert_close(whole.features[order[0]], part.features[order[1]], 1e-12)
    assert whole.indices[:, 1:].min() < 0 and "spatial_shape=None" in repr(whole)


def test_tensor():
    x = make()
    assert x.indices is x.index.indices and x.batch_size == BATCH and list(x.spatial_shape) == SHAPES[3]
    assert torch.equal((x + x).features, 2 * x.features) and torch.equal((x.features + x).features, 2 * x.features)
    half = x.to(torch.float16)
    assert half.features.dtype == torch.float16 and half.index is x.index
    assert x.to("meta").indices.is_meta
    again = fnn.SparseTensor.from_dense(x.dense())
    assert torch.equal(again.dense(), x.dense()) and type(again) is fnn.SparseTensor
    part = x.select(x.features[:, 0] > 0)
    assert torch.equal(part.dense(False), x.dense(False) * (x.dense(False)[..., :1] > 0))
    assert fnn.SparseTensor(x.features, x.index).index is x.index
    merged = fnn.SparseTensor.coalesce(torch.ones(3, 1), torch.tensor([[0, -5], [0, 7], [0, -5]]), reduce="sum")
    assert merged.indices.tolist() == [[0, -5], [0, 7]] and merged.features.tolist() == [[2], [1]]
    empty = fnn.SparseTensor.coalesce(torch.ones(0, 1), torch.zeros(0, 3, dtype=torch.int32))
    assert empty.features.shape == (0, 1)


def test_sequential_takes_tensors_of_both_packages():
    x = make()
    theirs = sparse.SparseConvTensor(x.features, x.indices, x.spatial_shape, BATCH)
    layers = [fnn.SubmanifoldConv3d(3, 4, 3), nn.ReLU(), fnn.SparseBatchNorm(4), fnn.SparseMaxPool3d(2)]
    net = fnn.SparseSequential(*layers, fnn.ToDense(), nn.Conv3d(4, 2, 1)).double()
    assert net(x).shape == (BATCH, 2, 3, 3, 2)
    assert_close(net(theirs), net(x), 1e-12)
    mixed = sparse.SparseSequential(sparse.SubMConv3d(3, 3, 3), *layers).double()
    assert isinstance(mixed(theirs), sparse.SparseConvTensor)
    assert net[:2](x).features.shape[1] == 4
    found = sparse.SparseSequential(nn.ReLU(), sparse.SparseConv3d(3, 3, 2, 2)).double()(x)
    assert isinstance(found, sparse.SparseConvTensor) and found.spatial_shape == [3, 3, 2]
    with pytest.raises(ValueError, match="needs a spatial_shape, which this SparseTensor lacks"):
        sparse.SubMConv3d(3, 3, 3)(make(shape=False))


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm(momentum, affine):
    ours = fnn.SparseBatchNorm(3, 1e-4, momentum, affine).double()
    plain = nn.BatchNorm1d(3, 1e-4, momentum, affine).double()
    assert list(ours.state_dict()) == list(plain.state_dict())
    for step in range(4):
        x = make(keep=0.1 + 0.1 * step)
        for training in (True, False):
            ours.train(training)
            plain.train(training)
            assert_close(ours(x).features, plain(x.features), 1e-12)
            assert_close(ours(x.features), plain(x.features), 1e-12)
    for key, value in plain.state_dict().items():
        assert_close(ours.state_dict()[key], value, 1e-12)


@pytest.mark.parametrize("rows", [0, 1])
def test_batch_norm_of_few_rows(rows):
    """The running statistics serve, and stay."""
    norm = fnn.SparseBatchNorm(3)
    norm(torch.randn(40, 3) * 3 + 1)
    state = {key: value.clone() for key, value in norm.state_dict().items()}
    few = torch.randn(rows, 3)
    training = norm(few)
    assert torch.equal(training, norm.eval()(few))
    assert all(torch.equal(state[key], value) for key, value in norm.state_dict().items())


def test_every_dimension_and_its_documentation():
    for stem in ("SparseConv", "SubmanifoldConv", "SparseConvTranspose", "SparseMaxPool", "SparseAvgPool"):
        for ndim in (1, 2, 3, 4):
            layer = getattr(fnn, f"{stem}{ndim}d")
            made = layer(3, 4, 3) if "Conv" in stem else layer(2)
            assert len(made.kernel_size) == ndim and made(make(ndim).to(torch.float32)).features.isfinite().all()
            assert "Args:" in inspect.getdoc(layer) and "kernel_size" in repr(made)
    assert "groups=2" in repr(fnn.SparseConv3d(4, 4, 3, padding=1, dilation=2, groups=2, bias=False))
