# SPDX-License-Identifier: Apache-2.0
"""`flexor hevc compare`: BD-rates, who takes part, the points, the page."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest
from flexor.cli.app import app
from flexor.codec import hevc
from flexor.codec.hevc import compare
from flexor.codec.hevc.compare import contestants, points, routes
from PIL import Image
from typer.testing import CliRunner

DECIBELS = (32.0, 36.0, 41.0, 45.0)
ANCHOR = [(1000 * 2 ** (d / 6), d) for d in DECIBELS]


def scaled(curve, factor):
    return [(bits * factor, psnr) for bits, psnr in curve]


def screen(width, height, seed=0):
    """Glyph-like dark strokes, some slanted, on a light ground."""
    generator = np.random.default_rng(seed)
    image = np.full((height, width, 3), 240, np.uint8)
    for _ in range(width * height // 90):
        x, y, slope = generator.integers(width), generator.integers(height), generator.uniform(-1.5, 1.5)
        for i in range(7):
            image[(y + i) % height, int(x + slope * i) % width] = generator.integers(0, 90, 3)
    return image


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "screen.png"
    Image.fromarray(screen(64, 64)).save(path)
    return path


def run(*arguments):
    return CliRunner().invoke(app, ["hevc", "compare", *map(str, arguments)], env={"COLUMNS": "120"})


@pytest.mark.parametrize("factor", [0.9, 1.25])
def test_bd_rate_of_a_constant_factor(factor):
    delta = compare.bd_rate(ANCHOR, scaled(ANCHOR, factor))
    assert delta.percent == pytest.approx(100 * (factor - 1)) == pytest.approx(delta.akima)
    assert delta.overlap == 1 and delta.excluded == 0 and delta.why is None and delta.doubt is None


def test_bd_rate_is_the_mean_over_the_shared_psnr():
    # log10 R of the test falls behind linearly with D, on which every interpolation agrees: the mean is at the middle.
    test = [(bits * 10 ** (-0.01 * (d - 30)), d) for bits, d in ANCHOR[::-1]]
    assert compare.bd_rate(ANCHOR, test).percent == pytest.approx(100 * (10 ** (-0.01 * (38.5 - 30)) - 1))
    moved = [(1000 * 2 ** ((d + 6) / 6), d) for d in (36.0, 39.0, 43.0, 47.0)]
    delta = compare.bd_rate(ANCHOR, moved)
    assert delta.percent == pytest.approx(100) and delta.overlap == pytest.approx(9 / 15)


def test_bd_rate_leaves_out_what_is_near_lossless():
    extended = [*scaled(ANCHOR, 0.5), (1e9, 71.0), (2e9, None)]
    delta = compare.bd_rate(ANCHOR, extended)
    assert delta.percent == pytest.approx(-50) and delta.excluded == 2


def test_bd_rate_says_why_there_is_none_or_doubt():
    assert "3 points up to 60 dB, 4 are needed" in compare.bd_rate(ANCHOR, ANCHOR[1:]).why
    assert "share no PSNR" in compare.bd_rate(ANCHOR, [(bits, d + 14) for bits, d in ANCHOR]).why
    assert "same PSNR" in compare.bd_rate(ANCHOR, [*ANCHOR, (5.0, DECIBELS[0])]).why
    little = compare.bd_rate(ANCHOR, [(bits, d + 9) for bits, d in ANCHOR])
    assert little.percent is not None and "share 18 %" in little.doubt
    disagreeing = dataclasses.replace(compare.bd_rate(ANCHOR, ANCHOR), akima=3.0)
    assert "Akima's interpolation gives +3.0 %" in disagreeing.doubt


def test_psnr():
    plane = np.zeros((4, 6), np.uint8)
    assert compare.psnr(plane, plane) is None
    assert compare.psnr(plane, plane + np.uint8(5)) == pytest.approx(20 * math.log10(255 / 5))
    assert compare.psnr(plane, plane + np.uint8(255)) == 0
    with pytest.raises(ValueError, match=r"source's shape \(4, 6\), got \(6, 4\)"):
        compare.psnr(plane, plane.T)
    assert compare.weighted_psnr([40.0, 44.0, 48.0]) == (6 * 40 + 44 + 48) / 8
    assert compare.weighted_psnr([40.0]) == 40 and compare.weighted_psnr([40.0, None, 48.0]) is None


def test_absent_peers_are_named(monkeypatch):
    monkeypatch.setattr(routes.shutil, "which", lambda name: None)
    found, absent = compare.choose(["off"], compare.PEERS, "420", "fast")
    assert absent["kvazaar"] == "kvazaar is not on PATH"
    assert absent["libaom-screen"] == "aomenc is not on PATH; ffmpeg is not on PATH"
    names = [contestant.name for contestant in found]
    assert names[0] == "off" and {*names, *absent} == {"off", *compare.PEERS}
    monkeypatch.setattr(contestants.Library, "absent", lambda self: f"PyAV has no encoder {self.codec}")
    _, absent = compare.choose([], ["x265-slow"], "420", "fast")
    assert absent == {"x265-slow": "x265 is not on PATH; PyAV has no encoder libx265"}


def test_peers_without_the_chroma_format_are_named():
    _, absent = compare.choose([], ["svt-av1", "kvazaar"], "444", "fast")
    assert "4:4:4" in absent["svt-av1"] and absent.keys() == {"svt-av1", "kvazaar"}


def test_the_program_and_the_library_are_asked_for_the_same():
    program, library = contestants._x265("veryslow", "tskip")
    asked = dict(part.split("=") for part in dict(library.options)["x265-params"].split(":"))
    words = program.arguments.split()
    for name in ("keyint", "ipratio", "aq-mode", "qp", "pools", "frame-threads"):
        assert words[words.index(f"--{name}") + 1] == asked[name]
    assert asked["tskip"] == "1" and "--tskip" in words and asked["info"] == "0" and "--no-info" in words


def test_levels_of_av1():
    av1, hevc = (contestants.Contestant("", contestants.Ours("off", "fast"), scale=scale) for scale in ("av1", "qp"))
    assert [av1.level(qp) for qp in (0, 22, 37, 51)] == [0, 20, 50, 63] and hevc.level(37) == 37


@pytest.mark.parametrize("chroma", compare.CHROMA)
def test_points_are_those_of_the_stream(chroma):
    source = compare.make_source("screen", screen(64, 64), chroma)
    chosen, _ = compare.choose(["off", "explicit", "sad", "boundary"], ["x265-slow"], chroma, "fast")
    found = list(compare.measure([source], chosen, [30], [], jobs=1))
    assert [point.contestant for point in found] == [contestant.name for contestant in chosen]
    for point, contestant in zip(found, chosen, strict=True):
        stream, _ = contestant.route.encode(source.planes, chroma, 30)
        assert point.bits == 8 * len(stream) and point.level == 30 and (point.width, point.height) == (64, 64)
        assert len(point.psnr) == len(source.planes) and point.psnr_y > 25
    again = compare.missing([source], chosen, [30, 31], found)
    assert [(contestant.name, qp) for contestant, _, qp in again] == [(c.name, 31) for c in chosen]
    older = [dataclasses.replace(point, version="older") for point in found]
    assert len(compare.missing([source], chosen, [30], older)) == len(chosen)


@pytest.mark.parametrize("name", compare.PEERS)
def test_every_way_to_a_peer_that_is_there(name):
    present = [route for route in contestants._PEERS[name][0] if route.absent() is None]
    if not present:
        pytest.skip(compare.choose([], [name], "420", "fast")[1][name])
    source = compare.make_source("screen", screen(96, 64), "420")
    for route in present:
        contestant = contestants.Contestant(name, route, scale=contestants._PEERS[name][2])
        fine, coarse = (points.measure_point(contestant, source, qp) for qp in (22, 37))
        assert fine.bits > coarse.bits > 0 and fine.psnr_y > 40 and fine.psnr_y > coarse.psnr_y + 5
        assert fine.version and fine.seconds > 0 and "{q}" in fine.settings


def test_screen_tools_are_used():
    page = np.full((64, 128, 3), 255, np.uint8)
    glyph = np.random.default_rng(1).random((8, 8, 1)) < 0.5
    page[8:56, 8:120] = np.where(np.tile(glyph, (6, 14, 1)), (20, 40, 90), (250, 250, 240))
    source = compare.make_source("page", page, "444")
    found, absent = compare.choose([], ["libaom", "libaom-screen"], "444", "fast")
    if absent:
        pytest.skip(absent["libaom"])
    plain, screens = (points.measure_point(contestant, source, 27) for contestant in found)
    assert screens.bits < 0.5 * plain.bits


def test_a_failing_encoder_is_recorded():
    source = compare.make_source("screen", screen(16, 16), "420")
    for name, arguments, why in (
        ("false", "{input}", "false ended with 1: nothing said"),
        ("cp", "{input} {output}", "decoder hevc"),
        ("ls", "/nonexistent-{q}", "ls ended with 2: .*nonexistent-30"),
    ):
        program = routes.Program(name, arguments, "--version", r"(\S+)", "hevc")
        failure = points.measure_point(contestants.Contestant("x265-slow", program), source, 30)
        assert (failure.image, failure.contestant, failure.qp) == ("screen", "x265-slow", 30)
        assert re.search(why, failure.why) and "\n" not in failure.why


def test_where_nearest_was_chosen(tmp_path):
    image = screen(96, 64)
    stream = hevc.encode(image, nearest="explicit", preset="best", qp=27)
    found = hevc.inspect(stream)
    assert [(unit.name, unit.picture) for unit in found.units[3:5]] == [
        ("NEAREST_PARAMETERS", None),
        ("NEAREST_SLICE", 0),
    ]
    blocks = found.pictures[0][1].prediction_blocks()
    covered = np.zeros((64, 96), int)
    for block in blocks:
        covered[block["y"] : block["y"] + block["size"], block["x"] : block["x"] + block["size"]] += 1
    assert (covered == 1).all() and {4, 8} <= {*blocks["size"]}
    assert blocks["nearest"].any() and not blocks["nearest"].all()
    assert not (blocks["nearest"] & np.isin(blocks["mode"], (0, 1, 2, 10, 18, 26, 34))).any()
    plain = hevc.inspect(hevc.encode(image, preset="best", qp=27)).pictures[0][1].prediction_blocks()
    assert not plain["nearest"].any()
    (tmp_path / "nearest.hevc").write_bytes(stream)
    result = CliRunner().invoke(app, ["hevc", "info", str(tmp_path / "nearest.hevc")])
    assert result.exit_code == 0 and "1 NEAREST_SLICE" in result.stdout


def test_tables_from_json(tmp_path):
    known = [
        compare.Point(
            image, image, 64, 48, "420", name, f"{name} {{q}}", "1", qp, qp, round(bits * factor), 3 * (d,), 0.5
        )
        for image in ("code", "photo")
        for name, factor in (("off", 0.8), ("explicit", 0.76), ("x265-slow", 1.0))
        for qp, (bits, d) in zip((37, 32, 27, 22), ANCHOR, strict=True)
    ]
    failures = [compare.Failure("photo", "x265-slow", 22, "x265 ended with 1: no")]
    kept = compare.Results(known, failures, {"kvazaar": "kvazaar is not on PATH"}, {"cpu": "a CPU", "date": "today"})
    compare.save(kept, tmp_path / "points.json")
    results = compare.load(tmp_path / "points.json")
    assert sorted(results.points, key=repr) == sorted(known, key=repr) and results.failures == failures
    text = compare.markdown(results)
    assert "| image | flexor, explicit |" in text and "| code | −5.0 / −5.0 |" in text
    assert "| mean | **−20.0** / −20.0 | **−24.0** / −24.0 |" in text
    assert "kvazaar placebo absent: kvazaar is not on PATH" in text and "QP 22: x265 ended with 1: no" in text
    newer = dataclasses.replace(known[0], bits=7, version="2")
    results.add(newer)
    assert len(results.points) == len(known) and newer in results.points


def test_compare(tmp_path, picture):
    report, kept = tmp_path / "out" / "report.html", tmp_path / "points.json"
    arguments = (picture, "--report", report, "--json", kept, "--preset", "fast", "--peers", "x265-slow,kvazaar")
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert "BD-rate over x265 slow" in result.stdout and "flexor, explicit" in result.stdout
    text = report.read_text()
    assert (
        "http" not in text and not re.search(r"(src|href)=\"(?!data:image/png;base64,|#)", text) and "url(" not in text
    )
    for part in ("4:2:0: BD-rate over flexor, %", "Side by side", "Where nearest was chosen", "prefers-color-scheme"):
        assert part in text
    assert text.count("<img") == 5 and text.count('<svg class="plot"') == 2  # source, three encodings and the map
    found = json.loads(kept.read_text())
    present = {point["contestant"] for point in found["points"]}
    assert {"off", "explicit", "sad", "boundary", "x265-slow"} <= present
    assert len(found["points"]) == 4 * len(present)
    if "kvazaar" not in present:
        assert "kvazaar placebo is left out: kvazaar is not on PATH" in result.stderr and "not on PATH" in text
    assert run(*arguments).exit_code == 0
    assert json.loads(kept.read_text())["points"] == found["points"], "nothing is measured twice"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--qp", "22,27,32"], "--qp must list at least 4 different QPs"),
        (["--qp", "22,27,32,37,52"], "--qp must be from 0 to 51"),
        (["--qp", "22,x"], "--qp must be whole numbers"),
        (["--crop", "64"], "--crop must be WxH or WxH"),
        (["--crop", "0x16"], "--crop must be WxH or WxH"),
        (["--crop", "64x48+2+0"], "screen.png is 64x64: --crop 64x48 at 2,0 leaves it"),
        (["--crop", "63x48"], "screen is 63x48, but H.265 needs an even width and height"),
        (["--variants", "off,fast"], "variants must be of off, main, explicit, explicit-edges, sad, boundary, got"),
        (["--peers", "vvenc"], "peers must be of x265-slow"),
        (["--preset", "slow"], "preset must be one of fast, medium, best, got 'slow'"),
        (["--chroma", "411"], "chroma must be one of 400, 420, 422, 444, got '411'"),
        (["--variants", "", "--peers", "none"], "nobody is there to be compared"),
        (["--report", "."], "is a folder"),
    ],
)
def test_refused(picture, arguments, message):
    result = run(picture, *arguments)
    assert result.exit_code == 2 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert message in line
    assert [path.name for path in picture.parent.iterdir()] == ["screen.png"]


def test_refused_files(tmp_path, picture):
    other = tmp_path / "other.json"
    other.write_text('{"family": "deform"}')
    for arguments, message in (
        ([tmp_path / "none.png"], "no such file"),
        ([other], "not an image"),
        ([picture, "--json", other], "is not what flexor hevc compare writes"),
        ([picture, "--json", picture], "is not what flexor hevc compare writes"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2 and message in result.stderr and len(result.stderr.splitlines()) == 1
