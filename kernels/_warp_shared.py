# SPDX-License-Identifier: Apache-2.0
"""Warping kernels, for positions that come from a flow or from an affine matrix.

Per pixel p and channel c, with the four corners i of the cell that p's position lies in:

    forward   output[p, c] = sum over the four corners of weight_i(p) input_i[c]
    backward  input     scatter of grad_output[p, c] weight_i(p)
              position  S_i = sum over c of grad_output[p, c] input_i[c], then bilinear in the four S_i: one
                        program owns all channels of its pixels, hence no atomics
              matrix    sum over p of d position (x, y, 1), in partial sums that are added in a fixed order
"""

from __future__ import annotations

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
    memory_format,
    on_channels,
    on_device,
    on_pixels,
    pixel_axis,
    pixel_block,
    scatter_add,
    strides,
)


@triton.jit
def round_half_even(v):
    low = tl.floor(v)
    fraction = v - low
    odd = low - 2 * tl.floor(low * 0.5)
    return tl.where((fraction > 0.5) | ((fraction == 0.5) & (odd == 1)), low + 1, low)


@triton.jit
def clamp_to_image(v, size):
    """Into [0, size - 1]; a NaN stays."""
    v = tl.where(v >= size - 1, size - 1, v)
    return tl.where(v <= 0, 0.0, v)


@triton.jit
def affine_row(row, x, y):
    """a x + b y + c, every rounding spelled out: a compiler that is free to fuse products may compute one position
    twice with different bits, and a cell of the one with the fractions of the other is wrong by a whole pixel."""
    return tl.fma(tl.load(row), x, tl.fma(tl.load(row + 1), y, tl.load(row + 2)))


@triton.jit
def source_position(flow, flow_strides, matrix, row, column, valid, COMPUTE: tl.constexpr):
    """Where the input is read for output pixel (row, column): p + flow(p), or matrix (x, y, 1)."""
    y = row.to(COMPUTE)
    x = column.to(COMPUTE)
    if matrix is None:
        at = row * flow_strides[2] + column * flow_strides[3]
        source_x = x + tl.load(flow + at, mask=valid, other=0.0).to(COMPUTE)
        source_y = y + tl.load(flow + at + flow_strides[1], mask=valid, other=0.0).to(COMPUTE)
    else:
        source_x = affine_row(matrix, x, y)
        source_y = affine_row(matrix + 3, x, y)
    return source_y, source_x


@triton.jit
def source_cell(y, x, height, width, INDEX: tl.constexpr, NEAREST: tl.constexpr, BORDER: tl.constexpr):
    """`bilinear_cell` of a position; with NEAREST its top left corner is the pixel and the fractions are 0."""
    if BORDER:
        y = clamp_to_image(y, height)
        x = clamp_to_image(x, width)
    if NEAREST:
        y = round_half_even(y)
        x = round_half_even(x)
    return bilinear_cell(y, x, height, width, INDEX, True)


