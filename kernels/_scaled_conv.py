# SPDX-License-Identifier: Apache-2.0
"""Convolution of scaled operands as an implicit GEMM: what ODConv and matching by dynamic kernels share.

Per image b, with the sources u of the convolution (the input's channels) and its targets v (the output's):

    output[b, v, p] = target_scale[b, v] * sum over i of kernel_scale[b, i] * sum over u, t of
                      tap_scale[b, t] * source_scale[b, u] * weight[i, u, t, v] * input[b, u, p shifted by t]

The gradient of the input is the same sum with the shift turned round (TRANSPOSED), sources and targets swapped.
The scales reach the GEMM in one of two ways, neither of which stores a weight per image:

    FLAT   the pixels of all images are one axis of the GEMM, the kernels i lie one after another on its
           reduction axis, and the scales multiply the input tile: every weight tile serves many images
    else   a program has the pixels of one image, mixes each weight tile of its kernels while loading it and
           multiplies the scales into it: the work of one convolution, whatever the number of kernels

Accumulation and scales are float32 (float64 for double); operands of the dot are rounded to the weight's dtype.
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
from ._gemm import BUSY_GRID, Lanes, dot_precision, on_lanes, pair_lanes, uses_tensor_cores


@triton.jit
def source_pixel(
    row, column, tap, height, width, stride, padding, dilation, KERNEL_W: tl.constexpr, TRANSPOSED: tl.constexpr
):
    """Row and column that a tap reads for a target pixel, and whether there is such a pixel."""
    down = tap // KERNEL_W * dilation[0] - padding[0]
    right = tap % KERNEL_W * dilation[1] - padding[1]
    if TRANSPOSED:
        y = row - down
        x = column - right
        inside = (y >= 0) & (x >= 0) & (y % stride[0] == 0) & (x % stride[1] == 0)
        y = y // stride[0]
        x = x // stride[1]
    else:
        y = row * stride[0] + down
        x = column * stride[1] + right
        inside = (y >= 0) & (x >= 0)
    return y, x, inside & (y < height) & (x < width)


@triton.jit
def scale_at(scale, at, valid, COMPUTE: tl.constexpr):
    """Values of an attention; 1 where there is none."""
    value = 1.0
    if scale is not None:
        value = tl.load(scale + at, mask=valid, other=0.0).to(COMPUTE)
    return value


@triton.jit
def scaled_conv_kernel(
    output,
    output_strides,
    input,
    input_strides,
    weight,  # (kernels, sources, taps, padded_targets)
    kernel_stride,
    source_scale,  # (batch, sources) or None
    target_scale,  # (batch, targets) or None
    tap_scale,  # (batch, taps) or None
    kernel_scale,  # (batch, kernels) or None
    height,
    width,
    pixels,  # of an image, FLAT: of all images
    output_height,
    output_width,
    m_blocks,
    n_blocks,
    groups,
    padded_targets,
    stride,
    padding,
    dilation,
    GROUP_SOURCES: tl.constexpr,
    GROUP_TARGETS: tl.constexpr,
    KERNELS: tl.constexpr,  # 0: image b has kernel b of its own
    TAPS: tl.constexpr,
    KERNEL_W: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    FLAT: tl.constexpr,
    PIXEL_AXIS: tl.constexpr,
    INDEX: tl.constexpr,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    LANES: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """One program: BLOCK_M pixels by BLOCK_N targets of one convolution group."""
    SCALED: tl.constexpr = source_scale is not None or tap_scale is not None
    CHANNEL_BLOCKS: tl.constexpr = (GROUP_SOURCES + LANES - 1) // LANES
    STEPS: tl.constexpr = (TAPS + PAIRS - 1) // PAIRS * CHANNEL_BLOCKS
    program = tl.program_id(0)
    n_block = program % n_blocks
    m_block = program // n_blocks % m_blocks
    group = program // n_blocks // m_blocks % groups
    row, column, in_output = pixel_block(m_block, pixels, output_width, INDEX, BLOCK_M)
    row = on_pixels(row, PIXEL_AXIS)
    column = on_pixels(column, PIXEL_AXIS)
    in_output = on_pixels(in_output, PIXEL_AXIS)
    if FLAT:
        image = row // output_height
        row = row % output_height
    else:
        image = (program // n_blocks // m_blocks // groups).to(tl.int64)
    input += image * input_strides[0]
    output += image * output_strides[0]
    if KERNELS == 0:
        weight += image * kernel_stride
    out = n_block * BLOCK_N + tl.arange(0, BLOCK_N)
    out_tile = on_channels(out, PIXEL_AXIS)
    lane = tl.arange(0, LANES * PAIRS)

    product = zeros_tile(BLOCK_M, BLOCK_N, PIXEL_AXIS, COMPUTE)
    for step in range(STEPS * KERNELS if FLAT else STEPS):
        tap = pair_lanes(step % STEPS // CHANNEL_BLOCKS * PAIRS, LANES, PAIRS)
        in_group = step % CHANNEL_BLOCKS * LANES + lane % LANES
        k_valid = (in_group < GROUP_SOURCES) & (tap < TAPS)
        channel = group * GROUP_SOURCES + in_group
        y, x, inside = source_pixel(
            row, column, on_lanes(tap, PIXEL_AXIS, PAIRS),
            height, width, stride, padding, dilation, KERNEL_W, TRANSPOSED,
        )  # fmt: skip
        valid = in_output & inside & on_channels(k_valid, PIXEL_AXIS)
        at = on_channels(channel.to(INDEX) * input_strides[1], PIXEL_AXIS)
        at += y.to(INDEX) * input_strides[2] + x.to(INDEX) * input_strides[3]
        values = tl.load(input + at, mask=valid, other=0.0)

        at = on_pixels((channel.to(INDEX) * TAPS + tap) * padded_targets, PIXEL_AXIS) + out_tile
        weight_valid = on_pixels(k_valid, PIXEL_AXIS) & (out_tile < padded_targets)
        if FLAT or KERNELS == 0:
            kernel = step // STEPS
            weights = tl.load(weight + kernel.to(tl.int64) * kernel_stride + at, mask=weight_valid, other=0.0)
            if FLAT and (SCALED or kernel_scale is not None):
                taps = on_lanes(tap, PIXEL_AXIS, PAIRS)
                sources = on_channels(channel, PIXEL_AXIS)
                scale = scale_at(kernel_scale, image * KERNELS + kernel, in_output, COMPUTE)
                scale *= scale_at(tap_scale, image * TAPS + taps, in_output & (taps < TAPS), COMPUTE)
                scale *= scale_at(
                    source_scale,
                    image * (groups * GROUP_SOURCES) + sources,
                    in_output & (sources < (group + 1) * GROUP_SOURCES),
                    COMPUTE,
                )
                values = values.to(COMPUTE) * scale
        else:
            mixed = zeros_tile(LANES * PAIRS, BLOCK_N, PIXEL_AXIS, COMPUTE)
            for i in tl.static_range(KERNELS):
                one = tl.load(weight + i * kernel_stride + at, mask=weight_valid, other=0.0)
                mixed += tl.load(kernel_scale + image * KERNELS + i).to(COMPUTE) * one.to(COMPUTE)
            if SCALED:
                scale = tl.full((LANES * PAIRS,), 1.0, COMPUTE)
                scale *= scale_at(tap_scale, image * TAPS + tap, tap < TAPS, COMPUTE)
                scale *= scale_at(source_scale, image * (groups * GROUP_SOURCES) + channel, k_valid, COMPUTE)
                mixed *= on_pixels(scale, PIXEL_AXIS)
            weights = mixed.to(weight.dtype.element_ty)
        values = values.to(weights.dtype)
        if PIXEL_AXIS == 0:
            product = tl.dot(values, weights, product, input_precision=PRECISION, out_dtype=COMPUTE)
        else:
            product = tl.dot(weights, values, product, input_precision=PRECISION, out_dtype=COMPUTE)

    out_valid = in_output & (out_tile < GROUP_TARGETS)
    out_channel = group * GROUP_TARGETS + out_tile
    product *= scale_at(target_scale, image * (groups * GROUP_TARGETS) + out_channel, out_valid, COMPUTE)
    at = out_channel.to(INDEX) * output_strides[1] + row * output_strides[2] + column * output_strides[3]
    tl.store(output + at, product.to(output.dtype.element_ty), mask=out_valid)


class Geometry(NamedTuple):
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def output_size(self, size: tuple[int, int], kernel: tuple[int, int]) -> tuple[int, int]:
        axes = zip(size, kernel, self.stride, self.padding, self.dilation, strict=True)
        height, width = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes)
        return height, width


class Scales(NamedTuple):
    """The attentions of a call, contiguous; None where absent."""

    source: torch.Tensor | None = None  # (batch, sources)
    target: torch.Tensor | None = None  # (batch, targets)
    tap: torch.Tensor | None = None  # (batch, taps)
    kernel: torch.Tensor | None = None  # (batch, kernels)

    @classmethod
    def of(cls, *attentions: torch.Tensor | None) -> Scales:
        return cls(*(None if a is None else a.contiguous() for a in attentions))

    @property
    def swapped(self) -> Scales:
        """As the gradient of the input sees them."""
        return self._replace(source=self.target, target=self.source)


class ConvTile(NamedTuple):
    BLOCK_M: int
    BLOCK_N: int
    LANES: int
    PAIRS: int
    num_warps: int
    num_stages: int


def conv_tile(
    sources: int, targets: int, pixels: int, kernels: int, flat: bool, dtype: torch.dtype, tensor_cores: bool
) -> ConvTile:
    """Sizes follow the channels of a group, and the operand that takes the scales is the short side of a tile.

    Without tensor cores operands live in registers, and wide operands or several kernels fill shared memory: the
    first two take smaller tiles, the last fewer stages. So do few pixels, for a grid that keeps a GPU busy.
    """
    half = dtype.itemsize == 2
    lanes, pairs = Lanes.of(sources, 32 if half else 16)
    double = dtype == torch.float64
    block_n = max(16, min(128 if half and flat else 32 if double else 64, triton.next_power_of_2(targets)))
    block_m = 32 if double else 64 if flat or pairs > 1 or not tensor_cores else 128
    if block_n == 128 and triton.cdiv(pixels, block_m) * triton.cdiv(targets, block_n) < BUSY_GRID:
        block_n = 64
    num_warps = 4 if tensor_cores and block_m * block_n <= 4096 else 8
    return ConvTile(block_m, block_n, lanes, pairs, num_warps, num_stages=2 if kernels > 1 else 3)


def is_flat(batch: int, pixels: int, kernels: int) -> bool:
    """Whether to go through all kernels for every pixel rather than to mix them for every image.

    With n kernels the first costs n times the arithmetic, the second reads n kernels an image instead of one a
    batch: on an H100 they meet near 150 pixels an image.
    """
    return kernels == 1 or (kernels > 1 and batch >= 4 and pixels <= 150)


def pack_weight(weight: torch.Tensor, groups: int, transposed: bool = False) -> torch.Tensor:
    """(kernels, outputs, group channels, kh, kw) -> (kernels, sources, taps, targets of a group, zeros up to 16s).

    Sources are the channels, or the outputs when transposed.
    """
    kernels, outputs, group_channels, kernel_h, kernel_w = weight.shape
    grouped = weight.reshape(kernels, groups, outputs // groups, group_channels, kernel_h * kernel_w)
    grouped = grouped.permute(0, 1, 2, 4, 3) if transposed else grouped.permute(0, 1, 3, 4, 2)
    targets = grouped.shape[-1]
    packed = weight.new_zeros(*grouped.shape[:-1], triton.cdiv(targets, 16) * 16)
    packed[..., :targets].copy_(grouped)
    return packed.flatten(1, 2)


def scaled_conv(
    name: str,
    input: torch.Tensor,
    weight: torch.Tensor,
    scales: Scales,
    size: tuple[int, int],
    geometry: Geometry,
    transposed: bool = False,
) -> torch.Tensor:
    """The convolution above with weight (kernels, outputs, group channels, kh, kw), or its transpose, of this size.

    Without a kernel scale, several kernels are those of the images.
    """
    batch, _, height, width = input.shape
    groups = geometry.groups
    kernels, outputs, group_channels, kernel_h, kernel_w = weight.shape
    group_sources, group_targets = group_channels, outputs // groups
    if transposed:
        group_sources, group_targets = group_targets, group_sources
    output = torch.empty(
        (batch, groups * group_targets, *size),
        dtype=input.dtype,
        device=input.device,
        memory_format=memory_format(input),
    )
    if output.numel() == 0:
        return output
    packed = pack_weight(weight, groups, transposed)
    if scales.kernel is None and kernels == batch > 1:
        kernels = 0
    pixels = size[0] * size[1]
    flat = is_flat(batch, pixels, kernels)
    pixels, images = (batch * pixels, 1) if flat else (pixels, batch)
    tile = conv_tile(
        group_sources, group_targets, pixels * images, kernels, flat, input.dtype, uses_tensor_cores(input)
    )
    m_blocks, n_blocks = triton.cdiv(pixels, tile.BLOCK_M), triton.cdiv(group_targets, tile.BLOCK_N)
    spans = (output[None], input[None], packed) if flat else (output, input, packed)
    with on_device(input):
        scaled_conv_kernel[checked_grid(name, images * groups * m_blocks * n_blocks)](
            output, output.stride(),
            input, input.stride(),
            packed, packed.stride(0),
            scales.source, scales.target, scales.tap, scales.kernel,
            height, width, pixels, *size,
            m_blocks, n_blocks, groups, packed.shape[-1],
            geometry.stride, geometry.padding, geometry.dilation,
            GROUP_SOURCES=group_sources,
            GROUP_TARGETS=group_targets,
            KERNELS=kernels,
            TAPS=kernel_h * kernel_w,
            KERNEL_W=kernel_w,
            TRANSPOSED=transposed,
            FLAT=flat,
            PIXEL_AXIS=pixel_axis(output),
            INDEX=index_type(*spans),
            COMPUTE=compute_type(input),
            PRECISION=dot_precision(input),
            **tile._asdict(),
        )  # fmt: skip
    return output
