# SPDX-License-Identifier: Apache-2.0
"""How right poses are: OKS and COCO's average precision, PCK, PCKh; PoseTrack's precision is in posetrack.py."""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from .skeleton import COCO17, MPII16, Skeleton

Numbers = ArrayLike | Tensor
COCO_STATISTICS = ("AP", "AP50", "AP75", "AP_medium", "AP_large", "AR", "AR50", "AR75", "AR_medium", "AR_large")
MPII_COLUMNS = ("head", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
HEAD_SHARE = 0.6  # of a head box's diagonal is the unit of PCKh and of PoseTrack


def oks(
    prediction: Numbers, target: Numbers, visible: Numbers, area: Numbers, sigmas: Sequence[float] = COCO17.sigmas
) -> Tensor:
    """Object keypoint similarity of poses.

        OKS = 1/n sum_{visible i} exp(-|p_i - t_i|^2 / (2 area (2 sigma_i)^2)),  n the number of visible joints

    Args:
        prediction, target: (..., K, 2), pixels; leading dimensions broadcast: p[:, None] against t[None] is all pairs.
        visible: (..., K), above 0 for joints that count.
        area: (...), of the person, square pixels.
        sigmas: K standard deviations.

    Returns:
        (...) float64, from 0 to 1; 0 where no joint counts. A predicted joint of NaN is a miss.

    Raises:
        ValueError: shapes that do not fit.

    Source:
        COCO keypoint evaluation, cocodataset.org/#keypoints-eval.
    """
    p = _double(prediction)
    t, areas = _double(target, p), _double(area, p)
    counts = torch.as_tensor(visible, device=p.device) > 0
    joints = len(sigmas)
    for name, shape, last in (("prediction", p.shape, (joints, 2)), ("target", t.shape, (joints, 2))):
        if tuple(shape[-2:]) != last:
            raise ValueError(f"oks: {name} must be (..., {joints}, 2) for {joints} sigmas, got {tuple(shape)}")
    if counts.shape[-1:] != (joints,):
        raise ValueError(f"oks: visible must be (..., {joints}) for {joints} sigmas, got {tuple(counts.shape)}")
    variances = (2 * p.new_tensor(sigmas)).square()
    exponent = (p - t).square().sum(-1) / (2 * variances * (areas[..., None] + _SPACING))
    similar = torch.exp(-exponent).nan_to_num(nan=0.0) * counts
    return similar.sum(-1) / counts.sum(-1).clamp(min=1)


def oks_nms(
    points: Numbers, scores: Numbers, areas: Numbers, sigmas: Sequence[float] = COCO17.sigmas, threshold: float = 0.9
) -> Tensor:
    """Drops poses that a better-scored pose repeats: greedy, by OKS over all joints with the mean of the two areas.

    Args:
        points: (N, K, 2), pixels.
        scores: (N,).
        areas: (N,), square pixels.
        sigmas: K standard deviations.
        threshold: OKS above which the pose of the lower score goes.

    Returns:
        Indices of the poses that stay, the best score first; of equal scores the first pose first.

    Raises:
        ValueError: shapes that do not fit.

    Source:
        Papandreou et al., Towards Accurate Multi-person Pose Estimation in the Wild, CVPR 2017, section 3.3; the mean
        of the areas is HRNet's.
    """
    p = _double(points)
    s, a = _double(scores, p), _double(areas, p)
    if p.dim() != 3 or s.shape != p.shape[:1] or a.shape != p.shape[:1]:
        raise ValueError(
            f"oks_nms: points, scores and areas must be (N, K, 2), (N,) and (N,), got {tuple(p.shape)}, "
            f"{tuple(s.shape)} and {tuple(a.shape)}"
        )
    everything = torch.ones((), device=p.device).expand(len(sigmas))
    similar = oks(p[:, None], p[None], everything, (a[:, None] + a[None]) / 2, sigmas)
    order = torch.argsort(s, descending=True, stable=True).tolist()
    kept: list[int] = []
    for pose in order:
        if not bool((similar[pose, kept] > threshold).any()):
            kept.append(pose)
    return torch.tensor(kept, dtype=torch.int64, device=p.device)


def instance_scores(box_scores: Numbers, joint_scores: Numbers, threshold: float = 0.2) -> Tensor:
    """A person's score for COCO: the box's, times the mean of the joint scores above a threshold.

    Args:
        box_scores: (N,).
        joint_scores: (N, K), heights of the heatmaps' peaks.
        threshold: joints that are not above it are left out.

    Returns:
        (N,) float64; 0 where no joint is above the threshold.

    Source:
        Xiao et al., ECCV 2018; the released code.
    """
    joints = _double(joint_scores)
    boxes = _double(box_scores, joints)
    if boxes.dim() != 1 or joints.dim() != 2 or len(boxes) != len(joints):
        raise ValueError(
            f"instance_scores: box_scores and joint_scores must be (N,) and (N, K), got {tuple(boxes.shape)} and "
            f"{tuple(joints.shape)}"
        )
    sure = joints > threshold
    return boxes * joints.where(sure, 0.0).sum(1) / sure.sum(1).clamp(min=1)


def coco_average_precision(
    ground_truth: Path | str | Mapping[str, Any],
    predictions: Path | str | Sequence[Mapping[str, Any]],
    *,
    sigmas: Sequence[float] = COCO17.sigmas,
) -> dict[str, float]:
    """COCO's keypoint average precision, by pycocotools itself: OKS from 0.50 to 0.95 in steps of 0.05.

    Args:
        ground_truth: COCO keypoint annotations, a JSON file or its content.
        predictions: COCO keypoint results, a JSON file or its content: image_id, category_id, keypoints (3 K numbers)
            and score of each person. Anything else in them, boxes too, is left out of account.
        sigmas: K standard deviations.

    Returns:
        AP, AP50, AP75, AP_medium, AP_large and the same of AR, 0 to 1; -1 where the ground truth has nobody of that
        size, as pycocotools has it.

    Raises:
        ImportError: pycocotools is not installed.
        ValueError: content that is not of this form; a person in an image that the ground truth does not have.
    """
    try:
        import numpy as np
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise ImportError(f"coco_average_precision: pip install 'flexor[cli]' or pycocotools ({error})") from error
    truth = _coco_truth(_json(ground_truth), len(sigmas))
    found = _coco_results(_json(predictions), truth, len(sigmas))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        if found:
            results = coco.loadRes(found)
        else:  # which loadRes does not take
            results = COCO()
            results.dataset = {**truth, "annotations": []}
            results.createIndex()
        evaluation = COCOeval(coco, results, "keypoints")
        evaluation.params.kpt_oks_sigmas = np.asarray(sigmas, np.float64)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(COCO_STATISTICS, (float(value) for value in evaluation.stats), strict=True))


