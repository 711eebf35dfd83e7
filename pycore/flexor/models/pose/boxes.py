# SPDX-License-Identifier: Apache-2.0
"""Where people are to be looked for: boxes from files, whole frames, the poses of the frame before, or motion."""

from __future__ import annotations

import csv
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .motion import Backgrounds
from .tracking import Tracker
from .video import Clip, Frame

Rows = NDArray[np.float64]  # (N, 5): left, top, width, height, score
PERSON = 1  # COCO's category


class BoxesError(ValueError):
    """Boxes that cannot be used; the message is one line meant for the user."""


class Boxes(ABC):
    """Gives the boxes (N, 5) in which people are looked for in a frame; score is 1 where none is known."""

    sequential = False  # whether it needs the poses of the frame before

    @abstractmethod
    def __call__(self, frame: Frame, tracker: Tracker) -> Rows:
        """The boxes of a frame that has an image."""


class WholeFrame(Boxes):
    """Each frame is one person."""

    def __call__(self, frame: Frame, tracker: Tracker) -> Rows:
        assert frame.image is not None
        height, width = frame.image.shape[:2]
        return np.array([[0.0, 0.0, width, height, 1.0]])


class Moving(Boxes):
    """What moves before a still camera.

    Args:
        backgrounds: of the shots of the clip.
    """

    def __init__(self, backgrounds: Backgrounds) -> None:
        self.backgrounds = backgrounds

    def __call__(self, frame: Frame, tracker: Tracker) -> Rows:
        boxes = self.backgrounds.moving(frame)
        return np.column_stack([boxes, np.ones(len(boxes))])


class Followed(Boxes):
    """Around the poses of the frame before; those that `first` has for a frame come first.

    Args:
        first: of a file, whose boxes are taken in the frames for which it has some; else the whole frame, where
            nobody is followed.
    """

    sequential = True

    def __init__(self, first: Boxes) -> None:
        self.first = first

    def __call__(self, frame: Frame, tracker: Tracker) -> Rows:
        assert frame.image is not None
        height, width = frame.image.shape[:2]
        if isinstance(self.first, FromFile) and len(given := self.first(frame, tracker)):
            return given
        followed = tracker.boxes(frame.shot, (width, height))
        return followed if len(followed) or isinstance(self.first, FromFile) else self.first(frame, tracker)


