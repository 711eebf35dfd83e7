# SPDX-License-Identifier: Apache-2.0
"""Gradient of the weight of the deformable convolution; the method is told in `deform_conv2d`."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ._common import (
    bilinear_cell,
    cell_corners,
    cell_weights,
    checked_grid,
    compute_type,
    index_type,
    load_corners,
    on_channels,
    on_device,
    on_pixels,
    pixel_axis,
    pixel_block,
    strides,
)
from ._deform_conv2d_shared import Shape, sample_position
from ._gemm import BUSY_GRID, Lanes, dot_precision, on_lanes, pair_lanes


@triton.jit
def deform_conv2d_bwd_weight_kernel(
    partial,  # (splits, channels, taps, outputs of a group)
    grad_output,
    grad_output_strides,
    input,
    input_strides,
    offset,
    offset_strides,
    mask,
    mask_strides,
    channels,
    height,
    width,
    pixels,
    output_width,
    m_blocks,
    total_m_blocks,
    splits,
    n_blocks,
    k_blocks,
    groups,
    stride,
    padding,
    dilation,
    GROUP_CHANNELS: tl.constexpr,
    GROUP_OUTPUTS: tl.constexpr,
    OFFSET_GROUP_CHANNELS: tl.constexpr,
    RUN: tl.constexpr,
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
    """Partial gradient of the weight over every splits-th pixel block. One program: a K tile by BLOCK_N outputs."""
    BLOCK_K: tl.constexpr = LANES * PAIRS
    GROUP_PAIRS: tl.constexpr = GROUP_CHANNELS // RUN * TAPS
    CHANNEL_BLOCKS: tl.constexpr = (RUN + LANES - 1) // LANES
    program = tl.program_id(0)
    n_block = program % n_blocks
    k_block = program // n_blocks % k_blocks
    split = program // n_blocks // k_blocks % splits
    conv_group = program // n_blocks // k_blocks // splits

    pair = pair_lanes(k_block // CHANNEL_BLOCKS * PAIRS, LANES, PAIRS)
    pair_valid = pair < GROUP_PAIRS
    tap = pair % TAPS
    run_channel = conv_group * GROUP_CHANNELS + pair // TAPS * RUN
    group = run_channel // OFFSET_GROUP_CHANNELS
    lane = tl.arange(0, BLOCK_K)
    in_run = k_block % CHANNEL_BLOCKS * LANES + lane % LANES
    k_valid = (in_run < RUN) & pair_valid
    channel = run_channel + in_run
    channel_offset = on_channels(channel.to(INDEX) * input_strides[1], PIXEL_AXIS)
    k_valid_tile = on_channels(k_valid, PIXEL_AXIS)
    out = n_block * BLOCK_N + tl.arange(0, BLOCK_N)
    out_plane = on_channels((conv_group * GROUP_OUTPUTS + out).to(INDEX) * grad_output_strides[1], PIXEL_AXIS)
    out_valid = on_channels(out < GROUP_OUTPUTS, PIXEL_AXIS)

    product = tl.zeros((BLOCK_K, BLOCK_N), COMPUTE)
    for block in range(split, total_m_blocks, splits):
        image = (block // m_blocks).to(tl.int64)
        row, column, in_output = pixel_block(block % m_blocks, pixels, output_width, INDEX, BLOCK_M)
        row = on_pixels(row, PIXEL_AXIS)
        column = on_pixels(column, PIXEL_AXIS)
        in_output = on_pixels(in_output, PIXEL_AXIS)
        image_mask = mask
        if mask is not None:
            image_mask = mask + image * mask_strides[0]
        y, x, m = sample_position(
            offset + image * offset_strides[0], offset_strides, image_mask, mask_strides, row, column,
            in_output & on_lanes(pair_valid, PIXEL_AXIS, PAIRS),
            on_lanes(group, PIXEL_AXIS, PAIRS), on_lanes(tap, PIXEL_AXIS, PAIRS),
            stride, padding, dilation, TAPS, KERNEL_W, INDEX, COMPUTE,
        )  # fmt: skip
        top, left, ly, lx, inside, scale = bilinear_cell(y, x, height, width, INDEX, False)
        w = cell_weights(ly, lx, scale * m)
        corners, exists = cell_corners(top, left, inside & in_output, height, width, input_strides[2], input_strides[3])
        v = load_corners(input + image * input_strides[0], corners, exists, channel_offset, k_valid_tile, COMPUTE)
        samples = w[0] * v[0] + w[1] * v[1] + w[2] * v[2] + w[3] * v[3]
        at = image * grad_output_strides[0] + row * grad_output_strides[2] + column * grad_output_strides[3]
        d_out = tl.load(grad_output + at + out_plane, mask=in_output & out_valid, other=0.0)
        samples = samples.to(d_out.dtype)
        if PIXEL_AXIS == 0:
            product = tl.dot(tl.trans(samples), d_out, product, input_precision=PRECISION, out_dtype=COMPUTE)
        else:
            product = tl.dot(samples, tl.trans(d_out), product, input_precision=PRECISION, out_dtype=COMPUTE)

    k_row = ((split.to(tl.int64) * channels + channel) * TAPS + tap) * GROUP_OUTPUTS
    valid = tl.expand_dims(k_valid, 1) & tl.expand_dims(out < GROUP_OUTPUTS, 0)
    tl.store(partial + tl.expand_dims(k_row, 1) + tl.expand_dims(out, 0), product, mask=valid)


class WeightTile(NamedTuple):
    BLOCK_M: int
    BLOCK_N: int
    LANES: int
    PAIRS: int
    num_warps: int
    num_stages: int


def weight_tile(shape: Shape, dtype: torch.dtype) -> WeightTile:
    """BLOCK_N spans up to 128 output channels, so that samples are seldom taken twice.

    A tile of several pairs computes a position per lane, and wide operands fill registers and shared memory:
    both take smaller tiles.
    """
    block_n = max(16, min(64 if dtype.itemsize > 2 else 128, triton.next_power_of_2(shape.group_outputs)))
    halvings = (dtype.itemsize > 2) + (shape.run < 16)
    block_m = 16 if dtype == torch.float64 else 64 >> halvings
    lanes, pairs = Lanes.of(shape.run, 32 if halvings else 64)
    return WeightTile(block_m, block_n, lanes, pairs, num_warps=8, num_stages=2)


def weight_gradient(
    grad_output: torch.Tensor,
    input: torch.Tensor,
    offset: torch.Tensor,
    weight: torch.Tensor,
    mask: torch.Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    shape: Shape,
) -> torch.Tensor:
    """Gradient of the weight; deterministic, since the number of partial sums depends on shapes alone."""
    if grad_output.numel() == 0 or weight.numel() == 0:
        return torch.zeros_like(weight)
    tile = weight_tile(shape, input.dtype)
    m_blocks = triton.cdiv(shape.pixels, tile.BLOCK_M)
    n_blocks = triton.cdiv(shape.group_outputs, tile.BLOCK_N)
    group_pairs = shape.group_channels // shape.run * shape.taps
    k_blocks = triton.cdiv(group_pairs, tile.PAIRS) * triton.cdiv(shape.run, tile.LANES)
    tiles = shape.groups * k_blocks * n_blocks
    splits = max(1, min(shape.batch * m_blocks, triton.cdiv(2 * BUSY_GRID, tiles)))
    compute = torch.float64 if input.dtype == torch.float64 else torch.float32
    partial = input.new_empty(splits, shape.channels, shape.taps, shape.group_outputs, dtype=compute)
    with on_device(input):
        deform_conv2d_bwd_weight_kernel[checked_grid("deform_conv2d", tiles * splits)](
            partial,
            grad_output, grad_output.stride(),
            input, input.stride(),
            offset, offset.stride(),
            mask, strides(mask),
            shape.channels, shape.height, shape.width, shape.pixels, shape.output_width,
            m_blocks, shape.batch * m_blocks, splits, n_blocks, k_blocks, shape.groups,
            stride, padding, dilation,
            GROUP_CHANNELS=shape.group_channels,
            GROUP_OUTPUTS=shape.group_outputs,
            OFFSET_GROUP_CHANNELS=shape.offset_group_channels,
            RUN=shape.run,
            TAPS=shape.taps,
            KERNEL_W=shape.kernel_w,
            PIXEL_AXIS=pixel_axis(input),
            INDEX=index_type(grad_output, input, offset, mask),
            COMPUTE=compute_type(input),
            PRECISION=dot_precision(input),
            **tile._asdict(),
        )  # fmt: skip
    packed = partial.sum(0).view(shape.groups, shape.group_channels, shape.taps, shape.group_outputs)
    return packed.permute(0, 3, 1, 2).reshape(weight.shape).to(weight.dtype)
