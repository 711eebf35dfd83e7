# SPDX-License-Identifier: Apache-2.0
"""The bricks of DCPose and FAMI-Pose: a convolution with batch norm, and layers in a row."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from flexor.nn import Conv3x3


class ConvNorm(nn.Module):
    """y = relu(bn(conv(x))), with `relu=False` without the last step.

    Args:
        inputs, outputs: channels.
        kernel: side of the kernel, 1 or 3; the padding keeps the size where stride is 1.
        stride: step between output pixels.
        relu: whether negative values become 0.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, relu: bool = True) -> None:
        super().__init__()
        if (kernel, stride) == (3, 1):
            self.conv: nn.Conv2d = Conv3x3(inputs, outputs)
        else:
            self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)
        self.bn = nn.BatchNorm2d(outputs)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        return F.relu(y, inplace=True) if self.relu else y


class Chain(nn.Module):
    """Layers one after another, under the name `layers`."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)