class FromFile(Boxes):
    """Boxes of a file.

    JSON: COCO's list of detections, or a dictionary with `annotations`, as COCO and PoseTrack18 have them; where it
    lists its images, a folder's files are found by their names and a video's frames by their order, else image_id is
    a video's frame number, or the number that is an image's name. CSV: lines frame, left, top, width, height and
    perhaps score, frames from 0; a first line of words is passed over.

    Args:
        path: .json or .csv.
        clip: whose frames they are.
        min_score: boxes with less are left out.

    Raises:
        BoxesError: a file that cannot be read, boxes without extent, images that the file does not list.

    Attributes:
        warnings: what to tell the user of the boxes that were given so far.
    """

    def __init__(self, path: Path, clip: Clip, min_score: float = 0.2) -> None:
        self.path, self.names = path, [file.name for file in clip.files]
        try:
            rows, images = _read_csv(path) if path.suffix.lower() == ".csv" else _read_json(path)
        except OSError as error:
            raise BoxesError(f"{path}: {error.strerror or error}") from None
        except (ValueError, KeyError, TypeError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise BoxesError(f"{path}: is neither COCO's JSON nor CSV of boxes ({reason})") from None
        self._ids = _image_ids(path, clip, images)
        self._by_image: dict[int, list[list[float]]] = {}
        for image, row in rows:
            if not (np.isfinite(row).all() and row[2] > 0 and row[3] > 0):
                raise BoxesError(f"{path}: a box of image {image} has no extent: {row[:4]}")
            if row[4] >= min_score:
                self._by_image.setdefault(image, []).append(row)
        if not self._by_image:
            raise BoxesError(f"{path}: holds no boxes" + (f" of score {min_score} or more" if rows else ""))
        if clip.size:  # else every image has a size of its own
            for image, found in self._by_image.items():
                self._check(found, clip.size, f"image {image}")
        self._outside = 0
        self._used: set[int] = set()

    def __call__(self, frame: Frame, tracker: Tracker) -> Rows:
        assert frame.image is not None
        height, width = frame.image.shape[:2]
        image = self.image_id(frame)
        found = self._by_image.get(image, [])
        self._used.add(image)
        self._check(found, (width, height), f"frame {frame.index}")
        self._outside += sum(x < 0 or y < 0 or x + w > width or y + h > height for x, y, w, h, _ in found)
        return np.array(found, np.float64).reshape(-1, 5)

    def image_id(self, frame: Frame) -> int:
        """The file's number of a frame."""
        if self._ids is None:
            return frame.index
        if frame.index >= len(self._ids):
            raise BoxesError(f"{self.path}: lists {len(self._ids)} images, none for frame {frame.index}")
        return self._ids[frame.index]

    @property
    def warnings(self) -> list[str]:
        unused = len(self._by_image.keys() - self._used)
        found = [f"boxes that reach beyond their frames: {self._outside}"] if self._outside else []
        return [*found, f"images with boxes that are not among the frames: {unused}"] if unused else found

    def _check(self, rows: Iterable[list[float]], size: tuple[int, int], place: str) -> None:
        for x, y, w, h, _ in rows:
            if x >= size[0] or y >= size[1] or x + w <= 0 or y + h <= 0:
                raise BoxesError(
                    f"{self.path}: {place}: the box {[x, y, w, h]} (left, top, width, height) lies wholly outside "
                    f"{size[0]}x{size[1]} pixels"
                )


def image_ids(clip: Clip) -> list[int] | None:
    """The numbers that are the names of a clip's images; None for a video, and where a name is no number."""
    stems = [file.stem for file in clip.files]
    numbered = not clip.video and all(stem.isdecimal() for stem in stems) and len(set(map(int, stems))) == len(stems)
    return [int(stem) for stem in stems] if numbered else None


def _image_ids(path: Path, clip: Clip, images: list[tuple[int, str]]) -> list[int] | None:
    if not images:
        return image_ids(clip)
    if clip.video:
        return [number for number, _ in images]
    by_name: dict[tuple[str, ...], int] = {}
    for number, name in images:  # with the folder first: PoseTrack calls the first image of every video 000000.jpg
        by_name[Path(name).parts[-2:]] = number
        by_name.setdefault(Path(name).parts[-1:], number)
    found = []
    for file in clip.files:
        number = by_name.get(file.absolute().parts[-2:], by_name.get((file.name,)))  # type: ignore[assignment]
        if number is None:
            raise BoxesError(f"{path}: lists images, and {file.name} is not among them")
        found.append(number)
    return found


def _read_csv(path: Path) -> tuple[list[tuple[int, list[float]]], list[tuple[int, str]]]:
    rows = []
    with path.open(newline="") as file:
        for number, line in enumerate(csv.reader(file), start=1):
            if not line or (number == 1 and not line[0].strip().isdecimal()):
                continue
            if len(line) not in (5, 6):
                raise ValueError(f"line {number} has {len(line)} values: give frame,left,top,width,height[,score]")
            rows.append((int(line[0]), [float(value) for value in line[1:]] + [1.0] * (6 - len(line))))
    return rows, []


def _read_json(path: Path) -> tuple[list[tuple[int, list[float]]], list[tuple[int, str]]]:
    content: Any = json.loads(path.read_bytes())
    listed = content if isinstance(content, list) else content["annotations"]
    images = [] if isinstance(content, list) else content.get("images", [])
    rows = []
    for entry in listed:
        if entry.get("category_id", PERSON) == PERSON and "bbox" in entry:
            x, y, width, height = map(float, entry["bbox"])
            score = entry.get("score", 1.0)
            rows.append((int(entry["image_id"]), [x, y, width, height, float(score)]))
    if listed and not rows:
        raise ValueError("no entry of category 1 with a bbox")
    return rows, [(int(image["id"]), str(image["file_name"])) for image in images]
