# SPDX-License-Identifier: Apache-2.0
"""The Triton grid_conv, run end to end in the strict interpreter against the float64 reference."""

import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import triton.language as tl

sys.path.insert(0, str(Path(__file__).parent))
import interpreter
from flexor.kernels import _grid_conv_shared
from flexor.kernels import grid_conv as kernels
from flexor.reference.grid_conv import grid_conv as reference
from flexor.reference.grid_conv import grid_conv_backward as reference_backward
from flexor.testing import assert_close

interpreter.install()

NAMES = ("input", "weight1", "weight2", "bias1", "bias2", "attention")
# Relative to the largest magnitude of the exact result.
LIMITS = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


class Case(NamedTuple):
    c: int
    o: int
    borders: str = "cr"
    size: tuple[int, int] = (3, 3)
    b: int = 2
    kernel: tuple[int, int] = (3, 3)
    bias: bool = True
    attention: bool = True

    def tensors(self, dtype, attention_dtype=None):
        two, taps = len(self.borders) == 2, self.kernel[0] * self.kernel[1]
        weight = lambda: (torch.randn(self.o, self.c, *self.kernel) / (self.c * taps) ** 0.5).to(dtype)  # noqa: E731
        bias = lambda: torch.randn(self.o).to(dtype) if self.bias else None  # noqa: E731
        return [
            torch.randn(self.b, self.c, *self.size).to(dtype),
            weight(),
            weight() if two else None,
            bias(),
            bias() if two else None,
            torch.rand(self.b, taps, *self.size).to(attention_dtype or dtype) if self.attention else None,
        ]


CASES = {
    "pose": Case(3, 5, b=1),
    "zeros": Case(18, 3, "cz", size=(2, 2), attention=False),
    "one-branch": Case(3, 18, "z", bias=False),
    "same-borders": Case(3, 2, "rr", size=(2, 2), kernel=(1, 5)),
    "many-grids": Case(2, 3, "rz", size=(1, 2), b=70),
    "many-channels": Case(70, 2, "c", size=(1, 2), b=1, kernel=(1, 3)),
    "one-cell": Case(2, 3, size=(1, 1)),
    "pointwise": Case(2, 3, kernel=(1, 1)),
}


def double(tensors):
    return [None if t is None else t.double() for t in tensors]


def compare(tensors, borders, grad=None):
    dtype = tensors[0].dtype
    output = kernels.forward(*tensors, borders)
    assert output.dtype == dtype
    assert_close(output, reference(*double(tensors), borders), LIMITS[dtype], what="output")
    grad = torch.randn(output.shape).to(dtype) if grad is None else grad
    gradients = kernels.backward(grad, *tensors, borders, (True,) * 6, False)
    exact = reference_backward(grad.double(), *double(tensors), borders)
    for name, gradient, e, tensor in zip(NAMES, gradients, exact, tensors, strict=True):
        assert (gradient is None) == (tensor is None), name
        if tensor is not None:
            assert gradient.dtype == tensor.dtype
            assert_close(gradient, e, LIMITS[dtype], what=name)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_float32(case):
    compare(case.tensors(torch.float32), case.borders)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["zeros", "same-borders"])
def test_dtypes(name, dtype):
    compare(CASES[name].tensors(dtype), CASES[name].borders)


def test_float32_attention_beside_bfloat16():
    compare(CASES["same-borders"].tensors(torch.bfloat16, torch.float32), "rr")


def test_terms_are_merged_where_both_branches_read_one_cell():
    tables = _grid_conv_shared.tables((5, 5), (3, 3), "cr", torch.device("cpu"))
    assert len(tables.by_output) == 169 + 2 * 56
    tables = _grid_conv_shared.tables((5, 5), (3, 3), "cz", torch.device("cpu"))
    assert len(tables.by_output) == 225


def test_bits_do_not_depend_on_program_order():
    case = CASES["same-borders"]
    tensors = case.tensors(torch.float32)
    grad = torch.randn(2, 2, 2, 2)
    found = []
    for seed in range(2):
        with interpreter.program_order(seed):
            found.append(kernels.backward(grad, *tensors, case.borders, (True,) * 6, True))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_64_bit_indices(monkeypatch):
    monkeypatch.setattr(_grid_conv_shared, "index_type", lambda *tensors: tl.int64)
    compare(CASES["same-borders"].tensors(torch.float32), "rr")


def test_strides():
    input, weight1, weight2, _, _, attention = Case(2, 3, size=(1, 3)).tensors(torch.float32)
    input = torch.randn(1, 4, 1, 6)[:, ::2, :, ::2].expand(2, -1, -1, -1)
    weight1, bias1 = weight1.transpose(2, 3), torch.randn(6)[::2]
    attention = attention[:1].expand(2, -1, -1, -1)
    tensors = [input, weight1, weight2, bias1, torch.ones(1).expand(3), attention]
    compare(tensors, "cr", torch.randn(2, 3, 1, 3).to(memory_format=torch.channels_last))
    compare(tensors, "cr", torch.ones(1).expand(2, 3, 1, 3))


def test_nan_stays_where_it_is():
    tensors = CASES["pose"].tensors(torch.float32)
    tensors[0][0, 1, 2, 1] = torch.nan
    assert_close(kernels.forward(*tensors, "cr"), reference(*double(tensors), "cr"), 2e-6)


def test_empty_batch():
    tensors = CASES["pose"]._replace(b=0).tensors(torch.float32)
    output = kernels.forward(*tensors, "cr")
    assert output.shape == (0, 5, 3, 3)
    gradients = kernels.backward(output, *tensors, "cr", (True,) * 6, False)
    assert [g.shape for g in gradients] == [t.shape for t in tensors]


@pytest.mark.parametrize("wanted", range(6))
def test_single_gradients(wanted):
    tensors = Case(2, 3, size=(1, 2)).tensors(torch.float32)
    grad = torch.randn(2, 3, 1, 2)
    gradients = kernels.backward(grad, *tensors, "cr", tuple(i == wanted for i in range(6)), False)
    assert [g is not None for g in gradients] == [i == wanted for i in range(6)]
    exact = reference_backward(grad.double(), *double(tensors), "cr")[wanted]
    assert_close(gradients[wanted], exact, LIMITS[torch.float32])


def test_tf32_where_torch_allows_it(monkeypatch):
    monkeypatch.setattr(_grid_conv_shared, "dot_precision", lambda input: "tf32")
    tensors = CASES["zeros"].tensors(torch.float32)
    exact = reference(*double(tensors), "cz")
    error = (kernels.forward(*tensors, "cz") - exact).abs().max() / exact.abs().max()
    assert 1e-5 < error < 2e-3


def test_float64_on_amd(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    with pytest.raises(NotImplementedError, match="grid_conv: float64 has no Triton kernel on AMD GPUs"):
        kernels.forward(*CASES["pose"].tensors(torch.float64), "cr")
