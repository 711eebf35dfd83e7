# SPDX-License-Identifier: Apache-2.0
"""The public ops with backend="triton", through autograd, down to the kernels in the interpreter."""

import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import interpreter
from flexor import ops, reference

interpreter.install()


@pytest.fixture(params=[False, True], ids=["plain", "deterministic"])
def deterministic(request):
    torch.use_deterministic_algorithms(request.param)
    yield request.param
    torch.use_deterministic_algorithms(False)


def assert_same(op, twin, tensors):
    leaves = [t.clone().requires_grad_() for t in tensors]
    exact_leaves = [t.double().requires_grad_() for t in tensors]
    output, exact = op(*leaves), twin(*exact_leaves)
    torch.testing.assert_close(output.double(), exact, rtol=1e-5, atol=1e-5)
    grad = torch.randn_like(output)
    gradients = torch.autograd.grad(output, leaves, grad)
    for a, e in zip(gradients, torch.autograd.grad(exact, exact_leaves, grad.double()), strict=True):
        torch.testing.assert_close(a.double(), e, rtol=1e-5, atol=2e-5)


def test_deform_conv2d(deterministic):
    tensors = [
        torch.randn(1, 6, 5, 7),
        torch.randn(1, 36, 5, 7),
        torch.randn(4, 3, 3, 3),
        torch.randn(4),
        torch.randn(1, 18, 5, 7),
    ]
    geometry = {"stride": (1, 1), "padding": (2, 3), "dilation": (2, 3)}

    def call(function, **extra):
        return lambda i, o, w, b, m: function(i, o, w, b, mask=m, **geometry, **extra)

    assert_same(call(ops.deform_conv2d, backend="triton"), call(reference.deform_conv2d), tensors)


def test_through_the_dispatcher():
    """It turns tuples of integers into lists."""
    tensors = [torch.randn(1, 2, 4, 5), torch.randn(1, 18, 4, 5), torch.randn(3, 2, 3, 3), torch.randn(3), None]
    geometry = (1, 1), (1, 1), (1, 1)
    output = torch.ops.flexor.deform_conv2d(*tensors, *geometry, "triton")
    expected = reference.deform_conv2d(*tensors[:4], *geometry)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    needs = [True, True, True, True, False]
    grads = torch.ops.flexor.deform_conv2d_backward(torch.ones_like(output), *tensors, *geometry, needs, "triton")
    leaves = [t.requires_grad_() for t in tensors[:4]]
    exact = torch.autograd.grad(reference.deform_conv2d(*leaves, *geometry).sum(), leaves)
    for grad, true in zip(grads, exact, strict=False):
        torch.testing.assert_close(grad, true, rtol=1e-4, atol=1e-4)


def test_warp2d(deterministic):
    tensors = [torch.randn(2, 3, 5, 6), 2 * torch.randn(2, 2, 4, 7)]
    assert_same(lambda i, f: ops.warp2d(i, f, backend="triton"), reference.warp2d, tensors)


def test_affine_warp2d(deterministic):
    tensors = [torch.randn(1, 3, 5, 6), torch.tensor([[[0.9, 0.2, 0.37], [-0.1, 1.1, 0.61]]])]
    op = lambda i, m: ops.affine_warp2d(i, m, (4, 5), backend="triton")  # noqa: E731
    assert_same(op, lambda i, m: reference.affine_warp2d(i, m, (4, 5)), tensors)


def test_sparse_conv(deterministic):
    cells = torch.randperm(60)[:30]
    indices = torch.stack([cells % 2, cells // 2 % 5, cells // 10], 1).int()
    index = ops.SparseIndex(indices, backend="triton")
    _, down = index.strided(2, 2, 0)
    for map in (index.submanifold(3), down, down.transposed()):
        rows_in, rows_out, taps = len(map.input), len(map.out), math.prod(map.kernel)
        tensors = [torch.randn(rows_in, 3), torch.randn(4, *map.kernel, 3), torch.randn(4), torch.randn(rows_out, 4)]

        def op(f, w, b, r, map=map):
            return ops.sparse_conv(f, w, map, b, r, slope=0.1, backend="triton")

        def twin(f, w, b, r, map=map, taps=taps):
            return reference.sparse_conv(f, w.reshape(4, taps, 3), b, r, map.tensors, slope=0.1)

        assert_same(op, twin, tensors)


def test_sparse_pool(deterministic):
    indices = torch.tensor([[0, i, j] for i in range(4) for j in range(0, 7, 2)])
    _, map = ops.SparseIndex(indices, backend="triton").strided(3, 2, 1)
    for mode in ("max", "max0", "avg"):
        op = lambda f, mode=mode: ops.sparse_pool(f, map, mode, backend="triton")  # noqa: E731
        assert_same(op, lambda f, mode=mode: reference.sparse_pool(f, map.tensors, mode), [torch.randn(16, 3)])
