# SPDX-License-Identifier: Apache-2.0
"""PoseTrack's average precision, by the rules of poseval, from files of 2017 and of 2018."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .metrics import HEAD_SHARE, MPII_COLUMNS
from .skeleton import POSETRACK_EVALUATION15 as JOINTS

Doubles = NDArray[np.float64]
NO_SCORE = -9999.0  # of joints that a prediction file gives no score


@dataclass(frozen=True)
class Frame:
    """The people of one frame, annotated or predicted, in the order of POSETRACK_EVALUATION15.

    Args:
        points: (N, 15, 2), pixels, NaN for joints that are not there.
        scores: (N, 15), of predictions.
        head_boxes: (N, 4), left, top, right, bottom, of annotations.
        ignored: polygons (V, 2) in which nothing is counted.
    """

    points: Doubles
    scores: Doubles | None = None
    head_boxes: Doubles | None = None
    ignored: tuple[Doubles, ...] = field(default=())


@dataclass(frozen=True)
class PoseTrackPrecision:
    """Average precision, and precision and recall when every prediction counts, of the 15 joints, percent.

    NaN for joints that are nowhere annotated.
    """

    average_precision: Doubles
    precision: Doubles
    recall: Doubles

    @property
    def total(self) -> float:
        """The mean over the 15 joints, not over the seven columns; joints that are nowhere annotated are left out."""
        return float(self.average_precision[~np.isnan(self.average_precision)].mean())

    def columns(self) -> dict[str, float]:
        """The table of the papers: head (top, neck, nose), six pairs of left and right, and the total."""
        table = {}
        for column in MPII_COLUMNS:
            head = column == "head"
            names = ("head_top", "head_bottom", "nose") if head else (f"left_{column}", f"right_{column}")
            table[column] = float(self.average_precision[[JOINTS.index(name) for name in names]].mean())
        return {**table, "total": self.total}


def posetrack_average_precision(
    truth: Sequence[Frame], predictions: Sequence[Frame], *, threshold: float = 0.5, count_absent_joints: bool = False
) -> PoseTrackPrecision:
    """PoseTrack's average precision of multi-person poses.

        d(p, t) = |p - t| / (0.6 head box diagonal);  a joint is right when d <= threshold
        share(P, T) = right joints of P for T / annotated joints of T;  P keeps its best T, then T keeps its best P

    Annotated frames without people are left out, with what was predicted there; people without joints and joints
    inside ignored regions are left out. Joints of predictions without a person are wrong. Each joint's precisions,
    sorted by score over all frames (of equal scores the later first), are integrated over its recall after each was
    raised to the highest at a higher recall.

    Args:
        truth: annotated frames of all videos, with head boxes.
        predictions: as many frames, with scores.
        threshold: in units of the head.
        count_absent_joints: count 0 for a joint that is neither annotated nor predicted anywhere, as poseval does.

    Returns:
        Percentages of the 15 joints.

    Raises:
        ValueError: numbers of frames that differ, shapes that do not fit, annotations without head boxes or
            predictions without scores, no annotated frame.

    Source:
        Andriluka et al., PoseTrack: A Benchmark for Human Pose Estimation and Tracking, CVPR 2018; poseval.
    """
    if len(truth) != len(predictions):
        raise ValueError(
            f"posetrack_average_precision: every frame of truth needs one of predictions, got {len(truth)} and "
            f"{len(predictions)} frames: give frames without people empty ones"
        )
    for number, (annotated, predicted) in enumerate(zip(truth, predictions, strict=True)):
        _check(number, annotated, predicted)
    pairs = [(t, p) for t, p in zip(truth, predictions, strict=True) if len(t.points)]
    if not pairs:
        raise ValueError("posetrack_average_precision: no frame of truth has a person")
    scores, right, joints, annotated_joints = [], [], [], np.zeros(len(JOINTS))
    for annotated, predicted in pairs:
        t, p = _without_ignored(annotated, annotated.ignored), _without_ignored(predicted, annotated.ignored)
        hits = _hits(t, p, threshold)
        person, joint = np.nonzero(~np.isnan(p.points[..., 0]))
        assert p.scores is not None
        scores.append(p.scores[person, joint])
        right.append(hits[person, joint])
        joints.append(joint)
        annotated_joints += (~np.isnan(t.points[..., 0])).sum(0)
    every = np.concatenate(joints)
    curves = [
        _precision(np.concatenate(scores)[every == j], np.concatenate(right)[every == j], annotated_joints[j])
        for j in range(len(JOINTS))
    ]
    if count_absent_joints:
        predicted_joints = np.bincount(every, minlength=len(JOINTS))
        curves = [(0.0, 0.0, 0.0) if not predicted_joints[j] else curve for j, curve in enumerate(curves)]
    return PoseTrackPrecision(*(100 * np.array(column, np.float64) for column in zip(*curves, strict=True)))


def read_posetrack(path: Path | str) -> list[Frame]:
    """The frames of a PoseTrack file: 2017's `annolist`, or 2018's `images`, `annotations` and `categories`.

    Raises:
        ValueError: a file that is neither; a person without joints' names or with a part missing.
    """
    try:
        content = json.loads(Path(path).read_text())
        if isinstance(content, Mapping) and "annolist" in content:
            return [_frame_of_2017(frame) for frame in content["annolist"]]
        if isinstance(content, Mapping) and {"images", "annotations", "categories"} <= set(content):
            return _frames_of_2018(content)
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{path}: not as PoseTrack writes it ({type(error).__name__}: {error})") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    raise ValueError(f"{path}: neither annolist (PoseTrack17) nor images, annotations, categories (PoseTrack18) in it")


def read_posetrack_folders(truth: Path | str, predictions: Path | str) -> tuple[list[Frame], list[Frame]]:
    """The frames of every JSON file in a folder, and of the files of the same names in another.

    Raises:
        ValueError: no file; a file without its partner, or with another number of frames.
    """
    files = sorted(Path(truth).glob("*.json"))
    if not files:
        raise ValueError(f"{truth}: no JSON file in this folder")
    all_annotated: list[Frame] = []
    all_predicted: list[Frame] = []
    for file in files:
        partner = Path(predictions) / file.name
        if not partner.exists():
            raise ValueError(f"{partner}: no such file, the predictions for {file}")
        annotated, predicted = read_posetrack(file), read_posetrack(partner)
        if len(annotated) != len(predicted):
            raise ValueError(f"{partner}: has {len(predicted)} frames, {file} has {len(annotated)}")
        all_annotated += annotated
        all_predicted += predicted
    return all_annotated, all_predicted


def _check(number: int, annotated: Frame, predicted: Frame) -> None:
    where = f"posetrack_average_precision: frame {number}:"
    for name, frame in (("truth", annotated), ("predictions", predicted)):
        if frame.points.shape[1:] != (len(JOINTS), 2):
            raise ValueError(f"{where} points of {name} must be (N, 15, 2), got {frame.points.shape}")
    heads, scores = annotated.head_boxes, predicted.scores
    if heads is None or heads.shape != (len(annotated.points), 4):
        raise ValueError(
            f"{where} truth needs head boxes ({len(annotated.points)}, 4), got {None if heads is None else heads.shape}"
        )
    if not np.isfinite(heads[~np.isnan(annotated.points[..., 0]).all(1)]).all():
        raise ValueError(f"{where} truth has a person with joints and without a head box")
    if scores is None or scores.shape != predicted.points.shape[:2]:
        raise ValueError(
            f"{where} predictions need scores {predicted.points.shape[:2]}, got "
            f"{None if scores is None else scores.shape}"
        )


def _without_ignored(frame: Frame, regions: Sequence[Doubles]) -> Frame:
    """The frame without joints inside the regions and without people who have no joint left."""
    points = frame.points.copy()
    for region in regions:
        points[_inside(points, region)] = np.nan
    there = ~np.isnan(points[..., 0]).all(1)
    scores = None if frame.scores is None else frame.scores[there]
    heads = None if frame.head_boxes is None else frame.head_boxes[there]
    return replace(frame, points=points[there], scores=scores, head_boxes=heads)


def _inside(points: Doubles, polygon: Doubles) -> NDArray[np.bool_]:
    """Points (..., 2) inside a closed polygon (V, 2), by the even-odd rule; its border is outside. NaN is outside."""
    x, y = points[..., 0, None], points[..., 1, None]
    ax, ay = polygon.T
    bx, by = np.roll(polygon, -1, axis=0).T
    side = (bx - ax) * (y - ay) - (by - ay) * (x - ax)
    crosses = ((ay > y) != (by > y)) & ((side > 0) == (by > ay))
    beside = (np.minimum(ax, bx) <= x) & (x <= np.maximum(ax, bx))
    within = beside & (np.minimum(ay, by) <= y) & (y <= np.maximum(ay, by))
    return (crosses.sum(-1) % 2 == 1) & ~((side == 0) & within).any(-1)


def _hits(truth: Frame, predicted: Frame, threshold: float) -> NDArray[np.bool_]:
    """Which predicted joints (N, 15) are right: those near the joint of the person that the pose was given to."""
    right = np.zeros(predicted.points.shape[:2], bool)
    if not len(truth.points) or not len(predicted.points):
        return right
    assert truth.head_boxes is not None
    heads = HEAD_SHARE * np.linalg.norm(truth.head_boxes[:, 2:] - truth.head_boxes[:, :2], axis=1)
    apart = np.linalg.norm(predicted.points[:, None] - truth.points[None], axis=-1)
    near = apart <= threshold * heads[:, None]  # NaN is not
    share = near.sum(2) / (~np.isnan(truth.points[..., 0])).sum(1)
    best_truth = share.argmax(1)
    kept = np.where(np.arange(share.shape[1]) == best_truth[:, None], share, 0)
    best_prediction = kept.argmax(0)
    for person, pose in enumerate(best_prediction):
        if kept[pose, person] > 0:
            right[pose] = near[pose, person]
    return right


def _precision(scores: Doubles, right: NDArray[np.bool_], annotated: float) -> tuple[float, float, float]:
    """Average precision, precision and recall of one joint, 0 to 1; NaN without annotations, 0 without predictions."""
    if not annotated:
        return np.nan, np.nan, np.nan
    if not len(scores):
        return 0.0, 0.0, 0.0
    found = np.cumsum(right[np.argsort(scores, kind="stable")[::-1]])
    precision, recall = found / np.arange(1, len(found) + 1), found / annotated
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    average = (np.diff(recall, prepend=0.0) * envelope).sum()
    return float(average), float(precision[-1]), float(recall[-1])


def _frame_of_2017(frame: Mapping[str, Any]) -> Frame:
    people = frame["annorect"]
    points = np.full((len(people), len(JOINTS), 2), np.nan)
    scores = np.full(points.shape[:2], NO_SCORE)
    heads = np.full((len(people), 4), np.nan)
    for n, person in enumerate(people):
        heads[n] = [person[key][0] if key in person else np.nan for key in ("x1", "y1", "x2", "y2")]
        annotated = person.get("annopoints") or [{}]
        for point in reversed(annotated[0].get("point") or []):  # of two points with one id the first counts
            joint = point["id"][0]
            if 0 <= joint < len(JOINTS):
                points[n, joint] = point["x"][0], point["y"][0]
                scores[n, joint] = point["score"][0] if "score" in point else NO_SCORE
    regions = [[(p["x"][0], p["y"][0]) for p in region["point"]] for region in frame.get("ignore_regions", [])]
    return Frame(points, scores, heads, _polygons(regions))


def _frames_of_2018(content: Mapping[str, Any]) -> list[Frame]:
    names = content["categories"][0]["keypoints"]
    missing = [name for name in JOINTS.joints if name not in names]
    if missing:
        raise ValueError(f"its category has no joint {', '.join(missing)}")
    order = [names.index(name) for name in JOINTS.joints]
    people: dict[Any, list[Mapping[str, Any]]] = {image["id"]: [] for image in content["images"]}
    for person in content["annotations"]:
        if person["image_id"] not in people:
            raise ValueError(f"a person is in image {person['image_id']}, which is not among its images")
        people[person["image_id"]].append(person)
    frames = []
    for image in content["images"]:
        here = people[image["id"]]
        joints = np.array([person["keypoints"] for person in here], np.float64).reshape(len(here), len(names), 3)
        points = np.where((joints != 0).any(2, keepdims=True), joints, np.nan)[:, order, :2]
        scores = np.array([person.get("scores") or [NO_SCORE] * len(names) for person in here], np.float64)
        heads = np.array([person.get("bbox_head", [np.nan] * 4) for person in here], np.float64).reshape(-1, 4)
        heads[:, 2:] += heads[:, :2]
        sides = zip(image.get("ignore_regions_x", []), image.get("ignore_regions_y", []), strict=True)
        regions = [list(zip(xs, ys, strict=True)) for xs, ys in sides]
        frames.append(Frame(points, scores.reshape(len(here), len(names))[:, order], heads, _polygons(regions)))
    return frames


def _polygons(regions: Sequence[Sequence[tuple[float, float]]]) -> tuple[Doubles, ...]:
    return tuple(np.array(region, np.float64).reshape(-1, 2) for region in regions if region)
