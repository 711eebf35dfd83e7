# SPDX-License-Identifier: Apache-2.0
"""odconv2d under everything that watches calls: functorch, forward-mode AD, autocast, compilers, exporters."""

import sys
from functools import partial

import flexor
import pytest
import torch
import transforms
from flexor import ops, reference
from flexor.testing import Way, assert_close, running
from torch import Tensor, func, nn
from torch.autograd import forward_ad
from transforms import loss

OP = torch.ops.flexor.odconv2d.default
BACKWARD = torch.ops.flexor.odconv2d_backward.default
GEOMETRY = ((1, 2), (1, 1), (1, 1), 2)


def tensors(dtype=torch.float64):
    shapes = (2, 4, 5, 6), (3, 6, 2, 3, 2), (2, 4), (2, 6), (2, 6), (2, 3)
    return [torch.randn(shape, dtype=dtype) for shape in shapes]


def ours(*args):
    return ops.odconv2d(*args, *GEOMETRY)


def twin(*args):
    return reference.odconv2d(*args, *GEOMETRY)


assert_same = partial(transforms.assert_same, ours, twin)


@pytest.mark.parametrize("argnum", range(6))
def test_func_grad(argnum):
    assert_same(lambda f: func.grad(loss(f), argnums=argnum), *tensors())


def test_func_grad_of_grad():
    def penalty(f):
        gradient = func.grad(loss(f))
        return func.grad(lambda *args: gradient(*args).square().sum(), argnums=(0, 1, 2, 3, 4, 5))

    assert_same(penalty, *tensors())


BATCHED = {
    "all": (1, 0, 0, 0, 0, 0),
    "samples": (1, None, 0, -1, 0, 0),
    "attention": (None, None, None, None, None, 1),
    "weight": (None, -1, None, None, None, None),
    "weight-and-taps": (0, 1, None, None, 0, None),
}


@pytest.mark.parametrize("in_dims", BATCHED.values(), ids=BATCHED.keys())
def test_vmap(in_dims):
    """Also the gradients of every sample, with a weight that is shared or not."""
    args = [t if d is None else torch.stack([t, t.flip(0), 2 * t], d) for t, d in zip(tensors(), in_dims, strict=True)]
    assert_same(lambda f: func.vmap(f, in_dims), *args)
    assert_same(lambda f: func.vmap(func.grad(loss(f), argnums=(0, 1, 2, 3, 4, 5)), in_dims), *args)
    assert_same(lambda f: func.vmap(func.grad(loss(f), argnums=(0, 2, 5)), in_dims), *args)


def test_vmap_without_attentions():
    input, weight = torch.randn(3, 2, 4, 5, 6), torch.randn(3, 1, 6, 2, 3, 2)
    for in_dims in ((0, None), (0, 0)):
        args = input, weight if in_dims[1] == 0 else weight[0]
        found, expected = (
            func.vmap(lambda x, w, op=op: op(x, w, groups=2), in_dims)(*args)
            for op in (ops.odconv2d, reference.odconv2d)
        )
        assert_close(found, expected, 1e-5)


def test_shared_weights_are_one_call(monkeypatch):
    operator = sys.modules[ops.odconv2d.__module__]._operator
    batches, run = [], operator.reference_forward
    monkeypatch.setattr(operator, "reference_forward", lambda *args: (batches.append(len(args[0])), run(*args))[1])
    in_dims = (0, None, 0, 0, 0, 0)
    args = [t if d is None else torch.stack([t, t]) for t, d in zip(tensors(), in_dims, strict=True)]
    with running(Way("reference", None, "cpu")):
        func.vmap(ours, in_dims)(*args)
    assert batches == [4]


def test_jvp():
    primals, tangents = tuple(tensors()), tuple(tensors())
    assert_same(lambda f: lambda *p: func.jvp(f, p, tangents), *primals)


