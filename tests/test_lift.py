# SPDX-License-Identifier: Apache-2.0
"""`flexor lift`: networks, training, resumption, several processes, the command. The motions are made up."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flexor.cli.app import app
from flexor.models.checkpoint import CheckpointError, read_checkpoint
from flexor.models.gcn import GraphLifter, SemanticGraphConv
from flexor.models.lift import LiftSettings, Training, build, lift, load, loss_of, subset
from flexor.models.lift_data import TrainingSet, ViewSettings, held_out_clips, held_out_samples
from flexor.models.lift_metrics import mpjpe, report
from flexor.models.martinez import LinearLifter
from flexor.models.mocap import PARENTS, load_clips
from lift_motions import write_folder
from typer.testing import CliRunner

pytestmark = pytest.mark.usefixtures("one_thread")

GRADIENTS = Path(__file__).with_name("lift_gradients.py")
SMALL = ["--models", "dgridconv:4,martinez:8", "--epochs", 2, "--poses", 40, "--batch", 20]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("lift") / "motions")


@pytest.fixture(scope="module")
def data(folder):
    clips = load_clips(str(folder))
    held_out = held_out_clips(clips, 0.4)
    return TrainingSet(clips, held_out, ViewSettings(), 0), held_out_samples(clips, held_out, ViewSettings(), 1)


def run(*arguments):
    return CliRunner().invoke(app, ["lift", *map(str, arguments)])


def refused(*arguments):
    """The one line on stderr of a call that must exit with 2."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    return line


def test_published_parameter_counts():
    def count(model):
        return sum(parameter.numel() for parameter in model.parameters())

    assert round(count(LinearLifter(joints=16)) / 1e6, 2) == 4.29
    assert count(build(LiftSettings("dgridconv", 256))) == 4_790_406
    assert count(build(LiftSettings("gridconv", 256))) == 4_746_752
    assert round(count(GraphLifter()) / 1e6, 2) == 0.27  # as published for SemGCN without non-local layers


def test_semantic_graph_conv_is_its_formula():
    conv = SemanticGraphConv(3, 5, PARENTS).double()
    with torch.no_grad():
        conv.edge_weight.copy_(torch.randn_like(conv.edge_weight))
        conv.bias.copy_(torch.randn(5))
    input = torch.randn(2, 17, 3, dtype=torch.float64)
    expected = conv.bias.repeat(2, 17, 1)
    entries = iter(conv.edge_weight)
    for joint in range(17):
        near = sorted({joint, PARENTS[joint], *(j for j in range(17) if PARENTS[j] == joint)} - {-1})
        for other, share in zip(near, torch.stack([next(entries) for _ in near]).softmax(0), strict=True):
            expected[:, joint] += share * input[:, other] @ conv.weight[0 if other == joint else 1]
    torch.testing.assert_close(conv(input), expected)


@pytest.mark.parametrize(
    ("model", "width", "epochs"), [("dgridconv", 8, 1), ("gridconv", 8, 2), ("martinez", 128, 2), ("gcn", 24, 3)]
)
def test_training_lowers_the_error(data, tmp_path, model, width, epochs):
    """Below that of the mean pose, on clips that the training never saw."""
    training, samples = data
    samples = subset(samples, 200)
    settings = LiftSettings(model, width, epochs=epochs, poses=4800, batch=32, rate=1e-2, decay=0.5)
    run = Training(settings, training, samples, tmp_path / "x.safetensors", {})
    run.run()
    error = 1000 * mpjpe(lift(run.model, samples.inputs), samples.targets).mean()
    mean = np.broadcast_to(training.mean_target(), samples.targets.shape)
    assert error < 0.98 * 1000 * mpjpe(mean, samples.targets).mean()
    assert run.history[-1]["held_out_mm"] == pytest.approx(error)
    assert [entry["poses"] for entry in run.history] == [4800 * (n + 1) for n in range(epochs)]


def test_the_loss_of_grids_is_on_cells():
    torch.manual_seed(0)
    model = build(LiftSettings("dgridconv", 4)).eval()
    inputs, targets = torch.randn(3, 17, 2), torch.randn(3, 17, 3)
    layout = [7] * 5 + [0, 8, 8, 8, 0] + [1, 14, -1, 11, 4] + [2, 15, 9, 12, 5] + [3, 16, 10, 13, 6]

    def grid(joints):
        cells = joints[:, layout]
        cells[:, 12] = (joints[:, 8] + joints[:, 9]) / 2
        return cells.transpose(1, 2).reshape(3, -1, 5, 5)

    torch.testing.assert_close(loss_of(model, inputs, targets), F.mse_loss(model(grid(inputs)), grid(targets)))


