# SPDX-License-Identifier: Apache-2.0
"""Which code runs an op: `reference | cpu | triton | cuda`, chosen per call, forced by name, or by FLEXOR_BACKEND."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os

import torch

from . import _C

NAMES = ("cpu", "cuda", "triton", "reference")  # the first that can run is taken
_IN_CUDA = ("intra_predict", "intra_search")

_log = logging.getLogger("flexor")
_forced: str | None = os.environ.get("FLEXOR_BACKEND") or None


def set_backend(name: str | None) -> None:
    """Makes every op of this process use one backend; None goes back to the automatic choice.

    Args:
        name: "reference", "cpu", "triton", "cuda" or None.

    Raises:
        ValueError: for any other name. A backend that cannot run an op raises when the op is called.
    """
    global _forced
    _forced = None if name is None else _known(name)


def forced() -> str | None:
    """The backend set for the whole process, None for the automatic choice."""
    return _forced


def choose(op: str, device: torch.device, dtype: torch.dtype, backend: str | None = None) -> str:
    """The backend that a call runs on: the one asked for, else the one forced, else the first that can."""
    name = backend or _forced
    if name is None:
        return _automatic(op, device, dtype)
    reason = why_not(_known(name), op, device, dtype)
    if reason is not None:
        raise RuntimeError(f"{op}: backend {name!r} cannot run: {reason}")
    return name


@functools.cache
def _automatic(op: str, device: torch.device, dtype: torch.dtype) -> str:
    name = next(name for name in NAMES if why_not(name, op, device, dtype) is None)
    _log.debug("%s on %s %s: %s", op, device, dtype, name)
    return name


@functools.cache
def why_not(name: str, op: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """The reason why a backend cannot run an op on such tensors, None when it can."""
    return {"reference": lambda *_: None, "cpu": _why_not_cpu, "triton": _why_not_triton, "cuda": _why_not_cuda}[name](
        op, device, dtype
    )


def _known(name: str) -> str:
    if name not in NAMES:
        raise ValueError(f"backend must be one of {', '.join(sorted(NAMES))}, got {name!r}")
    return name


def _why_not_cpu(op: str, device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cpu":
        return f"the tensors are on {device}"
    if not (hasattr(_C, op) or hasattr(_C, f"{op}_forward")):
        return "flexor._C was built without it"
    return None


def _why_not_triton(op: str, device: torch.device, dtype: torch.dtype) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install flexor[triton])"
    if importlib.util.find_spec(f"flexor.kernels.{op}") is None:
        return "there is no Triton kernel for it"
    if dtype == torch.float64 and torch.version.hip is not None:
        return "there is no float64 kernel for AMD GPUs"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None if device.type in ("cpu", "cuda") else f"the tensors are on {device}"
    if device.type != "cuda":
        return f"it needs a GPU, the tensors are on {device}"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        return f"{torch.cuda.get_device_name(device)} is older than compute capability 8.0"
    return None


def _why_not_cuda(op: str, device: torch.device, dtype: torch.dtype) -> str | None:
    if op not in _IN_CUDA:
        return "there is no CUDA C++ kernel for it; on a GPU it runs in Triton"
    if device.type != "cuda":
        return f"it needs a GPU, the tensors are on {device}"
    from ._cuda import launch

    return launch.why_not()
