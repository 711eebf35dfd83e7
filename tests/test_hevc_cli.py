# SPDX-License-Identifier: Apache-2.0
"""`flexor hevc`: what it writes, shows and refuses."""

import json
import shutil
from pathlib import Path

import av
import hevc_oracle as oracle
import numpy as np
import pytest
from flexor.cli.app import app
from flexor.cli.hevc_pictures import direction
from flexor.codec import hevc
from PIL import Image
from typer.testing import CliRunner

STREAMS = Path(__file__).parent / "data" / "hevc"
THREE = STREAMS / "pictures_trailing.hevc"
ONE = STREAMS / "transform_tree_depth_4.hevc"


def run(*arguments):
    return CliRunner().invoke(app, ["hevc", *map(str, arguments)], env={"COLUMNS": "100"})


def refused(folder, *arguments):
    """The one line on stderr of a call that must exit with 2 and leave nothing."""
    before = sorted(folder.rglob("*"))
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == "" and sorted(folder.rglob("*")) == before
    (line,) = result.stderr.splitlines()
    return line


def written(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def samples(path):
    """Of a PNG, as it stores them; Pillow reads no colour of 16 bits."""
    with av.open(path) as file:
        frame = next(file.decode(video=0))
        wide = "48" in frame.format.name
        return frame.to_ndarray(format="rgb48le" if wide else "rgb24")


def test_planes_to_yuv(tmp_path):
    for name in ("pictures_trailing", "format_422_10", "format_400_12", "depths_8_and_10"):
        out = tmp_path / f"{name}.yuv"
        assert out.name in written("decode", STREAMS / f"{name}.hevc", out)
        planes = [plane for picture in hevc.decode(STREAMS / f"{name}.hevc") for plane in picture.planes]
        assert out.read_bytes() == b"".join(plane.astype(plane.dtype.newbyteorder("<")).tobytes() for plane in planes)
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".yuv"] * 4


@pytest.mark.parametrize("chroma", ["400", "420", "422", "444"])
@pytest.mark.parametrize("depth", [8, 10, 12])
def test_y4m_is_what_others_read(chroma, depth, tmp_path):
    out = tmp_path / "out.y4m"
    written("decode", STREAMS / f"format_{chroma}_{depth}.hevc", out)
    (picture,) = hevc.decode(STREAMS / f"format_{chroma}_{depth}.hevc")
    with av.open(out) as file:
        (frame,) = file.decode(video=0)
    assert (frame.height, frame.width) == picture.planes[0].shape
    dotted = ":".join(chroma)
    assert frame.format.name == oracle.PIXEL_FORMATS[dotted, depth]
    for plane, wanted in zip(frame.planes, picture.planes, strict=True):
        read = np.frombuffer(memoryview(plane), wanted.dtype).reshape(plane.height, -1)
        assert np.array_equal(read[:, : plane.width], wanted)


def test_y4m_says_what_the_stream_says(tmp_path):
    written("decode", STREAMS / "vui_sei.hevc", tmp_path / "out.y4m")
    header = (tmp_path / "out.y4m").read_bytes().split(b"\n", 1)[0].decode()
    assert "A3:2" in header and "XCOLORRANGE=FULL" in header and "C420paldv" in header


@pytest.mark.parametrize("name", ["format_420_8", "format_rgb", "format_444_12", "format_400_10", "size_9x15_444"])
def test_png(name, tmp_path):
    written("decode", STREAMS / f"{name}.hevc", tmp_path / "out.png")
    (picture,) = hevc.decode(STREAMS / f"{name}.hevc")
    found, expected = samples(tmp_path / "out.png"), picture.to_rgb()
    if picture.bit_depth > 8:
        assert found.max() > 255 and found.dtype == np.uint16
        found = found >> (16 - picture.bit_depth)
    assert np.array_equal(found, expected)


def test_numbered_pngs(tmp_path):
    text = written("decode", THREE, tmp_path / "p%02d.png")
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["p00.png", "p01.png", "p02.png"]
    assert "p00.png .. p02.png: 3 pictures of 72x40, 4:2:0, 8 bit; 3 as their hash says" in text
    assert np.array_equal(samples(tmp_path / "p02.png"), hevc.decode(THREE)[2].to_rgb())


def test_the_first_pictures(tmp_path):
    written("decode", THREE, tmp_path / "out.png", "--frames", 1)
    written("decode", THREE, tmp_path / "out.yuv", "--frames", 2, "--threads", 1)
    assert (tmp_path / "out.yuv").stat().st_size == 2 * 72 * 40 * 3 // 2
    result = run("decode", THREE, tmp_path / "all.yuv", "--frames", 9)
    assert result.exit_code == 0 and "has 3 pictures, not 9" in result.stderr.replace("\n", " ")