@triton.jit
def warp_fwd_kernel(
    output,
    output_strides,
    input,
    input_strides,
    flow,  # or None
    flow_strides,
    matrix,  # (batch, 2, 3), or None
    channels,
    height,
    width,
    pixels,
    output_width,
    m_blocks,
    c_blocks,
    NEAREST: tl.constexpr,
    BORDER: tl.constexpr,
    PIXEL_AXIS: tl.constexpr,
    INDEX: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program: BLOCK_M pixels of one image by BLOCK_C channels."""
    program = tl.program_id(0)
    m_block = program % m_blocks
    c_block = program // m_blocks % c_blocks
    image = (program // m_blocks // c_blocks).to(tl.int64)
    output += image * output_strides[0]
    input += image * input_strides[0]
    if matrix is None:
        flow += image * flow_strides[0]
    else:
        matrix += image * 6

    row, column, valid = pixel_block(m_block, pixels, output_width, INDEX, BLOCK_M)
    row = on_pixels(row, PIXEL_AXIS)
    column = on_pixels(column, PIXEL_AXIS)
    valid = on_pixels(valid, PIXEL_AXIS)
    channel = on_channels(c_block * BLOCK_C + tl.arange(0, BLOCK_C), PIXEL_AXIS).to(INDEX)
    in_channels = channel < channels

    y, x = source_position(flow, flow_strides, matrix, row, column, valid, COMPUTE)
    top, left, ly, lx, inside, scale = source_cell(y, x, height, width, INDEX, NEAREST, BORDER)
    corners, exists = cell_corners(top, left, inside & valid, height, width, input_strides[2], input_strides[3])
    plane = channel * input_strides[1]
    if NEAREST:
        v0 = tl.load(input + corners[0] + plane, mask=exists[0] & in_channels, other=0.0)
        value = scale * v0.to(COMPUTE)
    else:
        v = load_corners(input, corners, exists, plane, in_channels, COMPUTE)
        w = cell_weights(ly, lx, scale)
        value = w[0] * v[0] + w[1] * v[1] + w[2] * v[2] + w[3] * v[3]
    at = channel * output_strides[1] + row * output_strides[2] + column * output_strides[3]
    tl.store(output + at, value.to(output.dtype.element_ty), mask=valid & in_channels)


@triton.jit
def warp_bwd_kernel(
    grad_input,  # or None
    grad_input_strides,
    fixed_point_scale,
    grad_flow,  # or None
    grad_flow_strides,
    grad_matrix,  # (batch, m_blocks, 2, 3) partial sums, or None
    grad_output,
    grad_output_strides,
    input,
    input_strides,
    flow,
    flow_strides,
    matrix,
    channels,
    height,
    width,
    pixels,
    output_width,
    m_blocks,
    NEAREST: tl.constexpr,
    BORDER: tl.constexpr,
    PIXEL_AXIS: tl.constexpr,
    INDEX: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program: all channels of BLOCK_M pixels of one image."""
    program = tl.program_id(0)
    m_block = program % m_blocks
    image = (program // m_blocks).to(tl.int64)
    grad_output += image * grad_output_strides[0]
    input += image * input_strides[0]
    if matrix is None:
        flow += image * flow_strides[0]
    else:
        matrix += image * 6
    if grad_input is not None:
        grad_input += image * grad_input_strides[0]

    row, column, valid = pixel_block(m_block, pixels, output_width, INDEX, BLOCK_M)
    row = on_pixels(row, PIXEL_AXIS)
    column = on_pixels(column, PIXEL_AXIS)
    valid = on_pixels(valid, PIXEL_AXIS)
    y, x = source_position(flow, flow_strides, matrix, row, column, valid, COMPUTE)
    top, left, ly, lx, inside, scale = source_cell(y, x, height, width, INDEX, NEAREST, BORDER)
    inside &= valid
    corners, exists = cell_corners(top, left, inside, height, width, input_strides[2], input_strides[3])
    w = cell_weights(ly, lx, scale)
    targets = corners
    fixed_point = None
    if grad_input is not None:
        targets, _ = cell_corners(top, left, inside, height, width, grad_input_strides[2], grad_input_strides[3])
        if fixed_point_scale is not None:
            fixed_point = tl.load(fixed_point_scale)

    s0 = tl.zeros((BLOCK_M,), COMPUTE)
    s1 = s0
    s2 = s0
    s3 = s0
    for first_channel in range(0, channels, BLOCK_C):
        channel = on_channels(first_channel + tl.arange(0, BLOCK_C), PIXEL_AXIS).to(INDEX)
        in_channels = channel < channels
        at = channel * grad_output_strides[1] + row * grad_output_strides[2] + column * grad_output_strides[3]
        grad = tl.load(grad_output + at, mask=valid & in_channels, other=0.0).to(COMPUTE)
        if grad_flow is not None or grad_matrix is not None:
            v = load_corners(input, corners, exists, channel * input_strides[1], in_channels, COMPUTE)
            s0 += tl.sum(grad * v[0], axis=1 - PIXEL_AXIS)
            s1 += tl.sum(grad * v[1], axis=1 - PIXEL_AXIS)
            s2 += tl.sum(grad * v[2], axis=1 - PIXEL_AXIS)
            s3 += tl.sum(grad * v[3], axis=1 - PIXEL_AXIS)
        if grad_input is not None:
            for i in tl.static_range(1 if NEAREST else 4):
                scatter_add(
                    grad_input,
                    targets[i] + channel * grad_input_strides[1],
                    exists[i] & in_channels,
                    grad * w[i],
                    fixed_point,
                )

    if grad_flow is not None or grad_matrix is not None:
        s0 = on_pixels(s0, PIXEL_AXIS)
        s1 = on_pixels(s1, PIXEL_AXIS)
        s2 = on_pixels(s2, PIXEL_AXIS)
        s3 = on_pixels(s3, PIXEL_AXIS)
        d_y = scale * ((1 - lx) * (s2 - s0) + lx * (s3 - s1))
        d_x = scale * ((1 - ly) * (s1 - s0) + ly * (s3 - s2))
        if BORDER:
            d_y = tl.where((y <= 0) | (y >= height - 1), 0.0, d_y)
            d_x = tl.where((x <= 0) | (x >= width - 1), 0.0, d_x)
        if grad_flow is not None:
            at = image * grad_flow_strides[0] + row * grad_flow_strides[2] + column * grad_flow_strides[3]
            tl.store(grad_flow + at, d_x.to(grad_flow.dtype.element_ty), mask=valid)
            tl.store(grad_flow + at + grad_flow_strides[1], d_y.to(grad_flow.dtype.element_ty), mask=valid)
        if grad_matrix is not None:
            d_y = tl.where(valid, d_y, 0.0)
            d_x = tl.where(valid, d_x, 0.0)
            partial = grad_matrix + (image * m_blocks + m_block) * 6
            tl.store(partial, tl.sum(d_x * column.to(COMPUTE)))
            tl.store(partial + 1, tl.sum(d_x * row.to(COMPUTE)))
            tl.store(partial + 2, tl.sum(d_x))
            tl.store(partial + 3, tl.sum(d_y * column.to(COMPUTE)))
            tl.store(partial + 4, tl.sum(d_y * row.to(COMPUTE)))
            tl.store(partial + 5, tl.sum(d_y))


def warp_tile(channels: int, channels_last: bool) -> dict[str, int]:
    """A few elements a thread, long in the axis that is contiguous in memory."""
    if channels_last:
        block_c = min(64, triton.next_power_of_2(channels))
        return {"BLOCK_M": max(16, 512 // block_c), "BLOCK_C": block_c, "num_warps": 4}
    return {"BLOCK_M": 128, "BLOCK_C": min(2, channels), "num_warps": 4}


def check_mode(name: str, input: torch.Tensor, mode: str, padding_mode: str) -> dict[str, bool]:
    if mode not in ("bilinear", "nearest"):
        raise ValueError(f"{name}: mode must be 'bilinear' or 'nearest', got {mode!r}")
    if padding_mode not in ("zeros", "border"):
        raise ValueError(f"{name}: padding_mode must be 'zeros' or 'border', got {padding_mode!r}")
    return {"NEAREST": mode == "nearest", "BORDER": padding_mode == "border"}


def warp_forward(
    name: str,
    input: torch.Tensor,
    flow: torch.Tensor | None,
    matrix: torch.Tensor | None,
    size: tuple[int, int],
    mode: str,
    padding_mode: str,
) -> torch.Tensor:
    """Output (batch, channels, *size) in the input's dtype and memory format, by a flow or a matrix."""
    flags = check_mode(name, input, mode, padding_mode)
    batch, channels, height, width = input.shape
    output = torch.empty(
        (batch, channels, *size), dtype=input.dtype, device=input.device, memory_format=memory_format(input)
    )
    if output.numel() == 0:
        return output
    axis = pixel_axis(output)
    tile = warp_tile(channels, channels_last=axis == 0)
    m_blocks = triton.cdiv(size[0] * size[1], tile["BLOCK_M"])
    c_blocks = triton.cdiv(channels, tile["BLOCK_C"])
    with on_device(input):
        warp_fwd_kernel[checked_grid(name, batch * m_blocks * c_blocks)](
            output, output.stride(),
            input, input.stride(),
            flow, strides(flow),
            matrix,
            channels, height, width, size[0] * size[1], size[1],
            m_blocks, c_blocks,
            PIXEL_AXIS=axis,
            INDEX=index_type(output, input, flow),
            COMPUTE=compute_type(input),
            **flags,
            **tile,
        )  # fmt: skip
    return output


def warp_backward(
    name: str,
    grad_output: torch.Tensor,
    input: torch.Tensor,
    flow: torch.Tensor | None,
    matrix: torch.Tensor | None,
    mode: str,
    padding_mode: str,
    needs: tuple[bool, bool],
    deterministic: bool,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Gradients of the input and of the flow or matrix, each if needed."""
    flags = check_mode(name, input, mode, padding_mode)
    batch, channels, height, width = input.shape
    size = grad_output.shape[2:]
    pixels = size[0] * size[1]
    tile = warp_tile(channels, channels_last=pixel_axis(input) == 0)
    m_blocks = triton.cdiv(pixels, tile["BLOCK_M"])
    launch = grad_output.numel() > 0 and input.numel() > 0
    # The nearest pixel does not move with the position: that gradient is zero.
    moves = needs[1] and launch and mode == "bilinear"

    gradient = None
    if needs[0]:
        gradient = ImageGradient(input, largest_finite(grad_output) if deterministic else None, max(1, pixels))
    accumulator = gradient.sum if gradient else None
    grad_flow = grad_matrix = partial = None
    if needs[1] and flow is not None:
        grad_flow = torch.zeros_like(flow, memory_format=torch.contiguous_format)
    if needs[1] and matrix is not None:
        grad_matrix = torch.zeros_like(matrix)
        partial = matrix.new_zeros(batch, m_blocks, 2, 3)
    if launch and (needs[0] or moves):
        with on_device(input):
            warp_bwd_kernel[checked_grid(name, batch * m_blocks)](
                accumulator, strides(accumulator), gradient.scale if gradient else None,
                grad_flow if moves else None, strides(grad_flow),
                partial if moves else None,
                grad_output, grad_output.stride(),
                input, input.stride(),
                flow, strides(flow),
                matrix,
                channels, height, width, pixels, size[1], m_blocks,
                PIXEL_AXIS=pixel_axis(input),
                INDEX=index_type(accumulator, grad_flow, grad_output, input, flow),
                COMPUTE=compute_type(input),
                **flags,
                **tile,
            )  # fmt: skip
    if partial is not None:
        grad_matrix = partial.sum(1)
    return gradient.result() if gradient else None, grad_flow if flow is not None else grad_matrix
