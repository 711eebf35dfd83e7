# SPDX-License-Identifier: Apache-2.0
"""`flexor pose`: what it writes, shows and refuses, and how it goes on after a kill."""

import json
import os
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pose_clips
import pytest
import torch
from flexor.cli.app import app
from flexor.cli.pose_pictures import ContactSheet, colour, draw
from flexor.models.pose.results import Result
from flexor.models.pose.skeleton import COCO17, POSETRACK17
from flexor.models.pose.tracking import Person
from PIL import Image
from pose_clips import joints, picture, walk, write_video
from typer.testing import CliRunner

FILES = ["coco.json", "contact.png", "journal.jsonl", "overlay.mp4", "posetrack.json", "summary.json"]


@pytest.fixture(autouse=True)
def _networks(monkeypatch):
    pose_clips.register(monkeypatch)


def run(*arguments):
    return CliRunner().invoke(app, ["pose", *map(str, arguments)], env={"COLUMNS": "100"})


def written(*arguments):
    result = run(*arguments, "--threads", 1)
    assert result.exit_code == 0, result.output
    return result


def refused(*arguments):
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()[-1:]
    return line


@pytest.fixture
def clip(tmp_path):
    """Ten frames of two people, and their boxes."""
    bodies, pictures = walk()
    write_video(tmp_path / "in.mkv", pictures, rate=Fraction(30000, 1001))
    lines = [f"{t},{x},{y},{w},{h},0.9" for t, boxes in enumerate(bodies) for x, y, w, h in boxes]
    (tmp_path / "boxes.csv").write_text("frame,x,y,w,h,score\n" + "\n".join(lines))
    return tmp_path / "in.mkv"


def colours(clip, out, *options, boxes=None):
    boxes = boxes or clip.with_name("boxes.csv")
    return (clip, "--model", "colours", "--weights", "random", "--boxes", boxes, "--out", out, *options)


def test_a_video(clip, tmp_path):
    from pycocotools.coco import COCO

    out = tmp_path / "out"
    line = written(*colours(clip, out)).stdout
    assert line.startswith(f"{out}: 10 frames, 20 poses of 2 people; ") and "% of the time in the network" in line
    assert sorted(file.name for file in out.iterdir()) == FILES
    bodies, _ = walk()
    results = json.loads((out / "coco.json").read_text())
    assert [(one["image_id"], one["track_id"]) for one in results] == [(t, n) for t in range(10) for n in (1, 2)]
    for one in results:
        keypoints = np.array(one["keypoints"]).reshape(17, 3)
        assert np.abs(keypoints[:, :2] - joints(*bodies[one["image_id"]][one["track_id"] - 1])).max() < 2.5
        assert one["score"] == pytest.approx(0.9 * keypoints[:, 2].mean(), abs=1e-3)
    truth = COCO()
    truth.dataset = {"images": [{"id": t} for t in range(10)], "annotations": [], "categories": [{"id": 1}]}
    truth.createIndex()
    assert len(truth.loadRes(results).anns) == 20
    with av.open(str(out / "overlay.mp4")) as file:
        stream = file.streams.video[0]
        assert (stream.average_rate, stream.width, stream.height) == (Fraction(30000, 1001), 192, 96)
        assert sum(1 for _ in file.decode(stream)) == 10
    with Image.open(out / "contact.png") as sheet:
        assert sheet.width > 3 * 192 and sheet.height > 3 * 96
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["frames"], summary["people"], summary["poses"], summary["cuts"]) == (10, 2, 20, [])
    assert summary["unusable"] == summary["warnings"] == []


def test_results_in_posetracks_order(clip, tmp_path):
    written(*colours(clip, tmp_path / "out", "--no-overlay", "--frames", 2))
    content = json.loads((tmp_path / "out" / "posetrack.json").read_text())
    assert content["categories"][0]["keypoints"] == list(POSETRACK17.joints)
    assert [image["id"] for image in content["images"]] == [0, 1] and len(content["annotations"]) == 4
    one = content["annotations"][0]
    found = dict(zip(POSETRACK17.joints, np.array(one["keypoints"]).reshape(17, 3), strict=True))
    wanted = dict(zip(COCO17.joints, joints(*walk()[0][0][0]), strict=True))
    assert (found["head_top"] == 0).all() and one["scores"][POSETRACK17.index("head_top")] == 0
    assert np.abs(found["left_wrist"][:2] - wanted["left_wrist"]).max() < 2.5 and found["left_wrist"][2] == 1
    scores = json.loads((tmp_path / "out" / "coco.json").read_text())[0]["keypoints"][2::3]
    assert one["scores"][POSETRACK17.index("left_wrist")] == pytest.approx(0.9 * scores[COCO17.index("left_wrist")])
    assert not (tmp_path / "out" / "overlay.mp4").exists()


