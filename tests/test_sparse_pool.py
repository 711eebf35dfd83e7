# SPDX-License-Identifier: Apache-2.0
"""sparse_pool on every backend: values, gradients, ties, edges, transformations."""

import functools
from typing import NamedTuple

import pytest
import torch
import transforms
from flexor import ops, reference
from flexor.testing import assert_close, error, running, ways
from sparse_voxels import scene, triples
from torch import func
from transforms import loss

WAYS = ways("sparse_pool")
WAY = pytest.mark.parametrize("way", WAYS, ids=str)
MODES = ("max", "max0", "avg")
MODE = pytest.mark.parametrize("mode", MODES)
LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
SHAPES = {1: (600,), 2: (19, 31), 3: (13, 9, 11), 4: (5, 4, 6, 7)}
OP = torch.ops.flexor.sparse_pool.default
BACKWARD = torch.ops.flexor.sparse_pool_backward.default


class Case(NamedTuple):
    channels: int
    kernel: int = 2
    stride: int = 2
    padding: int = 0
    dilation: int = 1
    rows: int = 150
    dims: int = 3
    kind: str = "strided"

    def indices(self):
        return scene(SHAPES[self.dims], self.rows)

    def map(self, indices, device="cpu"):
        index = ops.SparseIndex(indices.to(device), spatial_shape=SHAPES[self.dims], batch_size=2)
        if self.kind == "sub":
            return index.submanifold(self.kernel, self.dilation)
        map = index.strided(self.kernel, self.stride, self.padding, self.dilation)[1]
        return map.transposed() if self.kind == "inverse" else map

    def features(self, indices, dtype=torch.float64):
        """Many of them equal, so that maxima are tied, and some of either sign."""
        return torch.randint(-3, 3, (len(indices), self.channels)).to(dtype)


CASES = {
    "one": Case(1, rows=1),
    "down": Case(16, rows=600),
    "down-63": Case(63),
    "overlapping": Case(129, 3, 2, 1, rows=300),
    "dilated": Case(7, 3, 1, 2, 2),
    "gaps": Case(5, 1, 3),
    "same": Case(8, 3, kind="sub", rows=513),
    "same-even": Case(8, 2, kind="sub"),
    "1d": Case(7, 3, 2, 1, dims=1),
    "2d": Case(33, 3, 2, 1, dims=2),
    "4d": Case(6, dims=4),
}
CASE = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
SMALL = Case(5, 3, 2, 1, rows=60)


