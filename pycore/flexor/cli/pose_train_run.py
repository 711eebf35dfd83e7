# SPDX-License-Identifier: Apache-2.0
"""The work behind `flexor pose train`."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..models import parallel
from ..models.checkpoint import write_atomically
from ..models.pose.coco_keypoints import CocoKeypoints
from ..models.pose.recipe import Recipe, recipe
from ..models.pose.trainer import Found, PoseTraining, evaluate
from ..models.pose.training_settings import DataSettings, read_settings

CHECKPOINT, WEIGHTS, METRICS, RENDERED = "checkpoint.safetensors", "weights.safetensors", "metrics.json", "rendered"


def train(config: Path, out: Path, model: str | None, assets: Path, half: bool, device: str, console: Console) -> None:
    """Train to the end from where the folder stands, and write weights and metrics."""
    settings = read_settings(config)
    settings = dataclasses.replace(settings, model=model) if model else settings
    how = recipe(settings.model)
    parallel.start()
    console.quiet = parallel.rank() > 0
    try:
        out.mkdir(parents=True, exist_ok=True)
        if parallel.rank() == 0:
            for data in (settings.train, settings.held_out):
                _render(data, out, assets, console)
        parallel.wait()
        people, held_out = (_people(data, config.parent, out, how) for data in (settings.train, settings.held_out))
        notes, base = {"config": config.name}, config.parent
        training = PoseTraining(settings, how, people, held_out, out / CHECKPOINT, notes, device, base)
        _run(training, console)
        if parallel.rank() == 0:
            _finish(training, held_out, out, half, console)
        parallel.wait()
    finally:
        parallel.stop()


def _folder(data: DataSettings, out: Path) -> Path:
    return out / RENDERED / f"{'held-out' if data.held_out else 'training'}-seed{data.seed}"


def _render(data: DataSettings, out: Path, assets: Path, console: Console) -> None:
    if not data.rendered:
        return
    from ..models.pose.rendered import RenderSettings, render

    settings = RenderSettings(data.rendered, held_out=data.held_out, seed=data.seed)
    with _bar(console) as bar:
        task = bar.add_task("render", total=data.rendered, figures="")
        render(settings, assets, _folder(data, out), lambda count: bar.update(task, completed=count))


def _people(data: DataSettings, base: Path, out: Path, how: Recipe) -> CocoKeypoints:
    if data.rendered:
        folder = _folder(data, out)
        return CocoKeypoints(folder / "annotations.json", folder / "images", how)
    if not data.annotations:
        raise ValueError("train and held_out need annotations and images, or rendered")
    return CocoKeypoints(base / data.annotations, base / data.images, how)


def _bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, TextColumn("{task.fields[figures]}"), *times, console=console, disable=console.quiet)


def _run(training: PoseTraining, console: Console) -> None:
    total = len(training.steps) * training.settings.batch
    with _bar(console) as bar:
        before, start = training.step * training.settings.batch, time.perf_counter()
        task = bar.add_task(training.settings.model, total=total, completed=before, figures="")

        def progress(people: int, figures: dict[str, float]) -> None:
            speed = (people - before) / (time.perf_counter() - start)
            measured = f", PCK {figures['pck']:.3f}" if "pck" in figures else ""
            text = f"{speed:.0f} people/s, loss {figures['loss']:.6f}{measured}"
            bar.update(task, completed=people, figures=text)

        training.run(progress)


def _finish(training: PoseTraining, held_out: CocoKeypoints, out: Path, half: bool, console: Console) -> None:
    found: Found = evaluate(training.average.module, training.recipe, held_out, training.device)
    rates = dict(zip(training.recipe.skeleton.joints, found.rates, strict=True))
    content: dict[str, Any] = {
        **training.facts,
        "cpu_seconds": round(training.cpu, 1),
        "pck": found.pck,
        "pck_by_joint": {joint: rate for joint, rate in rates.items() if rate == rate},
        "history": training.history,
        "torch": torch.__version__,
    }
    write_atomically(out / METRICS, json.dumps(content, indent=1).encode())
    summary = {"pck": f"{found.pck:.4f}", "people": str(training.step * training.settings.batch)}
    training.write_weights(out / WEIGHTS, summary, torch.float16 if half else torch.float32)
    console.print(f"PCK@0.2 on {len(held_out)} held-out people: {100 * found.pck:.1f} %; {out / WEIGHTS}")
