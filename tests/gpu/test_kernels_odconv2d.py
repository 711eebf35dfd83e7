# SPDX-License-Identifier: Apache-2.0
"""The Triton odconv2d, run end to end in the strict interpreter against the float64 reference."""

import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import triton.language as tl

sys.path.insert(0, str(Path(__file__).parent))
import interpreter
from flexor.kernels import _depthwise, _scaled_conv, _scaled_conv_bwd_weight
from flexor.kernels import odconv2d as kernels
from flexor.reference.odconv2d import odconv2d as reference
from flexor.reference.odconv2d import odconv2d_backward as reference_backward
from flexor.testing import assert_close

interpreter.install()

NAMES = ("input", "weight", "channel", "filter", "spatial", "kernel")
# Relative to the largest magnitude of the exact result.
LIMITS = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


class Case(NamedTuple):
    c: int
    o: int
    n: int = 1
    size: tuple[int, int] = (5, 6)
    b: int = 2
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    attentions: str = "cfsk"
    channels_last: bool = False

    @property
    def geometry(self):
        return self.stride, self.padding, self.dilation, self.groups

    def tensors(self, dtype, attention_dtype=None):
        """Input, weight and the four attentions."""
        input = torch.randn(self.b, self.c, *self.size).to(dtype)
        if self.channels_last:
            input = input.to(memory_format=torch.channels_last)
        taps, group_channels = self.kernel[0] * self.kernel[1], self.c // self.groups
        weight = torch.randn(self.n, self.o, group_channels, *self.kernel) / (group_channels * taps) ** 0.5
        widths = zip("cfsk", (self.c, self.o, taps, self.n), strict=True)
        second = attention_dtype or dtype
        attentions = [torch.rand(self.b, n).to(second) if letter in self.attentions else None for letter, n in widths]
        return [input, weight.to(dtype), *attentions]


CASES = {
    "one-kernel": Case(4, 5, size=(9, 8)),
    "one-kernel-unattended": Case(18, 5, b=1, attentions=""),
    "kernels-one-after-another": Case(6, 18, n=2, b=4, size=(2, 3), kernel=(1, 3), padding=(0, 1), channels_last=True),
    "kernels-mixed": Case(17, 3, n=3, kernel=(2, 2), padding=(0, 1)),
    "kernels-mixed-channels-last": Case(4, 17, n=2, size=(9, 8), b=1, attentions="sk", channels_last=True),
    "more-kernels-than-a-program-holds": Case(3, 4, n=5, kernel=(1, 1), padding=(0, 0)),
    "geometry": Case(4, 6, n=2, size=(9, 8), b=1, kernel=(2, 3), stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
    "groups": Case(8, 12, n=2, groups=2, stride=(2, 2), attentions="cfk"),
    "depthwise": Case(6, 6, n=4, groups=6, stride=(2, 1)),
    "depthwise-channels-last": Case(20, 20, groups=20, attentions="cs", channels_last=True),
    "depthwise-large": Case(3, 3, n=2, b=1, size=(12, 12), kernel=(3, 4), groups=3, attentions="k"),
    "depthwise-multiplier": Case(2, 4, n=2, b=1, groups=2),
    "one-dimensional": Case(4, 3, n=2, size=(1, 9), kernel=(1, 3), padding=(0, 1)),
}


def double(tensors):
    return [None if t is None else t.double() for t in tensors]


def backward(case, grad, tensors, needs=(True,) * 6):
    return kernels.backward(grad, *tensors, *case.geometry, needs, False)


def compare(case, tensors, grad=None):
    input = tensors[0]
    output = kernels.forward(*tensors, *case.geometry)
    assert output.dtype == input.dtype
    format = torch.channels_last if case.channels_last else torch.contiguous_format
    assert output.is_contiguous(memory_format=format)
    assert_close(output, reference(*double(tensors), *case.geometry), LIMITS[input.dtype], what="output")
    grad = torch.randn(output.shape).to(input.dtype) if grad is None else grad
    exact = reference_backward(grad.double(), *double(tensors), *case.geometry)
    for name, gradient, e, tensor in zip(NAMES, backward(case, grad, tensors), exact, tensors, strict=True):
        assert (gradient is None) == (tensor is None), name
        if tensor is not None:
            assert gradient.dtype == tensor.dtype
            assert_close(gradient, e, LIMITS[input.dtype], what=name)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_float32(case):
    compare(case, case.tensors(torch.float32))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["kernels-one-after-another", "kernels-mixed", "depthwise"])
def test_dtypes(name, dtype):
    compare(CASES[name], CASES[name].tensors(dtype))


@pytest.mark.parametrize("name", ["kernels-mixed", "depthwise-channels-last"])
def test_float32_attentions_beside_bfloat16(name):
    compare(CASES[name], CASES[name].tensors(torch.bfloat16, torch.float32))


@pytest.mark.parametrize("name", ["kernels-mixed-channels-last", "depthwise"])
def test_bits_do_not_depend_on_program_order(name):
    case = CASES[name]
    tensors = case.tensors(torch.float32)
    grad = torch.randn_like(kernels.forward(*tensors, *case.geometry))
    found = []
    for seed in range(2):
        with interpreter.program_order(seed):
            found.append([g for g in backward(case, grad, tensors) if g is not None])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("name", ["kernels-mixed-channels-last", "more-kernels-than-a-program-holds"])
