# SPDX-License-Identifier: Apache-2.0
"""conv3x3 on every backend: values, gradients, layouts, edges, errors; under transformations; its module."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
import transforms
from flexor import ops, reference
from flexor.nn import Conv3x3
from flexor.ops import conv3x3
from flexor.testing import assert_close, running, ways
from torch import func, nn

LIMITS = {torch.float64: 1e-10, torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
# (B, C, O, H, W), dilation
CASES = {
    "pixel": ((1, 1, 1, 1, 1), 1),
    "odd": ((2, 3, 5, 7, 9), 2),
    "larger dilation than image": ((1, 4, 3, 5, 6), 9),
    "wide": ((1, 5, 4, 6, 300), 40),
    "wider than a task at one period": ((1, 3, 4, 3, 420), 100),
    "blocks of channels": ((1, 130, 20, 9, 63), 1),
    "dcpose": ((2, 64, 153, 24, 18), 15),
    "hrnet": ((1, 48, 48, 17, 13), 1),
    "one vector": ((2, 16, 16, 8, 8), 3),
}
CASE = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
WAY = pytest.mark.parametrize("way", ways("conv3x3"), ids=str)
DTYPE = pytest.mark.parametrize("dtype", LIMITS, ids=str)
ARGS = ((2, 3, 4, 5, 6), 2)


def tensors(case, dtype=torch.float64):
    (b, c, o, h, w), _ = case
    made = torch.randn(b, c, h, w), torch.randn(o, c, 3, 3) / (9 * c) ** 0.5, torch.randn(o)
    return [t.to(dtype) for t in made]


def gradients(function, inputs, grad_output):
    leaves = [t.detach().requires_grad_() for t in inputs]
    output = function(*leaves)
    return output, torch.autograd.grad(output, leaves, grad_output.to(output.dtype))


@DTYPE
@CASE
@WAY
def test_values_and_gradients(way, case, dtype):
    inputs, dilation = tensors(case, dtype), case[1]
    exact = [t.double() for t in inputs]
    grad_output = torch.randn_like(exact[0][:, :1]).expand(-1, case[0][2], -1, -1).to(dtype).double()
    output, grads = gradients(lambda *t: F.conv2d(*t, padding=dilation, dilation=dilation), exact, grad_output)
    with running(way):
        found, ours = gradients(partial(conv3x3, dilation=dilation), inputs, grad_output)
        with torch.no_grad():
            assert torch.equal(conv3x3(*inputs, dilation), found)
    plain, twin = gradients(partial(F.conv2d, padding=dilation, dilation=dilation), inputs, grad_output)
    assert_close(found, output.detach(), LIMITS[dtype], plain)
    for a, b, c in zip(ours, grads, twin, strict=True):
        assert_close(a, b, LIMITS[dtype], c)


@WAY
def test_threads_layouts_and_strides(way):
    case = CASES["odd"]
    input, weight, bias = tensors(case, torch.float32)
    grad_output = torch.randn(2, 5, 7, 9)
    with running(way, threads=1):
        first, grads = gradients(partial(conv3x3, dilation=2), (input, weight, bias), grad_output)
    with running(way, threads=2):
        second, again = gradients(partial(conv3x3, dilation=2), (input, weight, bias), grad_output)
        if way.backend == "cpu":
            assert torch.equal(first, second) and all(torch.equal(a, b) for a, b in zip(grads, again, strict=True))
        last = conv3x3(input.contiguous(memory_format=torch.channels_last), weight, bias, 2)
        assert last.is_contiguous(memory_format=torch.channels_last)
        sliced = torch.randn(2, 6, 7, 18)[:, ::2, :, ::2].copy_(input)
        turned = weight.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
        for found in (last, conv3x3(sliced, turned, bias, 2)):
            assert_close(found, first.detach(), 1e-6)
        shared = input[:1].expand(3, -1, -1, -1)
        assert_close(conv3x3(shared, weight, bias, 2)[2], conv3x3(input[:1], weight, bias, 2)[0], 1e-6)


@WAY
def test_empty_batch_and_what_is_not_finite(way):
    weight = torch.randn(4, 3, 3, 3)
    with running(way):
        output, (grad_input, grad_weight) = gradients(
            conv3x3, (torch.empty(0, 3, 5, 6), weight), torch.empty(0, 4, 5, 6)
        )
        assert output.shape == (0, 4, 5, 6) and grad_input.shape == (0, 3, 5, 6) and not grad_weight.any()
        input = torch.randn(1, 3, 9, 9)
        clean = conv3x3(input, weight)
        input[0, 1, 0, 0] = torch.nan
        found = conv3x3(input, weight)
        assert found[:, :, :2, :2].isnan().all()
        assert torch.equal(found[:, :, 4:], clean[:, :, 4:]) and torch.equal(found[..., 4:], clean[..., 4:])


def test_gradcheck_and_double_backward():
    leaves = [t.requires_grad_() for t in tensors(((1, 2, 3, 4, 3), 1))]
    for way in ways("conv3x3"):
        with running(way):
            assert torch.autograd.gradcheck(conv3x3, leaves)
    assert torch.autograd.gradgradcheck(conv3x3, leaves)
    transforms.assert_same_double_backward(
        partial(conv3x3, dilation=2), partial(reference.conv3x3, dilation=2), tensors(ARGS)
    )


def test_transformations():
    ours, twin = partial(ops.conv3x3, dilation=2), partial(reference.conv3x3, dilation=2)
    args = tensors(ARGS)
    transforms.assert_same(ours, twin, lambda f: func.grad(transforms.loss(f), argnums=(0, 1, 2)), *args)
    transforms.assert_same(ours, twin, lambda f: lambda *p: func.jvp(f, p, p), *args)
    for in_dims in ((0, None, None), (0, 0, 0), (None, 1, None), (1, None, 0)):
        stacked = [
            t if d is None else torch.stack([t, t.flip(0), 2 * t], d) for t, d in zip(args, in_dims, strict=True)
        ]
        transforms.assert_same(ours, twin, lambda f, d=in_dims: func.vmap(f, d), *stacked)
        transforms.assert_same(
            ours, twin, lambda f, d=in_dims: func.vmap(func.grad(transforms.loss(f), argnums=(0, 1)), d), *stacked
        )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert conv3x3(*tensors(ARGS, torch.float32)).dtype == torch.bfloat16
        assert conv3x3(*args).dtype == torch.float64


@pytest.mark.compiles
def test_opcheck_compile_and_export():
    args = [t.requires_grad_() for t in tensors(ARGS, torch.float32)]
    torch.library.opcheck(torch.ops.flexor.conv3x3.default, (*args, 2, None))
    found = torch.compile(partial(conv3x3, dilation=2), fullgraph=True, backend="aot_eager")(*args)
    assert_close(found, conv3x3(*args, 2).detach(), 1e-6)
    layer = Conv3x3(8, 8).eval()
    program = torch.export.export(layer, (torch.randn(1, 8, 16, 16),))
    assert any(node.target == torch.ops.aten.conv2d.default for node in program.graph.nodes)


def test_module_is_a_convolution():
    ours, plain = Conv3x3(12, 9, dilation=3), nn.Conv2d(12, 9, 3, padding=3, dilation=3)
    assert isinstance(ours, nn.Conv2d) and ours.load_state_dict(plain.state_dict())
    for size in ((2, 12, 20, 21), (1, 12, 5, 5)):
        input = torch.randn(size)
        assert_close(ours(input), plain(input).detach(), 5e-6)


@pytest.mark.parametrize(
    ("channels", "size", "dtype", "fast"),
    [
        (8, 16, torch.float32, True),
        (7, 16, torch.float32, False),
        (8, 15, torch.float32, False),
        (8, 16, torch.float64, False),
    ],
)
def test_module_takes_the_faster_way(channels, size, dtype, fast, monkeypatch):
    calls = []
    monkeypatch.setattr("flexor.nn.conv3x3.conv3x3", lambda *args: (calls.append(1), conv3x3(*args))[1])
    Conv3x3(channels, 8).to(dtype)(torch.randn(1, channels, size, size, dtype=dtype))
    assert bool(calls) == fast


def test_errors():
    input, weight, bias = torch.zeros(1, 3, 4, 4), torch.zeros(2, 3, 3, 3), torch.zeros(2)
    with pytest.raises(
        ValueError, match=r"conv3x3: weight.shape must be \(O, input.shape\[1\], 3, 3\) = \(2, 3, 3, 3\)"
    ):
        conv3x3(input, weight[:, :2])
    with pytest.raises(ValueError, match=r"conv3x3: bias.shape must be \(weight.shape\[0\],\) = \(2,\), got \(3,\)"):
        conv3x3(input, weight, torch.zeros(3))
    with pytest.raises(ValueError, match="conv3x3: dilation must be a positive integer, got 0"):
        conv3x3(input, weight, bias, 0)
    with pytest.raises(ValueError, match=r"conv3x3: input must have 4 dimensions \(B, C, H, W\), got \(3, 4, 4\)"):
        conv3x3(input[0], weight)
    with pytest.raises(ValueError, match="conv3x3: input and weight must have no empty dimension but the batch"):
        conv3x3(input[:, :, :0], weight)
    with pytest.raises(TypeError, match=r"conv3x3: weight must have input's dtype torch.float32, got torch.float64"):
        conv3x3(input, weight.double())
    with pytest.raises(
        TypeError, match=r"conv3x3: input must be float64, float32, float16 or bfloat16, got torch.int64"
    ):
        conv3x3(input.long(), weight.long())
    with pytest.raises(RuntimeError, match="conv3x3: backend 'triton' cannot run"):
        conv3x3(input, weight, backend="triton")