@dataclass(frozen=True)
class JointAccuracy:
    """How often each joint was right.

    Args:
        hits: (K,), joints within the threshold.
        counts: (K,), joints that were annotated.
    """

    hits: Tensor
    counts: Tensor

    @property
    def rates(self) -> Tensor:
        """(K,) hits / counts; NaN for joints that were never annotated."""
        return self.hits / self.counts

    def mean(self, joints: Sequence[int] | None = None) -> float:
        """The mean of the joints' rates, those never annotated left out."""
        rates = self.rates if joints is None else self.rates[list(joints)]
        return float(rates.nanmean())

    def pooled(self, joints: Sequence[int] | None = None) -> float:
        """Hits of all joints over their counts: the mean of the rates, weighted by count."""
        chosen = slice(None) if joints is None else list(joints)
        return float(self.hits[chosen].sum() / self.counts[chosen].sum())


def pck(prediction: Numbers, target: Numbers, visible: Numbers, norm: Numbers, threshold: float = 0.2) -> JointAccuracy:
    """Percentage of correct keypoints: a joint is right within a share of a person's own length.

        hit_nk = |p_nk - t_nk| <= threshold norm_n,  over joints with visible_nk > 0

    Args:
        prediction, target: (N, K, 2), pixels. A predicted joint of NaN is a miss.
        visible: (N, K), above 0 for joints that count.
        norm: (N,), pixels, above 0: `box_norm` (Penn Action, Sub-JHMDB), `torso_norm`, or a head's.
        threshold: share of it.

    Returns:
        Hits and counts of the K joints.

    Raises:
        ValueError: shapes that do not fit, a norm that is not positive, a visible target that is not finite.

    Source:
        Yang and Ramanan, Articulated Human Detection with Flexible Mixtures of Parts, PAMI 2013.
    """
    p = _double(prediction)
    t, unit = _double(target, p), _double(norm, p)
    counted = torch.as_tensor(visible, device=p.device) > 0
    if p.dim() != 3 or p.shape[-1] != 2 or t.shape != p.shape:
        raise ValueError(
            f"pck: prediction and target must be of one shape (N, K, 2), got {tuple(p.shape)} and {tuple(t.shape)}"
        )
    if counted.shape != p.shape[:2] or unit.shape != p.shape[:1]:
        raise ValueError(
            f"pck: visible and norm must be (N, K) = {tuple(p.shape[:2])} and (N,), got {tuple(counted.shape)} and "
            f"{tuple(unit.shape)}"
        )
    if not bool((unit > 0).all()):
        raise ValueError(f"pck: norm must be above 0, got {float(unit.min())}: leave such people out")
    if not bool(t[counted].isfinite().all()):
        raise ValueError("pck: target must be finite where visible is above 0")
    right = ((p - t).norm(dim=-1) <= threshold * unit[:, None]) & counted
    return JointAccuracy(right.sum(0).double(), counted.sum(0).double())


def box_norm(box: Numbers) -> Tensor:
    """The longer side of boxes (..., 4), left, top, width, height: PCK's length for Penn Action and Sub-JHMDB."""
    return _double(box)[..., 2:4].amax(-1)


