# SPDX-License-Identifier: Apache-2.0
"""The work behind `flexor bench`: run a family's contests with a progress bar, print them, write JSON and picture."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .. import bench
from ..bench import picture, report
from ..bench.contest import OURS, Record, speedups

# Broken in two, so that the table fits 80 columns.
HEADINGS = {
    "torchvision": "torch-\nvision",
    "onnxruntime": "onnx-\nruntime",
    "grid_sample": "grid_\nsample",
    "F.conv2d": "F.\nconv2d",
    "F.conv2d, 1 thread": "F.conv2d\n1 thread",
    "flexor, 1 thread": "flexor\n1 thread",
    "flexor, fused": "flexor,\nfused",
    "published": "pub-\nlished",
    "grouped conv2d": "grouped\nconv2d",
    "conv2d a sample": "conv2d\na sample",
    "torch.mm, 1 thread": "torch.mm\n1 thread",
    "torch.mm, float32": "torch.mm\nfloat32",
    "flexor, float32": "flexor\nfloat32",
    "gather-mm-add": "gather-\nmm-add",
    "SparseConvNet": "Sparse-\nConvNet",
    "x265 ultrafast": "x265 ul-\ntrafast",
    "x265 medium": "x265\nmedium",
    "x265 veryslow, tskip": "x265 very-\nslow, tskip",
    "x265 medium, 1 thread": "x265 me-\ndium, 1 th.",
}


def run(
    family: str,
    json: Path | None,
    picture_file: Path | None,
    everything: bool,
    console: Console,
    inputs: Sequence[str] = (),
) -> dict[str, Any]:
    """Measures `family`, prints its tables, and writes the files that were asked for.

    Raises: AssertionError when a contestant computes something wrong, OSError when a file cannot be written,
    ValueError for a picture's unknown suffix.
    """
    if picture_file is not None and picture_file.suffix not in picture.FORMATS:
        raise ValueError(f"--picture must end in one of {', '.join(picture.FORMATS)}, got {picture_file.name}")
    for file in filter(None, (json, picture_file)):
        file.parent.mkdir(parents=True, exist_ok=True)  # before minutes of work
    results = _measure(family, everything, console, inputs)
    console.print(report.machine_line(results["machine"]), style="dim")
    for table in tables(results):
        console.print(table)
    console.print(*_remarks(results), sep="\n")
    if json is not None:
        bench.save(results, json)
    if picture_file is not None:
        picture.draw(results, picture_file)
    return results


def tables(results: dict[str, Any]) -> list[Table]:
    """Times, share of the FMA ceiling and times over each peer, by operator, direction and threads; memory."""
    groups: dict[str, list[Record]] = {}
    for record in results["contests"]:
        threads = f", {record['threads']} threads" if record["threads"] > 1 else ""
        dtype = "" if record["dtype"] == "float32" else f", {record['dtype']}"
        groups.setdefault(f"{record['op']}, {record['direction']}{dtype}{threads}", []).append(record)
    yardsticks = getattr(bench.family_module(results["family"]), "YARDSTICKS", {})
    found = [_times(title, records, results["machine"], yardsticks) for title, records in groups.items()]
    if memory := results.get("memory_bytes"):
        found.append(_memory(memory))
    return found


def _times(title: str, records: list[Record], machine: dict[str, Any], yardsticks: dict[str, int]) -> Table:
    """yardsticks: operations of what is no peer; ours over its rate is shown."""
    names = list(dict.fromkeys(name for record in records for name in record["ms"] if name != OURS))
    peers = [name for name in names if not any(name.startswith(f"{yardstick},") for yardstick in yardsticks)]
    table = _table(title, "shape", "ms", "GFLOP\n/s", "% of\nFMA", *(HEADINGS.get(peer, peer) for peer in peers))
    for record in records:
        ms = median(record["ms"][OURS])
        gflops = record["flops"] / ms / 1e6
        comparable = record["flops"] and record["threads"] == 1 and record["dtype"] == "float32"
        share = f"{100 * gflops / machine['fma_gflops']:.0f}" if comparable else ""
        cells = (_ratio(record, peer, yardsticks.get(peer, 0)) for peer in peers)
        table.add_row(_shape(record), f"{ms:.3g}", f"{gflops:.3g}" if gflops else "", share, *cells)
    return table


def _ratio(record: Record, peer: str, operations: int) -> str:
    ratios = speedups(record, peer)
    if not ratios or (operations and not record["flops"]):
        return "-"
    return f"{median(ratios) * record['flops'] / operations:.0%}" if operations else f"{median(ratios):.3g}"


def _memory(memory: dict[str, dict[str, int | None]]) -> Table:
    table = _table("Peak memory beyond the tensors, MiB", "shape", *next(iter(memory.values())))
    for case, sizes in memory.items():
        table.add_row(case, *("absent" if size is None else f"{size / 2**20:.1f}" for size in sizes.values()))
    return table


def _table(title: str, first: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(first)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _shape(record: Record) -> str:
    """The case, and whatever is not float32, contiguous, batch 1, one thread."""
    usual = {"dtype": "float32", "layout": "contiguous"}
    parts = [record["case"], *(record[key] for key, value in usual.items() if record[key] != value)]
    if record["batch"] > 1:
        parts.append(f"batch {record['batch']}")
    if record["threads"] > 1:
        parts.append(f"{record['threads']} threads")
    return ", ".join(parts)


def _remarks(results: dict[str, Any]) -> list[str]:
    remarks = ["ms: flexor's time. Under a peer: its time over flexor's; above 1 flexor is faster (medians)."]
    if yardsticks := getattr(bench.family_module(results["family"]), "YARDSTICKS", {}):
        remarks.append(f"Under {', '.join(yardsticks)}: flexor's rate as a share of its.")
    if latency := results.get("latency_ns"):
        calls = ", ".join(f"{name} {ns / 1e3:.1f} us" for name, ns in latency.items())
        remarks.append(f"One call on a 1x8x5x5 input without gradients: {calls}.")
    if skipped := report.skipped_list(results["contests"]):
        remarks.append(skipped)
    return remarks


def _measure(family: str, everything: bool, console: Console, inputs: Sequence[str]) -> dict[str, Any]:
    columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("starting", total=None)

        def progress(name: str, done: int, total: int) -> None:
            bar.update(task, description=name, completed=done, total=total)

        return bench.measure(family, everything, progress, inputs)
