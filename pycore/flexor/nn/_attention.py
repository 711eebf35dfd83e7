# SPDX-License-Identifier: Apache-2.0
"""The small network that predicts ODConv's four attentions, under the names that official checkpoints have."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

NORMS = ("bn", "ln", "none")


class OneValueBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d that also trains on one value per channel: its running statistics then serve, and stay as they are.

    `torch.nn.BatchNorm2d` raises there, as in the last, smaller batch of an epoch.
    """

    def forward(self, input: Tensor) -> Tensor:
        learns = self.training
        if learns and input.shape[0] * input.shape[2] * input.shape[3] == 1:
            learns = False
        momentum = 0.0 if self.momentum is None else self.momentum
        if learns and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                momentum = 1.0 / float(self.num_batches_tracked)
        learns = learns or self.running_mean is None
        return F.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, learns, momentum, self.eps
        )


class OmniAttention(nn.Module):
    """Attentions to the channels, filters, taps and kernels of an ODConv, from the mean of each input channel.

        h = relu(norm(fc(mean over p of input[b, c, p])))
        channel, filter, spatial = sigmoid(head(h) / temperature),  kernel = softmax(head(h) / temperature)

    Depth-wise convolutions have no filter attention, those of one tap no spatial and those of one kernel no kernel
    attention.

    Args:
        in_planes, out_planes, taps, groups, kernel_num: of the convolution, taps = kh * kw.
        reduction: hidden channels per input channel.
        min_channel: least number of hidden channels.
        norm: "bn" as published, "ln" over the hidden channels of each sample, or "none".

    Source:
        Li, Zhou and Yao, Omni-Dimensional Dynamic Convolution, ICLR 2022.
    """

    def __init__(
        self,
        in_planes: int,
        out_planes: int,
        taps: int,
        groups: int = 1,
        reduction: float = 0.0625,
        kernel_num: int = 4,
        min_channel: int = 16,
        norm: str = "bn",
    ) -> None:
        super().__init__()
        hidden = max(int(in_planes * reduction), min_channel)
        self.temperature = 1.0
        self.fc = nn.Conv2d(in_planes, hidden, 1, bias=False)
        self.bn = _norm(norm, hidden)
        self.channel_fc = nn.Conv2d(hidden, in_planes, 1)
        self.filter_fc = None if in_planes == out_planes == groups else nn.Conv2d(hidden, out_planes, 1)
        self.spatial_fc = None if taps == 1 else nn.Conv2d(hidden, taps, 1)
        self.kernel_fc = None if kernel_num == 1 else nn.Conv2d(hidden, kernel_num, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for module in self.children():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def update_temperature(self, temperature: float) -> None:
        self.temperature = float(temperature)

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """The attentions to channels, filters, taps and kernels: (B, _) each, None where there is none."""
        hidden = F.linear(input.flatten(2).mean(2), self.fc.weight.flatten(1))
        hidden = self.bn(hidden[:, :, None, None]).flatten(1).relu()
        channel = _head(self.channel_fc.weight, self.channel_fc.bias, hidden, self.temperature).sigmoid()
        filter: Tensor | None = None
        if self.filter_fc is not None:
            filter = _head(self.filter_fc.weight, self.filter_fc.bias, hidden, self.temperature).sigmoid()
        spatial: Tensor | None = None
        if self.spatial_fc is not None:
            spatial = _head(self.spatial_fc.weight, self.spatial_fc.bias, hidden, self.temperature).sigmoid()
        kernel: Tensor | None = None
        if self.kernel_fc is not None:
            kernel = _head(self.kernel_fc.weight, self.kernel_fc.bias, hidden, self.temperature).softmax(1)
        return channel, filter, spatial, kernel


def _head(weight: Tensor, bias: Tensor | None, hidden: Tensor, temperature: float) -> Tensor:
    """A 1x1 convolution of a 1x1 map, over the temperature."""
    scores = F.linear(hidden, weight.flatten(1), bias)
    return scores if temperature == 1.0 else scores / temperature


def _norm(kind: str, channels: int) -> nn.Module:
    if kind not in NORMS:
        raise ValueError(f"OmniAttention: norm must be {' or '.join(map(repr, NORMS))}, got {kind!r}")
    if kind == "ln":
        return nn.GroupNorm(1, channels)  # over one sample's channels: a layer norm, on a map
    return OneValueBatchNorm2d(channels) if kind == "bn" else nn.Identity()
