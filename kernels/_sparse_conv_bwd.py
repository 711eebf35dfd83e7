# SPDX-License-Identifier: Apache-2.0
"""Gradient of the weight of a sparse convolution; the method is told in `sparse_conv`."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ._common import checked_grid, compute_type, on_device
from ._gemm import BUSY_GRID, Lanes, dot_precision, on_lanes, pair_lanes
from ._sparse_shared import Map, load_gathered, ordered_rows, row_index_type


@triton.jit
def sparse_conv_bwd_weight_kernel(
    partial,  # (splits, groups, TAPS, GROUP_CHANNELS, GROUP_OUTPUTS)
    grad_output,  # (rows, outputs)
    features,  # (input rows, channels)
    neighbours,
    order,
    rows,
    channels,
    outputs,
    m_blocks,
    n_blocks,
    k_blocks,
    groups,
    splits,
    GROUP_CHANNELS: tl.constexpr,
    GROUP_OUTPUTS: tl.constexpr,
    TAPS: tl.constexpr,
    INDEX: tl.constexpr,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    LANES: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """Partial gradient over every splits-th block of rows. One program: one tap and LANES channels of a group, or
    PAIRS taps and all its channels, by BLOCK_N outputs."""
    CHANNEL_BLOCKS: tl.constexpr = (GROUP_CHANNELS + LANES - 1) // LANES
    program = tl.program_id(0)
    n_block = program % n_blocks
    k_block = program // n_blocks % k_blocks
    group = program // n_blocks // k_blocks % groups
    split = program // n_blocks // k_blocks // groups
    lane = tl.arange(0, LANES * PAIRS)
    tap = pair_lanes(k_block // CHANNEL_BLOCKS * PAIRS, LANES, PAIRS)
    taps = on_lanes(tap, 0, PAIRS)
    in_group = k_block % CHANNEL_BLOCKS * LANES + lane % LANES
    k_valid = (in_group < GROUP_CHANNELS) & (tap < TAPS)
    out = n_block * BLOCK_N + tl.arange(0, BLOCK_N)
    out_valid = tl.expand_dims(out < GROUP_OUTPUTS, 0)

    product = tl.zeros((LANES * PAIRS, BLOCK_N), COMPUTE)
    for block in range(split, m_blocks, splits):
        row, row_valid = ordered_rows(order, block, rows, INDEX, BLOCK_M)
        row_valid = tl.expand_dims(row_valid, 1)
        source = tl.load(neighbours + tl.expand_dims(row * TAPS, 1) + taps, mask=row_valid & (taps < TAPS), other=-1)
        if tl.max(tl.max(source, 1), 0) >= 0:
            values = load_gathered(features, channels, source, group * GROUP_CHANNELS + in_group, k_valid, INDEX)
            at = tl.expand_dims(row * outputs, 1) + tl.expand_dims(group * GROUP_OUTPUTS + out, 0)
            reads = (source >= 0) if PAIRS == 1 else row_valid
            d_out = tl.load(grad_output + at, mask=reads & out_valid, other=0.0)
            product = tl.dot(tl.trans(values), d_out, product, input_precision=PRECISION, out_dtype=COMPUTE)

    at = (((split.to(tl.int64) * groups + group) * TAPS + tap) * GROUP_CHANNELS + in_group) * GROUP_OUTPUTS
    tl.store(
        partial + tl.expand_dims(at, 1) + tl.expand_dims(out, 0), product, mask=tl.expand_dims(k_valid, 1) & out_valid
    )


class WeightTile(NamedTuple):
    BLOCK_M: int
    BLOCK_N: int
    LANES: int
    PAIRS: int
    num_warps: int
    num_stages: int


def weight_tile(channels: int, outputs: int, dtype: torch.dtype) -> WeightTile:
    """BLOCK_M is the reduction axis; wide operands fill registers and shared memory, so they take smaller tiles."""
    half, double = dtype.itemsize == 2, dtype == torch.float64
    lanes, pairs = Lanes.of(channels, 64 if half else 16 if double else 32)
    block_m = 64 if half and pairs == 1 else 16 if double else 32
    block_n = max(16, min(128 if half else 32 if double else 64, triton.next_power_of_2(outputs)))
    return WeightTile(block_m, block_n, lanes, pairs, num_warps=8, num_stages=2)


def weight_gradient(
    grad_output: torch.Tensor, features: torch.Tensor, weight: torch.Tensor, map: Map, groups: int
) -> torch.Tensor:
    """Gradient of the weight; the number of partial sums depends on shapes alone."""
    if grad_output.numel() == 0 or weight.numel() == 0:
        return torch.zeros_like(weight)
    channels, outputs = features.shape[1], grad_output.shape[1]
    group_channels, group_outputs = channels // groups, outputs // groups
    tile = weight_tile(group_channels, group_outputs, features.dtype)
    m_blocks, n_blocks = triton.cdiv(map.rows, tile.BLOCK_M), triton.cdiv(group_outputs, tile.BLOCK_N)
    k_blocks = triton.cdiv(map.taps, tile.PAIRS) * triton.cdiv(group_channels, tile.LANES)
    tiles = n_blocks * k_blocks * groups
    splits = max(1, min(m_blocks, triton.cdiv(2 * BUSY_GRID, tiles)))
    compute = torch.promote_types(features.dtype, torch.float32)
    partial = features.new_empty(splits, groups, map.taps, group_channels, group_outputs, dtype=compute)
    grad_output, features = grad_output.contiguous(), features.contiguous()
    with on_device(features):
        sparse_conv_bwd_weight_kernel[checked_grid("sparse_conv", tiles * splits)](
            partial, grad_output, features, map.neighbours, map.order,
            map.rows, channels, outputs, m_blocks, n_blocks, k_blocks, groups, splits,
            GROUP_CHANNELS=group_channels,
            GROUP_OUTPUTS=group_outputs,
            TAPS=map.taps,
            INDEX=row_index_type(grad_output, features, map.neighbours),
            COMPUTE=compute_type(features),
            PRECISION=dot_precision(features),
            **tile._asdict(),
        )  # fmt: skip
    return partial.sum(0).permute(0, 3, 1, 2).reshape(weight.shape).to(weight.dtype)
