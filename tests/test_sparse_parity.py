# SPDX-License-Identifier: Apache-2.0
"""flexor.sparse against spconv: its numbers in sparse_golden.npz, and spconv itself where it is installed."""

import copy
from pathlib import Path
from types import SimpleNamespace

import flexor
import flexor.sparse
import numpy
import pytest
import torch
from flexor.sparse.utils import PointToVoxel
from flexor.testing import assert_close, running, ways
from sparse_cases import NETWORKS, VOXELIZERS, network, points, results, tensor

GOLDEN = numpy.load(Path(__file__).parent / "data" / "sparse_golden.npz")


def golden(name, key):
    value = torch.from_numpy(GOLDEN[f"{name}/{key}"])
    return value.double() if value.is_floating_point() else value.long()


@pytest.mark.parametrize("way", ways("sparse_conv"), ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_golden(name, way):
    """Voxels, features, the gradient of the input and those of every parameter."""
    if way.device != "cpu":
        pytest.skip("the networks of sparse_cases are on the CPU")
    with running(way):
        found = results(flexor.sparse, name)
    for key, value in found.items():
        expected = golden(name, key)
        if value.is_floating_point():
            assert_close(value, expected, 1e-5, what=f"{name} {key}")
        else:
            assert torch.equal(value.long(), expected), f"{name} {key}"


@pytest.mark.parametrize("name", VOXELIZERS)
def test_golden_voxels(name):
    voxels, indices, counts, ids = PointToVoxel(*VOXELIZERS[name]).generate_voxel_with_id(points())
    assert torch.equal(voxels.double(), golden(name, "voxels")) and voxels.dtype == torch.float32
    assert torch.equal(indices.long(), golden(name, "indices")) and indices.dtype == torch.int32
    assert torch.equal(counts.long(), golden(name, "counts")) and counts.dtype == torch.int32
    assert torch.equal(ids, golden(name, "ids")) and ids.dtype == torch.int64
    assert ids.min() == -1 and counts.max() == VOXELIZERS[name][4]


@pytest.fixture(scope="module")
def spconv():
    """spconv on one thread: with two its CPU code gives other numbers at every run."""
    spconv = pytest.importorskip("spconv.pytorch", reason="spconv is not installed: pip install spconv")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield spconv
    torch.set_num_threads(threads)


@pytest.fixture
def stream(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: SimpleNamespace(cuda_stream=0))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NETWORKS)
def test_live(name, spconv, stream):
    found, expected = results(flexor.sparse, name), results(spconv, name)
    assert torch.equal(found["indices"], expected["indices"])
    for key in ("features", "grad_input", "grads"):
        assert_close(found[key], expected[key], 1e-12, what=f"{name} {key}")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NETWORKS)
def test_replace_live(name, spconv, stream):
    ndim, theirs = network(spconv, name)
    ours = copy.deepcopy(theirs)
    report = flexor.replace(ours)
    assert report.swapped and not report.left
    expected, found = theirs(tensor(spconv, ndim)), ours(tensor(spconv, ndim))
    assert found.dense().shape == expected.dense().shape
    assert_close(found.dense(), expected.dense(), 1e-12)
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())


def test_every_layer_is_known(spconv):
    kinds = [kind for file in (spconv, spconv.modules, spconv.pool, spconv.tables) for kind in vars(file).values()]
    layers = {kind for kind in kinds if isinstance(kind, type) and issubclass(kind, torch.nn.Module)}
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in layers if kind.__module__.startswith("spconv.")}
    unknown = names - set(flexor.sparse.twins.TWINS)
    assert unknown == {"spconv.pytorch.modules.SparseModule", "spconv.pytorch.modules.PrintCurrentTime"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kernel", [1, 3])
def test_same_initial_weights(kernel, spconv):
    torch.manual_seed(3)
    theirs = spconv.SparseConv3d(5, 7, kernel).state_dict()
    torch.manual_seed(3)
    ours = flexor.sparse.SparseConv3d(5, 7, kernel).state_dict()
    assert list(ours) == list(theirs) and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["subm", "conv-k3s2", "conv-second"])
def test_tables_of_pairs(name, spconv):
    """What find_indice_pair gives is spconv's, but for the order of new rows and of pairs within a tap."""
    theirs, ours = tables(spconv, name), tables(flexor.sparse, name)
    assert theirs == ours


def tables(module, name):
    ndim, net = network(module, name)
    net.indice_key = "key"
    data = net(tensor(module, ndim)).find_indice_pair("key")
    pairs, counts = data.indice_pairs, data.indice_pair_num
    assert pairs.shape == (2, len(counts), len(data.indices)) and pairs.dtype == torch.int32
    found = set()
    for tap, (rows, outputs) in enumerate(pairs.permute(1, 0, 2).tolist()):
        found |= {(tap, i, tuple(data.out_indices[o].tolist())) for i, o in zip(rows, outputs, strict=True) if i >= 0}
        assert (pairs[:, tap, : counts[tap]] >= 0).all()
    facts = [data.spatial_shape, data.out_spatial_shape, data.ksize, data.stride, data.padding, data.dilation]
    return found, counts.tolist(), data.is_subm, facts
