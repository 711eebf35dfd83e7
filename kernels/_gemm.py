# SPDX-License-Identifier: Apache-2.0
"""What the implicit GEMMs share: how a K tile is cut into pairs of channels and tap, and what a dot computes in."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ._common import on_channels

# Programs that keep the largest present GPUs (132 to 160 multiprocessors) busy, two on each.
BUSY_GRID = 320


@triton.jit
def pair_lanes(pair, LANES: tl.constexpr, PAIRS: tl.constexpr):
    """The pair of each lane of a K tile: a scalar when the tile holds one pair."""
    if PAIRS > 1:
        pair += tl.arange(0, PAIRS * LANES) // LANES
    return pair


@triton.jit
def on_lanes(value, PIXEL_AXIS: tl.constexpr, PAIRS: tl.constexpr):
    """What belongs to the pair of each lane, laid along the channel axis; one pair's stays a scalar."""
    if PAIRS > 1:
        value = on_channels(value, PIXEL_AXIS)
    return value


class Lanes(NamedTuple):
    """How a K tile is cut: `pairs` whole pairs of `lanes` channels."""

    lanes: int
    pairs: int

    @classmethod
    def of(cls, run: int, block_k: int) -> Lanes:
        """One pair a tile from 16 channels a run on, in blocks that waste the fewest lanes (the larger at a tie)."""
        if run >= 16:
            blocks = [b for b in (16, 32, 64) if b <= block_k]
            return cls(min(blocks, key=lambda b: (triton.cdiv(run, b) * b, -b)), 1)
        lanes = triton.next_power_of_2(run)
        return cls(lanes, block_k // lanes)


def dot_precision(input: torch.Tensor) -> str:
    """TF32 for float32 only where torch's own matmuls may use it."""
    tf32 = input.dtype == torch.float32 and torch.version.hip is None and torch.backends.cuda.matmul.allow_tf32
    return "tf32" if tf32 else "ieee"


def uses_tensor_cores(input: torch.Tensor) -> bool:
    return input.dtype.itemsize == 2 or dot_precision(input) == "tf32"
