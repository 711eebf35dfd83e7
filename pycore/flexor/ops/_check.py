# SPDX-License-Identifier: Apache-2.0
"""Argument checks that several ops need; every message starts with the op's name and says what came."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
MAX_BYTES = 2**63 - 1


def tensor(op: str, name: str, value: Any, layout: str) -> None:
    """Value is a strided tensor with as many dimensions as layout has letters: "N C H W"."""
    letters = layout.split()
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(value).__name__}")
    if value.layout != torch.strided:
        raise TypeError(f"{op}: {name} must be a strided tensor, got {value.layout}")
    if value.dim() != len(letters):
        raise ValueError(
            f"{op}: {name} must have {len(letters)} dimensions ({', '.join(letters)}), got {tuple(value.shape)}"
        )


def shape(op: str, name: str, value: Tensor, expected: tuple[int, ...], meaning: str) -> None:
    if tuple(value.shape) != tuple(expected):
        raise ValueError(f"{op}: {name} must be {meaning} = {tuple(expected)}, got {tuple(value.shape)}")


def rows(op: str, name: str, got: int, expected: int, meaning: str) -> None:
    """Two counts are equal; of sizes that only the data decide, a compiled graph checks it when it runs."""
    message = f"{op}: {name} must be {meaning} = {expected}, got {got}"
    if isinstance(got, torch.SymInt) or isinstance(expected, torch.SymInt):
        torch._check(got == expected, lambda: message)
    elif got != expected:
        raise ValueError(message)


def floating(op: str, name: str, value: Tensor) -> None:
    if value.dtype not in FLOATS:
        raise TypeError(f"{op}: {name} must be float64, float32, float16 or bfloat16, got {value.dtype}")


def same_dtype(op: str, name: str, value: Tensor, input: Tensor, or_float32: bool = False, of: str = "input's") -> None:
    """Value has input's dtype; offsets and the like may also stay float32 beside half-precision input."""
    if value.dtype == input.dtype or (or_float32 and value.dtype == torch.float32 and input.dtype != torch.float64):
        return
    choice = " or float32" if or_float32 and input.dtype in (torch.float16, torch.bfloat16) else ""
    raise TypeError(f"{op}: {name} must have {of} dtype {input.dtype}{choice}, got {value.dtype}")


def same_device(op: str, **tensors: Tensor | None) -> None:
    places = {name: value.device for name, value in tensors.items() if value is not None}
    if len(set(places.values())) > 1:
        listed = ", ".join(f"{name} on {device}" for name, device in places.items())
        raise ValueError(f"{op}: all tensors must be on one device, got {listed}")


def one_of(op: str, name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{op}: {name} must be {' or '.join(map(repr, choices))}, got {value!r}")


def integers(op: str, name: str, values: Any, least: int, what: str) -> None:
    if len(values) != 2 or not all(isinstance(v, int | torch.SymInt) and v >= least for v in values):
        raise ValueError(f"{op}: {name} must be {what}, one or two of them, got {_unpacked(values)}")


def fits(op: str, name: str, sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    """The bytes of such a tensor can be counted in 63 bits. Symbolic sizes pass: an export would keep it as a limit."""
    if any(isinstance(size, torch.SymInt) for size in sizes):
        return
    total = dtype.itemsize
    for size in sizes:
        total *= size
    if total > MAX_BYTES:
        raise ValueError(f"{op}: {name} {tuple(sizes)} would have {total} bytes, more than a 64-bit size can hold")


def _unpacked(values: Any) -> Any:
    return values[0] if len(values) == 2 and values[0] == values[1] else tuple(values)
