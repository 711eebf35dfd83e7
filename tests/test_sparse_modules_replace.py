# SPDX-License-Identifier: Apache-2.0
"""flexor.replace on a model of spconv layers: stand-ins with spconv's names and public attributes, which cannot run.

test_sparse_parity.py does the same with spconv itself where it is installed.
"""

from enum import Enum

import flexor
import pytest
import torch
from flexor import sparse
from flexor.testing import assert_close
from sparse_cases import BATCH, SHAPES, UNet, tensor, voxels, wave
from torch import nn


class Algo(Enum):
    Native = 0


class Act(Enum):
    None_ = 0


class Tensor:
    """spconv's tensor, as far as flexor reads it."""

    def __init__(self, features, indices, spatial_shape, batch_size):
        self.features, self.indices, self.indice_dict = features, indices, {}
        self.spatial_shape, self.batch_size = spatial_shape, batch_size


class SparseModule(nn.Module):
    def __init__(self):
        super().__init__()
        self.name, self._sparse_unique_name = None, ""

    def forward(self, *_):
        raise AssertionError("spconv's own forward ran")


class Convolution(SparseModule):
    def __init__(self, cin, cout, kernel, stride=1, padding=0, bias=True, indice_key=None, subm=False, inverse=False):
        super().__init__()
        self.ndim, self.in_channels, self.out_channels, self.groups = 3, cin, cout, 1
        self.kernel_size = [kernel] * 3 if isinstance(kernel, int) else list(kernel)
        self.stride, self.padding, self.dilation, self.output_padding = [stride] * 3, [padding] * 3, [1] * 3, [0] * 3
        self.conv1x1, self.subm, self.transposed, self.inverse = self.kernel_size == [1] * 3, subm, False, inverse
        self.indice_key, self.record_voxel_count, self.algo, self.fp32_accum = indice_key, False, Algo.Native, None
        self.weight_shape = [cout, *self.kernel_size, cin]
        self.act_type, self.act_alpha, self.act_beta, self.scale, self.zero_point = Act.None_, 0, 0, 1.0, 0
        self.weight = nn.Parameter(torch.zeros(self.weight_shape))
        self.bias = nn.Parameter(torch.zeros(cout)) if bias else None
        self._register_load_state_dict_pre_hook(self._load_weight_different_layout)

    def _load_weight_different_layout(self, *_):
        raise AssertionError("spconv's own hook ran")


def stands_in(cls, file, name):
    """The class under the name by which replace knows the original."""
    cls.__module__, cls.__qualname__, cls.__name__ = f"spconv.pytorch.{file}", name, name
    return cls


class Spconv:
    """What UNet takes from spconv.pytorch."""

    class SparseSequential(SparseModule):
        def __init__(self, *layers):
            super().__init__()
            for i, layer in enumerate(layers):
                self.add_module(str(i), layer)

    class SparseConv3d(Convolution):
        pass

    class SubMConv3d(Convolution):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs, subm=True)

    class SparseInverseConv3d(Convolution):
        def __init__(self, cin, cout, kernel, indice_key):
            super().__init__(cin, cout, kernel, indice_key=indice_key, inverse=True)

    class SparseBatchNorm(nn.BatchNorm1d):
        forward = SparseModule.forward

    class JoinTable(SparseModule):
        pass

    class AddTable(SparseModule):
        pass


stands_in(SparseModule, "modules", "SparseModule")
for cls in (Spconv.SparseConv3d, Spconv.SubMConv3d, Spconv.SparseInverseConv3d):
    stands_in(cls, "conv", cls.__name__)
for cls in (Spconv.SparseSequential, Spconv.SparseBatchNorm):
    stands_in(cls, "modules", cls.__name__)
for cls in (Spconv.JoinTable, Spconv.AddTable):
    stands_in(cls, "tables", cls.__name__)


