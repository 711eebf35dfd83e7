# SPDX-License-Identifier: Apache-2.0
"""The work behind `flexor pose`: from a clip to poses, files and pictures."""

from __future__ import annotations

import errno
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console

import flexor

from ..models.checkpoint import write_atomically
from ..models.pose.boxes import Boxes, Followed, FromFile, Moving, WholeFrame, image_ids
from ..models.pose.journal import Journal
from ..models.pose.motion import Backgrounds
from ..models.pose.pipeline import Estimator, Pipeline, shipped
from ..models.pose.recipe import Recipe, recipe
from ..models.pose.results import Result, coco_results, posetrack_results
from ..models.pose.video import Behind, Clip, Frame, Movie, Picture, SourceError, ahead, open_clip, shots
from .pose_pictures import ContactSheet, draw
from .progress import counted

FPS = Fraction(25)  # of a video that does not say
RANDOM, SEED = "random", 0
TRACKER, FULL, MOTION = "tracker", "full", "motion"
Job = tuple[Frame, Result]


@dataclass(frozen=True)
class Settings:
    model: str
    weights: str | None
    boxes: str
    min_box_score: float
    min_score: float
    flip: bool
    batch: int
    overlay: bool
    fps: float | None
    frames: int | None
    device: str


def run(sources: Sequence[Path], out: Path, settings: Settings) -> None:
    """Estimate, write, and say in a line what was done.

    Raises: ValueError, TypeError, NotImplementedError, OSError: what cannot be read, used or written.
    """
    if out.exists() and not out.is_dir():
        raise SourceError(f"{out}: exists and is not a folder")
    how = recipe(settings.model)
    weights = None if settings.weights == RANDOM else Path(settings.weights or shipped(settings.model))
    estimator = _estimator(how, weights, settings)
    clip = open_clip(sources)
    boxes = _boxes(settings, clip, sources)
    with _told_of_full_disks(out), Journal(out / "journal.jsonl", _facts(settings, clip, weights)) as journal:
        pipeline = Pipeline(
            estimator,
            boxes,
            journal,
            min_score=settings.min_score,
            image_id=_numbering(boxes, clip),
            states=out / "states.safetensors",
        )
        start = time.perf_counter()
        broken = _follow(clip, pipeline, how, out, settings)
        taken = time.perf_counter() - start
        results = [Result.from_json(record) for record in journal.frames]
        warnings = _warnings(results, boxes, how)
        _write(results, how, out, clip, settings, warnings)
        for warning in warnings:
            Console(stderr=True).print(warning, style="yellow", soft_wrap=True, highlight=False)
        Console().print(_line(out, results, pipeline, taken), highlight=False, soft_wrap=True)
        if broken is not None:
            raise broken


def _estimator(how: Recipe, weights: Path | None, settings: Settings) -> Estimator:
    options: dict[str, Any] = {"flip": settings.flip, "batch": settings.batch, "device": settings.device}
    if weights is not None:
        return Estimator.load(how.name, weights, **options)
    torch.manual_seed(SEED)
    return Estimator(how.build(), how, **options)


def _boxes(settings: Settings, clip: Clip, sources: Sequence[Path]) -> Boxes:
    kind, _, file = settings.boxes.partition(":")
    if settings.boxes == FULL:
        return WholeFrame()
    if settings.boxes == MOTION:
        with Console(stderr=True).status(f"{clip.name}: what stays in it"):
            return Moving(Backgrounds(ahead(shots(islice(open_clip(sources).frames, settings.frames)))))
    if kind == TRACKER:
        return Followed(FromFile(Path(file), clip, settings.min_box_score) if file else WholeFrame())
    return FromFile(Path(settings.boxes), clip, settings.min_box_score)


def _box_file(boxes: Boxes) -> FromFile | None:
    inner = boxes.first if isinstance(boxes, Followed) else boxes
    return inner if isinstance(inner, FromFile) else None


def _numbering(boxes: Boxes, clip: Clip) -> Callable[[Frame], int]:
    file, ids = _box_file(boxes), image_ids(clip)
    if file is not None:
        return file.image_id
    return lambda frame: frame.index if ids is None else ids[frame.index]


