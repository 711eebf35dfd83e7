# SPDX-License-Identifier: Apache-2.0
"""The bricks of DCPose and FAMI-Pose: a convolution with batch norm, and layers in a row."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvNorm(nn.Module):
    """y = relu(bn(conv(x))), with `relu=False` without the last step.

    Where no gradient is recorded and the statistics are fixed, batch norm is folded into the convolution's weight for
    the call: one pass over the pixels in place of two, from the parameters as they are then.

    Args:
        inputs, outputs: channels.
        kernel: side of the kernel; the padding keeps the size where stride is 1.
        stride: step between output pixels.
        relu: whether negative values become 0.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, relu: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)
        self.bn = nn.BatchNorm2d(outputs)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        if self.bn.training or torch.is_grad_enabled():
            y = self.bn(self.conv(x))
        else:
            y = self.conv._conv_forward(x, *self._folded())
        return F.relu(y, inplace=True) if self.relu else y

    def _folded(self) -> tuple[Tensor, Tensor]:
        conv, bn = self.conv, self.bn
        scale = bn.weight * torch.rsqrt(bn.running_var + bn.eps)  # type: ignore[arg-type, operator]
        bias = torch.addcmul(bn.bias, conv.bias - bn.running_mean, scale)  # type: ignore[operator]
        return conv.weight * scale[:, None, None, None], bias


class Chain(nn.Module):
    """Layers one after another, under the name `layers`."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)
