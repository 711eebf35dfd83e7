# SPDX-License-Identifier: Apache-2.0
"""What a run has done so far: a file that grows by one line a step, and survives a kill at any moment."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

FORMAT = "flexor pose journal 1"


class JournalError(ValueError):
    """A journal of another run, or one that is being written; the message is one line meant for the user."""


class Journal:
    """Lines of JSON: first the facts of the run, then one list of frames a step.

    A line that a kill cut short is dropped when the file is opened again. While it is open no other run can open it.

    Args:
        path: made with its folder where it does not exist.
        facts: what the results depend on, JSON can hold them; a journal with other facts is refused.

    Raises:
        JournalError: another run's, or no journal.
        OSError: a file that cannot be written.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any]) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("r+b" if path.exists() else "w+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.steps, self._ends = self._read({"format": FORMAT, **json.loads(json.dumps(facts))})
        except BlockingIOError:
            self._file.close()
            raise JournalError(f"{path}: another run is writing it") from None
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    @property
    def frames(self) -> list[dict[str, Any]]:
        """Of all steps, in order."""
        return [frame for step in self.steps for frame in step]

    def append(self, step: list[dict[str, Any]]) -> None:
        """Add a step; one that does not fit on the disk leaves the file as it was."""
        try:
            self._write(step)
        except OSError:
            os.ftruncate(self._file.fileno(), self._ends[-1])
            raise
        self.steps.append(step)

    def cut(self, steps: int) -> None:
        """Forget all but the first so many steps."""
        del self.steps[steps:], self._ends[steps + 1 :]
        os.ftruncate(self._file.fileno(), self._ends[-1])

    def sync(self) -> None:
        """Wait until the steps are on the disk."""
        os.fsync(self._file.fileno())

    def _read(self, facts: dict[str, Any]) -> tuple[list[list[dict[str, Any]]], list[int]]:
        """The steps of the file, and where its first line and each of them ends."""
        lines = self._file.read().splitlines(keepends=True)
        if not lines or not lines[0].endswith(b"\n"):  # new, or killed within the first line
            os.ftruncate(self._file.fileno(), 0)
            self._ends = [0]
            self._write(facts)
            return [], self._ends[1:]
        self._compare(_parsed(lines[0]), facts)
        steps, ends = [], [len(lines[0])]
        for line in lines[1:]:
            step = _parsed(line) if line.endswith(b"\n") else None
            if not isinstance(step, list):
                break
            steps.append(step)
            ends.append(ends[-1] + len(line))
        os.ftruncate(self._file.fileno(), ends[-1])
        return steps, ends

    def _compare(self, before: Any, now: dict[str, Any]) -> None:
        if not isinstance(before, dict) or before.get("format") != FORMAT:
            raise JournalError(f"{self.path}: is not a journal of flexor pose; give another folder")
        for key, value in now.items():
            if before.get(key) != value:
                raise JournalError(
                    f"{self.path}: was begun with {key} = {before.get(key)}, now it is {value}: give another folder, "
                    "or remove this file"
                )

    def _write(self, content: Any) -> None:
        line = json.dumps(content, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        self._file.seek(self._ends[-1])
        rest = memoryview(line)
        while rest:  # a raw file may take less than it was given
            rest = rest[self._file.write(rest) :]
        self._ends.append(self._ends[-1] + len(line))


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None
