# SPDX-License-Identifier: Apache-2.0
"""Sparse convolution in Triton, forward and backward, as an implicit GEMM whose rows are sorted by the taps they have.

    forward    output[r] = act(bias + residual[r] + sum over the taps t of row r of features[neighbour[r, t]] W[t])
    input      the same sum over the transposed map, with the weights transposed
    weight     d W[t] = sum over the rows r that have t of features[neighbour[r, t]]^T grad_output[r], cut into
               partial sums over rows that are added in a fixed order

A program has a block of rows. It goes through the taps that any of them has; sorting puts rows with like taps into
one block, so that few lanes are idle. Every row of a result belongs to one program: no atomics, the same bits
every time. A K tile of the GEMM is one tap and a block of channels, or, for few channels a group, several taps.

Accumulation is float32 (float64 for double).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from . import _sparse_depthwise
from ._common import check_supported, checked_grid, compute_type, on_device
from ._gemm import BUSY_GRID, Lanes, dot_precision, on_lanes, pair_lanes, uses_tensor_cores
from ._sparse_conv_bwd import weight_gradient
from ._sparse_shared import (
    WORD,
    Map,
    block_taps,
    count_bits,
    load_gathered,
    lowest_bit,
    ordered_rows,
    row_index_type,
)

NAME = "sparse_conv"


@triton.jit
def sparse_conv_step(
    product,
    features,
    weight,
    neighbours,
    row,
    row_valid,
    tap,
    in_group,
    out,
    group,
    channels,
    padded_targets,
    TAPS: tl.constexpr,
    GROUP_SOURCES: tl.constexpr,
    INDEX: tl.constexpr,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """Adds one K tile: the sources that the rows of a block read through one tap, or through several."""
    k_valid = (in_group < GROUP_SOURCES) & (tap < TAPS)
    taps = on_lanes(tap, 0, PAIRS)
    source = tl.load(
        neighbours + tl.expand_dims(row * TAPS, 1) + taps, mask=tl.expand_dims(row_valid, 1) & (taps < TAPS), other=-1
    )
    values = load_gathered(features, channels, source, group * GROUP_SOURCES + in_group, k_valid, INDEX)
    at = tl.expand_dims(((group * TAPS + tap).to(INDEX) * GROUP_SOURCES + in_group) * padded_targets, 1)
    valid = tl.expand_dims(k_valid, 1) & tl.expand_dims(out < padded_targets, 0)
    weights = tl.load(weight + at + tl.expand_dims(out, 0), mask=valid, other=0.0)
    return tl.dot(values, weights, product, input_precision=PRECISION, out_dtype=COMPUTE)


@triton.jit
def sparse_conv_kernel(
    output,  # (rows, targets)
    features,  # (sources rows, channels)
    weight,  # (groups, TAPS, GROUP_SOURCES, padded_targets)
    bias,  # (targets,) or None
    residual,  # like output, or None
    neighbours,
    row_masks,
    order,
    rows,
    channels,
    targets,
    n_blocks,
    groups,
    padded_targets,
    GROUP_SOURCES: tl.constexpr,
    GROUP_TARGETS: tl.constexpr,
    TAPS: tl.constexpr,
    WORDS: tl.constexpr,
    SLOPE: tl.constexpr,  # of the activation below zero; None for no activation
    INDEX: tl.constexpr,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    LANES: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """One program: BLOCK_M rows by BLOCK_N targets of one group."""
    CHANNEL_BLOCKS: tl.constexpr = (GROUP_SOURCES + LANES - 1) // LANES
    program = tl.program_id(0)
    n_block = program % n_blocks
    group = program // n_blocks % groups
    row, row_valid = ordered_rows(order, program // n_blocks // groups, rows, INDEX, BLOCK_M)
    out = n_block * BLOCK_N + tl.arange(0, BLOCK_N)
    lane = tl.arange(0, LANES * PAIRS)

    product = tl.zeros((BLOCK_M, BLOCK_N), COMPUTE)
    if PAIRS == 1:
        for word in range(WORDS):
            mask = block_taps(row_masks, row, row_valid, word, WORDS)
            for step in range(count_bits(mask) * CHANNEL_BLOCKS):
                tap = word * WORD + lowest_bit(mask)
                channel_block = step % CHANNEL_BLOCKS
                product = sparse_conv_step(
                    product, features, weight, neighbours, row, row_valid, tap, channel_block * LANES + lane, out,
                    group, channels, padded_targets, TAPS, GROUP_SOURCES, INDEX, COMPUTE, PRECISION, PAIRS,
                )  # fmt: skip
                mask = tl.where(channel_block == CHANNEL_BLOCKS - 1, mask & (mask - 1), mask)
    else:
        for first in range(0, TAPS, PAIRS):
            product = sparse_conv_step(
                product, features, weight, neighbours, row, row_valid, pair_lanes(first, LANES, PAIRS), lane % LANES,
                out, group, channels, padded_targets, TAPS, GROUP_SOURCES, INDEX, COMPUTE, PRECISION, PAIRS,
            )  # fmt: skip

    valid = tl.expand_dims(row_valid, 1) & tl.expand_dims(out < GROUP_TARGETS, 0)
    target = tl.expand_dims(group * GROUP_TARGETS + out, 0)
    at = tl.expand_dims(row * targets, 1) + target
    if bias is not None:
        product += tl.load(bias + target, mask=tl.expand_dims(out < GROUP_TARGETS, 0), other=0.0).to(COMPUTE)
    if residual is not None:
        product += tl.load(residual + at, mask=valid, other=0.0).to(COMPUTE)
    if SLOPE is not None:
        product = tl.where(product > 0, product, product * SLOPE)
    tl.store(output + at, product.to(output.dtype.element_ty), mask=valid)


class ConvTile(NamedTuple):
    BLOCK_M: int
    BLOCK_N: int
    LANES: int
    PAIRS: int
    num_warps: int
    num_stages: int


def conv_tile(sources: int, targets: int, rows: int, dtype: torch.dtype, tensor_cores: bool) -> ConvTile:
    """BLOCK_N spans the targets of a group up to 128, so that features are seldom gathered twice.

    Without tensor cores the operands live in registers, hence smaller blocks; so do they while the grid is too small
    to fill a GPU.
    """
    half, double = dtype.itemsize == 2, dtype == torch.float64
    lanes, pairs = Lanes.of(sources, 32 if half else 16)
    block_m = 32 if double else 64
    block_n = max(16, min(128 if half else 32 if double else 64, triton.next_power_of_2(targets)))
    while block_n > 32 and triton.cdiv(rows, block_m) * triton.cdiv(targets, block_n) < BUSY_GRID:
        block_n //= 2
    num_warps = 4 if tensor_cores and pairs == 1 else 8
    return ConvTile(block_m, block_n, lanes, pairs, num_warps, num_stages=3)


def pack_weight(weight: torch.Tensor, groups: int, transposed: bool, mirrored: bool) -> torch.Tensor:
    """(outputs, taps, group channels) -> (groups, taps, sources, targets of a group, zeros up to 16s).

    Sources are the channels, or the outputs when transposed; mirrored turns the taps round.
    """
    outputs, taps, group_channels = weight.shape
    grouped = weight.reshape(groups, outputs // groups, taps, group_channels)
    grouped = grouped.permute(0, 2, 1, 3) if transposed else grouped.permute(0, 2, 3, 1)
    grouped = grouped.flip(1) if mirrored else grouped
    packed = weight.new_zeros(*grouped.shape[:-1], triton.cdiv(grouped.shape[-1], 16) * 16)
    packed[..., : grouped.shape[-1]].copy_(grouped)
    return packed


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
    """Output (rows, targets) of the sum above, weights transposed and turned round as asked."""
    channels = features.shape[1]
    targets = groups * weight.shape[2] if transposed else weight.shape[0]
    output = features.new_empty(map.rows, targets)
    if output.numel() == 0:
        return output
    packed = pack_weight(weight, groups, transposed, mirrored)
    tile = conv_tile(channels // groups, targets // groups, map.rows, features.dtype, uses_tensor_cores(features))
    m_blocks, n_blocks = triton.cdiv(map.rows, tile.BLOCK_M), triton.cdiv(targets // groups, tile.BLOCK_N)
    features = features.contiguous()
    residual = None if residual is None else residual.contiguous()
    with on_device(features):
        sparse_conv_kernel[checked_grid(NAME, m_blocks * n_blocks * groups)](
            output, features, packed, None if bias is None else bias.contiguous(), residual,
            map.neighbours, map.row_masks, map.order,
            map.rows, channels, targets, n_blocks, groups, packed.shape[-1],
            GROUP_SOURCES=channels // groups,
            GROUP_TARGETS=targets // groups,
            TAPS=map.taps,
            WORDS=map.row_masks.shape[1],
            SLOPE=slope,
            INDEX=row_index_type(output, features, packed, map.neighbours),
            COMPUTE=compute_type(features),
            PRECISION=dot_precision(features),
            **tile._asdict(),
        )  # fmt: skip
    return output


def forward(
    features: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    map: list[torch.Tensor],
    transposed_map: list[torch.Tensor] | None,
    groups: int,
    slope: float | None,
) -> torch.Tensor:
    """Output (rows of the map, outputs) in the features' dtype."""
    check_supported(NAME, features)
    run = _sparse_depthwise.convolve if is_depthwise(weight, groups) else convolve
    return run(features, weight, bias, residual, Map.of(map), groups, slope)


