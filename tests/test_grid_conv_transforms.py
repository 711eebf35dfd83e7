# SPDX-License-Identifier: Apache-2.0
"""grid_conv under everything that watches calls: functorch, forward-mode AD, autocast, compilers, exporters."""

from functools import partial

import flexor
import pytest
import torch
import transforms
from flexor import ops, reference
from flexor.testing import assert_close
from torch import func
from torch.autograd import forward_ad
from transforms import loss

OP = torch.ops.flexor.grid_conv.default
BACKWARD = torch.ops.flexor.grid_conv_backward.default


def tensors(dtype=torch.float64):
    shapes = (2, 3, 4, 5), (4, 3, 3, 3), (4, 3, 3, 3), (4,), (4,), (2, 9, 4, 5)
    return [torch.randn(shape, dtype=dtype) for shape in shapes]


def ours(*args):
    return ops.grid_conv(*args, "cr")


def twin(*args):
    return reference.grid_conv(*args, "cr")


assert_same = partial(transforms.assert_same, ours, twin)


@pytest.mark.parametrize("argnum", range(6))
def test_func_grad(argnum):
    assert_same(lambda f: func.grad(loss(f), argnums=argnum), *tensors())


def test_func_grad_of_grad():
    def penalty(f):
        gradient = func.grad(loss(f))
        return func.grad(lambda *args: gradient(*args).square().sum(), argnums=(0, 1, 2, 5))

    assert_same(penalty, *tensors())


BATCHED = {
    "all": (1, 0, 0, 0, 0, 2),
    "grids": (1, None, None, None, None, 0),
    "attention": (None, None, None, None, None, 3),
    "one-weight": (None, None, 0, None, None, None),
    "bias": (None, None, None, -1, None, None),
}


@pytest.mark.parametrize("in_dims", BATCHED.values(), ids=BATCHED.keys())
def test_vmap(in_dims):
    """Also the gradients of every sample, with weights that are shared or not, and of the grids alone."""
    args = [t if d is None else torch.stack([t, t.flip(0), 2 * t], d) for t, d in zip(tensors(), in_dims, strict=True)]
    assert_same(lambda f: func.vmap(f, in_dims), *args)
    assert_same(lambda f: func.vmap(func.grad(loss(f), argnums=(0, 1, 2, 3, 4, 5)), in_dims), *args)
    assert_same(lambda f: func.vmap(func.grad(loss(f), argnums=(0, 5)), in_dims), *args)


def test_vmap_over_grids_is_one_call(monkeypatch):
    calls = []
    forward = reference.grid_conv
    monkeypatch.setattr(reference, "grid_conv", lambda *args: (calls.append(1), forward(*args))[1])
    input, *kernels, attention = tensors()
    batched = (0, None, None, None, None, 0)
    func.vmap(lambda *args: ops.grid_conv(*args, backend="reference"), batched)(
        torch.stack([input] * 3), *kernels, torch.stack([attention] * 3)
    )
    assert len(calls) == 1


def test_jvp():
    primals, tangents = tuple(tensors()), tuple(tensors())
    assert_same(lambda f: lambda *p: func.jvp(f, p, tangents), *primals)


def test_forward_ad():
    """Dual tensors, with the reverse mode recording at the same time; never a zero tangent."""
    args, tangent = tensors(), torch.randn(2, 9, 4, 5, dtype=torch.float64)

    def dual(f):
        def run(input, weight1, weight2, bias1, bias2, attention):
            weight1 = weight1.clone().requires_grad_()
            with forward_ad.dual_level():
                output = f(input, weight1, weight2, bias1, bias2, forward_ad.make_dual(attention, tangent))
                moved = forward_ad.unpack_dual(output).tangent
                return moved, torch.autograd.grad(moved.square().sum(), weight1)

        return run

    assert_same(dual, *args)
    assert dual(ours)(*args)[0].abs().max() > 0.1


HESSIANS = {
    "forward-over-reverse": func.hessian,
    "reverse-over-reverse": lambda f: func.jacrev(func.jacrev(f)),
    "reverse-over-forward": lambda f: func.jacrev(func.jacfwd(f)),
    "autograd": lambda f: lambda q: torch.autograd.functional.hessian(f, q),
    "vectorized": lambda f: lambda q: torch.autograd.functional.hessian(f, q, vectorize=True),
}


@pytest.mark.parametrize("hessian", HESSIANS.values(), ids=HESSIANS.keys())
def test_hessian(hessian):
    input, weight1, weight2, bias1, bias2, attention = tensors()

    def scalar(f):
        return hessian(
            lambda q: f(input * q[0], weight1 * q[1], weight2 * q[2], bias1, bias2, attention * q[2]).pow(3).sum()
        )

    assert_same(scalar, torch.tensor([0.7, -0.4, 0.2], dtype=torch.float64))


