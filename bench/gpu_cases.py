# SPDX-License-Identifier: Apache-2.0
"""What gpu_check.py runs of the dynamic kernels: ODConv, matching and grid convolution, each beside plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from flexor import ops, reference
from gpu_report import Report, check_case

Tensors = list[torch.Tensor]


class Case(NamedTuple):
    """One call of one op, all tensors differentiable."""

    name: str
    op: Callable[..., torch.Tensor]  # takes the tensors and `backend`
    reference: Callable[..., torch.Tensor]
    peer: Callable[..., torch.Tensor]  # what one would write without flexor
    sizes: tuple[tuple[int, ...], ...]  # of the tensors, the first an image
    positive: tuple[int, ...]  # which of them are attentions
    flops: int

    def kernel(self, *tensors: torch.Tensor) -> torch.Tensor:
        return self.op(*tensors, backend="triton")

    def tensors(self, dtype: torch.dtype, channels_last: bool, attention_dtype: torch.dtype) -> Tensors:
        generator = torch.Generator().manual_seed(0)
        made = []
        for i, size in enumerate(self.sizes):
            if i in self.positive:
                made.append(torch.rand(size, generator=generator).to(attention_dtype))
            else:
                scale = size[-1] * size[-2] * size[-3] if i and len(size) > 2 else 1
                made.append((torch.randn(size, generator=generator) / scale**0.5).to(dtype))
        if channels_last:
            made[0] = made[0].to(memory_format=torch.channels_last)
        return made


def odconv(batch: int, channels: int, size: int, kernels: int, groups: int = 1) -> Case:
    """A 3x3 ODConv with every attention."""

    def peer(input, weight, channel, filter, spatial, kernel):
        mixed = torch.einsum("bn,noikl,bkl->boikl", kernel, weight, spatial.view(batch, 3, 3)).to(input.dtype)
        scaled = (input * channel[:, :, None, None]).to(input.dtype).reshape(1, -1, size, size)
        output = F.conv2d(scaled, mixed.flatten(0, 1), padding=1, groups=batch * groups)
        return (output.view(batch, channels, size, size) * filter[:, :, None, None]).to(input.dtype)

    group_channels = channels // groups
    weight = (kernels, channels, group_channels, 3, 3)
    attentions = ((batch, channels), (batch, channels), (batch, 9), (batch, kernels))
    return Case(
        f"odconv {channels}@{size}x{size} n{kernels} g{groups} B{batch}",
        lambda *tensors, backend: ops.odconv2d(*tensors, padding=1, groups=groups, backend=backend),
        lambda *tensors: reference.odconv2d(*tensors, padding=(1, 1), groups=groups),
        peer,
        ((batch, channels, size, size), weight, *attentions),
        (2, 3, 4, 5),
        2 * batch * size * size * channels * group_channels * 9,
    )


def matching(batch: int, channels: int, size: int, outputs: int, kernel: int) -> Case:
    """A cross-correlation with kernels of every image; outputs 0: depth-wise."""
    padding = kernel // 2
    op = ops.xcorr2d if outputs else ops.xcorr2d_depthwise
    twin = reference.xcorr2d if outputs else reference.xcorr2d_depthwise
    one = (outputs, channels) if outputs else (channels,)

    def peer(input, kernels):
        weight = kernels.flatten(0, 1) if outputs else kernels.flatten(0, 1).unsqueeze(1)
        groups = batch if outputs else batch * channels
        output = F.conv2d(input.reshape(1, -1, size, size), weight, padding=padding, groups=groups)
        return output.view(batch, outputs or channels, *output.shape[2:])

    return Case(
        f"xcorr {channels}@{size}x{size} K{outputs or 'depthwise'} k{kernel} B{batch}",
        lambda *tensors, backend: op(*tensors, padding=padding, backend=backend),
        lambda *tensors: twin(*tensors, padding=(padding, padding)),
        peer,
        ((batch, channels, size, size), (batch, *one, kernel, kernel)),
        (),
        2 * batch * (size + 2 * padding - kernel + 1) ** 2 * (outputs or 1) * channels * kernel**2,
    )


def grid(batch: int, channels: int, outputs: int, borders: str, size: int = 5) -> Case:
    """A D-GridConv layer."""

    def peer(input, weight1, weight2, bias1, bias2, attention):
        total = (bias1 + bias2)[:, None]
        for weight, border in zip((weight1, weight2), borders, strict=True):
            mode = {"c": "circular", "r": "replicate", "z": "constant"}[border]
            columns = F.unfold(F.pad(input, (1, 1, 1, 1), mode), 3).unflatten(1, (channels, 9))
            modulated = (columns * attention.flatten(2)[:, None]).to(input.dtype)
            total = total + weight.flatten(1) @ modulated.flatten(1, 2)
        return total.view(batch, outputs, size, size)

    weight = (outputs, channels, 3, 3)
    return Case(
        f"grid {channels}->{outputs} {borders} B{batch}",
        lambda *tensors, backend: ops.grid_conv(*tensors, borders=borders, backend=backend),
        lambda *tensors: reference.grid_conv(*tensors, borders),
        peer,
        ((batch, channels, size, size), weight, weight, (outputs,), (outputs,), (batch, 9, size, size)),
        (5,),
        2 * batch * size**2 * 9 * len(borders) * channels * outputs,
    )


CHECKED = [
    odconv(2, 64, 20, 4),
    odconv(2, 40, 9, 1),
    odconv(8, 128, 7, 4),
    odconv(2, 48, 12, 2, groups=4),
    odconv(2, 40, 13, 4, groups=40),
    matching(2, 48, 15, 17, 5),
    matching(2, 72, 17, 0, 5),
    grid(33, 48, 40, "cr"),
    grid(1, 2, 17, "cz"),
]
TIMED = [
    odconv(8, 64, 56, 1),
    odconv(8, 64, 56, 4),
    odconv(8, 256, 14, 4),
    odconv(8, 512, 7, 4),
    odconv(8, 384, 28, 4, groups=384),
    matching(8, 256, 64, 17, 7),
    matching(8, 256, 31, 0, 5),
    grid(1, 256, 256, "cr"),
    grid(1024, 256, 256, "cr"),
]


def groups() -> Iterator[tuple[str, Callable[[Report], None]]]:
    for case in CHECKED:
        yield case.name, partial(check_case, case)
