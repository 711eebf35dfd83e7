# SPDX-License-Identifier: Apache-2.0
"""Gradients of the grid convolution; the method is told in `grid_conv`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._common import checked_grid, on_device
from ._gemm import BUSY_GRID
from ._grid_conv_shared import NAME, Call, GridTile, load_attention, load_term, padded


@triton.jit
def grid_conv_bwd_cell_kernel(
    grad_input,  # (batch, cells, channels)
    attention_sums,  # (terms, n_blocks, batch), or None
    grad_output,  # (batch, cells, outputs)
    input,  # (batch, cells, channels)
    weight,  # (weights, outputs, padded_channels)
    attention,  # (batch, taps, cells), or None
    terms,
    starts,
    batch,
    channels,
    outputs,
    padded_channels,
    n_blocks,
    CELLS: tl.constexpr,
    TAPS: tl.constexpr,
    INDEX: tl.constexpr,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Gradients of input and attention. One program: BLOCK_N channels of one input cell of BLOCK_M grids."""
    program = tl.program_id(0)
    n_block = program % n_blocks
    cell = program // n_blocks % CELLS
    sample = (program // n_blocks // CELLS).to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
    sample_valid = sample < batch
    channel = n_block * BLOCK_N + tl.arange(0, BLOCK_N)
    at_input = tl.expand_dims((sample * CELLS + cell) * channels, 1) + tl.expand_dims(channel, 0)
    valid_input = tl.expand_dims(sample_valid, 1) & tl.expand_dims(channel < channels, 0)

    total = tl.zeros((BLOCK_M, BLOCK_N), COMPUTE)
    for term in range(tl.load(starts + cell), tl.load(starts + cell + 1)):
        target, _, tap = load_term(terms, term)
        product = tl.zeros((BLOCK_M, BLOCK_N), COMPUTE)
        for first in range(0, outputs, BLOCK_K):
            out = first + tl.arange(0, BLOCK_K)
            at = tl.expand_dims((sample * CELLS + target) * outputs, 1) + tl.expand_dims(out, 0)
            valid = tl.expand_dims(sample_valid, 1) & tl.expand_dims(out < outputs, 0)
            d_out = tl.load(grad_output + at, mask=valid, other=0.0)
            at = tl.expand_dims((tap.to(INDEX) * outputs + out) * padded_channels, 1) + tl.expand_dims(channel, 0)
            valid = tl.expand_dims(out < outputs, 1) & tl.expand_dims(channel < padded_channels, 0)
            weights = tl.load(weight + at, mask=valid, other=0.0)
            product = tl.dot(d_out, weights, product, input_precision=PRECISION, out_dtype=COMPUTE)
        if attention_sums is not None:
            values = tl.load(input + at_input, mask=valid_input, other=0.0).to(COMPUTE)
            slot = (term * n_blocks + n_block).to(INDEX) * batch
            tl.store(attention_sums + slot + sample, tl.sum(product * values, axis=1), mask=sample_valid)
        if attention is not None:
            scale = load_attention(attention, sample, sample_valid, target, tap, CELLS, TAPS).to(COMPUTE)
            product *= tl.expand_dims(scale, 1)
        total += product
    if grad_input is not None:
        tl.store(grad_input + at_input, total.to(grad_input.dtype.element_ty), mask=valid_input)


@triton.jit
def grid_conv_bwd_weight_kernel(
    partial,  # (splits, weights, channels, outputs)
    grad_output,  # (batch, cells, outputs)
    input,  # (batch, cells, channels)
    attention,  # (batch, taps, cells), or None
    terms,
    starts,
    batch,
    channels,
    outputs,
    m_blocks,
    n_blocks,
    k_blocks,
    weights,
    splits,
    CELLS: tl.constexpr,
    TAPS: tl.constexpr,
    INDEX: tl.constexpr,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Partial gradient of one weight over every splits-th block of grids. One program: BLOCK_K channels by BLOCK_N
    outputs."""
    program = tl.program_id(0)
    n_block = program % n_blocks
    k_block = program // n_blocks % k_blocks
    weight = program // n_blocks // k_blocks % weights
    split = program // n_blocks // k_blocks // weights
    channel = k_block * BLOCK_K + tl.arange(0, BLOCK_K)
    out = n_block * BLOCK_N + tl.arange(0, BLOCK_N)
    first_term = tl.load(starts + weight)
    own_blocks = tl.cdiv(m_blocks - split, splits)

    product = tl.zeros((BLOCK_K, BLOCK_N), COMPUTE)
    for step in range((tl.load(starts + weight + 1) - first_term) * own_blocks):
        target, source, tap = load_term(terms, first_term + step // own_blocks)
        block = split + step % own_blocks * splits
        sample = block.to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
        sample_valid = sample < batch
        at = tl.expand_dims((sample * CELLS + source) * channels, 1) + tl.expand_dims(channel, 0)
        valid = tl.expand_dims(sample_valid, 1) & tl.expand_dims(channel < channels, 0)
        values = tl.load(input + at, mask=valid, other=0.0)
        if attention is not None:
            scale = load_attention(attention, sample, sample_valid, target, tap, CELLS, TAPS).to(COMPUTE)
            values = (values.to(COMPUTE) * tl.expand_dims(scale, 1)).to(values.dtype)
        at = tl.expand_dims((sample * CELLS + target) * outputs, 1) + tl.expand_dims(out, 0)
        valid = tl.expand_dims(sample_valid, 1) & tl.expand_dims(out < outputs, 0)
        d_out = tl.load(grad_output + at, mask=valid, other=0.0)
        product = tl.dot(tl.trans(values), d_out, product, input_precision=PRECISION, out_dtype=COMPUTE)

    row = ((split * weights + weight).to(tl.int64) * channels + channel) * outputs
    valid = tl.expand_dims(channel < channels, 1) & tl.expand_dims(out < outputs, 0)
    tl.store(partial + tl.expand_dims(row, 1) + tl.expand_dims(out, 0), product, mask=valid)


def cell_gradients(
    grad_output: torch.Tensor, call: Call, need_input: bool, need_attention: bool
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Gradients of input and attention."""
    input = call.input
    batch, channels, height, width = input.shape
    outputs = grad_output.shape[1]
    weight = padded(call.weight.transpose(1, 2))
    limits = {2: (64, 64, 32), 4: (32, 64, 16), 8: (32, 32, 16)}[input.dtype.itemsize]
    tile = GridTile.of(batch, channels, outputs, input, limits)
    m_blocks, n_blocks = triton.cdiv(batch, tile.BLOCK_M), triton.cdiv(channels, tile.BLOCK_N)
    grad_input = torch.empty_like(input) if need_input else None
    sums = None
    if need_attention:
        compute = torch.float64 if input.dtype == torch.float64 else torch.float32
        # The row past the last stays 0: what a tap that has but one term reads as its second.
        sums = input.new_zeros(len(call.tables.by_input) + 1, n_blocks, batch, dtype=compute)
    with on_device(input):
        grid_conv_bwd_cell_kernel[checked_grid(NAME, m_blocks * call.cells * n_blocks)](
            grad_input, sums, grad_output, input, weight, call.attention,
            call.tables.by_input, call.tables.input_starts,
            batch, channels, outputs, weight.shape[-1], n_blocks,
            **call.constants(grad_output, sums),
            **tile._asdict(),
        )  # fmt: skip
    if sums is None:
        return grad_input, None
    found = sums.sum(1)[call.tables.of_attention].sum(2)  # (taps, cells, batch)
    return grad_input, found.permute(2, 0, 1).reshape(batch, call.taps, height, width)


def weight_gradients(
    grad_output: torch.Tensor, call: Call, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Gradients of both weights (None for the second of a single branch)."""
    input = call.input
    batch, channels, _, _ = input.shape
    outputs, rows = grad_output.shape[1], call.weight.shape[0]
    tile = GridTile.of(batch, outputs, channels, input, (32, 64, 64) if input.dtype.itemsize == 2 else (16, 64, 32))
    m_blocks, n_blocks = triton.cdiv(batch, tile.BLOCK_M), triton.cdiv(outputs, tile.BLOCK_N)
    k_blocks = triton.cdiv(channels, tile.BLOCK_K)
    splits = max(1, min(m_blocks, 2 * BUSY_GRID // (rows * k_blocks * n_blocks)))
    compute = torch.float64 if input.dtype == torch.float64 else torch.float32
    partial = input.new_empty(splits, rows, channels, outputs, dtype=compute)
    with on_device(input):
        grid_conv_bwd_weight_kernel[checked_grid(NAME, splits * rows * k_blocks * n_blocks)](
            partial, grad_output, input, call.attention,
            call.tables.by_weight, call.tables.weight_starts,
            batch, channels, outputs, m_blocks, n_blocks, k_blocks, rows, splits,
            **call.constants(grad_output),
            **tile._asdict(),
        )  # fmt: skip
    found = partial.sum(0).view(-1, call.taps, channels, outputs).permute(0, 3, 2, 1)
    found = found.reshape(-1, *weight.shape)
    if len(found) == 1:
        return found[0], None
    return found[0] + found[2], found[1] + found[2]
