# SPDX-License-Identifier: Apache-2.0
"""The `flexor` command: what it prints, writes and refuses."""

import json
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from flexor.cli import align as command
from flexor.cli import pictures
from flexor.cli.app import app
from flexor.cli.main import main
from PIL import Image
from skimage import data
from typer.testing import CliRunner

FILES = {"aligned.png", "alignment.json", "difference.png", "flow.png", "overview.png"}


def frames():
    """Two 96x128 views of one photograph, 3 pixels apart."""
    photograph = data.astronaut()
    return photograph[:96, 160:288], photograph[2:98, 157:285]


@pytest.fixture
def pair(tmp_path):
    paths = [tmp_path / "key.png", tmp_path / "neighbour.png"]
    for path, frame in zip(paths, frames(), strict=True):
        Image.fromarray(frame).save(path)
    return [str(path) for path in paths]


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(tmp_path, *arguments):
    """The one line on stderr of a call that must exit with 2 and leave nothing."""
    before = sorted(tmp_path.iterdir())
    result = run("align", *arguments, "--out", tmp_path / "out")
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert sorted(tmp_path.iterdir()) == before
    (line,) = result.stderr.splitlines()
    return line


def test_align_writes_everything(pair, tmp_path):
    out = tmp_path / "new" / "out"
    result = run("align", *pair, "--out", out, "--iterations", 20)
    assert result.exit_code == 0, result.output
    assert {file.name for file in out.iterdir()} == FILES
    assert [path.name for path in out.parent.iterdir()] == ["out"]

    report = json.loads((out / "alignment.json").read_text())
    assert report["gain_db"] > 3
    assert report["after"]["ssim"] > report["before"]["ssim"]
    assert report["settings"]["iterations"] == 20
    with Image.open(out / "aligned.png") as aligned:
        assert aligned.size == (128, 96)
        error = np.mean((np.asarray(aligned).astype(float) - frames()[0]) ** 2)
    assert report["after"]["psnr_db"] == pytest.approx(10 * np.log10(255**2 / error), abs=0.01)
    assert f"{report['after']['psnr_db']:.2f} dB" in result.stdout


def test_align_replaces_old_results_and_leaves_other_files(pair, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    (out / "alignment.json").write_text("old")
    assert run("align", *pair, "--out", out, "--iterations", 1).exit_code == 0
    assert {file.name for file in out.iterdir()} == FILES | {"notes.txt"}
    assert json.loads((out / "alignment.json").read_text())["size"] == {"width": 128, "height": 96}


def test_align_takes_frames_of_a_clip(tmp_path):
    clip = tmp_path / "clip.mp4"
    with av.open(str(clip), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height = 128, 96
        for frame in frames():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())
    out = tmp_path / "out"
    result = run("align", "--video", clip, "--frames", "0,1", "--out", out, "--quick", "--preview")
    assert result.exit_code == 0, result.output
    report = json.loads((out / "alignment.json").read_text())
    assert (report["key"], report["neighbour"]) == ("clip.mp4[0]", "clip.mp4[1]")
    assert "▀" in result.stdout
    assert refused(tmp_path, "--video", clip, "--frames", "0,7").endswith("has no frame 7, it holds 2")
    assert "two different numbers" in refused(tmp_path, "--video", clip, "--frames", "1,1")
    assert "two numbers such as 0,3" in refused(tmp_path, "--video", clip, "--frames", "1")


def test_align_refuses_bad_frames(pair, tmp_path):
    key, neighbour = pair
    broken, text, small, deep = (tmp_path / name for name in ("broken.png", "text.png", "small.png", "deep.png"))
    broken.write_bytes(Path(key).read_bytes()[:4000])
    text.write_text("not a picture")
    Image.new("RGB", (128, 95)).save(small)
    Image.fromarray(np.zeros((96, 128), np.uint16)).save(deep)
    assert refused(tmp_path, key, tmp_path / "absent.png").endswith("absent.png: no such file")
    assert "text.png: not an image" in refused(tmp_path, key, text)
    assert "broken.png: " in refused(tmp_path, broken, neighbour)
    assert "deep.png: I;16 images are not supported" in refused(tmp_path, key, deep)
    assert "key.png is 128x96 but small.png is 128x95" in refused(tmp_path, key, small)
    assert "at least 32 pixels" in refused(tmp_path, key, neighbour, "--max-size", 40)
    assert "not-a-clip" in refused(tmp_path, "--video", tmp_path / "not-a-clip.mp4")
    assert "text.png" in refused(tmp_path, "--video", text)
    assert "not both" in refused(tmp_path, key, "--video", text)
    assert "give two images" in refused(tmp_path, key)
    assert "--device tpu" in refused(tmp_path, key, neighbour, "--device", "tpu")


def test_align_that_fails_leaves_nothing(pair, tmp_path, monkeypatch):
    def disk_full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(command, "_write_pictures", disk_full)
    before = sorted(tmp_path.iterdir())
    result = run("align", *pair, "--out", tmp_path / "out", "--iterations", 1)
    assert result.exit_code == 2
    assert result.stderr.endswith("No space left on device\n")
    assert sorted(tmp_path.iterdir()) == before


def test_align_of_equal_frames(pair, tmp_path):
    result = run("align", pair[0], pair[0], "--out", tmp_path / "out", "--iterations", 1)
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "out" / "alignment.json").read_text())
    assert report["before"] == {"psnr_db": None, "ssim": 1.0, "psnr_db_held_out": None}


def test_info_shows_backends():
    result = run("info")
    assert result.exit_code == 0
    assert "cpu: can run" in result.stdout
    assert json.loads(run("info", "--json").stdout)["flexor"]


def test_bench_refuses_an_unknown_family():
    result = run("bench", "knitting")
    assert result.exit_code == 2
    families = "deform, warp, dynamic, match, grid, sparse, intra, hevc, hevc_encode, pose"
    assert f"family must be one of {families}, got knitting" in result.stderr


@pytest.mark.parametrize("name", ["info", "align", "bench"])
def test_help(name):
    result = run(name, "--help")
    assert result.exit_code == 0
    assert name == "info" or f"flexor {name} " in result.stdout


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "flexor.cli.app")
    monkeypatch.setitem(sys.modules, "typer", None)
    with pytest.raises(SystemExit, match="needs the package typer: pip install 'flexor"):
        main()


def test_the_installed_command():
    done = subprocess.run([sys.executable, "-m", "flexor.cli.main", "info"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "backends" in done.stdout


def test_flow_colours():
    """Still is white; right, down, left and up are the wheel's red, yellow, cyan and blue-violet."""
    flow = np.array([[[0, 2, 0, -2, 0]], [[0, 0, 2, 0, -2]]], np.float32)
    still, right, down, left, up = pictures.flow_to_colour(flow, 2)[0].tolist()
    assert still == [255, 255, 255]
    assert right == [255, 0, 0]
    assert down[0] == 255 and down[1] > 200 and down[2] == 0
    assert left[0] == 0 and left[1] > 150 and left[2] == 255
    assert up[2] == 255 and up[1] == 0
