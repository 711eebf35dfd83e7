# SPDX-License-Identifier: Apache-2.0
"""xcorr2d and xcorr2d_depthwise under everything that watches calls: functorch, autocast, compilers, exporters."""

from functools import partial

import pytest
import torch
import transforms
from flexor import ops, reference
from flexor.testing import assert_close
from torch import func, nn
from transforms import loss

OPS = ("xcorr2d", "xcorr2d_depthwise")
OP = pytest.mark.parametrize("op", OPS)
PADDING = (1, 2)


def tensors(op, dtype=torch.float64):
    kernel = (2, 3, 4, 3, 2) if op == "xcorr2d" else (2, 4, 3, 2)
    return [torch.randn(2, 4, 5, 6, dtype=dtype), torch.randn(kernel, dtype=dtype)]


def assert_same(op, function, *args):
    ours, twin = (partial(getattr(module, op), padding=PADDING) for module in (ops, reference))
    transforms.assert_same(ours, twin, function, *args)


@OP
def test_func_grad(op):
    assert_same(op, lambda f: func.grad(loss(f), argnums=(0, 1)), *tensors(op))

    def penalty(f):
        gradient = func.grad(loss(f), argnums=(0, 1))
        return func.grad(lambda *args: sum(g.square().sum() for g in gradient(*args)), argnums=(0, 1))

    assert_same(op, penalty, *tensors(op))


@pytest.mark.parametrize("in_dims", [(0, 0), (1, -1), (0, None), (None, 1)], ids=str)
@OP
def test_vmap(op, in_dims):
    """Also the gradients of every sample, with one of the two tensors shared or not."""
    args = [
        t if d is None else torch.stack([t, t.flip(0), 2 * t], d) for t, d in zip(tensors(op), in_dims, strict=True)
    ]
    assert_same(op, lambda f: func.vmap(f, in_dims), *args)
    assert_same(op, lambda f: func.vmap(func.grad(loss(f), argnums=(0, 1)), in_dims), *args)


@OP
def test_vmap_is_one_call(op, monkeypatch):
    calls = []
    forward = getattr(reference, op)
    monkeypatch.setattr(reference, op, lambda *args: (calls.append(1), forward(*args))[1])
    for in_dims in ((0, 0), (0, None), (None, 0)):
        args = [t if d is None else torch.stack([t, t, t]) for t, d in zip(tensors(op), in_dims, strict=True)]
        func.vmap(lambda a, b: getattr(ops, op)(a, b, backend="reference"), in_dims)(*args)
    assert len(calls) == 3


@OP
def test_jvp_and_hessian(op):
    primals, tangents = tuple(tensors(op)), tuple(tensors(op))
    assert_same(op, lambda f: lambda *p: func.jvp(f, p, tangents), *primals)

    def scaled(f):
        return func.hessian(lambda q: f(primals[0] * q[0], primals[1] + q[1] * tangents[1]).pow(3).sum())

    assert_same(op, scaled, torch.tensor([0.7, -0.4], dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@OP
def test_autocast(op, dtype):
    """Both in low precision, the gradients in the dtype of their tensors; float64 stays."""
    input, kernel = (t.requires_grad_() for t in tensors(op, torch.float32))
    call = getattr(ops, op)
    with torch.autocast("cpu", dtype):
        output = call(input, kernel)
        mixed = call(input.to(dtype), kernel)
        assert call(*tensors(op)).dtype == torch.float64
    assert output.dtype == mixed.dtype == dtype
    assert torch.equal(output, call(input.to(dtype), kernel.to(dtype)))
    output.float().sum().backward()
    assert input.grad.dtype == kernel.grad.dtype == torch.float32


@pytest.mark.compiles
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@OP
def test_opcheck(op):
    args = [t.requires_grad_() for t in tensors(op, torch.float32)]
    torch.library.opcheck(getattr(torch.ops.flexor, op).default, (*args, PADDING, None))
    grad_output = torch.randn_like(getattr(ops, op)(*args, PADDING))
    backward = getattr(torch.ops.flexor, f"{op}_backward").default
    for needs in ((True, True), (False, True)):
        torch.library.opcheck(backward, (grad_output, *args, PADDING, needs, None))


class Layer(nn.Module):
    def __init__(self, op):
        super().__init__()
        self.op = op
        self.scale = nn.Parameter(torch.randn(()))

    def forward(self, input, kernel):
        return getattr(ops, self.op)(input.relu(), self.scale * kernel, kernel.shape[-1] // 2).sin()


@pytest.mark.compiles
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@OP
def test_compile(op, backend):
    """One graph, forward and backward, with sizes that change and with channels_last."""
    torch._dynamo.reset()
    layer = Layer(op)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=backend)
    for height, width in ((5, 6), (9, 7)):
        input = torch.randn(2, 4, height, width, requires_grad=True)
        kernel = tensors(op, torch.float32)[1].requires_grad_()
        found, expected = (
            torch.autograd.grad(run(input, kernel).sum(), (input, kernel, layer.scale)) for run in (compiled, layer)
        )
        for a, b in zip(found, expected, strict=True):
            assert_close(a, b, 1e-5)
    last = input.detach().to(memory_format=torch.channels_last)
    with torch.no_grad():
        found, expected = compiled(last, kernel), layer(last, kernel)
    assert found.stride() == expected.stride()
    assert_close(found, expected, 1e-5)


@pytest.mark.compiles
@pytest.mark.parametrize("strict", [True, False])
@OP
def test_export(op, strict):
    layer, args = Layer(op), tuple(tensors(op, torch.float32))
    auto = torch.export.Dim.AUTO
    program = torch.export.export(layer, args, strict=strict, dynamic_shapes=({0: auto, 2: auto, 3: auto}, {0: auto}))
    assert getattr(torch.ops.flexor, op).default in [node.target for node in program.graph.nodes]
    for changed in (args, (torch.randn(3, 4, 8, 5), torch.randn(3, *args[1].shape[1:]))):
        assert_close(program.module()(*changed), layer(*changed), 1e-6)


@OP
def test_grad_fn_has_the_ops_name(op):
    output = getattr(ops, op)(*(t.requires_grad_() for t in tensors(op)))
    assert type(output.grad_fn).__name__ == {"xcorr2d": "Xcorr2d", "xcorr2d_depthwise": "Xcorr2dDepthwise"}[op] + (
        "Backward"
    )
