# SPDX-License-Identifier: Apache-2.0
"""Depth-wise convolution with taps of every image's own, mixed in registers; see `_scaled_conv` for the sum.

forward    output[b, c, p] = scale[b, c] * sum over t of tap_scale[b, t] * W[b, c, t] * input[b, c, p shifted by t]
           with W[b] the mix of the kernels of image b
backward   the input's gradient is the same sum with the shift turned round; all others are linear in
           products[b, c, t] = sum over p of grad_output[b, c, p] input[b, c, p shifted by t]
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
    memory_format,
    on_channels,
    on_device,
    on_pixels,
    pixel_axis,
    pixel_block,
    zeros_tile,
)
from ._scaled_conv import Geometry, Scales, scale_at, source_pixel

# Values in the products of one launch; a larger batch takes several launches.
PRODUCT_VALUES = 2**24


@triton.jit
def depthwise_conv_kernel(
    output,
    output_strides,
    input,
    input_strides,
    weight,  # (kernels, channels, taps)
    scale,  # (batch, channels) or None
    tap_scale,  # (batch, taps) or None
    kernel_scale,  # (batch, kernels) or None
    channels,
    height,
    width,
    pixels,
    output_width,
    m_blocks,
    c_blocks,
    stride,
    padding,
    dilation,
    KERNELS: tl.constexpr,  # 0: image b has kernel b of its own
    TAPS: tl.constexpr,
    KERNEL_W: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    PIXEL_AXIS: tl.constexpr,
    INDEX: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program: BLOCK_M pixels of BLOCK_C channels of one image."""
    program = tl.program_id(0)
    m_block = program % m_blocks
    c_block = program // m_blocks % c_blocks
    image = (program // m_blocks // c_blocks).to(tl.int64)
    row, column, in_output = pixel_block(m_block, pixels, output_width, INDEX, BLOCK_M)
    row = on_pixels(row, PIXEL_AXIS)
    column = on_pixels(column, PIXEL_AXIS)
    in_output = on_pixels(in_output, PIXEL_AXIS)
    channel = c_block * BLOCK_C + tl.arange(0, BLOCK_C)
    c_valid = channel < channels
    channel_tile = on_channels(channel.to(INDEX), PIXEL_AXIS)
    valid = in_output & on_channels(c_valid, PIXEL_AXIS)
    input += image * input_strides[0] + channel_tile * input_strides[1]

    total = zeros_tile(BLOCK_M, BLOCK_C, PIXEL_AXIS, COMPUTE)
    for tap in range(TAPS):
        at = channel.to(INDEX) * TAPS + tap
        if KERNELS == 0:
            taps = tl.load(weight + image * channels * TAPS + at, mask=c_valid, other=0.0).to(COMPUTE)
        else:
            taps = tl.zeros((BLOCK_C,), COMPUTE)
            for i in tl.static_range(KERNELS):
                one = tl.load(weight + i * channels * TAPS + at, mask=c_valid, other=0.0).to(COMPUTE)
                taps += scale_at(kernel_scale, image * KERNELS + i, True, COMPUTE) * one
        taps *= scale_at(tap_scale, image * TAPS + tap, True, COMPUTE)
        y, x, inside = source_pixel(row, column, tap, height, width, stride, padding, dilation, KERNEL_W, TRANSPOSED)
        at = y.to(INDEX) * input_strides[2] + x.to(INDEX) * input_strides[3]
        total += tl.load(input + at, mask=valid & inside, other=0.0).to(COMPUTE) * on_channels(taps, PIXEL_AXIS)

    if scale is not None:
        f = tl.load(scale + image * channels + channel, mask=c_valid, other=0.0).to(COMPUTE)
        total *= on_channels(f, PIXEL_AXIS)
    at = image * output_strides[0] + channel_tile * output_strides[1] + row * output_strides[2]
    tl.store(output + at + column * output_strides[3], total.to(output.dtype.element_ty), mask=valid)


@triton.jit
def depthwise_products_kernel(
    products,  # (batch, channels, taps)
    grad_output,
    grad_output_strides,
    input,
    input_strides,
    channels,
    height,
    width,
    pixels,
    output_width,
    m_blocks,
    c_blocks,
    tap_blocks,
    stride,
    padding,
    dilation,
    TAPS: tl.constexpr,
    KERNEL_W: tl.constexpr,
    PIXEL_AXIS: tl.constexpr,
    INDEX: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """One program: BLOCK_T taps of BLOCK_C channels of one image, over all its pixels."""
    program = tl.program_id(0)
    tap_block = program % tap_blocks
    c_block = program // tap_blocks % c_blocks
    image = (program // tap_blocks // c_blocks).to(tl.int64)
    channel = c_block * BLOCK_C + tl.arange(0, BLOCK_C)
    c_valid = channel < channels
    channel_tile = on_channels(channel.to(INDEX), PIXEL_AXIS)
    grad_output += image * grad_output_strides[0] + channel_tile * grad_output_strides[1]
    input += image * input_strides[0] + channel_tile * input_strides[1]

    sums = ()
    for _ in tl.static_range(BLOCK_T):
        sums = sums + (zeros_tile(BLOCK_M, BLOCK_C, PIXEL_AXIS, COMPUTE),)
    for block in range(m_blocks):
        row, column, in_output = pixel_block(block, pixels, output_width, INDEX, BLOCK_M)
        row = on_pixels(row, PIXEL_AXIS)
        column = on_pixels(column, PIXEL_AXIS)
        valid = on_pixels(in_output, PIXEL_AXIS) & on_channels(c_valid, PIXEL_AXIS)
        at = row * grad_output_strides[2] + column * grad_output_strides[3]
        d_out = tl.load(grad_output + at, mask=valid, other=0.0).to(COMPUTE)
        new_sums = ()
        for i in tl.static_range(BLOCK_T):
            tap = tap_block * BLOCK_T + i
            y, x, inside = source_pixel(row, column, tap, height, width, stride, padding, dilation, KERNEL_W, False)
            at = y.to(INDEX) * input_strides[2] + x.to(INDEX) * input_strides[3]
            values = tl.load(input + at, mask=valid & inside & (tap < TAPS), other=0.0).to(COMPUTE)
            new_sums = new_sums + (sums[i] + d_out * values,)
        sums = new_sums
    products += (image * channels + channel) * TAPS
    for i in tl.static_range(BLOCK_T):
        tap = tap_block * BLOCK_T + i
        tl.store(products + tap, tl.sum(sums[i], axis=PIXEL_AXIS), mask=c_valid & (tap < TAPS))


class DepthwiseTile(NamedTuple):
    BLOCK_M: int
    BLOCK_C: int
    num_warps: int

    @classmethod
    def of(cls, image: torch.Tensor, pixels: int, values: int) -> DepthwiseTile:
        """So many values, along pixels or channels, whichever is contiguous in memory."""
        along, across = (pixels, image.shape[1]) if pixel_axis(image) == 1 else (image.shape[1], pixels)
        long = max(16, min(128, triton.next_power_of_2(along)))
        short = max(1, min(values // long, triton.next_power_of_2(across)))
        return cls(*((long, short) if pixel_axis(image) == 1 else (short, long)), num_warps=4)


def scaled_conv(
    name: str,
    input: torch.Tensor,
    weight: torch.Tensor,
    scales: Scales,
    size: tuple[int, int],
    geometry: Geometry,
    transposed: bool = False,
) -> torch.Tensor:
    """As `_scaled_conv.scaled_conv`, for weight (kernels, channels, 1, kh, kw) and as many groups."""
    batch, channels, height, width = input.shape
    output = torch.empty(
        (batch, channels, *size), dtype=input.dtype, device=input.device, memory_format=memory_format(input)
    )
    if output.numel() == 0:
        return output
    kernels, taps = weight.shape[0], weight.shape[3] * weight.shape[4]
    kernels = 0 if scales.kernel is None and kernels == batch > 1 else kernels
    pixels = size[0] * size[1]
    tile = DepthwiseTile.of(output, pixels, 1024)
    m_blocks, c_blocks = triton.cdiv(pixels, tile.BLOCK_M), triton.cdiv(channels, tile.BLOCK_C)
    with on_device(input):
        depthwise_conv_kernel[checked_grid(name, batch * c_blocks * m_blocks)](
            output, output.stride(),
            input, input.stride(),
            weight.contiguous(), channel_scale(scales), scales.tap, scales.kernel,
            channels, height, width, pixels, size[1], m_blocks, c_blocks,
            geometry.stride, geometry.padding, geometry.dilation,
            KERNELS=kernels,
            TAPS=taps,
            KERNEL_W=weight.shape[4],
            TRANSPOSED=transposed,
            PIXEL_AXIS=pixel_axis(output),
            INDEX=index_type(output, input, weight),
            COMPUTE=compute_type(input),
            **tile._asdict(),
        )  # fmt: skip
    return output


def channel_scale(scales: Scales) -> torch.Tensor | None:
    """With one channel a group, source and target scale meet in every product."""
    if scales.source is None or scales.target is None:
        return scales.target if scales.source is None else scales.source
    return scales.source.to(accumulated(scales.source)) * scales.target.to(accumulated(scales.source))


def accumulated(tensor: torch.Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def products(
    name: str, grad_output: torch.Tensor, input: torch.Tensor, kernel: tuple[int, int], geometry: Geometry
) -> torch.Tensor:
    """(batch, channels, kh, kw) of the products above, in float32 (float64 for double)."""
    batch, channels, height, width = input.shape
    taps = kernel[0] * kernel[1]
    found = input.new_empty(batch, channels, *kernel, dtype=accumulated(input))
    pixels = grad_output.shape[2] * grad_output.shape[3]
    tile = DepthwiseTile.of(input, pixels, 512)
    m_blocks, c_blocks = triton.cdiv(pixels, tile.BLOCK_M), triton.cdiv(channels, tile.BLOCK_C)
    tap_blocks = triton.cdiv(taps, 9)
    with on_device(input):
        depthwise_products_kernel[checked_grid(name, batch * c_blocks * tap_blocks)](
            found,
            grad_output, grad_output.stride(),
            input, input.stride(),
            channels, height, width, pixels, grad_output.shape[3], m_blocks, c_blocks, tap_blocks,
            geometry.stride, geometry.padding, geometry.dilation,
            TAPS=taps,
            KERNEL_W=kernel[1],
            PIXEL_AXIS=pixel_axis(input),
            INDEX=index_type(grad_output, input),
            COMPUTE=compute_type(input),
            BLOCK_T=triton.cdiv(taps, tap_blocks),
            **tile._asdict(),
        )  # fmt: skip
    return found


def scale_gradients(
    name: str,
    grad_output: torch.Tensor,
    input: torch.Tensor,
    weight: torch.Tensor,
    scales: Scales,
    geometry: Geometry,
    needs: tuple[bool, ...],
) -> tuple[torch.Tensor, ...]:
    """As `_scaled_conv_bwd_weight.scale_gradients`; all come, for after the products they cost nothing."""
    compute = accumulated(input)
    size = (weight.shape[3], weight.shape[4])
    kernels = weight.flatten(2).to(compute)  # (kernels, channels, taps)
    step = max(1, PRODUCT_VALUES // kernels[0].numel())
    grad_weight, grads = torch.zeros_like(kernels), []
    for first in range(0, input.shape[0], step):
        images = slice(first, first + step)
        found = products(name, grad_output[images], input[images], size, geometry).flatten(2)
        one = found.new_ones(found.shape[0], 1)
        source, target, tap, kernel = (one if s is None else s[images].to(compute) for s in scales)
        source, target, tap = source[:, :, None], target[:, :, None], tap[:, None]
        scaled = found * source * target * tap
        mixed = torch.zeros_like(found)
        for i, taps in enumerate(kernels):
            grad_weight[i] += (kernel[:, i, None, None] * scaled).sum(0)
            mixed += kernel[:, i, None, None] * taps
        found = found * mixed
        grads.append((
            (found * target * tap).sum(2),
            (found * source * tap).sum(2),
            (found * source * target).sum(1),
            torch.stack([(taps * scaled).sum((1, 2)) for taps in kernels], 1),
        ))  # fmt: skip
    return grad_weight.view(weight.shape), *(torch.cat(parts) for parts in zip(*grads, strict=True))
