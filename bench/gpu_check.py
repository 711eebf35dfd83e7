# SPDX-License-Identifier: Apache-2.0
"""Everything that needs a real GPU, in one call of under ten minutes: correctness, determinism, speed.

    python bench/gpu_check.py [--out gpu_check.json] [--minutes 9] [--jobs 8] [--no-times] [--group NAME ...]

Values and gradients on CUDA tensors are compared with the float64 reference on the CPU, deterministic
backward passes with themselves, and times (CUDA events) with torchvision's or plain PyTorch's. The JSON
names the GPU, driver and versions. Without a GPU it says so and does nothing.

Checks come in groups, each in a process of its own, several at a time: compiling takes most of the time, and a kernel
that loses its GPU or never ends spoils no other group.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gpu_cases
import gpu_deform
import gpu_intra
import gpu_routes
import gpu_sparse
import gpu_times
import torch
from gpu_report import Deadline, Report

Group = Callable[[Report], None]


def all_groups() -> dict[str, Group]:
    modules = (gpu_deform, gpu_sparse, gpu_cases, gpu_routes, gpu_intra)
    return dict(itertools.chain.from_iterable(module.groups() for module in modules))


def run_here(names: list[str], report: Report) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    groups = all_groups()
    for name in names:
        torch.manual_seed(0)
        groups[name](report)


def run_apart(names: list[str], report: Report, jobs: int) -> None:
    """Every group in a process of its own; one that ends without results is a failed check."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        outs = [Path(folder) / f"{i}.json" for i in range(len(names))]
        for name, (checks, message) in zip(names, pool.map(lambda *a: run_group(*a, report), names, outs), strict=True):
            report.checks += checks
            if message:
                report.add(name, float("nan"), 0.0, False, message)


def run_group(name: str, out: Path, report: Report) -> tuple[list[dict[str, object]], str]:
    """Its checks, and what went wrong beside them."""
    left = report.end - time.monotonic()
    if left <= 0:
        return [], "not begun in time"
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    command = [sys.executable, __file__, "--group", name, "--out", str(out), "--minutes", str(left / 60)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=left + 20, check=False)
    except subprocess.TimeoutExpired:
        return [], "did not end in time"
    print(done.stdout + done.stderr if done.returncode else done.stderr, end="", flush=True)
    if not out.exists():
        return [], f"exit status {done.returncode}: {done.stderr[-300:]}"
    result = json.loads(out.read_text())
    return result["checks"], "" if result["finished"] else "did not end in time"


def machine() -> dict[str, object]:
    import triton

    properties = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    smi = subprocess.run(query, capture_output=True, text=True, check=False) if torch.version.cuda else None
    return {
        "gpu": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "driver": smi.stdout.splitlines()[0] if smi and smi.stdout else None,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": sys.version.split()[0],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu_check.json"))
    parser.add_argument("--minutes", type=float, default=9.0, help="stop after this long and report what was done")
    parser.add_argument("--jobs", type=int, default=min(8, os.cpu_count() or 1), help="groups at a time")
    parser.add_argument("--no-times", action="store_true", help="checks only")
    parser.add_argument("--group", action="append", help="only this group of checks, in this process")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu-check needs a GPU that torch can use; there is none here, so nothing was run")
        return 0
    report = Report(60 * arguments.minutes)
    rows: gpu_times.Rows = []
    finished = True
    try:
        if arguments.group:
            run_here(arguments.group, report)
        else:
            run_apart(list(all_groups()), report, arguments.jobs)
        if not arguments.no_times and not arguments.group:
            gpu_times.measure(report, rows)
    except Deadline:
        finished = False
        print(f"stopped after {arguments.minutes} minutes")
    failed = sum(not c["passed"] for c in report.checks)
    result = {"machine": machine(), "finished": finished, "checks": report.checks, "times": rows}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{len(report.checks)} checks, {failed} failed; {arguments.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