@pytest.mark.skipif(oracle.missing("ffmpeg", "libx265") is not None, reason=str(oracle.missing("ffmpeg", "libx265")))
def test_a_still_of_libx265_is_ffmpegs_png(tmp_path):
    """ffmpeg hands libx265 RGB as it is; of 4:2:0 its conversion is another, so that it gets our samples."""
    picture = oracle.card(136, 72)
    for chroma, rgb, between in (("4:4:4", True, "out.png"), ("4:2:0", False, "out.y4m")):
        tags = "colormatrix=gbr:range=full" if rgb else "range=limited"
        planes = oracle.planes_of(picture, chroma, 8, rgb)
        (tmp_path / "still.hevc").write_bytes(oracle.encode(planes, chroma, 8, f"qp=20:{tags}"))
        written("decode", tmp_path / "still.hevc", tmp_path / between)
        for source, out in (("still.hevc", "theirs.png"), (between, "ours.png")):
            oracle.run(["ffmpeg", "-v", "error", "-y", "-i", str(tmp_path / source), str(tmp_path / out)])
        assert np.array_equal(samples(tmp_path / "ours.png"), samples(tmp_path / "theirs.png"))


def test_inter_pictures(tmp_path):
    inter = STREAMS / "inter.hevc"
    line = refused(tmp_path, "decode", inter, tmp_path / "out.yuv")
    assert "inter coded" in line and "--skip-inter leaves inter pictures out" in line and ".pictures" not in line
    assert "1 picture of 72x40" in written("decode", inter, tmp_path / "out.png", "--skip-inter")
    written("decode", inter, tmp_path / "first.png", "--frames", 1)