@functools.cache
def solved(case, mode, dtype):
    """Indices, features, grad_output, and the exact output and gradient, by lists of Python numbers."""
    torch.manual_seed(0)
    indices = case.indices()
    features = case.features(indices, dtype)
    with running(WAYS[0]):
        map = case.map(indices)
        found = triples(map.out.indices, indices, *window(case)) if case.kind == "strided" else None
    if found is None:
        out, padding = indices, (case.kernel // 2 * case.dilation,) * case.dims
        kernel, _, _, dilation, _ = window(case)
        found = triples(out, indices, kernel, (1,) * case.dims, padding, dilation, False)
    rows = len(map.out)
    output, grad = torch.zeros(rows, case.channels).double(), torch.zeros(len(indices), case.channels).double()
    grad_output = torch.randn(rows, case.channels).to(dtype)
    windows = [[i for _, o, i in sorted(found) if o == row] for row in range(rows)]
    for row, inputs in enumerate(windows):
        values = features.double()[inputs]
        if mode == "avg":
            output[row] = values.mean(0)
            grad.index_add_(0, torch.tensor(inputs), (grad_output[row].double() / len(inputs)).expand_as(values))
            continue
        output[row] = values.amax(0).clamp(min=0) if mode == "max0" else values.amax(0)
        grad.index_add_(0, torch.tensor(inputs), (values == output[row]) * grad_output[row].double())
    return indices, features, grad_output, output, grad


def window(case):
    return *((value,) * case.dims for value in case[1:5]), False


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@MODE
@CASE
@WAY
def test_forward_and_backward(way, case, mode, dtype):
    indices, features, grad_output, expected, grad = solved(case, mode, dtype)
    with running(way):
        map = case.map(indices, way.device)
        features = features.clone().to(way.device).requires_grad_()
        output = ops.sparse_pool(features, map, mode)
        output.backward(grad_output.to(way.device))
    assert output.dtype == features.grad.dtype == dtype and output.is_contiguous()
    assert_close(output, expected, LIMITS[dtype] if mode == "avg" else 0)
    assert_close(features.grad, grad, LIMITS[dtype])


@MODE
@WAY
def test_an_output_without_inputs_is_zero(way, mode):
    """As the map's other way has them, where a stride leaves voxels out."""
    with running(way):
        index = ops.SparseIndex(torch.tensor([[0, 0], [0, 1], [0, 2]], device=way.device), spatial_shape=(5,))
        map = index.strided(1, 2, 0)[1].transposed()
        features = torch.tensor([[-2.0], [-3.0]], device=way.device, requires_grad=True)
        output = ops.sparse_pool(features, map, mode)
        output.sum().backward()
    assert output.flatten().tolist() == [0 if mode == "max0" else -2, 0, 0 if mode == "max0" else -3]
    assert features.grad.flatten().tolist() == [0 if mode == "max0" else 1] * 2


@MODE
@WAY
def test_no_voxels(way, mode):
    with running(way):
        map = SMALL.map(torch.empty(0, 4, dtype=torch.int32), way.device)
        features = torch.empty(0, 5, device=way.device, requires_grad=True)
        output = ops.sparse_pool(features, map, mode)
        output.sum().backward()
    assert output.shape == (0, 5) and features.grad.shape == (0, 5)


@MODE
@WAY
def test_nan_and_infinity_pass_through(way, mode):
    indices, features, _, expected, _ = solved(SMALL, mode, torch.float32)
    changed = features.clone()
    changed[7, 2], changed[9, 3], changed[11, 4] = torch.nan, torch.inf, -torch.inf
    with running(way):
        map = SMALL.map(indices, way.device)
        output = ops.sparse_pool(changed.to(way.device), map, mode).cpu()
        touched = ops.sparse_pool(torch.eye(60, device=way.device), map, "max").cpu() > 0
        leaf = changed.to(way.device).requires_grad_()
        ops.sparse_pool(leaf, map, mode).sum().backward()
    assert torch.equal(output[:, 2].isnan(), touched[:, 7])
    assert torch.equal(output[:, 3] == torch.inf, touched[:, 9])
    if mode == "avg":
        assert torch.equal(output[:, 4] == -torch.inf, touched[:, 11])
    rest = ~touched[:, 7] & ~touched[:, 9] & ~touched[:, 11]
    assert_close(output[rest], expected[rest], 1e-6)
    assert leaf.grad.isfinite().all()


@MODE
@WAY
def test_strides(way, mode):
    indices, features, grad_output, expected, grad = solved(SMALL, mode, torch.float32)
    wide = torch.nn.functional.pad(features, (2, 1)).to(way.device)[:, 2:-1]
    turned = features.T.contiguous().T.to(way.device)
    with running(way):
        map = SMALL.map(indices, way.device)
        for changed in (wide, turned):
            for given in (grad_output, grad_output.T.contiguous().T):
                leaf = changed.detach().requires_grad_()
                output = ops.sparse_pool(leaf, map, mode)
                output.backward(given.to(way.device))
                assert_close(output, expected, 1e-6)
                assert_close(leaf.grad, grad, 1e-6)
        one = ops.sparse_pool(torch.ones((), device=way.device).expand(60, 5), map, mode)
    assert torch.equal(one, torch.ones_like(one))


@MODE
@WAY
def test_threads_do_not_change_bits(way, mode):
    if way.device != "cpu":
        pytest.skip("threads are the CPU's")
    case = CASES["overlapping"]
    indices = solved(case, mode, torch.float32)[0]
    features = torch.randn(len(indices), case.channels)
    results = []
    for threads in (1, 2):
        with running(way, threads):
            leaf = features.clone().requires_grad_()
            output = ops.sparse_pool(leaf, case.map(indices), mode)
            output.square().sum().backward()
            results.append((output, leaf.grad))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b) if way.backend == "cpu" else error(a, b) < 1e-5


