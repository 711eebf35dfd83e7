# SPDX-License-Identifier: Apache-2.0
"""PoseTrack's precision and files: against poseval (data/make_pose_geometry_golden.py), and by hand."""

import json
import math
from pathlib import Path

import numpy as np
import pose_geometry_cases as cases
import pytest
from flexor.models.pose.posetrack import Frame, posetrack_average_precision, read_posetrack, read_posetrack_folders
from flexor.models.pose.skeleton import POSETRACK_EVALUATION15 as JOINTS
from hypothesis import given, settings
from hypothesis import strategies as st

GOLDEN = np.load(Path(__file__).parent / "data" / "pose_geometry_golden.npz")


def test_is_poseval(tmp_path):
    cases.posetrack_videos(tmp_path)
    found = posetrack_average_precision(*read_posetrack_folders(tmp_path / "truth", tmp_path / "predictions"))
    for name in ("average_precision", "precision", "recall"):
        assert getattr(found, name) == pytest.approx(GOLDEN[f"posetrack/{name}"][:15], rel=1e-12)
    assert list(found.columns().values()) == pytest.approx(GOLDEN["posetrack/columns"], rel=1e-12)
    assert found.total == pytest.approx(GOLDEN["posetrack/average_precision"][15], rel=1e-12)


HEAD = np.array([[0.0, 0, 30, 40]])  # 0.6 x 50 = 30, so that a joint is right within 15 pixels
BODY = np.stack([np.arange(15.0) * 100, np.zeros(15)], 1)


def truth_of(*people, ignored=()):
    return Frame(np.array(people, np.float64).reshape(-1, 15, 2), None, HEAD.repeat(len(people), 0), ignored)


def found(*people, scores):
    return Frame(np.array(people, np.float64).reshape(-1, 15, 2), np.array(scores).reshape(-1, 1).repeat(15, 1))


def precision(truth, predictions):
    return posetrack_average_precision(truth, predictions).average_precision


def test_by_hand():
    near, far = BODY + [15, 0], BODY + [15.1, 0]
    assert (precision([truth_of(BODY)], [found(near, scores=[0.1])]) == 100).all()
    assert (precision([truth_of(BODY)], [found(far, scores=[0.1])]) == 0).all()
    # a stranger with a better score halves the precision at the only recall; with a worse one it does not
    stranger = BODY + [0, 5000]
    assert (precision([truth_of(BODY)], [found(stranger, BODY, scores=[0.9, 0.1])]) == 50).all()
    assert (precision([truth_of(BODY)], [found(stranger, BODY, scores=[0.1, 0.9])]) == 100).all()
    # a person nobody found halves the recall
    assert (precision([truth_of(BODY, stranger)], [found(BODY, scores=[0.9])]) == 50).all()
    # of two poses for one person the fuller one is the person's, whatever the scores; the other is wrong altogether
    half = np.where(np.arange(15)[:, None] < 7, BODY, stranger)
    assert (precision([truth_of(BODY)], [found(half, BODY, scores=[0.9, 0.1])]) == 50).all()
    # one frame right, one wrong: the order of scores over the whole set decides
    pair = [truth_of(BODY)] * 2
    assert (precision(pair, [found(BODY, scores=[0.9]), found(far, scores=[0.5])]) == 50).all()
    assert (precision(pair, [found(BODY, scores=[0.5]), found(far, scores=[0.9])]) == 25).all()
    # the pose goes to the person of whom it has the larger share of joints, not the larger number
    few = np.where(np.arange(15)[:, None] < 2, BODY, np.nan)
    both = posetrack_average_precision([truth_of(half, few)], [found(half, scores=[0.5])])
    assert both.average_precision[0] == 50 and both.average_precision[10] == 100


