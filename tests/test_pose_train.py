# SPDX-License-Identifier: Apache-2.0
"""`flexor pose train`: the small network, augmentation, people in COCO's format, resumption, several processes."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flexor.cli.app import app
from flexor.models.checkpoint import CheckpointError, read_checkpoint
from flexor.models.pose.augment import Augmentation, half_body, recolour, view
from flexor.models.pose.coco_keypoints import CocoKeypoints
from flexor.models.pose.geometry import crop, to_crop
from flexor.models.pose.recipe import recipe
from flexor.models.pose.skeleton import COCO17
from flexor.models.pose.small import WEIGHTS, small
from flexor.models.pose.trainer import PoseTraining, Steps, evaluate, heatmap_cross_entropy, loss_of, seen_from_behind
from flexor.models.pose.training_settings import DataSettings, PoseSettings, read_settings
from flexor.models.pose.weights import WeightsError, load_weights, read_weights
from pose_people import write_people
from typer.testing import CliRunner

pytestmark = pytest.mark.usefixtures("one_thread")

PEOPLE = Path(__file__).with_name("pose_people.py")
SMALL = recipe("small")
SIZE = replace(SMALL, input_size=(64, 64))
QUICK = PoseSettings(
    DataSettings(), DataSettings(), epochs=2, batch=8, rate=3e-3, warm_up=2, average=0.8, loss="cross_entropy",
    sigma=1.5, save_every=3, augmentation=Augmentation(rotation=10, scale=0.1, colour=0.2, gap=0.2),
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("people")
    write_people(folder / "train", 40)
    write_people(folder / "held", 12, seed=1)
    return folder


def people(folder, name="train", how=SIZE):
    return CocoKeypoints(folder / name / "annotations.json", folder / name / "images", how)


def training(folder, path, settings=QUICK, how=SIZE):
    return PoseTraining(settings, how, people(folder, "train", how), people(folder, "held", how), path)


def test_the_small_network():
    net = small(5).eval()
    assert sum(p.numel() for p in small().parameters()) == 2_102_473
    maps = net(torch.randn(2, 3, 64, 96))
    assert maps.shape == (2, 5, 16, 24)
    torch.testing.assert_close(maps.sum((2, 3)), torch.full((2, 5), 2 * torch.pi * 1.5**2))
    assert net.features(torch.randn(1, 3, 32, 32)).shape == (1, 64, 8, 8)
    with pytest.raises(ValueError, match=r"SmallPose: height and width of images must be multiples of 32, got 40 x 32"):
        net(torch.zeros(1, 3, 40, 32))
    with pytest.raises(TypeError, match=r"SmallPose: joints must be an integer, got 2\.5"):
        small(2.5)


def test_cross_entropy_is_least_at_the_target():
    target = torch.rand(2, 3, 4, 5)
    weights = torch.ones(2, 3)
    at = heatmap_cross_entropy(target * 7, target, weights)
    p = target.flatten(2) / target.flatten(2).sum(2, keepdim=True)
    torch.testing.assert_close(at, -(p * p.log()).sum(2).mean())
    assert heatmap_cross_entropy(torch.rand(2, 3, 4, 5), target, weights) > at
    assert heatmap_cross_entropy(torch.rand(2, 3, 4, 5), target, 0 * weights) == 0


def test_a_crop_shows_the_joints_where_they_are(folder):
    """Each joint's pixel is found at its place in the crop, turned, scaled and mirrored."""
    image = np.zeros((96, 96, 3), np.uint8)
    joints = np.array([[30.0, 20.0], [60.0, 50.0], *[[40.0, 70.0]] * 15])
    visible = np.arange(17) < 2
    image[18:23, 28:33] = 255
    for seed in range(8):
        rng = np.random.default_rng(seed)
        drawn = view(np.array([10.0, 5, 70, 80]), joints, visible, COCO17, (128, 96), Augmentation(), rng)
        shown = crop(image, drawn.matrix, (128, 96), normalise=False)[0]
        place = to_crop(joints, drawn.matrix)[0]
        grid = torch.stack(torch.meshgrid(torch.arange(96), torch.arange(128), indexing="xy"), -1).double()
        centre = (grid * shown[..., None]).sum((0, 1)) / shown.sum()
        if (place > 8).all() and (place < torch.tensor([88, 120])).all():
            torch.testing.assert_close(centre, place, atol=0.3, rtol=0)
        assert bool(torch.linalg.det(drawn.matrix[:, :2]) < 0) == drawn.mirrored


def test_mirrored_people_change_sides(folder):
    batch = people(folder).batch([0], Augmentation(0, 0, 0, 0, flip=1.0), [0])
    plain = people(folder).batch([0])
    swapped = plain.joints[0][list(COCO17.mirror)]
    torch.testing.assert_close(batch.joints[0, :, 0], 63 - swapped[:, 0])
    torch.testing.assert_close(batch.joints[0, :, 1], swapped[:, 1])
    torch.testing.assert_close(batch.windows[0, 0], plain.windows[0, 0].flip(-1), atol=1e-4, rtol=0)


