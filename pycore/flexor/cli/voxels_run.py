# SPDX-License-Identifier: Apache-2.0
"""The work behind `flexor voxels`: read, voxelise, run and time a U-Net, train one, write what was found."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import nn

import flexor

from ..models import parallel
from ..models.checkpoint import write_atomically
from ..models.completion import Completion, CompletionSettings, baselines, score
from ..models.completion_data import BlockedScan, BlockSettings, Holes
from ..models.layer_times import LayerTime, time_layers
from ..models.points import Points, PointsError, read_points
from ..models.sparse_unet import CLASSES, ScanNetUNet, load_scn
from ..models.voxels import Level, Voxels, sparsity, tensor_of, voxelise
from . import voxels_pictures as pictures
from .progress import epochs_bar

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class Reading:
    """How scans are read: edge of a voxel, meaning of columns; see voxelise and read_points."""

    voxel: float | None
    columns: str | None

    def read(self, path: Path) -> tuple[Points, Voxels]:
        points = read_points(path, self.columns)
        return points, voxelise(points, self.voxel)


@dataclass(frozen=True)
class Showing:
    """What `show` runs: which network, with which weights, how often, where."""

    preset: str
    weights: Path | None
    repeats: int
    seed: int
    device: str

    def network(self) -> ScanNetUNet:
        torch.manual_seed(self.seed)
        model = ScanNetUNet.preset(self.preset).to(self.device)
        if self.weights is not None:
            try:
                state = torch.load(self.weights, map_location=self.device, weights_only=True)
            except OSError:
                raise
            except Exception as error:  # of a damaged file torch lets out whatever its parts raise
                text = (str(error).splitlines() or [type(error).__name__])[0]
                raise ValueError(f"{self.weights}: not a file of weights ({text})") from None
            if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
                raise ValueError(f"{self.weights}: must hold a state_dict")
            load_scn(model, state)
        return model.eval()


def show(scans: Sequence[Path], out: Path, reading: Reading, showing: Showing, console: Console) -> None:
    """Print, draw and note what `flexor voxels show` finds."""
    _check_folder(out)
    model = showing.network()
    found, contents = [], {}
    for path, name in zip(scans, _names(scans), strict=True):
        points, voxels = reading.read(path)
        levels = sparsity(voxels.coords, _depth(model))
        console.print(_sparsity_table(path, points, voxels, levels))
        make = partial(tensor_of, voxels.coords, torch.from_numpy(_colour_features(voxels)), showing.device)
        output, times = time_layers(model, make, showing.repeats)
        console.print(_times_table(times, showing))
        contents[out / f"{name}.png"] = _result_picture(voxels, model, output, showing)
        found.append(
            {
                "scan": path.name,
                "points": len(points),
                "points_dropped": points.dropped,
                "values": points.kind,
                "voxel": voxels.size,
                "levels": [asdict(level) for level in levels],
                "layers": [asdict(layer) for layer in times],
                "seconds": {part: sum(getattr(t, part) for t in times) for part in ("map", "compute")},
            }
        )
    weights = None if showing.weights is None else showing.weights.name
    about = {"preset": showing.preset, "weights": weights, "threads": torch.get_num_threads(), "versions": _versions()}
    contents[out / "voxels.json"] = _json({"scans": found, **about})
    _write(contents, console)


def fit(
    scans: Sequence[Path],
    out: Path,
    reading: Reading,
    settings: CompletionSettings,
    blocks: BlockSettings,
    device: str,
    evaluate: bool,
    console: Console,
) -> None:
    """Train to the end from where the run in OUT stands; then measure, print and draw."""
    _check_folder(out)
    names = _names(scans)
    blocked = [BlockedScan(reading.read(path)[1], blocks) for path in scans]
    digest = hashlib.sha256()
    for scan in blocked:
        digest.update(scan.voxels.coords.tobytes() + scan.voxels.values.tobytes())
    facts = {"digest": digest.hexdigest(), "voxel": [scan.voxels.size for scan in blocked]}
    notes = {"scans": [str(path.absolute()) for path in scans], "columns": reading.columns}
    training = Completion(settings, blocked, out / CHECKPOINT, facts, notes, device)
    _train(training, console)
    if not evaluate or parallel.rank() > 0:
        return
    figures, answers = _measure(training, names)
    lines = {
        "iou": {"nearest neighbour": figures["nearest"]["iou"]},
        "value_error": {
            "nearest neighbour": figures["nearest"]["value_error"],
            "mean of the eight nearest": figures["interpolated"]["value_error"],
        },
    }
    contents = {out / "metrics.json": _json({**figures, "versions": _versions()})}
    contents[out / "curves.png"] = pictures.curves(training.history, lines)
    for name, scan, hole, (said, values) in zip(names, blocked, training.tests, answers, strict=True):
        contents[out / f"{name}.png"] = _completion_picture(scan, hole, said, values, figures)
    console.print(_scores_table(figures, training))
    _write(contents, console)


def _train(training: Completion, console: Console) -> None:
    settings = training.settings
    with epochs_bar(console) as bar:
        task = bar.add_task("completion", total=settings.epochs, completed=training.epoch, figures="")

        def progress(steps: int, figures: dict[str, float]) -> None:
            last = f", held-out IoU {training.history[-1]['iou']:.3f}" if training.history else ""
            text = f"step {steps}/{settings.steps}, loss {figures['loss']:.3f}{last}"
            bar.update(task, completed=training.epoch, figures=text)

        training.run(progress)
        bar.update(task, completed=training.epoch, figures=f"held-out IoU {training.history[-1]['iou']:.3f}")


def _measure(training: Completion, names: Sequence[str]) -> tuple[dict[str, Any], list[Any]]:
    """Figures of all scans together and of each, and the network's answers."""
    answers = training.answers()
    together = baselines(training.tests)
    scores = [score(hole, *answer) for hole, answer in zip(training.tests, answers, strict=True)]
    total = scores[0]
    for one in scores[1:]:
        total += one
    radius = together["radius"]
    each = []
    for name, scan, hole, one in zip(names, training.scans, training.tests, scores, strict=True):
        nearest = score(hole, hole.distance <= radius, hole.nearest)
        counts = {"voxels": len(scan.voxels), "voxel": scan.voxels.size, "held_out": int(scan.held_out.sum())}
        asked = {"asked": int(hole.counted.sum()), "beyond_reach": hole.beyond}
        each.append({"scan": name, **counts, **asked, "unet": _figures(one), "nearest": _figures(nearest)})
    figures = {
        "unet": _figures(total) | {"threshold": training.threshold},
        "nearest": _figures(together["nearest"]) | {"radius": radius},
        "interpolated": {"value_error": together["interpolated"]},
        "scans": each,
        "parameters": sum(parameter.numel() for parameter in training.model.parameters()),
        "settings": asdict(training.settings),
        "data": training.facts["data"],
        "blocks": training.facts["blocks"],
        "history": training.history,
    }
    return figures, answers


