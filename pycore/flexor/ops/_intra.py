# SPDX-License-Identifier: Apache-2.0
"""What the intra ops share: arrays of NumPy, CuPy and torch alike, integers only, no gradients.

They are `torch.ops.flexor.intra_{predict,search}` to whatever watches calls; plain tensors go straight to a kernel.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._operator import is_plain, library

SIZES = (4, 8, 16, 32, 64)
BIT_DEPTHS = range(8, 13)
SAMPLES = (torch.uint8, torch.int16, torch.uint16, torch.int32)
INTEGERS = (*SAMPLES, torch.int8, torch.int64)

Kind = Callable[[Tensor], Any]


def as_tensor(op: str, name: str, value: Any, layout: str) -> tuple[Tensor, Kind]:
    """A strided tensor on the same memory, and what makes an array of value's kind of another one."""
    if isinstance(value, Tensor):
        tensor, kind = value, _as_it_is
    elif isinstance(value, np.ndarray):
        try:
            shared = value.flags.writeable and all(stride >= 0 for stride in value.strides)
            tensor, kind = torch.from_numpy(value if shared else value.copy()), Tensor.numpy
        except (TypeError, ValueError):
            raise TypeError(f"{op}: {name} has a dtype that no kernel takes, {value.dtype}") from None
    elif type(value).__module__.partition(".")[0] == "cupy":
        tensor, kind = torch.from_dlpack(value), sys.modules["cupy"].from_dlpack
    else:
        raise TypeError(f"{op}: {name} must be an array of NumPy, CuPy or torch, got {type(value).__name__}")
    if tensor.layout != torch.strided:
        raise TypeError(f"{op}: {name} must be a strided tensor, got {tensor.layout}")
    if tensor.dim() != len(layout.split()):
        raise ValueError(f"{op}: {name} must be ({', '.join(layout.split())}), got {tuple(tensor.shape)}")
    return tensor, kind


def samples(op: str, name: str, value: Tensor) -> None:
    if value.dtype not in SAMPLES:
        raise TypeError(f"{op}: {name} must be uint8, int16, uint16 or int32, got {_plain(value.dtype)}")


def depth(op: str, bit_depth: int) -> None:
    if bit_depth not in BIT_DEPTHS:
        raise ValueError(f"{op}: bit_depth must be 8 to 12, got {bit_depth!r}")


def in_range(op: str, name: str, value: Tensor, bit_depth: int) -> None:
    """Every sample fits the bit depth; what a kernel found amiss, this says."""
    wide = value.to(torch.int64)
    bad = ((wide < 0) | (wide >= 1 << bit_depth)).nonzero()
    if bad.shape[0]:
        place = tuple(bad[0].tolist())
        raise ValueError(
            f"{op}: {name} must hold 0 to {(1 << bit_depth) - 1} (bit_depth {bit_depth}), got {int(wide[place])} at "
            f"{place}"
        )


def fits_16_bits(op: str, name: str, value: Tensor, bit_depth: int) -> None:
    """A GPU's kernels see samples of 32 bits cut to 16: what is lost must not hide that they are out of range."""
    if value.dtype == torch.int32:
        in_range(op, name, value, bit_depth)


def register(name: str, schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """Makes `torch.ops.flexor.<name>` and gives the function that takes the short way where it may."""
    library.define(f"{name}({schema}", tags=(torch.Tag.pt2_compliant_tag,))
    library.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"flexor::{name}", fake, lib=library)
    op = getattr(torch.ops.flexor, name)
    return lambda *args: run(*args) if is_plain((args[0],)) else op(*args)


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
