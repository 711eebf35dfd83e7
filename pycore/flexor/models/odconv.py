# SPDX-License-Identifier: Apache-2.0
"""ResNets and MobileNetV2s of omni-dimensional dynamic convolutions, with the published names and parameters."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn import ODConv2d, update_temperature
from ._odconv_tools import Count, convert, count, fuse

__all__ = [
    "Count",
    "ODMobileNetV2",
    "ODResNet",
    "convert",
    "count",
    "fuse",
    "load_official",
    "od_mobilenetv2_050",
    "od_mobilenetv2_075",
    "od_mobilenetv2_100",
    "od_resnet18",
    "od_resnet34",
    "od_resnet50",
    "od_resnet101",
]

Model = TypeVar("Model", bound=nn.Module)


class _ODNet(nn.Module):
    def net_update_temperature(self, temperature: float) -> None:
        """Sets the temperature of every layer; `flexor.nn.annealed_temperature` says to what."""
        update_temperature(self, temperature)

    def _initialize(self) -> None:
        """As published: also the layers inside the attentions, not the kernels of the ODConvs."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.zeros_(module.bias)


class BasicBlock(nn.Module):
    """Two 3x3 ODConvs and a shortcut."""

    expansion = 1

    def __init__(self, inplanes: int, planes: int, stride: int, shortcut: nn.Module | None, options: dict[str, Any]):
        super().__init__()
        self.conv1 = ODConv2d(inplanes, planes, 3, stride, 1, **options)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = ODConv2d(planes, planes, 3, 1, 1, **options)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + identity)


class Bottleneck(nn.Module):
    """ODConvs of 1x1, 3x3 (which has the stride) and 1x1, and a shortcut."""

    expansion = 4

    def __init__(self, inplanes: int, planes: int, stride: int, shortcut: nn.Module | None, options: dict[str, Any]):
        super().__init__()
        outplanes = planes * self.expansion
        self.conv1 = ODConv2d(inplanes, planes, 1, **options)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = ODConv2d(planes, planes, 3, stride, 1, **options)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = ODConv2d(planes, outplanes, 1, **options)
        self.bn3 = nn.BatchNorm2d(outplanes)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + identity)


class ODResNet(_ODNet):
    """A ResNet all of whose blocks are ODConvs; the stem, the shortcuts and the classifier stay static.

    Args:
        block: `BasicBlock` or `Bottleneck`.
        layers: blocks in each of the four stages.
        num_classes: outputs of the classifier.
        dropout: share of features dropped before it; published: 0.1, and 0.2 for ResNet-18 with four kernels.
        reduction, kernel_num: of every `flexor.nn.ODConv2d`.
        norm: as there.

    Source:
        Li, Zhou and Yao, Omni-Dimensional Dynamic Convolution, ICLR 2022.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: Sequence[int],
        num_classes: int = 1000,
        dropout: float = 0.1,
        reduction: float = 0.0625,
        kernel_num: int = 1,
        norm: str = "bn",
    ) -> None:
        super().__init__()
        options: dict[str, Any] = {"reduction": reduction, "kernel_num": kernel_num, "norm": norm}
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels, stages = 64, []
        for stage, blocks in enumerate(layers):
            planes, made = 64 * 2**stage, []
            for index in range(blocks):
                made.append(_block(block, channels, planes, 2 if stage > 0 and index == 0 else 1, options))
                channels = planes * block.expansion
            stages.append(nn.Sequential(*made))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)
        self._initialize()

    def forward(self, input: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(input))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.dropout(self.avgpool(x).flatten(1)))


def _block(kind: Any, inplanes: int, planes: int, stride: int, options: dict[str, Any]) -> nn.Module:
    outplanes, shortcut = planes * kind.expansion, None
    if stride != 1 or inplanes != outplanes:
        shortcut = nn.Sequential(nn.Conv2d(inplanes, outplanes, 1, stride, bias=False), nn.BatchNorm2d(outplanes))
    return kind(inplanes, planes, stride, shortcut, options)


class InvertedResidual(nn.Module):
    """MobileNetV2's block: a 1x1 ODConv that widens, a depth-wise 3x3 one, a 1x1 one that narrows."""

    def __init__(self, inp: int, oup: int, stride: int, expand_ratio: int, options: dict[str, Any]) -> None:
        super().__init__()
        self.use_res_connect = stride == 1 and inp == oup
        hidden = inp * expand_ratio
        widen = [] if expand_ratio == 1 else [_conv_bn_relu(ODConv2d(inp, hidden, 1, **options))]
        depthwise = _conv_bn_relu(ODConv2d(hidden, hidden, 3, stride, 1, groups=hidden, **options))
        self.conv = nn.Sequential(*widen, depthwise, ODConv2d(hidden, oup, 1, **options), nn.BatchNorm2d(oup))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.use_res_connect else self.conv(x)