@MODE
@WAY
def test_gradcheck(way, mode):
    case = Case(2, 2, 1, rows=6, dims=2)
    indices = case.indices()
    features = (1 + torch.randperm(2 * len(indices))).reshape(-1, 2).double().to(way.device).requires_grad_()  # no ties
    with running(way):
        map = case.map(indices, way.device)
        assert torch.autograd.gradcheck(lambda f: ops.sparse_pool(f, map, mode), [features], check_forward_ad=True)
        assert torch.autograd.gradgradcheck(lambda f: ops.sparse_pool(f, map, mode), [features])


ERRORS = {
    "map": ({"map": [1]}, TypeError, "map must be a SparseMap, got list"),
    "features-rank": ({"features": torch.zeros(60)}, ValueError, "features must have 2 dimensions"),
    "features-none": ({"features": None}, TypeError, "features must be a tensor, got NoneType"),
    "features-rows": (
        {"features": torch.zeros(59, 5)},
        ValueError,
        r"features.shape\[0\] must be the map's inputs = 60",
    ),
    "features-dtype": ({"features": torch.zeros(60, 5).int()}, TypeError, "got torch.int32"),
    "mode": ({"mode": "sum"}, ValueError, "mode must be 'max' or 'max0' or 'avg', got 'sum'"),
    "device": ({"features": torch.zeros(60, 5, device="meta")}, (ValueError, RuntimeError), "one device|on meta"),
}


@pytest.mark.parametrize(("changes", "kind", "message"), ERRORS.values(), ids=ERRORS.keys())
@pytest.mark.parametrize("way", [w for w in WAYS if w.device == "cpu"], ids=str)
def test_errors(way, changes, kind, message):
    with running(way):
        arguments = {"features": torch.zeros(60, 5), "map": SMALL.map(solved(SMALL, "avg", torch.float32)[0])} | changes
        with pytest.raises(kind, match=message):
            ops.sparse_pool(**arguments)


def test_no_gradient_without_a_transposed_map():
    map = SMALL.map(SMALL.indices()).tensors
    features = torch.zeros(60, 5, requires_grad=True)
    with pytest.raises(NotImplementedError, match="needs a transposed_map, got None"):
        OP(features, map, None, "avg", None).sum().backward()


def twins(mode):
    """The op and its twin on one map."""
    map = SMALL.map(SMALL.indices())
    return lambda f: ops.sparse_pool(f, map, mode), lambda f: reference.sparse_pool(f, map.tensors, mode)


@MODE
def test_transforms(mode):
    ours, twin = twins(mode)
    features, tangent = torch.randn(2, 60, 5, dtype=torch.float64)
    same = functools.partial(transforms.assert_same, ours, twin)
    same(lambda f: func.grad(loss(f)), features)
    same(lambda f: func.vmap(f, 1), features[:, None] * torch.randn(3, 1))
    same(lambda f: func.vmap(func.grad(loss(f))), features * torch.randn(3, 1, 1))
    same(lambda f: lambda x: func.jvp(f, (x,), (tangent,)), features)
    same(lambda f: func.hessian(lambda q: f(features * q[0] + q[1]).pow(3).sum()), torch.tensor([0.7, -0.4]).double())
    transforms.assert_same_double_backward(ours, twin, [features])
    transforms.assert_deterministic(ours, [features.float()])
    leaf = features.clone().requires_grad_()
    many = torch.randn(3, *ours(leaf).shape, dtype=torch.float64)
    found, expected = (torch.autograd.grad(f(leaf), leaf, many, is_grads_batched=True)[0] for f in (ours, twin))
    assert_close(found, expected, 1e-10)
    assert type(ours(features.requires_grad_()).grad_fn).__name__ == "SparsePoolBackward"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype):
    ours, _ = twins("max")
    features = torch.randn(60, 5)
    with torch.autocast("cpu", dtype):
        assert torch.equal(ours(features), ours(features)) and ours(features).dtype == torch.float32
        assert ours(features.to(dtype)).dtype == dtype


@pytest.mark.compiles
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@MODE
def test_opcheck(mode):
    for map in (SMALL.map(SMALL.indices()), SMALL._replace(kind="sub").map(SMALL.indices())):
        tensors, transposed = map.tensors, [] if map.mirrored else map.transposed().tensors
        features = torch.randn(60, 5, requires_grad=True)
        torch.library.opcheck(OP, (features, tensors, transposed, mode, None))
        grad_output = torch.randn(len(map.out), 5)
        torch.library.opcheck(BACKWARD, (grad_output, features.detach(), tensors, transposed, mode, (True,), None))