def _facts(settings: Settings, clip: Clip, weights: Path | None) -> dict[str, Any]:
    """All that the results depend on, as far as the command knows it."""
    kind, _, file = settings.boxes.partition(":")
    path = Path(file if kind == TRACKER else settings.boxes)
    named = settings.boxes in (FULL, MOTION, TRACKER)
    return {
        "source": clip.name,
        "source_sha256": _digest(clip.files),
        "model": settings.model,
        "weights_sha256": f"random, seed {SEED}" if weights is None else _digest([weights]),
        "boxes": settings.boxes if named else f"{kind if kind == TRACKER else 'file'} {_digest([path])}",
        "min_box_score": settings.min_box_score,
        "min_score": settings.min_score,
        "flip": settings.flip,
        "batch": settings.batch,
        "frames": settings.frames,
        "device": settings.device,
        "flexor": flexor.__version__,
    }


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _follow(clip: Clip, pipeline: Pipeline, how: Recipe, out: Path, settings: Settings) -> SourceError | None:
    """Run the pipeline to its end, drawing on another thread; the error that the frames ended in."""
    frames = islice(clip.frames, settings.frames)
    total = min(filter(None, (clip.count, settings.frames)), default=None)
    pictures = _Pictures(clip, how, out, settings)
    behind = Behind[Job](pictures.add)
    broken = None
    try:
        with counted(clip.name, total, "frames") as advance:
            try:
                for frame, result in pipeline.run(frames):
                    behind.put((frame, result))
                    advance(frame.index + 1)
            except SourceError as error:
                broken = error
        behind.close()
    except BaseException:
        behind.stop()
        pictures.close(keep=False)
        raise
    pictures.close()
    return broken


class _Pictures:
    """overlay.mp4 of a video, overlay/ of images; and contact.png."""

    def __init__(self, clip: Clip, how: Recipe, out: Path, settings: Settings) -> None:
        self._how, self._out, self._settings = how, out, settings
        self._sheet = ContactSheet()
        self._last: Picture | None = None
        self._names: set[str] = set()  # of images in overlay/
        fps = Fraction(settings.fps).limit_denominator(1001) if settings.fps else clip.fps or FPS
        self._movie = Movie(out / "overlay.mp4", fps) if settings.overlay and clip.video else None

    def add(self, job: Job) -> None:
        """A frame that could not be decoded shows the one before."""
        frame, result = job
        image = self._last if frame.image is None else frame.image
        if image is None:
            return
        self._last = image
        drawn = draw(image, result.people, self._how.skeleton, self._settings.min_score)
        self._sheet.add(result, drawn)
        if self._movie is not None:
            self._movie.write(drawn)
        elif self._settings.overlay:
            stem = Path(frame.name).stem
            name = stem if stem not in self._names else f"{stem}_{frame.index}"
            self._names.add(name)
            (self._out / "overlay").mkdir(exist_ok=True)
            Image.fromarray(drawn).save(self._out / "overlay" / f"{name}.png")

    def close(self, keep: bool = True) -> None:
        if self._movie is not None:
            self._movie.close(keep)
        sheet = self._sheet.picture() if keep else None
        if sheet is not None:
            sheet.save(self._out / "contact.png")


def _write(results: list[Result], how: Recipe, out: Path, clip: Clip, settings: Settings, warnings: list[str]) -> None:
    ids = {person.id for result in results for person in result.people}
    summary = {
        "source": clip.name,
        "model": settings.model,
        "joints": list(how.skeleton.joints),
        "frames": len(results),
        "people": len(ids),
        "poses": sum(len(result.people) for result in results),
        "cuts": [b.frame for a, b in pairwise(results) if a.shot != b.shot],
        "unusable": [{"frame": result.frame, "error": result.error} for result in results if result.error],
        "warnings": warnings,
        "flexor": flexor.__version__,
    }
    for name, content in (
        ("coco.json", coco_results(results, how.skeleton)),
        ("posetrack.json", posetrack_results(results, how.skeleton)),
        ("summary.json", summary),
    ):
        text = json.dumps(content, indent=2 if name == "summary.json" else None, allow_nan=False)
        write_atomically(out / name, text.encode() + b"\n")


def _warnings(results: Sequence[Result], boxes: Boxes, how: Recipe) -> list[str]:
    unusable = [result for result in results if result.error]
    found = []
    if len(results) == 1 and how.window != (0,):
        found.append(f"one frame: it stands in for the others that {how.name} looks at")
    if unusable:
        first = f"frame {unusable[0].frame}: {unusable[0].error}"
        found.append(f"{len(unusable)} of {len(results)} frames could not be used, the first is {first}")
    file = _box_file(boxes)
    return found + (file.warnings if file else [])


def _line(out: Path, results: Sequence[Result], pipeline: Pipeline, taken: float) -> str:
    poses = sum(len(result.people) for result in results)
    people = len({person.id for result in results for person in result.people})
    new = len(results) - pipeline.resumed
    facts = [
        f"{len(results)} {'frame' if len(results) == 1 else 'frames'}, {poses} poses of {people} people",
        f"{new / taken:.2f} frames a second, {pipeline.estimator.seconds / taken:.0%} of the time in the network",
    ]
    if pipeline.resumed:
        facts.insert(1, f"{pipeline.resumed} of them before")
    return f"{out}: {'; '.join(facts)}"


@contextmanager
def _told_of_full_disks(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise OSError(
            f"{out}: {error.strerror}; the frames that were done are kept, the same command goes on from there"
        ) from None