def _figures(found: Any) -> dict[str, Any]:
    return {"iou": found.iou, "value_error": found.value_error}


def _completion_picture(
    scan: BlockedScan, hole: Holes, said: NDArray[np.bool_], values: NDArray[np.float32], figures: dict[str, Any]
) -> bytes:
    """The scan, what was left of it, what the network made of that; below, both answers judged."""
    coords, shown = scan.voxels.coords, scan.voxels.values
    left, radius = ~hole.asked, figures["nearest"]["radius"]
    kept = hole.coords[left]
    truth = coords[scan.held_out]
    filled = left | said
    guessed = hole.counted & (hole.distance <= radius)
    both = np.concatenate([coords, hole.coords[filled]])
    view = pictures.View.of(coords)
    paint = pictures.colours_of(both, np.concatenate([shown, values[filled]]))
    colours = paint[: len(coords)]
    return pictures.sheet(
        [
            [
                ("scan", f"{len(coords)} voxels", coords, colours),
                ("given", f"{len(kept)} voxels left", coords[~scan.held_out], colours[~scan.held_out]),
                (
                    "completed by the U-Net",
                    f"{int(said.sum())} voxels added",
                    hole.coords[filled],
                    paint[len(coords) :],
                ),
            ],
            [
                ("held out", "in blue", *pictures.verdict(kept, truth, kept[:0])),
                (
                    "nearest neighbour",
                    _remark(figures["nearest"]),
                    *pictures.verdict(kept, truth, hole.coords[guessed]),
                ),
                ("U-Net: green is right", _remark(figures["unet"]), *pictures.verdict(kept, truth, hole.coords[said])),
            ],
        ],
        view,
    )


def _remark(figures: dict[str, Any]) -> str:
    return f"IoU {figures['iou']:.2f}; red is wrong, blue missing"


def _result_picture(voxels: Voxels, model: ScanNetUNet, output: torch.Tensor, showing: Showing) -> bytes:
    """The voxels in their colours beside the classes, or the features, that the network gave them."""
    numbers = output.float().cpu().numpy()
    if showing.weights is None:
        weight = model.linear.weight.detach().cpu().numpy()
        result = ("features of random weights", "main directions", pictures.colours_of_features(numbers @ weight))
    else:
        classes = numbers.argmax(1)
        common = np.bincount(classes, minlength=len(CLASSES)).argsort()[::-1][:3]
        result = ("classes", ", ".join(CLASSES[index] for index in common), pictures.colours_of_classes(classes))
    first = ("scan", f"{len(voxels)} voxels of {voxels.size:g}", voxels.coords)
    view = pictures.View.of(voxels.coords)
    return pictures.sheet(
        [[(*first, pictures.colours_of(voxels.coords, voxels.values)), (*result[:2], voxels.coords, result[2])]], view
    )


def _colour_features(voxels: Voxels) -> NDArray[np.float32]:
    """Three channels in -1..1, as the ScanNet network takes them; intensity three times, or 1 without either."""
    values = voxels.values if voxels.values.shape[1] else np.ones((len(voxels), 1), np.float32)
    return np.array(np.broadcast_to(2 * values - 1, (len(voxels), 3)), np.float32)


