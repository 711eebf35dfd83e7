# SPDX-License-Identifier: Apache-2.0
"""torchvision's deformable layer, and the layers that mmcv builds on it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..ops import deform_conv2d

Size = int | Sequence[int]


def _pair(value: Size) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


class DeformConv2d(nn.Module):
    """Deformable convolution whose offsets and mask come with every call; torchvision.ops.DeformConv2d's twin.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as for `torch.nn.Conv2d`.

    Raises:
        ValueError: when groups does not divide the channels.

    Source:
        `flexor.ops.deform_conv2d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        _check_channels(type(self).__name__, in_channels, out_channels, groups)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size = _pair(kernel_size)
        self.stride, self.padding, self.dilation = _pair(stride), _pair(padding), _pair(dilation)
        self.groups = groups
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size))
        if bias:
            self.bias = nn.Parameter(torch.empty(out_channels))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
        return deform_conv2d(input, offset, self.weight, self.bias, self.stride, self.padding, self.dilation, mask=mask)

    def __repr__(self) -> str:
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"]
        if self.padding != (0, 0):
            parts.append(f"padding={self.padding}")
        if self.dilation != (1, 1):
            parts.append(f"dilation={self.dilation}")
        if self.groups != 1:
            parts.append(f"groups={self.groups}")
        if self.bias is None:
            parts.append("bias=False")
        return f"{type(self).__name__}({', '.join(parts)})"


class DeformGroupsConv2d(nn.Module):
    """What mmcv's layers have in common: their attributes, `deform_groups`, and a weight."""

    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size,
        padding: Size,
        dilation: Size,
        groups: int,
        deform_groups: int,
        deformable_groups: int | None,
    ) -> None:
        super().__init__()
        if deformable_groups is not None:
            warnings.warn("deformable_groups is now deform_groups", DeprecationWarning, stacklevel=3)
            deform_groups = deformable_groups
        _check_channels(type(self).__name__, in_channels, out_channels, groups)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size = _pair(kernel_size)
        self.stride, self.padding, self.dilation = _pair(stride), _pair(padding), _pair(dilation)
        self.groups, self.deform_groups = groups, deform_groups
        self.transposed, self.output_padding = False, (0,)  # code that inspects nn.Conv2d looks for these
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size))

    def offset_conv(self, channels_per_tap: int) -> nn.Conv2d:
        """A convolution, zero at first, that predicts so many numbers for every tap of every deform group."""
        channels = self.deform_groups * channels_per_tap * self.kernel_size[0] * self.kernel_size[1]
        conv = nn.Conv2d(
            self.in_channels, channels, self.kernel_size, self.stride, self.padding, self.dilation, bias=True
        )
        zero_(conv)
        return conv

    def deform(self, x: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
        taps = self.kernel_size[0] * self.kernel_size[1]
        if offset.shape[1] != 2 * self.deform_groups * taps:
            raise ValueError(
                f"{type(self).__name__}: offset.shape[1] must be 2*deform_groups*kh*kw = "
                f"{2 * self.deform_groups * taps}, got {offset.shape[1]}"
            )
        return deform_conv2d(x, offset, self.weight, self.bias, self.stride, self.padding, self.dilation, mask=mask)

    def extra_repr(self) -> str:
        return (
            f"in_channels={self.in_channels}, out_channels={self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}, groups={self.groups}, "
            f"deform_groups={self.deform_groups}, bias={self.bias is not None}"
        )


class _RenamedOffsetConv(nn.Module):
    """Loads checkpoints from before version 2, where `conv_offset` stood beside the layer as `<layer>_offset`.

    That takes a loader that shows every module all keys, as mmengine's does; torch's own shows it those below it.
    """

    _version = 2

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, *rest: Any) -> None:
        if local_metadata.get("version") is None or local_metadata["version"] < 2:
            for name in ("weight", "bias"):
                old, new = f"{prefix[:-1]}_offset.{name}", f"{prefix}conv_offset.{name}"
                if new not in state_dict and old in state_dict:
                    state_dict[new] = state_dict.pop(old)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


class UnmodulatedDeformConv2d(DeformGroupsConv2d):
    """Constructor of mmcv's first version: no bias, Kaiming initialisation, an im2col_step that is not used."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        deform_groups: int = 1,
        bias: bool = False,
        im2col_step: int = 32,
        *,
        deformable_groups: int | None = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, deform_groups, deformable_groups
        )
        if bias:
            raise ValueError(f"{type(self).__name__}: bias must be False, got {bias}")
        self.register_parameter("bias", None)
        self.im2col_step = im2col_step
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")


class DeformConv2dPack(_RenamedOffsetConv, UnmodulatedDeformConv2d):
    """Deformable convolution that predicts its own offsets; mmcv's DeformConv2dPack ("DCN").

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups: as for `torch.nn.Conv2d`.
        deform_groups: number of channel groups with offsets of their own.
        bias: must be False, as there.
        im2col_step: accepted and not used; any batch size runs.

    Raises:
        ValueError: when groups does not divide the channels, or bias is asked for.

    Source:
        Dai et al., Deformable Convolutional Networks, ICCV 2017.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conv_offset = self.offset_conv(2)

    def init_offset(self) -> None:
        zero_(self.conv_offset)

    def forward(self, x: Tensor) -> Tensor:
        return self.deform(x, self.conv_offset(x))


class ModulatedDeformConv2d(DeformGroupsConv2d):
    """Deformable convolution with a mask, whose offsets and mask come with every call; mmcv's ModulatedDeformConv2d.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as for `torch.nn.Conv2d`.
        deform_groups: number of channel groups with offsets and masks of their own.

    Raises:
        ValueError: when groups does not divide the channels.

    Source:
        Zhu et al., Deformable ConvNets v2, CVPR 2019.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        deform_groups: int = 1,
        bias: bool | str = True,
        *,
        deformable_groups: int | None = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, deform_groups, deformable_groups
        )
        if bias:
            self.bias = nn.Parameter(torch.empty(out_channels))
        else:
            self.register_parameter("bias", None)
        self.init_weights()

    def init_weights(self) -> None:
        bound = 1 / math.sqrt(self.in_channels * self.kernel_size[0] * self.kernel_size[1])
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        return self.deform(x, offset, mask)


class ModulatedDeformConv2dPack(_RenamedOffsetConv, ModulatedDeformConv2d):
    """Deformable convolution that predicts its own offsets and mask; mmcv's ModulatedDeformConv2dPack ("DCNv2").

    The first two thirds of what `conv_offset` predicts are the offsets, dy and dx interleaved; a sigmoid of the rest
    is the mask.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as for `torch.nn.Conv2d`.
        deform_groups: number of channel groups with offsets and masks of their own.

    Raises:
        ValueError: when groups does not divide the channels.

    Source:
        Zhu et al., Deformable ConvNets v2, CVPR 2019.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conv_offset = self.offset_conv(3)

    def init_weights(self) -> None:
        super().init_weights()
        if hasattr(self, "conv_offset"):  # not yet there when the base class calls
            zero_(self.conv_offset)

    def forward(self, x: Tensor) -> Tensor:
        predicted = self.conv_offset(x)
        offsets = 2 * predicted.shape[1] // 3
        return self.deform(x, predicted[:, :offsets], predicted[:, offsets:].sigmoid())


def zero_(conv: nn.Conv2d) -> None:
    nn.init.zeros_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def _check_channels(name: str, in_channels: int, out_channels: int, groups: int) -> None:
    if in_channels % groups != 0 or out_channels % groups != 0:
        raise ValueError(
            f"{name}: in_channels and out_channels must be multiples of groups = {groups}, "
            f"got {in_channels} and {out_channels}"
        )
