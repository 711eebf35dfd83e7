# SPDX-License-Identifier: Apache-2.0
"""A graph convolution network on the skeleton: SemGCN without its non-local layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .mocap import PARENTS


class SemanticGraphConv(nn.Module):
    """Graph convolution whose edges have learned weights.

        y = A_self * (x W_0) + A_others * (x W_1) + bias,  A = softmax over each joint's neighbours and itself of M

    with A_self the diagonal of A, A_others the rest, and M a number an edge, shared by all channels.

    Args:
        in_channels, out_channels: channels.
        parents: each joint's parent, -1 for a root; the edges are these, both ways, and every joint with itself.

    Source:
        Zhao et al., Semantic Graph Convolutional Networks for 3D Human Pose Regression, CVPR 2019.
    """

    def __init__(self, in_channels: int, out_channels: int, parents: Sequence[int]) -> None:
        super().__init__()
        edges = torch.eye(len(parents), dtype=torch.bool)
        for joint, parent in enumerate(parents):
            if parent >= 0:
                edges[joint, parent] = edges[parent, joint] = True
        self.register_buffer("edges", edges, persistent=False)
        self.edge_weight = nn.Parameter(torch.ones(int(edges.sum())))
        self.weight = nn.Parameter(torch.empty(2, in_channels, out_channels))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        for weight in self.weight:
            nn.init.xavier_uniform_(weight, gain=2**0.5)

    edges: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """(B, joints, in_channels) to (B, joints, out_channels)."""
        logits = torch.full_like(self.edges, -torch.inf, dtype=input.dtype)
        adjacency = logits.masked_scatter(self.edges, self.edge_weight.to(input.dtype)).softmax(1)
        own = adjacency.diagonal()
        others = adjacency - own.diag()
        return own[:, None] * (input @ self.weight[0]) + others @ (input @ self.weight[1]) + self.bias


class GraphLifter(nn.Module):
    """Lifts 2-D poses to 3-D by residual blocks of semantic graph convolutions.

    Graph convolution, batch norm, ReLU; `blocks` times [the same twice, plus its input]; graph convolution.

    Args:
        channels: channels of the hidden layers.
        blocks: residual blocks.
        parents: the skeleton, see SemanticGraphConv.

    Source:
        Zhao et al., Semantic Graph Convolutional Networks for 3D Human Pose Regression, CVPR 2019: SemGCN, without
        the non-local layers.
    """

    def __init__(self, channels: int = 128, blocks: int = 4, parents: Sequence[int] = PARENTS) -> None:
        super().__init__()
        self.first = _GraphLayer(2, channels, parents)
        self.blocks = nn.ModuleList(
            nn.Sequential(_GraphLayer(channels, channels, parents), _GraphLayer(channels, channels, parents))
            for _ in range(blocks)
        )
        self.last = SemanticGraphConv(channels, 3, parents)

    def forward(self, input: Tensor) -> Tensor:
        """Joints (B, joints, 2) to joints (B, joints, 3)."""
        hidden = self.first(input)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.last(hidden)


class _GraphLayer(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, parents: Sequence[int]) -> None:
        super().__init__()
        self.conv = SemanticGraphConv(in_channels, out_channels, parents)
        self.norm = nn.BatchNorm1d(out_channels)

    def forward(self, input: Tensor) -> Tensor:
        hidden = self.conv(input)
        return self.norm(hidden.flatten(0, 1)).unflatten(0, hidden.shape[:2]).relu()