def _depth(model: nn.Module) -> int:
    return sum(1 for name, _ in model.named_modules() if name.endswith("down")) + 1


def _sparsity_table(path: Path, points: Points, voxels: Voxels, levels: Sequence[Level]) -> Table:
    dropped = f", {points.dropped} not finite left out" if points.dropped else ""
    kind = "no values" if points.kind == "none" else points.kind
    title = f"{path.name}: {len(points)} points ({kind}{dropped}) in {len(voxels)} voxels of {voxels.size:g}"
    table = Table(title=title, title_justify="left")
    for heading in ("level", "voxels", "box", "occupied", "neighbours", "pairs"):
        table.add_column(heading, justify="right")
    for number, level in enumerate(levels):
        box = "x".join(map(str, level.shape))
        share = f"{100 * level.occupancy:.2f} %"
        row = (f"{level.voxels:,}", box, share, f"{level.neighbours:.1f} of 26", f"{level.pairs:,}")
        table.add_row(str(number), *row)
    return table


def _times_table(times: Sequence[LayerTime], showing: Showing) -> Table:
    threads = torch.get_num_threads()
    title = f"ScanNet U-Net {showing.preset}, {threads} thread{'s' if threads > 1 else ''}, milliseconds"
    table = Table(title=title, title_justify="left", show_footer=True)
    total_map, total = (1e3 * sum(getattr(t, part) for t in times) for part in ("map", "compute"))
    table.add_column("level", footer="all", justify="right")
    table.add_column("layer", no_wrap=True)
    footers = {
        "channels": "",
        "voxels": "",
        "pairs": "",
        "map": f"{total_map:.2f}",
        "conv": f"{total:.2f}",
        "GFLOP/s": "",
    }
    for heading, footer in footers.items():
        table.add_column(heading, justify="right", footer=footer, no_wrap=True)
    norms = [layer for layer in times if "norm" in layer.name.rpartition(".")[2]]
    for layer in times:
        if layer not in norms:
            table.add_row(*_place(layer.name), *_time_cells(layer))
    table.add_row("", f"{len(norms)} norms", *[""] * 4, f"{1e3 * sum(norm.compute for norm in norms):.2f}", "")
    return table


def _time_cells(layer: LayerTime) -> tuple[str, ...]:
    pairs = f"{layer.pairs:,}" if layer.pairs else ""
    map_time = "" if not layer.pairs else "shared" if layer.shared else f"{1e3 * layer.map:.2f}"
    speed = f"{layer.flops / layer.compute / 1e9:.1f}" if layer.flops else ""
    return layer.channels, f"{layer.voxels:,}", pairs, map_time, f"{1e3 * layer.compute:.2f}", speed


def _place(name: str) -> tuple[str, str]:
    """Level and name in it: unet.levels.deeper.deeper.before.0.conv is before.0 of level 2."""
    if "levels" not in name:
        return "", name.removeprefix("unet.")
    return str(name.count("deeper")), name.rpartition("deeper.")[2].removeprefix("unet.levels.").removesuffix(".conv")


def _scores_table(figures: dict[str, Any], training: Completion) -> Table:
    held_out = sum(scan["held_out"] for scan in figures["scans"])
    title = f"held-out blocks of {len(figures['scans'])} scans, {held_out} voxels"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    table.add_column("IoU", justify="right")
    table.add_column("error of values, 0 to 1", justify="right")

    def row(name: str, found: dict[str, Any]) -> None:
        iou, error = (found.get(key) for key in ("iou", "value_error"))
        table.add_row(name, *("" if value is None else f"{value:.4f}" for value in (iou, error)))

    row(f"nearest neighbour within {figures['nearest']['radius']:.2f} voxels", figures["nearest"])
    row("mean of the eight nearest", figures["interpolated"])
    cost = f"{training.step} steps, {training.cpu:.0f} s of CPU time"
    row(f"U-Net, {figures['parameters']:,} parameters, {cost}", figures["unet"])
    return table


def _names(scans: Sequence[Path]) -> list[str]:
    """A name for each scan's picture: its file's, numbered where two are the same."""
    stems = [path.stem for path in scans]
    return [stem if stems.count(stem) == 1 else f"{stem}_{number}" for number, stem in enumerate(stems)]


def _check_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise PointsError(f"{out}: exists and is not a folder")


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()


def _write(contents: dict[Path, bytes], console: Console) -> None:
    """All was made before the first file is touched."""
    for path, content in contents.items():
        write_atomically(path, content)
    console.print(f"[bold]{next(iter(contents)).parent}/[/bold]: " + ", ".join(sorted(path.name for path in contents)))


def _versions() -> dict[str, str]:
    versions = {"flexor": flexor.__version__, "torch": torch.__version__, "python": platform.python_version()}
    return {**versions, "cpu_kernels": flexor._C.active_isa()}