def test_programs_with_several_images(name, monkeypatch):
    monkeypatch.setattr(_scaled_conv_bwd_weight, "BUSY_GRID", 1)
    case = CASES[name]._replace(b=3)
    compare(case, case.tensors(torch.float32))


@pytest.mark.parametrize("name", ["kernels-mixed", "depthwise"])
def test_launches_for_some_images_each(name, monkeypatch):
    monkeypatch.setattr(_scaled_conv_bwd_weight, "SLOT_VALUES", 1)
    monkeypatch.setattr(_depthwise, "PRODUCT_VALUES", 100)
    case = CASES[name]._replace(b=3)
    compare(case, case.tensors(torch.float32))


def test_memory_of_the_backward_is_bounded(monkeypatch):
    """Slots of one launch, for a batch whose own weights would be 2.4 GB."""
    seen = []

    class Kernel:
        def __getitem__(self, grid):
            return lambda *args, **_: seen.append(args)

    monkeypatch.setattr(_scaled_conv_bwd_weight, "scaled_conv_bwd_weight_kernel", Kernel())
    image = torch.empty(256, 512, 7, 7, device="meta")
    weight = torch.empty(4, 512, 512, 3, 3, device="meta")
    scales = _scaled_conv.Scales(*(torch.empty(256, n, device="meta") for n in (512, 512, 9, 4)))
    geometry = _scaled_conv.Geometry(padding=(1, 1))
    _scaled_conv_bwd_weight.scale_gradients("odconv2d", image, image, weight, scales, geometry, (True,) * 5)
    assert len(seen) > 1
    for grad_weight, *slots in (args[:4] for args in seen):
        assert grad_weight.numel() <= 2 * weight.numel()
        assert sum(slot.numel() for slot in slots) <= 2 * _scaled_conv_bwd_weight.SLOT_VALUES


@pytest.mark.parametrize("name", ["kernels-one-after-another", "kernels-mixed", "depthwise"])
def test_64_bit_indices(name, monkeypatch):
    for module in (_scaled_conv, _scaled_conv_bwd_weight, _depthwise):
        monkeypatch.setattr(module, "index_type", lambda *tensors: tl.int64)
    compare(CASES[name], CASES[name].tensors(torch.float32))


@pytest.mark.parametrize("groups", [1, 4])
def test_strides(groups):
    """A repeated slice of an image, a transposed weight, attentions that are slices or one for all."""
    case = Case(4, 4, n=2, size=(3, 4), groups=groups)
    _, weight, channel, filter, spatial, kernel = case.tensors(torch.float32)
    input = torch.randn(1, 8, 3, 8)[:, ::2, :, ::2].expand(2, -1, -1, -1)
    channel, filter = torch.stack((channel, filter), 2).unbind(2)
    tensors = [input, weight.transpose(3, 4), channel, filter, spatial[:1].expand(2, -1), kernel]
    compare(case, tensors, torch.randn(2, 4, 3, 4).to(memory_format=torch.channels_last))
    compare(case, tensors, torch.ones(1).expand(2, 4, 3, 4))


@pytest.mark.parametrize("name", ["kernels-one-after-another", "kernels-mixed", "depthwise"])
def test_nan_and_infinity_stay_where_they_are(name):
    case = CASES[name]
    tensors = case.tensors(torch.float32)
    tensors[0][0, 1, 1, 2] = torch.nan
    # Kernels one after another make NaN of infinities of both signs, which their mix does not meet.
    tensors[0][1, 0, 0, 0] = torch.nan if name == "kernels-one-after-another" else torch.inf
    assert_close(kernels.forward(*tensors, *case.geometry), reference(*double(tensors), *case.geometry), 2e-6)


@pytest.mark.parametrize("name", ["groups", "depthwise"])
def test_empty_batch(name):
    case = CASES[name]._replace(b=0)
    tensors = case.tensors(torch.float32)
    output = kernels.forward(*tensors, *case.geometry)
    assert output.shape == reference(*tensors, *case.geometry).shape
    for gradient, tensor in zip(backward(case, torch.empty_like(output), tensors), tensors, strict=True):
        assert gradient is None if tensor is None else gradient.shape == tensor.shape and not gradient.count_nonzero()


@pytest.mark.parametrize("wanted", range(6))
def test_single_gradients(wanted):
    case = Case(2, 3, n=2, size=(2, 3))
    tensors = case.tensors(torch.float32)
    grad = torch.randn(2, 3, 2, 3)
    gradients = backward(case, grad, tensors, tuple(i == wanted for i in range(6)))
    assert [g is not None for g in gradients] == [i == wanted for i in range(6)]
    exact = reference_backward(grad.double(), *double(tensors), *case.geometry)[wanted]
    assert_close(gradients[wanted], exact, LIMITS[torch.float32])


def test_tf32_where_torch_allows_it(monkeypatch):
    monkeypatch.setattr(_scaled_conv, "dot_precision", lambda input: "tf32")
    case = CASES["kernels-mixed"]
    tensors = case.tensors(torch.float32)
    exact = reference(*double(tensors), *case.geometry)
    error = (kernels.forward(*tensors, *case.geometry) - exact).abs().max() / exact.abs().max()
    assert 1e-5 < error < 2e-3


def test_float64_on_amd(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    case = CASES["one-kernel"]
    with pytest.raises(NotImplementedError, match="odconv2d: float64 has no Triton kernel on AMD GPUs"):
        kernels.forward(*case.tensors(torch.float64), *case.geometry)
