# SPDX-License-Identifier: Apache-2.0
"""What the numbers were measured on: the machine, its own FMA ceiling, versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import time
from datetime import datetime, timezone
from pathlib import Path

import torch
import torch.nn.functional as F

from flexor import _C


def describe() -> dict[str, object]:
    """Processor, threads, instruction set, FMA ceiling of one thread, versions, commit and date."""
    gflops, method = fma_ceiling()
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": _C.active_isa(),
        "fma_gflops": round(gflops, 1),
        "fma_method": method,
        "load": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        "versions": _versions("flexor", "torch", "torchvision", "onnxruntime", "spconv"),
        "commit": _commit(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def fma_ceiling() -> tuple[float, str]:
    """GFLOP/s of one thread in float32 fused multiply-adds, and how they were measured."""
    if hasattr(_C, "fma_ceiling"):
        return _C.fma_ceiling(), "a loop of independent FMAs in registers"
    return _best_dense_rate(), "the best of torch.mm and F.conv2d (this build has no FMA loop)"


def _best_dense_rate() -> float:
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    image, weight = torch.randn(1, 256, 56, 56), torch.randn(256, 256, 3, 3)
    work = [(lambda: torch.mm(a, b), 2 * 1024**3), (lambda: F.conv2d(image, weight, padding=1), 2 * 2304 * 256 * 56**2)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    best = 0.0
    try:
        for _ in range(8):
            for call, flops in work:
                start = time.process_time()
                call()
                best = max(best, flops / (time.process_time() - start))
    finally:
        torch.set_num_threads(threads)
    return best / 1e9


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    name = fields.get("model name", platform.machine())
    if "cpu family" in fields:
        name += f" (family {fields['cpu family']}, model {fields['model']})"
    return name


def _versions(*packages: str) -> dict[str, str]:
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "absent"
    return versions


def _commit() -> str | None:
    """The commit of the checkout that flexor runs from, with "+" for uncommitted edits of the compiled code."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if not git("ls-files", __file__):
            return None
        return git("rev-parse", "--short=10", "HEAD") + ("+" if git("status", "--porcelain", "--", ":/csrc") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
