# SPDX-License-Identifier: Apache-2.0
"""Where people are looked for, and how they are followed."""

import numpy as np
import pytest
from flexor.models.pose.boxes import BoxesError, FromFile
from flexor.models.pose.motion import Backgrounds
from flexor.models.pose.skeleton import COCO17
from flexor.models.pose.tracking import Person, Tracker, distinct, greedy_pairs
from flexor.models.pose.video import Clip, Frame
from pose_clips import BODY, boxes_file, frames_of, joints, picture, video, walk


def rows(boxes, index, image=None):
    return boxes(Frame(index, picture([]) if image is None else image, 0, ""), Tracker(COCO17)).tolist()


def test_boxes_of_csv(tmp_path):
    text = "frame,x,y,w,h,score\n0,1,2,30,40,0.5\n0,5,6,7,8\n\n2,-4,0,20,30,0.1\n2,-4,0,20,30,0.9\n7,1,1,5,5\n"
    boxes = boxes_file(tmp_path, text, video(), "boxes.csv")
    assert rows(boxes, 0) == [[1, 2, 30, 40, 0.5], [5, 6, 7, 8, 1]]
    assert rows(boxes, 1) == [] and rows(boxes, 2) == [[-4, 0, 20, 30, 0.9]]
    assert boxes.warnings == [
        "boxes that reach beyond their frames: 1",
        "images with boxes that are not among the frames: 1",
    ]


def test_boxes_of_coco_and_posetrack(tmp_path):
    detection = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 40], "score": 0.5}
    boxes = boxes_file(tmp_path, [detection, {**detection, "category_id": 2}], video())
    assert rows(boxes, 0) == [] and rows(boxes, 1) == [[1, 2, 30, 40, 0.5]]
    files = [tmp_path / folder / "000000.jpg" for folder in ("a", "b")]
    images = [{"id": 20, "file_name": "val/b/000000.jpg"}, {"id": 10, "file_name": "val/a/000000.jpg"}]
    truth = {"images": images, "annotations": [{"image_id": 10, "bbox": [1, 2, 30, 40]}]}
    boxes = boxes_file(tmp_path, truth, Clip("", iter(()), False, files=files))
    assert rows(boxes, 0) == [[1, 2, 30, 40, 1]] and rows(boxes, 1) == []
    assert [boxes.image_id(Frame(index, None, 0, "")) for index in (0, 1)] == [10, 20]
    boxes = boxes_file(tmp_path, truth, video())  # a video's frames by the order of the images
    assert rows(boxes, 1) == [[1, 2, 30, 40, 1]]
    with pytest.raises(BoxesError, match="lists 2 images, none for frame 2"):
        rows(boxes, 2)
    numbered = Clip("", iter(()), False, files=[tmp_path / "000000000139.jpg"])
    boxes = boxes_file(tmp_path, [{**detection, "image_id": 139}], numbered)
    assert rows(boxes, 0) == [[1, 2, 30, 40, 0.5]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "0,1,2,3\n", "line 1 has 4 values: give frame,left,top,width,height"),
        ("a.csv", "0,1,2,3,4\n1,b,2,3,4\n", "could not convert string to float: 'b'"),
        ("a.csv", "frame,x,y,w,h\n", "holds no boxes"),
        ("a.csv", "0,1,2,3,4,0.1\n", "holds no boxes of score 0.2 or more"),
        ("a.csv", "0,1,2,0,4\n", "a box of image 0 has no extent"),
        ("a.csv", "0,1,2,nan,4\n", "a box of image 0 has no extent"),
        ("a.csv", "5,128,2,4,4\n", r"image 5: the box \[128.0, 2.0, 4.0, 4.0\] .* lies wholly outside 128x96"),
        ("a.csv", "5,-4,2,4,4\n", "lies wholly outside 128x96"),
        ("a.json", "{", "is neither COCO's JSON nor CSV of boxes"),
        ("a.json", '{"images": []}', "no 'annotations'"),
        ("a.json", '[{"bbox": [1, 2, 3, 4]}]', "no 'image_id'"),
        ("a.json", '[{"image_id": 0, "category_id": 3, "bbox": [1, 2, 3, 4]}]', "no entry of category 1"),
        ("a.json", '[{"image_id": 0, "bbox": [1, 2, 3]}]', "not enough values"),
    ],
)
def test_boxes_that_cannot_be_used(name, content, message, tmp_path):
    with pytest.raises(BoxesError, match=message):
        boxes_file(tmp_path, content, video(), name)


def test_boxes_of_images_are_checked_by_their_sizes(tmp_path):
    clip = Clip("", iter(()), False, files=[tmp_path / "a.png"])
    boxes = boxes_file(tmp_path, "0,90,0,9,9\n", clip, "boxes.csv")
    with pytest.raises(BoxesError, match=r"frame 0: the box .* lies wholly outside 80x96"):
        rows(boxes, 0, picture([], (96, 80)))
    with pytest.raises(BoxesError, match=r"lists images, and a.png is not among them"):
        boxes_file(tmp_path, {"images": [{"id": 1, "file_name": "b.png"}], "annotations": []}, clip)
    with pytest.raises(BoxesError, match=r"none.json: No such file"):
        FromFile(tmp_path / "none.json", clip)


