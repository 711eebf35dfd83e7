# SPDX-License-Identifier: Apache-2.0
"""What a pose training is made of, read from a TOML or JSON file."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from .augment import Augmentation

OPTIMISERS, SCHEDULES, LOSSES = ("adam", "adamw"), ("cosine", "steps"), ("squares", "cross_entropy")
Settings = TypeVar("Settings")


@dataclass(frozen=True)
class DataSettings:
    """Where people come from: annotations with their images, or pictures that are rendered first.

    Args:
        annotations: JSON in COCO's format; relative to the configuration file.
        images: folder of its images.
        rendered: how many pictures are rendered instead.
        held_out: of the rendered: from the motions and backgrounds kept from training.
        seed: of the rendered.
    """

    annotations: str = ""
    images: str = ""
    rendered: int = 0
    held_out: bool = False
    seed: int = 0


@dataclass(frozen=True)
class PoseSettings:
    """How a pose network is trained.

    Args:
        train, held_out: the people. Nothing is chosen by those that are held out.
        model: a name of `flexor.models.pose.recipes()`.
        start: weights to start from, as `flexor pose run` reads them, relative to the configuration; "" draws them.
        behind: share of those seen from behind who are trained on. Small networks need long to tell both sides of a
            back from those of a front, and until then put the joints of both sides between them.
        epochs: passes over the people.
        batch: people a step, of all processes together.
        optimiser: "adam" or "adamw".
        rate: the learning rate after `warm_up` steps of linear rise.
        schedule: "cosine" falls to 0; "steps" divides by 10 after the epochs in `drops`.
        drops: epochs.
        warm_up: steps.
        weight_decay: of the optimiser.
        average: decay of the moving average of the weights that is kept, measured and shipped.
        bf16: convolutions in bfloat16, by autocast; weights, normalisation and loss stay float32.
        loss: of heatmaps: "squares", as the HRNet family has it, or "cross_entropy", see `heatmap_cross_entropy`.
        sigma: of the heatmaps' Gaussians, heatmap pixels.
        seed: of the weights, the order, the augmentation.
        save_every: steps between checkpoints; one is also written after every epoch.
        workers: processes that cut people out ahead of the network.
        augmentation: see Augmentation.
    """

    train: DataSettings
    held_out: DataSettings
    model: str = "small"
    start: str = ""
    behind: float = 1.0
    epochs: int = 20
    batch: int = 64
    optimiser: str = "adamw"
    rate: float = 1e-3
    schedule: str = "cosine"
    drops: tuple[int, ...] = ()
    warm_up: int = 100
    weight_decay: float = 1e-4
    average: float = 0.998
    bf16: bool = False
    loss: str = "squares"
    sigma: float = 2.0
    seed: int = 0
    save_every: int = 200
    workers: int = 0
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        for name, known in (("optimiser", OPTIMISERS), ("schedule", SCHEDULES), ("loss", LOSSES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        for name in ("epochs", "batch", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.behind <= 1:
            raise ValueError(f"behind must be from 0 to 1, got {self.behind}")
        if not 0 <= self.average < 1:
            raise ValueError(f"average must be from 0 to below 1, got {self.average}")


def read_settings(path: Path) -> PoseSettings:
    """The settings of a .toml or .json file.

    Raises:
        ValueError: a file that cannot be read, an unknown key, a value of another type; the message names it.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    try:
        content = json.loads(text) if path.suffix == ".json" else _toml(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return _fill(PoseSettings, content, str(path))


def _toml(text: str) -> Any:
    try:
        import tomllib
    except ModuleNotFoundError:
        raise ValueError("reading TOML needs Python 3.11: write the same keys as JSON") from None
    return tomllib.loads(text)


def _fill(kind: type[Settings], content: Any, where: str) -> Settings:
    """A dataclass from the keys of a table."""
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if not isinstance(content, dict):
        raise ValueError(f"{where}: must be a table of {', '.join(fields)}, got {content!r}")
    values: dict[str, Any] = {}
    for key, value in content.items():
        if key not in fields:
            raise ValueError(f"{where}: unknown key {key!r}; there are {', '.join(fields)}")
        values[key] = _value(fields[key], value, f"{where}: {key}")
    required = (f.name for f in fields.values() if f.default is f.default_factory is dataclasses.MISSING)
    missing = [name for name in required if name not in values]
    if missing:
        raise ValueError(f"{where}: {', '.join(missing)} must be given")
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


_TABLES = {"DataSettings": DataSettings, "Augmentation": Augmentation}


def _value(target: Any, value: Any, where: str) -> Any:
    kind = str(target.type)
    if kind in _TABLES:
        return _fill(_TABLES[kind], value, where)
    if kind == "tuple[int, ...]":
        if not isinstance(value, list) or not all(type(item) is int for item in value):
            raise ValueError(f"{where} must be a list of integers, got {value!r}")
        return tuple(value)
    if kind == "float" and type(value) is int:
        return float(value)
    if type(value).__name__ != kind:
        raise ValueError(f"{where} must be {kind}, got {value!r}")
    return value
