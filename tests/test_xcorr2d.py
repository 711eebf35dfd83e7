# SPDX-License-Identifier: Apache-2.0
"""xcorr2d and xcorr2d_depthwise on every backend: values, gradients, layouts, edges, errors."""

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from flexor import ops, reference
from flexor.testing import assert_close, running, ways

# Relative to the largest magnitude of the exact result.
LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
DTYPE = pytest.mark.parametrize("dtype", LIMITS, ids=str)


class Case(NamedTuple):
    batch: int
    channels: int
    height: int
    width: int
    kernel: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    kernels: int = 3  # a sample, of xcorr2d


CASES = {
    "pixel": Case(1, 1, 1, 1, (1, 1), kernels=1),
    "odd": Case(2, 7, 7, 9, (3, 3), (1, 1)),
    "wide": Case(1, 3, 4, 129, (3, 5), (0, 2)),
    "tall": Case(1, 4, 63, 7, (5, 2), kernels=5),
    "siamrpn": Case(2, 20, 20, 20, (4, 4), kernels=10),
    "siamrpn++": Case(2, 17, 31, 31, (7, 7), kernels=1),
    "siamrpn++-5": Case(3, 16, 31, 31, (5, 5)),
    "dkd": Case(2, 33, 24, 20, (7, 7), (3, 3), kernels=17),
    "template-is-the-search": Case(3, 5, 6, 8, (6, 8)),
    "larger-than-the-input": Case(2, 3, 3, 4, (5, 7), (2, 3)),
    "mostly-padding": Case(1, 2, 5, 4, (3, 2), (6, 9)),
    "one-tap": Case(2, 6, 9, 18, (1, 1)),
    "nine-taps-wide": Case(1, 3, 9, 40, (2, 9), (1, 0)),
    "long-kernel": Case(1, 2, 40, 33, (19, 21), (4, 3)),
    "many-channels": Case(1, 129, 6, 5, (3, 3), (1, 1), kernels=33),
}
CASE = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
OPS = ("xcorr2d", "xcorr2d_depthwise")
OP = pytest.mark.parametrize("op", OPS)
WAY = pytest.mark.parametrize(("op", "way"), [(op, way) for op in OPS for way in ways(op)], ids=str)
SMALL = Case(2, 4, 6, 7, (3, 2), (1, 2))


def tensors(op, case, dtype=torch.float64, device="cpu"):
    """Input and kernel, rounded to dtype."""
    b, c = case.batch, case.channels
    kernel = (b, case.kernels, c, *case.kernel) if op == "xcorr2d" else (b, c, *case.kernel)
    made = torch.randn(b, c, case.height, case.width), torch.randn(kernel) / (case.kernel[0] * case.kernel[1]) ** 0.5
    return [t.to(device, dtype) for t in made]


def oracle(op, input, kernel, padding):
    """One convolution a sample."""
    groups = 1 if op == "xcorr2d" else input.shape[1]
    kernel = kernel if op == "xcorr2d" else kernel[:, :, None]
    each = [F.conv2d(a[None], b, None, 1, padding, 1, groups) for a, b in zip(input, kernel, strict=True)]
    return torch.cat(each)


def gradients(function, inputs, grad_output=None):
    leaves = [t.detach().requires_grad_() for t in inputs]
    output = function(*leaves)
    grad_output = torch.ones_like(output) if grad_output is None else grad_output.to(output.device, output.dtype)
    return torch.autograd.grad(output, leaves, grad_output)


@CASE
@OP
def test_twin_is_a_convolution_of_every_sample(op, case):
    args = tensors(op, case)
    expected = oracle(op, *args, case.padding)
    twin = getattr(reference, op)
    assert_close(twin(*args, case.padding), expected, 1e-12)
    grad_output = torch.randn_like(expected)
    exact = gradients(lambda *t: oracle(op, *t, case.padding), args, grad_output)
    through_ops = gradients(lambda *t: getattr(ops, op)(*t, case.padding, backend="reference"), args, grad_output)
    through_autograd = gradients(lambda *t: twin(*t, case.padding), args, grad_output)
    for a, b, true in zip(through_ops, through_autograd, exact, strict=True):
        assert_close(a, true, 1e-12)
        assert_close(b, true, 1e-12)


@DTYPE
@CASE
@WAY
def test_forward_and_backward(op, way, case, dtype):
    args = tensors(op, case, dtype, way.device)
    exact = [t.double().cpu() for t in args]
    expected = oracle(op, *exact, case.padding)
    grad_output = torch.randn_like(expected).to(dtype)
    with running(way):
        output = getattr(ops, op)(*args, case.padding)
        grads = gradients(lambda *t: getattr(ops, op)(*t, case.padding), args, grad_output)
    assert output.dtype == dtype and output.is_contiguous()
    assert_close(output, expected, LIMITS[dtype])
    true = gradients(lambda *t: oracle(op, *t, case.padding), exact, grad_output)
    for what, grad, expected in zip(("input", "kernel"), grads, true, strict=True):
        assert grad.dtype == dtype
        assert_close(grad, expected, LIMITS[dtype], what=what)


