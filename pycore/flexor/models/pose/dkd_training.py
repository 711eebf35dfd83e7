# SPDX-License-Identifier: Apache-2.0
"""How DKD is trained: heatmaps against the truth, and their changes against a discriminator of motion."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .dkd import DKD
from .targets import joints_mse_loss

__all__ = ["DKDLosses", "DKDTraining", "TemporalDiscriminator"]


class TemporalDiscriminator(nn.Module):
    """An auto-encoder of how heatmaps change from one frame to the next, which is shown both frames.

    It learns to reconstruct true changes well and the estimator's badly; how badly it does is what the estimator
    lowers. The frames come down to the heatmaps' size by two strided convolutions; the change joins them, and all go
    down to a quarter of that size and back. Its layers are our choice.

    Args:
        joints: heatmaps.
        width: channels of every hidden layer.

    Source:
        Nie et al., Dynamic Kernel Distillation for Efficient Pose Estimation in Videos, ICCV 2019; an auto-encoder as
        discriminator is that of Berthelot et al., BEGAN, arXiv 1703.10717.
    """

    def __init__(self, joints: int, width: int = 32) -> None:
        super().__init__()
        self.frames = nn.Sequential(*_conv_elu(6, width, 2), *_conv_elu(width, width, 2))
        self.encoder = nn.Sequential(
            *_conv_elu(width + joints, width, 1), *_conv_elu(width, width, 2), *_conv_elu(width, width, 2)
        )
        self.decoder = nn.Sequential(
            nn.Upsample(scale_factor=2), *_conv_elu(width, width, 1),
            nn.Upsample(scale_factor=2), *_conv_elu(width, width, 1),
            nn.Conv2d(width, joints, 3, padding=1),
        )  # fmt: skip

    def forward(self, change: Tensor, frames: Tensor) -> Tensor:
        """A change (N, joints, H/4, W/4) and its two frames (N, 6, H, W), H, W multiples of 16: the same change."""
        return self.decoder(self.encoder(torch.cat((change, self.frames(frames)), 1)))


class DKDLosses(NamedTuple):
    """Of one step: squared error of the heatmaps, of the reconstructed changes, and the balance after it."""

    heatmaps: float
    fake: float
    real: float
    balance: float


class DKDTraining(nn.Module):
    """Trains a DKD and its temporal discriminator D in turn, a step a call.

        d_t = h_t - h_{t-1};   R(d) = mean (d - D(d | I_{t-1}, I_t))^2
        estimator:      mse(h, g) + coherence * R(d of h)
        discriminator:  R(d of g) - kappa * R(d of h);   kappa <- clip(kappa + rate * (equity * R(d of g) - R(d of h)))

    with g the true heatmaps, and kappa from 0 to 1, at first 0. Joints that are not annotated count in neither. A
    temporal discriminator is the paper's, this form of it BEGAN's; coherence, equity, rate, the learning rate and the
    optimizers are our choice.

    Args:
        model: the DKD that is trained.
        joints: its heatmaps.
        coherence: weight of the discriminator's error in the estimator's loss.
        equity: ratio of the errors at which estimator and discriminator are in balance.
        rate: at which kappa moves.
        learning_rate: of both Adam optimizers.
        width: of the discriminator.

    Source:
        Nie et al., ICCV 2019, temporally adversarial training; Berthelot et al., BEGAN, equation 1.
    """

    def __init__(
        self,
        model: DKD,
        joints: int,
        *,
        coherence: float = 0.01,
        equity: float = 0.5,
        rate: float = 0.001,
        learning_rate: float = 5e-4,
        width: int = 32,
    ) -> None:
        super().__init__()
        self.model, self.discriminator = model, TemporalDiscriminator(joints, width)
        self.coherence, self.equity, self.rate = coherence, equity, rate
        self.register_buffer("balance", torch.zeros(()))
        self.optimizer = torch.optim.Adam(model.parameters(), learning_rate)
        self.discriminator_optimizer = torch.optim.Adam(self.discriminator.parameters(), learning_rate)

    balance: Tensor

    def step(self, clip: Tensor, target: Tensor, weights: Tensor) -> DKDLosses:
        """One step of the estimator, then one of the discriminator, on a batch of clips.

        Args:
            clip: (B, T, 3, H, W), T at least 2.
            target: true heatmaps (B, T, joints, H/4, W/4).
            weights: (B, T, joints), 1 where the joint is annotated, else 0.

        Raises:
            ValueError: a clip of one frame; a target or weights of other shapes.
        """
        if clip.dim() != 5 or clip.shape[1] < 2:
            raise ValueError(f"DKDTraining: clip must be (B, T, 3, H, W) with T at least 2, got {tuple(clip.shape)}")
        heatmaps = self.model(clip)
        error = joints_mse_loss(heatmaps.flatten(0, 1), target.flatten(0, 1), weights.flatten(0, 1))
        loss = error + self.coherence * self.reconstruction_error(heatmaps, clip, weights)
        self._descend(self.optimizer, loss)
        fake = self.reconstruction_error(heatmaps.detach(), clip, weights)
        real = self.reconstruction_error(target, clip, weights)
        self._descend(self.discriminator_optimizer, real - self.balance * fake)
        with torch.no_grad():
            self.balance.add_(self.rate * (self.equity * real - fake)).clamp_(0, 1)
        return DKDLosses(float(error.detach()), float(fake.detach()), float(real.detach()), float(self.balance))

    def reconstruction_error(self, heatmaps: Tensor, clip: Tensor, weights: Tensor) -> Tensor:
        """R over all changes of heatmaps (B, T, joints, h, w); a joint counts where it is annotated in both frames."""
        both = (weights[:, 1:] * weights[:, :-1])[..., None, None]
        change = ((heatmaps[:, 1:] - heatmaps[:, :-1]) * both).flatten(0, 1)
        frames = torch.cat((clip[:, :-1], clip[:, 1:]), 2).flatten(0, 1)
        return ((change - self.discriminator(change, frames)) * both.flatten(0, 1)).square().mean()

    def _descend(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _conv_elu(inputs: int, outputs: int, stride: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.ELU()
