# SPDX-License-Identifier: Apache-2.0
"""Convolutions that the tests of sparse_conv share, solved exactly."""

import functools
from typing import NamedTuple

import pytest
import torch
from flexor import ops
from flexor.testing import running, ways
from sparse_voxels import scene

WAYS = ways("sparse_conv")
WAY = pytest.mark.parametrize("way", WAYS, ids=str)
# Relative to the largest magnitude of the exact result.
LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
NAMES = ("features", "weight", "bias", "residual")
SHAPES = {1: (600,), 2: (19, 31), 3: (13, 9, 11), 4: (5, 4, 6, 7)}


class Case(NamedTuple):
    """A convolution of one kind: sub(manifold), strided, generative, or the inverse of a strided one."""

    kind: str
    cin: int
    cout: int
    kernel: int | tuple[int, ...] = 3
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    rows: int = 150
    dims: int = 3
    bias: bool = True
    residual: bool = False

    @property
    def sizes(self):
        return (self.kernel,) * self.dims if isinstance(self.kernel, int) else self.kernel

    @property
    def window(self):
        return [(value,) * self.dims for value in self[4:7]]

    def indices(self):
        return scene(SHAPES[self.dims], self.rows)

    def map(self, indices, device="cpu"):
        index = ops.SparseIndex(indices.to(device), spatial_shape=SHAPES[self.dims], batch_size=2)
        window = self.sizes, self.stride, self.padding, self.dilation
        if self.kind == "sub":
            return index.submanifold(self.sizes, self.dilation)
        if self.kind == "generative":
            return index.generative(*window)[1]
        map = index.strided(*window)[1]
        return map.transposed() if self.kind == "inverse" else map

    def tensors(self, indices, dtype=torch.float64):
        """Rounded to dtype, so that every dtype sees the same numbers."""
        with running(WAYS[0]):
            map = self.map(indices)
        taps = torch.Size(self.sizes).numel()
        made = (
            torch.randn(len(map.input), self.cin),
            torch.randn(self.cout, *self.sizes, self.cin // self.groups) * (self.cin * taps / self.groups) ** -0.5,
            torch.randn(self.cout) if self.bias else None,
            torch.randn(len(map.out), self.cout) if self.residual else None,
        )
        return [None if t is None else t.to(dtype) for t in made]


CASES = {
    "one": Case("sub", 1, 1, 1, rows=1),
    "one-row": Case("sub", 3, 5, rows=1),
    "stem": Case("sub", 3, 16, rows=700),
    "stem-4": Case("sub", 4, 32, 5),
    "16": Case("sub", 16, 16, rows=600),
    "32": Case("sub", 32, 32, rows=300, residual=True),
    "32-64": Case("sub", 32, 64, bias=False),
    "64": Case("sub", 64, 64, rows=257),
    "96-48": Case("sub", 96, 48),
    "128": Case("sub", 128, 128, rows=256),
    "odd": Case("sub", 7, 63, rows=513, residual=True),
    "odd-129": Case("sub", 129, 7),
    "1x1": Case("sub", 17, 33, 1),
    "dilated": Case("sub", 8, 9, dilation=2),
    "even": Case("sub", 6, 8, 2),
    "mixed-kernel": Case("sub", 6, 8, (1, 3, 4)),
    "down": Case("strided", 16, 32, 2, 2, rows=600),
    "down-3": Case("strided", 5, 8, 3, 2, 1, residual=True),
    "down-dilated": Case("strided", 5, 8, 3, 2, 1, 2),
    "full": Case("strided", 4, 6, 3, 1, 1),
    "down-kernel-1": Case("strided", 4, 6, 1, 2),
    "inverse": Case("inverse", 32, 16, 2, 2, rows=600),
    "inverse-3": Case("inverse", 5, 8, 3, 2, 1, residual=True),
    "generative": Case("generative", 8, 4, 2, 2),
    "generative-3": Case("generative", 5, 3, 3, 2, 1, 2),
    "groups": Case("sub", 12, 18, groups=3),
    "groups-odd": Case("sub", 15, 10, groups=5, residual=True),
    "depthwise": Case("sub", 33, 33, groups=33, rows=300),
    "depthwise-down": Case("strided", 16, 32, 3, 2, 1, groups=16),
    "1d": Case("sub", 8, 7, 5, dims=1),
    "1d-down": Case("strided", 8, 7, 4, 3, 2, dims=1),
    "2d": Case("sub", 8, 16, dims=2),
    "2d-inverse": Case("inverse", 8, 16, 3, 2, dims=2),
    "4d": Case("sub", 5, 6, dims=4),
    "4d-down": Case("strided", 5, 6, 2, 2, dims=4),
    "4d-generative": Case("generative", 3, 4, 2, 2, rows=60, dims=4),
}
CASE = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
SMALL = Case("strided", 5, 8, 3, 2, 1, residual=True, rows=90)
TINY = Case("sub", 2, 3, (2, 1, 1), rows=4, residual=True)


def call(tensors, map, case, **options):
    features, weight, bias, residual = tensors
    return ops.sparse_conv(features, weight, map, bias, residual, case.groups, **options)


def gradients(function, tensors, grad_output):
    leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
    output = function(leaves)
    present = [t for t in leaves if t is not None]
    return torch.autograd.grad(output, present, grad_output.to(output.device, output.dtype))


def exactly(tensors, map, case):
    doubles = [None if t is None else t.double().cpu() for t in tensors]
    return call(doubles, map, case, backend="reference")


@functools.cache
def solved(case, dtype):
    """Indices, tensors and grad_output in dtype, the exact output and the exact gradients of those tensors."""
    torch.manual_seed(0)
    indices = case.indices()
    tensors = case.tensors(indices, dtype)
    with running(WAYS[0]):
        map = case.map(indices)
        output = exactly(tensors, map, case)
        grad_output = torch.randn_like(output).to(dtype)
        doubles = [None if t is None else t.double() for t in tensors]
        grads = gradients(lambda t: exactly(t, map, case), doubles, grad_output)
    return indices, tensors, grad_output, output, grads


def on(way, tensors):
    return [None if t is None else t.to(way.device) for t in tensors]
