# SPDX-License-Identifier: Apache-2.0
"""The contests of the HEVC encoder: streams are decoded and measured, goals are read right, tables are written."""

import shutil

import numpy as np
import pytest
import torch
from flexor import bench
from flexor.bench import contest, hevc_encode, hevc_encode_peers, hevc_streams, picture, report
from flexor.bench.contest import ONE_THREAD, OURS, Unavailable
from flexor.bench.hevc_encode import ENCODE, PICTURES, ROWS, SIDE_BY_SIDE, Work
from flexor.bench.hevc_encode_peers import MEDIUM, ULTRAFAST, VERYSLOW
from flexor.bench.hevc_streams import CODE
from flexor.bench.memory import peak_extra_bytes
from flexor.codec import hevc
from PIL import Image
from test_bench_hevc import MACHINE

CACHED = (hevc_streams.load, hevc_streams.moving_planes, hevc_encode_peers.y4m_file)
X265 = pytest.mark.skipif(shutil.which("x265") is None, reason="needs x265")


@pytest.fixture(autouse=True)
def _small_pictures(monkeypatch):
    monkeypatch.setattr(hevc_streams, "WIDTH", 160)
    monkeypatch.setattr(hevc_streams, "HEIGHT", 96)
    for cached in CACHED:
        cached.cache_clear()
    yield
    for cached in CACHED:
        cached.cache_clear()


def kind(preset, sharing=ROWS, threads=1):
    work = Work(CODE, preset, sharing=sharing)
    return next(found for found in hevc_encode.contests() if found.work == work and found.threads == threads)


@X265
def test_a_contest():
    found = contest.run(kind("fast"), seconds=0)
    assert not found["skipped"] and set(found["ms"]) == set(found["sizes"]) == {OURS, ULTRAFAST}
    assert all(0 < found["error"][name] < 0.03 and 1000 < found["sizes"][name] < found["bytes"] for name in found["ms"])
    assert min(found["ms"][ULTRAFAST]) > 1, "the CPU time of a program counts"


@X265
@pytest.mark.parametrize(("preset", "peer"), [("medium", MEDIUM), ("best", VERYSLOW)])
def test_everyone_encodes_the_same(preset, peer):
    tiny = kind(preset)
    results = {name: call() for name, call in tiny.enter()}
    errors = tiny.check(results)
    assert set(errors) == {OURS, peer} and all(0 < error < 0.03 for error in errors.values())


@X265
@pytest.mark.parametrize("sharing", [ROWS, SIDE_BY_SIDE])
def test_on_all_threads(sharing, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    calls = dict(kind("medium", sharing, 2).enter())
    assert set(calls) == {OURS, MEDIUM, OURS + ONE_THREAD, MEDIUM + ONE_THREAD}
    streams = {name: call()[0] for name, call in calls.items()}
    assert torch.equal(streams[OURS], streams[OURS + ONE_THREAD])
    assert kind("medium", sharing, 2).sizes({OURS: (streams[OURS],)}) == {OURS: streams[OURS].numel()}


def test_what_is_no_encoding_is_found():
    tiny = kind("fast")
    y, *_ = hevc_streams.moving_planes(CODE, 1)[0]

    def stream(*pictures):
        return (torch.frombuffer(bytearray(hevc.encode(list(pictures), chroma="400", qp=30)), dtype=torch.uint8),)

    assert tiny.check({OURS: stream(*(np.roll(y, hevc_streams.STEP * i, 1) for i in range(PICTURES["fast"])))})
    with pytest.raises(AssertionError, match=r"PSNR .* dB, at least 26 dB is expected"):
        tiny.check({OURS: stream(*(y,) * PICTURES["fast"])})
    with pytest.raises(AssertionError, match="1 pictures, 4 are expected"):
        tiny.check({OURS: stream(y)})


def test_an_absent_peer_is_skipped_by_name(monkeypatch):
    monkeypatch.setattr(hevc_encode_peers.shutil, "which", lambda name: None)
    found = contest.run(kind("fast"), seconds=0)
    assert found["skipped"] == {ULTRAFAST: "x265 is not on PATH (apt install x265)"} and set(found["ms"]) == {OURS}
    assert hevc_encode.versions() == {"x265": "absent: x265 is not on PATH (apt install x265)"}
    with pytest.raises(Unavailable):
        hevc_encode_peers.X265(VERYSLOW, 27, 1, 1)


def test_memory_is_that_of_pictures_in_flight():
    few, many = (peak_extra_bytes(hevc_encode.streaming(str(count), "2")) for count in (4, 40))
    assert many - few < 20 * 160 * 96  # 36 pictures more are 54 times 160 * 96 samples


def test_images_goals_and_tables(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "terminal.png")
    contests = hevc_encode.contests(everything=True, images=[str(tmp_path / "terminal.png")])
    held = {(each.op, each.case, each.direction, each.batch) for each in contests}
    assert all((goal.op, goal.case, goal.direction, goal.batch) in held for goal in hevc_encode.GOALS)
    assert len({(each.case, each.threads) for each in contests}) == len(contests)
    record = {
        "op": "hevc", "case": "code QP 27, fast", "direction": ENCODE, "batch": PICTURES["fast"], "dtype": "uint8",
        "layout": "contiguous", "threads": 1, "ms": {OURS: [280.0], ULTRAFAST: [100.0]}, "flops": 0, "bytes": 10,
        "error": {OURS: 0.01}, "sizes": {OURS: 12345, ULTRAFAST: 23456}, "skipped": {},
    }  # fmt: skip
    slow = record | {"case": "terminal QP 27, best", "batch": 2, "ms": {OURS: [230.0], VERYSLOW: [100.0]}}
    ms = {OURS: [50.0], MEDIUM: [30.0], OURS + ONE_THREAD: [90.0], MEDIUM + ONE_THREAD: [54.0]}
    both = record | {"case": "code QP 27, medium, side by side", "threads": 2, "ms": ms}
    memory = {"4 pictures, 1 at a time": {OURS: 3 << 20}}
    results = {"family": "hevc_encode", "machine": MACHINE, "contests": [record, slow, both]}
    results |= {"encoders": {"x265": "3.5"}, "memory_bytes": memory}
    text = report.markdown(results)
    assert "Encoders: x265 3.5." in text and "| 12 | 23 |" in text and "flexor, kB | x265 ultrafast, kB" in text
    assert "time over x265 ultrafast's | **2.8x** (2.8x) | at most 3x: met" in text
    assert "time over x265 veryslow, tskip's | **2.3x** (2.3x) | at most 2x: not met" in text
    assert "1.80x | 1.80x | 100% | at least 1.70x: met" in text
    assert "pictures as they come, peak memory beyond the tensors" in text and "| 3.0 MiB |" in text
    picture.draw(results, tmp_path / "hevc_encode.svg")
    assert (tmp_path / "hevc_encode.svg").stat().st_size > 1000
    assert "hevc_encode" in bench.FAMILIES