def test_damaged_pictures(tmp_path):
    data = bytearray(ONE.read_bytes())
    data[len(data) // 2] ^= 0x55
    (tmp_path / "damaged.hevc").write_bytes(data)
    line = refused(tmp_path, "decode", tmp_path / "damaged.hevc", tmp_path / "out.png")
    assert "picture 0 is damaged: " in line and "--keep-damaged" in line
    text = written("decode", tmp_path / "damaged.hevc", tmp_path / "out.png", "--keep-damaged")
    assert "1 damaged" in text and (tmp_path / "out.png").exists()


def test_refusals(tmp_path):
    empty, text, out = tmp_path / "empty.hevc", tmp_path / "text.hevc", tmp_path / "out.yuv"
    empty.touch()
    text.write_text("These are words, and no stream.")
    for arguments, words in (
        ((tmp_path / "absent.hevc", out), "no such file"),
        ((tmp_path, out), "is a directory"),
        ((empty, out), "is empty"),
        ((text, out), "is not HEVC"),
        ((ONE, tmp_path / "out.jpg"), "must end in one of .png, .yuv, .y4m"),
        ((ONE, tmp_path), "is a folder"),
        ((ONE, tmp_path / "nowhere" / "out.png"), "cannot be written"),
        ((THREE, tmp_path / "out.png"), "number them with %d"),
        ((STREAMS / "depths_8_and_10.hevc", tmp_path / "out.y4m"), "one bit depth"),
    ):
        assert words in refused(tmp_path, "decode", *arguments), arguments


def test_pictures_of_two_sizes_are_not_one_file(tmp_path):
    both = tmp_path / "both.hevc"
    both.write_bytes(ONE.read_bytes() + (STREAMS / "size_8x8.hevc").read_bytes())
    assert "several formats" in refused(tmp_path, "decode", both, tmp_path / "out.yuv")
    written("decode", both, tmp_path / "out%d.png")
    assert samples(tmp_path / "out1.png").shape == (8, 8, 3)


def test_an_old_file_outlives_a_failure(tmp_path):
    out = tmp_path / "out.png"
    out.write_bytes(b"old")
    refused(tmp_path, "decode", THREE, out)
    assert out.read_bytes() == b"old"
    written("decode", ONE, out)
    assert samples(out).shape == (40, 72, 3)


def test_info():
    text = written("info", STREAMS / "all_extensions_444_8.hevc")
    assert "1 intra picture of 32x32, 4:4:4, 8 bit" in text
    assert "Format range extensions (to 8 bit, 4:4:4), level 4.1, Main tier" in text
    assert "hash: 1 of 1 checked and right" in text
    for words in ("transform skip", "up to 32x32", "cross-component prediction", "persistent Rice", "deltas on"):
        assert words in text
    assert "syntax elements" in text and "levels" in text and "planar" in text


def test_info_of_every_committed_stream():
    """The tables hold for every tool; what streams are named after is seen to be on."""
    seen = {}
    for path in sorted(STREAMS.glob("*.hevc")):
        report = json.loads(written("info", path, "--json"))
        assert report["pictures"] and report["bits"]["levels"] >= 0
        slices = sum(unit["size"] for unit in report["units"] if unit["picture"] is not None)
        assert sum(report["bits"].values()) / 8 <= slices + 8
        for shares in report["areas"].values():
            assert not shares or sum(shares.values()) == pytest.approx(1) or path.stem.startswith("pcm")
        seen[path.stem] = {tool["name"]: (tool["headers"], tool["used"]) for tool in report["tools"]}
    for stream, tool, headers in (
        ("cross_component", "cross-component prediction", "on"),
        ("transform_skip_32", "transform skip", "on, up to 32x32"),
        ("pcm_depths", "PCM", "on, 8 to 32, 8/8 bit, not filtered"),
        ("qp_delta_lossless", "lossless blocks", "on"),
        ("skip_rotation", "residual rotation", "on"),
        ("implicit_rdpcm", "implicit RDPCM", "on"),
        ("lossless_blocks", "lossless blocks", "on"),
        ("pcm_8", "PCM", "on, 8 to 8, 8/8 bit"),
        ("pcm_unfiltered_444", "PCM", "on, 8 to 32, 8/8 bit, not filtered"),
    ):
        said, used = seen[stream][tool]
        assert said == headers and "%" in used, (stream, said, used)
    for stream, tool, headers in (
        ("tiles_unfiltered", "tiles", "on, 3x2, of their own sizes"),
        ("wavefront", "wavefronts", "on"),
        ("slices", "slices", "6 in the picture"),
        ("scaling_lists_pps", "scaling lists", "on, of the PPS"),
        ("scaling_lists_420", "scaling lists", "on, of the SPS"),
        ("scaling_default", "scaling lists", "on, default"),
        ("chroma_qp_six_lists", "chroma QP offset lists", "on, 6 entries"),
        ("deblocking_offsets_slice", "deblocking", "on, beta -8, tc +10"),
        ("no_deblocking", "deblocking", "off"),
        ("no_sao", "SAO", "off"),
        ("slice_chroma_qp_420", "chroma QP offsets", "Cb +7, Cr -7"),
        ("constrained_intra", "constrained intra prediction", "on"),
        ("no_reference_smoothing", "smoothing of references", "off"),
    ):
        assert seen[stream][tool][0] == headers, (stream, seen[stream][tool])
    assert "to" in seen["qp_delta"]["QP"][1]


def test_headers():
    text = written("info", ONE, "--headers")
    assert "SPS, " in text and "  pic_width_in_luma_samples = 72" in text and "  slice_qp_delta = 6" in text


def test_the_picture_of_blocks(tmp_path):
    out = tmp_path / "blocks.png"
    assert "blocks.png: picture 2" in written("info", THREE, "--picture", out, "--number", 2)
    with Image.open(out) as whole:
        assert whole.mode == "RGB" and whole.width > 72 * 16
    written("info", STREAMS / "pcm_8.hevc", "--picture", out)
    written("info", STREAMS / "lossless_444_extensions.hevc", "--picture", out, "--region", "4,2,8,12")
    with Image.open(out) as part:
        assert np.ptp(np.asarray(part).reshape(-1, 3), 0).min() > 100
    assert [file.name for file in tmp_path.iterdir()] == ["blocks.png"]


def test_lines_point_to_where_blocks_are_predicted_from():
    for mode, (across, down) in {2: (-1, 1), 10: (-1, 0), 18: (-1, -1), 26: (0, -1), 34: (1, -1)}.items():
        length = np.hypot(across, down)
        assert direction(mode) == pytest.approx((across / length, down / length))


def test_info_refuses(tmp_path):
    for arguments, words in (
        ((tmp_path / "absent.hevc",), "no such file"),
        ((ONE, "--picture", tmp_path / "out.jpg"), "must name a .png file"),
        ((ONE, "--picture", tmp_path / "nowhere" / "out.png"), "cannot be written"),
        ((ONE, "--picture", tmp_path / "out.png", "--number", 3), "has 1 intra pictures"),
        ((ONE, "--picture", tmp_path / "out.png", "--region", "1,2,3"), "must be X,Y,WIDTH,HEIGHT"),
        ((ONE, "--picture", tmp_path / "out.png", "--region", "60,0,40,40"), "must lie within the 72x40 picture"),
    ):
        assert words in refused(tmp_path, "info", *arguments), arguments


def test_containers(tmp_path):
    """A stream that ffmpeg puts into a container, which PyAV opens."""
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not installed")
    clip = tmp_path / "clip.mp4"
    oracle.run(["ffmpeg", "-v", "error", "-r", "1", "-i", str(THREE), "-c", "copy", str(clip)])
    written("decode", clip, tmp_path / "clip.yuv")
    written("decode", THREE, tmp_path / "stream.yuv")
    assert (tmp_path / "clip.yuv").read_bytes() == (tmp_path / "stream.yuv").read_bytes()
    assert "3 intra pictures" in written("info", clip)
