# SPDX-License-Identifier: Apache-2.0
"""What both directions of the deformable convolution share: sizes and sampling positions."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl


@triton.jit
def sample_position(
    offset,
    offset_strides,
    mask,
    mask_strides,
    row,
    column,
    valid,
    group,
    tap,
    stride,
    padding,
    dilation,
    TAPS: tl.constexpr,
    KERNEL_W: tl.constexpr,
    INDEX: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Position and mask value of the sample of (offset group, tap) at output pixel (row, column).

    The result has the broadcast shape of (row, column) and (group, tap).
    """
    plane = (group * TAPS + tap).to(INDEX)
    at = 2 * plane * offset_strides[1] + row * offset_strides[2] + column * offset_strides[3]
    dy = tl.load(offset + at, mask=valid, other=0.0).to(COMPUTE)
    dx = tl.load(offset + at + offset_strides[1], mask=valid, other=0.0).to(COMPUTE)
    y = (row * stride[0] - padding[0] + tap // KERNEL_W * dilation[0]).to(COMPUTE) + dy
    x = (column * stride[1] - padding[1] + tap % KERNEL_W * dilation[1]).to(COMPUTE) + dx
    m = 1.0
    if mask is not None:
        at = plane * mask_strides[1] + row * mask_strides[2] + column * mask_strides[3]
        m = tl.load(mask + at, mask=valid, other=0.0).to(COMPUTE)
    return y, x, m


class Shape(NamedTuple):
    """Sizes of one call that both directions need."""

    batch: int
    channels: int
    height: int
    width: int
    outputs: int
    output_height: int
    output_width: int
    taps: int
    kernel_w: int
    groups: int
    group_channels: int
    group_outputs: int
    offset_groups: int
    offset_group_channels: int
    run: int  # channels that share a convolution group and an offset group

    @property
    def pixels(self) -> int:
        return self.output_height * self.output_width

    @property
    def padded_outputs(self) -> int:
        return triton.cdiv(self.group_outputs, 16) * 16

    @classmethod
    def of(
        cls, input: torch.Tensor, offset: torch.Tensor, weight: torch.Tensor, groups: int, offset_groups: int
    ) -> Shape:
        batch, channels, height, width = input.shape
        outputs, group_channels, kernel_h, kernel_w = weight.shape
        offset_group_channels = channels // offset_groups
        return cls(
            batch, channels, height, width, outputs, offset.shape[2], offset.shape[3], kernel_h * kernel_w, kernel_w,
            groups, group_channels, outputs // groups, offset_groups, offset_group_channels,
            math.gcd(group_channels, offset_group_channels),
        )  # fmt: skip


def pack_weight(weight: torch.Tensor, shape: Shape) -> torch.Tensor:
    """(outputs, group_channels, kh, kw) -> (channels, taps, padded_outputs), zeros in the padding."""
    packed = weight.new_zeros(shape.groups, shape.group_channels, shape.taps, shape.padded_outputs)
    grouped = weight.reshape(shape.groups, shape.group_outputs, shape.group_channels, shape.taps)
    packed[..., : shape.group_outputs].copy_(grouped.permute(0, 2, 3, 1))
    return packed.view(shape.channels, shape.taps, shape.padded_outputs)
