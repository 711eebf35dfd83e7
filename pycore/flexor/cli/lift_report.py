# SPDX-License-Identifier: Apache-2.0
"""What `flexor lift` found: the figures, the file with what they are computed from, the table."""

from __future__ import annotations

import io
import json as json_module
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table

import flexor

from ..models import lift_metrics
from ..models.checkpoint import write_atomically
from ..models.lift import TITLES, LiftSettings
from ..models.lift_data import Floats, Samples


@dataclass(frozen=True)
class Run:
    """One trained network."""

    settings: LiftSettings
    parameters: int
    history: list[dict[str, float]]


@dataclass(frozen=True)
class Report:
    """Networks on the same held-out samples.

    Args:
        about: the data, for the JSON.
        runs: the networks.
        samples: what they were given, and the truth.
        actions, clips: a name a sample.
        predictions: (N, 17, 3) a run, metres, by the run's name.
        mean_pose: (17, 3), the training poses' mean, if there are any.
    """

    about: dict[str, Any]
    runs: Sequence[Run]
    samples: Samples
    actions: list[str]
    clips: NDArray[np.str_]
    predictions: dict[str, Floats]
    mean_pose: Floats | None

    @cached_property
    def figures(self) -> dict[str, Any]:
        """Everything that was measured, as JSON can hold it."""
        targets = self.samples.targets
        runs = []
        for run in self.runs:
            prediction = self.predictions[run.settings.name]
            runs.append(
                {
                    "name": run.settings.name,
                    **lift_metrics.report(prediction, targets, self.actions),
                    "parameters": run.parameters,
                    "settings": asdict(run.settings),
                    **{key: run.history[-1][key] for key in ("poses", "cpu_seconds")},
                    "epochs_done": len(run.history),
                    "history": run.history,
                }
            )
        mean = self.mean_pose
        return {
            "data": self.about,
            "summary": _summary(runs),
            "runs": runs,
            "mean_pose": None
            if mean is None
            else lift_metrics.report(np.broadcast_to(mean, targets.shape), targets, self.actions),
            "versions": {
                "flexor": flexor.__version__,
                "torch": torch.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
        }

    def write(self, json: Path | None, predictions: Path | None, pictures: Path | None) -> None:
        """Write what is asked for; all of it is made before the first file is touched."""
        contents: dict[Path, bytes] = {}
        if json is not None:
            contents[json] = (json_module.dumps(self.figures, indent=1, allow_nan=False) + "\n").encode()
        if predictions is not None:
            contents[predictions] = self._npz()
        if pictures is not None:
            from .lift_pictures import curves, skeletons

            contents[pictures / "curves.png"] = curves(self)
            contents[pictures / "skeletons.png"] = skeletons(self)
        for path, content in contents.items():
            write_atomically(path, content)

    def _npz(self) -> bytes:
        arrays: dict[str, Any] = {
            "inputs": self.samples.inputs,
            "targets": self.samples.targets,
            "pose": self.samples.pose,
            "action": np.array(self.actions),
            "clip": self.clips,
            **{f"prediction/{name}": prediction for name, prediction in self.predictions.items()},
        }
        file = io.BytesIO()
        np.savez_compressed(file, **arrays)
        return file.getvalue()

    def table(self) -> Table:
        """The models, a row each, their error as mean and range over the seeds."""
        about = self.about
        title = f"{about['samples_held_out']} poses of {about['clips_held_out']} held-out clips, errors in mm"
        table = Table(title=title, title_justify="left")
        table.add_column("model")
        for heading in ("seeds", "parameters", "poses", "CPU s", "protocol 1", "protocol 2"):
            table.add_column(heading, justify="right")
        for row in self.figures["summary"]:
            name = f"{TITLES[row['model']]}, {row['width']} channels"
            cost = (f"{row['parameters']:,}", f"{row['poses']:,.0f}", f"{row['cpu_seconds']:.0f}")
            table.add_row(name, str(len(row["seeds"])), *cost, _range(row["p1_mm"]), _range(row["p2_mm"]))
        if (mean := self.figures["mean_pose"]) is not None:
            errors = (f"{mean[p]['mean_over_actions_mm']:.1f}" for p in ("p1", "p2"))
            table.add_row("the training's mean pose", "", "", "", "", *errors)
        return table


def _summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each model and width, the mean over actions of each seed's run, the best model first."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["settings"]["model"], run["settings"]["width"]), []).append(run)
    rows = [
        {
            "model": model,
            "width": width,
            "seeds": [run["settings"]["seed"] for run in group],
            "parameters": group[0]["parameters"],
            "poses": float(np.mean([run["poses"] for run in group])),
            "cpu_seconds": float(np.mean([run["cpu_seconds"] for run in group])),
            **{f"{p}_mm": [run[p]["mean_over_actions_mm"] for run in group] for p in ("p1", "p2")},
        }
        for (model, width), group in groups.items()
    ]
    return sorted(rows, key=lambda row: float(np.mean(row["p1_mm"])))


def _range(errors: list[float]) -> str:
    mean = f"{np.mean(errors):.1f}"
    return mean if len(errors) == 1 else f"{mean} ({min(errors):.1f} to {max(errors):.1f})"
