# SPDX-License-Identifier: Apache-2.0
"""The linear lifting network of Martinez et al., the usual baseline."""

import torch
from torch import Tensor, nn


class LinearLifter(nn.Module):
    """Lifts 2-D poses to 3-D by fully connected residual blocks.

    [Linear, batch norm, ReLU, dropout], `blocks` times [twice the same; plus its input], linear. Every coordinate goes
    in and comes out standardised by the training's mean and standard deviation, see `standardise`. The published
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

        for name, numbers in (("input", 2), ("target", 3)):
            self.register_buffer(f"{name}_mean", torch.zeros(joints, numbers))
            self.register_buffer(f"{name}_std", torch.ones(joints, numbers))

    input_mean: Tensor
    input_std: Tensor
    target_mean: Tensor
    target_std: Tensor

    def standardise(self, inputs: Tensor, targets: Tensor) -> None:
        """Take means and deviations from samples (N, joints, 2) and (N, joints, 3); a constant coordinate's is 1."""
        for name, values in (("input", inputs), ("target", targets)):
            deviation = values.std(0)
            getattr(self, f"{name}_mean").copy_(values.mean(0))
            getattr(self, f"{name}_std").copy_(torch.where(deviation < 1e-6, 1.0, deviation))

    def forward(self, input: Tensor) -> Tensor:
        """Joints (B, joints, 2) to joints (B, joints, 3)."""
        hidden = self.first(((input - self.input_mean) / self.input_std).flatten(1))
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.target_mean + self.target_std * self.last(hidden).unflatten(1, (self.joints, 3))


def _layer(inputs: int, outputs: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU(), nn.Dropout(dropout))
