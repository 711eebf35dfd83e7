# SPDX-License-Identifier: Apache-2.0
"""What is done to whole models with ODConv layers: converting, fusing, counting."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

from .._replace import Entry, Report
from ..nn import ODConv2d, fuse_odconv_bn_eval
from ..nn.odconv2d import ODConvNd

_SHORTCUTS = ("downsample", "shortcut", "skip")


def convert(
    model: nn.Module,
    kernel_num: int = 4,
    reduction: float = 0.0625,
    norm: str = "bn",
    skip: Callable[[str, nn.Conv2d], bool] | None = None,
) -> Report:
    """Makes a model's convolutions dynamic, in place, so that its output is at first the same.

    Args:
        model: its `torch.nn.Conv2d` layers are replaced by `flexor.nn.ODConv2d.from_conv` of them.
        kernel_num, reduction, norm: as for `flexor.nn.ODConv2d`.
        skip: says by name and layer which convolutions stay. By default those that stay in the published networks:
            the first one, and 1x1 ones in shortcuts (part of their name is downsample, shortcut or skip).

    Returns:
        What was replaced, and which convolutions were left and why. Optimizers need the new parameters.

    Raises:
        TypeError: model is itself a convolution.

    Source:
        Li, Zhou and Yao, Omni-Dimensional Dynamic Convolution, ICLR 2022.
    """
    if isinstance(model, nn.Conv2d):
        raise TypeError("convert: model must contain its convolutions; for one, use ODConv2d.from_conv")
    report, made = Report(), dict[nn.Module, nn.Module]()
    layers = list(model.named_modules(remove_duplicate=False))
    inside = tuple(f"{name}." if name else "" for name, module in layers if isinstance(module, ODConvNd))
    found = [(name, conv) for name, conv in layers if isinstance(conv, nn.Conv2d) and not name.startswith(inside)]
    for name, conv in found:
        original = f"{type(conv).__module__}.{type(conv).__qualname__}"
        reason = _why_static(name, conv, first=found[0][1], skip=skip)
        if reason is None and conv not in made:
            try:
                made[conv] = ODConv2d.from_conv(conv, kernel_num, reduction, norm)
            except NotImplementedError as error:
                reason = str(error)
        if reason is not None:
            report.left.append(Entry(name, original, reason))
            continue
        model.set_submodule(name, made[conv])
        report.swapped.append(Entry(name, original, f"ODConv2d, kernel_num {kernel_num}"))
    return report


def _why_static(
    name: str, conv: nn.Conv2d, first: nn.Module, skip: Callable[[str, nn.Conv2d], bool] | None
) -> str | None:
    if type(conv) is not nn.Conv2d:
        return "a subclass of torch.nn.Conv2d, which may do something else"
    if skip is not None:
        return "skip says so" if skip(name, conv) else None
    if conv is first:
        return "the first one stays static"
    if conv.kernel_size == (1, 1) and any(part in name.lower() for part in _SHORTCUTS):
        return "a 1x1 shortcut stays static"
    return None


class _LeafTracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, ODConvNd) or super().is_leaf_module(m, module_qualified_name)


def fuse(model: nn.Module) -> nn.Module:
    """A copy for inference, whose convolutions, dynamic or static, also do the batch normalisations after them.

    Args:
        model: one that `torch.fx` can trace; where a normalisation follows no convolution of its own, it stays.

    Returns:
        A copy in evaluation mode, `torch.nn.Identity` in the place of each normalisation.

    Source:
        `flexor.nn.fuse_odconv_bn_eval`, `torch.nn.utils.fusion.fuse_conv_bn_eval`.
    """
    model = copy.deepcopy(model).eval()
    modules = dict(model.named_modules())
    nodes = [node for node in _LeafTracer().trace(model).nodes if node.op == "call_module"]
    calls = Counter(node.target for node in nodes)
    for node in nodes:
        bn, before = modules[str(node.target)], node.args[0]
        if not isinstance(bn, _BatchNorm) or not isinstance(before, fx.Node) or before.op != "call_module":
            continue
        if len(before.users) != 1 or calls[before.target] != 1 or calls[node.target] != 1:
            continue
        conv, fused = modules[str(before.target)], None
        if isinstance(conv, ODConvNd):
            fused = fuse_odconv_bn_eval(conv, bn)
        elif type(conv) in (nn.Conv1d, nn.Conv2d):
            fused = fuse_conv_bn_eval(conv, bn)
        if fused is not None:
            model.set_submodule(str(before.target), fused)
            model.set_submodule(str(node.target), nn.Identity())
    return model


class Count(NamedTuple):
    """Size and work of a model: parameters, and multiply-adds for one sample."""

    parameters: int
    macs: int


def count(model: nn.Module, size: Sequence[int] = (3, 224, 224)) -> Count:
    """Counts parameters and multiply-adds, those of dynamic convolutions included.

    Counted are convolutions and matrix products, and for each dynamic convolution the mixing of its kernels. Counters
    that hook `torch.nn.Conv2d` miss the dynamic ones; `torch.utils.flop_counter.FlopCounterMode` counts them too once
    this module is imported.

    Args:
        model: any module; a copy of it runs on the meta device, in evaluation mode.
        size: (C, H, W) of one input.

    Returns:
        Both numbers.

    Source:
        `torch.utils.flop_counter`.
    """
    meta = copy.deepcopy(model).to("meta").eval()
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        meta(torch.empty(1, *size, device="meta"))
    return Count(sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2)


@register_flop_formula(torch.ops.flexor.odconv2d)
def _odconv2d_flops(
    input: Sequence[int],
    weight: Sequence[int],
    channel: Any,
    filter: Any,
    spatial: Any,
    kernel: Sequence[int] | None,
    *_: Any,
    out_shape: Sequence[int],
    **__: Any,
) -> int:
    """Two for every multiply-add of the convolution, and of the mixing of n kernels."""
    one_kernel = torch.Size(weight[1:]).numel()
    convolution = out_shape[0] * out_shape[2] * out_shape[3] * one_kernel
    mixing = 0 if kernel is None else input[0] * weight[0] * one_kernel
    return 2 * (convolution + mixing)