def test_half_bodies():
    rng = np.random.default_rng(0)
    joints = np.stack([np.arange(17.0), 10 * np.arange(17.0)], 1)
    boxes = [half_body(joints, np.ones(17, bool), COCO17, rng) for _ in range(400)]
    upper = np.mean([box[3] == 100 for box in boxes])
    assert 0.6 < upper < 0.78, "the released code's chance is 0.69"
    assert {box[3] for box in boxes} == {100.0, 50.0}
    legs = np.arange(17) >= 12
    assert all(half_body(joints, legs, COCO17, rng)[3] == 40 for _ in range(10)), "no upper joints: the lower half"
    assert half_body(joints, np.arange(17) < 2, COCO17, rng) is None
    assert half_body(joints * 0, np.ones(17, bool), COCO17, rng) is None


def test_colours_and_gaps():
    image = torch.rand(2, 3, 20, 20)
    rng = np.random.default_rng(0)
    assert recolour(image, None, rng) is image
    assert recolour(image, Augmentation(), rng) is image
    changed = recolour(image, Augmentation(colour=0.4), rng)
    assert changed.shape == image.shape and not torch.equal(changed, image)
    gap = (recolour(image, Augmentation(gap=1.0), rng) != image).any(1)
    assert 2 * 2 <= gap[0].sum() <= 7 * 7 and torch.equal(gap[0], gap[1]), "the same in all frames"


def test_people_of_a_file(folder, tmp_path):
    whole = people(folder)
    assert len(whole) == 40
    content = json.loads((folder / "train" / "annotations.json").read_text())
    first, second, third, fourth = content["annotations"][:4]
    second["iscrowd"] = 1
    third["keypoints"] = [0] * 51
    fourth["bbox"] = [1, 1, 0, 5]
    content["annotations"] = [first, second, third, fourth]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    (person,) = CocoKeypoints(path, folder / "train" / "images", SIZE).people
    assert person.annotation == 1 and person.visible.all()
    batch = CocoKeypoints(path, folder / "train" / "images", recipe("dcpose")).batch([0])
    assert batch.windows.shape == (1, 3, 3, 384, 288), "the frame stands in for its neighbours"
    names = list(recipe("dcpose").skeleton.joints)
    assert batch.visible[0].tolist() == [not name.startswith("head") for name in names]

    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ValueError, match=r"bad.json: not COCO keypoint annotations \(KeyError: 'images'\)"):
        CocoKeypoints(tmp_path / "bad.json", tmp_path, SIZE)
    with pytest.raises(ValueError, match=r"none.json: No such file"):
        CocoKeypoints(tmp_path / "none.json", tmp_path, SIZE)
    with pytest.raises(FileNotFoundError, match=r"0.png: no such image, but .*a.json names it"):
        CocoKeypoints(path, tmp_path, SIZE).batch([0])
    content["annotations"] = [second]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"nobody with joints of COCO17; it has nose, left_eye"):
        CocoKeypoints(path, tmp_path, SIZE)


def test_windows_of_a_video(folder, tmp_path):
    content = json.loads((folder / "train" / "annotations.json").read_text())
    for k, image in enumerate(content["images"]):
        image |= {"vid_id": k // 10, "frame_id": k % 10}
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    how = replace(SIZE, window=(0, -1, 1))
    video = CocoKeypoints(path, folder / "train" / "images", how)
    assert [video._window(k) for k in (0, 5, 9, 10)] == [[0, 0, 1], [5, 4, 6], [9, 8, 9], [10, 10, 11]]


def test_people_seen_from_behind(folder, tmp_path):
    whole = people(folder)
    person = whole.people[0]
    behind = replace(person, joints=person.joints[list(COCO17.mirror)])
    assert not seen_from_behind(person, COCO17) and seen_from_behind(behind, COCO17)
    lying = replace(behind, joints=behind.joints @ np.array([[0, 1], [-1, 0]]))
    assert seen_from_behind(lying, COCO17), "however the trunk stands"
    assert not seen_from_behind(replace(behind, visible=np.arange(17) != 5), COCO17)
    whole.people[10:] = [replace(p, joints=p.joints[list(COCO17.mirror)]) for p in whole.people[10:]]
    counts = [len(Steps(whole, replace(QUICK, behind=share)).chosen) for share in (0.0, 0.5, 1.0)]
    assert counts[0] == 10 and 15 < counts[1] < 35 and counts[2] == 40


def test_every_step_is_drawn_anew_and_again(folder):
    steps = Steps(people(folder), QUICK)
    assert steps.epoch == 5 and len(steps) == 10
    assert torch.equal(steps[3].windows, steps[3].windows)
    assert not torch.equal(steps[3].joints, steps[8].joints)


def test_training_learns_and_writes_weights_that_pose_reads(folder, tmp_path):
    """A short run of what made the shipped weights: the loss falls, and held-out people are found."""
    settings = replace(QUICK, epochs=5, batch=5, save_every=1000)
    run = training(folder, tmp_path / "c.safetensors", settings)
    before = evaluate(run.network, SIZE, run.held_out)
    run.run()
    losses = [entry["loss"] for entry in run.history]
    assert losses[-1] < 0.85 * losses[0]
    found = evaluate(run.average.module, SIZE, run.held_out)
    assert run.history[-1]["pck"] == found.pck > max(0.6, 2 * before.pck)
    assert found.poses.shape == (12, 17, 3)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float16, 2e-2)):
        run.write_weights(tmp_path / "w.safetensors", {"note": "x"}, dtype)
        again = small()
        assert load_weights(again, tmp_path / "w.safetensors", "small")["note"] == "x"
        poses = evaluate(again, SIZE, run.held_out).poses
        torch.testing.assert_close(poses[..., 2], found.poses[..., 2], atol=tolerance, rtol=0)