def test_images(tmp_path):
    (tmp_path / "in").mkdir()
    for t, body in enumerate(walk(4)[0]):
        Image.fromarray(picture(body, (96, 192 + 32 * (t > 1)))).save(tmp_path / "in" / f"{10 + t}.png")
    (tmp_path / "in" / "12.png").write_bytes(b"no image")
    result = written(*colours(tmp_path / "in", tmp_path / "out", boxes="tracker"))
    assert "1 of 4 frames could not be used, the first is frame 2: " in result.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [one["frame"] for one in summary["unusable"]] == [2] and summary["cuts"] == [3]  # of another size
    content = json.loads((tmp_path / "out" / "coco.json").read_text())
    assert [one["image_id"] for one in content] == [10, 11, 13]
    assert sorted(file.name for file in (tmp_path / "out" / "overlay").iterdir()) == [
        "10.png", "11.png", "12.png", "13.png",
    ]  # fmt: skip
    files = [tmp_path / "in" / "13.png", tmp_path / "in" / "10.png"]
    written(*files, "--model", "colours", "--weights", "random", "--out", tmp_path / "two")
    assert sorted(file.name for file in (tmp_path / "two" / "overlay").iterdir()) == ["10.png", "13.png"]
    content = json.loads((tmp_path / "two" / "posetrack.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["13.png", "10.png"]


def test_images_of_one_name_are_all_drawn(tmp_path):
    for folder in "ab":
        (tmp_path / folder).mkdir()
        Image.fromarray(picture([])).save(tmp_path / folder / "0.png")
    sources = (tmp_path / "a" / "0.png", tmp_path / "b" / "0.png")
    written(*sources, "--model", "colours", "--weights", "random", "--out", tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out" / "overlay").iterdir()) == ["0.png", "0_1.png"]
    content = json.loads((tmp_path / "out" / "posetrack.json").read_text())
    assert [image["id"] for image in content["images"]] == [0, 1]  # the names say the same


def test_one_frame_and_boxes_partly_outside_are_warned_of(tmp_path):
    Image.fromarray(picture([(-10, 5, 60, 85)])).save(tmp_path / "in.png")
    (tmp_path / "boxes.csv").write_text("0,-10,5,60,85\n")
    arguments = colours(tmp_path / "in.png", tmp_path / "out")
    result = written(*arguments, "--model", "before")
    assert "one frame: it stands in for the others that before looks at" in result.stderr
    assert "boxes that reach beyond their frames: 1" in result.stderr
    (one,) = json.loads((tmp_path / "out" / "coco.json").read_text())
    visible = joints(-10, 5, 60, 85)[:, 0] > 4
    found = np.array(one["keypoints"]).reshape(17, 3)
    assert np.abs(found[visible, :2] - joints(-10, 5, 60, 85)[visible]).max() < 3
    assert len(json.loads((tmp_path / "out" / "summary.json").read_text())["warnings"]) == 2


def test_what_moves_is_found(tmp_path):
    bodies = [(10 + 8 * t, 30, 60, 100) for t in range(20)]
    pictures = []
    for x, y, w, h in bodies:
        discs = picture([(x, y, w, h)], (144, 256))
        coat = np.zeros((144, 256, 1), bool)
        coat[y : y + h, x : x + w] = True
        pictures.append(np.where(coat & (discs == pose_clips.GREY).all(2, keepdims=True), 190, discs).astype(np.uint8))
    write_video(tmp_path / "in.mkv", pictures)
    written(*colours(tmp_path / "in.mkv", tmp_path / "out", boxes="motion"))
    found = json.loads((tmp_path / "out" / "coco.json").read_text())
    assert [one["image_id"] for one in found] == list(range(20)) and {one["track_id"] for one in found} == {1}
    for one, body in zip(found, bodies, strict=True):
        assert np.abs(np.array(one["bbox"]) - body).max() < 8
        assert np.abs(np.array(one["keypoints"]).reshape(17, 3)[:, :2] - joints(*body)).max() < 4


@pytest.mark.parametrize("options", [["--batch", 3], ["--boxes", "tracker", "--model", "memory"]])
def test_a_killed_run_goes_on_to_the_same_files(options, clip, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    written(*colours(clip, whole), *options)
    command = [
        sys.executable,
        pose_clips.__file__,
        *map(str, colours(clip, killed)),
        *map(str, options),
        "--threads",
        "1",
    ]
    environment = os.environ | {pose_clips.KILL_AT: "4", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == -9, ended.stderr
    steps = len((killed / "journal.jsonl").read_text().splitlines())
    assert 1 < steps < len((whole / "journal.jsonl").read_text().splitlines())
    assert not (killed / "overlay.mp4").exists()
    line = written(*colours(clip, killed), *options).stdout
    assert "of them before" in line or "memory" in options  # whose states are written every 32 steps
    assert sorted(file.name for file in killed.iterdir()) == FILES
    for name in FILES:
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_finished_run_writes_the_same_again_and_another_is_refused(clip, tmp_path):
    out = tmp_path / "out"
    written(*colours(clip, out))
    before = {name: (out / name).read_bytes() for name in FILES}
    (out / "coco.json").unlink()
    assert "10 of them before; 0.00 frames a second" in written(*colours(clip, out)).stdout
    assert {name: (out / name).read_bytes() for name in FILES} == before
    for options, message in (
        (["--batch", 2], "was begun with batch = 4, now it is 2: give another folder"),
        (["--model", "before"], "was begun with model = colours, now it is before"),
        (["--boxes", "full"], "was begun with boxes = file "),
    ):
        assert message in refused(*colours(clip, out), *options)


def test_what_was_done_is_kept(clip, tmp_path):
    """A clip that changes its size, and a disk that is full."""
    stream = b""
    for size in ((96, 128), (96, 128), (64, 64)):
        Image.fromarray(picture([], size)).save(tmp_path / "one.jpg")
        stream += (tmp_path / "one.jpg").read_bytes()
    (tmp_path / "in.mjpeg").write_bytes(stream)
    out = tmp_path / "out"
    line = refused(*colours(tmp_path / "in.mjpeg", out, boxes="full"))
    assert "frame 2 is 64x64, but those before are 128x96: cut it there" in line
    assert sorted(file.name for file in out.iterdir()) == FILES
    assert len(json.loads((out / "posetrack.json").read_text())["images"]) == 2


def test_a_full_disk(clip, tmp_path, monkeypatch):
    import resource

    out = tmp_path / "out"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, hard))  # as a disk that is full in the middle of a line
    try:
        line = refused(*colours(clip, out, "--no-overlay"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert f"{out}: File too large; the frames that were done are kept, the same command goes on from there" in line
    kept = (out / "journal.jsonl").read_text()
    assert 1 < len(kept.splitlines()) < 6 and kept.endswith("]\n")
    assert "of them before" in written(*colours(clip, out, "--no-overlay")).stdout


def test_refusals(clip, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "file").write_text("")
    (tmp_path / "bad.png").write_bytes(b"no image")
    torch.save({"other": torch.zeros(3)}, tmp_path / "other.pth")
    (tmp_path / "outside.csv").write_text("3,500,0,10,10\n")
    for arguments, message in (
        (colours(tmp_path / "nosuch.mp4", out), "nosuch.mp4: no such file"),
        (colours(tmp_path / "text.mp4", out), "text.mp4: neither an image nor a video that can be read"),
        (colours(tmp_path / "bad.png", tmp_path / "bad", boxes="full"), "bad.png: cannot identify image file"),
        (colours(clip, tmp_path / "file"), "file: exists and is not a folder"),
        (colours(clip, out, boxes="nosuch.json"), "nosuch.json: No such file or directory"),
        (colours(clip, out, boxes=tmp_path / "outside.csv"), "image 3: the box [500.0, 0.0, 10.0, 10.0]"),
        ((*colours(clip, out), "--model", "resnet"), "model must be one of "),
        ((*colours(clip, out), "--weights", tmp_path / "other.pth"), "does not fit colours: 1 missing: colours"),
        ((*colours(clip, out), "--weights", tmp_path / "none.pth"), "none.pth: No such file"),
        ((clip, "--model", "hrnet_w32", "--out", out), "hrnet_w32 comes without weights: give --weights FILE"),
        ((*colours(clip, out), "--model", "memory", "--flip"), "memory is recurrent: its states cannot be mirrored"),
        ((*colours(clip, out), "--device", "cuda"), "--device cuda: this torch"),
    ):
        assert message in refused(*arguments)
    assert not out.exists()


def test_convert(tmp_path):
    torch.save({"state_dict": {"module.colours": torch.zeros(17, 3)}}, tmp_path / "in.pth")
    out = tmp_path / "out.safetensors"
    result = run("convert", tmp_path / "in.pth", out, "--model", "colours")
    assert result.exit_code == 0 and "out.safetensors: colours, from in.pth (SHA-256 " in result.stdout
    assert out.exists()
    assert "must end in .safetensors" in refused(
        "convert", tmp_path / "in.pth", tmp_path / "o.pth", "--model", "colours"
    )
    assert "does not fit dkd: " in refused("convert", tmp_path / "in.pth", out, "--model", "dkd")


def truth(folder, shift=0.0):
    """COCO annotations of the clip, the joints moved to the right."""
    bodies, _ = walk()
    people = []
    for t, boxes in enumerate(bodies):
        for box in boxes:
            keypoints = np.column_stack([joints(*box) + (shift, 0), np.full(17, 2)]).ravel().tolist()
            head = [box[0] + box[2] / 4, box[1], box[2] / 2, box[3] / 5]
            person = {"id": len(people) + 1, "image_id": t, "category_id": 1, "bbox": list(box), "bbox_head": head}
            people.append(
                {**person, "keypoints": keypoints, "area": box[2] * box[3], "iscrowd": 0, "num_keypoints": 17}
            )
    category = {"id": 1, "name": "person", "keypoints": list(COCO17.joints), "skeleton": []}
    path = folder / "truth.json"
    path.write_text(
        json.dumps({"images": [{"id": t} for t in range(10)], "annotations": people, "categories": [category]})
    )
    return path


def test_evaluate(clip, tmp_path):
    out = tmp_path / "out"
    written(*colours(clip, out, "--no-overlay"))

    def figures(metric, annotations, results="coco.json"):
        options = ("--annotations", annotations, "--metric", metric, "--json", tmp_path / "figures.json")
        result = run("evaluate", out / results, *options)
        assert result.exit_code == 0, result.output
        return json.loads((tmp_path / "figures.json").read_text())

    assert figures("pck", truth(tmp_path))["mean"] == 1
    assert figures("pck", truth(tmp_path, 16))["mean"] < 0.1  # 0.2 of 72 pixels is 14.4
    assert figures("coco", truth(tmp_path))["AP50"] > 0.95
    # Its own answer as the truth, with heads: poseval's precision is 100 of every joint that COCO's skeleton has.
    content = json.loads((out / "posetrack.json").read_text())
    for person in content["annotations"]:
        person["bbox_head"] = [0, 0, 10, 10]
    (tmp_path / "own.json").write_text(json.dumps(content))
    table = figures("posetrack", tmp_path / "own.json", "posetrack.json")
    assert table["wrist"] == table["ankle"] == 100
    for arguments, message in (
        (["nosuch.json", "--annotations", tmp_path / "truth.json"], "nosuch.json: no such file"),
        (
            [out / "coco.json", "--annotations", tmp_path / "truth.json", "--metric", "oks"],
            "--metric must be one of coco",
        ),
        ([out / "coco.json", "--annotations", out / "coco.json", "--metric", "pck"], "must have images, annotations"),
    ):
        assert message in refused("evaluate", *arguments)


# Pictures


def test_people_are_drawn_in_their_colours():
    image = picture([], (200, 200))
    box = (40, 20, 100, 160)
    points = np.column_stack([joints(*box), np.ones(17)])
    points[COCO17.index("left_knee"), 2] = 0.1
    drawn = draw(image, [Person(3, box, 1.0, points, 1.0)], COCO17, 0.2)
    own = (drawn == colour(3)).all(2)
    a, b = joints(*box)[[COCO17.index("right_hip"), COCO17.index("right_knee")]]
    x, y = ((a + b) / 2).round().astype(int)
    assert own[y, x]
    a, b = joints(*box)[[COCO17.index("left_hip"), COCO17.index("left_knee")]]
    x, y = ((a + b) / 2).round().astype(int)
    assert not own[y, x] and (image == pose_clips.GREY).all()
    assert len({colour(number) for number in range(1, 30)}) == 29
    assert draw(image, [], COCO17, 0.2) is image


def test_the_sheet_shows_frames_from_all_over_the_clip():
    sheet = ContactSheet()
    assert sheet.picture() is None
    for index in range(500):
        sheet.add(Result(index, index, "", 0), np.full((30, 40, 3), index // 2, np.uint8))
    shown = np.unique(np.asarray(sheet.picture())[40:60, 20:30].reshape(-1, 3), axis=0)
    picture = np.asarray(sheet.picture())
    last = np.unique(picture[-30:-20, -40:-20])
    assert shown.max() < 20 and last.min() > 230


def test_a_rate_of_its_own(clip, tmp_path):
    written(*colours(clip, tmp_path / "out", "--fps", 5))
    with av.open(str(tmp_path / "out" / "overlay.mp4")) as file:
        assert file.streams.video[0].average_rate == 5
