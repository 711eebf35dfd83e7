# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops import conv3x3

_FEWEST_CHANNELS = 8  # below, and for fewer pixels, transforming costs more than the products that it saves
_FEWEST_PIXELS = 256


class Conv3x3(nn.Conv2d):
    """torch.nn.Conv2d of 3x3 taps at stride 1 that keeps the size, by Winograd's algorithm where that is faster.

    That is in float32 on a CPU, from 8 channels and 256 pixels on; elsewhere, and where a graph is captured, it is
    PyTorch's own convolution. An `isinstance` of `torch.nn.Conv2d`, with its parameters and its initialisation.

    Args:
        in_channels, out_channels, bias: as for `torch.nn.Conv2d`.
        dilation: distance between taps, also the padding.

    Source:
        `flexor.ops.conv3x3`.
    """

    def __init__(self, in_channels: int, out_channels: int, dilation: int = 1, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 3, padding=dilation, dilation=dilation, bias=bias)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        wins = (
            input.is_cpu
            and input.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
            and input.dim() == 4
            and min(weight.shape[:2]) >= _FEWEST_CHANNELS
            and input.shape[0] * input.shape[2] * input.shape[3] >= _FEWEST_PIXELS
            and not torch.compiler.is_compiling()
            and not torch.jit.is_tracing()
        )
        return conv3x3(input, weight, bias, self.dilation[0]) if wins else super()._conv_forward(input, weight, bias)
