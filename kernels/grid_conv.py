# SPDX-License-Identifier: Apache-2.0
"""Grid convolution in Triton, forward and backward, by tables of what every cell reads.

A program has one cell of many grids: which cell a tap reads, and whether both branches read the same one, is then
known to all its lanes. A table lists, for each cell p, its terms (p, q, w): cell q is multiplied by weight w, the
tap's of branch 1, of branch 2, or, where both branches read q, their sum (169 of 225 taps of a 5x5 grid).

    forward    output[b, p] = bias + sum over the terms of p of (attention[b, t, p] input[b, q]) weight[w]
    backward   by the terms of q: V = grad_output[b, p] weight[w]^T once a term, of which
      input      is the sum of attention[b, t, p] V
      attention  is V . input[b, q], a partial sum a channel block, added in a fixed order
      weight     by the terms of w, sum over b of (attention[b, t, p] input[b, q])^T grad_output[b, p], in partial
                 sums over b

Nothing is scattered, so there are no atomics and all bits are the same every time. Grids are read and written as
channels_last; accumulation is float32 (float64 for double).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ._common import check_supported, checked_grid, compute_type, index_type, on_device
from ._gemm import BUSY_GRID, dot_precision, uses_tensor_cores
from ._grid_conv_tables import Tables, tables

NAME = "grid_conv"


@triton.jit
def load_term(terms, term):
    """Output cell, input cell and weight of a term."""
    return tl.load(terms + 3 * term), tl.load(terms + 3 * term + 1), tl.load(terms + 3 * term + 2)


@triton.jit
def load_attention(attention, sample, valid, cell, weight, CELLS: tl.constexpr, TAPS: tl.constexpr):
    return tl.load(attention + sample * (TAPS * CELLS) + weight % TAPS * CELLS + cell, mask=valid, other=0.0)


@triton.jit
def grid_conv_fwd_kernel(
    output,  # (batch, cells, outputs)
    input,  # (batch, cells, channels)
    weight,  # (weights, channels, padded_outputs)
    bias,  # or None
    attention,  # (batch, taps, cells), or None
    terms,
    starts,
    batch,
    channels,
    outputs,
    padded_outputs,
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
    """One program: BLOCK_N outputs of one cell of BLOCK_M grids."""
    program = tl.program_id(0)
    n_block = program % n_blocks
    cell = program // n_blocks % CELLS
    sample = (program // n_blocks // CELLS).to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
    sample_valid = sample < batch
    out = n_block * BLOCK_N + tl.arange(0, BLOCK_N)
    out_valid = tl.expand_dims(out < outputs, 0)
    k_blocks = tl.cdiv(channels, BLOCK_K)

    product = tl.zeros((BLOCK_M, BLOCK_N), COMPUTE)
    for step in range(tl.load(starts + cell) * k_blocks, tl.load(starts + cell + 1) * k_blocks):
        _, source, tap = load_term(terms, step // k_blocks)
        channel = step % k_blocks * BLOCK_K + tl.arange(0, BLOCK_K)
        at = tl.expand_dims((sample * CELLS + source) * channels, 1) + tl.expand_dims(channel, 0)
        valid = tl.expand_dims(sample_valid, 1) & tl.expand_dims(channel < channels, 0)
        values = tl.load(input + at, mask=valid, other=0.0)
        if attention is not None:
            scale = load_attention(attention, sample, sample_valid, cell, tap, CELLS, TAPS).to(COMPUTE)
            values = (values.to(COMPUTE) * tl.expand_dims(scale, 1)).to(values.dtype)
        at = tl.expand_dims((tap.to(INDEX) * channels + channel) * padded_outputs, 1) + tl.expand_dims(out, 0)
        valid = tl.expand_dims(channel < channels, 1) & tl.expand_dims(out < padded_outputs, 0)
        weights = tl.load(weight + at, mask=valid, other=0.0)
        product = tl.dot(values, weights, product, input_precision=PRECISION, out_dtype=COMPUTE)

    if bias is not None:
        product += tl.load(bias + tl.expand_dims(out, 0), mask=out_valid, other=0.0).to(COMPUTE)
    at = tl.expand_dims((sample * CELLS + cell) * outputs, 1) + tl.expand_dims(out, 0)
    tl.store(output + at, product.to(output.dtype.element_ty), mask=tl.expand_dims(sample_valid, 1) & out_valid)


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


class GridTile(NamedTuple):
    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    num_warps: int
    num_stages: int

    @classmethod
    def of(cls, m: int, n: int, k: int, input: torch.Tensor, limits: tuple[int, int, int]) -> GridTile:
        """No larger than the matrices. Without tensor cores operands live in registers, hence more warps."""
        sizes = (
            max(16, min(limit, triton.next_power_of_2(size))) for size, limit in zip((m, n, k), limits, strict=True)
        )
        tensor_cores = uses_tensor_cores(input)
        return cls(*sizes, num_warps=4 if tensor_cores else 8, num_stages=3 if tensor_cores else 2)


class Call(NamedTuple):
    """The operands of one call as the kernels read them."""

    input: torch.Tensor  # channels_last
    weight: torch.Tensor  # (weights, channels, outputs), in the order of the tables
    attention: torch.Tensor | None
    tables: Tables
    taps: int
    cells: int

    @classmethod
    def of(
        cls,
        input: torch.Tensor,
        weight1: torch.Tensor,
        weight2: torch.Tensor | None,
        attention: torch.Tensor | None,
        borders: str,
    ) -> Call:
        kernel = (weight1.shape[2], weight1.shape[3])
        weights = weight1[None]
        if weight2 is not None:
            compute = torch.float64 if input.dtype == torch.float64 else torch.float32
            both = weight1.to(compute) + weight2.to(compute)
            weights = torch.stack((weight1, weight2, both.to(weight1.dtype)))
        return cls(
            input.contiguous(memory_format=torch.channels_last),
            weights.flatten(3).permute(0, 3, 2, 1).flatten(0, 1),
            None if attention is None else attention.contiguous(),
            tables((input.shape[2], input.shape[3]), kernel, borders, input.device),
            kernel[0] * kernel[1],
            input.shape[2] * input.shape[3],
        )

    def constants(self, *images: torch.Tensor) -> dict[str, object]:
        spans = [None if t is None else t[None] for t in (self.input, self.attention, *images)]
        return {
            "CELLS": self.cells,
            "TAPS": self.taps,
            "INDEX": index_type(*spans, self.weight[None]),
            "COMPUTE": compute_type(self.input),
            "PRECISION": dot_precision(self.input),
        }


def padded(weight: torch.Tensor) -> torch.Tensor:
    """Contiguous, with zeros up to a multiple of 16 on the last axis, so that rows are whole vectors."""
    columns = weight.shape[-1]
    packed = weight.new_zeros(*weight.shape[:-1], triton.cdiv(columns, 16) * 16)
    packed[..., :columns].copy_(weight)
    return packed


def forward(
    input: torch.Tensor,
    weight1: torch.Tensor,
    weight2: torch.Tensor | None,
    bias1: torch.Tensor | None,
    bias2: torch.Tensor | None,
    attention: torch.Tensor | None,
    borders: str,
) -> torch.Tensor:
    """Output (batch, outputs, height, width) in the input's dtype, channels_last."""
    check_supported(NAME, input)
    batch, channels, height, width = input.shape
    outputs = weight1.shape[0]
    output = torch.empty(
        (batch, outputs, height, width), dtype=input.dtype, device=input.device, memory_format=torch.channels_last
    )
    if output.numel() == 0:
        return output
    call = Call.of(input, weight1, weight2, attention, borders)
    weight = padded(call.weight)
    biases = [bias for bias in (bias1, bias2) if bias is not None]
    bias = sum(b.to(torch.promote_types(b.dtype, torch.float32)) for b in biases) if biases else None
    tile = GridTile.of(batch, outputs, channels, input, (64, 64, 32 if uses_tensor_cores(input) else 16))
    m_blocks, n_blocks = triton.cdiv(batch, tile.BLOCK_M), triton.cdiv(outputs, tile.BLOCK_N)
    with on_device(input):
        grid_conv_fwd_kernel[checked_grid(NAME, m_blocks * call.cells * n_blocks)](
            output, call.input, weight, bias, call.attention,
            call.tables.by_output, call.tables.output_starts,
            batch, channels, outputs, weight.shape[-1], n_blocks,
            **call.constants(output),
            **tile._asdict(),
        )  # fmt: skip
    return output


