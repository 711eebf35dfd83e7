# SPDX-License-Identifier: Apache-2.0
"""Ahead-of-time compilation of every Triton kernel for every target, without a GPU.

The launchers of `flexor.kernels` run on meta tensors; what they would have launched (arguments,
specialisation, block sizes) is recorded and compiled for each target. What the compiler made of it
(registers, spills, shared memory, tensor-core and wide-load instructions, atomics) is compared with the
committed manifest.json.

    python tests/gpu/manifest.py --write     rewrite the manifest
    python tests/gpu/manifest.py --check     compile and compare; exit code 1 with the differences
    python tests/gpu/manifest.py --check --quick    the launches marked quick only, as CI does
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

if os.environ.get("TRITON_INTERPRET") == "1":
    raise RuntimeError("manifest: TRITON_INTERPRET=1 replaces the compiler; unset it")
# Nothing may come from an earlier compilation.
os.environ["TRITON_ALWAYS_COMPILE"] = "1"

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime import jit

from flexor.kernels import deform_conv2d

MANIFEST = Path(__file__).with_name("manifest.json")
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_89": GPUTarget("cuda", 89, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "sm_120": GPUTarget("cuda", 120, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
    "gfx1100": GPUTarget("hip", "gfx1100", 32),
}
# Shared memory one block may use, bytes (CUDA programming guide; LDS of the AMD targets).
SHARED_LIMIT = {
    "sm_80": 166912, "sm_89": 101376, "sm_90": 232448, "sm_100": 232448, "sm_120": 101376,
    "gfx942": 65536, "gfx1100": 65536,
}  # fmt: skip
MATRIX_INSTRUCTION = {
    "sm_80": "HMMA", "sm_89": "HMMA", "sm_90": "HGMMA", "sm_100": "UTCMMA", "sm_120": "HMMA",
    "gfx942": "v_mfma", "gfx1100": "v_wmma",
}  # fmt: skip
REGISTER_SLACK = 8
LINES_SLACK = 0.15


class Launch(NamedTuple):
    """One recorded launch of a kernel, ready to compile."""

    kernel: jit.JITFunction
    args: tuple[object, ...]
    kwargs: dict[str, object]


@contextlib.contextmanager
def recorded_launches() -> Iterator[list[Launch]]:
    """Kernel launches are noted instead of run."""
    launches: list[Launch] = []

    def record(self: jit.JITFunction, *args: object, grid: object, warmup: bool, **kwargs: object) -> None:
        launches.append(Launch(self, args, kwargs))

    original = jit.JITFunction.run
    jit.JITFunction.run = record
    try:
        yield launches
    finally:
        jit.JITFunction.run = original


def deform(
    channels: int, height: int, width: int, offset_groups: int, dtype: torch.dtype, channels_last: bool, tf32: bool = False
) -> Callable[[], None]:
    """A launcher of all passes of a 3x3 modulated convolution, batch 8."""

    def run() -> None:
        format = torch.channels_last if channels_last else torch.contiguous_format
        meta = {"device": "meta", "dtype": dtype}
        input = torch.empty(8, channels, height, width, **meta, memory_format=format)
        offset = torch.empty(8, 18 * offset_groups, height, width, **meta)
        mask = torch.empty(8, 9 * offset_groups, height, width, **meta)
        weight = torch.empty(channels, channels, 3, 3, **meta)
        bias = torch.empty(channels, **meta)
        geometry = ((1, 1), (1, 1), (1, 1), 1, offset_groups)
        allowed = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = tf32
        try:
            deform_conv2d.forward(input, offset, weight, bias, mask, *geometry)
            for deterministic in (False, True):
                needs = (True, True, not deterministic, False, True)
                deform_conv2d.backward(input, input, offset, weight, mask, *geometry, needs, deterministic)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = allowed

    return run


class Case(NamedTuple):
    run: Callable[[], None]
    matrix: bool  # the dots of this case must use matrix instructions
    nvidia_only: bool = False


CASES = {
    "r50-256.bf16.nhwc": Case(deform(256, 56, 56, 1, torch.bfloat16, True), matrix=True),
    "r50-256.fp32.nchw": Case(deform(256, 56, 56, 1, torch.float32, False), matrix=False),
    "r50-256.tf32.nchw": Case(deform(256, 56, 56, 1, torch.float32, False, tf32=True), matrix=True, nvidia_only=True),
    "fami.fp16.nchw": Case(deform(48, 96, 72, 12, torch.float16, False), matrix=True),
    "dcpose.bf16.nchw": Case(deform(17, 96, 72, 17, torch.bfloat16, False), matrix=True),
}


def launch_names(launches: list[Launch]) -> dict[str, Launch]:
    """Names the launches of one case; the variant whose image gradient is in fixed point is called .deterministic."""
    named = {}
    for launch in launches:
        name = launch.kernel.fn.__name__.removesuffix("_kernel")
        bound = dict(zip(launch.kernel.arg_names, launch.args, strict=False))
        if bound.get("fixed_point_scale") is not None:
            name += ".deterministic"
        named[name] = launch
    return named


def compile_launch(launch: Launch, target: GPUTarget) -> triton.compiler.CompiledKernel:
    """Compiles as JITFunction.run would on that target."""
    kernel = launch.kernel
    backend = make_backend(target)
    binder = jit.create_function_from_signature(kernel.signature, kernel.params, backend)
    kwargs = {**launch.kwargs, "debug": False}
    bound, specialization, options = binder(*launch.args, **kwargs)
    options, signature, constexprs, attrs = kernel._pack_args(backend, kwargs, bound, specialization, options)
    source = ASTSource(kernel, signature, constexprs, attrs)
    return triton.compile(source, target=target, options=options.__dict__)


def nvidia_facts(compiled: triton.compiler.CompiledKernel) -> dict[str, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage = subprocess.run([TOOLS / "cuobjdump", "-res-usage", cubin.name], capture_output=True, text=True, check=True)
        sass = subprocess.run([TOOLS / "cuobjdump", "-sass", cubin.name], capture_output=True, text=True, check=True)
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage.stdout + usage.stderr).groups()
    code = sass.stdout
    count = lambda pattern: len(re.findall(pattern, code))  # noqa: E731
    return {
        "registers": int(registers),
        "stack": int(stack),
        "spills": count(r"\b(?:LDL|STL)\b"),
        "shared": compiled.metadata.shared,
        "HMMA": count(r"\bHMMA"),
        "HGMMA": count(r"\bHGMMA"),
        "UTCMMA": count(r"\bUTC\w*MMA"),
        "wide_loads": count(r"\bLDG\.E(?:\.\w+)*\.128") + count(r"\bLDGSTS\.E(?:\.\w+)*\.128"),
        "async_copies": count(r"\bLDGSTS"),
        "float_atomics": count(r"\b(?:REDG?|ATOMG?)\.\S*F(?:16|32|64)"),
        "atomics": count(r"\b(?:REDG?|ATOMG?)\b"),
        "lines": count(r"/\*[0-9a-f]{4,}\*/ +\S"),
    }


def amd_facts(compiled: triton.compiler.CompiledKernel) -> dict[str, int]:
    code = compiled.asm["amdgcn"]
    number = lambda key: int(re.search(rf"\.{key}:\s+(\d+)", code).group(1))  # noqa: E731
    count = lambda pattern: len(re.findall(pattern, code))  # noqa: E731
    return {
        "registers": number("vgpr_count"),
        "stack": number("private_segment_fixed_size"),
        "spills": number("vgpr_spill_count"),
        "sgpr_spills": number("sgpr_spill_count"),
        "shared": compiled.metadata.shared,
        "v_mfma": count(r"\bv_mfma"),
        "v_wmma": count(r"\bv_wmma"),
        "wide_loads": count(r"\b(?:global|buffer)_load_(?:dwordx4|b128)"),
        "float_atomics": count(r"\b(?:global|buffer)_atomic_\w*f(?:16|32|64)"),
        "atomics": count(r"\b(?:global|buffer)_atomic_"),
        "lines": count(r"(?m)^\s+[a-z]\w+_\w+ "),
    }


def facts_of(job: tuple[str, str, str]) -> tuple[str, dict[str, int] | str]:
    """Compiles (case, launch name, target) and returns its key and facts."""
    case, name, target = job
    key = f"{case}/{name}/{target}"
    with recorded_launches() as launches:
        CASES[case].run()
    compiled = compile_launch(launch_names(launches)[name], TARGETS[target])
    return key, nvidia_facts(compiled) if target.startswith("sm_") else amd_facts(compiled)


def all_jobs() -> list[tuple[str, str, str]]:
    jobs = []
    for case_name, case in CASES.items():
        with recorded_launches() as launches:
            case.run()
        for name in launch_names(launches):
            jobs += [(case_name, name, t) for t in TARGETS if t.startswith("sm_") or not case.nvidia_only]
    return jobs


if __name__ == "__main__":
    with ProcessPoolExecutor(2) as pool:
        for k, f in pool.map(facts_of, all_jobs()):
            print(k, {k: v for k, v in f.items() if v}, flush=True)
