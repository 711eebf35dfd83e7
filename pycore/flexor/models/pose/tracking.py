# SPDX-License-Identifier: Apache-2.0
"""People followed from frame to frame by how well their poses agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .skeleton import Skeleton

Pose = NDArray[np.float64]  # (K, 3): x, y in pixels, score

MIN_SIMILARITY = 0.3  # below it two poses are of two people
MEMORY = 10  # frames for which somebody unseen is remembered
GROWTH = 1.25  # of the box around a pose, whose joints lie inside the body
FEWEST_JOINTS = 4  # with a score, for a person to be followed
SMALLEST_SIDE = 8.0  # pixels, of a box that is followed


@dataclass(frozen=True, eq=False)
class Person:
    """One person in one frame.

    Args:
        id: the same from frame to frame, from 1; 0 where not known.
        box: left, top, width, height, pixels, in which the pose was looked for, and its score.
        keypoints: (K, 3): x, y in pixels, score.
        score: box score times the mean score of the joints that have more than 0.2.
    """

    id: int
    box: tuple[float, float, float, float]
    keypoints: Pose
    score: float

    def to_json(self) -> dict[str, Any]:
        return {"id": self.id, "box": list(self.box), "score": self.score, "keypoints": self.keypoints.tolist()}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Person:
        return cls(content["id"], tuple(content["box"]), np.array(content["keypoints"]), content["score"])


@dataclass
class Track:
    person: Person
    unseen: int = 0


class Tracker:
    """Gives people of a frame the ids of those they were in the frames before.

    Pairs of a person and one of the last ten frames are joined from the most similar on, down to a similarity of 0.3.
    Similarity is OKS over the joints that have a score in both, with the area of the earlier box; where there are
    fewer than four, the boxes' intersection over union. A cut ends all tracks.

    Args:
        skeleton: of the poses.
        min_score: of a joint that counts.
    """

    def __init__(self, skeleton: Skeleton, min_score: float = 0.2) -> None:
        self.skeleton, self.min_score = skeleton, min_score
        self.tracks: list[Track] = []
        self._shot, self._last_id = 0, 0

    def update(self, people: Sequence[Person], shot: int) -> list[Person]:
        """The people of the next frame, with ids."""
        known = self._of_shot(shot)
        similarity = np.array([[self._similarity(track.person, person) for track in known] for person in people])
        ids: dict[int, int] = {}
        for person, track in greedy_pairs(similarity.reshape(len(people), len(known)), MIN_SIMILARITY):
            ids[person] = known[track].person.id
        found = [replace(person, id=ids.get(number) or self._next_id()) for number, person in enumerate(people)]
        seen = {person.id for person in found}
        unseen = [Track(track.person, track.unseen + 1) for track in known if track.person.id not in seen]
        self.tracks = [*map(Track, found), *(track for track in unseen if track.unseen <= MEMORY)]
        self._shot = shot
        return found

    def boxes(self, shot: int, size: tuple[int, int]) -> NDArray[np.float64]:
        """Boxes (N, 5) in which the people of the frame before are looked for next.

        Around the joints with a score, grown by a quarter; people with fewer than four, and those who left the
        picture, are not followed.

        Args:
            shot: of the next frame.
            size: (width, height) of the frames.
        """
        found = [_around(track.person.keypoints, self.min_score) for track in self._of_shot(shot) if not track.unseen]
        inside = [box for box in found if box is not None and _visible(box, size)]
        return np.array([[*box, 1.0] for box in inside], np.float64).reshape(-1, 5)

    def nearest(self, boxes: NDArray[np.float64], shot: int) -> list[int | None]:
        """For boxes (N, 4 or more), who was there in the frame before, by intersection over union."""
        seen = [track.person for track in self._of_shot(shot) if not track.unseen]
        overlaps = np.array([[_overlap(row, person.box) for person in seen] for row in boxes[:, :4]])
        pairs = dict(greedy_pairs(overlaps.reshape(len(boxes), len(seen)), MIN_SIMILARITY))
        return [seen[pairs[number]].id if number in pairs else None for number in range(len(boxes))]

    def _of_shot(self, shot: int) -> list[Track]:
        return self.tracks if shot == self._shot else []

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def _similarity(self, before: Person, now: Person) -> float:
        a, b = before.keypoints, now.keypoints
        both = (a[:, 2] >= self.min_score) & (b[:, 2] >= self.min_score)
        if both.sum() < FEWEST_JOINTS:
            return _overlap(before.box, now.box)
        variances = (2 * np.array(self.skeleton.sigmas)[both]) ** 2
        area = before.box[2] * before.box[3]
        return float(np.exp(-((a - b)[both, :2] ** 2).sum(1) / (2 * area * variances)).mean())


def greedy_pairs(similarity: NDArray[np.float64], least: float) -> list[tuple[int, int]]:
    """Rows and columns joined from the greatest similarity on, each once; of equal ones the first."""
    pairs: list[tuple[int, int]] = []
    rows, columns = set(), set()
    for place in np.argsort(-similarity, axis=None, kind="stable"):
        row, column = (int(index) for index in np.unravel_index(place, similarity.shape))
        if similarity[row, column] < least:
            break
        if row not in rows and column not in columns:
            rows.add(row)
            columns.add(column)
            pairs.append((row, column))
    return pairs


def _around(pose: Pose, min_score: float) -> tuple[float, float, float, float] | None:
    found = pose[pose[:, 2] >= min_score, :2]
    if len(found) < FEWEST_JOINTS:
        return None
    low, high = found.min(0), found.max(0)
    (x, y), (width, height) = (low + high) / 2, (high - low) * GROWTH
    if max(width, height) < SMALLEST_SIDE:
        return None
    return float(x - width / 2), float(y - height / 2), float(width), float(height)


def _visible(box: Sequence[float], size: tuple[int, int]) -> bool:
    x, y, width, height = box
    return x < size[0] and y < size[1] and x + width > 0 and y + height > 0


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return float(shared / (a[2] * a[3] + b[2] * b[3] - shared))
