# SPDX-License-Identifier: Apache-2.0
"""The contests of the pose family: everyone computes the same, work is counted, tables are written."""

import pytest
import torch
from flexor import bench
from flexor.bench import contest, pose, pose_peers, report
from flexor.bench.contest import FORWARD, OURS, TRAINING
from flexor.models.pose.inference import for_inference
from flexor.models.pose.simple_baseline import simple_baseline
from flexor.nn import Conv3x3

MACHINE = {"cpu": "a cpu", "cores": 2, "isa": "avx2", "fma_gflops": 100.0, "fma_method": "by decree",
           "versions": {"flexor": "0"}, "commit": None, "date": "today"}  # fmt: skip


@pytest.mark.parametrize(("direction", "names"), [(FORWARD, 3), (TRAINING, 3)])
def test_the_head_of_dcpose(direction, names):
    found = contest.run(pose.HeadContest(case=pose.DCPOSE, direction=direction, height=16, width=16), seconds=0)
    assert len(found["ms"]) + len(found["skipped"]) == names and pose.OURS in found["ms"]
    if not found["skipped"]:
        assert set(found["error"]) == set(found["ms"]) - {pose.DENSE}


def test_plain_networks_have_no_layer_of_ours():
    model = for_inference(simple_baseline(18))
    plain = pose_peers.plain(model)
    assert any(isinstance(m, Conv3x3) for m in model.modules())
    assert not any(isinstance(m, Conv3x3) for m in plain.modules())
    assert {id(p) for p in plain.parameters()} == {id(p) for p in model.parameters()}
    images = torch.randn(1, 3, 64, 64)
    macs = pose_peers.multiply_adds(plain, lambda: plain(images))
    first, last = 64 * 3 * 49 * 32 * 32, 17 * 256 * 16 * 16
    assert first + last < macs < 1e9
    assert pose_peers.multiply_adds(plain.conv1, lambda: plain.conv1(images)) == first


def test_every_goal_has_its_contest():
    held = {(c.op, c.case, c.direction, c.batch, c.threads) for c in pose.contests(everything=True)}
    for goal in pose.GOALS:
        assert (goal.op, goal.case, goal.direction, goal.batch, 1) in held, goal
        assert goal.measure and goal.show(goal.limit)
    assert len(pose.contests()) < len(pose.contests(everything=True))


def test_tables():
    goal = pose.GOALS[0]
    times = {OURS: [1.0, 1.1], pose.TORCHVISION: [3.0, 3.3], pose.DENSE: [2.0, 2.2]}
    record = {"op": goal.op, "case": goal.case, "direction": goal.direction, "batch": 1, "dtype": "float32",
              "layout": "contiguous", "threads": 1, "ms": times, "flops": 10**6, "bytes": 10, "skipped": {},
              "error": {OURS: 1e-6}}  # fmt: skip
    results = {"family": "pose", "machine": MACHINE, "contests": [record],
               "parts_ms": {"DCPose": {"backbone": 3.0, "head": 1.0}}}  # fmt: skip
    text = report.markdown(results)
    assert "| **0.5x** (0.5x) | at most 1.15x: met | torchvision: 1.5x |" in text
    assert "| **3x** (3x) | at least 1.3x: met |" in text
    assert "| DCPose | backbone | 3 | 75% |" in text
    assert bench.family_module("pose") is pose
