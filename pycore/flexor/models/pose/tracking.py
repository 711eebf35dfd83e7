# SPDX-License-Identifier: Apache-2.0
"""People followed from frame to frame by how well their poses agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .metrics import oks, oks_nms
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
        box: left, top, width, height, pixels, in which the pose was looked for.
        box_score: how sure it was that there is somebody, 1 where not known.
        keypoints: (K, 3): x, y in pixels, score.
        score: see `flexor.models.pose.metrics.instance_scores`.
    """

    id: int
    box: tuple[float, float, float, float]
    box_score: float
    keypoints: Pose
    score: float

    @property
    def area(self) -> float:
        return self.box[2] * self.box[3]

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "box": list(self.box), "keypoints": self.keypoints.tolist()}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Person:
        return cls(**content | {"box": tuple(content["box"]), "keypoints": np.array(content["keypoints"])})


@dataclass
class Track:
    person: Person
    unseen: int = 0


class Tracker:
    """Gives people of a frame the ids of those they were in the frames before.

    Pairs of a person and one of the last ten frames are joined from the most similar on, down to a similarity of 0.3.
    Similarity is the mean of OKS, over the joints that have a score in both and with the area of the earlier box, and
    of the boxes' intersection over union, which steadies poor poses; with fewer than four such joints it is the latter
    alone. A cut ends all tracks.

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
        similarity = self._similarity(people, [track.person for track in known])
        pairs = dict(greedy_pairs(similarity, MIN_SIMILARITY))
        found = [
            replace(person, id=known[pairs[number]].person.id if number in pairs else self._next_id())
            for number, person in enumerate(people)
        ]
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
        shares = overlaps(boxes[:, :4], [person.box for person in seen])
        pairs = dict(greedy_pairs(shares, MIN_SIMILARITY))
        return [seen[pairs[number]].id if number in pairs else None for number in range(len(boxes))]

    def _of_shot(self, shot: int) -> list[Track]:
        return self.tracks if shot == self._shot else []

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def _similarity(self, now: Sequence[Person], before: Sequence[Person]) -> NDArray[np.float64]:
        """(now, before)."""
        shares = overlaps([person.box for person in now], [person.box for person in before])
        if not shares.size:
            return shares
        a = np.stack([person.keypoints for person in now])[:, None]
        b = np.stack([person.keypoints for person in before])
        both = (a[..., 2] >= self.min_score) & (b[..., 2] >= self.min_score)
        areas = [person.area for person in before]
        similar = oks(a[..., :2], b[..., :2], both, areas, self.skeleton.sigmas).numpy()
        return np.where(both.sum(2) < FEWEST_JOINTS, shares, (similar + shares) / 2)


def distinct(people: Sequence[Person], skeleton: Skeleton) -> list[int]:
    """Which people stay when poses that repeat one of a higher score go, by `oks_nms`; in their order."""
    if not people:
        return []
    points = np.stack([person.keypoints[:, :2] for person in people])
    scores, areas = [person.score for person in people], [person.area for person in people]
    return sorted(oks_nms(points, scores, areas, skeleton.sigmas).tolist())


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


def overlaps(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """Intersection over union of all pairs of boxes (N, 4) and (M, 4)."""
    p, q = (np.asarray(boxes, np.float64).reshape(-1, 4) for boxes in (a, b))
    low = np.maximum(p[:, None, :2], q[:, :2])
    high = np.minimum((p[:, :2] + p[:, 2:])[:, None], q[:, :2] + q[:, 2:])
    shared = (high - low).clip(min=0).prod(2)
    union = p[:, 2:].prod(1)[:, None] + q[:, 2:].prod(1) - shared
    return shared / np.where(union > 0, union, 1)
