# SPDX-License-Identifier: Apache-2.0
"""The pipeline of poses: clips, cuts, windows, boxes, people followed, and runs that go on."""

import json
import threading
import time
import wave
from contextlib import suppress
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest
import torch
from flexor.models.pose.boxes import BoxesError, Followed, FromFile, WholeFrame
from flexor.models.pose.journal import Journal, JournalError
from flexor.models.pose.motion import Backgrounds
from flexor.models.pose.pipeline import Estimator, Pipeline
from flexor.models.pose.recipe import recipe, recipes
from flexor.models.pose.results import Result
from flexor.models.pose.skeleton import COCO17
from flexor.models.pose.tracking import Person, Tracker, distinct, greedy_pairs
from flexor.models.pose.video import Behind, Clip, Frame, Movie, SourceError, ahead, open_clip, shots, windows
from PIL import Image
from pose_clips import BODY, RECIPES, Colours, joints, picture, walk, write_video


def frames_of(pictures, shot=0):
    return [Frame(index, image, shot, "clip") for index, image in enumerate(pictures)]


class Given(WholeFrame):
    """Boxes by frame."""

    def __init__(self, boxes):
        self.boxes = boxes

    def __call__(self, frame, tracker):
        return np.array([[*box, 0.9] for box in self.boxes[frame.index]], np.float64).reshape(-1, 5)


def estimator(name="colours", **options):
    return Estimator(Colours(), RECIPES[name], **options)


# Clips


def test_a_video_is_read_frame_by_frame(tmp_path):
    _, pictures = walk(5)
    clip = open_clip([write_video(tmp_path / "in.mkv", pictures, rate=Fraction(30000, 1001))])
    assert (clip.name, clip.video, clip.size, clip.fps) == ("in.mkv", True, (192, 96), Fraction(30000, 1001))
    found = list(clip.frames)
    assert [frame.index for frame in found] == list(range(5)) and all(frame.name == "in.mkv" for frame in found)
    assert all(np.array_equal(frame.image, image) for frame, image in zip(found, pictures, strict=True))


def test_images_are_read_by_name_and_a_bad_one_is_a_frame_without_an_image(tmp_path):
    for name in ("b.png", "a.png"):
        Image.fromarray(picture([])).save(tmp_path / name)
    (tmp_path / "c.png").write_bytes((tmp_path / "a.png").read_bytes()[:100])
    (tmp_path / "notes.txt").write_text("no image")
    clip = open_clip([tmp_path])
    found = list(clip.frames)
    assert not clip.video and [frame.name for frame in found] == ["a.png", "b.png", "c.png"]
    assert found[0].image is not None and found[2].image is None and found[2].error
    assert [frame.name for frame in open_clip([tmp_path / "b.png", tmp_path / "a.png"]).frames] == ["b.png", "a.png"]


