# SPDX-License-Identifier: Apache-2.0
"""What gpu_check.py runs of sparse convolution: layers of a network on a surface, and the index that they run on."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import gpu_report
import torch
from flexor import ops
from flexor._cuda import neighbours
from flexor.reference.sparse_conv import Pairs, pairs_by_tap
from gpu_report import Report, check_case

Tensors = list[torch.Tensor]


def surface(side: int) -> torch.Tensor:
    """Voxels of a wavy surface two voxels thick over a square, in random order."""
    place = torch.arange(side)
    x, y = (axis.flatten() for axis in torch.meshgrid(place, place, indexing="ij"))
    z = (6 * torch.sin(x / 9.0) + 5 * torch.cos(y / 7.0) + x / 5.0).round().long()
    columns = [torch.stack([torch.zeros_like(x), z + i, y, x], 1) for i in range(2)]
    voxels = torch.cat(columns).int()
    return voxels[torch.randperm(len(voxels), generator=torch.Generator().manual_seed(0))]


@functools.lru_cache(maxsize=8)
def index_of(side: int, device: torch.device, backend: str | None) -> ops.SparseIndex:
    return ops.SparseIndex(surface(side).to(device), backend=backend)


class SparseCase(NamedTuple):
    """One sparse convolution or pooling, all tensors differentiable."""

    side: int
    channels: int
    outputs: int
    window: int = 3
    stride: int = 0  # 0: submanifold
    inverse: bool = False
    groups: int = 1
    pool: str = ""

    @property
    def name(self) -> str:
        kind = self.pool or "conv"
        where = f"s{self.stride}{' inverse' if self.inverse else ''}" if self.stride else "submanifold"
        return f"sparse {kind} {self.channels}->{self.outputs} k{self.window} {where} g{self.groups} {2 * self.side**2}"

    @property
    def flops(self) -> int:
        pairs = sum(len(found.outputs) for found in taps_of(self, torch.device("cpu")))
        return 2 * pairs * self.channels * (self.outputs // self.groups if not self.pool else 1)

    def map(self, device: torch.device, backend: str | None) -> ops.SparseMap:
        index = index_of(self.side, device, backend)
        if not self.stride:
            return index.submanifold(self.window)
        _, map = index.strided(self.window, self.stride, self.window // 2 if self.window % 2 else 0)
        return map.transposed() if self.inverse else map

    def tensors(self, dtype: torch.dtype, channels_last: bool, attention_dtype: torch.dtype) -> Tensors:
        """Features, weight, bias and residual; what memory format and attentions there are does not matter here."""
        generator = torch.Generator().manual_seed(0)
        map, group_channels = self.map(torch.device("cpu"), None), self.channels // self.groups
        fan_in = group_channels * self.window**3
        made = [torch.randn(len(map.input), self.channels, generator=generator)]
        if not self.pool:
            weight = torch.randn(self.outputs, *(self.window,) * 3, group_channels, generator=generator)
            made += [weight / fan_in**0.5, torch.randn(self.outputs, generator=generator)]
            made.append(torch.randn(len(map.out), self.outputs, generator=generator))
        return [t.to(dtype) for t in made]

    def run(self, backend: str, features: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        map = self.map(features.device, backend)
        if self.pool:
            return ops.sparse_pool(features, map, self.pool, backend=backend)
        weight, bias, residual = others
        return ops.sparse_conv(features, weight, map, bias, residual, self.groups, backend=backend)

    def kernel(self, *tensors: torch.Tensor) -> torch.Tensor:
        return self.run("triton", *tensors)

    def reference(self, *tensors: torch.Tensor) -> torch.Tensor:
        return self.run("reference", *tensors)

    def peer(self, features: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        """Gather, multiply, scatter: what one would write without flexor."""
        rows = len(self.map(torch.device("cpu"), None).out)
        if self.pool:
            output = features.new_full((rows, self.channels), -torch.inf)
            for _, outputs, inputs in taps_of(self, features.device):
                index = outputs[:, None].expand(-1, self.channels)
                output = output.scatter_reduce(0, index, features[inputs], "amax")
            return output
        weight, bias, residual = others
        output = residual + bias
        for tap, outputs, inputs in taps_of(self, features.device):
            split = weight.flatten(1, 3)[:, tap].unflatten(0, (self.groups, -1))
            product = torch.einsum("pgc,goc->pgo", features[inputs].unflatten(1, (self.groups, -1)), split)
            output = output.index_add(0, outputs, product.flatten(1))
        return output


@functools.lru_cache(maxsize=8)
def taps_of(case: SparseCase, device: torch.device) -> list[Pairs]:
    map = case.map(torch.device("cpu"), None)
    found = pairs_by_tap(map.tensors, math.prod(map.kernel))
    return [Pairs(tap, outputs.to(device), inputs.to(device)) for tap, outputs, inputs in found]


def groups() -> Iterator[tuple[str, Callable[[Report], None]]]:
    """Indices by the code that nvcc made and by what NVRTC makes, then what runs on them."""
    for suffix in (".fatbin", ".cu"):
        yield f"sparse index {suffix}", functools.partial(check_index, suffix)
    for case in CHECKED:
        yield case.name, functools.partial(check_case, case)


def check_index(suffix: str, report: Report) -> None:
    """Every tensor as the CPU makes it."""
    with gpu_report.only_files(suffix):
        for side in SIDES:
            name = f"sparse index {suffix} of {2 * side**2} voxels"
            report.check(name, functools.partial(differing_parts, side, gpu_report.DEVICE), 0.0)


def differing_parts(side: int, device: str) -> int:
    """Tensors of an index, of its strided outputs and of three maps that the GPU makes unlike the CPU."""
    found = []
    for index in (index_of(side, torch.device("cpu"), None), index_of(side, torch.device(device), "triton")):
        out, down = index.strided(3, 2, 1)
        maps = []
        for map in (index.submanifold(3), down, down.transposed()):
            tensors = map.tensors
            maps += tensors[2:] if tensors[2].dim() == 2 else neighbours.from_lists(tensors)
        # Slots are left empty where plain PyTorch makes the index.
        parts = [part for parts in (index.parts, out.parts) for i, part in enumerate(parts) if i != 4]
        found.append([t.cpu() for t in (out.indices, *parts, *maps)])
    return sum(not torch.equal(a, b) for a, b in zip(*found, strict=True))


SIDES = (1, 20, 300)
CHECKED = [
    SparseCase(20, 48, 40),
    SparseCase(20, 3, 17),
    SparseCase(14, 20, 9, window=5),
    SparseCase(20, 64, 130, window=2, stride=2),
    SparseCase(20, 33, 16, window=2, stride=2, inverse=True),
    SparseCase(20, 40, 24, stride=2, groups=4),
    SparseCase(20, 40, 40, groups=40),
    SparseCase(20, 40, 40, stride=2, pool="max"),
    SparseCase(20, 17, 17, stride=2, pool="avg"),
]
TIMED = [
    SparseCase(224, 3, 16),
    SparseCase(224, 32, 32),
    SparseCase(224, 64, 64),
    SparseCase(224, 128, 128),
    SparseCase(224, 64, 128, window=2, stride=2),
    SparseCase(224, 64, 64, groups=64),
]
