# SPDX-License-Identifier: Apache-2.0
"""What `flexor pose` draws: skeletons over frames, and a sheet of frames."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..models.pose.results import Result
from ..models.pose.skeleton import Skeleton
from ..models.pose.tracking import Person
from ..models.pose.video import Picture
from .pictures import panels

COLUMNS, ROWS = 3, 3  # of the sheet
THUMBNAIL = 400, 300  # pixels, at most
GOLDEN = 0.618034  # hues that far apart are told apart for many people
SHADOW = (24, 24, 27)


def draw(image: Picture, people: Sequence[Person], skeleton: Skeleton, min_score: float) -> Picture:
    """The frame with everybody's limbs and joints of a score, in a colour of their own, and their ids."""
    if not people:
        return image
    canvas = Image.fromarray(image)
    brush = ImageDraw.Draw(canvas)
    for person in people:
        _draw_person(brush, person, skeleton, min_score)
    return np.asarray(canvas)


def colour(person: int) -> tuple[int, int, int]:
    """Of a person's id."""
    red, green, blue = colorsys.hsv_to_rgb(0.55 + person * GOLDEN, 0.75, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def _draw_person(brush: ImageDraw.ImageDraw, person: Person, skeleton: Skeleton, min_score: float) -> None:
    seen = person.keypoints[:, 2] >= min_score
    points = [(float(x), float(y)) for x, y in person.keypoints[:, :2]]
    width = max(2, round(min(person.box[2], person.box[3]) / 60))
    own = colour(person.id)
    for ink, extra in ((SHADOW, 2), (own, 0)):
        for a, b in skeleton.limbs:
            if seen[a] and seen[b]:
                brush.line((points[a], points[b]), ink, width + extra)
    for (x, y), there in zip(points, seen, strict=True):
        if there:
            radius = width * 0.9
            brush.ellipse((x - radius, y - radius, x + radius, y + radius), (255, 255, 255), own)
    if seen.any():
        x, y = min((point for point, there in zip(points, seen, strict=True) if there), key=lambda point: point[1])
        font = ImageFont.load_default(max(12, 5 * width))
        brush.text((x, y - 2 * width), str(person.id), own, font, "mb", stroke_width=2, stroke_fill=SHADOW)


class ContactSheet:
    """Frames from all over a clip whose length is not known before, the same for the same clip.

    Frames are kept at a distance that doubles whenever there are too many.
    """

    def __init__(self) -> None:
        self._every = 1
        self._kept: list[tuple[int, str, Picture]] = []

    def add(self, result: Result, image: Picture) -> None:
        """A frame with what was drawn on it; frames come in order."""
        if result.frame % self._every:
            return
        people = f"{len(result.people)} {'person' if len(result.people) == 1 else 'people'}"
        thumbnail = Image.fromarray(image)
        thumbnail.thumbnail(THUMBNAIL)
        self._kept.append((result.frame, people, np.asarray(thumbnail)))
        if len(self._kept) > 4 * COLUMNS * ROWS:
            self._every *= 2
            self._kept = [entry for entry in self._kept if entry[0] % self._every == 0]

    def picture(self) -> Image.Image | None:
        """The sheet; None without frames."""
        if not self._kept:
            return None
        last = len(self._kept) - 1
        chosen = np.unique(np.linspace(0, last, min(COLUMNS * ROWS, last + 1)).round().astype(int))
        size = np.max([self._kept[place][2].shape[:2] for place in chosen], 0)
        titled = [
            (f"frame {frame}", people, _centred(image, size))
            for frame, people, image in map(self._kept.__getitem__, chosen)
        ]
        return panels([titled[start : start + COLUMNS] for start in range(0, len(titled), COLUMNS)])


def _centred(image: Picture, size: np.ndarray) -> Picture:
    """On white, in the middle of (height, width)."""
    canvas = np.full((*size, 3), 255, np.uint8)
    top, left = (size - image.shape[:2]) // 2
    canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
    return canvas
