# SPDX-License-Identifier: Apache-2.0
"""The work behind `flexor hevc decode`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from ..codec import hevc
from .hevc_files import OutputError, output

SHOW_AFTER = 0.5  # seconds: what is done by then needs no bar


@dataclass(frozen=True)
class Decoding:
    frames: int | None = None
    threads: int | None = None
    skip_inter: bool = False
    keep_damaged: bool = False


def decode(source: Path, out: Path, settings: Decoding) -> None:
    """Writes the pictures, and one line on what they are.

    Raises: HevcError, HevcUnsupported, OSError; ValueError for pictures that OUT cannot hold, and damaged ones.
    """
    if out.is_dir():
        raise OutputError(f"{out} is a folder: name a file in it")
    console = Console(stderr=True)
    start, count, checked, damaged = time.perf_counter(), 0, 0, 0
    with output(out) as file, _progress(console, source) as progress:
        for picture in hevc.iterate(
            source, threads=settings.threads, skip_inter=settings.skip_inter, progress=progress
        ):
            if picture.damaged and not settings.keep_damaged:
                raise OutputError(
                    f"{source}: picture {count} is damaged: {picture.damage}; --keep-damaged writes it all the same"
                )
            file.write(picture)
            count += 1
            checked += picture.hash is not None and not picture.damaged
            damaged += picture.damaged
            if count == settings.frames:
                break
    if settings.frames is not None and count < settings.frames:
        console.print(f"{source} has {count} pictures, not {settings.frames}", style="yellow", highlight=False)
    written = file.files[0].name if len(file.files) == 1 else f"{file.files[0].name} .. {file.files[-1].name}"
    facts = [
        f"{count} {'picture' if count == 1 else 'pictures'} of {picture.width}x{picture.height}, {picture.chroma}, "
        f"{picture.bit_depth} bit",
        f"{checked} as their hash says" if checked else "" if damaged else "no hash to check",
        f"{damaged} damaged" if damaged else "",
        f"{time.perf_counter() - start:.2f} s",
    ]
    Console().print(f"{written}: {'; '.join(filter(None, facts))}", highlight=False, soft_wrap=True)


@contextmanager
def _progress(console: Console, source: Path) -> Iterator[Callable[[int, int], None]]:
    """A bar of bytes read, once half a second has gone by; nothing where stderr is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(30), DownloadColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    task = bar.add_task(source.name, total=None)
    start, shown = time.perf_counter(), False

    def advance(read: int, size: int) -> None:
        nonlocal shown
        if not shown and time.perf_counter() - start > SHOW_AFTER:
            shown = True
            bar.start()
        bar.update(task, completed=read, total=size)

    try:
        yield advance
    finally:
        if shown:
            bar.stop()
