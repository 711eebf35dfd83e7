# SPDX-License-Identifier: Apache-2.0
"""Metrics of poses: against pycocotools and released code (data/make_pose_geometry_golden.py), and by hand."""

import builtins
import contextlib
import copy
import io
import json
import math
from pathlib import Path

import numpy as np
import pose_geometry_cases as cases
import pytest
import torch
from flexor.models.pose.metrics import (
    COCO_STATISTICS,
    box_norm,
    coco_average_precision,
    head_norm,
    instance_scores,
    oks,
    oks_nms,
    pck,
    pckh,
    torso_norm,
)
from flexor.models.pose.skeleton import COCO17, PENN13
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

GOLDEN = np.load(Path(__file__).parent / "data" / "pose_geometry_golden.npz")


def test_oks_by_hand():
    target = torch.zeros(17, 2)
    prediction = target.clone()
    prediction[0] = torch.tensor([3.0, 4.0])
    prediction[1] = torch.nan
    visible = torch.zeros(17)
    visible[[0, 1, 5]] = 1
    nose = math.exp(-25 / (2 * 400 * (2 * 0.026) ** 2))
    assert oks(prediction, target, visible, 400.0) == pytest.approx((nose + 0 + 1) / 3)
    assert oks(prediction, target, torch.zeros(17), 400.0) == 0
    pairs = oks(prediction[None, None], target.expand(3, 17, 2), visible, torch.full((2, 3), 400.0))
    assert pairs.shape == (2, 3)
    assert oks(torch.empty(0, 17, 2), torch.empty(0, 17, 2), torch.empty(0, 17), torch.empty(0)).shape == (0,)


def coco_case(joints=17):
    """People of three sizes in six images, one a crowd, one without joints; found with errors, twice, or not."""
    rng = np.random.default_rng(3)
    truth, found = [], []
    for number in range(24):
        side = rng.choice([20, 60, 200])
        corner = rng.uniform(0, 400, 2)
        points = corner + rng.random((joints, 2)) * side
        visible = (rng.random(joints) < 0.8).astype(int) * 2 * (number != 5)
        keypoints = np.concatenate([points, visible[:, None]], 1).ravel().tolist()
        person = {"image_id": number % 6, "category_id": 1, "keypoints": keypoints}
        box = {"bbox": [*corner.tolist(), float(side), float(side)], "area": float(side**2 / 2)}
        truth.append({"id": number + 1, **person, **box, "iscrowd": int(number == 7)})
        for _ in range(rng.choice([0, 1, 1, 2])):
            seen = np.concatenate([points + rng.normal(0, side * 0.03, points.shape), np.ones((joints, 1))], 1)
            found.append({**person, "keypoints": seen.ravel().tolist(), "score": float(rng.random())})
    names = {"categories": [{"id": 1, "name": "person", "keypoints": list(map(str, range(joints))), "skeleton": []}]}
    return {"images": [{"id": n} for n in range(7)], "annotations": truth, **names}, found


