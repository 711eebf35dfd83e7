# SPDX-License-Identifier: Apache-2.0
"""Two older mixtures of kernels, which are ODConv with the attention to kernels alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import odconv2d

Size = int | Sequence[int]
Pair = tuple[int, int]


class CondConv2d(nn.Module):
    """Convolution with a mixture of kernels, whose shares come with every call; timm's CondConv2d.

        output = conv(input, sum over i of routing_i * weight_i) + sum over i of routing_i * bias_i

    Args:
        in_channels, out_channels, kernel_size, stride, dilation, groups, bias: as for `torch.nn.Conv2d`.
        padding: an int or (y, x); "" for half the kernel's extent; "valid" for none; "same" for TensorFlow's, as much
            as makes the output ceil(size / stride), the odd row or column below and to the right.
        num_experts: number of kernels.

    Raises:
        ValueError: when groups does not divide the channels, or for another word as padding.

    Source:
        Yang et al., CondConv, NeurIPS 2019; arguments, parameters and initialisation of
        timm.layers.CondConv2d.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size = 3,
        stride: Size = 1,
        padding: Size | str = "",
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = False,
        num_experts: int = 4,
    ) -> None:
        super().__init__()
        _check_groups("CondConv2d", in_channels, out_channels, groups)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride, self.dilation = _pair(kernel_size), _pair(stride), _pair(dilation)
        self.padding, self.dynamic_padding = self._resolved(padding)
        self.groups, self.num_experts = groups, num_experts
        self.weight_shape = (out_channels, in_channels // groups, *self.kernel_size)
        self.weight = nn.Parameter(torch.empty(num_experts, math.prod(self.weight_shape)))
        if bias:
            self.bias = nn.Parameter(torch.empty(num_experts, out_channels))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for kernel in self.weight.detach():
            nn.init.kaiming_uniform_(kernel.view(self.weight_shape), a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(math.prod(self.weight_shape[1:]))
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor, routing_weights: Tensor) -> Tensor:
        if self.dynamic_padding:
            x = F.pad(x, self._same(x))
        kernels = self.weight.unflatten(1, self.weight_shape)
        output = odconv2d(
            x, kernels, kernel_attention=routing_weights, stride=self.stride, padding=self.padding,
            dilation=self.dilation, groups=self.groups,
        )  # fmt: skip
        return output if self.bias is None else output + (routing_weights @ self.bias)[:, :, None, None]

    def _resolved(self, padding: Size | str) -> tuple[Pair, bool]:
        """Padding in numbers, and whether it depends on the input's size instead."""
        if not isinstance(padding, str):
            return _pair(padding), False
        if padding.lower() not in ("", "same", "valid"):
            raise ValueError(f"CondConv2d: padding must be '', 'same', 'valid' or sizes, got {padding!r}")
        extent = [d * (k - 1) for k, d in zip(self.kernel_size, self.dilation, strict=True)]
        if padding.lower() == "valid":
            return (0, 0), False
        if padding.lower() == "same" and (self.stride != (1, 1) or any(e % 2 for e in extent)):
            return (0, 0), True
        return _pair([(s - 1 + e) // 2 for s, e in zip(self.stride, extent, strict=True)]), False

    def _same(self, x: Tensor) -> list[int]:
        """Left, right, top, bottom."""
        missing = [
            max((math.ceil(size / s) - 1) * s + d * (k - 1) + 1 - size, 0)
            for size, k, s, d in zip(x.shape[2:], self.kernel_size, self.stride, self.dilation, strict=True)
        ]
        return [part for total in reversed(missing) for part in (total // 2, total - total // 2)]


class KernelAttention(nn.Module):
    """Shares of kernels, softmax(fc2(relu(fc1(mean over p of input[b, c, p]))) / temperature): (B, kernel_num)."""

    def __init__(self, in_planes: int, hidden: int, kernel_num: int) -> None:
        super().__init__()
        self.temperature = 1.0
        self.fc1 = nn.Conv2d(in_planes, hidden, 1, bias=False)
        self.fc2 = nn.Conv2d(hidden, kernel_num, 1)
        for conv in (self.fc1, self.fc2):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc2.bias)

    def update_temperature(self, temperature: float) -> None:
        self.temperature = float(temperature)

    def forward(self, input: Tensor) -> Tensor:
        hidden = F.linear(input.flatten(2).mean(2), self.fc1.weight.flatten(1)).relu()
        return (F.linear(hidden, self.fc2.weight.flatten(1), self.fc2.bias) / self.temperature).softmax(1)


class DyConv2d(nn.Module):
    """Convolution with a mixture of kernels whose shares a small network predicts from the input.

        a = attention(input);  output = conv(input, sum over i of a_i * weight_i) + sum over i of a_i * bias_i

    Args:
        in_planes, out_planes, kernel_size, stride, padding, dilation, groups, bias: as for `torch.nn.Conv2d`.
        reduction: hidden channels of the attention per input channel.
        kernel_num: number of kernels.

    Raises:
        ValueError: when groups does not divide the channels.

    Notes:
        The temperature is 1 at first; training starts at 30 and anneals it (`annealed_temperature`).

    Source:
        Chen et al., Dynamic Convolution, CVPR 2020.
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
        bias: bool = True,
        reduction: float = 0.25,
        kernel_num: int = 4,
    ) -> None:
        super().__init__()
        _check_groups("DyConv2d", in_planes, out_planes, groups)
        self.stride, self.padding, self.dilation = _pair(stride), _pair(padding), _pair(dilation)
        self.groups = groups
        self.attention = KernelAttention(in_planes, max(int(in_planes * reduction), kernel_num), kernel_num)
        self.weight = nn.Parameter(torch.empty(kernel_num, out_planes, in_planes // groups, *_pair(kernel_size)))
        if bias:
            self.bias = nn.Parameter(torch.zeros(kernel_num, out_planes))
        else:
            self.register_parameter("bias", None)
        for kernel in self.weight.detach():
            nn.init.kaiming_uniform_(kernel)

    def update_temperature(self, temperature: float) -> None:
        """Sets what the attention is divided by before its softmax; not in the state_dict."""
        self.attention.update_temperature(temperature)

    def forward(self, input: Tensor) -> Tensor:
        attention = self.attention(input)
        output = odconv2d(
            input, self.weight, kernel_attention=attention, stride=self.stride, padding=self.padding,
            dilation=self.dilation, groups=self.groups,
        )  # fmt: skip
        return output if self.bias is None else output + (attention @ self.bias)[:, :, None, None]


def _pair(value: Size) -> Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _check_groups(name: str, channels: int, filters: int, groups: int) -> None:
    if groups < 1 or channels % groups != 0 or filters % groups != 0:
        raise ValueError(
            f"{name}: input and output channels must be multiples of groups = {groups}, got {channels} and {filters}"
        )
