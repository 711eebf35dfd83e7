# SPDX-License-Identifier: Apache-2.0
"""What is timed of sparse convolution: a layer, the finding of maps, a whole network."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from flexor import _backend, reference
from flexor.models.sparse_unet import ScanNetUNet
from flexor.nn import SparseTensor, SubmanifoldConv3d
from flexor.ops import SparseIndex, sparse_conv

from .contest import (
    BACKWARD,
    BUILD,
    FORWARD,
    ONE_THREAD,
    OURS,
    TRAINING,
    Call,
    Contest,
    Unavailable,
    directed,
    entered,
    on_one_thread,
)
from .sparse_networks import Network, scn_unet, spconv_unet
from .sparse_peers import (
    KERNEL,
    TAPS,
    Conv,
    Voxels,
    gather_mm_add,
    open3d_conv,
    scn_conv,
    spconv_conv,
    spconv_counts,
    spconv_pairs,
)
from .sparse_scene import Scene, bounds, samples, voxels

GEMM = "torch.mm"
GEMM_SIZE = 2048
SPCONV = "spconv"
GATHER = "gather-mm-add"
SCN = "SparseConvNet"
OPEN3D = "Open3D"
FLOAT32 = ", float32"
CONVS: dict[str, Callable[[Voxels], Conv]] = {
    OURS: lambda at: lambda features, weight: sparse_conv(features, weight, at.map),
    SPCONV: spconv_conv,
    GATHER: gather_mm_add,
    SCN: scn_conv,
    OPEN3D: open3d_conv,
}

# Directions of its own
INPUT, WEIGHT = "input gradient", "weight gradient"
FIND = "from an index"  # a map; BUILD is from coordinates

SORTED, USER = "rows sorted", "user's rows"
SUBMANIFOLD = "submanifold 3^3"
# name -> kernel, stride, padding; a stride of 1 is submanifold
WINDOWS = {SUBMANIFOLD: (3, 1, 1), "strided 3^3 s2": (3, 2, 1), "strided 2^3 s2": (2, 2, 0)}


@functools.lru_cache(maxsize=2)
def layer_voxels(scene: Scene, rows: str) -> Voxels:
    """A scene with the map of a submanifold layer, its rows in random order or as the index sorts them."""
    indices = voxels(scene)
    if rows == SORTED:
        indices = indices[_index(scene, indices).parts[0].long()]
    return Voxels(indices, bounds(scene), samples(scene), _index(scene, indices).submanifold(KERNEL))


def _index(scene: Scene, indices: Tensor) -> SparseIndex:
    return SparseIndex(indices, spatial_shape=bounds(scene), batch_size=samples(scene))


@functools.cache
def _gemm(dtype: torch.dtype) -> Call:
    a, b = (torch.randn(GEMM_SIZE, GEMM_SIZE).to(dtype) for _ in range(2))
    product = torch.empty_like(a)
    return lambda: (torch.mm(a, b, out=product),)


@dataclass(frozen=True, kw_only=True)
class SceneContest(Contest):
    """Work on the voxels of a scene."""

    scene: Scene

    @property
    def items(self) -> int:
        return voxels(self.scene).shape[0]


@dataclass(frozen=True, kw_only=True)
class ConvContest(SceneContest):
    """A submanifold 3x3x3 layer with its map found before; torch's own product of 2048^2 matrices for scale."""

    op: ClassVar[str] = "sparse_conv"
    other_work: ClassVar[tuple[str, ...]] = (GEMM, GEMM + ONE_THREAD, GEMM + FLOAT32)

    channels: int
    rows: str

    @property
    def tensors(self) -> tuple[str, ...]:
        named = {INPUT: ("grad_features",), WEIGHT: ("grad_weight",)}
        return named.get(self.direction, ("output", "grad_features", "grad_weight"))

    @property
    def contestants(self) -> tuple[str, ...]:
        if self.threads > 1:
            return OURS, OURS + ONE_THREAD, GEMM, GEMM + ONE_THREAD
        if self.dtype != torch.float32:
            return OURS, OURS + FLOAT32, GEMM, GEMM + FLOAT32
        if self.direction in (INPUT, WEIGHT):
            return OURS, GEMM
        if self.rows == SORTED or self.scene.path:
            return (OURS, GEMM, SPCONV, GATHER) if self.channels < 128 else (OURS, GEMM, SPCONV)
        return OURS, GEMM, SPCONV, GATHER, SCN, OPEN3D

    @property
    def flops(self) -> int:
        """Multiply-adds of all pairs, two operations each; as many for each of the two gradients."""
        products = 3 if self.direction == TRAINING else 1
        return products * 2 * self._pairs * self.channels**2

    @property
    def bytes(self) -> int:
        """Features, weights and map are read, outputs written; a gradient is written in their place."""
        passes = 3 if self.direction == TRAINING else 1
        tensors = 2 * self.items * self.channels + TAPS * self.channels**2
        return passes * (self.dtype.itemsize * tensors + 5 * self._pairs)

    @property
    def _pairs(self) -> int:
        return layer_voxels(self.scene, self.rows).map.tensors[2].shape[0]

    @property
    def tolerance(self) -> float:
        return 1e-2 if self.dtype == torch.bfloat16 else 1e-5

    def enter(self) -> Iterator[tuple[str, Call | Unavailable]]:
        return entered(self.contestants, self.call)

    def call(self, name: str) -> Call:
        """A contestant's. Raises: Unavailable."""
        if name.endswith(ONE_THREAD):
            return on_one_thread(self.call(name.removesuffix(ONE_THREAD)), self.threads)
        dtype = torch.float32 if name.endswith(FLOAT32) else self.dtype
        contestant = name.removesuffix(FLOAT32)
        if contestant == GEMM:
            return _gemm(dtype)
        if contestant == SPCONV and self.direction != FORWARD:
            raise Unavailable("spconv has no backward on the CPU")
        if contestant == OPEN3D and self.channels > 64:
            raise Unavailable("more than 64 channels take Open3D seconds")
        conv = CONVS[contestant](layer_voxels(self.scene, self.rows))
        return self._directed(conv, [t.to(dtype) for t in self._tensors()])

    def _tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Features, weight and grad_output."""
        generator = torch.Generator().manual_seed(0)
        shape, c = (self.items, self.channels), self.channels
        weight = torch.randn((c, *(KERNEL,) * 3, c), generator=generator) / (c * TAPS) ** 0.5
        features, grad_output = (torch.randn(shape, generator=generator) for _ in range(2))
        return features.to(self.dtype), weight.to(self.dtype), grad_output.to(self.dtype)

    def _directed(self, conv: Conv, tensors: Sequence[Tensor]) -> Call:
        features, weight, grad_output = (t.detach() for t in tensors)
        wanted = {FORWARD: [], INPUT: [features], WEIGHT: [weight], TRAINING: [features, weight]}[self.direction]
        for leaf in wanted:
            leaf.requires_grad_()
        way = self.direction if self.direction in (FORWARD, TRAINING) else BACKWARD
        return directed(lambda: conv(features, weight), wanted, grad_output, way)

    def expected(self, results: dict[str, tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """What plain PyTorch computes in float32."""
        return results[GATHER] if GATHER in results else self.call(GATHER + FLOAT32)()


@dataclass(frozen=True, kw_only=True)
class MapContest(SceneContest):
    """The pairs of input and output that meet under a kernel, and a strided kernel's outputs."""

    op: ClassVar[str] = "sparse_map"
    tensors: ClassVar[tuple[str, ...]] = ("pairs at each tap", "output coordinates")
    other_work: ClassVar[tuple[str, ...]] = (GEMM, GEMM + ONE_THREAD)

    window: str

    @property
    def contestants(self) -> tuple[str, ...]:
        if self.threads > 1:
            return OURS, OURS + ONE_THREAD, GEMM, GEMM + ONE_THREAD
        return (OURS, SPCONV, SCN) if self.direction == BUILD else (OURS,)

    @property
    def flops(self) -> int:
        return 0

    @property
    def bytes(self) -> int:
        """Coordinates are read, 5 bytes of every pair written."""
        return 16 * self.items + 5 * int(self._reference[0].sum())

    @property
    def tolerance(self) -> float:
        return 0

    @property
    def _reference(self) -> tuple[Tensor, Tensor]:
        return _reference_map(self.scene, self.window)

    def enter(self) -> Iterator[tuple[str, Call | Unavailable]]:
        indices = voxels(self.scene)
        kernel, stride, padding = WINDOWS[self.window]
        index = _index(self.scene, indices)
        index.parts  # noqa: B018  # from now on there

        def ours() -> tuple[Tensor, ...]:
            # Either is without maps yet.
            start = _index(self.scene, indices) if self.direction == BUILD else tree_map(lambda part: part, index)
            map = start.submanifold(kernel) if stride == 1 else start.strided(kernel, stride, padding)[1]
            return map.out.indices, map.tensors[4]

        yield OURS, ours
        if self.threads > 1:
            yield OURS + ONE_THREAD, on_one_thread(ours, self.threads)
            yield GEMM, _gemm(torch.float32)
            yield GEMM + ONE_THREAD, on_one_thread(_gemm(torch.float32), self.threads)
        elif self.direction == BUILD:
            try:
                bound = bounds(self.scene), samples(self.scene)
                yield SPCONV, spconv_pairs(indices, *bound, kernel, stride, padding)
            except Unavailable as absent:
                yield SPCONV, absent
            yield SCN, Unavailable("SparseConvNet finds its pairs within the first convolution")

    def check(self, results: dict[str, tuple[Tensor, ...]]) -> dict[str, float]:
        """Whether everyone found as many pairs at every tap, and the same outputs in whatever order."""
        submanifold = WINDOWS[self.window][1] == 1
        same = {}
        for name in results.keys() - set(self.other_work):
            found, pairs = results[name]
            taps = len(self._reference[0])
            if name == SPCONV:
                pairs = spconv_counts(pairs, self.items, submanifold)
            else:
                pairs = pairs.diff().view(-1, taps).sum(0)
            same[name] = pairs, found.unique(dim=0)
        return super().check(same)

    def expected(self, results: dict[str, tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """What the reference finds."""
        return self._reference


@functools.cache
def _reference_map(scene: Scene, window: str) -> tuple[Tensor, Tensor]:
    """Pairs at every tap and sorted outputs."""
    kernel, stride, padding = WINDOWS[window]
    relation = (kernel,) * 3, (stride,) * 3, (padding,) * 3, (1,) * 3, False
    indices, shape = voxels(scene), bounds(scene)
    parts = reference.sparse_index(indices, samples(scene), [0] * 3, shape)
    found, *out = indices, *parts
    if stride > 1:
        upper = [(size + 2 * padding - kernel) // stride + 1 for size in shape]
        found, *out = reference.sparse_output_index(parts, 3, *relation, [0] * 3, upper, False)
    offsets = reference.sparse_map(out, parts, 3, *relation)[2]
    return offsets.diff().view(-1, kernel**3).sum(0), found.unique(dim=0)


@dataclass(frozen=True, kw_only=True)
class NetworkContest(SceneContest):
    """SparseConvNet's U-Net for ScanNet in evaluation: 7 levels, 16 channels at first, one VGG-style block a side.

    From coordinates and features: everyone finds all of the maps in every call, as for a new sweep.
    """

    op: ClassVar[str] = "sparse_unet"
    tensors: ClassVar[tuple[str, ...]] = ("logits",)

    @property
    def contestants(self) -> tuple[str, ...]:
        return OURS, SPCONV, SCN

    @property
    def flops(self) -> int:
        """Multiply-adds of all pairs of all layers and of the classifier."""
        return _network_flops(self.scene)

    @property
    def bytes(self) -> int:
        """Parameters, features and coordinates are read, logits written."""
        model = _network()
        parameters = sum(p.numel() for p in model.parameters())
        return 4 * (parameters + self.items * (3 + 4 + model.linear.out_features))

    @property
    def tolerance(self) -> float:
        return 1e-4

    def enter(self) -> Iterator[tuple[str, Call | Unavailable]]:
        place = bounds(self.scene), samples(self.scene)
        features = torch.rand((self.items, 3), generator=torch.Generator().manual_seed(0)) * 2 - 1
        for name in self.contestants:
            try:
                run = functools.partial(_network_of(name, *place), features, voxels(self.scene))
                yield name, directed(run, (), features, FORWARD)
            except Unavailable as absent:
                yield name, absent

    def expected(self, results: dict[str, tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """What spconv or SparseConvNet computes; without them our reference."""
        for peer in (SPCONV, SCN):
            if peer in results:
                return results[peer]
        forced = _backend.forced()
        _backend.set_backend("reference")
        try:
            return dict(self.enter())[OURS]()
        finally:
            _backend.set_backend(forced)


@functools.cache
def _network() -> ScanNetUNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ScanNetUNet.preset("small").eval()


def _network_of(name: str, shape: Sequence[int], batch: int) -> Network:
    model = _network()
    if name == SPCONV:
        return spconv_unet(model, shape, batch)
    if name == SCN:
        return scn_unet(model)
    return lambda features, indices: model(SparseTensor(features, indices, shape, batch))


@functools.cache
def _network_flops(scene: Scene) -> int:
    model, index = _network(), _index(scene, voxels(scene))
    convs = [module for module in model.unet.modules() if isinstance(module, SubmanifoldConv3d)]
    planes = sorted({conv.out_channels for conv in convs})
    macs = model.linear.weight.numel() * len(index)
    for level, channels in enumerate(planes):
        pairs = index.submanifold(KERNEL).tensors[2].shape[0]
        macs += pairs * channels * sum(conv.in_channels for conv in convs if conv.out_channels == channels)
        if level + 1 < len(planes):  # down and up again, every voxel in one pair
            macs += 2 * len(index) * channels * planes[level + 1]
            index = index.strided(2, 2, 0)[0]
    return 2 * macs
