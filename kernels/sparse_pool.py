# SPDX-License-Identifier: Apache-2.0
"""Sparse pooling in Triton, forward and backward.

    max    output[r] = maximum of features[neighbour[r, t]] over the taps t that row r has; NaN wins, none makes 0
    max0   the same, and 0 takes part
    avg    output[r] = their mean
    backward, over the transposed map: grad_features[s] = sum over t with r = neighbour[s, t] of
           max, max0: grad_output[r] where features[s] == output[r];  avg: grad_output[r] / taps of row r

Every row of a result belongs to one program: no atomics, the same bits every time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._common import check_supported, checked_grid, compute_type, on_device
from ._sparse_shared import Map, load_gathered, ordered_rows, row_index_type

NAME = "sparse_pool"


@triton.jit
def sparse_pool_fwd_kernel(
    output,  # (rows, channels)
    features,  # (input rows, channels)
    neighbours,
    order,
    rows,
    channels,
    c_blocks,
    TAPS: tl.constexpr,
    MODE: tl.constexpr,
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

    total = tl.full((BLOCK_M, BLOCK_C), float("-inf") if MODE == "max" else 0.0, COMPUTE)
    count = tl.zeros((BLOCK_M, 1), tl.int32)
    for tap in range(TAPS):
        source = tl.expand_dims(tl.load(neighbours + row * TAPS + tap, mask=row_valid, other=-1), 1)
        values = load_gathered(features, channels, source, channel, c_valid, INDEX).to(COMPUTE)
        count += (source >= 0).to(tl.int32)
        if MODE == "avg":
            total += values
        else:
            larger = (values > total) | (values != values)
            total = tl.where((source >= 0) & larger, values, total)
    if MODE == "avg":
        total /= tl.maximum(count, 1).to(COMPUTE)
    total = tl.where(count > 0, total, 0.0)
    at = tl.expand_dims(row * channels, 1) + tl.expand_dims(channel, 0)
    valid = tl.expand_dims(row_valid, 1) & tl.expand_dims(c_valid, 0)
    tl.store(output + at, total.to(output.dtype.element_ty), mask=valid)


@triton.jit
def sparse_pool_bwd_kernel(
    grad_features,  # (rows, channels)
    grad_output,  # (output rows, channels)
    output,  # (output rows, channels); avg: None
    counts,  # (output rows,) taps of a row; max: None
    features,  # (rows, channels); avg: None
    neighbours,  # of the transposed map
    order,
    rows,
    channels,
    c_blocks,
    TAPS: tl.constexpr,
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
    valid = tl.expand_dims(row_valid, 1) & tl.expand_dims(c_valid, 0)
    at = tl.expand_dims(row * channels, 1) + tl.expand_dims(channel, 0)
    if counts is None:
        own = tl.load(features + at, mask=valid, other=0.0).to(COMPUTE)

    total = tl.zeros((BLOCK_M, BLOCK_C), COMPUTE)
    for tap in range(TAPS):
        source = tl.expand_dims(tl.load(neighbours + row * TAPS + tap, mask=row_valid, other=-1), 1)
        d_out = load_gathered(grad_output, channels, source, channel, c_valid, INDEX).to(COMPUTE)
        if counts is None:
            chosen = load_gathered(output, channels, source, channel, c_valid, INDEX).to(COMPUTE)
            total += tl.where(chosen == own, d_out, 0.0)
        else:
            count = tl.load(counts + source, mask=source >= 0, other=1)
            total += d_out / count.to(COMPUTE)
    tl.store(grad_features + at, total.to(grad_features.dtype.element_ty), mask=valid)


def launch_options(map: Map, channels: int) -> dict[str, int]:
    """A tile of 2048 values, as wide as the channels if that is no more than 128."""
    block_c = max(16, min(128, triton.next_power_of_2(channels)))
    return {"TAPS": map.taps, "BLOCK_M": 2048 // block_c, "BLOCK_C": block_c, "num_warps": 4, "num_stages": 2}


def programs(map: Map, channels: int, options: dict[str, int]) -> tuple[tuple[int], int]:
    """The grid, and how many blocks of channels it has."""
    c_blocks = triton.cdiv(channels, options["BLOCK_C"])
    return checked_grid(NAME, triton.cdiv(map.rows, options["BLOCK_M"]) * c_blocks), c_blocks


def forward(
    features: torch.Tensor, map: list[torch.Tensor], transposed_map: list[torch.Tensor] | None, mode: str
) -> torch.Tensor:
    """Output (rows of the map, channels) in the features' dtype; mode "max", "max0" or "avg"."""
    check_supported(NAME, features)
    return pool(features.contiguous(), Map.of(map), mode)


def pool(features: torch.Tensor, map: Map, mode: str) -> torch.Tensor:
    channels = features.shape[1]
    output = features.new_empty(map.rows, channels)
    if output.numel() == 0:
        return output
    options = launch_options(map, channels)
    grid, c_blocks = programs(map, channels, options)
    with on_device(features):
        sparse_pool_fwd_kernel[grid](
            output, features, map.neighbours, map.order, map.rows, channels, c_blocks,
            MODE=mode,
            INDEX=row_index_type(output, features, map.neighbours),
            COMPUTE=compute_type(features),
            **options,
        )  # fmt: skip
    return output


def backward(
    grad_output: torch.Tensor,
    features: torch.Tensor,
    map: list[torch.Tensor],
    transposed_map: list[torch.Tensor],
    mode: str,
    needs: tuple[bool],
    deterministic: bool,
) -> tuple[torch.Tensor | None]:
    """Gradient of the features in their dtype; deterministic whether asked to be or not. Where the transposed map is
    [], it is the map with its taps turned round, which makes no difference here."""
    check_supported(NAME, features)
    if not needs[0]:
        return (None,)
    forward_map, features = Map.of(map), features.contiguous()
    back = Map.of(transposed_map) if transposed_map else forward_map
    grad_features = torch.empty_like(features)
    if grad_features.numel() == 0:
        return (grad_features,)
    channels = features.shape[1]
    output = counts = None
    if mode == "avg":
        counts = (forward_map.neighbours >= 0).sum(1, dtype=torch.int32)
    else:
        output = pool(features, forward_map, mode)  # a pass over it is cheaper than keeping it
    options = launch_options(back, channels)
    grid, c_blocks = programs(back, channels, options)
    grad_output = grad_output.contiguous()
    with on_device(features):
        sparse_pool_bwd_kernel[grid](
            grad_features, grad_output, output, counts, None if mode == "avg" else features,
            back.neighbours, back.order, back.rows, channels, c_blocks,
            INDEX=row_index_type(grad_output, grad_features, back.neighbours),
            COMPUTE=compute_type(features),
            **options,
        )  # fmt: skip
    return (grad_features,)
