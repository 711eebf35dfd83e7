# SPDX-License-Identifier: Apache-2.0
"""Omni-dimensional dynamic convolution, 2-D and 1-D, and what goes with training it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..ops import odconv1d, odconv2d
from ._attention import OmniAttention, OneValueBatchNorm2d

Size = int | Sequence[int]
Layer = TypeVar("Layer", bound="ODConvNd")


class ODConvNd(nn.Module):
    """What ODConv1d and ODConv2d have in common: kernels, attention, temperature."""

    def __init__(
        self,
        in_planes: int,
        out_planes: int,
        kernel_size: tuple[int, ...],
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        dilation: tuple[int, ...],
        groups: int,
        reduction: float,
        kernel_num: int,
        norm: str,
        min_channel: int,
        bias: bool,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if groups < 1 or in_planes % groups != 0 or out_planes % groups != 0:
            raise ValueError(
                f"{name}: in_planes and out_planes must be multiples of groups = {groups}, "
                f"got {in_planes} and {out_planes}"
            )
        if kernel_num < 1:
            raise ValueError(f"{name}: kernel_num must be at least 1, got {kernel_num}")
        self.in_planes, self.out_planes = in_planes, out_planes
        self.kernel_size, self.stride, self.padding, self.dilation = kernel_size, stride, padding, dilation
        self.groups, self.kernel_num = groups, kernel_num
        taps = torch.Size(kernel_size).numel()
        self.attention = OmniAttention(in_planes, out_planes, taps, groups, reduction, kernel_num, min_channel, norm)
        # Random already: as the published layer draws twice, the same seed gives the same kernels.
        self.weight = nn.Parameter(torch.randn(kernel_num, out_planes, in_planes // groups, *kernel_size))
        if bias:
            self.bias = nn.Parameter(torch.empty(out_planes))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for kernel in self.weight.detach():
            nn.init.kaiming_normal_(kernel, mode="fan_out", nonlinearity="relu")
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def update_temperature(self, temperature: float) -> None:
        """Sets what the attentions are divided by before their sigmoid or softmax; not in the state_dict."""
        self.attention.update_temperature(temperature)

    def extra_repr(self) -> str:
        parts = [f"{self.in_planes}, {self.out_planes}, kernel_size={self.kernel_size}, stride={self.stride}"]
        if any(self.padding):
            parts.append(f"padding={self.padding}")
        if any(d != 1 for d in self.dilation):
            parts.append(f"dilation={self.dilation}")
        if self.groups != 1:
            parts.append(f"groups={self.groups}")
        parts.append(f"kernel_num={self.kernel_num}")
        if self.bias is not None:
            parts.append("bias=True")
        if self.attention.temperature != 1:
            parts.append(f"temperature={self.attention.temperature}")
        return ", ".join(parts)


class ODConv2d(ODConvNd):
    """Convolution whose kernels depend on the sample, through attentions to channels, filters, taps and kernels.

        c, f, s, a = attention(input);  output = f * sum over i of a_i * conv(c * input, s * weight_i)

    Args:
        in_planes, out_planes: channels of input and output.
        kernel_size, stride, padding, dilation: ints or (y, x).
        groups: number of groups that channels and filters are cut into.
        reduction: hidden channels of the attention per input channel.
        kernel_num: number n of kernels that are mixed.
        norm: normalisation in the attention: "bn" as published, "ln", or "none".
        min_channel: least number of hidden channels of the attention.
        bias: adds a bias to the output, after the attention to filters; the published layer has none.

    Raises:
        ValueError: when groups does not divide the channels, for kernel_num < 1 or an unknown norm.

    Notes:
        Arguments, state_dict and initialisation are the published ones. The temperature is 1 at first and is not
        saved: training starts at 30 and anneals it (`annealed_temperature`), inference needs 1. The batch
        normalisation in the attention sees one value a channel and sample; in training with one sample its running
        statistics serve and stay as they are, where the published layer raises.

    Source:
        Li, Zhou and Yao, Omni-Dimensional Dynamic Convolution, ICLR 2022; `flexor.ops.odconv2d`.
    """

    def __init__(
        self,
        in_planes: int,
        out_planes: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        reduction: float = 0.0625,
        kernel_num: int = 4,
        *,
        norm: str = "bn",
        min_channel: int = 16,
        bias: bool = False,
    ) -> None:
        geometry = (_sizes(value, 2) for value in (kernel_size, stride, padding, dilation))
        super().__init__(in_planes, out_planes, *geometry, groups, reduction, kernel_num, norm, min_channel, bias)

    def forward(self, input: Tensor) -> Tensor:
        channel, filter, spatial, kernel = self.attention(input)
        if torch.jit.is_scripting():
            output = torch.ops.flexor.odconv2d(
                input, self.weight, channel, filter, spatial, kernel,
                self.stride, self.padding, self.dilation, self.groups, None,
            )  # fmt: skip
        else:
            output = odconv2d(
                input, self.weight, channel, filter, spatial, kernel,
                self.stride, self.padding, self.dilation, self.groups,
            )  # fmt: skip
        if self.bias is not None:
            output = output + self.bias[:, None, None]
        return output

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, kernel_num: int = 4, reduction: float = 0.0625, norm: str = "bn") -> ODConv2d:
        """Starts from a trained static convolution: at first the same output, at every temperature.

        All kernels are copies of conv's, and the heads of the attentions to channels, filters and taps start at zero,
        so that each of these attentions is 1/2; the kernels are scaled by 2 for each. The attention to kernels starts
        at random, as ever: what it gives differs between samples and kernels, and training tells the copies apart.

        Args:
            conv: zeros around the input, any groups.
            kernel_num, reduction, norm: as for the class.

        Returns:
            A layer with conv's dtype, device and training flag; conv is not changed.

        Raises:
            TypeError: conv is no `torch.nn.Conv2d`.
            NotImplementedError: padding other than with zeros, or not the same on both sides.
        """
        if not isinstance(conv, nn.Conv2d):
            raise TypeError(f"ODConv2d.from_conv: conv must be a torch.nn.Conv2d, got {type(conv).__name__}")
        layer = cls(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, _static_padding(conv), conv.dilation,
            conv.groups, reduction, kernel_num, norm=norm, bias=conv.bias is not None,
        ).to(conv.weight)  # fmt: skip
        attention, scale = layer.attention, 1.0
        with torch.no_grad():
            for head in (attention.channel_fc, attention.filter_fc, attention.spatial_fc):
                if head is not None:
                    nn.init.zeros_(head.weight)
                    scale *= 2
            layer.weight.copy_(scale * conv.weight)
            if conv.bias is not None:
                layer.bias.copy_(conv.bias)
        return layer.train(conv.training)


class ODConv1d(ODConvNd):
    """`ODConv2d` along one axis: input (B, in_planes, L), kernels (n, out_planes, in_planes / groups, k).

    Args:
        in_planes, out_planes, groups, reduction, kernel_num, norm, min_channel, bias: as for `ODConv2d`.
        kernel_size, stride, padding, dilation: ints, in positions of the sequence.

    Raises:
        ValueError: as `ODConv2d`.

    Source:
        `ODConv2d`, whose attention this has, 1x1 layers included; `flexor.ops.odconv1d`.
    """

    def __init__(
        self,
        in_planes: int,
        out_planes: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        reduction: float = 0.0625,
        kernel_num: int = 4,
        *,
        norm: str = "bn",
        min_channel: int = 16,
        bias: bool = False,
    ) -> None:
        geometry = (_sizes(value, 1) for value in (kernel_size, stride, padding, dilation))
        super().__init__(in_planes, out_planes, *geometry, groups, reduction, kernel_num, norm, min_channel, bias)

    def forward(self, input: Tensor) -> Tensor:
        channel, filter, spatial, kernel = self.attention(input)
        if torch.jit.is_scripting():
            output = torch.ops.flexor.odconv2d(
                input.unsqueeze(2), self.weight.unsqueeze(3), channel, filter, spatial, kernel,
                (1, self.stride[0]), (0, self.padding[0]), (1, self.dilation[0]), self.groups, None,
            ).squeeze(2)  # fmt: skip
        else:
            output = odconv1d(
                input, self.weight, channel, filter, spatial, kernel,
                self.stride[0], self.padding[0], self.dilation[0], self.groups,
            )  # fmt: skip
        return output if self.bias is None else output + self.bias[:, None]


def annealed_temperature(iteration: int, total: int, start: float = 30.0) -> float:
    """The temperature of ODConv's attentions in training: from start down to 1 in a straight line, then 1.

        temperature = 1 + (start - 1) * max(0, total - iteration) / total

    Args:
        iteration: updates done so far, over all epochs.
        total: updates until the temperature is 1; published: those of the first 10 epochs.
        start: temperature of iteration 0.

    Returns:
        What `update_temperature` takes.

    Raises:
        ValueError: a total below 1 or a negative iteration.

    Source:
        Li, Zhou and Yao, Omni-Dimensional Dynamic Convolution, ICLR 2022.
    """
    if total < 1 or iteration < 0:
        raise ValueError(
            f"annealed_temperature: total must be positive and iteration not negative, got {total} and {iteration}"
        )
    return 1 + (start - 1) * max(0, total - iteration) / total


def update_temperature(model: nn.Module, temperature: float) -> None:
    """Sets the temperature of everything inside a model that has a method of this name.

    Args:
        model: any module, its dynamic layers anywhere inside.
        temperature: positive; 1 for inference.

    Raises:
        ValueError: a temperature that is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"update_temperature: temperature must be positive, got {temperature}")
    for module in model.modules():
        if module is not model and hasattr(module, "update_temperature"):
            module.update_temperature(temperature)


