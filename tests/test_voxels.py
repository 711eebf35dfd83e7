# SPDX-License-Identifier: Apache-2.0
"""`flexor voxels`: voxels, blocks, completion, timing, pictures, the command. The scans are made up."""

import io
import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from flexor.cli import voxels_pictures as pictures
from flexor.cli.app import app
from flexor.models.checkpoint import VOXELS, read_checkpoint
from flexor.models.completion import (
    Completion,
    CompletionSettings,
    Score,
    baselines,
    build,
    inputs_of,
    load,
    loss_of,
    score,
)
from flexor.models.completion_data import BlockedScan, BlockSettings, blocks_chosen, candidates
from flexor.models.layer_times import time_layers
from flexor.models.points import Points, PointsError
from flexor.models.sparse_unet import ScanNetUNet
from flexor.models.voxels import default_size, sparsity, tensor_of, voxelise
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = ["--epochs", 2, "--steps", 2, "--width", 4, "--levels", 2, "--threads", 1]
SMALL = CompletionSettings(width=4, levels=2, epochs=2, steps=2)


def room(seed=0, count=12000, side=2.4):
    """Points of a floor, two walls and a table, the colour of each its own and changing slowly."""
    rng = np.random.default_rng(seed)
    u, v = rng.uniform(0, side, (2, count))
    which = rng.integers(0, 4, count)
    zero = np.zeros(count)
    planes = [(u, v, zero), (u, zero, v * 0.6), (zero, u, v * 0.6), (0.8 + u * 0.3, 0.8 + v * 0.3, zero + 0.7)]
    xyz = np.stack([np.choose(which, [plane[axis] for plane in planes]) for axis in range(3)], -1)
    colour = np.stack([which / 4 + 0.1, u / side, 0.5 + 0.3 * np.sin(v * 2)], -1)
    return (xyz + 0.013).astype(np.float32), (255 * colour.clip(0, 1)).astype(np.uint8)


def points(seed=0, **change):
    xyz, rgb = room(seed, **change)
    return Points(xyz.astype(np.float64), (rgb / 255).astype(np.float32), "room.npz")


@pytest.fixture(scope="module")
def voxels():
    return voxelise(points(), 0.1)


@pytest.fixture(scope="module")
def scan(voxels):
    return BlockedScan(voxels, BlockSettings(block=4, reach=3, hold_out=0.2, drop=0.2))


@pytest.fixture
def file(tmp_path):
    xyz, rgb = room()
    np.savez(tmp_path / "room.npz", xyz=xyz, rgb=rgb)
    return tmp_path / "room.npz"


def given_of(hole):
    tensor, *near = inputs_of([hole])
    return [tensor.features, *near]


def cells(coords):
    return {tuple(cell) for cell in coords.tolist()}


@settings(max_examples=60, deadline=None)
@given(data=st.data(), size=st.sampled_from([0.3, 1.0, 7.0]))
def test_voxels_are_means_of_their_points(data, size):
    count, channels = data.draw(st.integers(1, 30)), data.draw(st.sampled_from([0, 1, 3]))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    cloud = Points(rng.normal(0, 3, (count, 3)), rng.random((count, channels), np.float32), "x")
    found = voxelise(cloud, size)
    expected = np.floor((cloud.xyz - cloud.xyz.min(0)) / size).astype(int)
    assert (found.coords[found.voxel_of_point] == expected).all()
    assert len(cells(found.coords)) == len(found) and cells(found.coords) == cells(expected)
    for row, cell in enumerate(found.coords):
        mine = (expected == cell).all(1)
        np.testing.assert_allclose(found.values[row], cloud.values[mine].mean(0), atol=1e-6)


def test_voxel_sizes():
    assert default_size(points()) == 0.05
    single = Points(np.zeros((1, 3)), np.zeros((1, 0), np.float32), "one.ply")
    assert len(voxelise(single)) == 1 and voxelise(single).shape == (1, 1, 1)
    for size in (0, -1, np.nan, np.inf):
        with pytest.raises(PointsError, match=r"one.ply: a voxel's size must be above 0"):
            voxelise(single, size)
    far = Points(np.array([[0, 0, 0], [1e9, 0, 0]]), np.zeros((2, 0), np.float32), "far.ply")
    with pytest.raises(PointsError, match=r"far.ply: is 1e\+09 long, more than 1048576 voxels of 0.1"):
        voxelise(far, 0.1)


