# SPDX-License-Identifier: Apache-2.0
"""How much the order of voxels matters to the kernels of sparse convolution: Morton, Hilbert and other curves.

    python bench/sparse_order.py

An index always sorts its voxels along a Morton curve of blocks. Here a submanifold layer's map is renumbered to other
orders, with the features' rows in that order too, and the same kernels run on it. Writes
bench/results/sparse_order.json, and a table into docs/sparse.md; --draw writes the table alone.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from flexor import _C
from flexor.bench import sparse_scene
from flexor.bench.contest import SECONDS_A_CONTESTANT, interleave, on_one_thread
from flexor.bench.machine import describe
from flexor.bench.sparse_scene import INDOOR, Scene
from flexor.ops import SparseIndex
from flexor.reference.sparse_conv import pairs
from flexor.reference.sparse_index import TILE, voxels
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results" / "sparse_order.json"
DOCUMENT = ROOT / "docs" / "sparse.md"
START, END = "<!-- sparse_order:start -->", "<!-- sparse_order:end -->"

CHANNELS = (16, 32, 64)
DIRECTIONS = ("forward", "input gradient", "weight gradient")
TAPS = 27
MORTON, USER = "Morton", "user's rows"
ORDERS = {
    MORTON: "blocks of 4x4x4 along a Morton curve, rows in that order",
    "Hilbert": "blocks along a Hilbert curve",
    "block raster": "blocks line by line",
    "raster": "voxels line by line",
    "random": "no order at all",
    USER: "ranks along the Morton curve and rows in random order, as flexor runs on rows that come so",
}


def hilbert(sites: Tensor) -> Tensor:
    """(N,) places of points (N, D) along a Hilbert curve: ascending along it, unique for each point.

    Coordinates, 0 and up, are turned into the transposed form of the curve's number bit by bit, then interleaved
    (Skilling, Programming the Hilbert curve, 2004).
    """
    at = [axis.clone() for axis in sites.long().unbind(1)]
    bits = max(1, int(sites.max()).bit_length())
    for level in reversed(range(1, bits)):
        low = (1 << level) - 1
        for axis, here in enumerate(at):
            there = (here >> level) & 1 == 1
            exchanged = torch.where(there, 0, (at[0] ^ here) & low)
            at[0] = torch.where(there, at[0] ^ low, at[0] ^ exchanged)
            if axis:
                at[axis] = here ^ exchanged
    for axis in range(1, len(at)):
        at[axis] = at[axis] ^ at[axis - 1]
    flip = torch.zeros_like(at[0])
    for level in range(1, bits):
        flip = torch.where((at[-1] >> level) & 1 == 1, flip ^ ((1 << level) - 1), flip)
    place = torch.zeros_like(at[0])
    for level in reversed(range(bits)):
        for axis in at:
            place = (place << 1) | (((axis ^ flip) >> level) & 1)
    return place


def numbered(order: str, index: SparseIndex) -> Tensor:
    """(N,) ranks along Morton's curve in the order in which `order` has them."""
    _, sites = voxels(index.parts, index.dims)
    sites = sites[:, -index.dims :]
    ranks = torch.arange(len(sites))
    if order in (MORTON, USER):
        return ranks
    if order == "random":
        return torch.randperm(len(sites), generator=torch.Generator().manual_seed(0))
    if order == "raster":
        return torch.from_numpy(np.lexsort(sites.T.flip(0).numpy()))
    blocks = sites >> 2
    if order == "Hilbert":
        return hilbert(blocks).argsort(stable=True)
    return torch.from_numpy(np.lexsort([ranks.numpy(), *blocks.T.flip(0).numpy()]))


def renumbered(order: str, index: SparseIndex) -> list[Tensor]:
    """The map of a 3x3x3 layer, its ranks in another order; rows are ranks, but for USER."""
    map = index.submanifold(3)
    tap, outputs, inputs = pairs([torch.arange(len(index)), torch.arange(len(index)), *map.tensors[2:]])
    at = torch.empty(len(index), dtype=torch.int64)
    at[numbered(order, index)] = torch.arange(len(index))
    outputs, inputs = at[outputs], at[inputs]
    lists = outputs.div(TILE, rounding_mode="floor") * TAPS + tap
    sorting = (lists * TILE + outputs % TILE).argsort()
    counts = lists.bincount(minlength=math.ceil(len(index) / TILE) * TAPS)
    offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    rows = index.parts[0] if order == USER else torch.arange(len(index), dtype=torch.int32)
    return [rows, rows, inputs[sorting].int(), (outputs % TILE)[sorting].to(torch.uint8), offsets]


