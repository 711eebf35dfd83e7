# SPDX-License-Identifier: Apache-2.0
"""mmcv.ops' deformable convolutions: its names, its order of arguments, its treatment of dtypes and small images.

Two differences are meant. A batch need not be divisible by im2col_step. At a coordinate of exactly -1, where the value
is 0, the gradient is torchvision's right-sided one; mmcv's is 0.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..nn import DeformConv2dPack, ModulatedDeformConv2d, ModulatedDeformConv2dPack
from ..nn.deform_conv2d import Size, UnmodulatedDeformConv2d

__all__ = [
    "DeformConv2d",
    "DeformConv2dPack",
    "ModulatedDeformConv2d",
    "ModulatedDeformConv2dPack",
    "deform_conv2d",
    "modulated_deform_conv2d",
]


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    groups: int = 1,
    deform_groups: int = 1,
    bias: bool = False,
    im2col_step: int = 32,
) -> Tensor:
    """Deformable convolution with mmcv's arguments; input and weight are cast to offset's dtype, as there.

    Args:
        input: (N, C, H, W).
        offset: (N, 2 * deform_groups * kh * kw, oh, ow), pixels, dy and dx interleaved.
        weight: (O, C / groups, kh, kw).
        stride, padding, dilation: an int or (y, x).
        groups, deform_groups: must agree with the shapes.
        bias: must be False.
        im2col_step: accepted and not used.

    Returns:
        (N, O, oh, ow) in offset's dtype.

    Raises:
        ValueError: shapes or groups that do not fit, or bias.

    Source:
        `flexor.ops.deform_conv2d`.
    """
    if bias:
        raise ValueError(f"deform_conv2d: bias must be False, got {bias}")
    _check_groups("deform_conv2d", input, offset, weight, groups, deform_groups)
    dtype = offset.dtype
    return ops.deform_conv2d(input.to(dtype), offset, weight.to(dtype), None, stride, padding, dilation)


def modulated_deform_conv2d(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    groups: int = 1,
    deform_groups: int = 1,
) -> Tensor:
    """Modulated deformable convolution with mmcv's arguments; everything is cast to offset's dtype, as there.

    Args:
        input: (N, C, H, W).
        offset: (N, 2 * deform_groups * kh * kw, oh, ow), pixels, dy and dx interleaved.
        mask: (N, deform_groups * kh * kw, oh, ow).
        weight: (O, C / groups, kh, kw).
        bias: (O,) or None.
        stride, padding, dilation: an int or (y, x).
        groups, deform_groups: must agree with the shapes.

    Returns:
        (N, O, oh, ow) in offset's dtype.

    Raises:
        ValueError: shapes or groups that do not fit.

    Source:
        `flexor.ops.deform_conv2d`.
    """
    _check_groups("modulated_deform_conv2d", input, offset, weight, groups, deform_groups)
    dtype = offset.dtype
    bias = None if bias is None else bias.to(dtype)
    return ops.deform_conv2d(input.to(dtype), offset, weight.to(dtype), bias, stride, padding, dilation, mask.to(dtype))


class DeformConv2d(UnmodulatedDeformConv2d):
    """Deformable convolution whose offsets come with every call; mmcv.ops.DeformConv2d's twin.

    An image smaller than the kernel is padded with zeros below and to the right up to the kernel's size, its offsets
    too, and the output is cut back by as much.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups: as for `torch.nn.Conv2d`.
        deform_groups: number of channel groups with offsets of their own.
        bias: must be False.
        im2col_step: accepted and not used.

    Raises:
        ValueError: when groups does not divide the channels, or bias is asked for.

    Source:
        Dai et al., Deformable Convolutional Networks, ICCV 2017.
    """

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        below = max(self.kernel_size[0] - x.shape[2], 0)
        right = max(self.kernel_size[1] - x.shape[3], 0)
        if below or right:
            x, offset = F.pad(x, (0, right, 0, below)), F.pad(offset, (0, right, 0, below))
        output = deform_conv2d(
            x, offset, self.weight, self.stride, self.padding, self.dilation, self.groups, self.deform_groups
        )
        if below or right:
            output = output[:, :, : output.shape[2] - below, : output.shape[3] - right].contiguous()
        return output


def _check_groups(name: str, input: Tensor, offset: Tensor, weight: Tensor, groups: int, deform_groups: int) -> None:
    if input.dim() == offset.dim() == weight.dim() == 4:  # anything else is for ops to refuse
        if input.shape[1] != groups * weight.shape[1]:
            raise ValueError(
                f"{name}: input.shape[1] must be groups*weight.shape[1] = {groups * weight.shape[1]}, "
                f"got {input.shape[1]} (groups {groups}, weight {tuple(weight.shape)})"
            )
        channels = 2 * deform_groups * weight.shape[2] * weight.shape[3]
        if offset.shape[1] != channels:
            raise ValueError(
                f"{name}: offset.shape[1] must be 2*deform_groups*kh*kw = {channels}, got {offset.shape[1]} "
                f"(deform_groups {deform_groups}, weight {tuple(weight.shape)})"
            )
