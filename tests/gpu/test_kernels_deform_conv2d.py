# SPDX-License-Identifier: Apache-2.0
"""The Triton deform_conv2d, run end to end in the strict interpreter against the float64 reference."""

import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import triton.language as tl

sys.path.insert(0, str(Path(__file__).parent))
import interpreter
from flexor.kernels import _deform_conv2d_bwd_sample, _deform_conv2d_bwd_weight
from flexor.kernels import deform_conv2d as kernels
from flexor.reference.deform_conv2d import deform_conv2d as reference
from flexor.reference.deform_conv2d import deform_conv2d_backward as reference_backward

interpreter.install()

NAMES = ("input", "offset", "weight", "bias", "mask")
# Relative to the largest magnitude of the exact result.
LIMITS = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


class Case(NamedTuple):
    c: int
    o: int
    size: tuple[int, int] = (5, 6)
    n: int = 1
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    dg: int = 1
    mask: bool = True
    channels_last: bool = False

    @property
    def geometry(self):
        return self.stride, self.padding, self.dilation, self.groups, self.dg

    def tensors(self, dtype, offset_dtype=None):
        """Input, offset, weight, bias, mask."""
        out = [
            (s + 2 * p - d * (k - 1) - 1) // t + 1
            for s, p, d, k, t in zip(self.size, self.padding, self.dilation, self.kernel, self.stride, strict=True)
        ]
        taps = self.kernel[0] * self.kernel[1]
        group_channels = self.c // self.groups
        input = torch.randn(self.n, self.c, *self.size).to(dtype)
        if self.channels_last:
            input = input.to(memory_format=torch.channels_last)
        offset = 2 * torch.randn(self.n, 2 * self.dg * taps, *out)
        mask = torch.randn(self.n, self.dg * taps, *out) if self.mask else None
        weight = torch.randn(self.o, group_channels, *self.kernel) / (group_channels * taps) ** 0.5
        second = offset_dtype or dtype
        return [
            input, offset.to(second), weight.to(dtype), torch.randn(self.o).to(dtype),
            None if mask is None else mask.to(second),
        ]  # fmt: skip


