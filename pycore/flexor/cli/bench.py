# SPDX-License-Identifier: Apache-2.0
"""The work behind `flexor bench`: run a family's contests with a progress bar, print them, write JSON and picture."""

from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .. import bench
from ..bench import picture, report
from ..bench.contest import OURS, Record, speedups


def run(
    family: str, json: Path | None, picture_file: Path | None, everything: bool, console: Console
) -> dict[str, Any]:
    """Measures `family`, prints its tables, and writes the files that were asked for.

    Raises: AssertionError when a contestant computes something wrong, OSError when a file cannot be written.
    """
    for file in filter(None, (json, picture_file)):
        file.parent.mkdir(parents=True, exist_ok=True)  # before minutes of work
    results = _measure(family, everything, console)
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
    """One table for each operator and direction: time, share of the FMA ceiling, and times over each peer."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in results["contests"]:
        groups.setdefault((record["op"], record["direction"]), []).append(record)
    return [_table(f"{op}, {direction}", records, results["machine"]) for (op, direction), records in groups.items()]


def _table(title: str, records: list[Record], machine: dict[str, Any]) -> Table:
    table = Table(title=title, title_justify="left")
    peers = list(dict.fromkeys(name for record in records for name in record["ms"] if name != OURS))
    for heading in ("shape", f"{OURS} ms", "GFLOP/s", "of FMA ceiling", *(f"x {peer}" for peer in peers)):
        table.add_column(heading, justify="left" if heading == "shape" else "right")
    for record in records:
        ms = median(record["ms"][OURS])
        gflops = record["flops"] / ms / 1e6
        comparable = record["threads"] == 1 and record["dtype"] == "float32"
        ratios = [speedups(record, peer) for peer in peers]
        table.add_row(
            _shape(record), f"{ms:.3g}", f"{gflops:.3g}",
            f"{gflops / machine['fma_gflops']:.0%}" if comparable else "",
            *(f"{median(ratio):.3g}" if ratio else "-" for ratio in ratios),
        )  # fmt: skip
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
    remarks = ["x PEER: the peer's time over flexor's in the same round, median over rounds; above 1 flexor is faster."]
    for case, sizes in results.get("memory_bytes", {}).items():
        peers = ", ".join(
            f"{name} {'absent' if size is None else f'{size / 2**20:.1f} MiB'}" for name, size in sizes.items()
        )
        remarks.append(f"Peak memory of forward+backward beyond the tensors, {case}: {peers}.")
    if latency := results.get("latency_ns"):
        calls = ", ".join(f"{name} {ns / 1e3:.1f} us" for name, ns in latency.items())
        remarks.append(f"One call on a 1x8x5x5 input without gradients: {calls}.")
    return [*remarks, report.skipped_list(results["contests"])]


def _measure(family: str, everything: bool, console: Console) -> dict[str, Any]:
    columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("starting", total=None)

        def progress(name: str, done: int, total: int) -> None:
            bar.update(task, description=name, completed=done, total=total)

        return bench.measure(family, everything, progress)
