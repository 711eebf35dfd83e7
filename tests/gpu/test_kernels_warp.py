# SPDX-License-Identifier: Apache-2.0
"""The Triton warps, run end to end in the strict interpreter against the float64 reference."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import interpreter
from flexor.kernels import affine_warp2d, warp2d
from flexor.reference.warp2d import inverse_affine_warp2d, inverse_affine_warp2d_backward, warp2d_backward
from flexor.reference.warp2d import warp2d as reference

interpreter.install()

LIMITS = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
MODES = pytest.mark.parametrize("mode", ["bilinear", "nearest"])
PADDINGS = pytest.mark.parametrize("padding_mode", ["zeros", "border"])


def assert_close(actual, exact, dtype):
    assert actual.shape == exact.shape
    assert torch.equal(actual.isnan(), exact.isnan())
    error = (actual.double() - exact).nan_to_num().abs().max()
    assert error <= LIMITS[dtype] * exact.nan_to_num().abs().max().clamp_min(1e-30)


def inputs(dtype, channels_last=False, channels=5):
    """An image and a flow with whole, half, far, NaN and infinite displacements."""
    image = torch.randn(2, channels, 7, 9).to(dtype)
    if channels_last:
        image = image.to(memory_format=torch.channels_last)
    flow = 3 * torch.randn(2, 2, 12, 13)
    flow[0, :, 1] = flow[0, :, 1].round()
    flow[1, :, 2] = flow[1, :, 2].round() + 0.5
    flow[0, 0, 3, 0] = torch.nan
    flow[0, 1, 3, 1] = torch.nan
    flow[0, 0, 3, 2] = torch.inf
    flow[0, 1, 3, 3] = -torch.inf
    flow[0, 0, 3, 4] = 1e30
    flow[0, 0, 4, :9] = -1 - torch.arange(9.0)  # exactly -1
    flow[0, 0, 5, :9] = 8 - torch.arange(9.0)  # exactly the last column
    return image, flow.to(dtype)


@MODES
@PADDINGS
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("deterministic", [False, True], ids=["plain", "deterministic"])
def test_warp2d(mode, padding_mode, channels_last, deterministic):
    image, flow = inputs(torch.float32, channels_last)
    output = warp2d.forward(image, flow, mode, padding_mode)
    assert output.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    assert_close(output, reference(image.double(), flow.double(), mode, padding_mode), torch.float32)
    grad = torch.randn_like(output)
    gradients = warp2d.backward(grad, image, flow, mode, padding_mode, (True, True), deterministic)
    exact = warp2d_backward(grad.double(), image.double(), flow.double(), mode, padding_mode)
    for actual, expected in zip(gradients, exact, strict=True):
        assert_close(actual, expected, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("deterministic", [False, True], ids=["plain", "deterministic"])
def test_warp2d_dtypes(dtype, deterministic):
    image, flow = inputs(dtype)
    output = warp2d.forward(image, flow, "bilinear", "zeros")
    assert output.dtype == dtype
    assert_close(output, reference(image.double(), flow.double()), dtype)
    grad = torch.randn(output.shape).to(dtype)
    gradients = warp2d.backward(grad, image, flow, "bilinear", "zeros", (True, True), deterministic)
    exact = warp2d_backward(grad.double(), image.double(), flow.double(), "bilinear", "zeros")
    for actual, expected in zip(gradients, exact, strict=True):
        assert actual.dtype == dtype
        assert_close(actual, expected, dtype)


# Multiples of 1/16, so that float32 positions are exact.
MATRIX = torch.tensor([[[0.875, 0.125, 0.5], [-0.125, 1.0625, -1.0]], [[1.0, 0.0, 2.0], [0.0, 1.0, -2.25]]])


@MODES
@PADDINGS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_affine_warp2d(mode, padding_mode, dtype, channels_last):
    image, _ = inputs(dtype, channels_last)
    size = (11, 12)
    output = affine_warp2d.forward(image, MATRIX, size, mode, padding_mode)
    exact = inverse_affine_warp2d(image.double(), MATRIX.double(), size, mode, padding_mode)
    assert_close(output, exact, dtype)
    grad = torch.randn(output.shape).to(dtype)
    for deterministic in (False, True):
        gradients = affine_warp2d.backward(grad, image, MATRIX, mode, padding_mode, (True, True), deterministic)
        expected = inverse_affine_warp2d_backward(
            grad.double(), image.double(), MATRIX.double(), size, mode, padding_mode
        )
        assert_close(gradients[0], expected[0], dtype)
        assert gradients[1].dtype == MATRIX.dtype
        assert_close(gradients[1], expected[1], torch.float32)


def test_deterministic_bits_do_not_depend_on_program_order():
    image = torch.randn(1, 2, 4, 4)
    flow = -torch.rand(1, 2, 40, 40) * torch.arange(40.0)  # many pixels read the same few
    grad = torch.randn(1, 2, 40, 40)
    plain, fixed = [], []
    for seed in range(3):
        with interpreter.program_order(seed):
            plain.append(warp2d.backward(grad, image, flow, "bilinear", "border", (True, True), False))
            fixed.append(warp2d.backward(grad, image, flow, "bilinear", "border", (True, True), True))
    for other in fixed[1:]:
        assert all(torch.equal(a, b) for a, b in zip(fixed[0], other, strict=True))
    assert any(not torch.equal(plain[0][0], other[0]) for other in plain[1:])


def test_strides():
    image = torch.randn(1, 6, 7, 18)[:, ::2, :, ::2].expand(2, -1, -1, -1)
    flow = torch.randn(2, 2, 5, 13).to(memory_format=torch.channels_last)[..., 2:11]
    grad = torch.ones(1).expand(2, 3, 5, 9)
    output = warp2d.forward(image, flow, "bilinear", "zeros")
    assert_close(output, reference(image.double(), flow.double()), torch.float32)
    gradients = warp2d.backward(grad, image, flow, "bilinear", "zeros", (True, True), False)
    exact = warp2d_backward(grad.double(), image.double(), flow.double(), "bilinear", "zeros")
    for actual, expected in zip(gradients, exact, strict=True):
        assert_close(actual, expected, torch.float32)


def test_many_channels():
    image, flow = inputs(torch.float32, channels_last=True, channels=70)
    output = warp2d.forward(image, flow, "bilinear", "zeros")
    assert_close(output, reference(image.double(), flow.double()), torch.float32)
    grad = torch.randn_like(output)
    gradients = warp2d.backward(grad, image, flow, "bilinear", "zeros", (True, True), False)
    exact = warp2d_backward(grad.double(), image.double(), flow.double(), "bilinear", "zeros")
    for actual, expected in zip(gradients, exact, strict=True):
        assert_close(actual, expected, torch.float32)


@pytest.mark.parametrize("needs", [(True, False), (False, True)])
def test_single_gradients(needs):
    image, flow = inputs(torch.float32)
    grad = torch.randn(2, 5, 12, 13)
    exact = warp2d_backward(grad.double(), image.double(), flow.double(), "bilinear", "zeros")
    gradients = warp2d.backward(grad, image, flow, "bilinear", "zeros", needs, False)
    assert [g is not None for g in gradients] == list(needs)
    assert_close(gradients[needs.index(True)], exact[needs.index(True)], torch.float32)


def test_empty():
    image, flow = inputs(torch.float32)
    output = warp2d.forward(image[:0], flow[:0], "bilinear", "zeros")
    assert output.shape == (0, 5, 12, 13)
    gradients = warp2d.backward(output, image[:0], flow[:0], "bilinear", "zeros", (True, True), True)
    assert [g.shape for g in gradients] == [(0, 5, 7, 9), (0, 2, 12, 13)]
    matrix = torch.zeros(0, 2, 3)
    gradients = affine_warp2d.backward(output, image[:0], matrix, "bilinear", "zeros", (True, True), True)
    assert [g.shape for g in gradients] == [(0, 5, 7, 9), (0, 2, 3)]


def test_errors():
    image, flow = inputs(torch.float32)
    with pytest.raises(ValueError, match="warp2d: mode must be 'bilinear' or 'nearest', got 'cubic'"):
        warp2d.forward(image, flow, "cubic", "zeros")
    with pytest.raises(ValueError, match="affine_warp2d: padding_mode must be 'zeros' or 'border', got 'wrap'"):
        affine_warp2d.forward(image, MATRIX, (3, 3), "bilinear", "wrap")
