# SPDX-License-Identifier: Apache-2.0
"""The contests of the HEVC decoder: everyone decodes the same, goals are read right, tables are written."""

import numpy as np
import pytest
import torch
from flexor import bench
from flexor.bench import contest, hevc, hevc_peers, hevc_streams, picture, report
from flexor.bench.contest import ONE_THREAD, OURS, Unavailable
from flexor.bench.hevc import DE265, DECODE, FFMPEG
from flexor.bench.hevc_streams import CODE, PHOTOGRAPH, Coded
from PIL import Image

MACHINE = {"cpu": "a cpu", "cores": 2, "isa": "avx2", "fma_gflops": 100.0, "fma_method": "by decree",
           "versions": {"flexor": "0"}, "commit": None, "date": "today"}  # fmt: skip


@pytest.fixture(autouse=True)
def _small_pictures(monkeypatch):
    monkeypatch.setattr(hevc_streams, "WIDTH", 160)
    monkeypatch.setattr(hevc_streams, "HEIGHT", 96)
    for cached in (hevc_streams.encode, hevc_streams.load):
        cached.cache_clear()
    yield
    for cached in (hevc_streams.encode, hevc_streams.load):
        cached.cache_clear()


def kind(coded, threads=1):
    return next(
        found for found in hevc.contests(everything=True) if found.coded == coded and found.threads in (threads, 1)
    )


@pytest.mark.parametrize("coded", [Coded(PHOTOGRAPH, 37), Coded(CODE, 27, "yuv444p10le")])
def test_everyone_decodes_the_same(coded):
    found = contest.run(kind(coded), seconds=0)
    assert set(found["ms"]) | set(found["skipped"]) == {OURS, FFMPEG, DE265}
    assert found["error"][OURS] == 0 and found["dtype"] == ("uint16" if "10" in coded.pixel_format else "uint8")
    assert found["bytes"] > coded.samples and len(hevc_streams.encode(coded)) > 1000


def test_a_wrong_plane_is_found():
    tiny = kind(Coded(PHOTOGRAPH, 37))
    results = {name: call() for name, call in tiny.enter() if not isinstance(call, Unavailable)}
    results[OURS] = tuple(plane.clone() for plane in results[OURS])
    results[OURS][4][3, 5] ^= 1
    with pytest.raises(AssertionError, match="plane 1 of picture 1 is not ffmpeg's"):
        tiny.check(results)


def test_an_absent_peer_is_skipped_by_name(monkeypatch):
    def absent():
        raise Unavailable("not here")

    monkeypatch.setattr(hevc_peers, "_library", absent)
    found = contest.run(kind(Coded(PHOTOGRAPH, 37)), seconds=0)
    assert found["skipped"] == {DE265: "not here"}
    assert hevc.versions()[DE265] == "absent: not here"


def test_threads_and_images(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "own.png")
    found = hevc.contests(images=[str(tmp_path / "own.png")])
    own = [each for each in found if each.coded.picture.endswith("own.png")]
    assert [each.threads for each in own] == [1, 2] and own[0].case.startswith("own QP 27")
    assert set(own[1].contestants) == {name + end for name in (OURS, FFMPEG, DE265) for end in ("", ONE_THREAD)}
    assert hevc_streams.load(own[0].coded.picture).shape == (96, 160, 3)


def test_goals_and_tables(tmp_path):
    pytest.importorskip("matplotlib")
    held = {(each.op, each.case, each.direction, each.batch) for each in hevc.contests(everything=True)}
    assert all((goal.op, goal.case, goal.direction, goal.batch) in held for goal in hevc.GOALS)
    case = hevc.CASES[0].name
    record = {
        "op": "hevc", "case": case, "direction": DECODE, "batch": hevc_streams.PICTURES, "dtype": "uint8",
        "layout": "contiguous", "threads": 1, "ms": {OURS: [100.0], FFMPEG: [60.0], DE265: [120.0]},
        "flops": 0, "bytes": 10, "error": {OURS: 0.0}, "skipped": {},
    }  # fmt: skip
    ms = {OURS: [50.0], FFMPEG: [30.0], OURS + ONE_THREAD: [100.0], FFMPEG + ONE_THREAD: [54.0]}
    both = record | {"threads": 2, "ms": ms}
    results = {"family": "hevc", "machine": MACHINE, "contests": [record, both], "decoders": {FFMPEG: "libavcodec 1"}}
    text = report.markdown(results)
    assert "Decoders: ffmpeg libavcodec 1." in text
    assert "**1.2x** (1.2x) | at least 1x: met" in text and "**60%** (60%) | at least 50%: met" in text
    assert "2.00x | 1.80x | 111% | at least 1.70x: met" in text
    picture.draw(results, tmp_path / "hevc.svg")
    assert (tmp_path / "hevc.svg").stat().st_size > 1000
    assert "hevc" in bench.FAMILIES
