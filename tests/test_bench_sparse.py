# SPDX-License-Identifier: Apache-2.0
"""The contests of sparse convolution: everyone computes the same, scenes are what they say, goals are read right."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import sparse_order
import torch
from flexor import bench
from flexor.bench import contest, picture, report, sparse, sparse_contests, sparse_peers, sparse_scene
from flexor.bench.contest import BUILD, FORWARD, ONE_THREAD, OURS, TRAINING, Unavailable
from flexor.bench.goals import Gain, Goal
from flexor.bench.sparse_contests import FIND, GATHER, GEMM, INPUT, SCN, SORTED, SPCONV, USER, WEIGHT
from flexor.bench.sparse_scene import Scene
from flexor.ops import SparseIndex
from flexor.reference.sparse_conv import pairs

TINY = Scene("indoor", 0.5)
MACHINE = {"cpu": "a cpu", "cores": 2, "isa": "avx2", "fma_gflops": 100.0, "fma_method": "by decree",
           "versions": {"flexor": "0"}, "commit": None, "date": "today"}  # fmt: skip


@pytest.fixture(autouse=True)
def _small_product(monkeypatch):
    monkeypatch.setattr(sparse_contests, "GEMM_SIZE", 32)
    sparse_contests._gemm.cache_clear()
    yield
    sparse_contests._gemm.cache_clear()


def run(kind):
    found = contest.run(replace(kind, scene=TINY), seconds=0)
    assert set(found["ms"]) | set(found["skipped"]) == set(kind.contestants)
    assert all(found["skipped"].values())
    assert found["items"] == len(sparse_scene.voxels(TINY))
    return found


@pytest.mark.parametrize("rows", [USER, SORTED])
@pytest.mark.parametrize("direction", [FORWARD, INPUT, WEIGHT, TRAINING])
def test_layers(rows, direction):
    found = run(sparse.layer(16, rows, direction))
    assert OURS in found["error"] and GEMM in found["ms"] and GEMM not in found["error"]


def test_layers_in_bfloat16_and_on_two_threads():
    low = run(sparse.layer(32, USER, dtype=torch.bfloat16))
    assert low["error"][OURS] > 1e-4 > low["error"][OURS + sparse_contests.FLOAT32]
    two = run(sparse.layer(32, USER, threads=2))
    assert two["clock"] == "wall" and two["error"][OURS] == two["error"][OURS + ONE_THREAD]


def test_a_layers_work_is_counted_by_pairs():
    layer = replace(sparse.layer(16, USER), scene=TINY)
    sites = {tuple(row) for row in sparse_scene.voxels(TINY)[:, 1:].tolist()}
    steps = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3), -1).reshape(-1, 3)
    met = sum(tuple(np.add(site, step)) in sites for site in sites for step in steps)
    assert layer.flops == 2 * met * 16 * 16
    assert replace(layer, direction=TRAINING).flops == 3 * layer.flops


def test_wrong_results_are_refused():
    layer = replace(sparse.layer(16, USER), scene=TINY)
    calls = {name: call for name, call in layer.enter() if name in (OURS, GATHER)}
    wrong = calls[OURS]()[0].clone()
    wrong[0, 0] += 1
    with pytest.raises(AssertionError, match="sparse_conv of flexor: output is off by"):
        layer.check({OURS: (wrong,), GATHER: calls[GATHER]()})


@pytest.mark.parametrize("direction", [BUILD, FIND])
@pytest.mark.parametrize("threads", [1, 2])
def test_maps(direction, threads):
    for kind in sparse.maps(direction, threads=threads):
        assert run(kind)["error"][OURS] == 0


def test_a_map_that_lacks_a_pair_is_refused():
    kind = replace(sparse.maps(FIND)[0], scene=TINY)
    indices, offsets = next(call for name, call in kind.enter() if name == OURS)()
    offsets = offsets.clone()
    offsets[-1] -= 1
    with pytest.raises(AssertionError, match="pairs at each tap is off"):
        kind.check({OURS: (indices, offsets)})


def test_spconvs_counts_are_completed():
    half = torch.tensor([1, 2, 3, 4, 0, 0, 0, 0, 0])
    assert sparse_peers.spconv_counts(half, 9, True).tolist() == [1, 2, 3, 4, 9, 4, 3, 2, 1]
    assert sparse_peers.spconv_counts(half, 9, False) is half


def test_network():
    kind = sparse.network(TINY)
    found = contest.run(kind, seconds=0)
    assert found["error"][OURS] < 1e-5
    levels, met = [], []
    index = SparseIndex(sparse_scene.voxels(TINY), spatial_shape=sparse_scene.bounds(TINY), batch_size=1)
    for level in range(7):
        index = index.strided(2, 2, 0)[0] if level else index
        levels.append(len(index))
        met.append(index.submanifold(3).tensors[2].shape[0])
    macs = met[0] * 3 * 16 + levels[0] * 16 * 20 + met[6] * 112**2
    macs += sum(3 * met[k] * (16 * (k + 1)) ** 2 + 2 * levels[k] * 16 * (k + 1) * 16 * (k + 2) for k in range(6))
    assert found["flops"] == 2 * macs


def test_absent_peers_are_skipped_by_name(monkeypatch):
    for name in ("spconv.pytorch", "sparseconvnet", "open3d"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    skipped = run(sparse.layer(16, USER))["skipped"]
    assert "spconv cannot be imported" in skipped[SPCONV] and "cannot be imported" in skipped[SCN]
    with pytest.raises(Unavailable, match="spconv has no backward on the CPU"):
        sparse.layer(16, USER, TRAINING).call(SPCONV)


@pytest.mark.parametrize("scene", [TINY, Scene("lidar", 1.0)])
def test_scenes_hold_each_voxel_once(scene):
    rows = sparse_scene.voxels(scene)
    assert rows.dtype == torch.int32 and len(rows.unique(dim=0)) == len(rows)
    assert (rows >= 0).all() and (rows[:, 1:] < torch.tensor(sparse_scene.bounds(scene))).all()
    assert all(size % 64 == 0 for size in sparse_scene.bounds(scene))
    assert not torch.equal(rows, rows.unique(dim=0))


def test_a_sweep_is_of_a_street():
    points = sparse_scene.lidar()
    assert 110_000 < len(points) < 128_000
    assert points[:, 2].min() > -1.9 and np.linalg.norm(points, axis=1).max() < 50.2


def test_scans_are_repeated_in_a_batch(tmp_path):
    points = np.random.default_rng(0).uniform(0, 4, (50_000, 3))
    np.save(tmp_path / "scan.npy", points)
    scene = Scene.of(f"{tmp_path}/scan.npy@0.5")
    assert scene == Scene("scan.npy", 0.5, f"{tmp_path}/scan.npy") and scene.title == "scan.npy 0.5 m"
    rows = sparse_scene.voxels(scene)
    assert len(rows) == 3 * 8**3 and sparse_scene.samples(scene) == 3 and len(rows.unique(dim=0)) == len(rows)
    held = [kind for kind in sparse.contests(scans=[f"{tmp_path}/scan.npy@0.5"]) if kind.scene == scene]
    assert {kind.op for kind in held} == {"sparse_conv", "sparse_map", "sparse_unet"}
    assert all(kind.batch == 3 and str(tmp_path) not in kind.name for kind in held)
    assert Scene.of("a/b.bin").voxel == sparse_scene.SCAN_VOXEL


@pytest.mark.parametrize("voxel", ["0", "-1", "fine", "nan", "inf"])
def test_a_voxel_must_have_a_size(voxel):
    with pytest.raises(ValueError, match="a scan is PATH or PATH@VOXEL"):
        Scene.of(f"a.bin@{voxel}")


def test_every_goal_has_its_contest():
    kinds = sparse.contests(everything=True)
    for goal in sparse.GOALS:
        found = [
            kind
            for kind in kinds
            if (kind.op, kind.case, kind.direction, kind.batch, kind.threads)
            == (goal.op, goal.case, goal.direction, goal.batch, 1)
            and kind.dtype == torch.float32
        ]
        assert len(found) == 1 and (goal.peer is None or goal.peer in found[0].contestants), goal
    assert len({kind.name for kind in kinds}) == len(kinds)


def record(op, case, times, **other):
    usual = {"op": op, "case": case, "direction": FORWARD, "batch": 1, "dtype": "float32", "layout": "contiguous",
             "threads": 1, "ms": times, "flops": 4 * 10**6, "bytes": 8, "error": {OURS: 0.0}, "skipped": {},
             "items": 1000}  # fmt: skip
    return usual | other


def test_goals_compare_rates_and_times_of_items():
    rate = Goal("op", "case", FORWARD, 1, 0.5, GEMM, peer_flops=10**6)
    found = record("op", "case", {OURS: [4.0, 8.0], GEMM: [1.0, 1.0]})
    assert rate.find([found]) is found and rate.reached(found, 1.0) == [1.0, 0.5]
    assert rate.worst([1.0, 0.5]) == 0.5 and rate.met(0.5) and not rate.met(0.4) and rate.show(0.4) == "40%"
    each = Goal("op", "case", FORWARD, 1, 100, per_item=True)
    assert each.reached(found, 1.0) == [4000, 8000] and each.worst([4000, 8000]) == 8000
    assert each.met(100) and not each.met(101) and each.show(100.2) == "100 ns"


def test_gains_are_beside_a_yardstick():
    gain = Gain("bfloat16", ", float32", GEMM, least=0.9, wherever=1.5)
    times = {OURS: [1.0], OURS + ", float32": [1.2], GEMM: [1.0], GEMM + ", float32": [1.4]}
    assert gain.find(record("op", "case", times)) == (1.2, 1.4) and gain.met(1.2, 1.4) and not gain.met(1.2, 1.5)
    assert gain.find(record("op", "case", {OURS: [1.0]})) is None
    assert Gain("all threads", ONE_THREAD, GEMM, share=0.9).limit(2.0) == 1.8


def test_tables_and_picture(tmp_path):
    pytest.importorskip("matplotlib")
    conv, built = sparse.GOALS[0], next(goal for goal in sparse.GOALS if goal.per_item)
    times = {OURS: [1.0, 1.0], SPCONV: [3.0, 3.0], GEMM: [10.0, 10.0]}
    two = {OURS: [1.0], OURS + ONE_THREAD: [1.9], GEMM: [1.0], GEMM + ONE_THREAD: [2.0]}
    records = [
        record("sparse_conv", conv.case, times, flops=2 * 2048**3 // 20),
        record("sparse_map", built.case, {OURS: [0.05], SPCONV: [0.4]}, direction=BUILD, flops=0),
        record("sparse_conv", "two", two, threads=2),
        record("sparse_conv", "scan.bin 0.1 m C16", times, flops=2 * 2048**3 // 20, batch=3),
    ]
    results = {"family": "sparse", "machine": MACHINE, "contests": records}
    results["memory_bytes"] = {"a": {OURS: 1 << 20, SPCONV: None}}
    text = report.markdown(results)
    assert "rate over torch.mm's | **50%** (50%) | at least 45%: met | spconv: 17% |" in text
    assert "| time of each | **50 ns** (50 ns) | at most 100 ns: met | spconv: 400 ns |" in text
    assert "| **8x** (8x) | at least 5x: met |" in text
    assert "| two, 2 threads | forward | 1.90x | 2.00x | 95% | at least 1.80x: met |" in text
    assert "| scan.bin 0.1 m C16, batch 3 | forward | 1000 | 1000 ns | 3x spconv, 50% of torch.mm's rate |" in text
    assert "| a | 1.0 MiB | absent |" in text and "ns a voxel" in text
    picture.draw(results, tmp_path / "sparse.svg")
    assert (tmp_path / "sparse.svg").stat().st_size > 1000
    bench.save(results, tmp_path / "sparse.json")
    assert bench.load(tmp_path / "sparse.json") == results


@pytest.mark.parametrize(("dims", "bits"), [(2, 4), (3, 3)])
def test_a_hilbert_curve_goes_from_neighbour_to_neighbour(dims, bits):
    points = torch.tensor(list(itertools.product(range(2**bits), repeat=dims)))
    places = sparse_order.hilbert(points)
    assert sorted(places.tolist()) == list(range(len(points)))
    steps = points[places.argsort()].diff(dim=0)
    assert (steps.abs().sum(1) == 1).all()


@pytest.mark.parametrize("order", sparse_order.ORDERS)
def test_renumbering_a_map_keeps_its_pairs(order):
    index = SparseIndex(sparse_scene.voxels(TINY), spatial_shape=sparse_scene.bounds(TINY), batch_size=1)
    numbers = sparse_order.numbered(order, index)
    assert sorted(numbers.tolist()) == list(range(len(index)))
    rows = numbers if order != sparse_order.USER else index.parts[0].argsort()
    tap, outputs, inputs = pairs(sparse_order.renumbered(order, index))
    found = zip(tap.tolist(), rows[outputs].tolist(), rows[inputs].tolist(), strict=True)
    there = torch.arange(len(index))
    wanted = zip(*(t.tolist() for t in pairs([there, there, *index.submanifold(3).tensors[2:]])), strict=True)
    assert sorted(found) == sorted(wanted)


def test_orders_compute_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(sparse_order, "CHANNELS", (16,))
    monkeypatch.setattr(sparse_order, "DOCUMENT", tmp_path / "page.md")
    results = sparse_order.measure(TINY, seconds=0)
    assert len(results["runs"]) == 3 and all(set(run["ms"]) == set(sparse_order.ORDERS) for run in results["runs"])
    sparse_order.DOCUMENT.write_text(f"a\n{sparse_order.START}\nold\n{sparse_order.END}\nb\n")
    sparse_order.publish(results)
    text = sparse_order.DOCUMENT.read_text()
    assert text.startswith("a\n") and text.endswith("\nb\n") and "| forward, C=16 | " in text and "old" not in text
