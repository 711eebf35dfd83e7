# SPDX-License-Identifier: Apache-2.0
"""Backbones that training may leave alone."""

from __future__ import annotations

from abc import abstractmethod
from typing import TypeVar

from torch import nn

Self = TypeVar("Self", bound="OnBackbone")


class OnBackbone(nn.Module):
    """A network on a backbone, whose parameters and whose statistics may be frozen, each by itself.

    Args:
        freeze_backbone: the backbone's parameters get no gradients, as published.
        freeze_statistics: the backbone stays in evaluation mode in training too. Published: False, so that the running
            statistics of its batch norms follow the training data even where its parameters are frozen.
    """

    def __init__(self, freeze_backbone: bool, freeze_statistics: bool) -> None:
        super().__init__()
        self.freeze_backbone, self.freeze_statistics = freeze_backbone, freeze_statistics

    @property
    @abstractmethod
    def backbone(self) -> nn.Module:
        """What may be frozen."""

    def train(self: Self, mode: bool = True) -> Self:
        super().train(mode)
        if self.freeze_statistics:
            self.backbone.eval()
        return self
