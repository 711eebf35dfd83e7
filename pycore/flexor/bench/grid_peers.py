# SPDX-License-Identifier: Apache-2.0
"""Dynamic grid convolution as published, on the parameters of flexor's layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flexor.nn import DGridConv, GridAttention

PAD_MODES = {"c": "circular", "r": "replicate", "z": "constant"}


class PublishedDGridConv(nn.Module):
    """Each branch: the grid padded in its way, unfolded to columns, under the attention, a matrix product."""

    def __init__(self, conv: DGridConv) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, input: Tensor, attention: Tensor) -> Tensor:
        weight1, weight2, bias1, bias2 = self.conv.branches()
        borders = self.conv.borders
        first = branch(input, weight1, bias1, attention, borders[0])
        return first + branch(input, weight2, bias2, attention, borders[1])


class PublishedGridAttention(nn.Module):
    """The same layers as `GridAttention`, as convolutions of 1x1 maps."""

    def __init__(self, attention: GridAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, input: Tensor) -> Tensor:
        layers = self.attention
        hidden = F.relu(layers.bn(layers.fc(F.adaptive_avg_pool2d(input, 1))))
        return torch.sigmoid(layers.position_fc(hidden).flatten(1).unflatten(1, layers.shape) / layers.temperature)


def branch(input: Tensor, weight: Tensor, bias: Tensor | None, attention: Tensor, border: str) -> Tensor:
    size = weight.shape[2]
    padded = F.pad(input, (size // 2,) * 4, PAD_MODES[border])
    columns = F.unfold(padded, size).unflatten(1, (input.shape[1], size * size))
    modulated = (columns * attention.flatten(2)[:, None]).flatten(1, 2)
    output = (modulated.mT @ weight.flatten(1).T).mT.unflatten(2, input.shape[2:])
    return output if bias is None else output + bias[:, None, None]


def published(module: nn.Module) -> nn.Module | None:
    if isinstance(module, DGridConv):
        return PublishedDGridConv(module)
    return PublishedGridAttention(module) if isinstance(module, GridAttention) else None
