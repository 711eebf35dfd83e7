# SPDX-License-Identifier: Apache-2.0
"""Gradients of input, offset and mask of the deformable convolution; the method is told in `deform_conv2d`."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ._common import (
    ImageGradient,
    bilinear_cell,
    cell_corners,
    cell_weights,
    checked_grid,
    compute_type,
    index_type,
    largest_finite,
    load_corners,
    on_channels,
    on_device,
    on_pixels,
    pixel_axis,
    pixel_block,
    scatter_add,
    strides,
    zeros_tile,
)
from ._deform_conv2d_shared import Shape, pack_weight, sample_position
from ._gemm import Lanes, dot_precision, on_lanes, pair_lanes, uses_tensor_cores


@triton.jit
def sum_pairs(tile, PIXEL_AXIS: tl.constexpr, BLOCK_M: tl.constexpr, LANES: tl.constexpr, PAIRS: tl.constexpr):
    """Sums a tile over the channels of each pair."""
    if PIXEL_AXIS == 0:
        sums = tl.sum(tl.reshape(tile, (BLOCK_M, PAIRS, LANES)), axis=2)
    else:
        sums = tl.sum(tl.reshape(tile, (PAIRS, LANES, BLOCK_M)), axis=1)
    return sums


@triton.jit
def deform_conv2d_bwd_sample_kernel(
    grad_input,  # or None
    grad_input_strides,
    fixed_point_scale,
    grad_offset,  # or None
    grad_offset_strides,
    grad_mask,  # or None
    grad_mask_strides,
    grad_output,
    grad_output_strides,
    input,
    input_strides,
    offset,
    offset_strides,
    mask,
    mask_strides,
    weight,  # (channels, taps, padded_outputs)
    height,
    width,
    pixels,
    output_width,
    m_blocks,
    pair_blocks,
    units,
    unit_pairs,
    padded_outputs,
    stride,
    padding,
    dilation,
    GROUP_CHANNELS: tl.constexpr,
    GROUP_OUTPUTS: tl.constexpr,
    OFFSET_GROUP_CHANNELS: tl.constexpr,
    RUN: tl.constexpr,
    TAPS: tl.constexpr,
    KERNEL_W: tl.constexpr,
    DENSE: tl.constexpr,  # every K tile lies in one convolution group
    PIXEL_AXIS: tl.constexpr,
    INDEX: tl.constexpr,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_O: tl.constexpr,
    LANES: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """Gradients of input, offset and mask. One program: BLOCK_M pixels of one image by PAIRS whole pairs
    (offset group, tap), all channels of which it owns. A unit is a range of pairs that tiles do not cross:
    a convolution group where several pairs share a tile and the dot is dense, else everything.
    """
    BLOCK_K: tl.constexpr = LANES * PAIRS
    SEGMENT: tl.constexpr = RUN if DENSE and PAIRS == 1 else OFFSET_GROUP_CHANNELS
    STEP: tl.constexpr = BLOCK_K if PAIRS == 1 else SEGMENT
    program = tl.program_id(0)
    m_block = program % m_blocks
    pair_block = program // m_blocks % pair_blocks
    unit = program // m_blocks // pair_blocks % units
    image = (program // m_blocks // pair_blocks // units).to(tl.int64)
    grad_output += image * grad_output_strides[0]
    input += image * input_strides[0]
    offset += image * offset_strides[0]
    if mask is not None:
        mask += image * mask_strides[0]
    if grad_input is not None:
        grad_input += image * grad_input_strides[0]

    row, column, in_output = pixel_block(m_block, pixels, output_width, INDEX, BLOCK_M)
    row = on_pixels(row, PIXEL_AXIS)
    column = on_pixels(column, PIXEL_AXIS)
    in_output = on_pixels(in_output, PIXEL_AXIS)
    out_pixel = row * grad_output_strides[2] + column * grad_output_strides[3]
    lane = tl.arange(0, BLOCK_K)

    in_unit = pair_lanes(pair_block * PAIRS, LANES, PAIRS)
    pair_valid = in_unit < unit_pairs
    pair = unit * unit_pairs + in_unit
    tap = pair % TAPS
    group = pair // TAPS
    y, x, m = sample_position(
        offset, offset_strides, mask, mask_strides, row, column,
        in_output & on_lanes(pair_valid, PIXEL_AXIS, PAIRS),
        on_lanes(group, PIXEL_AXIS, PAIRS), on_lanes(tap, PIXEL_AXIS, PAIRS),
        stride, padding, dilation, TAPS, KERNEL_W, INDEX, COMPUTE,
    )  # fmt: skip
    top, left, ly, lx, inside, scale = bilinear_cell(y, x, height, width, INDEX, True)
    inside &= in_output
    corners, exists = cell_corners(top, left, inside, height, width, input_strides[2], input_strides[3])
    targets = corners
    w = cell_weights(ly, lx, scale * m)
    fixed_point = None
    if grad_input is not None:
        targets, _ = cell_corners(top, left, inside, height, width, grad_input_strides[2], grad_input_strides[3])
        if fixed_point_scale is not None:
            fixed_point = tl.load(fixed_point_scale)

    s0 = zeros_tile(BLOCK_M, PAIRS, PIXEL_AXIS, COMPUTE)
    s1 = s0
    s2 = s0
    s3 = s0
    for segment in range(0, OFFSET_GROUP_CHANNELS, SEGMENT):
        for block in range(0, SEGMENT, STEP):
            in_segment = block + lane % LANES
            k_valid = (in_segment < SEGMENT) & pair_valid
            channel = group * OFFSET_GROUP_CHANNELS + segment + in_segment
            channel_tile = on_channels(channel.to(INDEX), PIXEL_AXIS)
            k_valid_tile = on_channels(k_valid, PIXEL_AXIS)
            weight_row = (channel.to(INDEX) * TAPS + tap) * padded_outputs
            d_column = zeros_tile(BLOCK_M, BLOCK_K, PIXEL_AXIS, COMPUTE)
            if DENSE:
                conv_group = unit
                if PAIRS == 1:
                    conv_group = (group * OFFSET_GROUP_CHANNELS + segment) // GROUP_CHANNELS
                for first_out in range(0, GROUP_OUTPUTS, BLOCK_O):
                    out = first_out + tl.arange(0, BLOCK_O)
                    out_plane = (conv_group * GROUP_OUTPUTS + out).to(INDEX) * grad_output_strides[1]
                    d_out = tl.load(
                        grad_output + on_channels(out_plane, PIXEL_AXIS) + out_pixel,
                        mask=in_output & on_channels(out < GROUP_OUTPUTS, PIXEL_AXIS),
                        other=0.0,
                    )
                    weights = tl.load(
                        weight + on_channels(weight_row, PIXEL_AXIS) + on_pixels(out, PIXEL_AXIS),
                        mask=k_valid_tile & on_pixels(out < padded_outputs, PIXEL_AXIS),
                        other=0.0,
                    )
                    if PIXEL_AXIS == 0:
                        d_column = tl.dot(d_out, weights, d_column, input_precision=PRECISION, out_dtype=COMPUTE)
                    else:
                        d_column = tl.dot(weights, d_out, d_column, input_precision=PRECISION, out_dtype=COMPUTE)
            else:
                for out in range(GROUP_OUTPUTS):
                    out_plane = (channel // GROUP_CHANNELS * GROUP_OUTPUTS + out).to(INDEX) * grad_output_strides[1]
                    d_out = tl.load(
                        grad_output + on_channels(out_plane, PIXEL_AXIS) + out_pixel,
                        mask=in_output & k_valid_tile,
                        other=0.0,
                    ).to(COMPUTE)
                    weights = tl.load(weight + weight_row + out, mask=k_valid, other=0.0).to(COMPUTE)
                    d_column += d_out * on_channels(weights, PIXEL_AXIS)

            if grad_offset is not None or grad_mask is not None:
                v = load_corners(input, corners, exists, channel_tile * input_strides[1], k_valid_tile, COMPUTE)
                s0 += sum_pairs(d_column * v[0], PIXEL_AXIS, BLOCK_M, LANES, PAIRS)
                s1 += sum_pairs(d_column * v[1], PIXEL_AXIS, BLOCK_M, LANES, PAIRS)
                s2 += sum_pairs(d_column * v[2], PIXEL_AXIS, BLOCK_M, LANES, PAIRS)
                s3 += sum_pairs(d_column * v[3], PIXEL_AXIS, BLOCK_M, LANES, PAIRS)
            if grad_input is not None:
                for i in tl.static_range(4):
                    scatter_add(
                        grad_input,
                        targets[i] + channel_tile * grad_input_strides[1],
                        exists[i] & k_valid_tile,
                        d_column * w[i],
                        fixed_point,
                    )

    if grad_offset is not None or grad_mask is not None:
        # The tile's pairs again, this time one lane each.
        own_in_unit = pair_block * PAIRS + tl.arange(0, PAIRS)
        own = unit * unit_pairs + own_in_unit
        own_valid = in_output & on_channels(own_in_unit < unit_pairs, PIXEL_AXIS)
        y, x, m = sample_position(
            offset, offset_strides, mask, mask_strides, row, column, own_valid,
            on_channels(own // TAPS, PIXEL_AXIS), on_channels(own % TAPS, PIXEL_AXIS),
            stride, padding, dilation, TAPS, KERNEL_W, INDEX, COMPUTE,
        )  # fmt: skip
        top, left, ly, lx, inside, scale = bilinear_cell(y, x, height, width, INDEX, True)
        own = on_channels(own.to(INDEX), PIXEL_AXIS)
        upper = s0 + lx * (s1 - s0)
        lower = s2 + lx * (s3 - s2)
        if grad_mask is not None:
            at = image * grad_mask_strides[0] + own * grad_mask_strides[1]
            at += row * grad_mask_strides[2] + column * grad_mask_strides[3]
            value = scale * (upper + ly * (lower - upper))
            tl.store(grad_mask + at, value.to(grad_mask.dtype.element_ty), mask=own_valid)
        if grad_offset is not None:
            at = image * grad_offset_strides[0] + 2 * own * grad_offset_strides[1]
            at += row * grad_offset_strides[2] + column * grad_offset_strides[3]
            d_y = scale * m * (lower - upper)
            d_x = scale * m * ((1 - ly) * (s1 - s0) + ly * (s3 - s2))
            tl.store(grad_offset + at, d_y.to(grad_offset.dtype.element_ty), mask=own_valid)
            at += grad_offset_strides[1]
            tl.store(grad_offset + at, d_x.to(grad_offset.dtype.element_ty), mask=own_valid)


class SampleTile(NamedTuple):
    BLOCK_M: int
    BLOCK_O: int
    LANES: int
    PAIRS: int
    num_warps: int
    num_stages: int


def sample_tile(
    shape: Shape, dtype: torch.dtype, tensor_cores: bool, dense: bool, channels_last: bool, deterministic: bool
) -> SampleTile:
    """Tiles small enough that four corners, their products and their addresses stay in registers.

    A fixed-point scatter or float64 needs twice the registers an element, so those tiles have fewer pixels.
    """
    run = shape.run if dense else shape.offset_group_channels
    lanes, pairs = Lanes.of(run, 32 if deterministic and channels_last else 16)
    block_m = 512 // (lanes * pairs) if deterministic else 64
    num_warps = 8 if dtype == torch.float32 and not deterministic else 4
    if dtype == torch.float64:
        block_m, num_warps = 32, 8
    return SampleTile(block_m, 32 if tensor_cores else 16, lanes, pairs, num_warps, num_stages=2)


def sample_gradients(
    grad_output: torch.Tensor,
    input: torch.Tensor,
    offset: torch.Tensor,
    weight: torch.Tensor,
    mask: torch.Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    shape: Shape,
    needs: tuple[bool, bool, bool],
    deterministic: bool,
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Gradients of input, offset and mask, each if needed."""
    gradient = None
    if needs[0]:
        bound = input_term_bound(grad_output, weight, mask, shape) if deterministic else None
        gradient = ImageGradient(input, bound, terms=max(1, shape.taps * shape.pixels))
    launch = input.numel() > 0 and grad_output.numel() > 0
    allocate = torch.empty_like if launch else torch.zeros_like
    grad_offset = allocate(offset, memory_format=torch.contiguous_format) if needs[1] else None
    grad_mask = allocate(mask, memory_format=torch.contiguous_format) if mask is not None and needs[2] else None
    if launch:
        precision = dot_precision(input)
        dense = shape.run >= 16 or shape.offset_groups % shape.groups == 0
        tile = sample_tile(
            shape, input.dtype, uses_tensor_cores(input), dense, pixel_axis(input) == 0, deterministic and needs[0]
        )
        units = shape.groups if dense and tile.PAIRS > 1 else 1
        unit_pairs = shape.offset_groups * shape.taps // units
        m_blocks = triton.cdiv(shape.pixels, tile.BLOCK_M)
        pair_blocks = triton.cdiv(unit_pairs, tile.PAIRS)
        packed = pack_weight(weight, shape)
        accumulator = gradient.sum if gradient else None
        programs = shape.batch * units * pair_blocks * m_blocks
        with on_device(input):
            deform_conv2d_bwd_sample_kernel[checked_grid("deform_conv2d", programs)](
                accumulator, strides(accumulator),
                gradient.scale if gradient else None,
                grad_offset, strides(grad_offset),
                grad_mask, strides(grad_mask),
                grad_output, grad_output.stride(),
                input, input.stride(),
                offset, offset.stride(),
                mask, strides(mask),
                packed,
                shape.height, shape.width, shape.pixels, shape.output_width,
                m_blocks, pair_blocks, units, unit_pairs, shape.padded_outputs,
                stride, padding, dilation,
                GROUP_CHANNELS=shape.group_channels,
                GROUP_OUTPUTS=shape.group_outputs,
                OFFSET_GROUP_CHANNELS=shape.offset_group_channels,
                RUN=shape.run,
                TAPS=shape.taps,
                KERNEL_W=shape.kernel_w,
                DENSE=dense,
                PIXEL_AXIS=pixel_axis(input),
                INDEX=index_type(accumulator, grad_offset, grad_mask, grad_output, input, offset, mask, packed[None]),
                COMPUTE=compute_type(input),
                PRECISION=precision,
                **tile._asdict(),
            )  # fmt: skip
    return gradient.result() if gradient else None, grad_offset, grad_mask


def input_term_bound(
    grad_output: torch.Tensor, weight: torch.Tensor, mask: torch.Tensor | None, shape: Shape
) -> torch.Tensor:
    """Bound of one term of the input's gradient, max |grad_output| max over k of sum over o |weight| max |mask|."""
    finite = torch.nan_to_num(weight.detach().double(), nan=0.0, posinf=0.0, neginf=0.0).abs()
    columns = finite.reshape(shape.groups, shape.group_outputs, -1).sum(1)
    bound = largest_finite(grad_output) * largest_finite(columns)
    return bound if mask is None else bound * largest_finite(mask)
