# SPDX-License-Identifier: Apache-2.0
"""The pictures of `flexor lift`: errors while training, and lifted skeletons beside the truth."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from ..models.lift import TITLES
from ..models.lift_metrics import mpjpe
from ..models.mocap import PARENTS

if TYPE_CHECKING:
    from .lift_report import Report, Run

COLOURS = {"dgridconv": "#0f766e", "gridconv": "#65a30d", "martinez": "#c2410c", "gcn": "#7c3aed"}
TRUTH = "#a1a1aa"
ROWS = 4


def curves(report: Report) -> bytes:
    """Held-out error after every epoch, against the poses seen and against CPU time, as PNG."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    named = set()
    for axes, key, label in zip(figure.subplots(1, 2), ("poses", "cpu_seconds"), ("poses", "CPU seconds"), strict=True):
        for run in report.runs:
            name = _title(run)
            label_once = name if (name, key) not in named else None
            named.add((name, key))
            steps = [entry[key] for entry in run.history]
            errors = [entry["held_out_mm"] for entry in run.history]
            axes.plot(steps, errors, color=COLOURS[run.settings.model], lw=1.2, alpha=0.8, label=label_once)
        axes.set(xlabel=label, ylabel="held-out error, mm (protocol 1)", yscale="log")
        axes.grid(alpha=0.2, which="both")
    axes.legend(frameon=False)
    return _png(figure)


def skeletons(report: Report) -> bytes:
    """Held-out poses as the networks were given them and lifted them, each over the truth in grey, as PNG.

    A row is the pose of median error, by the first network, in one of the actions, which are evenly chosen.
    """
    runs = [run for run in report.runs if run.settings.seed == report.runs[0].settings.seed]
    first = mpjpe(report.predictions[runs[0].settings.name], report.samples.targets)
    actions = np.array(report.actions)
    names = np.unique(actions)
    names = names[np.unique(np.linspace(0, len(names) - 1, ROWS).astype(int))]
    figure = Figure(figsize=(2.6 * (1 + len(runs)), 2.7 * len(names) + 0.3), layout="constrained")
    figure.suptitle("grey: the truth, from the side; coloured: lifted; mm: protocol 1", fontsize=9)
    for row, action in enumerate(names):
        candidates = np.flatnonzero(actions == action)
        sample = candidates[np.argsort(first[candidates])[len(candidates) // 2]]
        place = (len(names), 1 + len(runs))
        axes = figure.add_subplot(*place, row * place[1] + 1)
        axes.set_title(f"{action}: detected joints", fontsize=8)
        _draw_flat(axes, report.samples.inputs[sample])
        target = report.samples.targets[sample]
        for column, run in enumerate(runs):
            prediction = report.predictions[run.settings.name][sample]
            axes = figure.add_subplot(*place, row * place[1] + 2 + column, projection="3d")
            error = 1000 * float(mpjpe(prediction[None], target[None])[0])
            axes.set_title(f"{_title(run)}: {error:.0f} mm", fontsize=8)
            _draw_deep(axes, target, TRUTH)
            _draw_deep(axes, prediction - prediction[0], COLOURS[run.settings.model])
    return _png(figure)


def _title(run: Run) -> str:
    return f"{TITLES[run.settings.model]} {run.settings.width}"


def _draw_flat(axes: Any, joints: Any) -> None:
    for joint, parent in enumerate(PARENTS):
        if parent >= 0:
            axes.plot(*joints[[parent, joint]].T, color="#27272a", lw=1.5)
    axes.set(aspect="equal", xticks=[], yticks=[])
    axes.invert_yaxis()


def _draw_deep(axes: Any, joints: Any, colour: str) -> None:
    """The camera's x, depth and height, seen from the side, where errors of depth show."""
    x, y, z = joints.T
    for joint, parent in enumerate(PARENTS):
        if parent >= 0:
            pair = [parent, joint]
            axes.plot(x[pair], z[pair], -y[pair], color=colour, lw=1.8)
    axes.set(xlim=(-0.8, 0.8), ylim=(-0.8, 0.8), zlim=(-1, 0.8), xticklabels=[], yticklabels=[], zticklabels=[])
    axes.set_box_aspect((1.6, 1.6, 1.8))
    axes.view_init(elev=12, azim=-40)


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()