def models():
    """flexor's, and the same of spconv's stand-ins, with equal parameters."""
    ours, theirs = UNet(sparse).double(), UNet(Spconv).double()
    with torch.no_grad():
        for value, parameter in zip(ours.parameters(), theirs.parameters(), strict=True):
            parameter.copy_(value)
    return ours, theirs


def test_same_output_and_same_training():
    ours, theirs = models()
    with pytest.raises(AssertionError, match="spconv's own forward ran"):
        theirs(tensor(sparse, 3))
    parameters, modules = dict(theirs.named_parameters()), list(theirs.modules())
    report = flexor.replace(theirs)
    assert len(report.swapped) == 12 and not report.left, str(report)
    assert all(parameters[name] is value for name, value in theirs.named_parameters())
    assert all(a is b for a, b in zip(modules, theirs.modules(), strict=True))
    assert type(theirs.stem[0]) is sparse.SubMConv3d and type(theirs.up) is sparse.SparseInverseConv3d
    losses = []
    for model in (ours, theirs):
        optimizer, curve = torch.optim.SGD(model.parameters(), 0.1), []
        for _ in range(3):
            loss = model(tensor(sparse, 3)).features.square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
        losses.append(curve)
    assert losses[0] == losses[1] and losses[0][-1] < losses[0][0]
    assert repr(theirs) == repr(ours) and list(theirs.state_dict()) == list(ours.state_dict())
    assert not flexor.replace(theirs).swapped


def test_takes_spconvs_tensors():
    """The model's own code may still make them."""
    ours, theirs = models()
    flexor.replace(theirs)
    indices = voxels(3)
    features = wave(len(indices), 3, step=1.3)
    output = theirs(Tensor(features, indices, SHAPES[3], BATCH))
    assert isinstance(output, sparse.SparseConvTensor)
    assert_close(output.features, ours(tensor(sparse, 3)).features, 1e-12)


def test_loads_weights_once(monkeypatch):
    """spconv's own hook, which permutes twice, is gone."""
    layer = Spconv.SparseConv3d(4, 6, (3, 1, 2), bias=False)
    with pytest.raises(AssertionError, match="spconv's own hook ran"):
        layer.load_state_dict(dict(layer.state_dict()))
    flexor.replace(layer)
    monkeypatch.setenv("SPCONV_SAVED_WEIGHT_LAYOUT", "RSCK")
    layer.load_state_dict({"weight": wave(3, 1, 2, 4, 6)})
    assert torch.equal(layer.weight, wave(3, 1, 2, 4, 6).permute(4, 0, 1, 2, 3).float())


def test_modules_of_ones_own_stay():
    """A subclass of spconv's SparseModule gets the tensor from a swapped container; subclasses of layers are named."""

    class Block(SparseModule):
        def forward(self, x):
            return x.replace_feature(x.features * 2)

    class Special(Spconv.SubMConv3d):
        def forward(self, x):
            return x

    theirs = Spconv.SparseSequential(Block(), nn.ReLU())
    report = flexor.replace(nn.ModuleList([theirs, Special(3, 3, 3)]))
    assert [entry.name for entry in report.swapped] == ["0"]
    assert "a subclass of spconv.pytorch.conv.SubMConv3d" in report.left[0].outcome and len(report.left) == 1
    x = tensor(sparse, 3)
    assert torch.equal(theirs(x).features, (x.features * 2).relu())


def test_every_public_layer_is_known():
    expected = {"SubMConv4d", "SparseConvTranspose1d", "SparseInverseConv2d", "SparseMaxPool4d", "SparseAvgPool1d"}
    expected |= {"SparseGlobalAvgPool", "SparseSequential", "SparseSyncBatchNorm", "AddTableMisaligned", "ConcatTable"}
    known = {name.rpartition(".")[2] for name in sparse.twins.TWINS}
    assert expected <= known and "SparseModule" not in known
    assert {"spconv.pytorch.ToDense", "spconv.pytorch.identity.Identity"} <= set(sparse.twins.TWINS)
