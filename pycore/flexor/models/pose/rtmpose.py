# SPDX-License-Identifier: Apache-2.0
"""RTMPose: a CSPNeXt, one token a joint, gated attention among the joints, a classification of x and one of y."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._checks import check_images, check_joints
from .resnet import conv3x3

__all__ = ["CSPNeXt", "GatedAttentionUnit", "RTMCCHead", "RTMPose", "rtmpose"]

# Variant: channels of the stem, which double with every stage; blocks of each stage.
VARIANTS = {
    "t": (24, (1, 1, 1, 1)),
    "s": (32, (1, 2, 2, 1)),
    "m": (48, (2, 4, 4, 2)),
    "l": (64, (3, 6, 6, 3)),
    "x": (80, (4, 8, 8, 4)),
}
SPLIT = 2  # classes a pixel


class RTMPose(nn.Module):
    """Images (B, 3, H, W) to classifications of each joint's x (B, joints, 2*W) and y (B, joints, 2*H).

    Class i stands for i/2 pixels of the image; the larger of two joints' highest logits is the surer one.

    Args:
        variant: "t", "s", "m", "l" or "x".
        joints: number of joints; 17 for COCO, 133 for whole bodies.
        input_size: (H, W) of the images; published are (256, 192) and (384, 288). The head's weights depend on it.

    Raises:
        ValueError: an unknown variant, joints below 1, an input_size that is not of two positive multiples of 32;
            images of another shape.
        TypeError: joints that are no integer; images that are not floating point.

    Source:
        Jiang et al., RTMPose: Real-Time Multi-Person Pose Estimation based on MMPose, arXiv 2303.07399; names of
        mmpose's TopdownPoseEstimator with CSPNeXt and RTMCCHead.
    """

    def __init__(self, variant: str = "m", joints: int = 17, input_size: Sequence[int] = (256, 192)) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"RTMPose: variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
        check_joints("RTMPose", joints)
        if len(input_size) != 2 or any(side < 32 or side % 32 for side in input_size):
            raise ValueError(
                f"RTMPose: input_size must be (H, W), both positive multiples of 32, got {tuple(input_size)}"
            )
        self.input_size = tuple(input_size)
        self.backbone = CSPNeXt(*VARIANTS[variant])
        self.head = RTMCCHead(self.backbone.channels, joints, self.input_size)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        check_images("RTMPose", images)
        if images.shape[2:] != self.input_size:
            raise ValueError(
                f"RTMPose: images must be {' x '.join(map(str, self.input_size))}, the input_size that the head was "
                f"built for, got {' x '.join(map(str, images.shape[2:]))}"
            )
        return self.head(self.backbone(images))


class CSPNeXt(nn.Module):
    """Images (B, 3, H, W) to features (B, `channels`, H/32, W/32): a stem and four stages, each half the size.

    A stage is a strided convolution and a `CSPLayer`; the last has pooling between the two, and no shortcuts.

    Args:
        width: channels of the stem; each stage has twice those of the one before.
        blocks: of each stage.

    Source:
        Lyu et al., RTMDet: An Empirical Study of Designing Real-Time Object Detectors, arXiv 2212.07784, section 3.2.
    """

    def __init__(self, width: int, blocks: Sequence[int]) -> None:
        super().__init__()
        half = width // 2
        self.stem = nn.Sequential(_Conv(3, half, 3, 2), _Conv(half, half, 3), _Conv(half, width, 3))
        self.stage1 = nn.Sequential(_Conv(width, 2 * width, 3, 2), CSPLayer(2 * width, blocks[0]))
        self.stage2 = nn.Sequential(_Conv(2 * width, 4 * width, 3, 2), CSPLayer(4 * width, blocks[1]))
        self.stage3 = nn.Sequential(_Conv(4 * width, 8 * width, 3, 2), CSPLayer(8 * width, blocks[2]))
        self.channels = 16 * width
        self.stage4 = nn.Sequential(
            _Conv(8 * width, self.channels, 3, 2),
            _PyramidPooling(self.channels),
            CSPLayer(self.channels, blocks[3], shortcut=False),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.stage4(self.stage3(self.stage2(self.stage1(self.stem(images)))))


class _Conv(nn.Module):
    """Convolution, batch norm, SiLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        if kernel == 3:
            self.conv = conv3x3(inputs, outputs, stride)
        else:
            self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.bn(self.conv(x)), inplace=True)


class CSPLayer(nn.Module):
    """Half the channels through the blocks, half past them; then channel attention, and a 1x1 convolution of both.

        final_conv(attention([blocks(main_conv(x)), short_conv(x)]))

    Args:
        channels: of input and output.
        blocks: how many there are.
        shortcut: whether each block's input is added to its output.

    Source:
        Lyu et al., arXiv 2212.07784, figure 3.
    """

    def __init__(self, channels: int, blocks: int, shortcut: bool = True) -> None:
        super().__init__()
        half = channels // 2
        self.main_conv = _Conv(channels, half, 1)
        self.short_conv = _Conv(channels, half, 1)
        self.final_conv = _Conv(channels, channels, 1)
        self.blocks = nn.Sequential(*(_Block(half, shortcut) for _ in range(blocks)))
        self.attention = _ChannelAttention(channels)

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.cat((self.blocks(self.main_conv(x)), self.short_conv(x)), 1)
        return self.final_conv(self.attention(joined))


