# SPDX-License-Identifier: Apache-2.0
"""deform_conv2d under everything that watches calls: functorch, forward-mode AD, autocast, compilers, exporters."""

from functools import partial

import flexor
import pytest
import torch
import transforms
from flexor import ops, reference
from flexor.testing import assert_close
from torch import Tensor, func, nn
from torch.autograd import forward_ad
from transforms import loss

OP = torch.ops.flexor.deform_conv2d.default
BACKWARD = torch.ops.flexor.deform_conv2d_backward.default
GEOMETRY = ((1, 1), (1, 1), (1, 1))


def tensors(dtype=torch.float64):
    shapes = (2, 4, 5, 6), (2, 36, 5, 6), (6, 2, 3, 3), (6,), (2, 18, 5, 6)
    return [torch.randn(shape, dtype=dtype) for shape in shapes]


def ours(input, offset, weight, bias, mask):
    return ops.deform_conv2d(input, offset, weight, bias, *GEOMETRY, mask)


def twin(input, offset, weight, bias, mask):
    return reference.deform_conv2d(input, offset, weight, bias, *GEOMETRY, mask)


assert_same = partial(transforms.assert_same, ours, twin)


@pytest.mark.parametrize("argnum", range(5))
def test_func_grad(argnum):
    assert_same(lambda f: func.grad(loss(f), argnums=argnum), *tensors())


def test_func_grad_of_grad():
    def penalty(f):
        gradient = func.grad(loss(f))
        return func.grad(lambda *args: gradient(*args).square().sum(), argnums=(0, 1, 2))

    assert_same(penalty, *tensors())


BATCHED = {
    "all": (1, 0, 0, 0, 0),
    "images": (1, 0, None, None, 0),
    "offset": (None, 0, None, None, None),
    "weight": (None, None, 0, None, None),
    "bias": (None, None, None, -1, None),
}


@pytest.mark.parametrize("in_dims", BATCHED.values(), ids=BATCHED.keys())
def test_vmap(in_dims):
    """Also the gradients of every sample, with a weight that is shared or not."""
    args = [t if d is None else torch.stack([t, t.flip(0), 2 * t], d) for t, d in zip(tensors(), in_dims, strict=True)]
    assert_same(lambda f: func.vmap(f, in_dims), *args)
    assert_same(lambda f: func.vmap(func.grad(loss(f), argnums=(0, 1, 2, 3, 4)), in_dims), *args)


def test_vmap_is_one_call(monkeypatch):
    from flexor import _C

    calls = []
    forward = _C.deform_conv2d_forward
    monkeypatch.setattr(_C, "deform_conv2d_forward", lambda *args: (calls.append(1), forward(*args)))
    many = [torch.stack([t, t]) for t in tensors()]
    func.vmap(ours)(*many)
    func.vmap(ours, (0, 0, None, None, 0))(*many[:2], *tensors()[2:4], many[4])
    assert len(calls) == 2


def test_jvp():
    primals, tangents = tuple(tensors()), tuple(tensors())
    assert_same(lambda f: lambda *p: func.jvp(f, p, tangents), *primals)


def test_forward_ad():
    """Dual tensors, with the reverse mode recording at the same time; never a zero tangent."""
    args, tangent = tensors(), torch.randn(2, 36, 5, 6, dtype=torch.float64)

    def dual(f):
        def run(input, offset, weight, bias, mask):
            weight = weight.clone().requires_grad_()
            with forward_ad.dual_level():
                output = f(input, forward_ad.make_dual(offset, tangent), weight, bias, mask)
                moved = forward_ad.unpack_dual(output).tangent
                return moved, torch.autograd.grad(moved.square().sum(), weight)

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
    input, offset, weight, bias, mask = tensors()
    direction = torch.randn_like(offset)

    def scalar(f):
        return hessian(
            lambda q: f(input, offset + 0.1 * q[2] * direction, weight * q[0], bias, mask * q[1]).pow(3).sum()
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
    """Input, weight and bias in low precision, offsets left in float32, the gradient in the parameters' dtype."""
    args = tensors(torch.float32)
    args[2].requires_grad_()
    with torch.autocast("cpu", dtype):
        output = ours(*args)
    low = [t.to(dtype) if i in (0, 2, 3) else t for i, t in enumerate(args)]
    assert output.dtype == dtype
    assert torch.equal(output, ours(*low))
    output.float().sum().backward()
    assert args[2].grad.dtype == torch.float32 and args[2].grad.isfinite().all()
    with torch.autocast("cpu", dtype):
        assert ours(*tensors()).dtype == torch.float64


def test_autocast_with_an_offset_that_a_layer_predicted():
    layer = flexor.nn.ModulatedDeformConv2dPack(4, 6, 3, padding=1, deform_groups=2)
    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.randn(2, 4, 5, 6)).sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in layer.parameters())


