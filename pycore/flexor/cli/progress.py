# SPDX-License-Identifier: Apache-2.0
"""The bars of long work."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def epochs_bar(console: Console) -> Progress:
    """Epochs done, of tasks with a field `figures`; nothing on a quiet console."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, disable=console.quiet)


@contextmanager
def counted(name: str, total: int | None, things: str) -> Iterator[Callable[[int], None]]:
    """Things done and things a second, of a call with their count; nothing where stderr is no terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(30),
        MofNCompleteColumn(),
        TextColumn(f"{{task.fields[rate]:.2f}} {things} a second"),
        TimeRemainingColumn(),
    )
    start = time.perf_counter()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=total, rate=0.0)
        yield lambda count: bar.update(task, completed=count, rate=count / (time.perf_counter() - start))
