# SPDX-License-Identifier: Apache-2.0
"""Depth-wise sparse convolution: one channel a group, so products instead of a GEMM; see `sparse_conv` for the sums."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._common import checked_grid, compute_type, on_device
from ._gemm import BUSY_GRID
from ._sparse_shared import Map, load_gathered, ordered_rows, row_index_type

NAME = "sparse_conv"


@triton.jit
def sparse_depthwise_kernel(
    output,  # (rows, channels)
    features,  # (input rows, channels)
    weight,  # (TAPS, channels)
    bias,  # (channels,) or None
    residual,  # like output, or None
    neighbours,
    order,
    rows,
    channels,
    c_blocks,
    TAPS: tl.constexpr,
    SLOPE: tl.constexpr,  # of the activation below zero; None for no activation
    INDEX: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program: BLOCK_M rows by BLOCK_C channels."""
    program = tl.program_id(0)
    row, row_valid = ordered_rows(order, program // c_blocks, rows, INDEX, BLOCK_M)
    channel = program % c_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    c_valid = channel < channels

    total = tl.zeros((BLOCK_M, BLOCK_C), COMPUTE)
    for tap in range(TAPS):
        source = tl.expand_dims(tl.load(neighbours + row * TAPS + tap, mask=row_valid, other=-1), 1)
        values = load_gathered(features, channels, source, channel, c_valid, INDEX).to(COMPUTE)
        weights = tl.load(weight + tap * channels + channel, mask=c_valid, other=0.0).to(COMPUTE)
        # A tap that a row does not have adds nothing, even where the weight is infinite.
        total += tl.where(source >= 0, values * tl.expand_dims(weights, 0), 0.0)

    valid = tl.expand_dims(row_valid, 1) & tl.expand_dims(c_valid, 0)
    at = tl.expand_dims(row * channels, 1) + tl.expand_dims(channel, 0)
    if bias is not None:
        total += tl.expand_dims(tl.load(bias + channel, mask=c_valid, other=0.0).to(COMPUTE), 0)
    if residual is not None:
        total += tl.load(residual + at, mask=valid, other=0.0).to(COMPUTE)
    if SLOPE is not None:
        total = tl.where(total > 0, total, total * SLOPE)
    tl.store(output + at, total.to(output.dtype.element_ty), mask=valid)


@triton.jit
def sparse_depthwise_bwd_weight_kernel(
    partial,  # (splits, TAPS, channels)
    grad_output,  # (rows, channels)
    features,  # (input rows, channels)
    neighbours,
    order,
    rows,
    channels,
    m_blocks,
    c_blocks,
    splits,
    TAPS: tl.constexpr,
    INDEX: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Partial gradient over every splits-th block of rows. One program: one tap of BLOCK_C channels."""
    program = tl.program_id(0)
    channel = program % c_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    c_valid = channel < channels
    tap = program // c_blocks % TAPS
    split = program // c_blocks // TAPS

    total = tl.zeros((BLOCK_M, BLOCK_C), COMPUTE)
    for block in range(split, m_blocks, splits):
        row, row_valid = ordered_rows(order, block, rows, INDEX, BLOCK_M)
        source = tl.expand_dims(tl.load(neighbours + row * TAPS + tap, mask=row_valid, other=-1), 1)
        values = load_gathered(features, channels, source, channel, c_valid, INDEX).to(COMPUTE)
        at = tl.expand_dims(row * channels, 1) + tl.expand_dims(channel, 0)
        d_out = tl.load(grad_output + at, mask=(source >= 0) & tl.expand_dims(c_valid, 0), other=0.0)
        total += values * d_out.to(COMPUTE)

    at = (split.to(tl.int64) * TAPS + tap) * channels + channel
    tl.store(partial + at, tl.sum(total, axis=0), mask=c_valid)


def blocks(channels: int) -> dict[str, int]:
    """A tile of 2048 values, as wide as the channels if that is no more than 128."""
    block_c = max(16, min(128, triton.next_power_of_2(channels)))
    return {"BLOCK_M": 2048 // block_c, "BLOCK_C": block_c, "num_warps": 4, "num_stages": 2}


def convolve(
    features: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    map: Map,
    groups: int,
    slope: float | None,
    transposed: bool = False,
    mirrored: bool = False,
) -> torch.Tensor:
    """Output (rows, channels); a transposed weight of one channel a group is itself."""
    output = features.new_empty(map.rows, groups)
    if output.numel() == 0:
        return output
    taps = weight[:, :, 0].t()
    tile = blocks(groups)
    m_blocks, c_blocks = triton.cdiv(map.rows, tile["BLOCK_M"]), triton.cdiv(groups, tile["BLOCK_C"])
    features = features.contiguous()
    with on_device(features):
        sparse_depthwise_kernel[checked_grid(NAME, m_blocks * c_blocks)](
            output, features, (taps.flip(0) if mirrored else taps).contiguous(),
            None if bias is None else bias.contiguous(), None if residual is None else residual.contiguous(),
            map.neighbours, map.order,
            map.rows, groups, c_blocks,
            TAPS=map.taps,
            SLOPE=slope,
            INDEX=row_index_type(output, features, map.neighbours),
            COMPUTE=compute_type(features),
            **tile,
        )  # fmt: skip
    return output


def weight_gradient(
    grad_output: torch.Tensor, features: torch.Tensor, weight: torch.Tensor, map: Map, groups: int
) -> torch.Tensor:
    """Gradient of the weight; the number of partial sums depends on shapes alone."""
    if grad_output.numel() == 0:
        return torch.zeros_like(weight)
    tile = blocks(groups)
    m_blocks, c_blocks = triton.cdiv(map.rows, tile["BLOCK_M"]), triton.cdiv(groups, tile["BLOCK_C"])
    splits = max(1, min(m_blocks, triton.cdiv(4 * BUSY_GRID, c_blocks * map.taps)))
    compute = torch.promote_types(features.dtype, torch.float32)
    partial = features.new_empty(splits, map.taps, groups, dtype=compute)
    grad_output, features = grad_output.contiguous(), features.contiguous()
    with on_device(features):
        sparse_depthwise_bwd_weight_kernel[checked_grid(NAME, splits * map.taps * c_blocks)](
            partial, grad_output, features, map.neighbours, map.order,
            map.rows, groups, m_blocks, c_blocks, splits,
            TAPS=map.taps,
            INDEX=row_index_type(grad_output, features, map.neighbours),
            COMPUTE=compute_type(features),
            **tile,
        )  # fmt: skip
    return partial.sum(0).t().reshape(weight.shape).to(weight.dtype)
