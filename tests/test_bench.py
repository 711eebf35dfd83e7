# SPDX-License-Identifier: Apache-2.0
"""The benchmarks' own machinery: rounds, checks, memory, files."""

import sys
import time
from dataclasses import replace

import pytest
import torch
from flexor import bench
from flexor.bench import contest, deform, memory, picture, report
from flexor.bench.contest import FORWARD, OURS, TRAINING

TINY = deform.Case("tiny 4@9x7 dg2", 4, 9, 7, 2)
MACHINE = {"cpu": "a cpu", "cores": 2, "isa": "avx2", "fma_gflops": 100.0, "fma_method": "by decree",
           "versions": {"flexor": "0"}, "commit": None, "date": "today"}  # fmt: skip


def tiny(**kind):
    return deform.DeformContest(case=TINY.name, shape=TINY, **kind)


@pytest.fixture(scope="module")
def results():
    records = [contest.run(tiny(direction=direction), seconds=0) for direction in (FORWARD, TRAINING)]
    return {"family": "deform", "machine": MACHINE, "contests": records}


def test_rounds_turn_round():
    order = []
    calls = {name: lambda name=name: (order.append(name), time.sleep(0.01)) for name in ("a", "b")}
    samples, last = contest.interleave(calls, time.perf_counter, seconds=0)
    assert order == ["a", "a", "b", "b"] + ["a", "b", "b", "a"] * 2 + ["a", "b"]
    assert [len(times) for times in samples.values()] == [5, 5] and set(last) == {"a", "b"}
    assert min(min(times) for times in samples.values()) >= 0.01


def test_speedups_stay_within_a_round():
    record = {"ms": {OURS: [1.0, 2.0, 4.0], "peer": [2.0, 8.0]}}
    assert contest.speedups(record, "peer") == [2, 4]
    assert contest.speedups(record, "nobody") == []


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("direction", [FORWARD, TRAINING])
def test_every_kind_of_contest_runs_and_is_right(direction, dtype, layout):
    kind = tiny(direction=direction, dtype=dtype, layout=layout, batch=2)
    record = contest.run(kind, seconds=0)
    assert OURS in record["error"] and deform.CONV in record["ms"]
    assert set(record["ms"]) | set(record["skipped"]) == set(kind.contestants)
    assert all(record["skipped"].values())


def test_scaling_contest():
    record = contest.run(tiny(threads=2), seconds=0)
    assert record["clock"] == "wall"
    assert len(list(report.side_goals({"family": "deform", "contests": [record]}).splitlines())) == 3


@pytest.mark.parametrize("value", [1.0, float("nan")])
def test_a_wrong_result_is_refused(value):
    entrants = dict(tiny(direction=TRAINING).enter())
    right = {name: entrants[name]() for name in (OURS, "grid_sample")}
    tiny(direction=TRAINING).check(right)
    wrong = [t.clone() for t in right[OURS]]
    wrong[2].view(-1)[3] += value
    with pytest.raises(AssertionError, match="deform_conv2d of flexor: grad_offset is off by"):
        tiny(direction=TRAINING).check(right | {OURS: tuple(wrong)})


def test_slow_peers_are_skipped_by_name():
    huge = tiny(direction=TRAINING, batch=10**6)
    with pytest.raises(contest.Unavailable, match="one call of torchvision takes about 318 s"):
        huge._refuse("torchvision")


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_peak_memory_counts_what_is_freed_and_not_what_is_returned():
    def call():
        torch.ones(24 << 18)
        return (torch.ones(8 << 18),)

    assert abs(memory.peak_extra_bytes(call) - (16 << 20)) < 2 << 20


def test_files(results, tmp_path):
    bench.save(results, tmp_path / "new" / "deform.json")
    assert bench.load(tmp_path / "new" / "deform.json") == results
    text = report.markdown(results)
    assert TINY.name in text and "of FMA ceiling" in text and "onnxruntime has no backward" in text
    assert "1.00x" in report.compare(results, results)


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_picture(results, tmp_path, suffix):
    pytest.importorskip("matplotlib")
    picture.draw(results, tmp_path / f"bench{suffix}")
    assert (tmp_path / f"bench{suffix}").stat().st_size > 1000


def test_goal_table_says_what_is_met(results):
    case = deform.EDVR.name
    forward, training = (
        replace_record(record, case, {OURS: [1.0, 1.0], "torchvision": [13.0, 14.0], deform.CONV: [0.5, 0.5]})
        for record in results["contests"]
    )
    row = report.deform_goals(results | {"contests": [forward, training]}).splitlines()[-1]
    assert "**13.5x** (least 13x; goal 12x, met)" in row
    assert "goal 20x, not met" in row and "onnxruntime absent" in row and "**50%** (goal 55%, not met)" in row


def replace_record(record, case, times):
    return record | {"case": case, "ms": times}


def test_block_of_a_document():
    from report import replace_block

    text = "a\n<!-- bench:deform:start -->\nold\n<!-- bench:deform:end -->\nb\n"
    assert replace_block(text, "deform", "new\n") == text.replace("old", "new")
    assert replace_block(text, "warp", "new\n") is None


def test_inputs_keep_away_from_pixel_edges():
    offset = deform.make_inputs(replace(TINY, height=40)).offset
    assert (offset - offset.round()).abs().min() >= 1 / 128
