# SPDX-License-Identifier: Apache-2.0
"""What both directions of the deformable convolution share: sizes, the cut of a K tile, sampling positions."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ._common import INT32_LIMIT, on_channels

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


@triton.jit
def sample_position(
    offset,
    offset_strides,
    mask,
    mask_strides,
    row,
    column,
    valid,
    group,
    tap,
    stride,
    padding,
    dilation,
    TAPS: tl.constexpr,
    KERNEL_W: tl.constexpr,
    INDEX: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Position and mask value of the sample of (offset group, tap) at output pixel (row, column).

    The result has the broadcast shape of (row, column) and (group, tap).
    """
    plane = (group * TAPS + tap).to(INDEX)
    at = 2 * plane * offset_strides[1] + row * offset_strides[2] + column * offset_strides[3]
    dy = tl.load(offset + at, mask=valid, other=0.0).to(COMPUTE)
    dx = tl.load(offset + at + offset_strides[1], mask=valid, other=0.0).to(COMPUTE)
    y = (row * stride[0] - padding[0] + tap // KERNEL_W * dilation[0]).to(COMPUTE) + dy
    x = (column * stride[1] - padding[1] + tap % KERNEL_W * dilation[1]).to(COMPUTE) + dx
    m = 1.0
    if mask is not None:
        at = plane * mask_strides[1] + row * mask_strides[2] + column * mask_strides[3]
        m = tl.load(mask + at, mask=valid, other=0.0).to(COMPUTE)
    return y, x, m


class Shape(NamedTuple):
    """Sizes of one call that both directions need."""

    batch: int
    channels: int
    height: int
    width: int
    outputs: int
    output_height: int
    output_width: int
    taps: int
    kernel_w: int
    groups: int
    group_channels: int
    group_outputs: int
    offset_groups: int
    offset_group_channels: int
    run: int  # channels that share a convolution group and an offset group

    @property
    def pixels(self) -> int:
        return self.output_height * self.output_width

    @property
    def padded_outputs(self) -> int:
        return triton.cdiv(self.group_outputs, 16) * 16

    @classmethod
    def of(
        cls, input: torch.Tensor, offset: torch.Tensor, weight: torch.Tensor, groups: int, offset_groups: int
    ) -> Shape:
        batch, channels, height, width = input.shape
        outputs, group_channels, kernel_h, kernel_w = weight.shape
        offset_group_channels = channels // offset_groups
        return cls(
            batch, channels, height, width, outputs, offset.shape[2], offset.shape[3], kernel_h * kernel_w, kernel_w,
            groups, group_channels, outputs // groups, offset_groups, offset_group_channels,
            math.gcd(group_channels, offset_group_channels),
        )  # fmt: skip


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


def check_supported(input: torch.Tensor) -> None:
    if input.dtype == torch.float64 and torch.version.hip is not None:
        raise NotImplementedError(
            "deform_conv2d: float64 has no Triton kernel on AMD GPUs; use backend='reference' or float32"
        )


def dot_precision(input: torch.Tensor) -> str:
    """TF32 for float32 only where torch's own matmuls may use it."""
    tf32 = input.dtype == torch.float32 and torch.version.hip is None and torch.backends.cuda.matmul.allow_tf32
    return "tf32" if tf32 else "ieee"


def uses_tensor_cores(input: torch.Tensor) -> bool:
    return input.dtype.itemsize == 2 or dot_precision(input) == "tf32"


def pack_weight(weight: torch.Tensor, shape: Shape) -> torch.Tensor:
    """(outputs, group_channels, kh, kw) -> (channels, taps, padded_outputs), zeros in the padding."""
    packed = weight.new_zeros(shape.groups, shape.group_channels, shape.taps, shape.padded_outputs)
    grouped = weight.reshape(shape.groups, shape.group_outputs, shape.group_channels, shape.taps)
    packed[..., : shape.group_outputs].copy_(grouped.permute(0, 2, 3, 1))
    return packed.view(shape.channels, shape.taps, shape.padded_outputs)


def checked_grid(programs: int) -> tuple[int]:
    if programs >= INT32_LIMIT:
        raise ValueError(f"deform_conv2d: the launch needs {programs} programs, at most {INT32_LIMIT - 1} are possible")
    return (programs,)
