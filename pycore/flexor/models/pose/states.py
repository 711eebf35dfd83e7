# SPDX-License-Identifier: Apache-2.0
"""The states of a recurrent network, one a person, and the file from which a run goes on with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..checkpoint import write_atomically
from .journal import Journal

State = tuple[Tensor, ...]  # each with people first
EVERY = 32  # steps, after which the states are written


class States:
    """States by the ids of people.

    The file is written every 32 steps, after the journal's lines of these steps are on the disk. A run that goes on
    takes the states of the file, and forgets the later lines of the journal: these steps are made again.

    Args:
        path: of the file; None where nothing is kept.
        journal: of the run.
    """

    def __init__(self, path: Path | None, journal: Journal | None) -> None:
        self._path, self._journal = path, journal
        self._states: dict[int, State] = {}
        if path is not None and journal is not None:
            steps, states = _read(path)
            if steps <= len(journal.steps):
                self._states = states
            journal.cut(steps if steps <= len(journal.steps) else 0)

    def get(self, person: int | None) -> State | None:
        """The state of a person; None for somebody new."""
        return None if person is None else self._states.get(person)

    def replace(self, states: Mapping[int, State]) -> None:
        """Those after one more step, of the people who were seen in it."""
        self._states = dict(states)
        if self._path is None or self._journal is None or len(self._journal.steps) % EVERY:
            return
        self._journal.sync()
        tensors = {f"{person}.{n}": part for person, state in states.items() for n, part in enumerate(state)}
        plain = {key: tensor.cpu().contiguous() for key, tensor in tensors.items()}
        write_atomically(self._path, save(plain, {"steps": str(len(self._journal.steps))}))


def joined(states: Sequence[State]) -> State:
    """One state of several people from their states."""
    return tuple(torch.cat(parts) for parts in zip(*states, strict=True))


def parted(state: State, people: int) -> list[State]:
    """The states of so many people."""
    return list(zip(*(part.split(1) for part in state), strict=True)) if people else []


def _read(path: Path) -> tuple[int, dict[int, State]]:
    """After how many steps a file was written, 0 where there is none that can be read; and the states."""
    try:
        with safe_open(path, "pt") as file:
            steps = int(file.metadata()["steps"])
            parts: dict[int, dict[int, Tensor]] = {}
            for key in file.keys():  # noqa: SIM118
                person, number = map(int, key.split("."))
                parts.setdefault(person, {})[number] = file.get_tensor(key)
    except (OSError, SafetensorError, TypeError, KeyError, ValueError):
        return 0, {}
    return steps, {person: tuple(part for _, part in sorted(found.items())) for person, found in parts.items()}