def test_the_loss_of_other_networks():
    inputs, targets = torch.randn(64, 17, 2), torch.randn(64, 17, 3) * torch.rand(17, 3) + 5
    targets[:, 0] = 0
    model = build(LiftSettings("gcn", 4)).eval()
    torch.testing.assert_close(loss_of(model, inputs, targets), F.mse_loss(model(inputs), targets))
    model = build(LiftSettings("martinez", 4)).eval()
    model.standardise(inputs, targets)
    hidden = model.first(((inputs - inputs.mean(0)) / inputs.std(0)).flatten(1))
    hidden = hidden + model.blocks[0](hidden)
    z = model.last(hidden + model.blocks[1](hidden)).view(64, 17, 3)
    deviation = targets.std(0)
    deviation[0] = 1
    torch.testing.assert_close(model(inputs), targets.mean(0) + deviation * z)
    torch.testing.assert_close(loss_of(model, inputs, targets), F.mse_loss(z, (targets - targets.mean(0)) / deviation))


def test_temperature_and_rate(data, tmp_path):
    training, samples = data
    settings = LiftSettings("dgridconv", 4, epochs=4, poses=40, batch=10, anneal=0.5, decay=0.5)
    run = Training(settings, training, subset(samples, 10), tmp_path / "x.safetensors", {})
    seen = []

    def look(*_):
        seen.append((run.model.atten_conv1.temperature, run.optimiser.param_groups[0]["lr"]))

    run.run(look)
    assert [t for t, _ in seen] == pytest.approx([30 - 29 * step / 8 for step in range(8)] + [1] * 8)
    assert [lr for _, lr in seen[::4]] == [1e-3, 5e-4, 2.5e-4, 1.25e-4]
    assert load(tmp_path / "x.safetensors")[0].atten_conv2.temperature == 1


def test_a_killed_run_goes_on_as_if_nothing_happened(folder, tmp_path):
    command = [sys.executable, "-m", "flexor.cli.main", "lift", "train", "--data", str(folder), "--no-evaluate"]
    command += ["--models", "dgridconv:4", "--epochs", "5", "--poses", "400", "--batch", "20", "--threads", "1"]
    command += ["--hold-out", "0.4"]
    checkpoints = [tmp_path / name / "runs" / "dgridconv-4-seed0" / "checkpoint.safetensors" for name in "ab"]
    subprocess.run([*command, "--out", str(tmp_path / "a")], check=True, capture_output=True)
    process = subprocess.Popen([*command, "--out", str(tmp_path / "b")], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not checkpoints[1].exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(read_checkpoint(checkpoints[1])[1]["history"]) < 5, "it was not killed in time"
    subprocess.run([*command, "--out", str(tmp_path / "b")], check=True, capture_output=True)

    (whole, whole_state), (resumed, resumed_state) = map(read_checkpoint, checkpoints)
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name
    for one, two in zip(whole_state["history"], resumed_state["history"], strict=True):
        assert {**one, "cpu_seconds": 0} == {**two, "cpu_seconds": 0}
    # A kill may leave the part of a checkpoint that was being written, under its own hidden name.
    left = {file.name for file in checkpoints[1].parent.iterdir() if not file.name.startswith(".")}
    assert left == {"checkpoint.safetensors"}


def test_cpu_seconds_end_a_training(data, tmp_path):
    training, samples = data
    settings = LiftSettings("martinez", 8, epochs=4, seconds=0.8, batch=10)
    run = Training(settings, training, subset(samples, 10), tmp_path / "x.safetensors", {})
    run.run()
    spent = [entry["cpu_seconds"] for entry in run.history]
    assert spent == pytest.approx([0.2, 0.4, 0.6, 0.8], abs=0.1)
    assert run.history[-1]["poses"] == 10 * run.step > 0


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_two_processes_have_the_gradients_of_one(tmp_path):
    """Batch norm, dropout and all: the same whole batch, the same gradients, the same running statistics."""
    subprocess.run([sys.executable, GRADIENTS, tmp_path / "one.pt"], check=True, capture_output=True)
    torchrun(2, str(GRADIENTS), str(tmp_path / "two.pt"))
    one, two = (torch.load(tmp_path / f"{name}.pt") for name in ("one", "two"))
    for model in one:
        for kind in ("gradients", "buffers"):
            assert one[model][kind].keys() == two[model][kind].keys()
            for name, expected in one[model][kind].items():
                torch.testing.assert_close(two[model][kind][name], expected, rtol=1e-5, atol=1e-5)


def torchrun(processes, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_torchrun(folder, tmp_path):
    command = ["lift", "train", "--data", folder, "--hold-out", 0.4, *SMALL]
    shown = torchrun(2, "-m", "flexor.cli.main", *map(str, [*command, "--out", tmp_path / "two"]))
    assert shown.count("protocol 1") == 1, "both processes talked"
    assert run(*command[1:], "--out", tmp_path / "one").exit_code == 0
    one, two = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two"))
    for ours, theirs in zip(one["runs"], two["runs"], strict=True):
        assert theirs["p1"]["by_action_mm"] == pytest.approx(ours["p1"]["by_action_mm"], rel=1e-2)
        assert theirs["history"][0]["loss"] == pytest.approx(ours["history"][0]["loss"], rel=1e-4)


def test_train_and_eval_write_what_they_found(folder, tmp_path):
    out = tmp_path / "new" / "out"
    result = run("train", "--data", folder, "--hold-out", 0.4, "--out", out, "--seeds", "0,1", *SMALL)
    assert result.exit_code == 0, result.output
    assert {path.name for path in out.iterdir()} == {"runs", "metrics.json", "curves.png", "skeletons.png"}
    names = {"dgridconv-4-seed0", "dgridconv-4-seed1", "martinez-8-seed0", "martinez-8-seed1"}
    assert {path.name for path in (out / "runs").iterdir()} == names
    metrics = json.loads((out / "metrics.json").read_text())
    assert all((out / name).read_bytes().startswith(b"\x89PNG") for name in ("curves.png", "skeletons.png"))
    assert "D-GridConv" in result.stdout and "mean pose" in result.stdout

    result = run("eval", out, "--json", tmp_path / "x.json", "--predictions", tmp_path / "x.npz")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "x.json").read_text()) == metrics
    with np.load(tmp_path / "x.npz") as file:
        assert {key for key in file.files if key.startswith("prediction/")} == {f"prediction/{name}" for name in names}
        for measured in metrics["runs"]:
            again = report(file[f"prediction/{measured['name']}"], file["targets"], file["action"])
            assert {key: measured[key] for key in ("p1", "p2")} == again
        held_out = set(file["clip"])
        assert len(held_out) == metrics["data"]["clips_held_out"]
    assert metrics["data"]["source"] == "motions"
    assert [row["seeds"] for row in metrics["summary"]] == [[0, 1], [0, 1]]

    # On other motion capture every clip is used.
    other = write_folder(tmp_path / "other", clips=2, frames=5)
    result = run("eval", out / "runs" / "martinez-8-seed1", "--data", other, "--json", tmp_path / "y.json")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "y.json").read_text())
    assert found["data"]["samples_held_out"] == 10 and found["mean_pose"] is None


