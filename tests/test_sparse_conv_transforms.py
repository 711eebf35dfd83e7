# SPDX-License-Identifier: Apache-2.0
"""sparse_conv and its indices under everything that watches calls: functorch, autocast, compilers, exporters."""

from functools import partial

import pytest
import torch
import transforms
from flexor import ops, reference
from flexor.testing import assert_close
from sparse_voxels import scene
from torch import func
from torch.autograd import forward_ad
from transforms import loss

OP = torch.ops.flexor.sparse_conv.default
BACKWARD = torch.ops.flexor.sparse_conv_backward.default
INDEX_OPS = torch.ops.flexor.sparse_index, torch.ops.flexor.sparse_output_index, torch.ops.flexor.sparse_map
SHAPE = (9, 7, 8)
TENSORS = ("features", "weight", "bias", "residual")


def index_of(rows=40, **options):
    torch.manual_seed(rows)
    return ops.SparseIndex(scene(SHAPE, rows), spatial_shape=SHAPE, batch_size=2, **options)


INDEX = index_of()
MAPS = {
    "strided": INDEX.strided(3, 2, 1)[1],
    "sub": INDEX.submanifold(3),
    "inverse": INDEX.strided(2, 2, 0)[1].transposed(),
}
MAP = MAPS["strided"]


def tensors(dtype=torch.float64, map=MAP):
    shapes = (len(map.input), 4), (6, *map.kernel, 2), (6,), (len(map.out), 6)
    return [torch.randn(shape, dtype=dtype) for shape in shapes]


def ours(features, weight, bias, residual, map=MAP):
    return ops.sparse_conv(features, weight, map, bias, residual, 2)


def twin(features, weight, bias, residual, map=MAP):
    return reference.sparse_conv(features, weight.flatten(1, -2), bias, residual, map.tensors, 2)


assert_same = partial(transforms.assert_same, ours, twin)


@pytest.mark.parametrize("map", MAPS.values(), ids=MAPS.keys())
def test_func_grad(map):
    functions = [partial(f, map=map) for f in (ours, twin)]
    transforms.assert_same(*functions, lambda f: func.grad(loss(f), argnums=(0, 1, 2, 3)), *tensors(map=map))


def test_func_grad_of_grad():
    def penalty(f):
        gradient = func.grad(loss(f))
        return func.grad(lambda *args: gradient(*args).square().sum(), argnums=(0, 1, 2, 3))

    assert_same(penalty, *tensors())


BATCHED = {
    "all": (1, 0, 0, 2),
    "features": (1, None, None, None),
    "weight": (None, 3, None, None),
    "bias": (None, None, -1, None),
}


@pytest.mark.parametrize("in_dims", BATCHED.values(), ids=BATCHED.keys())
def test_vmap(in_dims):
    """Also the gradients of every element, of all tensors and of some."""
    args = [t if d is None else torch.stack([t, t.flip(0), 2 * t], d) for t, d in zip(tensors(), in_dims, strict=True)]
    assert_same(lambda f: func.vmap(f, in_dims), *args)
    assert_same(lambda f: func.vmap(func.grad(loss(f), argnums=(0, 1, 2, 3)), in_dims), *args)
    assert_same(lambda f: func.vmap(func.grad(loss(f), argnums=1), in_dims), *args)


def test_jvp():
    primals, tangents = tuple(tensors()), tuple(tensors())
    assert_same(lambda f: lambda *p: func.jvp(f, p, tangents), *primals)


def test_forward_ad():
    """Dual tensors, with the reverse mode recording at the same time; never a zero tangent."""
    args, tangent = tensors(), torch.randn(40, 4, dtype=torch.float64)

    def dual(f):
        def run(features, weight, bias, residual):
            weight = weight.clone().requires_grad_()
            with forward_ad.dual_level():
                output = f(forward_ad.make_dual(features, tangent), weight, bias, residual)
                moved = forward_ad.unpack_dual(output).tangent
                return moved, torch.autograd.grad(moved.square().sum(), weight)

        return run

    assert_same(dual, *args)
    assert dual(ours)(*args)[0].abs().max() > 0.1


@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_an_activation_differentiates(slope):
    features, weight, bias, residual = tensors()

    def act(f, *args):
        output = f(*args)
        return torch.where(output > 0, output, slope * output)

    found = func.grad(lambda x: ops.sparse_conv(x, weight, MAP, bias, residual, 2, slope).square().sum())(features)
    expected = func.grad(lambda x: act(twin, x, weight, bias, residual).square().sum())(features)
    assert_close(found, expected, 1e-10)


HESSIANS = {
    "forward-over-reverse": func.hessian,
    "reverse-over-reverse": lambda f: func.jacrev(func.jacrev(f)),
    "autograd": lambda f: lambda q: torch.autograd.functional.hessian(f, q),
    "vectorized": lambda f: lambda q: torch.autograd.functional.hessian(f, q, vectorize=True),
}