def test_sparsity_by_hand(voxels):
    here = cells(voxels.coords)
    for level, found in enumerate(sparsity(voxels.coords, 3)):
        here = {tuple(c // 2 for c in cell) for cell in here} if level else here
        around = [(x, y, z) for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1)]
        pairs = sum((a + x, b + y, c + z) in here for a, b, c in here for x, y, z in around)
        array = np.array(sorted(here))
        shape = tuple((array.max(0) - array.min(0) + 1).tolist())
        assert (found.voxels, found.pairs, found.shape) == (len(here), pairs, shape)
        assert found.neighbours == pytest.approx(pairs / len(here) - 1)
        assert found.occupancy == pytest.approx(len(here) / np.prod(shape))


def test_blocks_are_chosen_by_their_place():
    grid = np.stack(np.meshgrid(*[np.arange(-15, 15)] * 3, indexing="ij"), -1).reshape(-1, 3)
    for share in (0.0, 0.2, 1.0):
        assert blocks_chosen(grid, share, 0, 0).mean() == pytest.approx(share, abs=0.01)
    chosen = blocks_chosen(grid, 0.3, 1, 2)
    assert (blocks_chosen(grid[::-1], 0.3, 1, 2) == chosen[::-1]).all()
    for other in ((1, 3), (2, 2)):  # independent of other seeds and rounds
        assert (chosen & blocks_chosen(grid, 0.3, *other)).mean() == pytest.approx(0.09, abs=0.01)


def test_candidates_by_hand(voxels):
    def missing(blocks):
        chosen = blocks_chosen(blocks, 0.3, 0, 7)
        return chosen, chosen

    kept = voxels.coords[~missing(voxels.coords // 4)[0]]
    found = candidates(kept, missing, 4, 3)
    low, high = kept.min(0) - 4, kept.max(0) + 5
    grid = np.stack(np.meshgrid(*map(np.arange, low, high), indexing="ij"), -1).reshape(-1, 3)
    grid = grid[missing(grid // 4)[0]]
    near = [np.abs(kept - cell).max(1).min() <= 3 for cell in grid]
    assert len(cells(found)) == len(found) and cells(found) == cells(grid[near])


@pytest.mark.parametrize("step", [0, 1])
def test_nothing_of_what_was_taken_out_is_given(voxels, scan, step):
    """Voxels asked about, inputs and all that is known of them stay the same whatever is in the missing blocks."""
    for holes, again in ((BlockedScan.test, ()), (BlockedScan.training, (0, step))):
        hole = holes(scan, *again)
        gone = blocks_chosen(scan.cells, 0.2, 0, 0)
        if again:
            gone = gone | blocks_chosen(scan.cells, 0.2, 1, step)
        changed = voxels.values.copy()
        changed[gone] = 1 - changed[gone]
        moved = voxels.coords.copy()
        block, inside = moved[gone] // 4, moved[gone] % 4
        moved[gone] = block * 4 + 3 - inside  # every missing block turned over
        other = holes(BlockedScan(replace(voxels, coords=moved, values=changed), scan.settings), *again)
        assert all(map(torch.equal, given_of(hole), given_of(other)))
        assert (hole.coords == other.coords).all() and (hole.counted == other.counted).all()
        assert not (hole.occupied == other.occupied).all()


def test_held_out_blocks_are_never_trained_on(voxels, scan, tmp_path):
    """The same weights, bit for bit, from a scan whose held-out blocks hold one voxel."""
    first = np.flatnonzero(scan.held_out)[:1]
    kept = ~scan.held_out
    kept[first] = True
    other = BlockedScan(replace(voxels, coords=voxels.coords[kept], values=voxels.values[kept]), scan.settings)
    weights = []
    for name, one in (("a", scan), ("b", other)):
        run = Completion(replace(SMALL, epochs=1), [one], tmp_path / name, {})
        run.run()
        weights.append(run.model.state_dict())
        for step in range(4):
            hole = one.training(0, step)
            assert not (hole.counted & ~hole.asked).any()
    for key, value in weights[0].items():
        assert torch.equal(value, weights[1][key]), key


def test_holes_add_up(scan):
    hole = scan.test()
    assert hole.counted.sum() == hole.asked.sum()
    assert (hole.occupied & hole.asked).sum() + hole.beyond == scan.held_out.sum()
    assert cells(hole.coords[~hole.asked]) == cells(scan.voxels.coords[~scan.held_out])
    truth = dict(zip(map(tuple, scan.voxels.coords.tolist()), scan.voxels.values, strict=True))
    for cell, value in zip(hole.coords[hole.occupied].tolist(), hole.truth[hole.occupied], strict=True):
        assert (truth[tuple(cell)] == value).all()
    left = hole.coords[~hole.asked]
    for row in np.flatnonzero(hole.asked)[::50]:
        distances = np.linalg.norm(left - hole.coords[row], axis=1)
        assert hole.distance[row] == pytest.approx(distances.min())
        near = np.isclose(distances, distances.min())
        assert any((hole.nearest[row] == value).all() for value in hole.truth[~hole.asked][near])
    training = [scan.training(0, step) for step in range(8)]
    assert len({len(hole.coords) for hole in training}) > 1, "other blocks at each step"
    assert all((hole.asked & ~hole.counted).any() for hole in training), "held-out blocks are asked about, not counted"


def test_large_scans_are_cropped_in_training(voxels):
    scan = BlockedScan(voxels, BlockSettings(block=4, reach=3, crop=10))
    places = set()
    for step in range(6):
        hole = scan.training(0, step)
        left = hole.coords[~hole.asked]
        assert (np.ptp(left, axis=0) < 10).all() and hole.counted.any()
        assert (np.ptp(hole.coords, axis=0) < 10 + 2 * 3).all()
        places.add(tuple(left.min(0)))
    assert len(places) > 3
    assert len(scan.test().coords) > 2 * len(hole.coords), "the test is on the whole scan"
    whole = BlockedScan(voxels, BlockSettings(block=4, reach=3, crop=64)).training(0, 0)
    assert cells(whole.coords) == cells(BlockedScan(voxels, BlockSettings(block=4, reach=3)).training(0, 0).coords)


def test_a_step_may_take_out_everything(voxels, tmp_path):
    scan = BlockedScan(voxels, BlockSettings(block=4, reach=3, drop=1.0))
    assert len(scan.training(0, 0).coords) == 0
    run = Completion(replace(SMALL, epochs=1), [scan], tmp_path / "x", {})
    run.run()
    assert run.history[-1]["loss"] == 0
    assert all(bool(parameter.isfinite().all()) for parameter in run.model.parameters())


def test_scores_and_baselines(scan):
    hole = scan.test()
    asked, occupied = hole.asked, hole.occupied & hole.asked
    perfect = score(hole, hole.occupied, hole.truth)
    assert perfect.hits == perfect.claimed == occupied.sum() and perfect.value_error == 0
    assert perfect.iou == pytest.approx(occupied.sum() / scan.held_out.sum())
    everything = score(hole, asked, hole.interpolated)
    assert everything.iou == pytest.approx(occupied.sum() / (asked.sum() + hole.beyond))
    assert (perfect + everything).present == 2 * scan.held_out.sum()
    assert Score().iou == 0 and Score().value_error is None
    found = baselines([hole])
    for radius in (1.0, 1.5, 2.0, 2.5, 3.0):
        assert score(hole, hole.distance <= radius, hole.nearest).iou <= found["nearest"].iou
    error = np.abs(hole.nearest - hole.truth)[occupied].mean()
    assert found["nearest"].value_error == pytest.approx(float(error), rel=1e-4)


def test_loss_falls_with_the_truth(scan):
    hole = scan.training(0, 0)
    sure = torch.from_numpy(np.where(hole.occupied, 9.0, -9.0)).float()[:, None]
    right = torch.cat([sure, torch.from_numpy(hole.truth)], 1)
    wrong = torch.cat([-sure, 1 - torch.from_numpy(hole.truth)], 1)
    assert 0 <= loss_of(right, hole) < 0.01 < loss_of(wrong, hole)
    right[~torch.from_numpy(hole.counted)] = torch.nan
    assert loss_of(right, hole) < 0.01, "nothing that does not count is looked at"
    empty = replace(hole, counted=np.zeros_like(hole.counted))
    assert loss_of(wrong, empty) == 0


def test_learning_beats_the_nearest_neighbour(tmp_path):
    scan = BlockedScan(voxelise(points(), 0.08), BlockSettings(block=4, reach=3))
    chosen = CompletionSettings(width=8, levels=2, epochs=3, steps=25, rate=1e-2)
    run = Completion(chosen, [scan], tmp_path / "x.safetensors", {})
    seen = []
    run.run(lambda steps, figures: seen.append((steps, run.optimiser.param_groups[0]["lr"])))
    nearest = baselines(run.tests)["nearest"]
    assert run.history[-1]["iou"] > 1.2 * nearest.iou
    assert run.history[-1]["value_error"] < nearest.value_error
    assert [steps for steps, _ in seen] == [*range(1, 26)] * 3
    assert seen[0][1] == pytest.approx(1e-3) and max(rate for _, rate in seen) <= 1e-2 and seen[-1][1] < 1e-4
    model, read, blocks, state = load(tmp_path / "x.safetensors")
    assert (read, blocks.block, state["notes"]["channels"]) == (chosen, 4, 3)
    with torch.no_grad():
        assert torch.equal(model(*inputs_of(run.tests)), run.model.eval()(*inputs_of(run.tests)))


def test_scans_without_values(tmp_path):
    cloud = points()
    scan = BlockedScan(voxelise(replace(cloud, values=cloud.values[:, :0]), 0.1), BlockSettings(4, 3))
    run = Completion(SMALL, [scan], tmp_path / "x", {})
    run.run()
    assert "value_error" not in run.history[-1] and baselines(run.tests)["interpolated"] is None


def test_completion_errors(scan, voxels, tmp_path):
    grey = BlockedScan(replace(voxels, values=voxels.values[:, :1], source="b"), scan.settings)
    with pytest.raises(ValueError, match=r"must all have colour.*room.npz: 3, b: 1"):
        Completion(SMALL, [scan, grey], tmp_path / "x", {})
    with pytest.raises(PointsError, match=r"0 of \d+ voxels lie in held-out blocks"):
        BlockedScan(voxels, BlockSettings(hold_out=0.0))
    run = Completion(SMALL, [scan], tmp_path / "x", {"digest": 1})
    run.run()
    with pytest.raises(ValueError, match="was trained with width = 4, now it is 5: give another folder"):
        Completion(replace(SMALL, width=5), [scan], tmp_path / "x", {"digest": 1})
    with pytest.raises(ValueError, match="was trained with digest = 1, now it is 2"):
        Completion(SMALL, [scan], tmp_path / "x", {"digest": 2})
    with pytest.raises(ValueError, match="not a checkpoint of flexor lift"):
        read_checkpoint(tmp_path / "x")


def test_layers_are_timed_one_by_one(voxels):
    model = ScanNetUNet(4, levels=3).eval()
    features = torch.randn(len(voxels), 3)
    output, layers = time_layers(model, lambda: tensor_of(voxels.coords, features), 2)
    with torch.no_grad():
        torch.testing.assert_close(output, model(tensor_of(voxels.coords, features)))
    levels = sparsity(voxels.coords, 3)
    by_name = {layer.name: layer for layer in layers}
    assert len(by_name) == len(layers)
    assert [layer.name for layer in layers if layer.pairs and not layer.shared] == [
        *("unet.stem", "unet.levels.down", "unet.levels.deeper.before.0.conv", "unet.levels.deeper.down"),
        *("unet.levels.deeper.deeper.before.0.conv", "unet.levels.deeper.up", "unet.levels.up"),
    ]
    assert by_name["unet.stem"].pairs == by_name["unet.levels.after.0.conv"].pairs == levels[0].pairs
    assert by_name["unet.levels.down"].pairs == levels[0].voxels and by_name["unet.levels.down"].channels == "4->8"
    assert by_name["unet.stem"].flops == 2 * levels[0].pairs * 3 * 4
    assert all(layer.compute > 0 for layer in layers) and by_name["linear"].pairs == 0


def test_cubes_cover_what_is_behind_them():
    coords = np.array([[0, 0, 0], [0, 0, 1]], np.int32)
    colours = np.array([[1, 0, 0], [0, 0, 1]], np.float32)
    axes = pictures._axes(30, 80)  # nearly from above: the blue cube hides the red one's top
    view = pictures.View(axes, np.array([-2.0, -2.0]), np.array([2.0, 2.0]), (64, 64))
    both, below = (pictures.draw(coords[:n], colours[:n], view).astype(int) for n in (2, 1))
    assert both.shape == (64, 64, 3)
    blue, red = (both[..., 2] > both[..., 0] + 90).sum(), (both[..., 0] > both[..., 2] + 90).sum()
    assert blue > 4 * red
    assert (below[..., 0] > below[..., 2] + 90).sum() > 4 * red
    assert (pictures.draw(coords[:0], colours[:0], view) == pictures.BACKGROUND).all()


def test_many_voxels_are_drawn_larger(monkeypatch, voxels):
    monkeypatch.setattr(pictures, "MOST_CUBES", 100)
    view = pictures.View.of(voxels.coords, 80)
    drawn = pictures.draw(voxels.coords, voxels.values, view)
    assert (drawn != pictures.BACKGROUND).any(-1).mean() > 0.3


def test_colours():
    coords = np.arange(30, dtype=np.int32).reshape(10, 3)
    for channels in (0, 1, 3):
        found = pictures.colours_of(coords, np.random.default_rng(0).random((10, channels), np.float32))
        assert found.shape == (10, 3) and found.min() >= 0 and found.max() <= 1
    for width in (1, 2, 16):
        found = pictures.colours_of_features(np.random.default_rng(0).normal(size=(10, width)).astype(np.float32))
        assert found.shape == (10, 3) and found.min() >= 0 and found.max() <= 1
    kept, truth, said = np.array([[9, 9, 9]]), np.array([[0, 0, 0], [1, 0, 0]]), np.array([[1, 0, 0], [2, 0, 0]])
    judged = dict(zip(map(tuple, (pair := pictures.verdict(kept, truth, said))[0].tolist()), pair[1], strict=True))
    expected = {(9, 9, 9): pictures.CONTEXT, (0, 0, 0): pictures.MISSED}
    expected |= {(1, 0, 0): pictures.HIT, (2, 0, 0): pictures.WRONG}
    assert judged.keys() == expected.keys()
    assert all(np.allclose(judged[cell], colour) for cell, colour in expected.items())


def run(*arguments):
    return CliRunner().invoke(app, ["voxels", *map(str, arguments)], env={"COLUMNS": "120"})


def refused(*arguments):
    """The one line on stderr of a call that must exit with 2."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    return line


def picture(path):
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        return image.size


@pytest.mark.parametrize("named", [True, False])
def test_show(file, tmp_path, named, monkeypatch):
    out = tmp_path / "new" / "out"
    result = run(*(["show"] if named else []), file, "--out", out, "--voxel", 0.1, "--repeats", 1, "--threads", 1)
    assert result.exit_code == 0, result.output
    assert {path.name for path in out.iterdir()} == {"room.png", "voxels.json"}
    (found,) = json.loads((out / "voxels.json").read_text())["scans"]
    assert f"{found['points']} points (colour) in {found['levels'][0]['voxels']} voxels of 0.1" in result.stdout
    assert len(found["levels"]) == 7 and "after.0" in result.stdout and "shared" in result.stdout
    assert found["seconds"]["map"] == pytest.approx(sum(layer["map"] for layer in found["layers"]))
    assert picture(out / "room.png")[0] > 1200


def test_show_with_weights(file, tmp_path):
    model = ScanNetUNet.preset("small")
    names = dict(model.unet.scn_names("unet", "sparseModel")) | {"linear": "linear"}
    state = {}
    for name, value in model.state_dict().items():
        module, _, parameter = name.rpartition(".")
        if value.dim() == 5:  # (Cout, *kernel, Cin) to (taps, groups, Cin, Cout)
            value = value.permute(1, 2, 3, 4, 0).reshape(-1, 1, value.shape[4], value.shape[0])
        if parameter != "num_batches_tracked":
            state[f"{names[module]}.{parameter}"] = value
    torch.save(state, tmp_path / "unet.pth")
    command = (file, "--out", tmp_path / "out", "--voxel", 0.1, "--repeats", 1, "--threads", 1)
    assert run(*command, "--weights", tmp_path / "unet.pth").exit_code == 0
    assert json.loads((tmp_path / "out" / "voxels.json").read_text())["weights"] == "unet.pth"
    assert "has no sparseModel" in refused(*command, "--weights", tmp_path / "unet.pth", "--preset", "large")
    (tmp_path / "junk.pth").write_bytes(b"junk")
    assert "junk.pth: not a file of weights" in refused(*command, "--weights", tmp_path / "junk.pth")
    torch.save([1], tmp_path / "list.pth")
    assert "list.pth: must hold a state_dict" in refused(*command, "--weights", tmp_path / "list.pth")


def test_errors(file, tmp_path):
    out = tmp_path / "out"
    assert "absent.ply: no such file" in refused(tmp_path / "absent.ply", "--out", out)
    assert "absent.ply: no such file" in refused("fit", tmp_path / "absent.ply", "--out", out)
    assert "must be above 0" in refused(file, "--out", out, "--voxel", 0)
    assert "preset must be one of small, large" in refused(file, "--out", out, "--preset", "tiny")
    assert "--device tpu" in refused(file, "--device", "tpu")
    assert "--reach 9: must not be more than --block 6" in refused("fit", file, "--reach", 9)
    assert "lie in held-out blocks" in refused("fit", file, "--out", out, "--hold-out", 0)
    assert not out.exists()
    (tmp_path / "taken").touch()
    for command in ([], ["fit"]):
        assert "taken: exists and is not a folder" in refused(*command, file, "--out", tmp_path / "taken")


def test_fit_writes_what_it_found_and_goes_on(file, tmp_path):
    out, stopped = tmp_path / "out", tmp_path / "stopped"
    command = ("fit", file, file, "--voxel", 0.1, *TINY)
    result = run(*command, "--out", out)
    assert result.exit_code == 0, result.output
    names = {"checkpoint.safetensors", "metrics.json", "curves.png", "room_0.png", "room_1.png"}
    assert {path.name for path in out.iterdir()} == names
    found = json.loads((out / "metrics.json").read_text())
    assert found["nearest"]["iou"] > 0 and found["settings"]["steps"] == 2 and len(found["history"]) == 2
    assert f"{found['nearest']['iou']:.4f}" in result.stdout and f"{found['unet']['iou']:.4f}" in result.stdout
    assert picture(out / "room_0.png")[1] > 500

    # Stopped in the second epoch, and started again.
    descend, calls = Completion._descend, []

    def stop(self, counts):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return descend(self, counts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Completion, "_descend", stop)
        assert "stopped; the same command goes on from the last epoch" in refused(*command, "--out", stopped)
    assert len(read_checkpoint(stopped / "checkpoint.safetensors", VOXELS)[1]["history"]) == 1
    assert run(*command, "--out", stopped).exit_code == 0
    (whole, one), (resumed, two) = (read_checkpoint(f / "checkpoint.safetensors", VOXELS) for f in (out, stopped))
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)
    for a, b in zip(one["history"], two["history"], strict=True):
        assert {**a, "cpu_seconds": 0} == {**b, "cpu_seconds": 0}

    before = {path: path.read_bytes() for path in out.iterdir()}
    assert run(*command, "--out", out).exit_code == 0
    assert before == {path: path.read_bytes() for path in out.iterdir()}
    assert "was trained with block = 6, now it is 4" in refused(*command, "--out", out, "--block", 4)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_torchrun(file, tmp_path):
    """Two processes with a scan each learn what one process learns from both."""
    other, (xyz, rgb) = tmp_path / "other.npz", room(1)
    np.savez(other, xyz=xyz, rgb=rgb)
    command = ["fit", file, other, "--voxel", 0.1, *TINY, "--no-evaluate"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    launch += ["-m", "flexor.cli.main", "voxels", *map(str, command), "--out", str(tmp_path / "two")]
    done = subprocess.run(launch, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert run(*command, "--batch", 2, "--out", tmp_path / "one").exit_code == 0
    one, two = (read_checkpoint(tmp_path / name / "checkpoint.safetensors", VOXELS) for name in ("one", "two"))
    for a, b in zip(one[1]["history"], two[1]["history"], strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-3)
    for name, value in one[0].items():
        if "running" in name:
            torch.testing.assert_close(two[0][name], value, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("command", ["show", "fit"])
def test_help(command):
    result = run(command, "--help")
    assert result.exit_code == 0 and "flexor voxels" in result.stdout
    assert run("--help").exit_code == 0 and command in run("--help").stdout


def test_values_start_as_the_mean_of_the_nearest(scan):
    hole = scan.test()
    with torch.no_grad():
        values = build(3, SMALL).eval()(*inputs_of([hole]))[:, 1:]
    torch.testing.assert_close(values, torch.from_numpy(hole.interpolated))
    left = hole.coords[~hole.asked]
    for row in np.flatnonzero(hole.asked)[::50]:
        distances = np.sort(np.linalg.norm(left - hole.coords[row], axis=1))[:8]
        np.testing.assert_allclose(np.exp(hole.closeness[row] / -2), distances, rtol=1e-5)
