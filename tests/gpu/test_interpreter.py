# SPDX-License-Identifier: Apache-2.0
"""The strict interpreter catches seeded bugs, and kernels without them pass."""

import sys
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder

sys.path.insert(0, str(Path(__file__).parent))
import interpreter

interpreter.install()


@triton.jit
def copy_kernel(out, source, n, MASKED: tl.constexpr, DIVISOR: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < (n if MASKED else n + BLOCK)
    tl.store(out + i // DIVISOR, tl.load(source + i, mask=mask, other=0.0), mask=i < n)


@triton.jit
def boundary_kernel(out, source, STEP: tl.constexpr, BLOCK: tl.constexpr):
    """Every program writes BLOCK elements; with STEP < BLOCK neighbours overlap."""
    i = tl.program_id(0) * STEP + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(source + i))


@triton.jit
def neighbour_kernel(buffer, n, BLOCK: tl.constexpr):
    """In place: reads what the next program writes."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(buffer + i, tl.load(buffer + i + 1, mask=i + 1 < n, other=0.0))


@triton.jit
def count_kernel(out, ATOMIC: tl.constexpr):
    if ATOMIC:
        tl.atomic_add(out, 1.0)
    else:
        tl.store(out, tl.load(out) + 1.0)


@triton.jit
def sum_kernel(out, source, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_add(out, tl.sum(tl.load(source + i, mask=i < n, other=0.0)))


@triton.jit
def product_kernel(out, a, b, UPCAST: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(a + i)
    y = tl.load(b + i)
    if UPCAST:
        x = x.to(tl.float32)
        y = y.to(tl.float32)
    tl.store(out + i, (x * y).to(out.dtype.element_ty))


@triton.jit
def dot_kernel(out, a, b, PRECISION: tl.constexpr):
    i = tl.arange(0, 16)
    at = i[:, None] * 16 + i[None, :]
    tl.store(out + at, tl.dot(tl.load(a + at), tl.load(b + at), input_precision=PRECISION))


@triton.jit
def reduce_kernel(out, a):
    tl.store(out, tl.sum(tl.load(a + tl.arange(0, 16))))


def copy(out, source, masked=True, divisor=1):
    copy_kernel[(4,)](out, source, source.numel(), MASKED=masked, DIVISOR=divisor, BLOCK=32)


def test_correct_kernel_passes():
    source, out = torch.randn(100), torch.zeros(100)
    copy(out, source)
    assert torch.equal(out, source)


def test_lists_are_refused_as_by_the_compiler():
    values = torch.zeros(4)
    with pytest.raises(TypeError, match="copy_kernel: failed to specialize argument of type: list"):
        copy_kernel[(1,)](values, values, [4], MASKED=True, DIVISOR=1, BLOCK=4)


def test_unmasked_tail_is_caught():
    with pytest.raises(Exception, match="28 lanes of a load are outside every tensor"):
        copy(torch.zeros(100), torch.randn(100), masked=False)


def test_tail_into_the_rest_of_a_storage_is_caught():
    with pytest.raises(Exception, match="lanes of a load are outside every tensor"):
        copy(torch.zeros(100), torch.randn(200)[:100], masked=False)


def test_store_that_repeats_addresses_is_caught():
    with pytest.raises(Exception, match="16 lanes of a store repeat an address"):
        copy(torch.zeros(100), torch.randn(100), divisor=2)


def test_write_write_race_is_caught():
    boundary_kernel[(3,)](torch.zeros(96), torch.randn(96), STEP=32, BLOCK=32)
    with pytest.raises(Exception, match=r"store of 1 elements .* races with a store by program 0"):
        boundary_kernel[(3,)](torch.zeros(96), torch.randn(96), STEP=31, BLOCK=32)


def test_read_write_race_is_caught():
    with pytest.raises(Exception, match=r"store of 1 elements .* races with a load by program 0"):
        neighbour_kernel[(2,)](torch.randn(64), 64, BLOCK=32)


def test_missing_atomic_is_caught():
    out = torch.zeros(1)
    count_kernel[(5,)](out, ATOMIC=True)
    assert out.item() == 5
    with pytest.raises(Exception, match="races with"):
        count_kernel[(5,)](out, ATOMIC=False)


def test_order_of_atomics_shows():
    source = torch.randn(512) * 10.0 ** torch.randint(-4, 5, (512,))
    sums = set()
    for seed in range(8):
        out = torch.zeros(1)
        with interpreter.program_order(seed):
            sum_kernel[(16,)](out, source, 512, BLOCK=32)
        sums.add(out.item())
    assert len(sums) > 1


@pytest.mark.parametrize("upcast", [False, True])
def test_bfloat16_product_is_exact(upcast):
    a, b = torch.randn(64).bfloat16(), torch.randn(64).bfloat16()
    out = torch.zeros(64, dtype=torch.bfloat16)
    product_kernel[(1,)](out, a, b, UPCAST=upcast, BLOCK=64)
    assert torch.equal(out, a * b)


def test_bfloat16_product_needs_the_patch(monkeypatch):
    monkeypatch.setattr(InterpreterBuilder, "binary_op", interpreter.StrictBuilder.original["binary_op"])
    a, b = torch.randn(64).bfloat16(), torch.randn(64).bfloat16()
    out = torch.zeros(64, dtype=torch.bfloat16)
    product_kernel[(1,)](out, a, b, UPCAST=False, BLOCK=64)
    assert not torch.equal(out, a * b)


def test_bfloat16_bits_round_to_nearest_even():
    special = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, torch.inf, -torch.inf, 1e-40, -0.0])
    values = torch.cat((torch.randn(1000), special))
    bits = torch.from_numpy(interpreter.bfloat16_bits(values.numpy())).view(torch.bfloat16)
    assert torch.equal(bits, values.bfloat16())
    assert torch.from_numpy(interpreter.bfloat16_bits(torch.tensor([torch.nan]).numpy())).view(torch.bfloat16).isnan()


def test_bfloat16_dot():
    a, b = torch.randn(16, 16).bfloat16(), torch.randn(16, 16).bfloat16()
    out = torch.zeros(16, 16)
    dot_kernel[(1,)](out, a, b, PRECISION="ieee")
    assert torch.allclose(out.double(), a.double() @ b.double(), atol=1e-5)


def test_bfloat16_reduction_raises():
    with pytest.raises(Exception, match="bfloat16 reductions are not emulated"):
        reduce_kernel[(1,)](torch.zeros(1, dtype=torch.bfloat16), torch.randn(16).bfloat16())


def test_tf32_rounding_shows():
    a, b = torch.randn(16, 16), torch.randn(16, 16)
    errors = {}
    for precision in ("ieee", "tf32"):
        out = torch.zeros(16, 16)
        dot_kernel[(1,)](out, a, b, PRECISION=precision)
        errors[precision] = (out.double() - a.double() @ b.double()).abs().max().item()
    assert errors["ieee"] < 1e-5 < 1e-4 < errors["tf32"] < 1e-2
