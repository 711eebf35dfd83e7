# SPDX-License-Identifier: Apache-2.0
"""Weights that other sparse convolution packages trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..nn import sparse
from .conv import SparseConvolution, to_krsc

LAYOUTS = ("spconv1", "spconv2", "scn", "minkowski")


def load_weights(model: nn.Module, state_dict: Mapping[str, Any], layout: str = "spconv2", strict: bool = True) -> Any:
    """Loads a state_dict, convolutions from another package's layout, so that they compute what they did there.

    | layout | a convolution's weight | of one tap |
    |---|---|---|
    | "spconv1" | (*k, Cin, Cout) | (Cin, Cout) in memory |
    | "spconv2" | (Cout, *k, Cin) | (Cin, Cout) in memory, whatever its shape |
    | "scn" | (K, groups, Cin / groups, Cout / groups), row-major taps | (Cin, Cout) |
    | "minkowski" | (K, Cin, Cout) named `kernel`, first axis fastest; bias (1, Cout) | (Cin, Cout) |

    Args:
        model: of `flexor.sparse` or `flexor.nn` layers, which keep a kernel of one tap differently; both are served.
        state_dict: by the model's own names; a minkowski one may have `kernel` and `bn.weight` where the model has
            `weight`. It does not change.
        layout: where it comes from.
        strict: as for `torch.nn.Module.load_state_dict`, and as there names that are missing or too many are reported.

    Returns:
        What `load_state_dict` returns: missing and unexpected keys.

    Raises:
        ValueError: another layout, a weight of another size than its layer.
        RuntimeError: from `load_state_dict`.

    Source:
        spconv 1.2 and 2.3.8, SparseConvNet, MinkowskiEngine 0.5.4.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"load_weights: layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    values = dict(state_dict)
    if layout == "minkowski":
        values = {_unwrapped(name, model): value for name, value in values.items()}
    for name, conv in model.named_modules():
        if not isinstance(conv, SparseConvolution | sparse.ConvModule):
            continue
        prefix = f"{name}." if name else ""
        if f"{prefix}weight" in values:
            values[f"{prefix}weight"] = _stored(conv, values[f"{prefix}weight"], layout, f"{prefix}weight")
        if values.get(f"{prefix}bias") is not None:
            values[f"{prefix}bias"] = values[f"{prefix}bias"].flatten()
    return model.load_state_dict(values, strict=strict)


def krsc(weight: Tensor, kernel_size: Sequence[int], layout: str) -> Tensor:
    """A weight as (Cout, *kernel, Cin / groups), whose tap k multiplies as `weight[:, k] @ features`.

    Args:
        weight: in that layout; see `load_weights`.
        kernel_size: D sizes.
        layout: "spconv1", "spconv2", "scn" or "minkowski".
    """
    kernel, taps = tuple(kernel_size), math.prod(kernel_size)
    if layout == "minkowski":
        weight = weight.reshape(*reversed(kernel), *weight.shape[-2:])
        weight = weight.permute(*reversed(range(len(kernel))), -2, -1)
    elif layout == "scn":
        weight = weight.reshape(taps, -1, *weight.shape[-2:])  # (K, groups, Cin / groups, Cout / groups)
        weight = weight.transpose(1, 2).flatten(2).reshape(*kernel, weight.shape[2], -1)
    elif taps == 1:  # memory is (Cin, Cout)
        inputs, outputs = weight.shape[-2:] if layout == "spconv1" else (weight.shape[-1], weight.shape[0])
        weight = weight.reshape(*kernel, inputs, outputs)
    elif layout == "spconv2":
        return weight
    return to_krsc(weight, "RSCK")


def _stored(conv: SparseConvolution | sparse.ConvModule, weight: Tensor, layout: str, name: str) -> Tensor:
    """As this layer keeps it."""
    shape = conv.weight.shape
    if weight.numel() != conv.weight.numel():
        raise ValueError(
            f"load_weights: {name} must have the {conv.weight.numel()} numbers of {tuple(shape)}, "
            f"got {tuple(weight.shape)}"
        )
    weight = krsc(weight, conv.kernel_size, layout)
    if isinstance(conv, SparseConvolution) and conv.one_tap:
        return weight.reshape(conv.out_channels, conv.in_channels).t().reshape(shape)
    return weight


def _unwrapped(name: str, model: nn.Module) -> str:
    """MinkowskiEngine's name of a value, as torch would have it."""
    *path, last = name.split(".")
    if last == "kernel":
        last = "weight"
    if path and path[-1] == "bn" and name not in model.state_dict():
        path = path[:-1]
    return ".".join([*path, last])
