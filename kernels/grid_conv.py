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

import torch
import triton
import triton.language as tl

from ._common import check_supported, checked_grid, on_device
from ._grid_conv_bwd import cell_gradients, weight_gradients
from ._grid_conv_shared import NAME, Call, GridTile, load_attention, load_term, padded


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
    tile = GridTile.of(batch, outputs, channels, input, (64, 64, 32 if input.dtype.itemsize == 2 else 16))
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
