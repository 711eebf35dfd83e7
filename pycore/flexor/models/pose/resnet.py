# SPDX-License-Identifier: Apache-2.0
"""Residual blocks, and the ResNet that pose networks are built on, with torchvision's names."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ._checks import check_images

__all__ = ["BasicBlock", "Bottleneck", "ResNet"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut.

        y = relu(bn2(conv2(relu(bn1(conv1(x))))) + downsample(x))

    Args:
        inputs: channels of x.
        planes: channels of y.
        stride: of conv1. Where it is not 1, or the channels differ, downsample is a 1x1 convolution and batch norm.

    Source:
        He et al., Deep Residual Learning for Image Recognition, CVPR 2016, figure 5 left.
    """

    expansion = 1

    def __init__(self, inputs: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, planes, stride)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = conv3x3(planes, planes)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = _shortcut(inputs, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        y += self.downsample(x)
        return F.relu(y, inplace=True)


class Bottleneck(nn.Module):
    """Convolutions of 1x1, 3x3 and 1x1 around a shortcut; the last has four times as many channels.

        y = relu(bn3(conv3(relu(bn2(conv2(relu(bn1(conv1(x)))))))) + downsample(x))

    Args:
        inputs: channels of x.
        planes: channels of the 3x3 convolution; y has 4*planes.
        stride: of the 3x3 convolution. Where it is not 1, or the channels differ, downsample is a 1x1 convolution and
            batch norm.

    Source:
        He et al., Deep Residual Learning for Image Recognition, CVPR 2016, figure 5 right, with the stride in the 3x3
        convolution, where torchvision has it.
    """

    expansion = 4

    def __init__(self, inputs: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        outputs = planes * self.expansion
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = conv3x3(planes, planes, stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        y += self.downsample(x)
        return F.relu(y, inplace=True)


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution without bias.

    PyTorch's, so that float32 gradients are those of the original: another order of summation switches some ReLUs.
    `for_inference` puts the faster algorithm in its place.
    """
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


# Depth: the block, and how many of it each stage has.
LAYERS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


class ResNet(nn.Module):
    """A ResNet without its classifier: images (B, 3, H, W) to features (B, `channels`, H/32, W/32).

    Its names are torchvision's, so that a state_dict from there loads once `fc.weight` and `fc.bias` are taken out.

    Args:
        depth: 18, 34, 50, 101 or 152.

    Raises:
        ValueError: another depth; images of another shape, or with sides that are not multiples of 32.
        TypeError: images that are not floating point.

    Source:
        He et al., Deep Residual Learning for Image Recognition, CVPR 2016, table 1; initialisation as torchvision's.
    """

    def __init__(self, depth: int = 50) -> None:
        super().__init__()
        if depth not in LAYERS:
            raise ValueError(f"{type(self).__name__}: depth must be one of {', '.join(map(str, LAYERS))}, got {depth}")
        block, layers = LAYERS[depth]
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = _layer(block, 64, 64, layers[0])
        self.layer2 = _layer(block, 64 * block.expansion, 128, layers[1], 2)
        self.layer3 = _layer(block, 128 * block.expansion, 256, layers[2], 2)
        self.layer4 = _layer(block, 256 * block.expansion, 512, layers[3], 2)
        self.channels = 512 * block.expansion
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        check_images(type(self).__name__, images)
        x = self.maxpool(F.relu(self.bn1(self.conv1(images)), inplace=True))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


def _layer(
    block: type[BasicBlock] | type[Bottleneck], inputs: int, planes: int, blocks: int, stride: int = 1
) -> nn.Sequential:
    further = (block(planes * block.expansion, planes) for _ in range(blocks - 1))
    return nn.Sequential(block(inputs, planes, stride), *further)
