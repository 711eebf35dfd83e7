# SPDX-License-Identifier: Apache-2.0
"""The Triton sparse convolution and pooling, run in the strict interpreter against the float64 reference."""

import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import triton.language as tl

sys.path.insert(0, str(Path(__file__).parent))
import interpreter
from flexor import reference as plain
from flexor._cuda import sparse_index as gpu_index
from flexor.kernels import _sparse_conv_bwd, _sparse_depthwise, _sparse_shared
from flexor.kernels import sparse_conv as kernels
from flexor.kernels import sparse_pool as pool_kernels
from flexor.reference.sparse_conv import sparse_conv_backward as reference_backward
from flexor.testing import assert_close

interpreter.install()

NAMES = ("features", "weight", "bias", "residual")
# Relative to the largest magnitude of the exact result.
LIMITS = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def voxels(rows, size, seed=0):
    """Distinct voxels of two samples of a box, in random order."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randperm(2 * int(torch.tensor(size).prod()), generator=generator)[:rows]
    columns = []
    for extent in reversed(size):
        columns.append(cells % extent)
        cells = cells // extent
    return torch.stack([cells, *reversed(columns)], 1).int()


class Maps(NamedTuple):
    forward: list
    transposed: list  # empty: the map with its taps turned round
    inputs: int


def submanifold(rows, size, kernel, dilation=1):
    dims = len(size)
    parts = plain.sparse_index(voxels(rows, size), 2, None, None)
    padding = [k // 2 * dilation for k in kernel]
    relation = (dims, kernel, [1] * dims, padding, [dilation] * dims, False)
    tensors = [parts[0], parts[0], *gpu_index.sparse_map(parts, parts, *relation)]
    return Maps(tensors, [], rows)


def strided(rows, size, kernel, stride, inverse=False):
    dims = len(size)
    fine = plain.sparse_index(voxels(rows, size), 2, None, None)
    relation = (dims, kernel, [stride] * dims, [0] * dims, [1] * dims)
    coarse = plain.sparse_output_index(fine, *relation, False, None, None, False)[1:]
    down = [coarse[0], fine[0], *gpu_index.sparse_map(coarse, fine, *relation, False)]
    up = [fine[0], coarse[0], *gpu_index.sparse_map(fine, coarse, *relation, True)]
    return Maps(up, down, len(coarse[0])) if inverse else Maps(down, up, rows)


MAPS = {
    "submanifold": lambda: submanifold(90, (4, 5, 6), (3, 3, 3)),
    "submanifold-125-taps": lambda: submanifold(15, (3, 4, 5), (5, 5, 5)),
    "submanifold-2d": lambda: submanifold(20, (4, 5), (3, 3)),
    "dilated-2d": lambda: submanifold(30, (7, 9), (3, 3), dilation=2),
    "strided": lambda: strided(80, (5, 6, 7), (2, 2, 2), 2),
    "inverse": lambda: strided(80, (5, 6, 7), (2, 2, 2), 2, inverse=True),
    "overlapping-1d": lambda: strided(20, (40,), (3,), 2),
}


class Case(NamedTuple):
    map: str
    c: int
    o: int
    groups: int = 1
    bias: bool = True
    residual: bool = False

    def tensors(self, dtype):
        """Features, weight, bias, residual; and the maps."""
        maps = MAPS[self.map]()
        taps = maps.forward[2].shape[1]
        width = self.c // self.groups
        weight = (torch.randn(self.o, taps, width) / (taps * width) ** 0.5).to(dtype)
        bias = torch.randn(self.o).to(dtype) if self.bias else None
        residual = torch.randn(len(maps.forward[0]), self.o).to(dtype) if self.residual else None
        return [torch.randn(maps.inputs, self.c).to(dtype), weight, bias, residual], maps


CASES = {
    "plain": Case("submanifold", 18, 20, residual=True),
    "few-channels": Case("submanifold", 3, 5),
    "words": Case("submanifold-125-taps", 16, 3),
    "dilated": Case("dilated-2d", 5, 4, bias=False),
    "strided": Case("strided", 20, 70),
    "inverse": Case("inverse", 33, 16, residual=True),
    "1d": Case("overlapping-1d", 1, 2),
    "groups": Case("submanifold", 12, 8, groups=4),
    "wide-groups": Case("strided", 40, 36, groups=2),
    "depthwise": Case("submanifold", 19, 19, groups=19, residual=True),
    "depthwise-inverse": Case("inverse", 3, 3, groups=3, bias=False),
    "depthwise-multiplier": Case("strided", 3, 6, groups=3),
}


def double(tensors):
    return [None if t is None else t.double() for t in tensors]


def compare(tensors, maps, groups, slope=None, grad=None):
    dtype = tensors[0].dtype
    output = kernels.forward(*tensors, maps.forward, maps.transposed, groups, slope)
    assert output.dtype == dtype
    assert_close(output, plain.sparse_conv(*double(tensors), maps.forward, groups, slope), LIMITS[dtype], what="output")
    grad = torch.randn(output.shape).to(dtype) if grad is None else grad
    arguments = (*tensors, maps.forward, maps.transposed, groups, None, (True,) * 4, False)
    gradients = kernels.backward(grad, *arguments)
    exact = reference_backward(grad.double(), *double(tensors), maps.forward, groups)
    for name, gradient, e, tensor in zip(NAMES, gradients, exact, tensors, strict=True):
        assert (gradient is None) == (tensor is None), name
        if tensor is not None:
            assert gradient.dtype == tensor.dtype and gradient.data_ptr() != grad.data_ptr()
            assert_close(gradient, e, LIMITS[dtype], what=name)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_float32(case):
    tensors, maps = case.tensors(torch.float32)
    compare(tensors, maps, case.groups, slope=0.1 if case.residual else None)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["strided", "1d", "depthwise-inverse"])
def test_dtypes(name, dtype):
    tensors, maps = CASES[name].tensors(dtype)
    compare(tensors, maps, CASES[name].groups, slope=0.01)


@pytest.mark.parametrize("name", ["inverse", "depthwise-inverse"])
def test_bits_do_not_depend_on_program_order(name):
    tensors, maps = CASES[name].tensors(torch.float32)
    grad = torch.randn(len(maps.forward[0]), tensors[1].shape[0])
    found = []
    for seed in range(2):
        with interpreter.program_order(seed):
            arguments = (*tensors, maps.forward, maps.transposed, CASES[name].groups, None, (True,) * 4, True)
            found.append(kernels.backward(grad, *arguments))
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("wanted", range(4))
def test_single_gradients(wanted):
    case = Case("overlapping-1d", 2, 3, residual=True)
    tensors, maps = case.tensors(torch.float32)
    grad = torch.randn(len(maps.forward[0]), 3)
    needs = tuple(i == wanted for i in range(4))
    gradients = kernels.backward(grad, *tensors, maps.forward, maps.transposed, 1, None, needs, False)
    assert [g is not None for g in gradients] == list(needs)
    exact = reference_backward(grad.double(), *double(tensors), maps.forward)[wanted]
    assert_close(gradients[wanted], exact, LIMITS[torch.float32])


def test_64_bit_indices(monkeypatch):
    for module in (kernels, _sparse_conv_bwd, _sparse_depthwise, pool_kernels):
        monkeypatch.setattr(module, "row_index_type", lambda *tensors: tl.int64)
    for name in ("1d", "depthwise-inverse"):
        tensors, maps = CASES[name].tensors(torch.float32)
        compare(tensors, maps, CASES[name].groups)


def test_strides():
    (features, weight, bias, residual), maps = Case("overlapping-1d", 4, 3, residual=True).tensors(torch.float32)
    features = torch.randn(2 * maps.inputs, 8)[::2, ::2]
    weight, bias = weight.transpose(0, 1).contiguous().transpose(0, 1), torch.randn(6)[::2]
    residual = residual[:1].expand(len(maps.forward[0]), -1)
    tensors = [features, weight, bias, residual]
    compare(tensors, maps, 1, grad=torch.randn(3, len(maps.forward[0])).t())
    compare(tensors, maps, 1, grad=torch.ones(1, 1).expand(len(maps.forward[0]), 3))


@pytest.mark.parametrize("name", ["strided", "few-channels", "depthwise"])
def test_nan_reaches_its_neighbours_only(name):
    tensors, maps = CASES[name].tensors(torch.float32)
    tensors[0][7, 1] = torch.nan
    groups = CASES[name].groups
    output = kernels.forward(*tensors, maps.forward, maps.transposed, groups, 0.0)
    assert_close(output, plain.sparse_conv(*double(tensors), maps.forward, groups, 0.0), LIMITS[torch.float32])


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("groups", [1, 4])
def test_few_rows(rows, groups):
    maps = submanifold(rows, (3, 3, 3), (3, 3, 3))
    tensors = [torch.randn(rows, 4), torch.randn(4, 27, 4 // groups), torch.randn(4), None]
    output = kernels.forward(*tensors, maps.forward, [], groups, None)
    assert output.shape == (rows, 4)
    gradients = kernels.backward(output, *tensors, maps.forward, [], groups, None, (True,) * 4, False)
    assert [g if g is None else g.shape for g in gradients] == [t if t is None else t.shape for t in tensors]
    assert all(g is None or g.isfinite().all() for g in gradients)


def test_a_map_of_lists_is_taken_too():
    indices = voxels(20, (9, 9))
    parts = plain.sparse_index(indices, 2, None, None)
    relation = (2, (3, 3), (1, 1), (1, 1), (1, 1), False)
    lists = [parts[0], parts[0], *plain.sparse_map(parts, parts, *relation)]
    table = [parts[0], parts[0], *gpu_index.sparse_map(parts, parts, *relation)]
    features, weight = torch.randn(20, 2), torch.randn(3, 9, 2)
    found = [kernels.forward(features, weight, None, None, map, None, 1, None) for map in (lists, table)]
    assert torch.equal(*found)
    assert torch.equal(*(pool_kernels.forward(features, map, None, "max") for map in (lists, table)))


def test_a_tap_that_no_row_has():
    maps = submanifold(2, (1, 1, 9), (3, 3, 3))
    tensors = [torch.randn(2, 16), torch.randn(3, 27, 16), None, None]
    compare(tensors, maps, 1)


@pytest.mark.parametrize("mode", ["max", "max0", "avg"])
@pytest.mark.parametrize("name", ["strided", "overlapping-1d", "submanifold-2d"])
def test_pooling(name, mode):
    maps = MAPS[name]()
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        features = torch.randn(maps.inputs, 5).sub(0.5).mul(2).round().to(dtype)  # with ties, and all below 0
        output = pool_kernels.forward(features, maps.forward, maps.transposed, mode)
        leaf = features.double().requires_grad_()
        exact = plain.sparse_pool(leaf, maps.forward, mode)
        assert_close(output, exact.detach(), LIMITS[dtype], what="output")
        grad = torch.randn(output.shape).to(dtype)
        (gradient,) = pool_kernels.backward(grad, features, maps.forward, maps.transposed, mode, (True,), False)
        (expected,) = torch.autograd.grad(exact, leaf, grad.double())
        assert gradient.dtype == dtype
        assert_close(gradient, expected, LIMITS[dtype], what="gradient")


def test_pooling_of_nothing_and_of_nan():
    maps = strided(0, (3, 3), (2, 2), 2)
    output = pool_kernels.forward(torch.randn(0, 3), maps.forward, maps.transposed, "max")
    assert output.shape == (0, 3)
    arguments = (output, output, maps.forward, maps.transposed, "max")
    assert pool_kernels.backward(*arguments, (True,), False)[0].shape == (0, 3)
    assert pool_kernels.backward(*arguments, (False,), False) == (None,)
    maps = MAPS["strided"]()
    features = torch.randn(maps.inputs, 3)
    features[4, 1] = torch.nan
    for mode in ("max", "avg"):
        output = pool_kernels.forward(features, maps.forward, maps.transposed, mode)
        assert_close(output, plain.sparse_pool(features.double(), maps.forward, mode), LIMITS[torch.float32])


def test_tf32_where_torch_allows_it(monkeypatch):
    monkeypatch.setattr(kernels, "dot_precision", lambda input: "tf32")
    tensors, maps = CASES["strided"].tensors(torch.float32)
    exact = plain.sparse_conv(*double(tensors), maps.forward)
    found = kernels.forward(*tensors, maps.forward, maps.transposed, 1, None)
    error = (found - exact).abs().max() / exact.abs().max()
    assert 1e-5 < error < 2e-3


def test_float64_on_amd(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    tensors, maps = CASES["1d"].tensors(torch.float64)
    with pytest.raises(NotImplementedError, match="sparse_conv: float64 has no Triton kernel on AMD GPUs"):
        kernels.forward(*tensors, maps.forward, maps.transposed, 1, None)
    with pytest.raises(NotImplementedError, match="sparse_pool: float64 has no Triton kernel on AMD GPUs"):
        pool_kernels.forward(tensors[0], maps.forward, None, "max")


def test_bits_of_a_word():
    masks = torch.tensor([1, 2, 0x80000000, 0xFFFFFFFF, 0x0F0F0F0F, 0x40000001])
    counts = [bin(m).count("1") for m in masks.tolist()]
    lowest = [(m & -m).bit_length() - 1 for m in masks.tolist()]
    found = torch.zeros(2, 8, dtype=torch.int32)
    bits_kernel[(1,)](found, torch.nn.functional.pad(masks, (0, 2), value=1).to(torch.int32))
    assert found[0, :6].tolist() == counts and found[1, :6].tolist() == lowest


@_sparse_shared.triton.jit
def bits_kernel(out, masks):
    i = tl.arange(0, 8)
    mask = tl.load(masks + i).to(tl.uint32, bitcast=True)
    tl.store(out + i, _sparse_shared.count_bits(mask))
    tl.store(out + 8 + i, _sparse_shared.lowest_bit(mask))
