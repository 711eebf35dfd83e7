# SPDX-License-Identifier: Apache-2.0
"""Finds, loads and launches the CUDA C++ kernels, through CuPy on PyTorch's current stream.

A wheel brings `<stem>.fatbin`, if nvcc was there when it was built, and always the sources: where the driver does not
take the fatbin, NVRTC compiles them. Nothing here is imported before a CUDA tensor asks for it.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

MAX_BLOCKS = 2**31 - 1

i32, i64, u64 = np.int32, np.int64, np.uint64


def why_not() -> str | None:
    """The reason why no CUDA C++ kernel can run here, None if one can."""
    if torch.version.hip is not None:
        return "CUDA C++ kernels do not run on AMD GPUs"
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed (pip install flexor[cuda])"
    return None


class Source(NamedTuple):
    """A CUDA C++ source below the folder that they are installed in, which is also where their includes start."""

    folder: str
    stem: str

    def find(self, suffix: str) -> tuple[Path, Path] | None:
        """The root that has the file, and the file."""
        import flexor

        for package in flexor.__path__:  # an editable install has several
            root = Path(package) / "_cuda"
            path = root / self.folder / f"{self.stem}{suffix}"
            if path.exists():
                return root, path
        return None


def struct(*values: int) -> np.ndarray:
    """64-bit integers that a kernel takes as one struct."""
    return np.array(values, np.int64).view(f"V{8 * len(values)}")


def launch(source: Source, name: str, blocks: int, threads: int, *args: Any) -> None:
    """Runs a kernel on the first tensor's device. Arguments are contiguous tensors, NumPy scalars and structs."""
    if blocks == 0:
        return
    if blocks > MAX_BLOCKS:
        raise ValueError(f"{name}: the launch needs {blocks} blocks, at most {MAX_BLOCKS} are possible")
    import cupy

    device = next(arg.device for arg in args if isinstance(arg, Tensor))
    passed = tuple(_address(name, arg, device) if isinstance(arg, Tensor) else arg for arg in args)
    with torch.cuda.device(device), cupy.cuda.Stream.from_external(torch.cuda.current_stream(device)):
        kernel(source, name, device)((blocks,), (threads,), passed)


def _address(name: str, tensor: Tensor, device: torch.device) -> np.uint64:
    if tensor.device != device or not tensor.is_contiguous():
        raise ValueError(
            f"{name}: needs contiguous tensors on {device}, got strides {tensor.stride()} on {tensor.device}"
        )
    return np.uint64(tensor.data_ptr())


@functools.cache
def kernel(source: Source, name: str, device: torch.device) -> Any:
    import cupy

    if found := source.find(".fatbin"):
        try:
            return cupy.RawModule(path=str(found[1])).get_function(name)
        except RuntimeError:  # made for other GPUs, or by a newer compiler than the driver's
            pass
    found = source.find(".cu")
    if found is None:
        raise RuntimeError(f"{name}: {source.folder}/{source.stem}.cu is not installed with flexor")
    root, path = found
    # CuPy keeps what it compiled by source and options; this makes included files part of them.
    headers = b"".join(header.read_bytes() for header in sorted(root.rglob("*.cuh")))
    options = ("-std=c++17", f"-I{root}", f"-DFLEXOR_HEADERS=0x{hashlib.sha256(headers).hexdigest()[:16]}")
    return cupy.RawModule(code=path.read_text(), options=options).get_function(name)
