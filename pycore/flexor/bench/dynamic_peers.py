# SPDX-License-Identifier: Apache-2.0
"""The other ways to compute a dynamic convolution, on the parameters of a `flexor.nn.ODConv2d`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flexor.nn import ODConv2d
from flexor.nn._attention import OmniAttention


class PublishedODConv2d(nn.Module):
    """As published: kernels are built for every sample, and a convolution with a group for each applies them."""

    def __init__(self, layer: ODConv2d) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, input: Tensor) -> Tensor:
        layer = self.layer
        channel, filter, spatial, kernel = attentions(layer.attention, input)
        scaled = spatial.unflatten(2, layer.kernel_size)[:, :, None, None] * layer.weight[None]
        mixed = scaled[:, 0] if kernel is None else (kernel[..., None, None] * scaled).sum(1)
        return convolve_by_sample(layer, input * channel, mixed) * filter


class MatmulODConv2d(nn.Module):
    """A better way in plain PyTorch: kernels are mixed by one matrix product, taps are scaled after it."""

    def __init__(self, layer: ODConv2d) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, input: Tensor) -> Tensor:
        layer = self.layer
        channel, filter, spatial, kernel = attentions(layer.attention, input)
        if kernel is None:
            raise ValueError("MatmulODConv2d: a single kernel is not mixed")
        mixed = (kernel.flatten(1) @ layer.weight.flatten(1)).unflatten(1, layer.weight.shape[1:])
        mixed = mixed * spatial.unflatten(2, layer.kernel_size)[:, :, None]
        return convolve_by_sample(layer, input * channel, mixed) * filter


def attentions(attention: OmniAttention, input: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """To channels, filters, taps and kernels, by convolutions of 1x1 maps: (B, C, 1, 1), (B, 1, taps), (B, n, 1, 1)."""
    filter_fc, spatial_fc, kernel_fc = attention.filter_fc, attention.spatial_fc, attention.kernel_fc
    if filter_fc is None or spatial_fc is None:
        raise ValueError("attentions: depth-wise and 1x1 layers are not among the contests")
    hidden = F.relu(attention.bn(attention.fc(F.adaptive_avg_pool2d(input, 1))))
    temperature = attention.temperature
    return (
        torch.sigmoid(attention.channel_fc(hidden) / temperature),
        torch.sigmoid(filter_fc(hidden) / temperature),
        torch.sigmoid(spatial_fc(hidden) / temperature).flatten(1)[:, None],
        None if kernel_fc is None else torch.softmax(kernel_fc(hidden) / temperature, 1),
    )


def convolve_by_sample(layer: ODConv2d, input: Tensor, kernels: Tensor) -> Tensor:
    """Kernels (B, Co, Ci / groups, kh, kw), each on its own sample, as one convolution of B * groups groups."""
    batch = input.shape[0]
    output = F.conv2d(
        input.reshape(1, -1, *input.shape[2:]),
        kernels.flatten(0, 1),
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=batch * layer.groups,
    )
    return output.reshape(batch, -1, *output.shape[2:])


def published(module: nn.Module) -> nn.Module | None:
    return PublishedODConv2d(module) if isinstance(module, ODConv2d) else None


def mixed_by_matmul(module: nn.Module) -> nn.Module | None:
    return MatmulODConv2d(module) if isinstance(module, ODConv2d) else None


def static(module: nn.Module) -> nn.Module | None:
    """The plain convolution of an ODConv2d's shape, with the first of its kernels."""
    if not isinstance(module, ODConv2d):
        return None
    conv = nn.Conv2d(
        module.in_planes,
        module.out_planes,
        module.kernel_size,
        module.stride,
        module.padding,
        module.dilation,
        module.groups,
        bias=False,
    )
    conv.weight = nn.Parameter(module.weight.detach()[0].clone())
    return conv
