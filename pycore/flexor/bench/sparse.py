# SPDX-License-Identifier: Apache-2.0
"""Contests of sparse convolution: layers and maps on a room, a network on a lidar sweep, all of them on real scans."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from .contest import BUILD, FORWARD, ONE_THREAD, OURS, TRAINING, Call, Contest
from .goals import Gain, Goal
from .memory import peak_extra_of
from .sparse_contests import (
    FIND,
    FLOAT32,
    GATHER,
    GEMM,
    GEMM_SIZE,
    INPUT,
    SCN,
    SORTED,
    SPCONV,
    SUBMANIFOLD,
    USER,
    WEIGHT,
    WINDOWS,
    ConvContest,
    MapContest,
    NetworkContest,
)
from .sparse_scene import INDOOR, LIDAR, Scene, samples

CHANNELS = (16, 32, 64, 128)
BFLOAT16_CHANNELS = (32, 64, 128)
MEMORY_CHANNELS = (64,)
UNET = "ScanNet U-Net m16"


def layer_case(channels: int, rows: str, scene: Scene = INDOOR) -> str:
    return f"{scene.title} C{channels}, {rows}"


def map_case(window: str, scene: Scene = INDOOR) -> str:
    return f"{scene.title} {window}"


def network_case(scene: Scene) -> str:
    return f"{UNET}, {scene.title}"


YARDSTICKS = {GEMM: 2 * GEMM_SIZE**3}  # operations of a call: their rates are compared, not their times
# Of torch.mm's rate, for each of CHANNELS.
_RATES = {
    (FORWARD, SORTED): (0.45, 0.75, 0.88, 0.90),
    (INPUT, SORTED): (0.45, 0.75, 0.88, 0.90),
    (FORWARD, USER): (0.35, 0.65, 0.80, 0.88),
    (WEIGHT, SORTED): (0.45, 0.70, 0.80, 0.80),
}
GOALS = (
    *(
        Goal("sparse_conv", layer_case(c, rows), direction, 1, rate, GEMM, peer_flops=YARDSTICKS[GEMM])
        for (direction, rows), rates in _RATES.items()
        for c, rate in zip(CHANNELS, rates, strict=True)
    ),
    *(Goal("sparse_conv", layer_case(c, USER), FORWARD, 1, 4 if c == 32 else 2, SPCONV) for c in CHANNELS),
    Goal("sparse_map", map_case(SUBMANIFOLD), BUILD, 1, 100, per_item=True),
    Goal("sparse_map", map_case(SUBMANIFOLD), BUILD, 1, 5, SPCONV),
    Goal("sparse_unet", network_case(LIDAR), FORWARD, 1, 4, SPCONV),
)
GAINS = (
    Gain("all threads", ONE_THREAD, GEMM, share=0.9),
    Gain("bfloat16", FLOAT32, GEMM, least=0.9, wherever=1.5),
)
MEMORY = "a call"


def layer(channels: int, rows: str, direction: str = FORWARD, scene: Scene = INDOOR, **kind) -> ConvContest:
    kind |= {"case": layer_case(channels, rows, scene), "direction": direction}
    return ConvContest(scene=scene, batch=samples(scene), channels=channels, rows=rows, **kind)


def maps(direction: str, scene: Scene = INDOOR, threads: int = 1) -> list[Contest]:
    kind = {"scene": scene, "batch": samples(scene), "direction": direction, "threads": threads}
    return [MapContest(case=map_case(window, scene), window=window, **kind) for window in WINDOWS]


def network(scene: Scene) -> Contest:
    return NetworkContest(case=network_case(scene), scene=scene, batch=samples(scene))


def contests(everything: bool = False, scans: Sequence[str] = ()) -> list[Contest]:
    """Layers of up to 64 channels, maps and the network; or also 128, more directions, threads, bfloat16.

    Args:
        scans: real ones, `PATH` or `PATH@VOXEL`; layers, maps and the network run on each.
    """
    channels = CHANNELS if everything else CHANNELS[:3]
    found: list[Contest] = [layer(c, rows) for c in channels for rows in (USER, SORTED)]
    found += [layer(c, SORTED, direction) for direction in (INPUT, WEIGHT) for c in channels]
    found += [*maps(BUILD), network(LIDAR)]
    if everything:
        found += [layer(c, USER, direction) for direction in (INPUT, WEIGHT) for c in channels]
        found += [layer(c, USER, TRAINING) for c in (32, 64)]
        found += maps(FIND)
        found += [layer(c, USER, dtype=torch.bfloat16) for c in BFLOAT16_CHANNELS]
        threads = torch.get_num_threads()
        if threads > 1:
            found += [layer(c, USER, d, threads=threads) for d in (FORWARD, INPUT, WEIGHT) for c in (32, 64)]
            found += maps(BUILD, threads=threads)
    for scene in map(Scene.of, scans):
        found += [layer(c, USER, scene=scene) for c in (16, 32, 64)]
        found += [*maps(BUILD, scene), network(scene)]
    return found


def extras() -> dict[str, Callable[[], object]]:
    """What is measured beside the contests: peak memory."""
    return {"memory_bytes": peak_memory}


def peak_memory() -> dict[str, dict[str, int | None]]:
    """Peak bytes of a layer beyond its tensors and map, by case and contestant; None for an absent peer."""
    task = f"{__name__}:memory_call"
    peers = {FORWARD: (OURS, SPCONV, GATHER, SCN), TRAINING: (OURS, GATHER, SCN)}
    return {
        f"{layer_case(c, USER)}, {direction}": {
            name: peak_extra_of(task, str(c), direction, name) if name in peers[direction] else None
            for name in peers[FORWARD]
        }
        for c in MEMORY_CHANNELS
        for direction in peers
    }


def memory_call(channels: str, direction: str, contestant: str) -> Call:
    """What `peak_memory` measures, with libraries and threads already loaded and maps found by a call before."""
    torch.set_num_threads(1)
    call = layer(int(channels), USER, direction).call(contestant)
    call()
    return call
