# SPDX-License-Identifier: Apache-2.0
"""The contests of the dynamic families: everyone computes the same, goals are read right, tables are written."""

import json

import pytest
import torch
from flexor import bench
from flexor.bench import contest, dynamic, grid, match, picture, report
from flexor.bench.contest import BACKWARD, FORWARD, OURS, TRAINING
from flexor.bench.goals import Goal

MACHINE = {"cpu": "a cpu", "cores": 2, "isa": "avx2", "fma_gflops": 100.0, "fma_method": "by decree",
           "versions": {"flexor": "0"}, "commit": None, "date": "today"}  # fmt: skip
FULL = match.Case("tiny full", 6, 9, 8, 3, 3, 1)
DEPTHWISE = match.Case("tiny depth-wise", 6, 9, 8, 0, 5)


def record(op, case, times, direction=FORWARD, batch=8, flops=10**6):
    return {"op": op, "case": case, "direction": direction, "batch": batch, "dtype": "float32",
            "layout": "contiguous", "threads": 1, "ms": times, "flops": flops}  # fmt: skip


@pytest.mark.parametrize("direction", [FORWARD, TRAINING])
@pytest.mark.parametrize("kernels", [1, 3])
def test_layers_of_dynamic_convolution(kernels, direction):
    shape = dynamic.Case(16, 5, kernels)
    tiny = dynamic.LayerContest(case=shape.name, shape=shape, direction=direction, batch=2)
    found = contest.run(tiny, seconds=0)
    assert set(found["ms"]) == set(tiny.contestants)
    assert set(found["error"]) == set(tiny.contestants) - {dynamic.CONV}
    gradients = next(call for name, call in tiny.enter() if name == OURS)()
    assert len(gradients) <= len(tiny.tensors)


def test_a_training_step_does_not_train(monkeypatch):
    monkeypatch.setattr(dynamic, "IMAGE", 112)
    step = dynamic.NetworkContest(case="tiny", kernels=1, direction=dynamic.STEP, batch=4)
    calls = dict(step.enter())
    first, second = (calls[OURS]() for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    errors = step.check({name: call() for name, call in calls.items()})
    assert set(errors) == {OURS, dynamic.PUBLISHED}


@pytest.mark.parametrize("direction", [FORWARD, BACKWARD])
@pytest.mark.parametrize(("kind", "shape"), [(match.FullContest, FULL), (match.DepthwiseContest, DEPTHWISE)])
def test_matching(kind, shape, direction):
    found = contest.run(kind(case=shape.name, shape=shape, direction=direction, batch=2), seconds=0)
    assert set(found["error"]) == set(found["ms"]) and not found["skipped"]


@pytest.mark.parametrize("direction", [FORWARD, TRAINING])
@pytest.mark.parametrize("case", grid.LAYERS)
def test_grids(case, direction):
    found = contest.run(grid.GridContest(case=case, batch=2, direction=direction), seconds=0)
    assert set(found["error"]) == set(found["ms"])


def test_work_is_counted_by_formula():
    assert match.FullContest(case="", shape=FULL).flops == 2 * 3 * 6 * 9 * (9 * 8)
    assert match.DepthwiseContest(case="", shape=DEPTHWISE, direction=BACKWARD).flops == 2 * 2 * 6 * 25 * (5 * 4)
    shape = dynamic.Case(16, 5, 4)
    assert dynamic.LayerContest(case="", shape=shape).flops == 2 * 16 * 16 * 9 * (25 + 4)
    in_grid = sum(
        0 <= y + i < 5 and 0 <= x + j < 5 for y in range(5) for x in range(5) for i in (-1, 0, 1) for j in (-1, 0, 1)
    )
    assert in_grid + 2 * (225 - in_grid) == grid.PAIRS


def test_goals_say_what_is_met():
    at_most = Goal("op", "case", FORWARD, 8, 1.5, "peer", at_most=True)
    at_least = Goal("op", "case", FORWARD, 8, 1.5, "peer")
    ceiling = Goal("op", "case", FORWARD, 8, 0.7)
    found = record("op", "case", {OURS: [2.0, 4.0], "peer": [1.0, 4.0]})
    assert at_most.find([record("op", "other", {}), found]) is found
    assert at_most.reached(found, 1.0) == [2, 1] and at_most.worst([2, 1]) == 2
    assert at_least.reached(found, 1.0) == [0.5, 1] and at_least.worst([0.5, 1]) == 0.5
    assert ceiling.reached(found, 1.0) == [0.5, 0.25]
    assert not at_most.met(1.6) and at_most.met(1.5) and at_least.met(1.5) and not at_least.met(1.4)


@pytest.mark.parametrize("family", ["dynamic", "match", "grid"])
def test_every_goal_has_its_contest(family):
    module = bench.family_module(family)
    held = {(c.op, c.case, c.direction, c.batch, c.threads) for c in module.contests(everything=True)}
    for goal in module.GOALS:
        assert (goal.op, goal.case, goal.direction, goal.batch, 1) in held, goal
        assert goal.measure and goal.show(goal.limit)


def test_tables_and_picture(tmp_path):
    pytest.importorskip("matplotlib")
    goal = dynamic.GOALS[0]
    times = {OURS: [1.05, 1.25], dynamic.CONV: [1.0, 1.0], dynamic.PUBLISHED: [2.0, 2.0],
             dynamic.MATMUL: [1.5, 1.5]}  # fmt: skip
    found = record(goal.op, goal.case, times) | {"error": {OURS: 1e-6}, "bytes": 10, "skipped": {}}
    results = {"family": "dynamic", "machine": MACHINE, "contests": [found],
               "memory_bytes": {"a": {OURS: 1 << 20, "published": None}}}  # fmt: skip
    text = report.markdown(results)
    assert "| **1.15x** (1.25x) | at most 1.2x: met | published: 2x, matmul: 1.5x |" in text
    assert "| a | 1.0 MiB | absent |" in text
    for family in ("dynamic", "match", "grid"):
        picture.draw(results | {"family": family}, tmp_path / f"{family}.svg")
    assert len(list(tmp_path.iterdir())) == 3
    assert json.loads(json.dumps(results)) == results
