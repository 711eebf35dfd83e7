# SPDX-License-Identifier: Apache-2.0
"""Kernel tests need Triton's interpreter, which is chosen by TRITON_INTERPRET=1 before triton is imported.

Without it test_gates.py is collected, which runs the rest of the folder in processes of its own, and what needs no
interpreter: the CUDA C++ tests.
"""

import contextlib
import os
import shutil
import sys
import types
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "cuda"))
import fake_cupy

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
IN_INTERPRETER = [
    "test_gpu_check.py",
    "test_interpreter.py",
    "test_kernels_deform_conv2d.py",
    "test_kernels_grid_conv.py",
    "test_kernels_odconv2d.py",
    "test_kernels_sparse.py",
    "test_kernels_warp.py",
    "test_kernels_xcorr2d.py",
    "test_route.py",
]
ON_FIBERS = ["test_cuda.py", "test_cuda_compilers.py", "test_cuda_intra.py"]
collect_ignore = ["test_gates.py", *ON_FIBERS] if INTERPRETED else IN_INTERPRETER


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """The CUDA C++ kernels, for the CPU."""
    if shutil.which("g++") is None:
        pytest.skip("the CUDA C++ kernels need g++ to run on a CPU")
    return fake_cupy.build(tmp_path_factory.mktemp("shim"), fake_cupy.SANITIZED)


@pytest.fixture(params=fake_cupy.ORDERS[:2] if fake_cupy.SANITIZED else fake_cupy.ORDERS)
def shim(request, library, monkeypatch):
    """CuPy is there, and a CPU tensor's device is a GPU."""
    from flexor._cuda import launch

    shim = fake_cupy.Shim(library)
    shim.order = request.param
    stream = types.SimpleNamespace(__cuda_stream__=lambda: (0, 7))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    launch.kernel.cache_clear()
    with fake_cupy.installed(shim) as shim.cupy:
        yield shim
    launch.kernel.cache_clear()
