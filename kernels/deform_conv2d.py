# SPDX-License-Identifier: Apache-2.0
"""Deformable convolution as an implicit GEMM in Triton, forward and backward.

The reduction axis of the convolution is cut into pairs (channel run, tap): the channels of a run share an
offset group, so every pair has one sampling position per pixel. A K tile of the GEMM is either one pair and
a block of its channels (PAIRS == 1; positions are computed once and reused for all channel blocks) or, when
runs are shorter than a tile, several whole pairs of LANES = next_power_of_2(run) channels each, so that the
dot stays dense with a single channel per offset group.

    forward        output[m, o]   = sum over k of column[m, k] weight[k, o]
    backward       d column[m, k] = sum over o of d output[m, o] weight[k, o]
      input        scatter of d column * mask * corner weight
      offset, mask S_i = sum over the channels of a pair of d column * corner_i, then bilinear in the four S_i:
                   sums before interpolation, one program per (pixel block, pairs), hence no atomics
      weight       d weight[k, o] = sum over m of column[m, k] d output[m, o], cut into partial sums over
                   pixels that are added in a fixed order

Weights are repacked once per call as (channel, tap, output channel), padded with zeros to whole vectors.
Accumulation and coordinates are float32 (float64 for double).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ._common import (
    bilinear_cell,
    cell_corners,
    cell_weights,
    check_supported,
    checked_grid,
    compute_type,
    index_type,
    load_corners,
    memory_format,
    on_channels,
    on_device,
    on_pixels,
    pixel_axis,
    pixel_block,
    strides,
    zeros_tile,
)
from ._deform_conv2d_bwd_sample import sample_gradients
from ._deform_conv2d_bwd_weight import weight_gradient
from ._deform_conv2d_shared import Shape, pack_weight, sample_position
from ._gemm import BUSY_GRID, Lanes, dot_precision, on_lanes, pair_lanes, uses_tensor_cores


@triton.jit
def deform_conv2d_fwd_kernel(
    output,
    output_strides,
    input,
    input_strides,
    offset,
    offset_strides,
    mask,
    mask_strides,
    weight,  # (channels, taps, padded_outputs)
    bias,
    height,
    width,
    pixels,
    output_width,
    m_blocks,
    n_blocks,
    groups,
    padded_outputs,
    stride,
    padding,
    dilation,
    GROUP_CHANNELS: tl.constexpr,
    GROUP_OUTPUTS: tl.constexpr,
    OFFSET_GROUP_CHANNELS: tl.constexpr,
    RUN: tl.constexpr,  # channels that share a convolution group and an offset group
    TAPS: tl.constexpr,
    KERNEL_W: tl.constexpr,
    PIXEL_AXIS: tl.constexpr,
    INDEX: tl.constexpr,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    LANES: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """One program: BLOCK_M pixels of one image by BLOCK_N output channels of one convolution group."""
    BLOCK_K: tl.constexpr = LANES * PAIRS
    GROUP_PAIRS: tl.constexpr = GROUP_CHANNELS // RUN * TAPS
    program = tl.program_id(0)
    n_block = program % n_blocks
    m_block = program // n_blocks % m_blocks
    conv_group = program // n_blocks // m_blocks % groups
    image = (program // n_blocks // m_blocks // groups).to(tl.int64)
    output += image * output_strides[0]
    input += image * input_strides[0]
    offset += image * offset_strides[0]
    if mask is not None:
        mask += image * mask_strides[0]

    row, column, in_output = pixel_block(m_block, pixels, output_width, INDEX, BLOCK_M)
    row = on_pixels(row, PIXEL_AXIS)
    column = on_pixels(column, PIXEL_AXIS)
    in_output = on_pixels(in_output, PIXEL_AXIS)
    out = n_block * BLOCK_N + tl.arange(0, BLOCK_N)
    out_tile = on_channels(out, PIXEL_AXIS)
    lane = tl.arange(0, BLOCK_K)

    product = zeros_tile(BLOCK_M, BLOCK_N, PIXEL_AXIS, COMPUTE)
    for first_pair in range(0, GROUP_PAIRS, PAIRS):
        pair = pair_lanes(first_pair, LANES, PAIRS)
        pair_valid = pair < GROUP_PAIRS
        tap = pair % TAPS
        run_channel = conv_group * GROUP_CHANNELS + pair // TAPS * RUN
        group = run_channel // OFFSET_GROUP_CHANNELS
        y, x, m = sample_position(
            offset, offset_strides, mask, mask_strides, row, column,
            in_output & on_lanes(pair_valid, PIXEL_AXIS, PAIRS),
            on_lanes(group, PIXEL_AXIS, PAIRS), on_lanes(tap, PIXEL_AXIS, PAIRS),
            stride, padding, dilation, TAPS, KERNEL_W, INDEX, COMPUTE,
        )  # fmt: skip
        top, left, ly, lx, inside, scale = bilinear_cell(y, x, height, width, INDEX, False)
        w = cell_weights(ly, lx, scale * m)
        corners, exists = cell_corners(top, left, inside & in_output, height, width, input_strides[2], input_strides[3])
        for block in range(0, RUN, BLOCK_K if PAIRS == 1 else RUN):
            in_run = block + lane % LANES
            k_valid = (in_run < RUN) & pair_valid
            channel = run_channel + in_run
            v = load_corners(
                input,
                corners,
                exists,
                on_channels(channel.to(INDEX) * input_strides[1], PIXEL_AXIS),
                on_channels(k_valid, PIXEL_AXIS),
                COMPUTE,
            )
            samples = w[0] * v[0] + w[1] * v[1] + w[2] * v[2] + w[3] * v[3]
            at = on_pixels((channel.to(INDEX) * TAPS + tap) * padded_outputs, PIXEL_AXIS) + out_tile
            weights = tl.load(weight + at, mask=on_pixels(k_valid, PIXEL_AXIS) & (out_tile < padded_outputs), other=0.0)
            samples = samples.to(weights.dtype)
            if PIXEL_AXIS == 0:
                product = tl.dot(samples, weights, product, input_precision=PRECISION, out_dtype=COMPUTE)
            else:
                product = tl.dot(weights, samples, product, input_precision=PRECISION, out_dtype=COMPUTE)

    out_valid = out_tile < GROUP_OUTPUTS
    out_channel = conv_group * GROUP_OUTPUTS + out_tile
    if bias is not None:
        product += tl.load(bias + out_channel, mask=out_valid, other=0.0).to(COMPUTE)
    at = out_channel.to(INDEX) * output_strides[1] + row * output_strides[2] + column * output_strides[3]
    tl.store(output + at, product.to(output.dtype.element_ty), mask=in_output & out_valid)


class ForwardTile(NamedTuple):
    BLOCK_M: int
    BLOCK_N: int
    LANES: int
    PAIRS: int
    num_warps: int
    num_stages: int


def forward_tile(shape: Shape, dtype: torch.dtype, tensor_cores: bool) -> ForwardTile:
    """BLOCK_N spans all output channels of a group up to 256, so that every sample is taken once.

    While the grid is too small to fill a GPU, BLOCK_N is halved (samples are taken again, but in parallel).
    Without tensor cores the operands live in registers, and blocks are smaller; so are they with several
    pairs a tile, where every lane has a position of its own.
    """
    block_m = 64 if dtype != torch.float64 else 32
    block_n = max(16, min(256 if tensor_cores else 64, triton.next_power_of_2(shape.group_outputs)))
    lanes, pairs = Lanes.of(shape.run, 32 if tensor_cores and shape.run >= 16 else 16)
    programs = shape.batch * shape.groups * triton.cdiv(shape.pixels, block_m)
    while block_n > 64 and programs * triton.cdiv(shape.group_outputs, block_n) < BUSY_GRID:
        block_n //= 2
    num_warps = 8 if block_n == 256 or not tensor_cores or pairs > 1 else 4
    return ForwardTile(block_m, block_n, lanes, pairs, num_warps, num_stages=2)


def forward(
    input: torch.Tensor,
    offset: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    mask: torch.Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    offset_groups: int,
) -> torch.Tensor:
    """Output (batch, outputs, output_height, output_width) in the input's dtype and memory format."""
    check_supported("deform_conv2d", input)
    shape = Shape.of(input, offset, weight, groups, offset_groups)
    output = torch.empty(
        (shape.batch, shape.outputs, shape.output_height, shape.output_width),
        dtype=input.dtype,
        device=input.device,
        memory_format=memory_format(input),
    )
    if output.numel() == 0:
        return output
    packed = pack_weight(weight, shape)
    tile = forward_tile(shape, input.dtype, uses_tensor_cores(input))
    m_blocks = triton.cdiv(shape.pixels, tile.BLOCK_M)
    n_blocks = triton.cdiv(shape.group_outputs, tile.BLOCK_N)
    with on_device(input):
        deform_conv2d_fwd_kernel[checked_grid("deform_conv2d", shape.batch * groups * m_blocks * n_blocks)](
            output, output.stride(),
            input, input.stride(),
            offset, offset.stride(),
            mask, strides(mask),
            packed, bias,
            shape.height, shape.width, shape.pixels, shape.output_width,
            m_blocks, n_blocks, groups, shape.padded_outputs,
            stride, padding, dilation,
            GROUP_CHANNELS=shape.group_channels,
            GROUP_OUTPUTS=shape.group_outputs,
            OFFSET_GROUP_CHANNELS=shape.offset_group_channels,
            RUN=shape.run,
            TAPS=shape.taps,
            KERNEL_W=shape.kernel_w,
            PIXEL_AXIS=pixel_axis(output),
            INDEX=index_type(output, input, offset, mask, packed[None]),
            COMPUTE=compute_type(input),
            PRECISION=dot_precision(input),
            **tile._asdict(),
        )  # fmt: skip
    return output