@pytest.mark.parametrize("bf16", [False, True])
def test_a_resumed_run_is_the_unbroken_one(folder, tmp_path, bf16):
    settings = replace(QUICK, bf16=bf16)
    whole = training(folder, tmp_path / "whole.safetensors", settings)
    whole.run()

    class Killed(Exception):
        pass

    def kill(people, figures):
        if people == 8 * 8:  # within the second epoch, after the checkpoint of step 6
            raise Killed

    with pytest.raises(Killed):
        training(folder, tmp_path / "part.safetensors", settings).run(kill)
    rest = training(folder, tmp_path / "part.safetensors", settings)
    assert rest.step == 6 and rest.part > 0
    rest.run()
    ours, state = read_checkpoint(tmp_path / "part.safetensors", whole.kind)
    theirs, wanted = read_checkpoint(tmp_path / "whole.safetensors", whole.kind)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    plain = [{k: v for k, v in entry.items() if k != "cpu_seconds"} for entry in state["history"]]
    assert plain == [{k: v for k, v in entry.items() if k != "cpu_seconds"} for entry in wanted["history"]]


def test_what_a_training_refuses(folder, tmp_path):
    path = tmp_path / "c.safetensors"
    training(folder, path, replace(QUICK, epochs=1)).run()
    with pytest.raises(ValueError, match=r"was trained with settings|was trained with rate = 0.003, now it is 0.1"):
        training(folder, path, replace(QUICK, epochs=1, rate=0.1))
    with pytest.raises(ValueError, match="batch must be at most the number of people, 40, got 64"):
        training(folder, path, replace(QUICK, batch=64))
    with pytest.raises(NotImplementedError, match="dkd is recurrent and trained on clips"):
        training(folder, tmp_path / "d", how=recipe("dkd"))
    with pytest.raises(CheckpointError, match="not a checkpoint of flexor pose training"):
        read_checkpoint(WEIGHTS, "flexor pose training 1")


def test_a_training_starts_from_weights(folder, tmp_path):
    first = training(folder, tmp_path / "c.safetensors", replace(QUICK, epochs=1))
    first.run()
    first.write_weights(tmp_path / "first.safetensors", {})
    data = people(folder), people(folder, "held")
    settings = replace(QUICK, start="first.safetensors")
    second = PoseTraining(settings, SIZE, *data, tmp_path / "d.safetensors", base=tmp_path)
    for name, value in first.average.module.state_dict().items():
        assert torch.equal(second.network.state_dict()[name], value)
    with pytest.raises(WeightsError, match=r"none.safetensors: No such file"):
        PoseTraining(replace(QUICK, start="none.safetensors"), SIZE, *data, tmp_path / "e.safetensors", base=tmp_path)


def test_simcc_networks_train(folder):
    how = replace(recipe("rtmpose_t"), build=lambda: _Vectors())
    batch = people(folder, how=how).batch([0, 1, 2, 3])
    model = how.build()
    one = loss_of(model, how, batch, QUICK)
    one.backward()
    assert one > 0 and model.x.weight.grad.abs().sum() > 0


