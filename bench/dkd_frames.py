# SPDX-License-Identifier: Apache-2.0
"""DKD's cost for a frame against SimpleBaseline's, in multiply-adds and in time on one thread.

    python bench/dkd_frames.py

A later frame of a stream is compared with what a SimpleBaseline as deep as the initialiser does for every frame, in
turn in one process, in CPU time. Writes bench/results/dkd_frames.json, and a table into docs/pose_models.md; --draw
writes the table alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from flexor.bench.contest import cpu_seconds, interleave
from flexor.bench.machine import describe
from flexor.models.pose.dkd import dkd, dkd_cost

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results" / "dkd_frames.json"
DOCUMENT = ROOT / "docs" / "pose_models.md"
START, END = "<!-- dkd_frames:start -->", "<!-- dkd_frames:end -->"

SIZE = (256, 256)
JOINTS = 13
# Depth of the initialiser and of the encoder.
CASES = ((18, 18), (34, 34), (50, 50), (101, 101), (50, 18), (101, 18))
SECONDS = 4.0  # of each contestant


def measure(depth: int, encoder_depth: int) -> dict[str, Any]:
    """One configuration: multiply-adds of every part, milliseconds of both in every round."""
    torch.manual_seed(0)
    model, clip = dkd(depth, JOINTS, encoder_depth).eval(), torch.randn(1, 2, 3, *SIZE)
    with torch.no_grad():
        state = model.step(clip[:, 0])[1]
    calls: dict[str, Callable[[], tuple[torch.Tensor, ...]]] = {
        "dkd": torch.no_grad()(lambda: (model.step(clip[:, 1], state)[0],)),
        "simple_baseline": torch.no_grad()(lambda: (model.initialiser(clip[:, 1]),)),
    }
    samples, results = interleave(calls, cpu_seconds, SECONDS)
    with torch.no_grad():
        assert torch.equal(results["dkd"][0], model(clip)[:, 1]), "the timed step is the clip's second frame"
    cost = dkd_cost(depth, JOINTS, encoder_depth, input_size=SIZE)
    return {
        "depth": depth,
        "encoder_depth": encoder_depth,
        "multiply_adds": cost._asdict(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "ms": {name: [float(f"{1e3 * t:.4g}") for t in times] for name, times in samples.items()},
    }


def table(found: dict[str, Any]) -> str:
    """As Markdown: the cost of each part, and the time beside SimpleBaseline's."""
    lines = [
        "| initialiser, encoder | SimpleBaseline, every frame | DKD, first frame | DKD, later frames: encoder + "
        "distillator + matching | ratio | DKD, ms | SimpleBaseline, ms | DKD's time / SimpleBaseline's (worst round) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in found["cases"]:
        parts = {name: count / 1e9 for name, count in case["multiply_adds"].items()}
        later = parts["encoder"] + parts["distillator"] + parts["matching"]
        ours, theirs = case["ms"]["dkd"], case["ms"]["simple_baseline"]
        ratios = [a / b for a, b in zip(ours, theirs, strict=False)]
        sums = f"{parts['encoder']:.2f} + {parts['distillator']:.2f} + {parts['matching']:.2f} = {later:.2f}"
        lines.append(
            f"| ResNet-{case['depth']}, ResNet-{case['encoder_depth']} | {parts['initialiser']:.2f} | "
            f"{parts['initialiser'] + parts['encoder']:.2f} | {sums} | {later / parts['initialiser']:.2f} | "
            f"{median(ours):.0f} | {median(theirs):.0f} | **{median(ratios):.2f}** ({max(ratios):.2f}) |"
        )
    machine = found["machine"]
    lines += [
        "",
        f"Billions of multiply-adds for one frame of {SIZE[0]}x{SIZE[1]} and {JOINTS} joints; CPU time of one thread "
        f"of {machine['cpu']} ({machine['isa']}), both in turn in one process, a ratio is the median over rounds; "
        f"flexor {machine['versions']['flexor']}, torch {machine['versions']['torch']}, {machine['date']}.",
    ]
    return "\n".join(lines)


def write(found: dict[str, Any]) -> None:
    before, start, rest = DOCUMENT.read_text().partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise SystemExit(f"{DOCUMENT} must hold {START} and {END}")
    DOCUMENT.write_text(f"{before}{START}\n{table(found)}\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draw", action="store_true", help="only rewrite the table")
    if not parser.parse_args().draw:
        torch.set_num_threads(1)
        found = {"machine": describe(), "cases": [measure(*case) for case in CASES]}
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    write(json.loads(RESULTS.read_text()))


if __name__ == "__main__":
    main()