class ODMobileNetV2(_ODNet):
    """A MobileNetV2 whose convolutions but the first are ODConvs.

    Args:
        num_classes: outputs of the classifier.
        width_mult: factor on the channels, which are rounded to multiples of 8.
        dropout: share of features dropped before the classifier.
        reduction, kernel_num, norm: of every `flexor.nn.ODConv2d`.

    Source:
        Sandler et al., MobileNetV2, CVPR 2018, table 2; Li, Zhou and Yao, Omni-Dimensional Dynamic Convolution,
        ICLR 2022.
    """

    # Expansion, channels, blocks, stride of the first.
    STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))

    def __init__(
        self,
        num_classes: int = 1000,
        width_mult: float = 1.0,
        dropout: float = 0.2,
        reduction: float = 0.0625,
        kernel_num: int = 1,
        norm: str = "bn",
    ) -> None:
        super().__init__()
        options: dict[str, Any] = {"reduction": reduction, "kernel_num": kernel_num, "norm": norm}
        channels = _to_eights(32 * width_mult)
        features: list[nn.Module] = [_conv_bn_relu(nn.Conv2d(3, channels, 3, 2, 1, bias=False))]
        for expansion, planes, blocks, stride in self.STAGES:
            width = _to_eights(planes * width_mult)
            for index in range(blocks):
                features.append(InvertedResidual(channels, width, 1 if index else stride, expansion, options))
                channels = width
        last = _to_eights(1280 * max(1.0, width_mult))
        features.append(_conv_bn_relu(ODConv2d(channels, last, 1, **options)))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(last, num_classes))
        self._initialize()

    def forward(self, input: Tensor) -> Tensor:
        return self.classifier(self.features(input).mean((2, 3)))


def _conv_bn_relu(conv: ODConv2d | nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(conv, nn.BatchNorm2d(conv.weight.shape[-4]), nn.ReLU6(inplace=True))


def _to_eights(channels: float) -> int:
    """The nearest multiple of 8, at least 8 and at least 90 % of channels."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


def od_resnet18(**options: Any) -> ODResNet:
    """ResNet-18 of ODConvs; options as for `ODResNet` from num_classes on."""
    return ODResNet(BasicBlock, (2, 2, 2, 2), **options)


def od_resnet34(**options: Any) -> ODResNet:
    """ResNet-34 of ODConvs; options as for `ODResNet` from num_classes on."""
    return ODResNet(BasicBlock, (3, 4, 6, 3), **options)


def od_resnet50(**options: Any) -> ODResNet:
    """ResNet-50 of ODConvs; options as for `ODResNet` from num_classes on."""
    return ODResNet(Bottleneck, (3, 4, 6, 3), **options)


def od_resnet101(**options: Any) -> ODResNet:
    """ResNet-101 of ODConvs; options as for `ODResNet` from num_classes on."""
    return ODResNet(Bottleneck, (3, 4, 23, 3), **options)


def od_mobilenetv2_050(**options: Any) -> ODMobileNetV2:
    """Half as wide a MobileNetV2 of ODConvs; options as for `ODMobileNetV2`."""
    return ODMobileNetV2(width_mult=0.5, **options)


def od_mobilenetv2_075(**options: Any) -> ODMobileNetV2:
    """Three quarters as wide a MobileNetV2 of ODConvs; options as for `ODMobileNetV2`."""
    return ODMobileNetV2(width_mult=0.75, **options)


def od_mobilenetv2_100(**options: Any) -> ODMobileNetV2:
    """A MobileNetV2 of ODConvs; options as for `ODMobileNetV2`."""
    return ODMobileNetV2(width_mult=1.0, **options)


def load_official(model: Model, path: str | os.PathLike[str]) -> Model:
    """Loads a checkpoint of the authors' training script, or a bare state_dict, into a model of this module.

    Args:
        model: with the kernel_num, width and classes of the checkpoint.
        path: a file of `torch.save`. Tensors and plain containers are read from it, never code.

    Returns:
        The model.

    Raises:
        ValueError: no such file of tensors, or keys or shapes that do not fit, with their names. The model is then
            unchanged.

    Source:
        The checkpoints of https://github.com/OSVAI/ODConv: `state_dict` under that key, names with `module.` before.
    """
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"load_official: {os.fspath(path)} is no checkpoint of plain tensors: {error}") from error
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"load_official: {os.fspath(path)} holds no state_dict, but {type(loaded).__name__}")
    state = {key.removeprefix("module."): value for key, value in state.items()}
    problems = _misfits(model.state_dict(), state)
    if problems:
        raise ValueError(f"load_official: {os.fspath(path)} does not fit the model: {'; '.join(problems)}")
    model.load_state_dict(state)
    return model


def _misfits(own: dict[str, Tensor], given: dict[str, Tensor]) -> list[str]:
    problems = []
    for what, keys in (("missing", own.keys() - given.keys()), ("unexpected", given.keys() - own.keys())):
        if keys:
            some = ", ".join(sorted(keys)[:3])
            problems.append(f"{len(keys)} keys are {what} ({some}{', ...' if len(keys) > 3 else ''})")
    differ = [key for key in own if key in given and own[key].shape != given[key].shape]
    if differ:
        key = differ[0]
        problems.append(
            f"{len(differ)} shapes differ ({key} has {tuple(given[key].shape)}, the model {tuple(own[key].shape)})"
        )
    kernels = [{len(value) for value in state.values() if value.dim() == 5} for state in (own, given)]
    if problems and kernels[0] != kernels[1] and all(len(numbers) == 1 for numbers in kernels):
        problems.append(f"its kernel_num is {kernels[1].pop()}, the model's {kernels[0].pop()}")
    return problems
