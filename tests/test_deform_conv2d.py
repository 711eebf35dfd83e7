# SPDX-License-Identifier: Apache-2.0
"""deform_conv2d on every backend: values, gradients, layouts, edges, errors."""

from pathlib import Path
from typing import NamedTuple

import numpy
import pytest
import torch
from flexor import ops, reference
from flexor.testing import assert_close, error, running, ways

WAYS = ways("deform_conv2d")
WAY = pytest.mark.parametrize("way", WAYS, ids=str)
# Relative to the largest magnitude of the exact result.
LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
GOLDEN = numpy.load(Path(__file__).parent / "data" / "deform_conv2d_golden.npz")


class Case(NamedTuple):
    n: int
    c: int
    o: int
    h: int
    w: int
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    dg: int = 1
    mask: bool = True
    bias: bool = True
    spread: float = 2.0

    @property
    def geometry(self):
        return self.stride, self.padding, self.dilation

    def tensors(self, dtype=torch.float64, device="cpu"):
        """Input, offset, weight, bias, mask: rounded to dtype, so that every dtype sees the same numbers."""
        size = [
            (s + 2 * p - d * (k - 1) - 1) // t + 1
            for s, p, d, k, t in zip(
                (self.h, self.w), self.padding, self.dilation, self.kernel, self.stride, strict=True
            )
        ]
        taps = self.kernel[0] * self.kernel[1]
        made = (
            torch.randn(self.n, self.c, self.h, self.w),
            self.spread * torch.randn(self.n, 2 * self.dg * taps, *size),
            torch.randn(self.o, self.c // self.groups, *self.kernel) / (self.c // self.groups * taps) ** 0.5,
            torch.randn(self.o) if self.bias else None,
            torch.randn(self.n, self.dg * taps, *size) if self.mask else None,
        )
        return [None if t is None else t.to(device, dtype) for t in made]


CASES = {
    "pixel": Case(1, 1, 1, 1, 1),
    "odd": Case(2, 7, 5, 7, 9),
    "wide": Case(1, 3, 4, 5, 129),
    "tall": Case(1, 4, 3, 63, 7),
    "channels": Case(1, 64, 63, 7, 7),
    "depthwise": Case(2, 17, 17, 12, 9, groups=17, dg=17),
    "pose": Case(1, 17, 17, 24, 18, padding=(3, 3), dilation=(3, 3), dg=17),
    "four-a-group": Case(2, 48, 48, 12, 9, padding=(3, 3), dilation=(3, 3), dg=12),
    "eight-a-group": Case(1, 64, 64, 16, 16, dg=8),
    "groups-and-dg": Case(1, 12, 6, 9, 11, groups=3, dg=2),
    "strided": Case(2, 8, 16, 15, 13, stride=(2, 3), padding=(0, 2)),
    "kernel-5x2": Case(1, 6, 4, 11, 8, kernel=(5, 2), padding=(2, 1), dilation=(1, 2)),
    "one-tap": Case(3, 5, 4, 6, 7, kernel=(1, 1), padding=(0, 0)),
    "no-mask": Case(1, 8, 8, 9, 9, mask=False, dg=2),
    "no-bias": Case(1, 8, 8, 9, 9, bias=False),
    "far": Case(1, 4, 4, 8, 8, spread=40.0),
    "still": Case(2, 8, 8, 10, 10, spread=0.0),
}
CASE = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
SMALL = Case(2, 4, 6, 5, 6, groups=2, dg=2)


def call(tensors, case):
    input, offset, weight, bias, mask = tensors
    return ops.deform_conv2d(input, offset, weight, bias, *case.geometry, mask)


def exact(tensors, case):
    input, offset, weight, bias, mask = (None if t is None else t.double().cpu() for t in tensors)
    return reference.deform_conv2d(input, offset, weight, bias, *case.geometry, mask)


def gradients(function, tensors, grad_output):
    leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
    output = function(leaves)
    present = [t for t in leaves if t is not None]
    return torch.autograd.grad(output, present, grad_output.to(output.device, output.dtype))


@pytest.mark.parametrize("name", sorted({key.split("/")[0] for key in GOLDEN if "/" in key}))
@WAY
def test_torchvisions_numbers(way, name):
    """Against what torchvision's own kernels wrote; see data/make_deform_conv2d_golden.py."""
    names = ("input", "offset", "weight", "bias", "mask")
    dtype = torch.float64
    tensors = [torch.tensor(GOLDEN[k], dtype=dtype, device=way.device) if (k := f"{name}/{n}") in GOLDEN else None
               for n in names]  # fmt: skip
    geometry = [tuple(pair) for pair in GOLDEN[f"{name}/geometry"].tolist()]
    with running(way):
        leaves = [None if t is None else t.requires_grad_() for t in tensors]
        output = ops.deform_conv2d(*leaves[:4], *geometry, leaves[4])
        output.backward(torch.tensor(GOLDEN[f"{name}/grad_output"], dtype=dtype, device=way.device))
    assert_close(output, torch.tensor(GOLDEN[f"{name}/output"]), LIMITS[dtype])
    for key, leaf in zip(names, leaves, strict=True):
        if leaf is not None:
            assert_close(leaf.grad, torch.tensor(GOLDEN[f"{name}/grad_{key}"]), LIMITS[dtype], what=key)


@CASE
def test_torchvision_itself(case):
    torchvision_ops = pytest.importorskip("torchvision.ops")
    input, offset, weight, bias, mask = case.tensors()
    theirs = torchvision_ops.deform_conv2d(input, offset, weight, bias, *case.geometry, mask)
    assert_close(ops.deform_conv2d(input, offset, weight, bias, *case.geometry, mask), theirs, 1e-10)


def test_whole_steps_are_a_convolution():
    input, offset, weight, bias, _ = SMALL.tensors()
    expected = torch.nn.functional.conv2d(input, weight, bias, *SMALL.geometry, groups=SMALL.groups)
    assert_close(reference.deform_conv2d(input, 0 * offset, weight, bias, *SMALL.geometry), expected, 1e-12)


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@CASE
@WAY
def test_forward(way, case, dtype):
    tensors = case.tensors(dtype, way.device)
    with running(way):
        output = call(tensors, case)
    assert output.dtype == dtype and output.is_contiguous()
    baseline = reference.deform_conv2d(*tensors[:4], *case.geometry, tensors[4]) if dtype.itemsize == 2 else None
    assert_close(output, exact(tensors, case), 1e-3 if baseline is not None else LIMITS[dtype], baseline)


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@CASE
@WAY
def test_backward(way, case, dtype):
    tensors = case.tensors(dtype, way.device)
    grad_output = torch.randn_like(exact(tensors, case)).to(dtype)
    with running(way):
        found = gradients(lambda t: call(t, case), tensors, grad_output)
    expected = gradients(lambda t: exact(t, case), [None if t is None else t.double() for t in tensors], grad_output)
    for what, grad, true in zip(("input", "offset", "weight", "bias", "mask"), found, expected, strict=False):
        assert grad.dtype == dtype
        assert_close(grad, true, LIMITS[dtype], what=what)


@pytest.mark.parametrize("wanted", range(5))
@WAY
def test_backward_of_one(way, wanted):
    """Only the gradient that is asked for is computed, and it does not depend on the others."""
    dtype = torch.float32
    tensors = SMALL.tensors(dtype, way.device)
    leaves = [t.clone().requires_grad_(i == wanted) for i, t in enumerate(tensors)]
    with running(way):
        call(leaves, SMALL).square().sum().backward()
        grads = gradients(lambda t: call(t, SMALL).square().sum(), tensors, torch.tensor(1.0))
    assert [leaf.grad is not None for leaf in leaves] == [i == wanted for i in range(5)]
    assert_close(leaves[wanted].grad, grads[wanted], 1e-6)


@WAY
def test_mixed_precision(way):
    """Offsets and mask may stay float32 beside half-precision input."""
    tensors = [t.to(torch.bfloat16) for t in SMALL.tensors(torch.float32, way.device)]
    tensors[1], tensors[4] = tensors[1].float() + 0.013, tensors[4].float() + 0.013
    with running(way):
        output = call(tensors, SMALL)
        grads = gradients(lambda t: call(t, SMALL), tensors, torch.ones_like(output))
    assert_close(output, exact(tensors, SMALL), LIMITS[torch.bfloat16])
    assert [g.dtype for g in grads] == [t.dtype for t in tensors]


@pytest.mark.parametrize("case", ["odd", "four-a-group", "eight-a-group", "channels", "strided"])
@WAY
def test_threads_do_not_change_bits(way, case):
    if way.device != "cpu":
        pytest.skip("threads are the CPU's")
    case = CASES[case]
    tensors = case.tensors(torch.float32)
    grad_output = torch.randn_like(exact(tensors, case)).float()
    results = []
    for threads in (1, 2):
        with running(way, threads):
            results.append([call(tensors, case), *gradients(lambda t: call(t, case), tensors, grad_output)])
    if way.backend == "cpu":
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    else:
        assert all(error(a, b) < 1e-5 for a, b in zip(*results, strict=True))


@WAY
def test_gradcheck(way):
    case = Case(1, 2, 2, 3, 3, kernel=(2, 2), padding=(0, 0), dg=2)
    leaves = [t.requires_grad_() for t in case.tensors(device=way.device)]
    with running(way):
        # Atomics add in any order.
        assert torch.autograd.gradcheck(lambda *t: call(t, case), leaves, check_forward_ad=True, nondet_tol=1e-12)
        assert torch.autograd.gradgradcheck(lambda *t: call(t, case), leaves, fast_mode=True)


@WAY
def test_strides(way):
    """Slices, expanded and overlapping tensors, channels_last: the same numbers, the layout kept."""
    tensors = SMALL.tensors(torch.float32, way.device)
    expected = exact(tensors, SMALL)
    padded = [torch.nn.functional.pad(t, (1, 2)) for t in tensors]
    sliced = [t[..., 1:-2] for t in padded]
    turned = [t.movedim(-1, 0).contiguous().movedim(0, -1) for t in tensors]
    last = [t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in tensors]
    with running(way):
        for changed in (sliced, turned, last):
            output = call(changed, SMALL)
            assert_close(output, expected, 1e-5)
            grads = gradients(lambda t: call(t, SMALL), changed, torch.ones_like(output).expand_as(output))
            plain_grads = gradients(lambda t: call(t, SMALL), tensors, torch.ones_like(output))
            for grad, true in zip(grads, plain_grads, strict=True):
                assert_close(grad, true, 1e-5)
        assert call(last, SMALL).is_contiguous(memory_format=torch.channels_last)
        one_image = [t[:1].expand(3, *t.shape[1:]) if t.dim() == 4 and i != 2 else t for i, t in enumerate(tensors)]
        assert_close(call(one_image, SMALL), exact(one_image, SMALL), 1e-5)
        overlapping = tensors[0].flatten().as_strided(tensors[0].shape, (7, 3, 2, 1))
        assert_close(call([overlapping, *tensors[1:]], SMALL), exact([overlapping, *tensors[1:]], SMALL), 1e-5)


@WAY
def test_empty_batch(way):
    tensors = [t[:0] if t.dim() == 4 and i != 2 else t for i, t in enumerate(SMALL.tensors(torch.float32, way.device))]
    leaves = [t.requires_grad_() for t in tensors]
    with running(way):
        output = call(leaves, SMALL)
        output.sum().backward()
    assert output.shape == (0, 6, 5, 6)
    assert leaves[2].grad.eq(0).all() and leaves[3].grad.eq(0).all() and leaves[0].grad.shape == leaves[0].shape


@pytest.mark.parametrize("channels", [2, 16, 64])
@WAY
def test_nan_and_infinity(way, channels):
    case = Case(1, channels, 4, 9, 18, dg=2, spread=0.5)
    tensors = case.tensors(torch.float32, way.device)
    tensors[1][0, 4, 3, 5] = torch.nan  # dy of tap 2, first offset group
    tensors[1][0, 19, 6, 2] = torch.inf
    tensors[1][0, 22, 7, 17] = -torch.inf
    with running(way):
        output = call(tensors, case)
        grads = gradients(lambda t: call(t, case), tensors, torch.ones_like(output))
    nan = torch.zeros_like(output, dtype=torch.bool)
    nan[0, :, 3, 5] = True
    assert torch.equal(output.isnan(), nan)
    assert_close(output, exact(tensors, case), 1e-5)
    assert grads[0].isfinite().all(), "a NaN offset must not reach grad_input"
    assert grads[1][0, 4:6, 3, 5].isnan().all() and grads[1].isnan().sum() == 2  # of that tap's dy and dx, no other
    assert grads[4][0, 2, 3, 5].isnan() and grads[4].isnan().sum() == 1
    assert grads[1][0, 18:20, 6, 2].eq(0).all() and grads[1][0, 22:24, 7, 17].eq(0).all()
    assert grads[4][0, 11, 7, 17] == 0


@WAY
def test_edges(way):
    """Exactly -1 and exactly H read 0; the derivative is that of the cell to the right, also at -1."""
    input = torch.ones(1, 1, 4, 4, device=way.device)
    weight = torch.ones(1, 1, 1, 1, device=way.device)
    rows = torch.tensor([-1.5, -1.0, -0.5, 0.0, 3.0, 3.5, 4.0, 4.5, 1e9, -1e9], device=way.device)
    values, slopes = [], []
    for row in rows:
        offset = torch.zeros(1, 2, 4, 4, device=way.device)
        offset[0, 0, 0, 0] = row
        offset.requires_grad_()
        with running(way):
            output = ops.deform_conv2d(input, offset, weight)
            output[0, 0, 0, 0].backward()
        values.append(output[0, 0, 0, 0].item())
        slopes.append(offset.grad[0, 0, 0, 0].item())
    assert values == [0, 0, 0.5, 1, 1, 0.5, 0, 0, 0, 0]
    assert slopes == [0, 1, 1, 0, -1, -1, 0, 0, 0, 0]


def bad(**changes):
    """A call with some arguments changed, as (positional, keyword) for ops.deform_conv2d."""
    n, o, c = 2, 4, 6
    arguments = {
        "input": torch.zeros(n, c, 5, 5),
        "offset": torch.zeros(n, 18, 5, 5),
        "weight": torch.zeros(o, c, 3, 3),
        "bias": torch.zeros(o),
        "mask": torch.zeros(n, 9, 5, 5),
        "padding": 1,
    }
    return arguments | changes


ERRORS = {
    "input-rank": (bad(input=torch.zeros(6, 5, 5)), ValueError, r"input must have 4 dimensions .*got \(6, 5, 5\)"),
    "input-none": (bad(input=None), TypeError, "input must be a tensor, got NoneType"),
    "input-dtype": (bad(input=torch.zeros(2, 6, 5, 5, dtype=torch.int32)), TypeError, "got torch.int32"),
    "input-sparse": (bad(input=torch.zeros(2, 6, 5, 5).to_sparse()), TypeError, "strided tensor, got torch.sparse_coo"),
    "offset-rank": (bad(offset=torch.zeros(18, 5, 5)), ValueError, r"offset must have 4 dimensions"),
    "offset-channels": (
        bad(offset=torch.zeros(2, 20, 5, 5)),
        ValueError,
        r"offset.shape\[1\] must be 2\*offset_groups\*kh\*kw = 18, got 20 \(weight \(4, 6, 3, 3\), offset_groups 1\)",
    ),
    "offset-few": (bad(offset=torch.zeros(2, 4, 5, 5)), ValueError, r"offset.shape\[1\] must be .* = 18, got 4"),
    "offset-groups": (
        bad(offset=torch.zeros(2, 72, 5, 5), mask=None),
        ValueError,
        r"multiple of offset_groups = 4, got 6",
    ),
    "offset-size": (bad(offset=torch.zeros(2, 18, 4, 5)), ValueError, r"offset.shape must be .* \(2, 18, 5, 5\), got"),
    "offset-batch": (bad(offset=torch.zeros(1, 18, 5, 5)), ValueError, r"offset.shape must be"),
    "offset-dtype": (bad(offset=torch.zeros(2, 18, 5, 5).half()), TypeError, "offset must have input's dtype"),
    "offset-double": (bad(offset=torch.zeros(2, 18, 5, 5).double()), TypeError, "got torch.float64"),
    "weight-rank": (bad(weight=torch.zeros(4, 6, 3)), ValueError, "weight must have 4 dimensions"),
    "weight-channels": (bad(weight=torch.zeros(4, 4, 3, 3)), ValueError, r"input.shape\[1\] must be groups"),
    "weight-groups": (
        bad(weight=torch.zeros(4, 2, 3, 3)),
        ValueError,
        r"weight.shape\[0\] must be a multiple of groups",
    ),
    "weight-empty": (bad(weight=torch.zeros(4, 0, 3, 3)), ValueError, "no empty dimension"),
    "weight-dtype": (bad(weight=torch.zeros(4, 6, 3, 3).double()), TypeError, "weight must have input's dtype"),
    "bias-shape": (bad(bias=torch.zeros(5)), ValueError, r"bias.shape must be .* = \(4,\), got \(5,\)"),
    "bias-rank": (bad(bias=torch.zeros(4, 1)), ValueError, "bias must have 1 dimensions"),
    "bias-dtype": (bad(bias=torch.zeros(4).double()), TypeError, "bias must have input's dtype"),
    "mask-shape": (bad(mask=torch.zeros(2, 9, 5, 4)), ValueError, r"mask.shape must be .* = \(2, 9, 5, 5\)"),
    "mask-channels": (bad(mask=torch.zeros(2, 18, 5, 5)), ValueError, r"mask.shape must be"),
    "mask-dtype": (bad(mask=torch.zeros(2, 9, 5, 5).double()), TypeError, "mask must have input's dtype"),
    "stride-zero": (bad(stride=0), ValueError, "stride must be a positive integer, one or two of them, got 0"),
    "stride-negative": (bad(stride=(1, -1)), ValueError, r"stride must be a positive .* got \(1, -1\)"),
    "stride-three": (bad(stride=(1, 1, 1)), ValueError, r"got \(1, 1, 1\)"),
    "stride-float": (bad(stride=1.5), ValueError, "got 1.5"),
    "padding-negative": (bad(padding=-1), ValueError, "padding must be an integer not below 0"),
    "dilation-zero": (bad(dilation=0), ValueError, "dilation must be a positive integer"),
    "no-output": (bad(padding=0, dilation=3), ValueError, "the output would have no pixels, oh = -1"),
    "backend": (bad(backend="numpy"), ValueError, "backend must be one of cpu, cuda, reference, triton, got 'numpy'"),
    "backend-cuda": (bad(backend="cuda"), RuntimeError, "backend 'cuda' cannot run: there is no CUDA"),
    "device": (
        bad(bias=torch.zeros(4, device="meta")),
        ValueError,
        "all tensors must be on one device, got input on cpu",
    ),
}


@pytest.mark.parametrize(("arguments", "kind", "message"), ERRORS.values(), ids=ERRORS.keys())
@pytest.mark.parametrize("way", [w for w in WAYS if w.device == "cpu"], ids=str)
def test_errors(way, arguments, kind, message):
    with running(way), pytest.raises(kind, match=message):
        ops.deform_conv2d(**arguments)


def test_sizes_that_no_machine_has():
    """Checked arithmetic on meta tensors: nothing is allocated."""

    def meta(*shape):
        return torch.empty(1, device="meta").expand(shape)

    big = ops.deform_conv2d(meta(2, 1, 2**16, 2**15), meta(2, 2, 2**16, 2**15), meta(1, 1, 1, 1))
    assert big.shape == (2, 1, 2**16, 2**15)
    with pytest.raises(ValueError, match=r"output .* would have .* bytes, more than a 64-bit size can hold"):
        ops.deform_conv2d(meta(2**10, 1, 2**24, 2**24), meta(2**10, 2, 2**24, 2**24), meta(2**6, 1, 1, 1))
    expanded = torch.zeros(1).expand(2**10, 1, 2**24, 2**24), torch.zeros(1).expand(2**10, 2, 2**24, 2**24)
    with pytest.raises(ValueError, match="more than a 64-bit size can hold"):
        ops.deform_conv2d(*expanded, torch.zeros(2**6, 1, 1, 1))


def test_planes_past_int32_are_refused():
    plane = torch.zeros(()).expand(1, 1, 65536, 32768)
    weight, offset = torch.ones(1, 1, 1, 1), torch.zeros(1, 2, 2, 1)
    with pytest.raises(ValueError, match=r"planes of 2\^31 pixels or more need backend"):
        ops.deform_conv2d(plane, offset, weight, stride=(32768, 32768), backend="cpu")