def test_forward_ad():
    """Dual tensors, with the reverse mode recording at the same time; never a zero tangent."""
    args, tangent = tensors(), torch.randn(2, 6, dtype=torch.float64)

    def dual(f):
        def run(input, weight, channel, filter, spatial, kernel):
            weight = weight.clone().requires_grad_()
            with forward_ad.dual_level():
                output = f(input, weight, channel, filter, forward_ad.make_dual(spatial, tangent), kernel)
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
    input, weight, *attentions = tensors()
    direction = torch.randn_like(weight)

    def scalar(f):
        def run(q):
            scaled = [a * (1 + q[0] * i) for i, a in enumerate(attentions)]
            return f(input * q[1], weight + 0.1 * q[2] * direction, *scaled).pow(3).sum()

        return hessian(run)

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
    """Input and weight in low precision, attentions left in float32, the gradient in the parameters' dtype."""
    args = tensors(torch.float32)
    args[1].requires_grad_()
    with torch.autocast("cpu", dtype):
        output = ours(*args)
    low = [t.to(dtype) if i < 2 else t for i, t in enumerate(args)]
    assert output.dtype == dtype
    assert torch.equal(output, ours(*low))
    output.float().sum().backward()
    assert args[1].grad.dtype == torch.float32 and args[1].grad.isfinite().all()
    with torch.autocast("cpu", dtype):
        assert ours(*tensors()).dtype == torch.float64
        layer = flexor.nn.ODConv2d(4, 6, 3, padding=1)
        layer(torch.randn(2, 4, 5, 6)).sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in layer.parameters())


@pytest.mark.compiles
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@pytest.mark.parametrize("needs", [(True,) * 6, (True, False, True, True, False, True), (False, True) + (False,) * 4])
def test_opcheck(needs):
    args = tensors(torch.float32)
    torch.library.opcheck(OP, (*[t.clone().requires_grad_() for t in args], *GEOMETRY, None))
    grad_output = torch.randn_like(ours(*args))
    torch.library.opcheck(BACKWARD, (grad_output, *args, *GEOMETRY, needs, None))
    torch.library.opcheck(OP, (args[0], args[1][:1].clone(), None, args[3], None, None, *GEOMETRY, None))


class Layer(nn.Module):
    """Several kernels in two dimensions, one kernel in one, each at its own temperature."""

    def __init__(self):
        super().__init__()
        self.first = flexor.nn.ODConv2d(4, 6, 3, padding=1, kernel_num=2)
        self.last = flexor.nn.ODConv1d(6, 5, 3, padding=1, kernel_num=1, bias=True)
        self.last.update_temperature(5.0)

    def forward(self, input: Tensor) -> Tensor:
        return self.last(self.first(input.relu()).mean(2)).sin()


@pytest.mark.compiles
def test_compile():
    """One graph, forward and backward, with sizes that change."""
    torch._dynamo.reset()
    layer = Layer()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in ((3, 4, 5, 6), (4, 4, 7, 4)):
        input = torch.randn(size, requires_grad=True)
        wanted = [input, *layer.parameters()]
        found, expected = (torch.autograd.grad(run(input).sum(), wanted) for run in (compiled, layer))
        for a, b in zip(found, expected, strict=True):
            assert_close(a, b, 1e-4)


@pytest.mark.compiles
def test_inductor():
    """channels_last in, channels_last out."""
    torch._dynamo.reset()
    layer = flexor.nn.ODConv2d(4, 6, 3, kernel_num=2).eval()
    input = torch.randn(3, 4, 5, 6).to(memory_format=torch.channels_last)
    with torch.no_grad():
        found, expected = torch.compile(layer, fullgraph=True)(input), layer(input)
    assert found.stride() == expected.stride()
    assert_close(found, expected, 1e-5)


@pytest.mark.compiles
def test_annealing_does_not_recompile_for_ever():
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    counter, layer, input = CompileCounter(), flexor.nn.ODConv2d(4, 6, 3).eval(), torch.randn(3, 4, 5, 6)
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    for iteration in range(20):
        layer.update_temperature(flexor.nn.annealed_temperature(iteration, 18))
        assert_close(compiled(input), layer(input), 1e-6)
    assert counter.frame_count <= 3


@pytest.mark.compiles
def test_compile_under_autocast():
    torch._dynamo.reset()
    layer, input = Layer().eval(), torch.randn(2, 4, 5, 6)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        assert_close(compiled(input), layer(input), 2e-2)


