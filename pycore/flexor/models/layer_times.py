# SPDX-License-Identifier: Apache-2.0
"""How long each layer of a sparse network takes: the map of its neighbours, and the convolution."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..nn.sparse import ConvModule, SparseConv3d, SparseConvTranspose3d, SubmanifoldConv3d
from ..nn.sparse_norm import SparseBatchNorm
from ..nn.sparse_tensor import SparseTensor
from ..ops import SparseMap


@dataclass(frozen=True)
class LayerTime:
    """One layer.

    Args:
        name, channels: of the module; such as 16->32.
        voxels: of its output.
        pairs: of an output and an input voxel in its map, 0 where it has none.
        shared: whether an earlier layer had made the map.
        map, compute: seconds.
        flops: 2 * pairs * inputs * outputs.
    """

    name: str
    channels: str
    voxels: int
    pairs: int
    shared: bool
    map: float
    compute: float
    flops: int


def time_layers(model: nn.Module, make: Callable[[], SparseTensor], repeats: int = 3) -> tuple[Tensor, list[LayerTime]]:
    """Run a network without gradients, and time its convolutions, norms and linear layers.

    Args:
        model: of the layers of flexor.nn.
        make: makes its input, whose index must be new each time, so that every map is built again.
        repeats: runs; of each layer's times the least is kept.

    Returns:
        The output of the last run, and the layers in the order in which they ran.
    """
    runs = []
    for _ in range(repeats):
        clock = _Clock(model)
        with torch.no_grad():
            output = clock.run(make())
        runs.append(clock.times)
    least = [
        replace(layers[0], map=min(t.map for t in layers), compute=min(t.compute for t in layers))
        for layers in zip(*runs, strict=True)
    ]
    return output, least


class _Clock:
    """Hooks around the layers for one run."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.times = model, list[LayerTime]()
        self.started, self.map_time = 0.0, 0.0
        self.map: SparseMap | None = None
        self.seen: set[int] = set()
        self.kept: list[Any] = []  # as long as tensors of a map live, no other tensor has their address

    def run(self, input: SparseTensor) -> Tensor:
        hooks = []
        for name, module in self.model.named_modules():
            if isinstance(module, (ConvModule, SparseBatchNorm, nn.Linear)):
                hooks.append(module.register_forward_pre_hook(self._before, with_kwargs=True))
                hooks.append(module.register_forward_hook(self._after(name)))
        try:
            return self.model(input)
        finally:
            for hook in hooks:
                hook.remove()

    def _before(self, module: nn.Module, arguments: Any, named: Any) -> None:
        self.map, self.map_time = None, 0.0
        start = _now(arguments[0])
        if isinstance(module, ConvModule):
            self.map = _map(module, arguments[0], named.get("target"))
            self.kept.append(self.map.tensors)
            self.map_time = _now(arguments[0]) - start
        self.started = _now(arguments[0])

    def _after(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(module: nn.Module, _: Any, output: Any) -> None:
            seconds = _now(output) - self.started
            pairs, shared = 0, False
            if self.map is not None:
                built = self.map.tensors[2]
                pairs, shared = _pairs(self.map), id(built) in self.seen
                self.seen.add(id(built))
            features = output.features if isinstance(output, SparseTensor) else output
            inputs = getattr(module, "in_channels", getattr(module, "in_features", features.shape[1]))
            flops = 2 * pairs * inputs * features.shape[1] // getattr(module, "groups", 1)
            shape = f"{inputs}->{features.shape[1]}"
            layer = LayerTime(name, shape, len(features), pairs, shared, self.map_time, seconds, flops)
            self.times.append(layer)

        return note


def _map(module: ConvModule, input: SparseTensor, target: SparseTensor | None) -> SparseMap:
    """The map that the layer is about to use: it stays with the index."""
    window = module.kernel_size, module.stride, module.padding, module.dilation
    if isinstance(module, SubmanifoldConv3d):
        return input.index.submanifold(module.kernel_size, module.dilation)
    if isinstance(module, SparseConv3d):
        return input.index.strided(*window)[1]
    assert isinstance(module, SparseConvTranspose3d)
    if target is None:
        return input.index.generative(*window, module.output_padding)[1]
    return target.index.strided(*window)[1].transposed()


def _pairs(map: SparseMap) -> int:
    """On a CPU lists of pairs, else a table of rows, -1 where there is none."""
    rows = map.tensors[2]
    return int(rows.numel()) if not rows.is_cuda else int((rows >= 0).sum())


def _now(value: Any) -> float:
    device = value.features.device if isinstance(value, SparseTensor) else value.device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
