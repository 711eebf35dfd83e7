# SPDX-License-Identifier: Apache-2.0
"""Compiling, exporting and mapping over sparse tensors: sizes of new levels are known only to a run."""

import copy

import pytest
import torch
from flexor import nn as fnn
from flexor import sparse as spconv
from flexor.testing import assert_close
from sparse_cases import BATCH, SHAPES, UNet, voxels, wave
from torch import nn
from torch.utils import _pytree as pytree

pytestmark = pytest.mark.compiles


def make(keep=0.3, channels=3):
    indices = voxels(3, keep)
    features = wave(len(indices), channels, step=1.3).requires_grad_()
    return spconv.SparseConvTensor(features, indices, SHAPES[3], BATCH)


class Detector(nn.Module):
    """As detectors use spconv: batch norms on features, pools, a transposed convolution, a dense end."""

    def __init__(self):
        super().__init__()
        self.down, self.norm = spconv.SparseConv3d(3, 4, 3, 2, 1, record_voxel_count=True), nn.BatchNorm1d(4)
        self.up = spconv.SparseConvTranspose3d(4, 3, 3, 2, 1)
        self.pool, self.mean = spconv.SparseMaxPool3d(2, indice_key="pool"), spconv.SparseAvgPool3d(2)
        self.back, self.last = spconv.SparseInverseConv3d(4, 4, 2, "pool"), spconv.SparseGlobalMaxPool()

    def forward(self, x):
        y = self.down(x)
        y = y.replace_feature(self.norm(y.features).relu())
        pooled = self.pool(y)
        y = self.back(pooled) + y
        rows = (self.up(y).features, self.mean(y).features, self.last(y), pooled.dense())
        return torch.stack([part.square().sum() for part in rows])


class TorchStyle(fnn.SparseModule):
    def __init__(self):
        super().__init__()
        self.stem = fnn.SparseSequential(fnn.SubmanifoldConv3d(3, 4, 3, bias=False), fnn.SparseBatchNorm(4), nn.ReLU())
        self.down = fnn.SparseSequential(fnn.SparseConv3d(4, 6, 3, 2, 1, bias=False), fnn.SparseBatchNorm(6), nn.ReLU())
        self.pool, self.up = fnn.SparseMaxPool3d(2), fnn.SparseConvTranspose3d(6, 4, 3, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        y = self.down(x)
        rows = (self.up(y, x).features, self.up(y).features, self.pool(y).features)
        return torch.stack([part.square().sum() for part in rows])


def segment(net):
    return lambda x: net(x).features


MODELS = {
    "unet": (UNet, segment),
    "detector": (Detector, lambda net: net),
    "torch-style": (TorchStyle, lambda net: net),
}


def built(kind):
    return kind(spconv).double() if kind is UNet else kind().double()


SCENES = {
    "unet": (True, (0.3, 0.45)),
    "detector": (True, (0.3,)),
    "detector-eval": (False, (0.3, 0.45)),
    "torch-style": (True, (0.3,)),
}


@pytest.mark.parametrize("name", SCENES)
def test_compiled(name):
    """One graph, forward and backward, for scenes of other sizes."""
    torch._dynamo.reset()
    kind, call = MODELS[name.removesuffix("-eval")]
    training, scenes = SCENES[name]
    net = built(kind).train(training)
    reference = copy.deepcopy(net)
    compiled = torch.compile(call(net), fullgraph=True, backend="aot_eager")
    for keep in scenes:
        x, y = make(keep), make(keep)
        found, expected = compiled(x), call(reference)(y)
        assert_close(found, expected, 1e-12)
        found.square().sum().backward()
        expected.square().sum().backward()
        pairs = [(x.features.grad, y.features.grad)]
        pairs += [(a.grad, b.grad) for a, b in zip(net.parameters(), reference.parameters(), strict=True)]
        pairs += list(zip(net.buffers(), reference.buffers(), strict=True))
        for a, b in pairs:
            assert_close(a, b, 1e-9)


def test_compiled_with_tensors_in_and_out():
    """What comes out is a SparseConvTensor whose maps later layers use."""
    torch._dynamo.reset()
    net = spconv.SparseSequential(
        spconv.SubMConv3d(3, 4, 3), spconv.SparseConv3d(4, 5, 3, 2, 1, indice_key="d")
    ).double()
    x = make()
    found, expected = torch.compile(net, fullgraph=True, backend="aot_eager")(x), net(x)
    assert isinstance(found, spconv.SparseConvTensor) and found.spatial_shape == expected.spatial_shape
    assert torch.equal(found.indices, expected.indices)
    up = spconv.SparseInverseConv3d(5, 3, 3, "d").double()
    assert_close(up(found).features, up(expected).features, 1e-12)
    assert torch.equal(found.find_indice_pair("d").indice_pairs, expected.find_indice_pair("d").indice_pairs)


def test_compiled_with_indices_alone():
    """The index is built within the graph."""
    torch._dynamo.reset()
    down, up = (
        spconv.SparseConv3d(3, 4, 3, 2, 1, indice_key="d").double(),
        spconv.SparseInverseConv3d(4, 3, 3, "d").double(),
    )

    def run(features, indices):
        return up(down(spconv.SparseConvTensor(features, indices, SHAPES[3], BATCH))).features

    x = make()
    found = torch.compile(run, fullgraph=True, backend="aot_eager")(x.features, x.indices)
    assert_close(found, up(down(x)).features, 1e-12)


@pytest.mark.parametrize("rows", [0, 1])
def test_compiled_batch_norm_of_few_rows(rows):
    """As uncompiled: the running statistics serve, and stay."""
    torch._dynamo.reset()
    norm = fnn.SparseBatchNorm(3).double()
    norm(wave(40, 3) * 3 + 1)
    state = {key: value.clone() for key, value in norm.state_dict().items()}
    few = wave(rows, 3, step=0.4)
    found = torch.compile(norm, fullgraph=True, backend="aot_eager")(few)
    assert_close(found, norm.eval()(few), 1e-12)
    assert all(torch.equal(state[key], value) for key, value in norm.state_dict().items())


def test_tree():
    """Leaves are tensors; what comes back runs."""
    x = spconv.SparseConv3d(3, 4, 3, 2, 1, indice_key="d").double()(make())
    leaves, spec = pytree.tree_flatten(x)
    assert all(leaf is None or isinstance(leaf, torch.Tensor) for leaf in leaves)
    again = pytree.tree_unflatten(leaves, spec)
    assert again.features is x.features and again.indices is x.indices and again.spatial_shape == x.spatial_shape
    up = spconv.SparseInverseConv3d(4, 3, 3, "d").double()
    assert_close(up(again).features, up(x).features, 1e-12)
    double = pytree.tree_map_only(torch.Tensor, lambda t: t * 2 if t.is_floating_point() else t, x)
    assert torch.equal(double.features, x.features * 2)
    assert isinstance(pytree.tree_map(lambda leaf: None, x), spconv.SparseConvTensor)
    style = fnn.SparseTensor(x.features, x.index)
    leaves, spec = pytree.tree_flatten(style)
    assert pytree.tree_unflatten(leaves, spec).features is x.features


def test_copies():
    x = spconv.SubMConv3d(3, 3, 3, indice_key="s").double()(make())
    other = copy.deepcopy(x.replace_feature(x.features.detach()))
    assert other.index is not x.index and torch.equal(other.indices, x.indices)
    layer = spconv.SubMConv3d(3, 4, 3, indice_key="s").double()
    assert_close(layer(other).features, layer(x).features, 1e-12)
    assert_close(copy.deepcopy(layer)(x).features, layer(x).features, 1e-12)