def test_clips_that_cannot_be_used(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty").mkdir()
    with wave.open(str(tmp_path / "sound.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(1600))
    for sources, message in (
        (["nosuch.mp4"], "nosuch.mp4: no such file"),
        (["empty"], "empty: no images in this folder"),
        (["text.mp4"], "text.mp4: neither an image nor a video that can be read"),
        (["sound.wav"], "sound.wav: holds no video"),
        (["text.mp4", "sound.wav"], "text.mp4: not an image; videos are taken one at a time"),
        (["text.mp4", "empty"], "text.mp4: not an image"),
    ):
        with pytest.raises(SourceError, match=message):
            open_clip([tmp_path / name for name in sources])


def test_a_video_without_frames_and_one_that_changes_its_size(tmp_path):
    write_video(tmp_path / "whole.avi", walk(1)[1], "mjpeg", "yuvj420p")
    data = (tmp_path / "whole.avi").read_bytes()
    (tmp_path / "none.avi").write_bytes(data.replace(b"00dc", b"JUNK"))  # every packet
    with pytest.raises(SourceError, match=r"none.avi: (holds no frame that can be decoded|cannot be read)"):
        list(open_clip([tmp_path / "none.avi"]).frames)
    stream = b""
    for size in ((96, 128), (96, 128), (64, 64)):
        Image.fromarray(picture([], size)).save(tmp_path / "one.jpg")
        stream += (tmp_path / "one.jpg").read_bytes()
    (tmp_path / "two.mjpeg").write_bytes(stream)
    taken = windows(open_clip([tmp_path / "two.mjpeg"]).frames, (0, 1))
    assert [next(taken)[0].index for _ in range(2)] == [0, 1]
    with pytest.raises(SourceError, match="frame 2 is 64x64, but those before are 128x96: cut it there"):
        next(taken)


def test_a_bad_packet_is_one_frame(tmp_path):
    pictures = walk(6)[1]
    write_video(tmp_path / "in.avi", pictures, "mjpeg", "yuvj420p")
    data = bytearray((tmp_path / "in.avi").read_bytes())
    places = [place for place in range(data.index(b"movi"), len(data)) if data[place : place + 4] == b"00dc"][:6]
    length = int.from_bytes(data[places[2] + 4 : places[2] + 8], "little")
    data[places[2] + 8 : places[2] + 8 + length] = bytes(length)
    (tmp_path / "bad.avi").write_bytes(data)
    found = list(open_clip([tmp_path / "bad.avi"]).frames)
    assert [frame.index for frame in found] == list(range(6))
    assert [frame.image is None for frame in found] == [False, False, True, False, False, False]
    assert "Invalid data" in found[2].error


def test_cuts_are_found_where_the_scene_changes():
    noise = np.random.default_rng(0).integers(0, 255, (3, 12, 40, 3), dtype=np.uint8)
    scenes = [np.kron(one, np.ones((8, 8, 1), np.uint8)) for one in noise]
    pan = [scenes[0][:, 4 * t : 4 * t + 128] for t in range(8)]  # two pixels of 18 rows are moved by, no cut
    dark = [np.zeros((96, 128, 3), np.uint8) + t % 2 for t in range(3)]  # next to black, noise of one level
    other = [scenes[1][:, :128]] * 3 + [scenes[2][:, :128]] * 2
    small = [scenes[2][:48, :64]] * 2
    found = [frame.shot for frame in shots(frames_of(pan + dark + other + small))]
    starts = [index for index, (a, b) in enumerate(pairwise(found), start=1) if a != b]
    assert starts == [8, 11, 14, 16] and found[-1] == 4


def test_windows_at_ends_cuts_and_unreadable_frames():
    image = picture([])
    marks = [Frame(index, None if index == 5 else image, int(index >= 3), "") for index in range(8)]
    found = [[frame.index for frame in window] for window in windows(marks, (0, -2, -1, 1, 2))]
    assert found == [
        [0, 0, 0, 1, 2], [1, 1, 0, 2, 1], [2, 0, 1, 2, 2],
        [3, 3, 3, 4, 3], [4, 4, 3, 4, 6], [5, 3, 4, 6, 7], [6, 4, 6, 7, 6], [7, 7, 6, 7, 7],
    ]  # fmt: skip
    assert [[frame.index for frame in window] for window in windows(marks[:1], (0, -1, 1))] == [[0, 0, 0]]
    assert [len(list(windows(marks, offsets))) for offsets in ((0,), (0, 1), (0, -1), (0, 3))] == [8] * 4


def test_frames_are_read_ahead_and_no_thread_is_left():
    asked = []

    def source():
        for number in range(100):
            asked.append(number)
            yield number
        raise SourceError("the end")

    before = threading.active_count()
    taken = ahead(source(), depth=4)
    assert next(taken) == 0
    for _ in range(100):
        time.sleep(0.01)
        if len(asked) >= 6:
            break
    assert len(asked) == 6  # one taken, four waiting, one in hand
    taken.close()
    assert threading.active_count() == before
    rest = ahead(source(), depth=4)
    assert [next(rest) for _ in range(100)] == list(range(100))
    with pytest.raises(SourceError, match="the end"):
        next(rest)


def test_errors_of_a_thread_behind_come_forward():
    def work(item):
        if item == 2:
            raise OSError(28, "No space left on device")

    behind = Behind(work)
    behind.put(1)
    with suppress(OSError):  # the thread may be that fast
        behind.put(2)
    with pytest.raises(OSError, match="No space left"):
        behind.close()


@pytest.mark.parametrize("size", [(96, 192), (95, 191)])
def test_a_movie_keeps_rate_and_size_and_is_the_same_twice(size, tmp_path):
    pictures = walk(6, size)[1]
    for name in ("a.mp4", "b.mp4"):
        movie = Movie(tmp_path / name, Fraction(30000, 1001))
        for image in pictures:
            movie.write(image)
        movie.close()
    with av.open(str(tmp_path / "a.mp4")) as file:
        stream = file.streams.video[0]
        assert stream.average_rate == Fraction(30000, 1001)
        found = [frame.to_ndarray(format="rgb24") for frame in file.decode(stream)]
    assert [image.shape[:2] for image in found] == [size] * 6
    assert all(np.abs(a.astype(int) - b).mean() < 6 for a, b in zip(found, pictures, strict=True))
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    movie = Movie(tmp_path / "c.mp4", Fraction(25))
    movie.write(pictures[0])
    movie.close(keep=False)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]


# Boxes


def boxes_file(tmp_path, content, clip, name="boxes.json", **options):
    (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return FromFile(tmp_path / name, clip, **options)


def video(frames=3, size=(128, 96)):
    return Clip("clip", iter(()), True, size, None, frames)


def rows(boxes, index, image=None):
    return boxes(Frame(index, picture([]) if image is None else image, 0, ""), Tracker(COCO17)).tolist()


def test_boxes_of_csv(tmp_path):
    text = "frame,x,y,w,h,score\n0,1,2,30,40,0.5\n0,5,6,7,8\n\n2,-4,0,20,30,0.1\n2,-4,0,20,30,0.9\n7,1,1,5,5\n"
    boxes = boxes_file(tmp_path, text, video(), "boxes.csv")
    assert rows(boxes, 0) == [[1, 2, 30, 40, 0.5], [5, 6, 7, 8, 1]]
    assert rows(boxes, 1) == [] and rows(boxes, 2) == [[-4, 0, 20, 30, 0.9]]
    assert boxes.warnings == ["1 boxes reach beyond their frames", "boxes of 1 images that are not among the frames"]


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


# People


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


# The pipeline


@pytest.mark.parametrize("name", ["colours", "colours_udp"])
def test_poses_are_where_the_joints_are(name):
    bodies, pictures = walk(4)
    run = Pipeline(estimator(name, batch=3), Given(bodies)).run(frames_of(pictures))
    for boxes, (frame, result) in zip(bodies, run, strict=True):
        assert result.frame == frame.index and [one.id for one in result.people] == [1, 2]
        for box, one in zip(boxes, result.people, strict=True):
            assert one.box == box and one.box_score == 0.9
            assert np.abs(one.keypoints[:, :2] - joints(*box)).max() < 2.5
            assert one.score == pytest.approx(0.9 * one.keypoints[:, 2].mean(), abs=1e-3)


def test_the_flip_test_keeps_left_and_right():
    bodies, pictures = walk(1)
    for name in ("colours", "colours_udp"):
        ((_, result),) = Pipeline(estimator(name, flip=True), Given(bodies)).run(frames_of(pictures))
        # A network of colours finds the left wrist's colour in the mirrored crop; it comes back as the right's.
        nose = result.people[0].keypoints[0]
        assert np.abs(nose[:2] - joints(*bodies[0][0])[0]).max() < 2.5 and nose[2] > 0.2
        plain = estimator(name)
        frame = frames_of(pictures)[0]
        (pose,), _ = plain([(frame,)], np.array([bodies[0][0]], np.float64))
        assert result.people[0].keypoints[9, 2] == pytest.approx(pose[9, 2] / 2, rel=0.2)
    with pytest.raises(NotImplementedError, match="memory is recurrent: its states cannot be mirrored"):
        estimator("memory", flip=True)


def test_windows_reach_the_network_in_order():
    bodies, pictures = walk(4)
    run = [result for _, result in Pipeline(estimator("before"), Given(bodies)).run(frames_of(pictures))]
    for t, result in enumerate(run):
        seen = joints(*bodies[max(t - 1, 0)][0])
        assert np.abs(result.people[0].keypoints[:, :2] - seen).max() < 2.5


def test_one_person_is_followed_from_the_whole_frame_on():
    pictures = [picture([(8 + 4 * t, 12, 40, 72)]) for t in range(12)] + [picture([])] * 2
    pipeline = Pipeline(estimator(), Followed(WholeFrame()))
    found = [result.people for _, result in pipeline.run(frames_of(pictures))]
    assert [one.id for people in found[:12] for one in people] == [1] * 12
    assert found[0][0].box == (0, 0, 128, 96) and all(one.box[2] < 60 for people in found[1:12] for one in people)
    for t in range(2, 12):  # the first crop, of the whole frame, is coarse, and the second without the ankles
        assert np.abs(found[t][0].keypoints[:, :2] - joints(8 + 4 * t, 12, 40, 72)).max() < 4
    assert found[13][0].box == (0, 0, 128, 96)  # lost


def test_boxes_of_some_frames_start_people_who_are_then_followed(tmp_path):
    bodies, pictures = walk(6)
    first = boxes_file(
        tmp_path, "".join(f"0,{x},{y},{w},{h}\n" for x, y, w, h in bodies[0]), video(6, (192, 96)), "boxes.csv"
    )
    run = Pipeline(estimator(), Followed(first)).run(frames_of(pictures))
    assert [[one.id for one in result.people] for _, result in run] == [[1, 2]] * 6


def test_bad_frames_do_not_end_a_run():
    bodies, pictures = walk(5)
    clip = frames_of(pictures)
    clip[2] = Frame(2, None, 0, "clip", "Invalid data")
    network = Colours()
    pipeline = Pipeline(Estimator(network, RECIPES["colours"], batch=1), Given(bodies))
    found = []
    for frame, result in pipeline.run(clip):
        found.append(result)
        with torch.no_grad():
            pipeline.estimator.model.colours.fill_(float("nan") if frame.index == 2 else 0.5)
    assert [bool(result.people) for result in found] == [True, True, False, False, True]
    assert found[2].error == "Invalid data" and found[3].error == "the network's answer is not finite"


def test_results_end_where_the_frames_end_in_an_error():
    bodies, pictures = walk(5)

    def broken():
        yield from frames_of(pictures)
        raise SourceError("cannot be read beyond frame 5")

    run = Pipeline(estimator("before", batch=4), Given(bodies)).run(broken())
    assert [next(run)[1].frame for _ in range(5)] == list(range(5))
    with pytest.raises(SourceError, match="beyond frame 5"):
        next(run)


@pytest.mark.parametrize("name", ["colours", "memory", "before"])
def test_a_run_goes_on_with_the_same_results(name, tmp_path):
    bodies, pictures = walk(80 if name == "memory" else 12)
    bodies = [boxes if t % 5 else boxes[:1] for t, boxes in enumerate(bodies)]

    def go(folder, most=None):
        states = folder / "states.safetensors"
        with Journal(folder / "journal.jsonl", {"a": 1}) as journal:
            pipeline = Pipeline(estimator(name, batch=3), Given(bodies), journal, states=states)
            for number, _ in enumerate(pipeline.run(frames_of(pictures)), start=1):
                if number == most:
                    break
            return pipeline

    go(tmp_path / "whole")
    go(tmp_path / "parts", 7)
    with (tmp_path / "parts" / "journal.jsonl").open("ab") as file:
        file.write(b'[{"frame": 99, "peop')  # as a kill leaves it
    go(tmp_path / "parts", 71 if name == "memory" else 9)
    last = go(tmp_path / "parts")
    assert last.resumed == {"memory": 64, "colours": 9, "before": 9}[name] or name != "memory"
    for file in (tmp_path / "whole").iterdir():
        assert file.read_bytes() == (tmp_path / "parts" / file.name).read_bytes()
    records = [
        frame
        for line in (tmp_path / "whole" / "journal.jsonl").read_text().splitlines()[1:]
        for frame in json.loads(line)
    ]
    assert [Result.from_json(record).frame for record in records] == list(range(len(bodies)))


def test_a_recurrent_network_remembers_each_person():
    bodies, pictures = walk(3)
    pictures[2] = picture([], (96, 192))  # only memory knows where they are
    network = estimator("memory", batch=4)
    results = [result for _, result in Pipeline(network, Given(bodies)).run(frames_of(pictures))]
    alone = estimator("memory")
    state = None
    for t in range(3):
        rows = np.array([bodies[t][1]], np.float64)
        (pose,), (state,) = alone([(frames_of(pictures)[t],)], rows, [state])
        assert np.allclose(results[t].people[1].keypoints[:, 2], pose[:, 2], atol=1e-4)
    fresh, _ = estimator("memory")([(frames_of(pictures)[2],)], np.array([bodies[2][1]], np.float64))
    assert (pose[:, 2] > 0.1).all() and (fresh[..., 2] == 0).all()


# The journal


def test_journals_of_other_runs_are_refused(tmp_path):
    path = tmp_path / "journal.jsonl"
    with Journal(path, {"model": "a", "batch": 4}) as journal:
        journal.append([{"frame": 0}])
        with pytest.raises(JournalError, match="another run is writing it"):
            Journal(path, {"model": "a", "batch": 4})
    with pytest.raises(JournalError, match="was begun with model = a, now it is b: give another folder"):
        Journal(path, {"model": "b", "batch": 4})
    with Journal(path, {"model": "a", "batch": 4}) as journal:
        assert journal.frames == [{"frame": 0}]
    (tmp_path / "other").write_text("text\n")
    with pytest.raises(JournalError, match="is not a journal of flexor pose"):
        Journal(tmp_path / "other", {})
    (tmp_path / "killed").write_text('{"format": "fle')  # before its first line was there
    with Journal(tmp_path / "killed", {"a": 1}) as journal:
        assert journal.steps == []


def test_a_step_that_does_not_fit_leaves_the_journal_as_it_was(tmp_path):
    import resource

    path = tmp_path / "journal.jsonl"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal(path, {"a": 1}) as journal:
        journal.append([{"frame": 0}])
        before = path.read_bytes()
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, hard))  # as a disk that is full within a line
        try:
            with pytest.raises(OSError, match="too large"):
                journal.append([{"frame": 1, "text": "x" * 100}])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert path.read_bytes() == before
        journal.append([{"frame": 1}])
    with Journal(path, {"a": 1}) as journal:
        assert journal.frames == [{"frame": 0}, {"frame": 1}]


def test_recipes():
    assert {"hrnet_w32", "hrnet_w48", "simple_baseline_50", "rtmpose_m", "dcpose", "fami_pose", "dkd"} <= set(recipes())
    assert all(one.name == name and one.window[0] == 0 for name, one in recipes().items())
    with pytest.raises(ValueError, match=r"model must be one of .*hrnet_w32.*, got resnet"):
        recipe("resnet")
    with pytest.raises(ValueError, match="hrnet_w32 comes without weights: give --weights FILE"):
        Estimator.load("hrnet_w32")