class _Block(nn.Module):
    """A 3x3 convolution, then a 5x5 one, depth-wise and point-wise."""

    def __init__(self, channels: int, shortcut: bool) -> None:
        super().__init__()
        self.conv1 = _Conv(channels, channels, 3)
        self.conv2 = _Separable(channels, 5)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.conv1(x))
        return y + x if self.shortcut else y


class _Separable(nn.Module):
    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.depthwise_conv = _Conv(channels, channels, kernel, groups=channels)
        self.pointwise_conv = _Conv(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise_conv(self.depthwise_conv(x))


class _ChannelAttention(nn.Module):
    """x * hardsigmoid(fc(mean of x over its positions))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.fc.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return x * F.hardsigmoid(self.fc(x.mean((2, 3), keepdim=True)))


class _PyramidPooling(nn.Module):
    """The input and its maxima over 5x5, 9x9 and 13x13 pixels, between two 1x1 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = _Conv(channels, channels // 2, 1)
        self.conv2 = _Conv(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        maxima = [self.conv1(x)]
        for _ in range(3):  # the maximum over 5x5 pixels of those over 5x5 is that over 9x9
            maxima.append(F.max_pool2d(maxima[-1], 5, 1, 2))
        return self.conv2(torch.cat(maxima, 1))


class RTMCCHead(nn.Module):
    """Features (B, inputs, H/32, W/32) to logits over x (B, joints, 2*W) and y (B, joints, 2*H).

        tokens = mlp(flatten(final_layer(features)));  (cls_x(gau(tokens)), cls_y(gau(tokens)))

    Args:
        inputs: channels of the features.
        joints: number of joints, each of which is one token.
        input_size: (H, W) of the images.

    Source:
        Jiang et al., arXiv 2303.07399, figure 3 and section 3.2.
    """

    def __init__(self, inputs: int, joints: int, input_size: Sequence[int], hidden: int = 256) -> None:
        super().__init__()
        height, width = input_size
        positions = height // 32 * (width // 32)
        self.final_layer = nn.Conv2d(inputs, joints, 7, 1, 3)
        self.mlp = nn.Sequential(_ScaleNorm(positions), nn.Linear(positions, hidden, bias=False))
        self.gau = GatedAttentionUnit(hidden)
        self.cls_x = nn.Linear(hidden, SPLIT * width, bias=False)
        self.cls_y = nn.Linear(hidden, SPLIT * height, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
        nn.init.normal_(self.final_layer.weight, std=0.001)
        nn.init.zeros_(self.final_layer.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.gau(self.mlp(self.final_layer(features).flatten(2)))
        return self.cls_x(tokens), self.cls_y(tokens)


class GatedAttentionUnit(nn.Module):
    """Every token looks at all others, gated by itself: x (B, K, channels) to the same.

        u, v, s = silu(uv(ln(x)));  q, k = gamma s + beta;  y = res_scale x + o(u * (relu(q k^T / sqrt(128))^2 v))

    u and v have twice the channels of x, s has 128.

    Args:
        channels: of each token.

    Source:
        Hua et al., Transformer Quality in Linear Time, ICML 2022, section 3, in the variant of RTMPose: the square of
        a ReLU for the softmax, no relative bias.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.sizes = (2 * channels, 2 * channels, 128)
        self.gamma = nn.Parameter(torch.rand(2, 128))
        self.beta = nn.Parameter(torch.rand(2, 128))
        self.o = nn.Linear(2 * channels, channels, bias=False)
        self.uv = nn.Linear(channels, sum(self.sizes), bias=False)
        self.ln = _ScaleNorm(channels)
        self.res_scale = _Scale(channels)

    def forward(self, x: Tensor) -> Tensor:
        u, v, shared = F.silu(self.uv(self.ln(x)), inplace=True).split(self.sizes, -1)
        query, key = (shared.unsqueeze(2) * self.gamma + self.beta).unbind(2)
        attention = F.relu(query @ key.transpose(1, 2) / 128**0.5).square()
        return self.res_scale(x) + self.o(u * (attention @ v))


class _ScaleNorm(nn.Module):
    """g * x / max(root mean square of x, 1e-5), along the last dimension."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.scale = size**-0.5
        self.g = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True) * self.scale
        return x / norm.clamp(min=1e-5) * self.g


class _Scale(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def rtmpose(variant: str = "m", joints: int = 17, input_size: Sequence[int] = (256, 192)) -> RTMPose:
    """RTMPose "t", "s", "m", "l" or "x", of 3.3 to 49 million parameters; see `RTMPose`."""
    return RTMPose(variant, joints, input_size)
