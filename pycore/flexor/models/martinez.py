# SPDX-License-Identifier: Apache-2.0
"""The linear lifting network of Martinez et al., the usual baseline."""

from torch import Tensor, nn


class LinearLifter(nn.Module):
    """Lifts 2-D poses to 3-D by fully connected residual blocks.

    Linear, then `blocks` times [linear, batch norm, ReLU, dropout, twice; plus its input], then linear. The published
    network may also bound the norm of its weights; this one does not.

    Args:
        joints: number of joints.
        channels: width.
        blocks: residual blocks.
        dropout: probability that a number is dropped in training.

    Source:
        Martinez et al., A simple yet effective baseline for 3d human pose estimation, ICCV 2017.
    """

    def __init__(self, joints: int = 17, channels: int = 1024, blocks: int = 2, dropout: float = 0.5) -> None:
        super().__init__()
        self.joints = joints
        self.first = _layer(2 * joints, channels, dropout)
        self.blocks = nn.ModuleList(
            nn.Sequential(_layer(channels, channels, dropout), _layer(channels, channels, dropout))
            for _ in range(blocks)
        )
        self.last = nn.Linear(channels, 3 * joints)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, input: Tensor) -> Tensor:
        """Joints (B, joints, 2) to joints (B, joints, 3)."""
        hidden = self.first(input.flatten(1))
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.last(hidden).unflatten(1, (self.joints, 3))


def _layer(inputs: int, outputs: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU(), nn.Dropout(dropout))