def test_frames_and_people_that_do_not_count():
    nothing, everywhere = np.full((15, 2), np.nan), BODY + [0, 5000]
    perfect = [truth_of(BODY)], [found(BODY, scores=[0.5])]
    # a frame without people is left out with what was predicted in it
    assert (precision([*perfect[0], truth_of()], [*perfect[1], found(BODY, scores=[0.9])]) == 100).all()
    # a frame whose person has no joints is not: predictions in it are wrong
    assert (precision([*perfect[0], truth_of(nothing)], [*perfect[1], found(BODY, scores=[0.9])]) == 50).all()
    # frames without predictions cost recall
    assert (precision([truth_of(BODY)] * 2, [*perfect[1], found(scores=[])]) == 50).all()
    # joints in an ignored region are nobody's; on its border they count
    region = (np.array([[-50.0, 4000], [2000, 4000], [2000, 6000], [-50, 6000]]),)
    ignoring = [truth_of(BODY, everywhere, ignored=region)], [found(everywhere, BODY, scores=[0.9, 0.5])]
    assert (precision(*ignoring) == 100).all()
    edge = BODY + [0, 4000]
    assert (precision([truth_of(BODY, ignored=region)], [found(edge, BODY, scores=[0.9, 0.5])]) == 50).all()


def test_joints_without_annotation():
    part = BODY.copy()
    part[JOINTS.index("nose")] = np.nan
    result = posetrack_average_precision([truth_of(part)], [found(BODY, scores=[0.5])])
    assert np.isnan(result.average_precision[JOINTS.index("nose")]) and result.total == 100
    assert math.isnan(result.columns()["head"]) and result.columns()["wrist"] == 100
    unseen = [truth_of(part)], [found(part, scores=[0.5])]
    assert posetrack_average_precision(*unseen).total == 100
    assert posetrack_average_precision(*unseen, count_absent_joints=True).total == pytest.approx(100 * 14 / 15)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_depends_on_the_order_of_scores_only(seed):
    rng = np.random.default_rng(seed)
    truth = [truth_of(*(BODY + rng.normal(0, 500, (2, 1, 2)))) for _ in range(4)]
    poses = [frame.points + rng.normal(0, 10, frame.points.shape) for frame in truth]
    scores = [rng.permutation(30).reshape(2, 15) + 30.0 * n for n in range(4)]
    first = precision(truth, [Frame(p, s) for p, s in zip(poses, scores, strict=True)])
    again = precision(truth[::-1], [Frame(p[::-1], s[::-1] ** 3 - 7) for p, s in zip(poses, scores, strict=True)][::-1])
    assert (first >= 0).all() and (first <= 100).all() and again == pytest.approx(first)


def new_form(folder: Path):
    """The golden case in PoseTrack18's form, whose joints are in another order, with ears."""
    names = ["nose", "head_bottom", "head_top", "left_ear", "right_ear", *(n for n in JOINTS.joints if "_" in n)]
    names = list(dict.fromkeys(names))
    (folder / "new").mkdir()
    for kind in ("truth", "predictions"):
        for path in (folder / kind).glob("*.json"):
            images, people = [], []
            for number, frame in enumerate(json.loads(path.read_text())["annolist"]):
                regions = frame.get("ignore_regions", [])
                sides = {f"ignore_regions_{s}": [[p[s][0] for p in r["point"]] for r in regions] for s in "xy"}
                images.append({"id": 100 + number, "file_name": frame["image"][0]["name"], **sides})
                people += [{**_new_person(person, names), "image_id": 100 + number} for person in frame["annorect"]]
            content = {"images": images, "annotations": people, "categories": [{"keypoints": names}]}
            (folder / "new" / f"{kind}{path.name}").write_text(json.dumps(content))


def _new_person(person, names):
    keypoints, scores = np.zeros((len(names), 3)), np.zeros(len(names))
    for point in (person["annopoints"] or [{"point": []}])[0]["point"]:
        place = names.index(JOINTS.joints[point["id"][0]])
        keypoints[place] = point["x"][0], point["y"][0], 1
        scores[place] = point.get("score", [0])[0]
    made = {"keypoints": keypoints.ravel().tolist()}
    if "x1" in person:
        (x, y), (right, bottom) = ([person[c + n][0] for c in "xy"] for n in "12")
        return {**made, "bbox_head": [x, y, right - x, bottom - y]}
    return {**made, "scores": scores.tolist()}


def test_files_of_both_years(tmp_path):
    cases.posetrack_videos(tmp_path)
    new_form(tmp_path)
    frames = 0
    for kind in ("truth", "predictions"):
        for path in sorted((tmp_path / kind).glob("*.json")):
            for old, new in zip(
                read_posetrack(path), read_posetrack(tmp_path / "new" / (kind + path.name)), strict=True
            ):
                frames += len(old.points) > 0
                assert old.points == pytest.approx(new.points, nan_ok=True)
                there = ~np.isnan(old.points[..., 0])
                if kind == "truth":
                    assert old.head_boxes == pytest.approx(new.head_boxes)
                    assert (old.scores == -9999).all() and len(old.ignored) == len(new.ignored)
                    assert all(np.array_equal(a, b) for a, b in zip(old.ignored, new.ignored, strict=True))
                else:
                    assert old.scores[there].tolist() == new.scores[there].tolist()
    assert frames > 20