@pytest.mark.compiles
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@pytest.mark.parametrize("needs", [(True,) * 5, (True, False, True, True, False), (False, True, False, False, False)])
def test_opcheck(needs):
    args = tensors(torch.float32)
    torch.library.opcheck(OP, (*[t.clone().requires_grad_() for t in args], *GEOMETRY, None))
    torch.library.opcheck(BACKWARD, (torch.randn(2, 6, 5, 6), *args, *GEOMETRY, needs, None))
    without = (*args[:3], None, None, *GEOMETRY, None)
    torch.library.opcheck(OP, without)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.deform = flexor.nn.DeformConv2d(4, 6, 3, padding=1, groups=2)

    def forward(self, input: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        return self.deform(input.relu(), 2 * offset, mask).sin()


def images(n, h, w):
    return torch.randn(n, 4, h, w), torch.randn(n, 36, h, w), torch.rand(n, 18, h, w)


@pytest.mark.compiles
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile(backend):
    """One graph, forward and backward, with sizes that change and with channels_last."""
    torch._dynamo.reset()
    layer = Layer()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=backend)
    for size in ((2, 5, 6), (3, 7, 4)):
        args = [t.requires_grad_() for t in images(*size)]
        wanted = [*args, *layer.parameters()]
        found, expected = (torch.autograd.grad(run(*args).sum(), wanted) for run in (compiled, layer))
        for a, b in zip(found, expected, strict=True):
            assert_close(a, b, 1e-5)
    args = [t.to(memory_format=torch.channels_last) for t in images(2, 5, 6)]
    with torch.no_grad():
        found, expected = compiled(*args), layer(*args)
    assert found.stride() == expected.stride()
    assert_close(found, expected, 1e-5)


@pytest.mark.compiles
def test_compile_under_autocast():
    torch._dynamo.reset()
    layer, args = Layer(), images(2, 5, 6)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert torch.equal(torch.compile(layer, fullgraph=True, backend="aot_eager")(*args), layer(*args))


@pytest.mark.compiles
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("dynamic", [True, False])
def test_export(strict, dynamic):
    layer, args = Layer(), images(2, 5, 6)
    auto = torch.export.Dim.AUTO
    shapes = tuple({0: auto, 2: auto, 3: auto} for _ in args) if dynamic else None
    program = torch.export.export(layer, args, strict=strict, dynamic_shapes=shapes)
    assert OP in [node.target for node in program.graph.nodes]
    for size in ((2, 5, 6), (3, 7, 4))[: 1 + dynamic]:
        args = images(*size)
        assert_close(program.module()(*args), layer(*args), 1e-6)


@pytest.mark.compiles
def test_trace_and_symbolic_trace():
    layer, args = Layer(), images(2, 5, 6)
    traced = torch.jit.trace(layer, args, check_trace=False)
    assert "flexor::deform_conv2d" in str(traced.inlined_graph)
    args = images(3, 7, 4)
    assert_close(traced(*args), layer(*args), 1e-6)
    assert OP in [node.target for node in torch.fx.symbolic_trace(layer).graph.nodes]


@pytest.mark.compiles
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    "options", [{"deform_groups": 2}, {"stride": 2, "padding": (1, 2), "groups": 2, "bias": False}]
)
def test_onnx(options):
    """The exported model is a standard DeformConv, and onnxruntime computes the same."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    from flexor.onnx import translation_table

    layer = flexor.nn.ModulatedDeformConv2dPack(4, 8, 3, **({"padding": 1} | options)).eval()
    nn.init.normal_(layer.conv_offset.weight, std=0.3)
    images = torch.randn(2, 4, 9, 7)
    batch_and_size = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    program = torch.onnx.export(
        layer,
        (images,),
        dynamo=True,
        opset_version=19,
        custom_translation_table=translation_table(),
        dynamic_shapes=(batch_and_size,),
        verbose=False,
    )
    onnx.checker.check_model(program.model_proto, full_check=True)
    assert [node.op_type for node in program.model_proto.graph.node].count("DeformConv") == 1
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    for input in (images, torch.randn(1, 4, 12, 8)):
        (found,) = session.run(None, {session.get_inputs()[0].name: input.numpy()})
        assert_close(torch.tensor(found), layer(input), 1e-5)


def test_double_backward_reaches_every_tensor():
    transforms.assert_same_double_backward(ours, twin, tensors())


def test_deterministic_algorithms():
    transforms.assert_deterministic(ours, tensors(torch.float32))


def test_grad_fn_has_the_ops_name():
    args = [t.requires_grad_() for t in tensors()]
    assert type(ours(*args).grad_fn).__name__ == "DeformConv2dBackward"
