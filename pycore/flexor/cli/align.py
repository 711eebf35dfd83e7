# SPDX-License-Identifier: Apache-2.0
"""The work behind `flexor align`: learn the alignment, measure it, write the pictures and the report."""

import json
import os
import platform
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text
from skimage.metrics import structural_similarity

import flexor

from ..models.align import STAGES, Alignment, AlignSettings, align
from . import pictures
from .frames import Frame

SMALLEST = 32
TITLES = {"before": "not aligned", "affine": "global affine", "flow": "dense flow", "deformable": "deformable"}


@dataclass(frozen=True)
class Job:
    """One run: the two frames, where they came from, and how to align them."""

    key: Frame
    neighbour: Frame
    key_name: str
    neighbour_name: str
    settings: AlignSettings
    device: str = "cpu"


def run(job: Job, out: Path, console: Console) -> dict[str, Any]:
    """Align, then write aligned.png, flow.png, difference.png, overview.png and alignment.json into `out`.

    Everything is written to a temporary folder beside `out` first, so that a failure leaves nothing behind.
    """
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
        alignment, seconds = _learn(job, console)
        report = measure(job, alignment, seconds)
        _write_pictures(job, alignment, report, Path(scratch))
        (Path(scratch) / "alignment.json").write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
        out.mkdir(exist_ok=True)
        for file in sorted(Path(scratch).iterdir(), reverse=True):
            os.replace(file, out / file.name)
    return report


def _learn(job: Job, console: Console) -> tuple[Alignment, dict[str, float]]:
    key, neighbour = (_to_tensor(frame, job.device) for frame in (job.key, job.neighbour))
    columns = (TextColumn("{task.description:>14}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    finished: dict[str, float] = {}
    start, cpu = time.perf_counter(), time.process_time()
    with Progress(*columns, console=console) as bar:
        tasks = {stage: bar.add_task(TITLES[stage], total=None, start=False) for stage in STAGES}

        def progress(stage: str, done: int, total: int) -> None:
            if done == 1:
                bar.start_task(tasks[stage])
            bar.update(tasks[stage], completed=done, total=total)
            finished[stage] = time.perf_counter() - start

        alignment = align(key, neighbour, job.settings, progress)
    seconds = dict(zip(STAGES, np.diff([0.0, *finished.values()]).tolist(), strict=True))
    return alignment, {**seconds, "total": time.perf_counter() - start, "cpu": time.process_time() - cpu}


def measure(job: Job, alignment: Alignment, seconds: dict[str, float]) -> dict[str, Any]:
    """PSNR and SSIM on the whole frame, after rounding to 8 bits, before and after each stage; and the settings."""
    frames = {"before": job.neighbour} | {stage: _to_frame(frame) for stage, frame in alignment.frames.items()}
    held_out = alignment.held_out[0, 0].cpu().numpy()
    quality = {
        stage: {
            "psnr_db": _psnr(job.key, frame),
            "ssim": round(float(structural_similarity(job.key, frame, channel_axis=2, data_range=255)), 4),
            "psnr_db_held_out": _psnr(job.key[held_out], frame[held_out]) if held_out.any() else None,
        }
        for stage, frame in frames.items()
    }
    before, after = quality["before"]["psnr_db"], quality[STAGES[-1]]["psnr_db"]
    height, width = job.key.shape[:2]
    return {
        "key": job.key_name,
        "neighbour": job.neighbour_name,
        "size": {"width": width, "height": height},
        "before": quality["before"],
        "after": quality[STAGES[-1]],
        "gain_db": None if before is None or after is None else round(after - before, 2),
        "stages": {stage: quality[stage] for stage in STAGES},
        "affine_matrix": [[round(value, 5) for value in row] for row in alignment.matrix.tolist()],
        "motion_px_99_percent": round(pictures.longest_motion(alignment.flow[0].cpu().numpy()), 2),
        "learned_numbers_per_pixel_value": round(alignment.parameters / job.key.size, 4),
        "seconds": {stage: round(value, 2) for stage, value in seconds.items()},
        "settings": asdict(job.settings) | {"device": job.device, "threads": torch.get_num_threads()},
        "versions": {
            "flexor": flexor.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "cpu_kernels": flexor._C.active_isa(),
        },
    }


def _write_pictures(job: Job, alignment: Alignment, report: dict[str, Any], folder: Path) -> None:
    aligned = _to_frame(alignment.frames[STAGES[-1]])
    flow = alignment.flow[0].cpu().numpy()
    before, after = (pictures.difference(job.key, frame) for frame in (job.neighbour, aligned))
    psnr_before, psnr_after = (_decibels(report[when]["psnr_db"]) for when in ("before", "after"))
    longest = pictures.longest_motion(flow)

    Image.fromarray(aligned).save(folder / "aligned.png")
    pictures.flow_picture(flow).save(folder / "flow.png")
    differences = [
        (f"before: {pictures.DIFFERENCE_GAIN} x |key - neighbour|", f"PSNR {psnr_before}", before),
        (f"after: {pictures.DIFFERENCE_GAIN} x |key - aligned|", f"PSNR {psnr_after}", after),
    ]
    pictures.panels([differences]).save(folder / "difference.png")
    top = [("key", "", job.key), ("neighbour", "", job.neighbour), ("neighbour, aligned", "", aligned)]
    motion = ("motion", f"full colour {longest:.0f} px", pictures.flow_to_colour(flow, longest))
    pictures.panels([top, [motion, *differences]]).save(folder / "overview.png")


def summary(report: dict[str, Any]) -> Table:
    """The stages of a report as a table."""
    table = Table(title=f"{report['neighbour']} aligned onto {report['key']}", title_justify="left")
    table.add_column("stage")
    for heading in ("PSNR", "SSIM", "PSNR on held-out tiles", "seconds"):
        table.add_column(heading, justify="right")
    for stage, quality in {"before": report["before"], **report["stages"]}.items():
        seconds = report["seconds"].get(stage)
        table.add_row(
            TITLES[stage],
            _decibels(quality["psnr_db"]),
            f"{quality['ssim']:.4f}",
            _decibels(quality["psnr_db_held_out"]),
            "" if seconds is None else f"{seconds:.1f}",
        )
    return table


def preview(path: Path, columns: int) -> Text:
    """A picture drawn in the terminal, two pixels a character."""
    with Image.open(path) as image:
        rows = max(2, 2 * round(columns * image.height / image.width / 2))
        pixels = np.asarray(image.convert("RGB").resize((columns, rows), Image.Resampling.BOX))
    text = Text(no_wrap=True)
    for upper, lower in zip(pixels[::2], pixels[1::2], strict=True):
        for over, under in zip(upper, lower, strict=True):
            text.append("▀", f"rgb({over[0]},{over[1]},{over[2]}) on rgb({under[0]},{under[1]},{under[2]})")
        text.append("\n")
    return text


def _to_tensor(frame: Frame, device: str) -> torch.Tensor:
    return torch.from_numpy(frame).to(device).permute(2, 0, 1)[None].float().div(255).contiguous()


def _to_frame(image: torch.Tensor) -> Frame:
    return image[0].mul(255).round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()


def _psnr(a: Frame, b: Frame) -> float | None:
    """PSNR in dB, or None where the frames are equal and it is infinite."""
    error = float(np.mean((a.astype(np.float64) - b) ** 2))
    return None if error == 0 else round(10 * float(np.log10(255**2 / error)), 2)


def _decibels(value: float | None) -> str:
    return "equal" if value is None else f"{value:.2f} dB"