def fuse_odconv_bn_eval(odconv: Layer, bn: nn.modules.batchnorm._BatchNorm) -> Layer:
    """An ODConv that also does the batch normalisation after it, in inference.

    With gamma / sigma folded into the filters of every kernel and the shift as a bias after the attention to filters:

        gamma / sigma * (f * z - mean) + beta = f * (gamma / sigma * z) + (beta - gamma / sigma * mean)

    Args:
        odconv: an `ODConv2d` or `ODConv1d`.
        bn: with running statistics, as many channels as the filters.

    Returns:
        A copy in evaluation mode; neither argument changes.

    Raises:
        ValueError: either module is in training mode, bn has no running statistics, or channels that differ.
    """
    if odconv.training or bn.training or bn.running_mean is None or bn.running_var is None:
        raise ValueError("fuse_odconv_bn_eval: both modules must be in evaluation mode, bn with running statistics")
    if bn.num_features != odconv.out_planes:
        raise ValueError(
            f"fuse_odconv_bn_eval: bn.num_features must be odconv.out_planes = {odconv.out_planes}, "
            f"got {bn.num_features}"
        )
    fused = copy.deepcopy(odconv)
    with torch.no_grad():
        scale = (bn.running_var + bn.eps).rsqrt()
        if bn.weight is not None:
            scale = scale * bn.weight
        before = -bn.running_mean if odconv.bias is None else odconv.bias - bn.running_mean
        shift = before * scale if bn.bias is None else before * scale + bn.bias
        fused.weight.mul_(scale.reshape(-1, *[1] * (fused.weight.dim() - 2)))
        fused.bias = nn.Parameter(shift.to(fused.weight))
    return fused


