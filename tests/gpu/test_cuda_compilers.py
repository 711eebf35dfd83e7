# SPDX-License-Identifier: Apache-2.0
"""Every CUDA C++ source through the compilers that are here: nvcc for every GPU it knows, NVRTC as CuPy would."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
SOURCES = sorted(CSRC.rglob("*.cu"))
OLDEST = 80  # the compute capability that the Triton kernels need too
MOST_REGISTERS = 128  # of a thread: 512 threads on a multiprocessor


def nvcc():
    hints = [f"{os.environ[name]}/bin" for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    path = shutil.which("nvcc", path=os.pathsep.join([*hints, os.environ["PATH"], "/usr/local/cuda/bin"]))
    if path is None:
        pytest.skip("nvcc is not installed")
    return path


def generations(compiler):
    listed = subprocess.run([compiler, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout
    return [int(code) for code in re.findall(r"^sm_(\d+)$", listed, re.MULTILINE) if int(code) >= OLDEST]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_nvcc(source, tmp_path):
    """No spills, no stack, enough threads on a multiprocessor, on every generation."""
    compiler = nvcc()
    codes = [f"-gencode=arch=compute_{code},code=sm_{code}" for code in generations(compiler)]
    flags = ["-std=c++17", "-fatbin", "-Werror", "all-warnings", "-Xptxas", "-v", "--threads", "2", f"-I{CSRC}"]
    command = [compiler, *flags, *codes, "-o", tmp_path / "a.fatbin", source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = done.stdout + done.stderr
    stacks = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", report)]
    kernels = len(re.findall(r"^__global__", source.read_text(), re.MULTILINE))
    assert len(stacks) == len(registers) == kernels * len(codes) and set(stacks) == {("0", "0", "0")}
    assert max(registers) <= MOST_REGISTERS


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
@pytest.mark.parametrize("code", [80, 90, 120])
def test_nvrtc(source, code):
    """Without a toolkit's headers, as on a machine that has only what PyTorch brings."""
    nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings is not installed")
    try:
        nvrtc.nvrtcVersion()
    except RuntimeError as error:
        pytest.skip(f"NVRTC is not installed: {error}")
    error, program = nvrtc.nvrtcCreateProgram(source.read_bytes(), source.name.encode(), 0, [], [])
    assert error == nvrtc.nvrtcResult.NVRTC_SUCCESS
    options = [b"-std=c++17", f"-I{CSRC}".encode(), f"--gpu-architecture=sm_{code}".encode()]
    (error,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    _, size = nvrtc.nvrtcGetProgramLogSize(program)
    log = b" " * size
    nvrtc.nvrtcGetProgramLog(program, log)
    assert error == nvrtc.nvrtcResult.NVRTC_SUCCESS, log.decode()
    _, size = nvrtc.nvrtcGetCUBINSize(program)
    cubin = b" " * size
    nvrtc.nvrtcGetCUBIN(program, cubin)
    names = re.findall(r"^__global__ void (\w+)", source.read_text(), re.MULTILINE)
    assert names and all(f".text.{name}\0".encode() in cubin for name in names)
