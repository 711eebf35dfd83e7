# SPDX-License-Identifier: Apache-2.0
"""The pipeline of poses: networks on windows and boxes, and runs that go on."""

import json

import numpy as np
import pytest
import torch
from flexor.models.pose.boxes import Followed, WholeFrame
from flexor.models.pose.journal import Journal, JournalError
from flexor.models.pose.pipeline import Estimator, Pipeline
from flexor.models.pose.recipe import recipe, recipes
from flexor.models.pose.results import Result
from flexor.models.pose.video import Frame, SourceError
from pose_clips import RECIPES, Colours, boxes_file, frames_of, joints, picture, video, walk


class Given(WholeFrame):
    """Boxes by frame."""

    def __init__(self, boxes):
        self.boxes = boxes

    def __call__(self, frame, tracker):
        return np.array([[*box, 0.9] for box in self.boxes[frame.index]], np.float64).reshape(-1, 5)


def estimator(name="colours", **options):
    return Estimator(Colours(), RECIPES[name], **options)


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


@pytest.mark.parametrize("name", ["small", "rtmpose_t"])
def test_real_networks_answer_for_everybody(name):
    bodies, pictures = walk(2)
    how = recipe(name)
    network = Estimator(how.build(), how, batch=3)
    frame = frames_of(pictures)[0]
    poses, _ = network([(frame,), (frame,)], np.array(bodies[0], np.float64))
    assert poses.shape == (2, 17, 3) and np.isfinite(poses).all() and network.seconds > 0
    mirrored, _ = Estimator(how.build(), how, flip=True)([(frame,)], np.array(bodies[0][:1], np.float64))
    assert mirrored.shape == (1, 17, 3) and np.isfinite(mirrored).all()


def test_recipes():
    assert {"hrnet_w32", "hrnet_w48", "simple_baseline_50", "rtmpose_m", "dcpose", "fami_pose", "dkd"} <= set(recipes())
    assert all(one.name == name and one.window[0] == 0 for name, one in recipes().items())
    with pytest.raises(ValueError, match=r"model must be one of .*hrnet_w32.*, got resnet"):
        recipe("resnet")
    with pytest.raises(ValueError, match="hrnet_w32 comes without weights: give --weights FILE"):
        Estimator.load("hrnet_w32")
