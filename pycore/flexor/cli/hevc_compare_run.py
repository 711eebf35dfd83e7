# SPDX-License-Identifier: Apache-2.0
"""The work behind `flexor hevc compare`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from ..bench import machine
from ..codec.hevc.compare import (
    PEERS,
    Comparison,
    Contestant,
    Failure,
    Results,
    Source,
    choose,
    comparisons,
    load,
    make_source,
    measure,
    missing,
    save,
)
from ..codec.hevc.compare.points import in_processes
from ..codec.hevc.compare.tables import LABELS, signed
from .frames import Frame, FrameError, read_image
from .hevc_compare_page import page
from .hevc_compare_pictures import Illustration, illustrate

Crop = tuple[int, int, int | None, int | None]  # width, height, x, y


@dataclass(frozen=True)
class Request:
    images: Sequence[Path]
    report: Path | None
    json: Path | None
    qps: list[int]
    chromas: list[str]
    preset: str
    crop: Crop | None
    variants: list[str]
    peers: list[str]
    jobs: int


def run(request: Request) -> None:
    """Measures what is missing, prints the tables, writes the files.

    Raises: FrameError, OSError; ValueError for options and sizes; ImportError without bjontegaard.
    """
    console, messages = Console(), Console(stderr=True)
    peers = list(PEERS) if request.peers == ["all"] else [] if request.peers == ["none"] else request.peers
    chosen = {chroma: choose(request.variants, peers, chroma, request.preset) for chroma in request.chromas}
    if not any(contestants for contestants, _ in chosen.values()):
        raise ValueError("nobody is there to be compared: name --variants or --peers")
    images = read_images(request.images, request.crop)
    sources = {chroma: [make_source(name, rgb, chroma) for name, rgb in images] for chroma in request.chromas}
    results = load(request.json) if request.json is not None and request.json.exists() else Results()
    for file in filter(None, (request.report, request.json)):  # before minutes of work
        _check_writable(file)
    results.failures = []
    results.absent = {name: why for _, absent in chosen.values() for name, why in absent.items()}
    for name, why in results.absent.items():
        messages.print(f"{LABELS[name]} is left out: {why}", style="yellow", highlight=False)
    _measure(request, sources, chosen, results, messages)
    shown = Results(absent=results.absent, failures=results.failures, machine=results.machine)
    for chroma, (contestants, _) in chosen.items():
        shown.points += results.of(sources[chroma], contestants, request.qps).points
    for chroma in request.chromas:
        for comparison in comparisons(shown, chroma):
            console.print(_table(chroma, comparison))
    for failure in results.failures:
        messages.print(_failed(failure), style="yellow", highlight=False)
    if request.report is not None:
        chroma = request.chromas[0]
        pictures = _illustrate(request, sources[chroma], chosen[chroma][0], shown, messages)
        request.report.write_text(page(shown, pictures), encoding="utf-8")
        console.print(f"[bold]{request.report}[/bold]", highlight=False)


def _check_writable(file: Path) -> None:
    if file.is_dir():
        raise ValueError(f"{file} is a folder: name a file in it")
    file.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise ValueError(f"{file} cannot be written: its permissions do not allow it")


def read_images(paths: Sequence[Path], crop: Crop | None) -> list[tuple[str, Frame]]:
    """Names and pixels; the names are those of the files, with their folders where they would be equal."""
    stems = Counter(path.stem for path in paths)
    found = []
    for path in dict.fromkeys(paths):
        image = read_image(path)
        if crop is not None:
            image = _cropped(image, path, crop)
        found.append((path.stem if stems[path.stem] == 1 else str(path), image))
    return found


def _cropped(image: Frame, path: Path, crop: Crop) -> Frame:
    width, height, x, y = crop
    left = (image.shape[1] - width) // 2 // 2 * 2 if x is None else x
    top = (image.shape[0] - height) // 2 // 2 * 2 if y is None else y
    if left < 0 or top < 0 or left + width > image.shape[1] or top + height > image.shape[0]:
        place = "" if x is None else f" at {x},{y}"
        raise FrameError(f"{path} is {image.shape[1]}x{image.shape[0]}: --crop {width}x{height}{place} leaves it")
    return image[top : top + height, left : left + width]


def _measure(
    request: Request,
    sources: dict[str, list[Source]],
    chosen: dict[str, tuple[list[Contestant], dict[str, str]]],
    results: Results,
    messages: Console,
) -> None:
    """Adds to `results`, and keeps them after every point: what is measured is not lost when the rest is given up."""
    total = sum(
        len(missing(sources[chroma], contestants, request.qps, results.points))
        for chroma, (contestants, _) in chosen.items()
    )
    if total or not results.machine:
        results.machine = machine.describe()
    with _bar(messages) as bar:
        task = bar.add_task("measuring", total=total)
        for chroma, (contestants, _) in chosen.items():
            known = list(results.points)
            for outcome in measure(sources[chroma], contestants, request.qps, known, request.jobs):
                bar.update(task, advance=1, description=f"{outcome.image}, {LABELS[outcome.contestant]}")
                if isinstance(outcome, Failure):
                    results.failures.append(outcome)
                else:
                    results.add(outcome)
                if request.json is not None:
                    save(results, request.json)
    if request.json is not None:
        save(results, request.json)


def _illustrate(
    request: Request, sources: Sequence[Source], contestants: Sequence[Contestant], results: Results, messages: Console
) -> list[Illustration]:
    tasks = [(source, contestants, results, request.qps) for source in sources]
    with _bar(messages) as bar:
        task = bar.add_task("drawing", total=len(tasks))
        found = {}
        for illustration in in_processes(illustrate, tasks, request.jobs):
            found[illustration.image] = illustration
            bar.advance(task)
    return [found[source.name] for source in sources]


def _bar(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _table(chroma: str, comparison: Comparison) -> Table:
    """One row a contestant, so that it fits a terminal: the mean, and the best and the worst image."""
    title = f"{':'.join(chroma)}: BD-rate over {LABELS[comparison.anchor]}, %"
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left")
    table.add_column("")
    for heading in ("PSNR-Y", "PSNR-YUV", "least", "greatest", "images"):
        table.add_column(heading, justify="right")
    for test in comparison.tests:
        numbers = [row[test].percent for row in comparison.luma.values()]
        known = [number for number in numbers if number is not None]
        table.add_row(
            LABELS[test],
            f"[bold]{signed(comparison.mean(test))}[/bold]",
            signed(comparison.mean(test, weighted=True)),
            signed(min(known, default=None)),
            signed(max(known, default=None)),
            f"{len(known)} of {len(numbers)}",
        )
    return table


def _failed(failure: Failure) -> str:
    return f"{failure.image}, {LABELS[failure.contestant]}, QP {failure.qp}: {failure.why}"