def call(direction: str, map: list[Tensor], tensors: tuple[Tensor, Tensor, Tensor]) -> Callable[[], tuple[Tensor, ...]]:
    """Of the kernels alone, into a tensor made before."""
    features, weight, grad_output = tensors
    result = torch.empty_like(weight if direction == DIRECTIONS[2] else features)

    def forward() -> tuple[Tensor, ...]:
        _C.sparse_conv_forward(result, features, weight, None, None, map, 1, math.nan)
        return (result,)

    def backward() -> tuple[Tensor, ...]:
        into = (None, result) if direction == DIRECTIONS[2] else (result, None)
        _C.sparse_conv_backward(grad_output, features, weight, map, [], *into, None, 1)
        return (result,)

    return forward if direction == DIRECTIONS[0] else backward


def measure(scene: Scene = INDOOR, seconds: float = SECONDS_A_CONTESTANT) -> dict[str, Any]:
    """Milliseconds of every round by direction, channels and order; one thread, CPU time."""
    indices = sparse_scene.voxels(scene)
    bounds = sparse_scene.bounds(scene)
    index = SparseIndex(indices, spatial_shape=bounds, batch_size=sparse_scene.samples(scene))
    maps = {order: renumbered(order, index) for order in ORDERS}
    found: list[dict[str, Any]] = []
    threads = torch.get_num_threads()
    for direction in DIRECTIONS:
        for channels in CHANNELS:
            tensors = make_tensors(len(index), channels)
            # The same features at the same voxels, whatever their rows: all compute the same.
            calls = {}
            for order in ORDERS:
                rows = index.parts[0].long()[numbered(order, index)] if order != USER else slice(None)
                in_order = tensors[0][rows].contiguous(), tensors[1], tensors[2][rows].contiguous()
                calls[order] = call(direction, maps[order], in_order)
            samples, results = on_one_thread(
                lambda calls=calls: interleave(calls, time.process_time, seconds), threads
            )()
            check(direction, results, index)
            ms = {order: [float(f"{1e3 * t:.4g}") for t in times] for order, times in samples.items()}
            found.append({"direction": direction, "channels": channels, "ms": ms})
    return {"family": "sparse_order", "scene": scene.name, "voxels": len(index), "machine": describe(), "runs": found}


def make_tensors(rows: int, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features, weight and grad_output."""
    generator = torch.Generator().manual_seed(0)
    features, grad_output = (torch.randn((rows, channels), generator=generator) for _ in range(2))
    weight = torch.randn((channels, TAPS, channels), generator=generator) / (channels * TAPS) ** 0.5
    return features, weight, grad_output


def check(direction: str, results: dict[str, tuple[Tensor, ...]], index: SparseIndex) -> None:
    """Raises AssertionError unless every order gave the same at the same voxels."""
    expected = results[USER][0]
    for order, (result,) in results.items():
        actual = result
        if direction != DIRECTIONS[2] and order != USER:
            actual = torch.empty_like(result)
            actual[index.parts[0].long()[numbered(order, index)]] = result
        error = float((actual - expected).abs().max() / expected.abs().max())
        if not error <= 1e-5:
            raise AssertionError(
                f"sparse_order: {direction} in {order} order is off by {error:.1e} of its largest value"
            )


def table(results: dict[str, Any]) -> str:
    """Time of every order over Morton's."""
    lines = [["", *ORDERS], ["---"] * (1 + len(ORDERS))]
    for run in results["runs"]:
        cells = [f"{median(run['ms'][MORTON]):.3g} ms"]
        for order in [order for order in ORDERS if order != MORTON]:
            ratios = [t / m for t, m in zip(run["ms"][order], run["ms"][MORTON], strict=False)]
            cells.append(f"{median(ratios):.2f}x")
        lines.append([f"{run['direction']}, C={run['channels']}", *cells])
    machine = results["machine"]
    words = "; ".join(f"{order}: {words}" for order, words in ORDERS.items())
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return (
        f"{text}\n\nTime in Morton order, and times as long as that (median of ratios within a round): kernels of a "
        f"3x3x3 layer on a map made before, one thread, {results['voxels']} voxels of the {results['scene']} scene. "
        f"{words}. {machine['cpu']}, {machine['isa']}, {machine['date']}."
    )


def publish(results: dict[str, Any]) -> None:
    """Puts the table between its markers."""
    before, _, rest = DOCUMENT.read_text().partition(START)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{DOCUMENT} has no sparse_order block")
    DOCUMENT.write_text(f"{before}{START}\n{table(results)}\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draw", action="store_true", help="measure nothing: the table from the JSON")
    if not parser.parse_args().draw:
        RESULTS.write_text(json.dumps(measure(), indent=None) + "\n")
    publish(json.loads(RESULTS.read_text()))


if __name__ == "__main__":
    main()