def torso_norm(target: Numbers, prediction: Numbers, skeleton: Skeleton) -> Tensor:
    """From left shoulder to right hip of the target, or of the prediction where that is below a pixel.

    Args:
        target, prediction: (N, K, 2), pixels.
        skeleton: of the K joints.

    Returns:
        (N,) float64, pixels.
    """
    t, ends = _double(target), (skeleton.index("left_shoulder"), skeleton.index("right_hip"))
    torso, fallback = ((p[:, ends[0]] - p[:, ends[1]]).norm(dim=-1) for p in (t, _double(prediction, t)))
    return torch.where(torso < 1, fallback, torso)


def head_norm(head_box: Numbers) -> Tensor:
    """0.6 of the diagonal of head boxes (..., 4), left, top, right, bottom: the length of PCKh and PoseTrack."""
    corners = _double(head_box)
    return HEAD_SHARE * (corners[..., 2:] - corners[..., :2]).norm(dim=-1)


def pckh(
    prediction: Numbers,
    target: Numbers,
    visible: Numbers,
    head_box: Numbers,
    threshold: float = 0.5,
    offset: float = 1.0,
) -> dict[str, float]:
    """MPII's PCKh: a joint is right within half of 0.6 of the head box's diagonal.

        hit = |p + offset - t| <= threshold 0.6 |head box|

    Args:
        prediction: (N, 16, 2) in MPII's order, pixels counted from 0.
        target: (N, 16, 2), as annotated: pixels counted from 1.
        visible: (N, 16), above 0 for joints that count.
        head_box: (N, 4), left, top, right, bottom, pixels.
        threshold: 0.5, or 0.1 for PCKh@0.1.
        offset: added to the predictions; 0 for targets counted from 0.

    Returns:
        "head" (head top), "shoulder", "elbow", "wrist", "hip", "knee", "ankle" (means of left and right) and "mean"
        (of all joints but pelvis and thorax, weighted by count), 0 to 1.

    Raises:
        ValueError: shapes that do not fit.

    Source:
        Andriluka et al., 2D Human Pose Estimation: New Benchmark and State of the Art Analysis, CVPR 2014.
    """
    p = _double(prediction)
    if tuple(p.shape[1:]) != (len(MPII16), 2):
        raise ValueError(f"pckh: prediction must be (N, 16, 2) in MPII's order, got {tuple(p.shape)}")
    found = pck(p + offset, target, visible, head_norm(head_box), threshold)
    columns = {}
    for column in MPII_COLUMNS:
        names = ("head_top",) if column == "head" else (f"left_{column}", f"right_{column}")
        columns[column] = float(found.rates[[MPII16.index(name) for name in names]].mean())
    left_out = (MPII16.index("pelvis"), MPII16.index("thorax"))
    columns["mean"] = found.pooled([joint for joint in range(len(MPII16)) if joint not in left_out])
    return columns


_SPACING = math.ulp(1.0)  # COCO's guard for areas of 0


def _double(values: Numbers, beside: Tensor | None = None) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64, device=None if beside is None else beside.device)


def _json(content: Any) -> Any:
    if not isinstance(content, str | Path):
        return content
    try:
        return json.loads(Path(content).read_text())
    except ValueError as error:
        raise ValueError(f"{content}: not a JSON file ({error})") from None


def _coco_truth(content: Any, joints: int) -> dict[str, Any]:
    """The annotations, checked and copied: pycocotools writes into them."""
    if not isinstance(content, Mapping) or not all(key in content for key in ("images", "annotations", "categories")):
        raise ValueError("coco_average_precision: ground_truth must have images, annotations and categories")
    for annotation in content["annotations"]:
        _need(annotation, ("id", "image_id", "category_id", "keypoints", "area", "bbox"), joints, "ground_truth")
    people = [
        {"iscrowd": 0, "num_keypoints": sum(v > 0 for v in person["keypoints"][2::3]), **person}
        for person in content["annotations"]
    ]
    return {**content, "annotations": people}


def _coco_results(content: Any, truth: Mapping[str, Any], joints: int) -> list[dict[str, Any]]:
    if isinstance(content, Mapping) or not isinstance(content, Sequence):
        raise ValueError(f"coco_average_precision: predictions must be a list of people, got {type(content).__name__}")
    keys = ("image_id", "category_id", "keypoints", "score")
    images = {image["id"] for image in truth["images"]}
    for person in content:
        _need(person, keys, joints, "predictions")
        if person["image_id"] not in images:
            raise ValueError(
                f"coco_average_precision: predictions have a person in image {person['image_id']}, "
                "which ground_truth does not list"
            )
    return [{key: person[key] for key in keys} for person in content]


def _need(person: Mapping[str, Any], keys: Sequence[str], joints: int, what: str) -> None:
    missing = [key for key in keys if key not in person]
    if missing:
        raise ValueError(f"coco_average_precision: a person of {what} lacks {', '.join(missing)}: {dict(person)}")
    if len(person["keypoints"]) != 3 * joints:
        raise ValueError(
            f"coco_average_precision: keypoints in {what} must be {3 * joints} numbers for {joints} sigmas, got "
            f"{len(person['keypoints'])}"
        )