def test_batched_gradients():
    args = [t.requires_grad_() for t in tensors()]
    output, expected = ours(*args), twin(*args)
    many = torch.randn(3, *output.shape, dtype=torch.float64)
    found = torch.autograd.grad(output, args, many, is_grads_batched=True)
    for a, b in zip(found, torch.autograd.grad(expected, args, many, is_grads_batched=True), strict=True):
        assert_close(a, b, 1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype):
    """Input, weights and biases in low precision, the attention as it comes, the gradient in the parameters' dtype."""
    args = tensors(torch.float32)
    args[1].requires_grad_()
    with torch.autocast("cpu", dtype):
        output = ours(*args)
        low_attention = ours(*args[:5], args[5].to(dtype))
    low = [*(t.to(dtype) for t in args[:5]), args[5]]
    assert output.dtype == low_attention.dtype == dtype
    assert torch.equal(output, ours(*low))
    output.float().sum().backward()
    assert args[1].grad.dtype == torch.float32 and args[1].grad.isfinite().all()
    with torch.autocast("cpu", dtype):
        assert ours(*tensors()).dtype == torch.float64


@pytest.mark.compiles
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@pytest.mark.parametrize("needs", [(True,) * 6, (True, False, True, False, True, False), (False,) * 5 + (True,)])
def test_opcheck(needs):
    args = tensors(torch.float32)
    torch.library.opcheck(OP, (*[t.clone().requires_grad_() for t in args], "cr", None))
    torch.library.opcheck(BACKWARD, (torch.randn(2, 4, 4, 5), *args, "cr", needs, None))
    torch.library.opcheck(OP, (*args[:2], None, None, None, None, "z", None))


class Layer(torch.nn.Module):
    """A residual step, attention and all."""

    def __init__(self):
        super().__init__()
        self.conv = flexor.nn.DGridConv(4, 4, 3, "cz", bias=True)
        self.attention = flexor.nn.GridAttention(4, (5, 5), temperature=2.0)

    def forward(self, input):
        return input + self.conv(input, self.attention(input)).relu()


@pytest.mark.compiles
def test_compile():
    """One graph, forward and backward, with batches that change and with channels_last."""
    torch._dynamo.reset()
    layer = Layer().eval()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    wanted = list(layer.parameters())
    for batch in (2, 7):
        input = torch.randn(batch, 4, 5, 5, requires_grad=True)
        found, expected = (torch.autograd.grad(run(input).sum(), [input, *wanted]) for run in (compiled, layer))
        for a, b in zip(found, expected, strict=True):
            assert_close(a, b, 1e-5)
    input = torch.randn(2, 4, 5, 5).to(memory_format=torch.channels_last)
    with torch.no_grad():
        found, expected = compiled(input), layer(input)
    assert found.stride() == expected.stride()
    assert_close(found, expected, 1e-5)


@pytest.mark.compiles
def test_compile_training_and_autocast():
    torch._dynamo.reset()
    layer, input = Layer(), torch.randn(3, 4, 5, 5)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert_close(compiled(input), layer(input), 1e-5)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert torch.equal(compiled(input), layer(input))


@pytest.mark.compiles
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("dynamic", [True, False])
def test_export(strict, dynamic):
    layer, input = Layer().eval(), torch.randn(2, 4, 5, 5)
    shapes = ({0: torch.export.Dim.AUTO},) if dynamic else None
    program = torch.export.export(layer, (input,), strict=strict, dynamic_shapes=shapes)
    assert OP in [node.target for node in program.graph.nodes]
    for batch in (2, 7)[: 1 + dynamic]:
        input = torch.randn(batch, 4, 5, 5)
        assert_close(program.module()(input), layer(input), 1e-6)


@pytest.mark.compiles
def test_trace_and_symbolic_trace():
    layer, input = Layer().eval(), torch.randn(2, 4, 5, 5)
    traced = torch.jit.trace(layer, input, check_trace=False)
    assert "flexor::grid_conv" in str(traced.inlined_graph)
    input = torch.randn(7, 4, 5, 5)
    assert_close(traced(input), layer(input), 1e-6)
    assert OP in [node.target for node in torch.fx.symbolic_trace(layer).graph.nodes]


def test_double_backward_reaches_every_tensor():
    transforms.assert_same_double_backward(ours, twin, tensors())


def test_deterministic_algorithms():
    transforms.assert_deterministic(ours, tensors(torch.float32))


def test_grad_fn_has_the_ops_name():
    args = [t.requires_grad_() for t in tensors()]
    assert type(ours(*args).grad_fn).__name__ == "GridConvBackward"