@pytest.mark.compiles
@pytest.mark.parametrize("strict", [True, False])
def test_export(strict):
    layer, auto = Layer().eval(), torch.export.Dim.AUTO
    shapes = ({0: auto, 2: auto, 3: auto},)
    program = torch.export.export(layer, (torch.randn(2, 4, 5, 6),), strict=strict, dynamic_shapes=shapes)
    assert [node.target for node in program.graph.nodes].count(OP) == 2
    for size in ((2, 4, 5, 6), (3, 4, 7, 4)):
        input = torch.randn(size)
        assert_close(program.module()(input), layer(input), 1e-6)


@pytest.mark.compiles
def test_trace_script_and_symbolic_trace():
    layer, input = Layer().eval(), torch.randn(3, 4, 7, 4)
    traced = torch.jit.trace(layer, torch.randn(2, 4, 5, 6), check_trace=False)
    assert "flexor::odconv2d" in str(traced.inlined_graph)
    assert_close(traced(input), layer(input), 1e-6)
    assert OP in [node.target for node in torch.fx.symbolic_trace(layer.first).graph.nodes]


@pytest.mark.compiles
@pytest.mark.filterwarnings("ignore:.torch.jit.(load|save):DeprecationWarning")
@pytest.mark.parametrize(
    ("kind", "options"),
    [("ODConv2d", {}), ("ODConv2d", {"groups": 4}), ("ODConv1d", {"kernel_num": 1, "norm": "ln", "bias": True})],
    ids=["plain", "depthwise", "one-dimension"],
)
def test_script(kind, options, tmp_path):
    """TorchScript, saved and loaded, trains with the eager layer's numbers; the temperature stays an attribute."""
    layer = getattr(flexor.nn, kind)(4, 4, 3, padding=1, **options)
    layer.update_temperature(3.0)
    torch.jit.script(layer).save(tmp_path / "layer.pt")
    scripted = torch.jit.load(tmp_path / "layer.pt")
    for size in ((3, 4, 5, 6), (1, 4, 6, 5)):
        input = torch.randn(size[: layer.weight.dim() - 1])
        assert_close(scripted(input), layer(input), 1e-6)
    found, expected = (torch.autograd.grad(run(input).sum(), list(run.parameters())) for run in (scripted, layer))
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, 1e-5)
    scripted.attention.temperature = 1.0
    layer.update_temperature(1.0)
    assert_close(scripted(input), layer(input), 1e-6)


ONNX = {
    "one-kernel-depthwise": {"kernel_size": 3, "padding": 1, "groups": 8, "stride": 2, "kernel_num": 1},
    "one-tap-one-kernel": {"kernel_size": 1, "kernel_num": 1, "groups": 2, "stride": 2},
    "geometry": {"kernel_size": (3, 2), "padding": (2, 1), "groups": 2, "stride": (2, 1), "dilation": (1, 3)},
}


@pytest.mark.compiles
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("options", ONNX.values(), ids=ONNX.keys())
def test_onnx(options):
    """The exported model has standard operators only, and takes other batches and sizes."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    from flexor.onnx import translation_table

    layer = flexor.nn.ODConv2d(8, 8, **options).eval()
    dynamic = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    program = torch.onnx.export(
        layer,
        (torch.randn(2, 8, 9, 7),),
        dynamo=True,
        opset_version=19,
        custom_translation_table=translation_table(),
        dynamic_shapes=(dynamic,),
        verbose=False,
    )
    onnx.checker.check_model(program.model_proto, full_check=True)
    assert {node.domain for node in program.model_proto.graph.node} <= {"", "ai.onnx"}
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    for input in (torch.randn(2, 8, 9, 7), torch.randn(1, 8, 12, 8), torch.randn(5, 8, 8, 9)):
        (found,) = session.run(None, {session.get_inputs()[0].name: input.numpy()})
        assert_close(torch.tensor(found), layer(input), 1e-5)


def test_double_backward_reaches_every_tensor():
    transforms.assert_same_double_backward(ours, twin, tensors())


def test_deterministic_algorithms():
    transforms.assert_deterministic(ours, tensors(torch.float32))


def test_grad_fn_has_the_ops_name():
    args = [t.requires_grad_() for t in tensors()]
    assert type(ours(*args).grad_fn).__name__ == "Odconv2dBackward"
