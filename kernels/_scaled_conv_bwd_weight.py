# SPDX-License-Identifier: Apache-2.0
"""Gradients of the weight and of the scales of `scaled_conv`.

With D_b[k, v] = sum over pixels of input[b, k at p] grad_output[b, v, p], k = (channel u, tap t), every gradient
is linear in D_b, of which a program holds a tile in registers and nothing is stored. With W_b the mix of the
kernels of image b and T_b = W_b * D_b:

    weight i    sum over b of kernel_scale[b, i] target_scale[b, v] source_scale[b, u] tap_scale[b, t] D_b[k, v]
    source, tap sums of target_scale T_b over v, stored for every k, then over t and over u
    target      sums of source_scale tap_scale T_b over k
    kernel i    sum of target_scale source_scale tap_scale W_i * D_b

A unit is a range of pixels of one image. A program takes its units in order and keeps the sums over images; what
belongs to one image it writes to slots of its own. All of it is added in a fixed order: there are no atomics.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ._common import (
    checked_grid,
    compute_type,
    index_type,
    on_channels,
    on_device,
    on_pixels,
    pixel_axis,
    pixel_block,
)
from ._gemm import BUSY_GRID, Lanes, dot_precision, on_lanes, pair_lanes
from ._scaled_conv import Geometry, Scales, pack_weight, scale_at, source_pixel

# Values in the slots of one launch; a larger batch takes several launches.
SLOT_VALUES = 2**24


@triton.jit(do_not_specialize=["m_blocks", "chunks", "chunk_blocks"])
def scaled_conv_bwd_weight_kernel(
    grad_weight,  # (splits, kernels, channels, taps, outputs of a group), or None
    k_sums,  # (units, kernel_blocks, n_blocks, channels, taps), or None
    out_sums,  # (units, kernel_blocks, k_blocks, outputs), or None
    kernel_sums,  # (units, kernels, groups, k_blocks, n_blocks), or None
    grad_output,
    grad_output_strides,
    input,
    input_strides,
    weight,  # (kernels, channels, taps, padded_outputs)
    kernel_stride,
    channel_scale,
    out_scale,
    tap_scale,
    kernel_scale,
    height,
    width,
    pixels,
    output_width,
    m_blocks,
    chunks,  # units of an image
    chunk_blocks,  # pixel blocks of a unit
    units,
    split_units,  # units of a program
    n_blocks,
    k_blocks,
    kernel_blocks,
    kernels,
    groups,
    padded_outputs,
    stride,
    padding,
    dilation,
    GROUP_CHANNELS: tl.constexpr,
    GROUP_OUTPUTS: tl.constexpr,
    KERNELS: tl.constexpr,  # of a program
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
    """One program: a K tile by BLOCK_N outputs of up to KERNELS kernels, for split_units units."""
    CHANNEL_BLOCKS: tl.constexpr = (GROUP_CHANNELS + LANES - 1) // LANES
    program = tl.program_id(0)
    n_block = program % n_blocks
    k_block = program // n_blocks % k_blocks
    group = program // n_blocks // k_blocks % groups
    kernel_block = program // n_blocks // k_blocks // groups % kernel_blocks
    split = program // n_blocks // k_blocks // groups // kernel_blocks
    channels = groups * GROUP_CHANNELS

    tap = pair_lanes(k_block // CHANNEL_BLOCKS * PAIRS, LANES, PAIRS)
    in_group = k_block % CHANNEL_BLOCKS * LANES + tl.arange(0, LANES * PAIRS) % LANES
    k_valid = (in_group < GROUP_CHANNELS) & (tap < TAPS)
    channel = group * GROUP_CHANNELS + in_group
    channel_tile = on_channels(channel.to(INDEX) * input_strides[1], PIXEL_AXIS)
    k_row = channel * TAPS + tap
    in_out_group = n_block * BLOCK_N + tl.arange(0, BLOCK_N)
    out_valid = in_out_group < GROUP_OUTPUTS
    out = group * GROUP_OUTPUTS + in_out_group
    out_tile = on_channels(out.to(INDEX) * grad_output_strides[1], PIXEL_AXIS)
    tile_valid = tl.expand_dims(k_valid, 1) & tl.expand_dims(out_valid, 0)

    sums = ()
    for _ in tl.static_range(KERNELS):
        sums = sums + (tl.zeros((LANES * PAIRS, BLOCK_N), COMPUTE),)
    for in_split in tl.range(tl.minimum(split_units, units - split * split_units), num_stages=1):
        unit = split * split_units + in_split
        image = (unit // chunks).to(tl.int64)
        product = tl.zeros((LANES * PAIRS, BLOCK_N), COMPUTE)
        first_block = unit % chunks * chunk_blocks
        for block in range(first_block, tl.minimum(first_block + chunk_blocks, m_blocks)):
            row, column, in_output = pixel_block(block, pixels, output_width, INDEX, BLOCK_M)
            row = on_pixels(row, PIXEL_AXIS)
            column = on_pixels(column, PIXEL_AXIS)
            in_output = on_pixels(in_output, PIXEL_AXIS)
            y, x, inside = source_pixel(
                row, column, on_lanes(tap, PIXEL_AXIS, PAIRS),
                height, width, stride, padding, dilation, KERNEL_W, False,
            )  # fmt: skip
            valid = in_output & inside & on_channels(k_valid, PIXEL_AXIS)
            at = channel_tile + y.to(INDEX) * input_strides[2] + x.to(INDEX) * input_strides[3]
            values = tl.load(input + image * input_strides[0] + at, mask=valid, other=0.0)
            at = out_tile + row * grad_output_strides[2] + column * grad_output_strides[3]
            valid = in_output & on_channels(out_valid, PIXEL_AXIS)
            d_out = tl.load(grad_output + image * grad_output_strides[0] + at, mask=valid, other=0.0)
            if PIXEL_AXIS == 0:
                product = tl.dot(tl.trans(values), d_out, product, input_precision=PRECISION, out_dtype=COMPUTE)
            else:
                product = tl.dot(values, tl.trans(d_out), product, input_precision=PRECISION, out_dtype=COMPUTE)

        k_scale = tl.full((LANES * PAIRS,), 1.0, COMPUTE)
        k_scale *= scale_at(tap_scale, image * TAPS + tap, tap < TAPS, COMPUTE)
        k_scale *= scale_at(channel_scale, image * channels + channel, k_valid, COMPUTE)
        o_scale = tl.full((BLOCK_N,), 1.0, COMPUTE)
        o_scale *= scale_at(out_scale, image * (groups * GROUP_OUTPUTS) + out, out_valid, COMPUTE)
        o_scale = tl.expand_dims(o_scale, 0)
        mixed = tl.zeros((LANES * PAIRS, BLOCK_N), COMPUTE)
        mixed_rows = tl.zeros((LANES * PAIRS,), COMPUTE)
        new_sums = ()
        for i in tl.static_range(KERNELS):
            kernel = kernel_block * KERNELS + i
            a = scale_at(kernel_scale, image * kernels + kernel, kernel < kernels, COMPUTE)
            if grad_weight is not None:
                new_sums = new_sums + (sums[i] + product * tl.expand_dims(a * k_scale, 1) * o_scale,)
            if k_sums is not None or out_sums is not None or kernel_sums is not None:
                at = kernel.to(tl.int64) * kernel_stride + tl.expand_dims(k_row.to(INDEX) * padded_outputs, 1)
                weights = tl.load(
                    weight + at + tl.expand_dims(in_out_group, 0), mask=tile_valid & (kernel < kernels), other=0.0
                ).to(COMPUTE)
                if k_sums is not None or kernel_sums is not None:
                    rows = tl.sum(weights * (product * o_scale), axis=1)
                    mixed_rows += a * rows
                if out_sums is not None:
                    mixed += a * weights
                if kernel_sums is not None:
                    slot = ((unit.to(tl.int64) * kernels + kernel) * groups + group) * k_blocks + k_block
                    # Of one column: reducing a vector that is itself a sum stops Triton 3.7 on sm_100.
                    total = tl.sum(tl.expand_dims(rows * k_scale, 1), axis=0)
                    at = slot * n_blocks + n_block + tl.arange(0, 1)
                    tl.store(kernel_sums + at, total, mask=kernel < kernels)
        if grad_weight is not None:
            sums = new_sums
        slot = unit.to(tl.int64) * kernel_blocks + kernel_block
        if k_sums is not None:
            at = (slot * n_blocks + n_block) * (channels * TAPS) + k_row
            tl.store(k_sums + at, mixed_rows, mask=k_valid)
        if out_sums is not None:
            at = (slot * k_blocks + k_block) * (groups * GROUP_OUTPUTS) + out
            total = tl.sum(mixed * (product * tl.expand_dims(k_scale, 1)), axis=0)
            tl.store(out_sums + at, total, mask=out_valid)

    if grad_weight is not None:
        for i in tl.static_range(KERNELS):
            kernel = kernel_block * KERNELS + i
            row_at = ((split.to(tl.int64) * kernels + kernel) * channels * TAPS + k_row) * GROUP_OUTPUTS
            at = tl.expand_dims(row_at, 1) + tl.expand_dims(in_out_group, 0)
            tl.store(grad_weight + at, sums[i], mask=tile_valid & (kernel < kernels))


class WeightTile(NamedTuple):
    KERNELS: int
    BLOCK_M: int
    BLOCK_N: int
    LANES: int
    PAIRS: int
    num_warps: int
    num_stages: int


def weight_tile(channels: int, outputs: int, kernels: int, dtype: torch.dtype) -> WeightTile:
    """Up to four kernels a program, in tiles that leave room for a sum of each in registers."""
    wide = dtype.itemsize > 2
    lanes, pairs = Lanes.of(channels, 32 if wide else 64)
    block_n = max(16, min(32 if kernels > 1 and not wide else 64, triton.next_power_of_2(outputs)))
    block_m = 16 if wide else 32 if channels < 16 else 64
    return WeightTile(min(kernels, 4), block_m, block_n, lanes, pairs, num_warps=8, num_stages=2)


class Sums(NamedTuple):
    """What a launch finds; None where not wanted."""

    weight: torch.Tensor | None  # (splits, kernels, channels, taps, outputs of a group)
    k: torch.Tensor | None  # (batch, channels, taps)
    out: torch.Tensor | None  # (batch, outputs)
    kernel: torch.Tensor | None  # (batch, kernels)


class Wanted(NamedTuple):
    weight: bool
    k: bool = False
    out: bool = False
    kernel: bool = False


def weight_sums(
    name: str,
    grad_output: torch.Tensor,
    input: torch.Tensor,
    weight: torch.Tensor,
    scales: Scales,
    geometry: Geometry,
    wanted: Wanted,
    per_image: bool = False,
) -> Sums:
    """The sums of one launch, weight being (kernels, outputs, group channels, kh, kw).

    per_image leaves the sums over images to others: splits is then the batch, and there is one kernel.
    """
    batch, channels, height, width = input.shape
    outputs, output_width = grad_output.shape[1], grad_output.shape[3]
    kernels, group_channels, taps = weight.shape[0], weight.shape[2], weight.shape[3] * weight.shape[4]
    kernels, groups = 1 if per_image else kernels, geometry.groups
    group_outputs, pixels = outputs // groups, grad_output.shape[2] * output_width
    tile = weight_tile(group_channels, group_outputs, kernels, input.dtype)
    m_blocks, n_blocks = triton.cdiv(pixels, tile.BLOCK_M), triton.cdiv(group_outputs, tile.BLOCK_N)
    k_blocks = triton.cdiv(taps, tile.PAIRS) * triton.cdiv(group_channels, tile.LANES)
    kernel_blocks = triton.cdiv(kernels, tile.KERNELS)
    tiles = n_blocks * k_blocks * kernel_blocks * groups
    # Images are cut only where the batch leaves a GPU idle.
    chunks = max(1, min(m_blocks, BUSY_GRID // (tiles * batch)))
    units = batch * chunks
    split_units = 1 if per_image else max(1, units * tiles // (2 * BUSY_GRID))
    splits = triton.cdiv(units, split_units)
    compute = torch.float64 if input.dtype == torch.float64 else torch.float32
    empty = lambda want, *size: input.new_empty(size, dtype=compute) if want else None  # noqa: E731
    sums = Sums(
        empty(wanted.weight, splits, kernels, channels, taps, group_outputs),
        empty(wanted.k, units, kernel_blocks * n_blocks, channels, taps),
        empty(wanted.out, units, kernel_blocks * k_blocks, outputs),
        empty(wanted.kernel, units, kernels, groups * k_blocks * n_blocks),
    )
    packed = pack_weight(weight, groups) if any(wanted[1:]) else None
    with on_device(input):
        scaled_conv_bwd_weight_kernel[checked_grid(name, tiles * splits)](
            *sums,
            grad_output, grad_output.stride(),
            input, input.stride(),
            packed, 0 if packed is None else packed.stride(0),
            scales.source, scales.target, scales.tap, scales.kernel,
            height, width, pixels, output_width,
            m_blocks, chunks, triton.cdiv(m_blocks, chunks), units, split_units,
            n_blocks, k_blocks, kernel_blocks, kernels, groups, 0 if packed is None else packed.shape[-1],
            geometry.stride, geometry.padding, geometry.dilation,
            GROUP_CHANNELS=group_channels,
            GROUP_OUTPUTS=group_outputs,
            TAPS=taps,
            KERNEL_W=weight.shape[4],
            PIXEL_AXIS=pixel_axis(input),
            INDEX=index_type(grad_output, input, packed),
            COMPUTE=compute_type(input),
            PRECISION=dot_precision(input),
            **tile._asdict(),
        )  # fmt: skip
    partial, k, out, kernel = sums
    if per_image and partial is not None:
        partial = partial.view(batch, chunks, *partial.shape[1:]).sum(1)
    return Sums(
        partial,
        None if k is None else k.view(batch, -1, channels, taps).sum(1),
        None if out is None else out.view(batch, -1, outputs).sum(1),
        None if kernel is None else kernel.view(batch, chunks, kernels, -1).sum((1, 3)),
    )


def images_per_launch(weight: torch.Tensor, groups: int, dtype: torch.dtype) -> int:
    """How many images may have slots at once, so that memory does not grow with the batch times the weight."""
    kernels, outputs, group_channels, kernel_h, kernel_w = weight.shape
    tile = weight_tile(group_channels, outputs // groups, kernels, dtype)
    values = outputs * group_channels * kernel_h * kernel_w  # of one kernel; a slot stands for a row of a tile
    rows = min(tile.BLOCK_N, outputs // groups, group_channels * kernel_h * kernel_w)
    return max(1, SLOT_VALUES * rows // (2 * values * triton.cdiv(kernels, tile.KERNELS)))


def unpack_weight(packed: torch.Tensor, weight: torch.Tensor, groups: int) -> torch.Tensor:
    """(kernels, channels, taps, outputs of a group) in the shape and dtype of the weight."""
    kernels, outputs, group_channels, kernel_h, kernel_w = weight.shape
    grouped = packed.reshape(kernels, groups, group_channels, kernel_h * kernel_w, outputs // groups)
    return grouped.permute(0, 1, 4, 2, 3).reshape(weight.shape).to(weight.dtype)


def scale_gradients(
    name: str,
    grad_output: torch.Tensor,
    input: torch.Tensor,
    weight: torch.Tensor,
    scales: Scales,
    geometry: Geometry,
    needs: tuple[bool, ...],
) -> tuple[torch.Tensor | None, ...]:
    """Gradients of (weight, source, target, tap, kernel scale), a bounded number of images at a time."""
    need_weight, source, target, tap, kernel = needs
    wanted = Wanted(need_weight, source or tap, target, kernel)
    step = images_per_launch(weight, geometry.groups, input.dtype)
    found, grad_weight = [], None
    for first in range(0, input.shape[0], step):
        images = slice(first, first + step)
        part = Scales(*(None if scale is None else scale[images] for scale in scales))
        sums = weight_sums(name, grad_output[images], input[images], weight, part, geometry, wanted)
        if sums.weight is not None:
            total = sums.weight.sum(0)
            grad_weight = total if grad_weight is None else grad_weight + total
        found.append(sums[1:])
    k, out, of_kernel = (torch.cat(parts) if parts[0] is not None else None for parts in zip(*found, strict=True))
    return (
        None if grad_weight is None else unpack_weight(grad_weight, weight, geometry.groups),
        (k if scales.tap is None else k * scales.tap[:, None]).sum(2) if source else None,
        out,
        (k if scales.source is None else k * scales.source[:, :, None]).sum(1) if tap else None,
        of_kernel,
    )
