# SPDX-License-Identifier: Apache-2.0
"""Poses of the people in a clip: windows of frames, crops, batches over people, tracks, and a run that can go on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .boxes import Boxes, Rows, WholeFrame
from .decode import decode_heatmaps, decode_simcc, flip_heatmaps, flip_simcc, heatmap_to_image
from .geometry import crop, crop_affine
from .inference import for_inference
from .journal import Journal
from .metrics import instance_scores
from .recipe import Maps, Recipe, recipe
from .results import Result
from .states import State, States, joined, parted
from .tracking import Person, Pose, Tracker, distinct
from .video import Frame, SourceError, ahead, shots, windows
from .weights import load_weights

SHIPPED = Path(__file__).with_name("weights")  # NAME.safetensors of the models that come with theirs
Window = tuple[Frame, ...]


class Estimator:
    """A network and how it is used: from windows of frames and boxes to poses.

    Args:
        model: as the recipe's `build` makes it; a copy is used, with its batch normalisation inside its convolutions.
        recipe: see `flexor.models.pose.recipe.Recipe`.
        flip: average with what the mirrored crops give, mirrored back.
        batch: people that go through the network together, at most.
        device: "cpu", or one that torch has.

    Raises:
        NotImplementedError: flip with a recurrent network.

    Attributes:
        seconds: spent inside the network so far.
    """

    def __init__(
        self, model: nn.Module, recipe: Recipe, *, flip: bool = False, batch: int = 4, device: str = "cpu"
    ) -> None:
        if flip and recipe.step is not None:
            raise NotImplementedError(f"{recipe.name} is recurrent: its states cannot be mirrored, leave flip out")
        self.model, self.recipe = for_inference(model).to(device), recipe
        self.flip, self.batch, self.device = flip, batch, device
        self.seconds = 0.0

    @classmethod
    def load(cls, name: str = "small", weights: Path | None = None, **options: Any) -> Estimator:
        """The estimator of that name.

        Args:
            name: a key of `flexor.models.pose.recipes()`.
            weights: .safetensors of `flexor pose convert`, or an official checkpoint; those that come with flexor,
                where they do, if None.
            options: as of the class.

        Raises:
            ValueError: an unknown name, a model without weights of its own.
            WeightsError: see `flexor.models.pose.weights.load_weights`.
        """
        how = recipe(name)
        weights = weights or shipped(name)
        model = how.build()
        load_weights(model, weights, name)
        return cls(model, how, **options)

    def __call__(
        self, windows: Sequence[Window], boxes: Rows, states: Sequence[Any] | None = None
    ) -> tuple[Pose, list[Any]]:
        """Poses of people.

        Args:
            windows: one a person, the frames at the recipe's offsets.
            boxes: (N, 4 or 5), left, top, width, height of each person, pixels.
            states: one a person, for a recurrent network; None where there is none yet.

        Returns:
            (N, K, 3): x, y in pixels, score; and each person's new state.
        """
        poses, new_states = [], []
        states = states if states is not None else [None] * len(windows)
        for start in range(0, len(windows), self.batch):
            part = slice(start, start + self.batch)
            found, after = self._batch(windows[part], torch.from_numpy(boxes[part, :4].copy()), states[part])
            poses.append(found)
            new_states += after
        return np.concatenate(poses) if poses else np.zeros((0, len(self.recipe.skeleton), 3)), new_states

    @torch.inference_mode()
    def _batch(self, windows: Sequence[Window], boxes: Tensor, states: Sequence[Any]) -> tuple[Pose, list[Any]]:
        how = self.recipe
        udp = how.crop == "udp"
        matrices = crop_affine(boxes, how.input_size, enlarge=how.enlarge, udp=udp)
        crops = [self._crops(window, matrix) for window, matrix in zip(windows, matrices, strict=True)]
        maps, after = self._maps(torch.stack(crops), states)
        if isinstance(maps, tuple):
            points, scores = decode_simcc(*maps)
            size = how.input_size
        else:
            points, scores = decode_heatmaps(maps, how.decode)
            size = (maps.shape[2], maps.shape[3])
        points = heatmap_to_image(points.cpu(), boxes, size, enlarge=how.enlarge, udp=udp)
        return torch.cat([points, scores.cpu().double()[..., None]], 2).numpy(), after

    def _crops(self, window: Window, matrix: Tensor) -> Tensor:
        """(T, 3, H, W); frames that stand in for others are cropped once."""
        found: dict[int, Tensor] = {}
        for frame in window:
            if frame.index not in found:
                assert frame.image is not None
                found[frame.index] = crop(frame.image, matrix, self.recipe.input_size)
        return torch.stack([found[frame.index] for frame in window])

    def _maps(self, crops: Tensor, states: Sequence[State | None]) -> tuple[Maps, list[Any]]:
        crops = crops.to(self.device)
        start = time.perf_counter()
        try:
            if self.recipe.step is not None:
                return self._steps(crops, states)
            maps = self.recipe.predict(self.model, crops)
            return self._with_mirrored(maps, crops) if self.flip else maps, [None] * len(crops)
        finally:
            self.seconds += time.perf_counter() - start

    def _with_mirrored(self, maps: Maps, crops: Tensor) -> Maps:
        mirrored = self.recipe.predict(self.model, crops.flip(-1))
        if isinstance(maps, tuple) and isinstance(mirrored, tuple):
            back = flip_simcc(*mirrored, self.recipe.skeleton)
            return (maps[0] + back[0]) / 2, (maps[1] + back[1]) / 2
        assert isinstance(maps, Tensor) and isinstance(mirrored, Tensor)
        shift = self.recipe.crop == "biased"
        return (maps + flip_heatmaps(mirrored, self.recipe.skeleton, shift=shift)) / 2

    def _steps(self, crops: Tensor, states: Sequence[Any]) -> tuple[Tensor, list[Any]]:
        """New people and known ones are different steps of a recurrent network."""
        assert self.recipe.step is not None
        maps: dict[int, Tensor] = {}
        after: dict[int, Any] = {}
        for known in (False, True):
            chosen = [number for number, state in enumerate(states) if (state is not None) == known]
            if chosen:
                before = joined([states[number] for number in chosen]) if known else None
                found, state = self.recipe.step(self.model, crops[chosen], before)
                maps |= dict(zip(chosen, found, strict=True))
                after |= dict(zip(chosen, parted(state, len(chosen)), strict=True))
        return torch.stack([maps[number] for number in range(len(crops))]), [after[n] for n in range(len(crops))]


def shipped(name: str) -> Path:
    """The weights that come with flexor.

    Raises:
        ValueError: a model that comes without.
    """
    path = SHIPPED / f"{name}.safetensors"
    if not path.exists():
        raise ValueError(f"{name} comes without weights: give --weights FILE, see flexor pose convert --help")
    return path


class Pipeline:
    """Poses and ids of the people in each frame, from where the journal stands.

    Frames are taken in steps: one by one where boxes or the network need the frame before, else as many as give a
    batch of people. A step is a line of the journal, so that a run that goes on has the same batches.

    Args:
        estimator: of the poses.
        boxes: where to look for people.
        journal: of this run; None for a run that is not kept.
        min_score: of a joint that is followed.
        image_id: numbers a frame; its index by default.
        states: file for the states of a recurrent network, written every 32 steps; a run goes on from there.
    """

    def __init__(
        self,
        estimator: Estimator,
        boxes: Boxes | None = None,
        journal: Journal | None = None,
        *,
        min_score: float = 0.2,
        image_id: Callable[[Frame], int] = lambda frame: frame.index,
        states: Path | None = None,
    ) -> None:
        self.estimator, self.boxes, self.journal = estimator, boxes or WholeFrame(), journal
        self.image_id = image_id
        self.tracker = Tracker(estimator.recipe.skeleton, min_score)
        self.recurrent = estimator.recipe.step is not None
        self.states = States(states if self.recurrent else None, journal)
        self.resumed = len(journal.frames) if journal else 0  # frames that need no work

    def run(self, frames: Iterable[Frame]) -> Iterator[tuple[Frame, Result]]:
        """Each frame and what was found in it, in order; frames are read ahead on another thread.

        Raises:
            SourceError: frames that end in an error, after the results of those before it.
        """
        done = self.journal.frames if self.journal else []
        alone = self.boxes.sequential or self.recurrent
        waiting: list[tuple[Window, Rows]] = []
        broken: SourceError | None = None
        try:
            for window in windows(ahead(shots(frames)), self.estimator.recipe.window):
                frame = window[0]
                rows = self._rows(frame)
                if frame.index < len(done):
                    yield frame, self._again(done[frame.index])
                    continue
                waiting.append((window, rows))
                people = sum(len(rows) for _, rows in waiting)
                if alone or max(people, len(waiting)) >= self.estimator.batch:
                    yield from self._step(waiting)
                    waiting = []
        except SourceError as error:
            broken = error
        if waiting:
            yield from self._step(waiting)
        if broken is not None:
            raise broken

    def _again(self, record: dict[str, Any]) -> Result:
        """What the journal says of a frame; the people are followed as they were."""
        result = Result.from_json(record)
        if not result.error:
            self.tracker.update(result.people, result.shot)
        return result

    def _rows(self, frame: Frame) -> Rows:
        return np.zeros((0, 5)) if frame.image is None else self.boxes(frame, self.tracker)

    def _step(self, waiting: Sequence[tuple[Window, Rows]]) -> list[tuple[Frame, Result]]:
        all_windows = [window for window, rows in waiting for _ in rows]
        all_rows = np.concatenate([rows for _, rows in waiting])
        before: list[Any] | None = None
        if self.recurrent:
            shot = waiting[0][0][0].shot
            before = [self.states.get(known) for known in self.tracker.nearest(all_rows, shot)]
        poses, after = self.estimator(all_windows, all_rows, before)
        results, place = [], 0
        for window, rows in waiting:
            part = slice(place, place + len(rows))
            result, kept = self._result(window[0], rows, poses[part])
            results.append((window[0], result))
            place += len(rows)
        if self.journal is not None:
            self.journal.append([result.to_json() for _, result in results])
        if self.recurrent and not result.error:  # a step is one frame
            self.states.replace({person.id: after[row] for person, row in zip(result.people, kept, strict=True)})
        return results

    def _result(self, frame: Frame, rows: Rows, poses: Pose) -> tuple[Result, list[int]]:
        """What was found in a frame, and which rows its people come from."""
        about = (frame.index, self.image_id(frame), frame.name, frame.shot)
        if frame.image is None:
            return Result(*about, error=frame.error or "could not be decoded"), []
        if not np.isfinite(poses).all():
            return Result(*about, error="the network's answer is not finite"), []
        people, kept = _people(rows, poses), list(range(len(rows)))
        if self.boxes.sequential:  # two who were followed into one
            kept = distinct(people, self.estimator.recipe.skeleton)
        return Result(*about, self.tracker.update([people[row] for row in kept], frame.shot)), kept


def _people(rows: Rows, poses: Pose) -> list[Person]:
    """Rounded here, once, so that a run that goes on from its journal knows the same numbers."""
    scores = instance_scores(rows[:, 4], poses[..., 2]).tolist()
    keypoints = np.concatenate([poses[..., :2].round(2), poses[..., 2:].round(4)], 2)
    return [
        Person(0, tuple(row[:4].round(2).tolist()), round(float(row[4]), 4), pose, round(score, 4))
        for row, pose, score in zip(rows, keypoints, scores, strict=True)
    ]