def backward(
    grad_output: torch.Tensor,
    input: torch.Tensor,
    weight1: torch.Tensor,
    weight2: torch.Tensor | None,
    bias1: torch.Tensor | None,
    bias2: torch.Tensor | None,
    attention: torch.Tensor | None,
    borders: str,
    needs: tuple[bool, bool, bool, bool, bool, bool],
    deterministic: bool,
) -> tuple[torch.Tensor | None, ...]:
    """Gradients of (input, weight1, weight2, bias1, bias2, attention) in their dtypes, None where `needs` is false.
    They are deterministic whether asked to be or not."""
    check_supported(NAME, input)
    tensors = (input, weight1, weight2, bias1, bias2, attention)
    needs = tuple(need and t is not None for need, t in zip(needs, tensors, strict=True))
    if grad_output.numel() == 0:
        return tuple(torch.zeros_like(t) if need else None for t, need in zip(tensors, needs, strict=True))
    call = Call.of(input, weight1, weight2, attention, borders)
    grad = grad_output.contiguous(memory_format=torch.channels_last)
    grad_input = grad_attention = grad_bias = None
    grad_weights: tuple[torch.Tensor | None, ...] = (None, None)
    if needs[0] or needs[5]:
        grad_input, grad_attention = cell_gradients(grad, call, needs[0], needs[5])
    if needs[1] or needs[2]:
        grad_weights = weight_gradients(grad, call, weight1)
    if needs[3] or needs[4]:
        grad_bias = grad_output.sum((0, 2, 3), dtype=torch.promote_types(grad_output.dtype, torch.float32))
    grads = zip((grad_input, *grad_weights, grad_bias, grad_bias, grad_attention), tensors, needs, strict=True)
    return tuple(grad.to(t.dtype) if need else None for grad, t, need in grads)


def cell_gradients(
    grad_output: torch.Tensor, call: Call, need_input: bool, need_attention: bool
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Gradients of input and attention."""
    input = call.input
    batch, channels, height, width = input.shape
    outputs = grad_output.shape[1]
    weight = padded(call.weight.transpose(1, 2))
    tile = GridTile.of(batch, channels, outputs, input, (64, 64, 32 if uses_tensor_cores(input) else 16))
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
    tile = GridTile.of(batch, outputs, channels, input, (32 if input.dtype.itemsize == 2 else 16, 64, 64))
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