def test_training_again_changes_nothing(folder, tmp_path):
    command = ("train", "--data", folder, "--hold-out", 0.4, "--out", tmp_path / "out", *SMALL)
    assert run(*command).exit_code == 0
    files = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*") if path.is_file()}
    assert run(*command).exit_code == 0
    assert files == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*") if path.is_file()}
    assert "was trained with noise = 4.0, now it is 5.0: give another folder" in refused(*command, "--noise", 5)
    assert "was trained with batch = 20, now it is 10" in refused(*command, "--batch", 10)
    assert files == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*") if path.is_file()}


def test_errors(folder, tmp_path):
    def train(*arguments):
        return refused("train", "--out", tmp_path / "out", *arguments)

    assert "absent.npz: no such file or folder" in train("--data", tmp_path / "absent.npz")
    np.savez(tmp_path / "x.npz", joints=np.zeros((4, 17, 3)))
    assert "must hold the arrays joints, start and name, holds joints" in train("--data", tmp_path / "x.npz")
    assert "--models mlp: must be one of dgridconv, gridconv, martinez, gcn" in train("--models", "mlp")
    assert "--models gcn:0: must be one of" in train("--models", "gcn:0")
    assert "--seeds 0,x: must be whole numbers" in train("--seeds", "0,x")
    assert "--borders cq: must be two letters of c, r and z" in train("--borders", "cq")
    assert "--device tpu: this torch" in train("--device", "tpu")
    assert "of 12 clips 0 are held out at a share of 0" in train("--data", folder, "--hold-out", 0)
    assert "--action (run): finds no action" in train("--data", folder, "--action", "(run)")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    assert "file: exists and is not a folder" in refused("train", "--data", folder, "--out", tmp_path / "file")
    assert "holds no checkpoint.safetensors" in refused("eval", folder)
    assert "no such folder" in refused("eval", tmp_path / "absent")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint.safetensors").write_bytes(b"x" * 100)
    assert "checkpoint.safetensors: " in refused("eval", tmp_path / "run")


def test_a_changed_file_is_noticed(folder, tmp_path):
    clips = write_folder(tmp_path / "motions", clips=6, frames=10)
    assert run("train", "--data", clips, "--hold-out", 0.5, "--out", tmp_path / "out", *SMALL).exit_code == 0
    (clips / "walk_0.bvh").unlink()
    assert "is not what" in refused("eval", tmp_path / "out")
    assert "was trained with digest" in refused("train", "--data", clips, "--out", tmp_path / "out", *SMALL)


def test_foreign_checkpoints_are_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "checkpoint.safetensors")
    with pytest.raises(CheckpointError, match="not a checkpoint of flexor lift"):
        read_checkpoint(tmp_path / "checkpoint.safetensors")


def test_results_are_written_whole_or_not_at_all(folder, tmp_path, monkeypatch):
    from flexor.cli import lift_pictures

    def disk_full(*_):
        raise OSError("No space left on device")

    out = tmp_path / "out"
    monkeypatch.setattr(lift_pictures, "skeletons", disk_full)
    assert "No space left" in refused("train", "--data", folder, "--hold-out", 0.4, "--out", out, *SMALL)
    assert [path.name for path in out.iterdir()] == ["runs"]


@pytest.mark.parametrize("command", ["train", "eval"])
def test_help(command):
    result = run(command, "--help")
    assert result.exit_code == 0 and f"flexor lift {command} " in result.stdout
