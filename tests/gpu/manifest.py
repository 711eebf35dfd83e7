# SPDX-License-Identifier: Apache-2.0
"""Ahead-of-time compilation of every Triton kernel for every target, without a GPU.

The launchers of `flexor.kernels` run on meta tensors (manifest_cases.py); what they would have launched (arguments,
specialisation, block sizes) is recorded and compiled for each target. What the compiler made of it
(registers, spills, shared memory, tensor-core and wide-load instructions, atomics) is compared with the
committed manifest.json.

    python tests/gpu/manifest.py --write     rewrite the manifest
    python tests/gpu/manifest.py --check     compile and compare; exit code 1 with the differences
    python tests/gpu/manifest.py --check --quick    the main cases for three of the seven targets, as `make test` does
    ... --only r50-64.fp64    launches whose name has this in it

Nothing here says how fast a kernel is.
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
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

if os.environ.get("TRITON_INTERPRET") == "1":
    raise RuntimeError("manifest: TRITON_INTERPRET=1 replaces the compiler; unset it")
# Nothing may come from an earlier compilation.
os.environ["TRITON_ALWAYS_COMPILE"] = "1"

import triton
from manifest_cases import CASES
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime import jit

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
REGISTER_SLACK = 8
LINES_SLACK = 0.15
MATRIX_COUNTS = ("HMMA", "HGMMA", "UTCMMA", "v_mfma", "v_wmma")


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


QUICK_TARGETS = ("sm_80", "sm_90", "gfx942")


def launch_names(launches: list[Launch]) -> dict[str, Launch]:
    """Names the launches of one case; the image gradient in fixed point is called .deterministic, a convolution
    turned round .transposed."""
    named = {}
    for launch in launches:
        name = launch.kernel.fn.__name__.removesuffix("_kernel")
        bound = dict(zip(launch.kernel.arg_names, launch.args, strict=False))
        if bound.get("fixed_point_scale") is not None:
            name += ".deterministic"
        if launch.kwargs.get("TRANSPOSED"):
            name += ".transposed"
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
        usage = subprocess.run(
            [TOOLS / "cuobjdump", "-res-usage", cubin.name], capture_output=True, text=True, check=True
        )
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


def all_jobs(targets: tuple[str, ...], quick: bool = False) -> list[tuple[str, str, str]]:
    jobs = []
    for case_name, case in CASES.items():
        if quick and not case.quick:
            continue
        with recorded_launches() as launches:
            case.run()
        for name in launch_names(launches):
            jobs += [(case_name, name, t) for t in targets if t.startswith("sm_") or not case.nvidia_only]
    return jobs


def broken_promises(key: str, facts: dict[str, int]) -> list[str]:
    """What must hold whatever the committed manifest says."""
    case_name, launch, target = key.split("/")
    case = CASES[case_name]
    scatters = "bwd_sample" in launch or "warp_bwd" in launch
    deterministic = launch.endswith(".deterministic")
    matrix = sum(facts.get(k, 0) for k in MATRIX_COUNTS)
    rules = {
        "spills registers": facts["spills"] or facts["stack"],
        "uses more shared memory than a block may": facts["shared"] > SHARED_LIMIT[target],
        "has a dot without matrix instructions": case.matrix and not matrix,
        "has no 16-byte load": case.wide and target.startswith("sm_") and not facts["wide_loads"],
        "has floating-point atomics, though deterministic": deterministic and facts["float_atomics"],
        "has atomics, though nothing is scattered": not scatters and facts["atomics"],
    }
    return [f"{key} {rule}" for rule, broken in rules.items() if broken]


def differences(key: str, facts: dict[str, int], committed: dict[str, int]) -> list[str]:
    """What moved past its tolerance: registers +8, lines +-15 %, the rest between none and some."""
    found = []
    for name in sorted(facts.keys() | committed.keys()):
        now, then = facts.get(name, 0), committed.get(name, 0)
        if name == "registers":
            differs = now > then + REGISTER_SLACK
        elif name == "lines":
            differs = abs(now - then) > LINES_SLACK * then
        elif name == "shared":
            differs = now > then
        else:
            differs = (now > 0) != (then > 0)
        if differs and name not in ("spills", "stack", "sgpr_spills"):
            found.append(f"{key} {name}: {then} in the manifest, {now} now")
    return found


def compile_all(targets: tuple[str, ...], only: str, quick: bool) -> dict[str, dict[str, int]]:
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        with ProcessPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
            return dict(pool.map(facts_of, [job for job in all_jobs(targets, quick) if only in "/".join(job)]))


def write(facts: dict[str, dict[str, int]], only: str) -> None:
    """One launch a line, zeros left out, so that a diff reads well; keeps what `only` leaves out."""
    if only:
        facts = json.loads(MANIFEST.read_text())["launches"] | facts
    lines = [
        f"    {json.dumps(key)}: {json.dumps({k: v for k, v in values.items() if v})}"
        for key, values in sorted(facts.items())
    ]
    body = ",\n".join(lines)
    MANIFEST.write_text(f'{{\n  "triton": "{triton.__version__}",\n  "launches": {{\n{body}\n  }}\n}}\n')


def check(facts: dict[str, dict[str, int]], targets: tuple[str, ...], only: str, quick: bool) -> list[str]:
    manifest = json.loads(MANIFEST.read_text())
    if manifest["triton"] != triton.__version__:
        print(f"manifest: of triton {manifest['triton']}, this is {triton.__version__}: limits checked, not compared")
        return []
    skipped = {name for name, case in CASES.items() if quick and not case.quick}
    committed = {
        key: values
        for key, values in manifest["launches"].items()
        if key.rpartition("/")[2] in targets and key.partition("/")[0] not in skipped and only in key
    }
    problems = [f"{key} is not in the manifest" for key in facts.keys() - committed.keys()]
    problems += [f"{key} is in the manifest and no longer launched" for key in committed.keys() - facts.keys()]
    for key in sorted(facts.keys() & committed.keys()):
        problems += differences(key, facts[key], committed[key])
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true", help="rewrite the manifest")
    action.add_argument("--check", action="store_true", help="compare with the manifest")
    parser.add_argument(
        "--quick", action="store_true", help=f"with --check: the main cases, {', '.join(QUICK_TARGETS)} only"
    )
    parser.add_argument("--only", default="", help="compile launches whose name has this in it")
    arguments = parser.parse_args()
    quick = arguments.quick and arguments.check
    targets = QUICK_TARGETS if quick else tuple(TARGETS)
    facts = compile_all(targets, arguments.only, quick)
    problems = [problem for key in sorted(facts) for problem in broken_promises(key, facts[key])]
    if arguments.write:
        write(facts, arguments.only)
    else:
        problems += check(facts, targets, arguments.only, quick)
    for problem in problems:
        print(problem)
    print(f"manifest: {len(facts)} compilations, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
