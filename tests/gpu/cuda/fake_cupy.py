# SPDX-License-Identifier: Apache-2.0
"""What flexor uses of CuPy 14, launching the kernels that fiber_shim.h runs on the CPU.

As strict as CuPy and CUDA, and more: arguments are NumPy scalars or arrays of one element, each as wide as the
parameter; grid and block are tuples; a launch needs a current stream.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
SANITIZED = os.environ.get("FLEXOR_SHIM") == "sanitized"
ORDERS = ("upwards", "downwards", "shuffled")


def build(folder: Path, sanitize: bool) -> Path:
    """The kernels as a shared library."""
    library = folder / "kernels.so"
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"] if sanitize else ["-O1"]
    warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    includes = [f"-I{HERE}", f"-I{HERE.parents[2] / 'csrc'}"]
    command = ["g++", "-std=c++17", "-g", *warnings, *flags, "-fPIC", "-shared", *includes, HERE / "kernels.cpp"]
    plain = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}  # the compiler needs no sanitizer
    done = subprocess.run([*command, "-o", library], capture_output=True, text=True, check=False, env=plain)
    assert done.returncode == 0, done.stderr
    return library


class Shim:
    """The library, and in which order the threads of a block run."""

    def __init__(self, library: Path):
        self.library = ctypes.CDLL(str(library))
        pointer, size, sizes = ctypes.c_void_p, ctypes.c_size_t, ctypes.POINTER(ctypes.c_uint)
        signatures = {
            "shim_find": (pointer, [ctypes.c_char_p]),
            "shim_parameters": (size, [pointer]),
            "shim_size": (size, [pointer, size]),
            "shim_launch": (ctypes.c_char_p, [pointer, ctypes.POINTER(pointer), sizes, sizes, ctypes.c_int]),
        }
        for name, (result, arguments) in signatures.items():
            function = getattr(self.library, name)
            function.restype, function.argtypes = result, arguments
        self.order = "upwards"
        self.launched: list[str] = []

    def function(self, name: str) -> int:
        found = self.library.shim_find(name.encode())
        if not found:
            raise RuntimeError(f"named symbol not found: {name}")
        return found

    def launch(self, name: str, grid: tuple[int, ...], block: tuple[int, ...], args: tuple[object, ...]) -> None:
        entry = self.function(name)
        expected = [self.library.shim_size(entry, i) for i in range(self.library.shim_parameters(entry))]
        arrays = [argument(a) for a in args]
        given = [a.nbytes for a in arrays]
        assert given == expected, f"{name}: arguments of {given} bytes, parameters of {expected}"
        assert all(isinstance(n, int) and n > 0 for n in (*grid, *block)) and np.prod(block) <= 1024, (grid, block)
        pointers = (ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays))
        dims = [(ctypes.c_uint * 3)(*(n + (1, 1))[:3]) for n in (grid, block)]
        error = self.library.shim_launch(entry, pointers, *dims, ORDERS.index(self.order))
        self.launched.append(name)
        if error:
            raise RuntimeError(f"{name}: {error.decode()}")


def argument(value: object) -> np.ndarray:
    """One kernel argument by value."""
    if isinstance(value, np.ndarray):
        assert value.size == 1, "an array passed by value has one element"
        return value
    assert isinstance(value, np.generic), f"no kernel argument: {type(value).__name__}"
    return np.array(value)


@contextlib.contextmanager
def installed(shim: Shim, fatbin_fails: bool = False) -> Iterator[types.ModuleType]:
    """`import cupy` finds the fake."""
    streams: list[int] = []

    class Stream:
        def __init__(self, pointer: int):
            self.ptr = pointer

        @classmethod
        def from_external(cls, stream: object) -> Stream:
            version, pointer = stream.__cuda_stream__()
            assert version == 0
            return cls(pointer)

        def __enter__(self) -> None:
            streams.append(self.ptr)

        def __exit__(self, *_: object) -> None:
            streams.pop()

    class RawModule:
        def __init__(self, *, code: str | None = None, path: str | None = None, options: tuple[str, ...] = ()):
            assert (code is None) != (path is None) and isinstance(options, tuple)
            if code is not None:
                assert 'extern "C"' in code and any(Path(o[2:]).is_dir() for o in options if o.startswith("-I"))
            self.path = path
            fake.modules.append("code" if path is None else "fatbin")

        def get_function(self, name: str):
            if self.path is not None and fatbin_fails:
                raise RuntimeError("CUDA_ERROR_NO_BINARY_FOR_GPU")
            shim.function(name)

            def kernel(grid: tuple[int, ...], block: tuple[int, ...], args: tuple[object, ...]) -> None:
                assert streams, "launched on no stream"
                shim.launch(name, grid, block, args)

            return kernel

    fake = types.ModuleType("cupy")
    fake.__spec__ = types.SimpleNamespace(name="cupy")
    fake.modules = []
    fake.RawModule, fake.cuda = RawModule, types.SimpleNamespace(Stream=Stream)
    before = sys.modules.get("cupy")
    sys.modules["cupy"] = fake
    try:
        yield fake
    finally:
        sys.modules.pop("cupy")
        if before is not None:
            sys.modules["cupy"] = before
