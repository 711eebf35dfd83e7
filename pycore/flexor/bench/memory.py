# SPDX-License-Identifier: Apache-2.0
"""Peak memory of one call beyond its tensors, measured by the kernel in a process of its own."""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterable

import torch


def peak_extra_bytes(call: Callable[[], Iterable[torch.Tensor]]) -> int:
    """Resident bytes at the peak of `call`, less those before it and those of the tensors it returns.

    Args:
        call: runs the work once and returns every tensor that the caller keeps.
    Returns: bytes; about 0.1 MB of it is noise.
    Raises: OSError where the kernel does not let a process reset its own peak (Linux only).
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")  # sets the peak back to what is resident now
    before = _status("VmHWM")
    results = list(call())
    peak = _status("VmHWM")
    return peak - before - sum(t.untyped_storage().nbytes() for t in results if t is not None)


def peak_extra_of(task: str, *arguments: str) -> int | None:
    """`peak_extra_bytes` of the call that `module:function(*arguments)` builds, in a fresh process.

    Every large block is mapped and unmapped on its own there, so that nothing freed earlier is reused
    unseen. None when the contestant is not installed.
    """
    # The fixed threshold switches off malloc's habit of keeping large freed blocks for the next caller.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", __name__, task, *arguments]
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    if done.returncode == 3:
        return None
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return int(done.stdout.split()[-1])


def _status(field: str) -> int:
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith(field + ":"):
                return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}")


def _main(task: str, *arguments: str) -> int:
    from .contest import Unavailable

    module, function = task.split(":")
    try:
        call = getattr(importlib.import_module(module), function)(*arguments)
    except Unavailable as absent:
        print(absent, file=sys.stderr)
        return 3
    print(peak_extra_bytes(call))
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
