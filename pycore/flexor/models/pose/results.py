# SPDX-License-Identifier: Apache-2.0
"""What was found in a frame, and the files that other tools read: COCO's results and PoseTrack18's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .skeleton import COCO17, POSETRACK17, Skeleton
from .tracking import Person

PERSON = 1  # the category


@dataclass(frozen=True, eq=False)
class Result:
    """The people of one frame.

    Args:
        frame: its index.
        image_id: its number in COCO's and PoseTrack's files.
        name: of the file that holds it.
        shot: number of the shot.
        people: in the order of their boxes.
        error: why there are none, where the frame or the network's answer could not be used.
    """

    frame: int
    image_id: int
    name: str
    shot: int
    people: Sequence[Person] = ()
    error: str = ""

    def to_json(self) -> dict[str, Any]:
        about = {"frame": self.frame, "image_id": self.image_id, "name": self.name, "shot": self.shot}
        if self.error:
            return {**about, "error": self.error}
        return {**about, "people": [person.to_json() for person in self.people]}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Result:
        people = [Person.from_json(person) for person in content.get("people", ())]
        about = (content["frame"], content["image_id"], content["name"], content["shot"])
        return cls(*about, people, content.get("error", ""))


def coco_results(results: Iterable[Result], skeleton: Skeleton) -> list[dict[str, Any]]:
    """COCO's results: a list of people with `keypoints` [x, y, score] * 17, `score` and `bbox`; and `track_id`.

    Joints are in COCO's order; those that the skeleton lacks are 0, 0, 0.
    """
    return [
        {
            "image_id": result.image_id,
            "category_id": PERSON,
            "keypoints": _flat(_reordered(person, skeleton, COCO17)),
            "score": person.score,
            "bbox": list(person.box),
            "track_id": person.id,
        }
        for result in results
        for person in result.people
    ]


def posetrack_results(results: Iterable[Result], skeleton: Skeleton) -> dict[str, Any]:
    """PoseTrack18's file: `images`, `annotations` with `track_id`, `keypoints` and `scores`, and `categories`.

    Joints are in PoseTrack18's order; those that the skeleton lacks are 0, 0, 0 with score 0.
    """
    images, annotations = [], []
    for result in results:
        images.append({"id": result.image_id, "frame_id": result.image_id, "file_name": result.name})
        for person in result.people:
            joints = _reordered(person, skeleton, POSETRACK17)
            annotations.append(
                {
                    "image_id": result.image_id,
                    "category_id": PERSON,
                    "track_id": person.id,
                    "bbox": list(person.box),
                    "keypoints": _flat([[x, y, float(score > 0)] for x, y, score in joints]),
                    "scores": [person.box_score * score for _, _, score in joints],
                }
            )
    limbs = [[a + 1, b + 1] for a, b in POSETRACK17.limbs]
    category = {"id": PERSON, "name": "person", "keypoints": list(POSETRACK17.joints), "skeleton": limbs}
    return {"images": images, "annotations": annotations, "categories": [category]}


def _reordered(person: Person, skeleton: Skeleton, order: Skeleton) -> list[list[float]]:
    found = dict(zip(skeleton.joints, person.keypoints.tolist(), strict=True))
    return [found.get(joint, [0.0, 0.0, 0.0]) for joint in order.joints]


def _flat(rows: Iterable[Iterable[float]]) -> list[float]:
    return [value for row in rows for value in row]