@pytest.mark.parametrize("hessian", HESSIANS.values(), ids=HESSIANS.keys())
def test_hessian(hessian):
    features, weight, bias, residual = tensors()

    def scalar(f):
        return hessian(lambda q: f(features * q[0], weight * q[1], bias * q[2], residual).pow(3).sum())

    assert_same(scalar, torch.tensor([0.7, -0.4, 0.2], dtype=torch.float64))


def test_batched_gradients():
    args = [t.requires_grad_() for t in tensors()]
    output, expected = ours(*args), twin(*args)
    many = torch.randn(3, *output.shape, dtype=torch.float64)
    found = torch.autograd.grad(output, args, many, is_grads_batched=True)
    for a, b in zip(found, torch.autograd.grad(expected, args, many, is_grads_batched=True), strict=True):
        assert_close(a, b, 1e-10)


@pytest.mark.parametrize("inside", [True, False], ids=["index-inside", "index-outside"])
def test_maps_built_within_a_transformation(inside):
    """First needed under functorch, they serve outside too; so do those of indices that are made there."""
    index, weight, features = index_of(), torch.randn(3, 3, 3, 3, 4).double(), torch.randn(40, 4).double()

    def network(features):
        at = ops.SparseIndex(index.indices.clone(), spatial_shape=SHAPE, batch_size=2) if inside else index
        map = at.strided(3, 2, 1)[1]
        down = ops.sparse_conv(features, weight, map)
        up = ops.sparse_conv(down, weight.transpose(0, -1), map.transposed())
        return ops.sparse_pool(up, at.submanifold(3), "avg").square().sum()

    found = func.grad(network)(features), func.vmap(func.grad(network))(features[None].repeat(2, 1, 1))[1]
    leaf = features.clone().requires_grad_()
    network(leaf).backward()
    assert all(torch.equal(f, leaf.grad) or assert_close(f, leaf.grad, 1e-12) is None for f in found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype):
    """All tensors in low precision, the gradient in the parameters' dtype."""
    args = tensors(torch.float32)
    args[1].requires_grad_()
    with torch.autocast("cpu", dtype):
        output = ours(*args)
    assert output.dtype == dtype
    assert torch.equal(output, ours(*(t.to(dtype) for t in args)))
    output.float().sum().backward()
    assert args[1].grad.dtype == torch.float32 and args[1].grad.isfinite().all()
    with torch.autocast("cpu", dtype):
        assert ours(*tensors()).dtype == torch.float64


@pytest.mark.compiles
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@pytest.mark.parametrize("needs", [(True,) * 4, (True, False, True, False), (False, True, False, True)])
@pytest.mark.parametrize("map", MAPS.values(), ids=MAPS.keys())
def test_opcheck(map, needs):
    features, weight, bias, residual = tensors(torch.float32, map)
    args = features, weight.flatten(1, -2), bias, residual
    lists = map.tensors, [] if map.mirrored else map.transposed().tensors
    torch.library.opcheck(OP, (*[t.clone().requires_grad_() for t in args], *lists, 2, None, None))
    torch.library.opcheck(OP, (*args[:2], None, None, lists[0], None, 2, 0.1, None))
    grad_output = torch.randn(len(map.out), 6)
    torch.library.opcheck(BACKWARD, (grad_output, *args, *lists, 2, None, needs, None))


@pytest.mark.compiles
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("backend", ["reference", None])
def test_opcheck_of_indices(transposed, backend):
    index, output_index, map = INDEX_OPS
    window = (3, 2, 3), (2, 2, 1), (1, 0, 1), (1, 1, 2)
    torch.library.opcheck(index, (INDEX.indices, 2, (0, 0, 0), SHAPE, backend))
    torch.library.opcheck(index, (INDEX.indices.long(), -1, None, None, backend))
    torch.library.opcheck(output_index, (INDEX.parts, 3, *window, transposed, None, None, False, backend))
    torch.library.opcheck(output_index, (INDEX.parts, 3, *window, transposed, (0, 0, 0), SHAPE, True, backend))
    parts = output_index(INDEX.parts, 3, *window, transposed, None, None, False, backend)[1:]
    torch.library.opcheck(map, (parts, INDEX.parts, 3, *window, transposed, backend))


class Network(torch.nn.Module):
    """An index, and every kind of map on it."""

    def __init__(self):
        super().__init__()

        def kernel(*shape):
            return torch.nn.Parameter(0.1 * torch.randn(shape))

        self.stem, self.down, self.up = kernel(6, 3, 3, 3, 5), kernel(8, 2, 2, 2, 6), kernel(6, 2, 2, 2, 8)
        self.grow, self.even, self.bias = kernel(4, 3, 3, 3, 6), kernel(4, 2, 2, 2, 4), kernel(6)

    def forward(self, features, indices):
        index = ops.SparseIndex(indices, spatial_shape=SHAPE, batch_size=2)
        first = ops.sparse_conv(features, self.stem, index.submanifold(3), self.bias, slope=0.0)
        lower, down = index.strided(2, 2, 0)
        second = ops.sparse_conv(first, self.down, down, slope=0.1)
        pool = lower.strided(3, 2, 1)[1]
        means = ops.sparse_pool(second, pool, "avg")
        second = second + ops.sparse_pool(means, pool.transposed()) + ops.sparse_pool(second, lower.submanifold(3))
        third = ops.sparse_conv(second, self.up, down.transposed(), residual=first)
        grown, grow = index.generative(3, 2, 1)
        return ops.sparse_conv(ops.sparse_conv(third, self.grow, grow), self.even, grown.submanifold(2)), grown.indices