class _Vectors(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.x, self.y = torch.nn.Linear(3, 17 * 384), torch.nn.Linear(3, 17 * 512)

    def forward(self, images):
        mean = images.mean((2, 3))
        return self.x(mean).view(-1, 17, 384), self.y(mean).view(-1, 17, 512)


def test_settings_of_a_file(tmp_path):
    shipped = read_settings(WEIGHTS.with_name("small.toml")) if sys.version_info >= (3, 11) else None
    assert shipped is None or (shipped.model == "small" and shipped.held_out.held_out and not shipped.train.held_out)
    path = tmp_path / "c.json"

    def read(**content):
        path.write_text(json.dumps({"train": {"rendered": 3}, "held_out": {"annotations": "a"}, **content}))
        return read_settings(path)

    settings = read(rate=1, drops=[3, 4], schedule="steps", augmentation={"flip": 0})
    assert settings.rate == 1.0 and settings.drops == (3, 4) and settings.augmentation.flip == 0.0
    for content, message in (
        ({"ratee": 1}, "c.json: unknown key 'ratee'; there are train, held_out, model"),
        ({"rate": "x"}, "c.json: rate must be float, got 'x'"),
        ({"batch": True}, "c.json: batch must be int, got True"),
        ({"drops": [1.5]}, r"c.json: drops must be a list of integers, got \[1.5\]"),
        ({"train": 3}, "c.json: train: must be a table of annotations, images, rendered"),
        ({"augmentation": {"rot": 3}}, "c.json: augmentation: unknown key 'rot'"),
        ({"schedule": "linear"}, "c.json: schedule must be one of cosine, steps, got 'linear'"),
        ({"epochs": 0}, "c.json: epochs must be at least 1, got 0"),
        ({"behind": 2}, "c.json: behind must be from 0 to 1, got 2.0"),
        ({"average": 1.0}, "c.json: average must be from 0 to below 1, got 1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            read(**content)
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"c.json: train, held_out must be given"):
        read_settings(path)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"c.json: "):
        read_settings(path)
    with pytest.raises(ValueError, match=r"none.toml: No such file"):
        read_settings(tmp_path / "none.toml")


def config(folder, tmp_path, **more):
    path = tmp_path / f"{len(list(tmp_path.iterdir()))}.json"
    data = {
        name: {"annotations": str(folder / sub / "annotations.json"), "images": str(folder / sub / "images")}
        for name, sub in (("train", "train"), ("held_out", "held"))
    }
    path.write_text(json.dumps({**data, "epochs": 1, "batch": 8, "sigma": 1.5, "loss": "cross_entropy", **more}))
    return path


def test_the_command_goes_on_after_a_kill(folder, tmp_path):
    path = config(folder, tmp_path, epochs=3, save_every=1, batch=20)
    whole = CliRunner().invoke(app, ["pose", "train", str(path), "--out", str(tmp_path / "whole")])
    assert whole.exit_code == 0, whole.output
    assert "PCK@0.2 on 12 held-out people" in whole.output
    command = [sys.executable, "-m", "flexor.cli.main", "pose", "train", str(path), "--out", str(tmp_path / "part")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    checkpoint = tmp_path / "part" / "checkpoint.safetensors"
    limit = time.monotonic() + 120
    while not checkpoint.exists() and killed.poll() is None and time.monotonic() < limit:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert checkpoint.exists()
    subprocess.run(command, check=True, capture_output=True, env=environment)
    ours, theirs = (read_weights(tmp_path / name / "weights.safetensors")[0] for name in ("part", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    metrics = json.loads((tmp_path / "part" / "metrics.json").read_text())
    assert len(metrics["history"]) == 3 and metrics["pck_by_joint"].keys() == set(COCO17.joints)


def test_what_the_command_refuses(folder, tmp_path):
    for arguments, message in (
        ([tmp_path / "none.toml"], "none.toml: No such file"),
        ([config(folder, tmp_path), "--model", "x"], "model must be one of small, "),
        ([config(folder, tmp_path), "--model", "dkd"], "dkd is recurrent"),
        ([config(folder, tmp_path, train={})], "train and held_out need annotations and images, or rendered"),
        ([config(folder, tmp_path, train={"rendered": 2}), "--assets", tmp_path], "is missing|are missing|need the m"),
    ):
        result = CliRunner().invoke(app, ["pose", "train", *map(str, arguments), "--out", str(tmp_path / "out")])
        assert result.exit_code == 2, result.output
        assert any(part in result.stderr for part in message.split("|")), result.stderr


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_two_processes_have_the_gradients_of_one(folder, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    many = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for command, name in (([sys.executable], "one.pt"), (many, "two.pt")):
        whole = [*command, PEOPLE, tmp_path / name, folder / "train"]
        subprocess.run(whole, check=True, capture_output=True, env=environment)
    one, two = (torch.load(tmp_path / name) for name in ("one.pt", "two.pt"))
    for loss in ("squares", "cross_entropy"):
        for kind in ("gradients", "buffers"):
            assert one[loss][kind].keys() == two[loss][kind].keys()
            for name, expected in one[loss][kind].items():
                scale = max(float(expected.abs().max()), 1e-3)  # the bias of a softmax has no gradient but noise
                assert float((two[loss][kind][name] - expected).abs().max()) < 3e-4 * scale, name