@pytest.mark.parametrize("wanted", [0, 1])
@WAY
def test_backward_of_one(op, way, wanted):
    args = tensors(op, SMALL, torch.float32, way.device)
    leaves = [t.clone().requires_grad_(i == wanted) for i, t in enumerate(args)]
    with running(way):
        getattr(ops, op)(*leaves, SMALL.padding).sum().backward()
        both = gradients(lambda *t: getattr(ops, op)(*t, SMALL.padding), args)
    assert leaves[1 - wanted].grad is None
    assert torch.equal(leaves[wanted].grad, both[wanted])


@pytest.mark.parametrize("case", ["odd", "siamrpn++", "dkd", "long-kernel", "many-channels"])
@WAY
def test_threads_do_not_change_bits(op, way, case):
    if way.backend != "cpu":
        pytest.skip("promised of the CPU's kernels")
    case = CASES[case]
    args = tensors(op, case, torch.float32)
    results = []
    for threads in (1, 2):
        with running(way, threads):
            output = getattr(ops, op)(*args, case.padding)
            grads = gradients(lambda *t: getattr(ops, op)(*t, case.padding), args, torch.cos(output))
            results.append([output, *grads])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@WAY
def test_gradcheck(op, way):
    case = Case(2, 2, 3, 4, (2, 3), (1, 0), kernels=2)
    leaves = [t.requires_grad_() for t in tensors(op, case, device=way.device)]
    with running(way):
        call = lambda *t: getattr(ops, op)(*t, case.padding)  # noqa: E731
        assert torch.autograd.gradcheck(call, leaves, check_forward_ad=True, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(call, leaves, fast_mode=True)


@WAY
def test_strides(op, way):
    """Slices, transposed, expanded and overlapping tensors, channels_last: the same numbers, the layout kept."""
    args = tensors(op, SMALL, torch.float32, way.device)
    call = lambda *t: getattr(ops, op)(*t, SMALL.padding)  # noqa: E731
    true = lambda *t: oracle(op, *(u.double().cpu() for u in t), SMALL.padding)  # noqa: E731
    last = [t.to(memory_format=torch.channels_last) if t.dim() == 4 else t for t in args]
    overlapping = args[0].flatten().as_strided(args[0].shape, (7, 3, 2, 1))
    layouts = {
        "sliced": [F.pad(t, (1, 2))[..., 1:-2] for t in args],
        "turned": [t.movedim(-1, 0).contiguous().movedim(0, -1) for t in args],
        "last": last,
        "stepped": [torch.stack((t, t + 1), -1)[..., 0] for t in args],
        "expanded": [t[:1].expand_as(t) for t in args],
        "overlapping": [overlapping, args[1]],
    }
    with running(way):
        for name, changed in layouts.items():
            assert_close(call(*changed), true(*changed), 1e-5, what=name)
            grad_output = torch.ones((), device=way.device).expand_as(call(*changed))
            for a, b in zip(gradients(call, changed, grad_output), gradients(true, changed), strict=True):
                assert_close(a, b, 1e-5, what=name)
        assert call(*last).is_contiguous(memory_format=torch.channels_last)
        leaf = last[0].clone(memory_format=torch.preserve_format).requires_grad_()
        call(leaf, last[1]).sum().backward()
        assert_close(leaf.grad, gradients(true, args)[0], 1e-5)


@WAY
def test_empty(op, way):
    args = tensors(op, SMALL, torch.float32, way.device)
    with running(way):
        none = [t[:0].requires_grad_() for t in args]
        output = getattr(ops, op)(*none, SMALL.padding)
        output.sum().backward()
        assert output.shape == (0, *oracle(op, *(t.cpu() for t in args), SMALL.padding).shape[1:])
        assert [t.grad.shape for t in none] == [t.shape for t in none]
        nothing = [args[0][:, :, :0].requires_grad_(), args[1].clone().requires_grad_()]
        output = getattr(ops, op)(*nothing, (2, 2))  # 0 rows of input, all of it padding
        output.sum().backward()
        assert output.shape[2] == 2 and output.eq(0).all() and nothing[1].grad.eq(0).all()


@WAY
def test_nan_and_infinity(op, way):
    """They reach what they are multiplied with and nothing else."""
    args = tensors(op, CASES["odd"], torch.float32, way.device)
    args[0][0, 2, 3, 4], args[0][1, 1, 0, 8] = torch.nan, torch.inf
    args[1][1, -1, ..., 1, 1] = torch.nan
    call = lambda *t: getattr(ops, op)(*t, (1, 1))  # noqa: E731
    with running(way):
        output = call(*args)
        grads = gradients(call, args)
    expected = getattr(reference, op)(*args, (1, 1))
    assert_close(output, expected, 1e-5)
    assert torch.equal(output.isnan(), expected.isnan()) and output.isnan().any() and output[0].isfinite().any()
    exact = gradients(lambda *t: getattr(reference, op)(*t, (1, 1)), args)
    assert all(torch.equal(a.isfinite(), b.isfinite()) for a, b in zip(grads, exact, strict=True))


def bad(**changes):
    return {"input": torch.zeros(2, 6, 5, 5), "kernel": torch.zeros(2, 6, 3, 3), "padding": 0} | changes


ERRORS = {
    "input-rank": (bad(input=torch.zeros(6, 5, 5)), ValueError, r"input must have 4 dimensions .*got \(6, 5, 5\)"),
    "input-none": (bad(input=None), TypeError, "input must be a tensor, got NoneType"),
    "input-dtype": (bad(input=torch.zeros(2, 6, 5, 5).int()), TypeError, "got torch.int32"),
    "kernel-rank": (bad(kernel=torch.zeros(2, 6, 3)), ValueError, r"kernel must have 4 dimensions \(B, C, kh, kw\)"),
    "kernel-dtype": (bad(kernel=torch.zeros(2, 6, 3, 3).double()), TypeError, "kernel must have input's dtype"),
    "kernel-empty": (bad(kernel=torch.zeros(2, 6, 0, 3)), ValueError, "no empty dimension but the batch"),
    "batch": (
        bad(kernel=torch.zeros(1, 6, 3, 3)),
        ValueError,
        r"kernel.shape\[0\] must be input.shape\[0\] = 2, as every sample has its own kernels, got 1 "
        r"\(input \(2, 6, 5, 5\), kernel \(1, 6, 3, 3\)\)",
    ),
    "channels": (
        bad(kernel=torch.zeros(2, 4, 3, 3)),
        ValueError,
        r"kernel.shape\[1\] must be input.shape\[1\] = 6, got",
    ),
    "too-large": (
        bad(kernel=torch.zeros(2, 6, 3, 8), padding=(0, 1)),
        ValueError,
        r"kernel 3x8 must fit into the padded input 5x7 \(input 5x5, padding \(0, 1\)\)",
    ),
    "padding-negative": (bad(padding=-1), ValueError, "padding must be an integer not below 0, .* got -1"),
    "padding-three": (bad(padding=(1, 1, 1)), ValueError, r"got \(1, 1, 1\)"),
    "padding-float": (bad(padding=0.5), ValueError, "got 0.5"),
    "device": (bad(kernel=torch.zeros(2, 6, 3, 3, device="meta")), ValueError, "on one device, got input on cpu"),
    "backend-cuda": (bad(backend="cuda"), RuntimeError, "backend 'cuda' cannot run"),
}


@pytest.mark.parametrize(("arguments", "kind", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_errors(arguments, kind, message):
    for way in ways("xcorr2d_depthwise"):
        if way.device == "cpu":
            with running(way), pytest.raises(kind, match="xcorr2d_depthwise: .*" + message):
                ops.xcorr2d_depthwise(**arguments)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 6, 3, 3), r"kernel must have 5 dimensions \(B, K, C, kh, kw\), got \(2, 6, 3, 3\)"),
        ((2, 0, 6, 3, 3), r"kernel must have no empty dimension but the batch, got \(2, 0, 6, 3, 3\)"),
        ((4, 1, 6, 3, 3), r"kernel.shape\[0\] must be input.shape\[0\] = 2, .* got 4"),
        ((2, 6, 1, 3, 3), r"kernel.shape\[2\] must be input.shape\[1\] = 6, got 1"),
        ((2, 1, 6, 9, 3), r"kernel 9x3 must fit into the padded input 7x7"),
    ],
)
def test_errors_of_many_kernels(shape, message):
    for way in ways("xcorr2d"):
        if way.device == "cpu":
            with running(way), pytest.raises(ValueError, match="xcorr2d: " + message):
                ops.xcorr2d(torch.zeros(2, 6, 5, 5), torch.zeros(shape), 1)


def test_sizes_that_no_machine_has():
    """Checked arithmetic on meta tensors: nothing is allocated."""
    big = torch.empty(1, device="meta").expand(2**10, 1, 2**20, 2**20)
    kernel = torch.empty(1, device="meta").expand(2**10, 2**20, 1, 1, 1)
    with pytest.raises(ValueError, match=r"output .* would have .* bytes, more than a 64-bit size can hold"):
        ops.xcorr2d(big, kernel)
    assert ops.xcorr2d_depthwise(big, kernel[:, 0]).shape == big.shape