def backward(
    grad_output: torch.Tensor,
    features: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    map: list[torch.Tensor],
    transposed_map: list[torch.Tensor] | None,
    groups: int,
    slope: None,
    needs: tuple[bool, bool, bool, bool],
    deterministic: bool,
) -> tuple[torch.Tensor | None, ...]:
    """Gradients of (features, weight, bias, residual) in their dtypes, None where `needs` is false. They are
    deterministic whether asked to be or not. Where the transposed map is [], it is the map with its taps turned
    round. There is no activation: it comes after, where a gradient is needed."""
    check_supported(NAME, features)
    depthwise = is_depthwise(weight, groups)
    grad_features = grad_weight = grad_bias = None
    if needs[0]:
        run = _sparse_depthwise.convolve if depthwise else convolve
        back = Map.of(transposed_map or map)
        grad_features = run(
            grad_output, weight, None, None, back, groups, None, transposed=True, mirrored=not transposed_map
        )
    if needs[1]:
        gradient = _sparse_depthwise.weight_gradient if depthwise else weight_gradient
        grad_weight = gradient(grad_output, features, weight, Map.of(map), groups)
    if needs[2] and bias is not None:
        accumulate = torch.promote_types(grad_output.dtype, torch.float32)
        grad_bias = grad_output.sum(0, dtype=accumulate).to(bias.dtype)
    grad_residual = grad_output.to(residual.dtype, copy=True) if needs[3] and residual is not None else None
    return grad_features, grad_weight, grad_bias, grad_residual


def is_depthwise(weight: torch.Tensor, groups: int) -> bool:
    return weight.shape[2] == 1 and weight.shape[0] == groups
