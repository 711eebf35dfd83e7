# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a training: one safetensors file, replaced in one step, with all that a resumed run needs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

LIFT, VOXELS, POSE = "flexor lift 1", "flexor voxels 1", "flexor pose training 1"  # what a file says it is


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, and why."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, whatever ends this process meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def save_checkpoint(
    path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, state: dict[str, Any], kind: str = LIFT
) -> None:
    """Write the weights, the optimiser's tensors, torch's random state, and `state`, which JSON can hold."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, values in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{name}": value for name, value in values.items()}
    tensors["random"] = torch.get_rng_state()
    metadata = {"format": kind, "state": json.dumps(state)}
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(plain, metadata))


def read_checkpoint(path: Path, kind: str = LIFT) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the state of a checkpoint.

    Raises:
        CheckpointError: no such file, or another one.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != kind:
                raise CheckpointError(f"{path}: not a checkpoint of {kind.rpartition(' ')[0]}")
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(metadata["state"])  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: {error}") from None


def restore(tensors: dict[str, Tensor], model: nn.Module, optimiser: torch.optim.Optimizer | None = None) -> None:
    """Put a checkpoint's tensors where they came from; with an optimiser, the random state too."""
    model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    if optimiser is None:
        return
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimiser."):
            _, index, key = name.split(".", 2)
            states.setdefault(int(index), {})[key] = tensor
    optimiser.load_state_dict({"state": states, "param_groups": optimiser.state_dict()["param_groups"]})
    torch.set_rng_state(tensors["random"])


class Resumable:
    """A training and the file it is kept in; where the file exists, it goes on from there.

    Args:
        path: written by `save`.
        kind: of the file, LIFT, VOXELS or POSE.
        model, optimiser: what is trained, and by what.
        facts: groups of facts by name; a file with other ones is refused. JSON can hold them.
        notes: more that the file shall say.

    Raises:
        ValueError: a file with other facts.
        CheckpointError: a file that cannot be read.
    """

    def __init__(
        self,
        path: Path,
        kind: str,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        facts: dict[str, Any],
        notes: dict[str, Any],
    ) -> None:
        self.path, self.kind, self.model, self.optimiser, self.notes = path, kind, model, optimiser, notes
        self.facts: dict[str, dict[str, Any]] = json.loads(json.dumps(facts))
        self.step, self.cpu = 0, 0.0
        self.part = 0.0  # what an epoch that is under way has added up
        self.history: list[dict[str, float]] = []
        if path.exists():
            self._resume()

    @property
    def epoch(self) -> int:
        return len(self.history)

    def save(self) -> None:
        progress = {"step": self.step, "cpu_seconds": self.cpu, "history": self.history, "part": self.part}
        state = {**self.facts, "notes": self.notes, **progress}
        save_checkpoint(self.path, self.model, self.optimiser, state, self.kind)

    def _resume(self) -> None:
        tensors, state = read_checkpoint(self.path, self.kind)
        for part, facts in self.facts.items():
            for key, value in facts.items():
                if state[part].get(key) != value:
                    raise ValueError(
                        f"{self.path} was trained with {key} = {state[part].get(key)}, now it is {value}: "
                        "give another folder"
                    )
        restore(tensors, self.model, self.optimiser)
        self.step, self.cpu, self.history = state["step"], state["cpu_seconds"], state["history"]
        self.part = state.get("part", 0.0)
