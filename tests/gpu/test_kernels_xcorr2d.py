# SPDX-License-Identifier: Apache-2.0
"""The Triton cross-correlations, run end to end in the strict interpreter against the float64 reference."""

import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import triton.language as tl

sys.path.insert(0, str(Path(__file__).parent))
import interpreter
from flexor.kernels import _depthwise, _scaled_conv, _scaled_conv_bwd_weight, xcorr2d, xcorr2d_depthwise
from flexor.reference import xcorr2d as reference
from flexor.reference import xcorr2d_depthwise as depthwise_reference
from flexor.reference.xcorr2d import xcorr2d_backward, xcorr2d_depthwise_backward
from flexor.testing import assert_close

interpreter.install()

# Relative to the largest magnitude of the exact result.
LIMITS = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


class Op(NamedTuple):
    kernels: object
    reference: object
    reference_backward: object
    outputs: int | None  # kernels an image; None for one a channel

    def tensors(self, b, c, size, kernel, dtype=torch.float32, channels_last=False):
        input = torch.randn(b, c, *size).to(dtype)
        if channels_last:
            input = input.to(memory_format=torch.channels_last)
        return input, torch.randn(b, *(self.outputs,) * (self.outputs is not None), c, *kernel).to(dtype)

    def compare(self, input, kernel, padding, grad=None):
        limit = LIMITS[input.dtype]
        output = self.kernels.forward(input, kernel, padding)
        assert output.dtype == input.dtype
        assert_close(output, self.reference(input.double(), kernel.double(), padding), limit, what="output")
        grad = torch.randn(output.shape).to(input.dtype) if grad is None else grad
        gradients = self.kernels.backward(grad, input, kernel, padding, (True, True), False)
        exact = self.reference_backward(grad.double(), input.double(), kernel.double(), padding)
        for gradient, e, name in zip(gradients, exact, ("input", "kernel"), strict=True):
            assert gradient.dtype == input.dtype
            assert_close(gradient, e, limit, what=name)


OPS = {
    "xcorr2d": Op(xcorr2d, reference, xcorr2d_backward, 5),
    "xcorr2d_depthwise": Op(xcorr2d_depthwise, depthwise_reference, xcorr2d_depthwise_backward, None),
}
each_op = pytest.mark.parametrize("op", OPS.values(), ids=OPS.keys())


@each_op
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize(
    ("b", "c", "size", "kernel", "padding"),
    [(2, 3, (9, 8), (3, 3), (1, 1)), (1, 17, (6, 7), (3, 2), (0, 0)), (3, 4, (3, 2), (4, 4), (2, 3))],
)
def test_float32(op, b, c, size, kernel, padding, channels_last):
    op.compare(*op.tensors(b, c, size, kernel, channels_last=channels_last), padding)


@each_op
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_dtypes(op, dtype):
    op.compare(*op.tensors(2, 6, (5, 6), (3, 2), dtype), (1, 0))


@each_op
def test_kernel_as_large_as_the_image(op):
    op.compare(*op.tensors(2, 2, (5, 5), (5, 5)), (0, 0))


def test_many_kernels():
    op = OPS["xcorr2d"]._replace(outputs=70)
    op.compare(*op.tensors(2, 3, (2, 3), (2, 2)), (0, 0))


@each_op
def test_bits_do_not_depend_on_program_order(op):
    input, kernel = op.tensors(2, 4, (9, 8), (3, 3))
    grad = torch.randn_like(op.kernels.forward(input, kernel, (1, 1)))
    found = []
    for seed in range(2):
        with interpreter.program_order(seed):
            found.append(op.kernels.backward(grad, input, kernel, (1, 1), (True, True), True))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@each_op
def test_64_bit_indices(op, monkeypatch):
    for module in (_scaled_conv, _scaled_conv_bwd_weight, _depthwise):
        monkeypatch.setattr(module, "index_type", lambda *tensors: tl.int64)
    op.compare(*op.tensors(2, 3, (5, 6), (3, 3)), (1, 1))


@each_op
def test_strides(op):
    """Repeated and sliced images, one template for all, channels_last and expanded gradients."""
    _, kernel = op.tensors(2, 4, (5, 6), (3, 3))
    input = torch.randn(1, 8, 5, 12)[:, ::2, :, ::2].expand(2, -1, -1, -1)
    kernel = kernel.transpose(-1, -2)[:1].expand(2, *kernel.shape[1:])
    output = op.kernels.forward(input, kernel, (1, 1))
    op.compare(input, kernel, (1, 1), torch.randn(output.shape).to(memory_format=torch.channels_last))
    op.compare(input, kernel, (1, 1), torch.ones(1).expand(output.shape))


@each_op
def test_nan_and_infinity_stay_where_they_are(op):
    input, kernel = op.tensors(2, 3, (7, 8), (3, 3))
    input[0, 1, 2, 3] = torch.nan
    kernel[1].view(-1)[4] = torch.inf
    exact = op.reference(input.double(), kernel.double(), (1, 1))
    assert_close(op.kernels.forward(input, kernel, (1, 1)), exact, 2e-6)


@each_op
def test_empty_batch(op):
    input, kernel = op.tensors(0, 3, (5, 6), (3, 3))
    output = op.kernels.forward(input, kernel, (1, 1))
    assert output.shape == op.reference(input, kernel, (1, 1)).shape
    gradients = op.kernels.backward(output, input, kernel, (1, 1), (True, True), False)
    assert [g.shape for g in gradients] == [input.shape, kernel.shape]


@each_op
@pytest.mark.parametrize("needs", [(True, False), (False, True)])
def test_single_gradients(op, needs):
    input, kernel = op.tensors(1, 3, (5, 6), (3, 3))
    grad = torch.randn_like(op.kernels.forward(input, kernel, (1, 1)))
    gradients = op.kernels.backward(grad, input, kernel, (1, 1), needs, False)
    assert [g is not None for g in gradients] == list(needs)


@pytest.mark.parametrize("name", OPS)
def test_float64_on_amd(name, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    input, kernel = OPS[name].tensors(1, 3, (5, 6), (3, 3), torch.float64)
    with pytest.raises(NotImplementedError, match=f"{name}: float64 has no Triton kernel on AMD GPUs"):
        OPS[name].kernels.forward(input, kernel, (1, 1))