CASES = {
    "one-group": Case(8, 5, (9, 8)),
    "no-mask": Case(8, 5, (7, 4), n=2, mask=False),
    "channels-last": Case(40, 20, channels_last=True),
    "geometry": Case(4, 4, (9, 8), kernel=(2, 3), stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
    "many-outputs": Case(4, 70, (3, 3)),
    "channel-per-offset-group": Case(17, 17, dg=17),
    "few-channels-per-offset-group": Case(12, 6, dg=3, channels_last=True),
    "groups-in-offset-group": Case(40, 8, groups=2),
    "offset-groups-in-group": Case(24, 8, groups=2, dg=4),
    "depthwise": Case(6, 6, groups=6),
    "depthwise-multiplier": Case(18, 36, (4, 4), groups=18, dg=1),
    "crossing-groups": Case(12, 4, groups=2, dg=3, n=2),
    "pointwise": Case(3, 1, (1, 7), kernel=(1, 1), padding=(0, 0)),
}


def double(tensors):
    return [None if t is None else t.double() for t in tensors]


def forward(case, tensors):
    input, offset, weight, bias, mask = tensors
    return kernels.forward(input, offset, weight, bias, mask, *case.geometry)


def expected(case, tensors):
    input, offset, weight, bias, mask = double(tensors)
    return reference(input, offset, weight, bias, case.stride, case.padding, case.dilation, mask)


def backward(case, grad, tensors, deterministic=False, needs=None):
    input, offset, weight, _, mask = tensors
    needs = needs or (True, True, True, True, mask is not None)
    return kernels.backward(grad, input, offset, weight, mask, *case.geometry, needs, deterministic)


def expected_backward(case, grad, tensors):
    input, offset, weight, bias, mask = double(tensors)
    return reference_backward(
        grad.double(), input, offset, weight, bias, mask, case.stride, case.padding, case.dilation
    )


def assert_close(actual, exact, limit, name=""):
    assert actual.shape == exact.shape
    assert torch.equal(actual.isnan(), exact.isnan()), f"{name}: NaN in other places"
    error = (actual.double() - exact).nan_to_num().abs().max().item() if actual.numel() else 0.0
    scale = exact.nan_to_num().abs().max().item() if actual.numel() else 1.0
    assert error <= limit * max(scale, 1e-30), f"{name}: error {error:.3g}, scale {scale:.3g}, limit {limit}"


def assert_gradients_close(actual, exact, limit):
    for name, a, e in zip(NAMES, actual, exact, strict=True):
        assert (a is None) == (e is None), name
        if a is not None:
            assert_close(a, e, limit, name)


def check(case, dtype, deterministic=False, offset_dtype=None):
    tensors = case.tensors(dtype, offset_dtype)
    output = forward(case, tensors)
    assert output.dtype == dtype
    format = torch.channels_last if case.channels_last else torch.contiguous_format
    assert output.is_contiguous(memory_format=format)
    assert_close(output, expected(case, tensors), LIMITS[dtype], "output")
    grad = torch.randn(output.shape).to(dtype)
    gradients = backward(case, grad, tensors, deterministic)
    assert_gradients_close(gradients, expected_backward(case, grad, tensors), LIMITS[dtype])
    for gradient, tensor in zip(gradients, tensors, strict=True):
        assert gradient is None or gradient.dtype == tensor.dtype


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_float32(case):
    check(case, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["one-group", "channels-last", "channel-per-offset-group", "crossing-groups"])
def test_dtypes(name, dtype):
    check(CASES[name], dtype)


@pytest.mark.parametrize("name", ["channels-last", "few-channels-per-offset-group"])
def test_float32_offsets_beside_bfloat16(name):
    check(CASES[name], torch.bfloat16, offset_dtype=torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["one-group", "channels-last", "channel-per-offset-group"])
def test_deterministic(name, dtype):
    check(CASES[name], dtype, deterministic=True)


def test_deterministic_bits_do_not_depend_on_program_order():
    case = Case(8, 2)
    tensors = case.tensors(torch.float32)
    grad = torch.randn_like(forward(case, tensors))
    plain, fixed = [], []
    for seed in range(3):
        with interpreter.program_order(seed):
            plain.append(backward(case, grad, tensors, deterministic=False))
            fixed.append(backward(case, grad, tensors, deterministic=True))
    for other in fixed[1:]:
        assert all(torch.equal(a, b) for a, b in zip(fixed[0], other, strict=True))
    # Without the flag the order shows in the scattered gradient, and there alone.
    assert any(not torch.equal(plain[0][0], other[0]) for other in plain[1:])
    assert all(torch.equal(a, b) for other in plain[1:] for a, b in zip(plain[0][1:], other[1:], strict=True))


@pytest.mark.parametrize("magnitude", [1e-30, 1e30])
def test_deterministic_at_any_magnitude(magnitude):
    case = Case(4, 3, n=2, kernel=(1, 1), padding=(0, 0), mask=False)
    tensors = case.tensors(torch.float32)
    grad = magnitude * torch.randn(2, 3, 5, 6)
    gradient = backward(case, grad, tensors, deterministic=True, needs=(True, False, False, False, False))[0]
    exact = expected_backward(case, grad, tensors)[0]
    assert_close(gradient / magnitude, exact / magnitude, LIMITS[torch.float32])


def test_deterministic_reports_infinite_terms_as_nan():
    case = Case(4, 3, kernel=(1, 1), padding=(0, 0))
    tensors = case.tensors(torch.float32)
    tensors[1].zero_()
    grad = torch.randn(1, 3, 5, 6)
    grad[0, :, 2, 3] = torch.inf
    gradient = backward(case, grad, tensors, deterministic=True, needs=(True, False, False, False, False))[0]
    touched = torch.zeros(1, 4, 5, 6, dtype=torch.bool)
    touched[:, :, 2:4, 3:5] = True  # the whole cell: infinity times a weight of 0 is NaN
    exact = expected_backward(case, grad, tensors)[0]
    assert torch.equal(gradient.isnan(), touched)
    assert_close(gradient[~touched], exact[~touched], LIMITS[torch.float32])


@pytest.mark.parametrize("channels_last", [False, True])
def test_edges(channels_last):
    """NaN, infinities, whole positions, exactly -1 and exactly the size, far outside."""
    case = Case(4, 3, (4, 5), kernel=(1, 1), padding=(0, 0), channels_last=channels_last)
    tensors = case.tensors(torch.float32)
    offset = tensors[1]
    offset.copy_(offset.round())
    y = torch.arange(4.0)[:, None]
    x = torch.arange(5.0)
    offset[0, 0, 0] = -1 - y[0]
    offset[0, 1, :, 0] = -1 - x[0]
    offset[0, 0, 1] = 4 - y[1]
    offset[0, 1, :, 1] = 5 - x[1]
    offset[0, 0, 2, 2] = torch.nan
    offset[0, 1, 2, 3] = torch.nan
    offset[0, 0, 3, 2] = torch.inf
    offset[0, 1, 3, 3] = -torch.inf
    offset[0, 0, 3, 4] = 1e30
    output = forward(case, tensors)
    assert_close(output, expected(case, tensors), LIMITS[torch.float32], "output")
    assert output[0, :, 2, 2].isnan().all() and output[0, :, 2, 3].isnan().all()
    grad = torch.randn_like(output)
    exact = expected_backward(case, grad, tensors)
    # A NaN offset makes the gradient of both its coordinates NaN.
    needs = (True, True, False, False, True)
    for deterministic in (False, True):
        gradients = backward(case, grad, tensors, deterministic, needs)
        assert gradients[0].isfinite().all()
        for i in (0, 1, 4):
            assert_close(gradients[i], exact[i], LIMITS[torch.float32], NAMES[i])


@pytest.mark.parametrize("name", ["one-group", "channels-last"])
def test_64_bit_indices(name, monkeypatch):
    for module in (kernels, _deform_conv2d_bwd_sample, _deform_conv2d_bwd_weight):
        monkeypatch.setattr(module, "index_type", lambda *tensors: tl.int64)
    check(CASES[name], torch.float32)


def test_index_type_follows_the_span_of_one_image():
    from flexor.kernels._common import index_type

    small = torch.empty(4, 8, 1 << 14, 1 << 13, device="meta", dtype=torch.float16)
    large = torch.empty(1, 32, 1 << 14, 1 << 13, device="meta", dtype=torch.float16)
    assert index_type(small, None) == tl.int32
    assert index_type(small, large) == tl.int64


def test_strides():
    """Slices of larger tensors, a repeated image, channels_last offsets, a transposed weight."""
    case = Case(8, 6, (5, 7), n=2)
    input, offset, weight, bias, mask = case.tensors(torch.float32)
    input = torch.randn(1, 16, 5, 14)[:, ::2, :, ::2].expand(2, -1, -1, -1)
    offset = torch.cat((offset, offset), 2)[:, :, 5:].to(memory_format=torch.channels_last)
    mask = torch.cat((mask, mask), 3)[..., 3:10]
    weight = weight.transpose(2, 3)
    tensors = [input, offset, weight, bias, mask]
    output = forward(case, tensors)
    assert_close(output, expected(case, tensors), LIMITS[torch.float32], "output")
    grad = torch.randn_like(output).to(memory_format=torch.channels_last)
    exact = expected_backward(case, grad, tensors)
    assert_gradients_close(backward(case, grad, tensors), exact, LIMITS[torch.float32])
    grad = torch.ones(1).expand(output.shape)
    exact = expected_backward(case, grad, tensors)
    assert_gradients_close(backward(case, grad, tensors, deterministic=True), exact, LIMITS[torch.float32])


@pytest.mark.parametrize("deterministic", [False, True])
def test_empty_batch(deterministic):
    case = Case(4, 3, n=0)
    tensors = case.tensors(torch.float32)
    output = forward(case, tensors)
    assert output.shape == (0, 3, 5, 6)
    gradients = backward(case, torch.empty_like(output), tensors, deterministic)
    assert [g.shape for g in gradients] == [t.shape for t in tensors]
    assert not any(g.count_nonzero() for g in gradients)


@pytest.mark.parametrize("wanted", range(5))
def test_single_gradients(wanted):
    case = CASES["offset-groups-in-group"]
    tensors = case.tensors(torch.float32)
    grad = torch.randn_like(forward(case, tensors))
    gradients = backward(case, grad, tensors, needs=tuple(i == wanted for i in range(5)))
    assert [g is not None for g in gradients] == [i == wanted for i in range(5)]
    assert_close(gradients[wanted], expected_backward(case, grad, tensors)[wanted], LIMITS[torch.float32])


@pytest.fixture
def tf32_allowed():
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def test_tf32_where_torch_allows_it(tf32_allowed):
    case = CASES["channels-last"]
    tensors = case.tensors(torch.float32)
    exact = expected(case, tensors)
    error = (forward(case, tensors) - exact).abs().max() / exact.abs().max()
    assert 1e-5 < error < 2e-3


def test_grid_too_large():
    from flexor.kernels._common import checked_grid

    with pytest.raises(ValueError, match="deform_conv2d: the launch needs 2147483648 programs"):
        checked_grid("deform_conv2d", 2**31)


def test_float64_on_amd(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    with pytest.raises(NotImplementedError, match="use backend='reference' or float32"):
        forward(CASES["no-mask"], CASES["no-mask"].tensors(torch.float64))
