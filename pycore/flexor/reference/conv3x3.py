# SPDX-License-Identifier: Apache-2.0
"""3x3 convolution that keeps the size, as PyTorch has it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def conv3x3(input: Tensor, weight: Tensor, bias: Tensor | None = None, dilation: int = 1) -> Tensor:
    """A sum over nine taps; see `flexor.ops.conv3x3`, whose twin this is."""
    return F.conv2d(input, weight, bias, padding=dilation, dilation=dilation)


def conv3x3_backward(
    grad_output: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None, dilation: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of `conv3x3` for (input, weight, bias), themselves convolutions, so that they differentiate."""
    grad_input = conv3x3(grad_output, weight.transpose(0, 1).flip(2, 3), None, dilation)
    if len(input) > 0:
        taps = F.conv2d(input.transpose(0, 1), grad_output.transpose(0, 1), stride=dilation, padding=dilation)
        grad_weight = taps.transpose(0, 1)
    else:  # a convolution of no channels, which torch does not differentiate
        grad_weight = torch.zeros_like(weight)
    return grad_input, grad_weight, None if bias is None else grad_output.sum((0, 2, 3))
