# SPDX-License-Identifier: Apache-2.0
"""What this installation is and can do, and which code a call would run."""

from __future__ import annotations

import inspect
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import _C, _backend

_RUNS_ON = {"odconv1d": "odconv2d", "SparseIndex": "sparse_index"}  # ops whose kernels are another's


class Info(dict[str, Any]):
    """A dict that prints as a table."""

    def __str__(self) -> str:
        width = max(map(len, self))
        return "\n".join(f"{key:<{width}}  {_text(value, width + 2)}" for key, value in self.items())


def info() -> Info:
    """Says how flexor was built, what the machine has, and which backends can run, or why not.

    Returns:
        A dict whose text is a table. "backends" maps every backend to "can run" or to what is missing, for
        deform_conv2d on float32; "warnings" lists what slows this process down.

    Source:
        `flexor._C.build_info`, `/proc/self/maps`.
    """
    build = _C.build_info()
    runtimes = openmp_runtimes()
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    return Info(
        {
            "flexor": build["version"],
            "built with": build["compiler"],
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cpu features": list(_C.cpu_features()),
            "instruction sets": list(_C.available_isas()),
            "active set": _C.active_isa(),
            "threads": _C.max_threads(),
            "openmp": runtimes,
            "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else "none",
            "backends": {
                name: _backend.why_not(name, "deform_conv2d", _natural_device(name, device), torch.float32) or "can run"
                for name in _backend.NAMES
            },
            "environment": {key: value for key, value in sorted(os.environ.items()) if key.startswith("FLEXOR_")},
            "warnings": _warnings(runtimes),
        }
    )


def explain(op: str | Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """Says which backend a call would run on, why not on the others, and by which way it would go there.

    Args:
        op: the name of an op, or the function: "deform_conv2d" or `flexor.ops.deform_conv2d`.
        *args, **kwargs: what the op would be called with.

    Returns:
        Several lines of text.

    Raises:
        ValueError: no such op, or no tensor among the arguments.

    Source:
        `flexor.set_backend`, and the environment variable FLEXOR_BACKEND.
    """
    from . import ops

    name = op if isinstance(op, str) else op.__name__
    if name not in ops.__all__:
        raise ValueError(f"explain: op must be one of {', '.join(ops.__all__)}, got {name!r}")
    bound = inspect.signature(getattr(ops, name)).bind_partial(*args, **kwargs).arguments
    tensors = [value for value in bound.values() if isinstance(value, Tensor)]
    if not tensors:
        raise ValueError(f"explain: {name} needs the tensors that it would be called with")
    device, dtype = tensors[0].device, tensors[0].dtype
    name = _RUNS_ON.get(name, name)
    reasons = {backend: _backend.why_not(backend, name, device, dtype) for backend in _backend.NAMES}
    try:
        chosen = _backend.choose(name, device, dtype, bound.get("backend"))
    except RuntimeError as error:
        chosen = f"an error, {error}"
    why = "asked for" if bound.get("backend") else "forced" if _backend.forced() else "the first that can"
    lines = [f"{name} on {device} {dtype}: {chosen} ({why})"]
    lines += [f"  {backend:<9}  {reason or _can_run(backend)}" for backend, reason in reasons.items()]
    return "\n".join([*lines, f"  way        {_way(name, tensors)}"])


def openmp_runtimes() -> list[str]:
    """Paths of the OpenMP runtimes mapped into this process; more than one is a second pool of threads."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    paths = {line.split(maxsplit=5)[5] for line in lines if len(line.split(maxsplit=5)) == 6}
    return sorted(path for path in paths if any(name in Path(path).name for name in ("libgomp", "libomp", "libiomp5")))


def _natural_device(backend: str, device: torch.device) -> torch.device:
    return torch.device("cpu") if backend == "cpu" else device


def _can_run(backend: str) -> str:
    return f"can run ({_C.active_isa()}, {_C.max_threads()} threads)" if backend == "cpu" else "can run"


def _way(name: str, tensors: list[Tensor]) -> str:
    from .ops._operator import is_plain

    if not is_plain(tensors):
        return f"torch.ops.flexor.{name}, because something watches the call"
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return "a torch.autograd.Function, because a gradient is needed"
    return "straight to the kernel"


def _warnings(runtimes: list[str]) -> list[str]:
    found = []
    if len(runtimes) > 1:
        found.append("more than one OpenMP runtime in this process: their threads compete")
    if torch.get_num_threads() != _C.max_threads():
        found.append(f"torch has {torch.get_num_threads()} threads and flexor {_C.max_threads()}: not one runtime")
    return found


def _text(value: Any, indent: int) -> str:
    if isinstance(value, dict):
        return f"\n{' ' * indent}".join(f"{key}: {entry}" for key, entry in value.items()) or "none"
    if isinstance(value, list):
        separator = f"\n{' ' * indent}" if any("/" in entry or len(entry) > 20 for entry in value) else " "
        return separator.join(value) or "none"
    return str(value)