def backward(
    grad_output: torch.Tensor,
    input: torch.Tensor,
    offset: torch.Tensor,
    weight: torch.Tensor,
    mask: torch.Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    offset_groups: int,
    needs: tuple[bool, bool, bool, bool, bool],
    deterministic: bool,
) -> tuple[torch.Tensor | None, ...]:
    """Gradients of (input, offset, weight, bias, mask) in their dtypes, None where `needs` is false."""
    check_supported("deform_conv2d", input)
    shape = Shape.of(input, offset, weight, groups, offset_groups)
    geometry = (stride, padding, dilation, shape)
    needs_input, needs_offset, needs_weight, needs_bias, needs_mask = needs
    grad_input = grad_offset = grad_mask = None
    if needs_input or needs_offset or needs_mask:
        sampled = (needs_input, needs_offset, needs_mask)
        grad_input, grad_offset, grad_mask = sample_gradients(
            grad_output, input, offset, weight, mask, *geometry, sampled, deterministic
        )
    grad_weight = weight_gradient(grad_output, input, offset, weight, mask, *geometry) if needs_weight else None
    grad_bias = None
    if needs_bias:
        accumulate = torch.float64 if input.dtype == torch.float64 else torch.float32
        grad_bias = grad_output.sum((0, 2, 3), dtype=accumulate).to(grad_output.dtype)
    return grad_input, grad_offset, grad_weight, grad_bias, grad_mask