@pytest.mark.parametrize("sigmas", [COCO17.sigmas, (0.05,) * 4], ids=["17", "4"])
def test_coco_is_what_pycocotools_says_of_the_files(tmp_path, sigmas):
    truth, found = coco_case(len(sigmas))
    truth["annotations"] = [
        {**a, "num_keypoints": sum(v > 0 for v in a["keypoints"][2::3])} for a in truth["annotations"]
    ]
    for name, content in (("truth", truth), ("found", found)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(tmp_path / "truth.json"))
        evaluation = COCOeval(coco, coco.loadRes(str(tmp_path / "found.json")), "keypoints")
        evaluation.params.kpt_oks_sigmas = np.array(sigmas)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    expected = dict(zip(COCO_STATISTICS, evaluation.stats, strict=True))
    assert 0 < expected["AP"] < expected["AP50"] < 1 and expected["AP_medium"] != expected["AP_large"]
    assert coco_average_precision(tmp_path / "truth.json", tmp_path / "found.json", sigmas=sigmas) == expected
    before = copy.deepcopy((truth, found))
    assert coco_average_precision(truth, found, sigmas=sigmas) == expected
    assert (truth, found) == before
    boxed = [{**person, "bbox": [0, 0, 1, 1]} for person in found]  # pycocotools would take the area from it
    assert coco_average_precision(truth, boxed, sigmas=sigmas) == expected
    for (image, _), similar in evaluation.ious.items():
        theirs = np.array(similar).reshape(-1, 4)
        people = [a for a in truth["annotations"] if a["image_id"] == image and sum(a["keypoints"][2::3])]
        mine = sorted((f for f in found if f["image_id"] == image), key=lambda f: -f["score"])
        if image == 5 or not mine:  # the one without joints, whom only pycocotools compares
            continue
        p, t = (np.array([person["keypoints"] for person in who]).reshape(len(who), -1, 3) for who in (mine, people))
        areas = np.array([person["area"] for person in people])
        pairs = oks(p[:, None, :, :2], t[None, :, :, :2], t[..., 2], areas, sigmas)
        assert pairs.numpy() == pytest.approx(theirs, rel=1e-12)


def test_coco_by_hand():
    """Of two people one is found exactly and one not at all: recall 1/2, precision 1 up to there: 51 of 101 points."""
    truth, _ = coco_case()
    truth["annotations"] = [a for a in truth["annotations"] if a["id"] in (1, 2)]
    one = truth["annotations"][0]
    found = [{key: one[key] for key in ("image_id", "category_id", "keypoints")} | {"score": 0.3}]
    assert coco_average_precision(truth, found)["AP"] == pytest.approx(51 / 101)
    assert coco_average_precision(truth, found)["AR"] == pytest.approx(0.5)
    wrong = {**found[0], "keypoints": [0.0, 0, 1] * 17, "score": 0.9}  # a better score for nobody halves the precision
    assert coco_average_precision(truth, [wrong, *found])["AP"] == pytest.approx(51 / 202)
    nobody = coco_average_precision(truth, [])
    assert nobody["AP"] == 0 and nobody["AR"] == 0
    truth["annotations"] = []
    assert set(coco_average_precision(truth, found).values()) == {-1}


@pytest.mark.parametrize("threshold", [0.5, 0.9])
def test_oks_nms_as_released(threshold):
    poses, scores, areas = cases.crowd()
    kept = oks_nms(poses, scores, areas, threshold=threshold)
    assert kept.tolist() == GOLDEN[f"oks_nms/{threshold}"].tolist() and len(kept) < 12
    assert oks_nms(torch.empty(0, 17, 2), torch.empty(0), torch.empty(0)).tolist() == []


def test_instance_scores_by_hand():
    joints = [[0.2, 0.4, 0.6], [0.1, 0.2, 0.0]]  # not above 0.2: not counted
    assert instance_scores([0.5, 0.9], joints).tolist() == pytest.approx([0.25, 0])


def test_pck_by_hand():
    target = torch.zeros(3, 13, 2)
    prediction = target.clone()
    prediction[0, 0, 0] = 4.0  # 0.2 x 20: still right
    prediction[1, 0, 0] = 4.1
    prediction[2, 1] = torch.nan
    visible = torch.ones(3, 13)
    visible[2, 0] = 0
    visible[:, 12] = 0
    found = pck(prediction, target, visible, box_norm([[0, 0, 20, 10], [5, 5, 10, 20], [0, 0, 20, 20]]))
    assert found.rates[:3].tolist() == pytest.approx([1 / 2, 2 / 3, 1]) and found.rates[12].isnan()
    assert found.mean([0, 1]) == pytest.approx((1 / 2 + 2 / 3) / 2) and found.pooled([0, 1]) == pytest.approx(3 / 5)
    assert found.mean() == pytest.approx((1 / 2 + 2 / 3 + 10) / 12) and found.pooled() == pytest.approx(33 / 35)