def test_2018_by_hand(tmp_path):
    keypoints = np.zeros((15, 3))
    keypoints[:4] = [[0, 5, 1], [0, 0, 1], [3, 4, 0], [0, 0, 0]]  # the last alone is not annotated
    person = {"image_id": 7, "keypoints": keypoints.ravel().tolist(), "bbox_head": [10, 20, 30, 40]}
    bare = {"image_id": 7, "keypoints": [0] * 45, "scores": [0.5] * 15}
    content = {
        "images": [{"id": 9}, {"id": 7}],
        "annotations": [person, bare],
        "categories": [{"keypoints": JOINTS.joints}],
    }
    (tmp_path / "x.json").write_text(json.dumps(content))
    empty, frame = read_posetrack(tmp_path / "x.json")
    assert empty.points.shape == (0, 15, 2) and empty.scores.shape == (0, 15) and empty.head_boxes.shape == (0, 4)
    assert frame.points[0, :3].tolist() == [[0, 5], [0, 0], [3, 4]] and np.isnan(frame.points[0, 3:]).all()
    assert np.isnan(frame.points[1]).all() and np.isnan(frame.head_boxes[1]).all()
    assert frame.head_boxes[0].tolist() == [10, 20, 40, 60]
    assert (frame.scores[0] == -9999).all() and (frame.scores[1] == 0.5).all()


def refused(folder, content, message):
    (folder / "x.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=rf"x.json: .*{message}"):
        read_posetrack(folder / "x.json")


def test_files_that_are_not(tmp_path):
    refused(tmp_path, "{", "Expecting property name")
    refused(tmp_path, [], "neither annolist .* nor images, annotations, categories")
    refused(tmp_path, {"annolist": [{}]}, r"not as PoseTrack writes it \(KeyError: 'annorect'\)")
    new = {"images": [{"id": 1}], "annotations": [], "categories": [{"keypoints": list(JOINTS.joints[1:])}]}
    refused(tmp_path, new, "its category has no joint right_ankle")
    named = {**new, "categories": [{"keypoints": list(JOINTS.joints)}]}
    refused(tmp_path, {**named, "annotations": [{"image_id": 2}]}, "in image 2, which is not among its images")
    refused(tmp_path, {**named, "annotations": [{"image_id": 1, "keypoints": [1, 2]}]}, "cannot reshape")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: no JSON file in this folder"):
        read_posetrack_folders(tmp_path / "empty", tmp_path)
    cases.posetrack_videos(tmp_path, videos=1)
    with pytest.raises(ValueError, match=r"0.json: no such file, the predictions for"):
        read_posetrack_folders(tmp_path / "truth", tmp_path / "empty")
    (tmp_path / "predictions" / "0.json").write_text('{"annolist": []}')
    with pytest.raises(ValueError, match=r"0.json: has 0 frames, .*0.json has 8"):
        read_posetrack_folders(tmp_path / "truth", tmp_path / "predictions")


GOOD = truth_of(BODY), found(BODY, scores=[0.5])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: posetrack_average_precision([GOOD[0]], []), "every frame of truth needs one .* got 1 and 0 frames"),
        (lambda: posetrack_average_precision([truth_of()], [GOOD[1]]), "no frame of truth has a person"),
        (
            lambda: posetrack_average_precision([GOOD[1]], [GOOD[1]]),
            r"frame 0: truth needs head boxes \(1, 4\), got None",
        ),
        (
            lambda: posetrack_average_precision([GOOD[0]], [GOOD[0]]),
            r"frame 0: predictions need scores \(1, 15\), got None",
        ),
        (
            lambda: posetrack_average_precision([Frame(BODY)], [GOOD[1]]),
            r"points of truth must be \(N, 15, 2\), got \(15",
        ),
        (
            lambda: posetrack_average_precision([Frame(BODY[None], None, HEAD * np.nan)], [GOOD[1]]),
            "frame 0: truth has a person with joints and without a head box",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