def inputs(rows):
    return torch.randn(rows, 5, requires_grad=True), index_of(rows).indices


@pytest.mark.compiles
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compile(compiler):
    """One graph from coordinates to output, forward and backward, for every number of voxels."""
    torch._dynamo.reset()
    network = Network()
    compiled = torch.compile(network, fullgraph=True, backend=compiler)
    torch._dynamo.utils.counters.clear()
    for rows in (40, 90, 7, 60):
        features, indices = inputs(rows)
        (found, at), (expected, true_at) = compiled(features, indices), network(features, indices)
        assert torch.equal(at, true_at)
        assert_close(found, expected, 1e-5)
        wanted = [features, *network.parameters()]
        grads = torch.autograd.grad(found.square().sum(), wanted)
        for a, b in zip(grads, torch.autograd.grad(expected.square().sum(), wanted), strict=True):
            assert_close(a, b, 1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2, "one for the first size, one for any"
    with torch.no_grad():
        assert_close(compiled(features, indices)[0], expected, 1e-5)


@pytest.mark.compiles
def test_compile_with_no_voxels():
    torch._dynamo.reset()
    network = Network()
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    features, indices = torch.randn(0, 5, requires_grad=True), torch.empty(0, 4, dtype=torch.int32)
    output, at = compiled(features, indices)
    output.sum().backward()
    assert output.shape == (0, 4) and at.shape == (0, 4) and network.stem.grad.eq(0).all()


@pytest.mark.compiles
def test_compile_with_an_index_from_outside():
    """Its maps are kept on it, as they are without a compiler."""
    torch._dynamo.reset()
    weight = torch.randn(3, 3, 3, 3, 5)

    @partial(torch.compile, fullgraph=True, backend="aot_eager")
    def layer(features, index):
        out, map = index.strided(3, 2, 1)
        return ops.sparse_conv(features, weight, map), out

    for rows in (40, 60, 50):
        index, features = index_of(rows), torch.randn(rows, 5)
        output, out = layer(features, index)
        again, map = index.strided(3, 2, 1)
        assert again is out and layer(features, index)[1] is out
        assert_close(output, ops.sparse_conv(features, weight, map), 1e-6)


@pytest.mark.compiles
def test_compile_checks_rows():
    """Of sizes that only the data decide, when the graph runs."""
    torch._dynamo.reset()
    weight = torch.randn(3, 1, 1, 1, 5)

    @partial(torch.compile, fullgraph=True, backend="aot_eager")
    def layer(features, indices):
        out, _ = ops.SparseIndex(indices, spatial_shape=SHAPE, batch_size=2).strided(2, 2, 0)
        return ops.sparse_conv(features, weight, out.submanifold(1))

    indices = index_of(40).indices
    rows = len(index_of(40).strided(2, 2, 0)[0])
    assert layer(torch.randn(rows, 5), indices).shape == (rows, 3)
    with pytest.raises((RuntimeError, ValueError), match=r"features.shape\[0\] must be the map's inputs"):
        layer(torch.randn(rows + 1, 5), indices)


@pytest.mark.compiles
@pytest.mark.parametrize("strict", [True, False])
def test_export(strict):
    network, sizes = Network(), {0: torch.export.Dim.AUTO}
    program = torch.export.export(network, inputs(40), strict=strict, dynamic_shapes=(sizes, sizes))
    assert {OP, *(op.default for op in INDEX_OPS)} <= {node.target for node in program.graph.nodes}
    for rows in (40, 90):
        features, indices = inputs(rows)
        found, expected = program.module()(features, indices), network(features, indices)
        assert torch.equal(found[1], expected[1])
        assert_close(found[0], expected[0], 1e-6)


class Layer(torch.nn.Module):
    def forward(self, features, index):
        return ops.sparse_pool(features, index.strided(2, 2, 0)[1], "avg")


@pytest.mark.compiles
def test_export_of_an_index(tmp_path):
    """An index is a pytree, also in a file."""
    features, index = torch.randn(40, 5), index_of()
    program = torch.export.export(Layer(), (features, index), strict=False)
    path = tmp_path / "layer.pt2"
    torch.export.save(program, path)
    found = torch.export.load(path).module()(features, index_of())
    assert_close(found, Layer()(features, index), 1e-6)


def test_double_backward_reaches_every_tensor():
    transforms.assert_same_double_backward(ours, twin, tensors())


def test_deterministic_algorithms():
    transforms.assert_deterministic(ours, tensors(torch.float32))


def test_grad_fn_has_the_ops_name():
    assert type(ours(*(t.requires_grad_() for t in tensors())).grad_fn).__name__ == "SparseConvBackward"