def test_norms_by_hand():
    target, prediction = torch.zeros(2, 13, 2), torch.zeros(2, 13, 2)
    target[0, PENN13.index("left_shoulder")] = torch.tensor([30.0, 40.0])
    target[1, PENN13.index("left_shoulder")] = 0.5
    prediction[:, PENN13.index("right_hip"), 0] = 7
    assert torso_norm(target, prediction, PENN13).tolist() == [50, 7]
    assert head_norm([[1, 2, 31, 42]]).tolist() == [30]


def test_pckh_as_released():
    target, prediction, visible, head = cases.mpii()
    found = pckh(prediction, target, visible, head)
    assert 100 * np.array(list(found.values())) == pytest.approx(GOLDEN["pckh"], rel=1e-12)
    assert list(found) == ["head", "shoulder", "elbow", "wrist", "hip", "knee", "ankle", "mean"]
    assert pckh(prediction + 1, target, visible, head, offset=0) == pytest.approx(found)
    assert pckh(prediction, target, visible, head, 0.1)["mean"] < found["mean"]


POINTS, ONES = torch.zeros(2, 17, 2), torch.ones(2, 17)
TRUTH, FOUND = coco_case()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: oks(POINTS[:, :3], POINTS, ONES, 1),
            r"prediction must be \(\.\.\., 17, 2\) for 17 sigmas, got \(2, 3",
        ),
        (lambda: oks(POINTS, POINTS[..., 0], ONES, 1), r"oks: target must be \(\.\.\., 17, 2\)"),
        (lambda: oks(POINTS, POINTS, ONES[:, :3], 1), r"oks: visible must be \(\.\.\., 17\)"),
        (
            lambda: oks_nms(POINTS, [1.0], [1.0, 2.0]),
            r"must be \(N, K, 2\), \(N,\) and \(N,\), got \(2, 17, 2\), \(1,\)",
        ),
        (lambda: instance_scores([1.0], ONES), r"must be \(N,\) and \(N, K\), got \(1,\) and \(2, 17\)"),
        (lambda: pck(POINTS, POINTS[:1], ONES, [1, 1]), r"one shape \(N, K, 2\), got \(2, 17, 2\) and \(1, 17, 2\)"),
        (lambda: pck(POINTS, POINTS, ONES[:1], [1, 1]), r"\(N, K\) = \(2, 17\) and \(N,\), got \(1, 17\) and \(2,\)"),
        (lambda: pck(POINTS, POINTS, ONES, [1, 0]), "norm must be above 0, got 0.0: leave such people out"),
        (lambda: pck(POINTS, POINTS / 0, ONES, [1, 1]), "target must be finite where visible"),
        (
            lambda: pckh(POINTS, POINTS, ONES, [[0, 0, 1, 1]] * 2),
            r"must be \(N, 16, 2\) in MPII's order, got \(2, 17, 2\)",
        ),
        (lambda: coco_average_precision({}, FOUND), "ground_truth must have images, annotations and categories"),
        (lambda: coco_average_precision(TRUTH, TRUTH), "predictions must be a list of people, got dict"),
        (lambda: coco_average_precision(TRUTH, [{"score": 1}]), "predictions lacks image_id, category_id, keypoints"),
        (lambda: coco_average_precision(TRUTH, FOUND, sigmas=[0.1]), "must be 3 numbers for 1 sigmas, got 51"),
        (
            lambda: coco_average_precision(TRUTH, [{**FOUND[0], "image_id": 99}]),
            "in image 99, which ground_truth does not",
        ),
        (lambda: coco_average_precision(__file__, FOUND), "test_pose_metrics.py: not a JSON file"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_without_pycocotools(monkeypatch):
    real = builtins.__import__

    def absent(name, *rest, **named):
        if name.startswith("pycocotools"):
            raise ImportError("No module named 'pycocotools'")
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ImportError, match=r"pip install 'flexor\[cli\]' or pycocotools \(No module"):
        coco_average_precision(TRUTH, FOUND)
