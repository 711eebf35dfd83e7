# SPDX-License-Identifier: Apache-2.0
"""Swapping other packages' layers for flexor's, in a model that is already built."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import nn

from . import sparse
from .compat import mmcv
from .nn import (
    CondConv2d,
    DeformConv2d,
    DeformConv2dPack,
    ModulatedDeformConv2d,
    ModulatedDeformConv2dPack,
    ODConv2d,
)
from .nn.odconv2d import adopt, looks_published

# By name, so that neither package needs to be installed. Each twin has its original's attributes.
_TWINS: dict[str, type[nn.Module]] = {
    "torchvision.ops.deform_conv.DeformConv2d": DeformConv2d,
    "mmcv.ops.deform_conv.DeformConv2d": mmcv.DeformConv2d,
    "mmcv.ops.deform_conv.DeformConv2dPack": DeformConv2dPack,
    "mmcv.ops.modulated_deform_conv.ModulatedDeformConv2d": ModulatedDeformConv2d,
    "mmcv.ops.modulated_deform_conv.ModulatedDeformConv2dPack": ModulatedDeformConv2dPack,
    "timm.layers.cond_conv2d.CondConv2d": CondConv2d,
    **sparse.twins.TWINS,
}


class Entry(NamedTuple):
    """One layer: its name in the model, its class, and what became of it."""

    name: str
    original: str
    outcome: str


@dataclass
class Report:
    """What `replace` did; printing it gives a table."""

    swapped: list[Entry] = field(default_factory=list)
    left: list[Entry] = field(default_factory=list)

    def __str__(self) -> str:
        rows = [Entry("layer", "was", "is now"), *self.swapped]
        rows += [Entry(e.name, e.original, f"left: {e.outcome}") for e in self.left]
        widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
        lines = [f"{row.name:<{widths[0]}}  {row.original:<{widths[1]}}  {row.outcome}" for row in rows]
        return "\n".join([*lines, f"{len(self.swapped)} swapped, {len(self.left)} left"])


def replace(model: nn.Module) -> Report:
    """Swaps other packages' layers for flexor's, in place.

    These are torchvision's and mmcv's deformable layers, published ODConvs, timm's CondConvs, and all of spconv's,
    which then take spconv's tensors too.

    Every layer stays the object it was: its parameters, buffers, hooks, training flag, dtype and device, and every
    reference to it. Only its class changes, and with it the code that runs.

    Args:
        model: any module, the layer itself included.

    Returns:
        What was swapped, and which layers of these kinds were left and why.

    Source:
        torchvision.ops.DeformConv2d; mmcv.ops.DeformConv2d, DeformConv2dPack, ModulatedDeformConv2d(Pack);
        timm.layers.CondConv2d; spconv.pytorch 2.3.8's conv, pool, modules and tables;
        ODConv2d of https://github.com/OSVAI/ODConv, wherever its file was copied to.
    """
    report = Report()
    for name, module in list(model.named_modules()):
        original = _qualified(type(module))
        if original.startswith("flexor."):
            continue
        twin = ODConv2d if _is_odconv2d(module) else _TWINS.get(original)
        reason = _why_left(module) if twin is not None else _why_unknown(module)
        if twin is not None and reason is None:
            _become(module, twin)
            report.swapped.append(Entry(name or "(model)", original, _qualified(twin)))
        elif reason is not None:
            report.left.append(Entry(name or "(model)", original, reason))
    return report


def _become(module: nn.Module, twin: type[nn.Module]) -> None:
    if twin is ODConv2d:
        adopt(module)
        return
    module.__class__ = twin
    if twin in sparse.twins.TWINS.values():
        sparse.twins.adopt(module)
    elif not hasattr(module, "bias"):
        module.register_parameter("bias", None)  # mmcv's layers without a bias lack the attribute


def _is_odconv2d(module: nn.Module) -> bool:
    """By its parts, because everyone has a copy of the file under another name."""
    return type(module).__name__ == "ODConv2d" and looks_published(module)


def _why_left(module: nn.Module) -> str | None:
    if "forward" in vars(module):
        return "its forward was replaced on the instance"
    return None


def _why_unknown(module: nn.Module) -> str | None:
    """Why a layer that looks like one of flexor's kinds is not touched; None for one that does not look it."""
    for base in type(module).__mro__[1:]:
        if _qualified(base) in _TWINS:
            return f"a subclass of {_qualified(base)}, which may do something else"
    name = type(module).__name__
    if any(kind in name.lower() for kind in ("deform", "dcn", "odconv2d", "condconv")):
        return "no layer that flexor knows"
    return None


def _qualified(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