def test_what_moves_before_a_still_camera():
    rng = np.random.default_rng(0)
    scene = np.kron(rng.integers(60, 120, (9, 16, 3)), np.ones((32, 32, 1))).astype(np.uint8)  # 288 x 512
    pictures, people = [], []
    for t in range(40):
        image, people_now = scene.copy(), [(20 + 10 * t, 60, 40, 120), (440 - 10 * t, 150, 40, 110)]
        for x, y, w, h in people_now:
            image[y : y + h, x : x + w] = (250, 240, 20)
        image[5:9, 5 * t : 5 * t + 4] = 255  # too small
        pictures.append(image)
        people.append(people_now)
    clip = frames_of(pictures)
    backgrounds = Backgrounds(clip)
    for t in (0, 10, 39):
        found = backgrounds.moving(clip[t])
        assert np.abs(found - sorted(people[t])).max() <= 8 and len(found) == 2
    assert len(backgrounds.moving(frames_of([scene])[0])) == 0


def person(box, scores=1.0, pose=None):
    points = joints(*box) if pose is None else pose
    return Person(0, box, 1.0, np.column_stack([points, np.broadcast_to(scores, 17)]), 1.0)


def test_people_keep_their_ids_when_they_pass_each_other():
    bodies, _ = walk(60)
    tracker = Tracker(COCO17)
    ids = [[one.id for one in tracker.update([person(box) for box in boxes], 0)] for boxes in bodies]
    assert ids == [[1, 2]] * 60
    tracker = Tracker(COCO17)
    turned = [
        [one.id for one in tracker.update([person(b) for b in boxes[:: 1 - 2 * (t % 2)]], 0)]
        for t, boxes in enumerate(bodies)
    ]
    assert turned == [[1, 2], [2, 1]] * 30


def test_the_unseen_are_remembered_for_ten_frames():
    box = (10, 10, 40, 80)
    for gap, found in ((10, 1), (11, 2)):
        tracker = Tracker(COCO17)
        tracker.update([person(box)], 0)
        for _ in range(gap):
            tracker.update([], 0)
        assert tracker.update([person(box)], 0)[0].id == found


def test_a_cut_ends_all_tracks():
    tracker, box = Tracker(COCO17), (10, 10, 40, 80)
    tracker.update([person(box)], 0)
    assert len(tracker.boxes(0, (128, 96))) == 1 and len(tracker.boxes(1, (128, 96))) == 0
    assert tracker.nearest(np.array([[*box, 1.0]]), 0) == [1] and tracker.nearest(np.array([[*box, 1.0]]), 1) == [None]
    assert tracker.update([person(box)], 1)[0].id == 2


def test_people_of_few_joints_are_told_apart_by_their_boxes():
    tracker = Tracker(COCO17)
    few = np.zeros(17)
    few[:3] = 1
    tracker.update([person((0, 0, 40, 80), few), person((60, 0, 40, 80), few)], 0)
    found = tracker.update([person((62, 0, 40, 80), few), person((2, 0, 40, 80), few), person((30, 0, 8, 8), few)], 0)
    assert [one.id for one in found] == [2, 1, 3]


def test_boxes_around_poses():
    tracker = Tracker(COCO17)
    few = np.zeros(17)
    few[:3] = 1
    everybody = [
        person((20, 10, 40, 60)),
        person((20, 10, 40, 60), few),  # too few joints
        person((300, 10, 40, 60)),  # left the picture
        person((20, 10, 40, 60), pose=np.full((17, 2), 30.0) + BODY),  # a point
    ]
    tracker.update(everybody, 0)
    (found,) = tracker.boxes(0, (128, 96))
    extent = BODY.max(0) - BODY.min(0)
    middle = np.array([20, 10]) + (BODY.max(0) + BODY.min(0)) / 2 * (40, 60)
    sides = 1.25 * extent * (40, 60)
    assert np.allclose(found, [*(middle - sides / 2), *sides, 1])


def test_pairs_are_taken_from_the_greatest_on():
    similarity = np.array([[0.9, 0.8, 0.1], [0.95, 0.85, 0.3], [0.2, 0.1, 0.3]])
    assert greedy_pairs(similarity, 0.3) == [(1, 0), (0, 1), (2, 2)]
    assert greedy_pairs(np.zeros((0, 3)), 0.3) == greedy_pairs(np.zeros((3, 0)), 0.3) == []


def test_of_two_equal_poses_the_better_stays():
    low, high = person((20, 10, 40, 60)), Person(0, (20, 10, 40, 60), 1.0, person((20, 10, 40, 60)).keypoints, 2.0)
    assert distinct([low, high, person((70, 10, 40, 60))], COCO17) == [1, 2] and distinct([], COCO17) == []
