# SPDX-License-Identifier: Apache-2.0
"""The work behind `flexor lift`: train one run after another, evaluate them together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from ..models.checkpoint import CheckpointError, read_checkpoint
from ..models.lift import LiftSettings, Training, lift, load, subset
from ..models.lift_data import (
    Floats,
    Samples,
    TrainingSet,
    ViewSettings,
    actions_of_clips,
    held_out_clips,
    held_out_samples,
)
from ..models.mocap import Clips, MocapError, load_clips
from .lift_report import Report, Run
from .progress import epochs_bar

CHECKPOINT = "checkpoint.safetensors"
WATCHED_POSES = 2000


@dataclass(frozen=True)
class Mocap:
    """Motion capture as an experiment uses it: which clips are held out, how it is seen, what the actions are."""

    clips: Clips
    actions: list[str]
    held_out: NDArray[np.bool_]
    view: ViewSettings
    facts: dict[str, Any]
    notes: dict[str, Any]

    @classmethod
    def load(
        cls,
        source: str,
        *,
        action: str,
        hold_out: float | None,
        views: int,
        view: ViewSettings,
        unit: float,
        rate: float,
    ) -> Mocap:
        """Read the source; all of its clips are held out if `hold_out` is None."""
        clips = load_clips(source, unit, rate)
        held_out = np.ones(len(clips.names), bool) if hold_out is None else held_out_clips(clips, hold_out)
        facts = {"digest": clips.digest, "hold_out": hold_out, **asdict(view)}
        absolute = str(Path(source).absolute()) if Path(source).exists() else source
        notes = {"source": absolute, "action": action, "views": views, "unit": unit, "rate": rate}
        return cls(clips, actions_of_clips(clips, action), held_out, view, facts, notes)

    @classmethod
    def of_runs(cls, folders: Sequence[Path], other: str | None = None) -> Mocap:
        """What the runs were trained on, with their cameras; or other motion capture, seen in the same way."""
        states = [read_checkpoint(folder / CHECKPOINT)[1] for folder in folders]
        facts, notes = dict(states[0]["data"]), dict(states[0]["notes"])
        for folder, state in zip(folders, states, strict=True):
            if state["data"] != facts:
                raise CheckpointError(f"{folder} and {folders[0]} were trained on other data; evaluate one at a time")
        digest, hold_out = facts.pop("digest"), facts.pop("hold_out")
        view = ViewSettings(**facts | {"distance": tuple(facts["distance"]), "height": tuple(facts["height"])})
        if other is not None:
            return cls.load(hold_out=None, view=view, **notes | {"source": other})
        mocap = cls.load(hold_out=hold_out, view=view, **notes)
        if mocap.clips.digest != digest:
            raise MocapError(
                f"{notes['source']}: is not what {folders[0]} was trained on; give --data to use it anyway"
            )
        return mocap

    def test(self) -> Samples:
        return held_out_samples(self.clips, self.held_out, self.view, self.notes["views"])

    def training(self, seed: int) -> TrainingSet | None:
        return None if self.held_out.all() else TrainingSet(self.clips, self.held_out, self.view, seed)


def find_runs(folder: Path) -> list[Path]:
    """The folders with a checkpoint in `folder` or below, in alphabetical order."""
    if not folder.exists():
        raise CheckpointError(f"{folder}: no such folder")
    found = sorted(file.parent for file in folder.rglob(CHECKPOINT))
    if not found:
        raise CheckpointError(f"{folder}: holds no {CHECKPOINT}")
    return found


def train(runs: Sequence[LiftSettings], mocap: Mocap, out: Path, device: str, console: Console) -> list[Path]:
    """Train each run to its end in OUT/runs/NAME, from where it stands; the folders."""
    if out.exists() and not out.is_dir():
        raise MocapError(f"{out}: exists and is not a folder")
    watched = subset(mocap.test(), WATCHED_POSES)
    folders = [out / "runs" / settings.name for settings in runs]
    with epochs_bar(console) as bar:
        tasks = [bar.add_task(run.name, total=run.epochs, start=False, figures="") for run in runs]
        for settings, folder, task in zip(runs, folders, tasks, strict=True):
            data = mocap.training(settings.seed)
            assert data is not None
            training = Training(settings, data, watched, folder / CHECKPOINT, mocap.facts, mocap.notes, device)
            bar.start_task(task)

            def progress(
                poses: int, figures: dict[str, float], task: Any = task, training: Training = training
            ) -> None:
                error = f", held out {training.history[-1]['held_out_mm']:.1f} mm" if training.history else ""
                text = f"{poses} poses, loss {figures['loss']:.4f}{error}"
                bar.update(task, completed=training.epoch, figures=text)

            training.run(progress)
            text = f"{training.history[-1]['poses']} poses, held out {training.history[-1]['held_out_mm']:.1f} mm"
            bar.update(task, completed=training.epoch, figures=text)
    return folders


def evaluate(folders: Sequence[Path], mocap: Mocap, device: str) -> Report:
    """Lift the held-out samples by every run's network."""
    samples = mocap.test()
    runs, predictions = [], {}
    for folder in sorted(folders):
        model, settings, state = load(folder / CHECKPOINT)
        if settings.name in predictions:
            raise CheckpointError(f"{folder}: there is more than one {settings.name}; evaluate one folder at a time")
        predictions[settings.name] = lift(model.to(device), samples.inputs, device)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        runs.append(Run(settings, parameters, state["history"]))
    training = mocap.training(0)
    mean_pose: Floats | None = None if training is None else training.mean_target()
    clip = mocap.clips.clip_of_pose()[samples.pose]
    about = {**mocap.facts, **mocap.notes, "source": Path(mocap.clips.source).name}
    about |= {"clips": len(mocap.clips.names), "clips_held_out": int(mocap.held_out.sum())}
    about |= {"poses": len(mocap.clips.joints), "samples_held_out": len(samples.pose)}
    actions = [mocap.actions[index] for index in clip]
    names = np.array(mocap.clips.names)[clip]
    return Report(about, runs, samples, actions, names, predictions, mean_pose)