def adopt(module: Any) -> None:
    """Turns a published ODConv2d layer, whose attributes these are, into an `ODConv2d` that is the same object."""
    attention = module.attention
    for name in ("kernel_size", "stride", "padding", "dilation"):
        setattr(module, name, _sizes(getattr(module, name), 2))
    if not hasattr(module, "bias"):
        module.register_parameter("bias", None)
    for owner in (module, attention):  # bound methods of the old class, chosen once and kept on the instance
        for name in ("_forward_impl", "func_channel", "func_filter", "func_spatial", "func_kernel"):
            vars(owner).pop(name, None)
    for name in ("filter_fc", "spatial_fc", "kernel_fc"):
        if not hasattr(attention, name):
            setattr(attention, name, None)
    if type(attention.bn) is nn.BatchNorm2d:
        attention.bn.__class__ = OneValueBatchNorm2d
    attention.__class__ = OmniAttention
    module.__class__ = ODConv2d


def looks_published(module: nn.Module) -> bool:
    """Whether a module that is called ODConv2d has the parts of the published one, and no others."""
    attention = getattr(module, "attention", None)
    if not isinstance(attention, nn.Module):
        return False
    heads = {"filter_fc", "spatial_fc", "kernel_fc"}
    parts = {name for name, _ in attention.named_children()} - {"avgpool", "relu"}
    geometry = ("in_planes", "out_planes", "kernel_size", "stride", "padding", "dilation", "groups", "kernel_num")
    weight = getattr(module, "weight", None)
    return (
        [name for name, _ in module.named_children()] == ["attention"]
        and [name for name, _ in module.named_parameters(recurse=False)] == ["weight"]
        and all(hasattr(module, name) for name in geometry)
        and isinstance(weight, Tensor)
        and weight.dim() == 5
        and parts - heads == {"fc", "bn", "channel_fc"}
        and not dict(attention.named_parameters(recurse=False))
        and hasattr(attention, "temperature")
    )


def _sizes(value: Size, dims: int) -> tuple[int, ...]:
    sizes = (value,) * dims if isinstance(value, int) else tuple(value)
    if len(sizes) != dims:
        raise ValueError(f"ODConv{dims}d: sizes must be an int or {dims} of them, got {value}")
    return sizes


def _static_padding(conv: nn.Conv2d) -> tuple[int, ...]:
    if conv.padding_mode != "zeros":
        raise NotImplementedError(f"ODConv2d.from_conv: padding_mode must be 'zeros', got {conv.padding_mode!r}")
    if not isinstance(conv.padding, str):
        return conv.padding
    total = [
        0 if conv.padding == "valid" else d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)
    ]
    if any(t % 2 for t in total):
        raise NotImplementedError(
            f"ODConv2d.from_conv: padding 'same' must be the same on both sides, got kernel {conv.kernel_size}, "
            f"dilation {conv.dilation}"
        )
    return tuple(t // 2 for t in total)
