# SPDX-License-Identifier: Apache-2.0
"""`flexor hevc encode`: what it reads, writes and refuses."""

from fractions import Fraction

import av
import hevc_oracle as oracle
import numpy as np
import pytest
from flexor.codec import hevc
from PIL import Image
from test_hevc_cli import refused, run, written


def picture(seed=0, width=48, height=32):
    return (255 * oracle.card(width, height, seed)).astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Three PNG files, the second in another mode, and what is no image."""
    (tmp_path / "in").mkdir()
    for i in range(3):
        image = Image.fromarray(picture(i))
        (image.convert("RGBA") if i == 1 else image).save(tmp_path / "in" / f"{i}.png")
    (tmp_path / "in" / "notes.txt").write_text("no image")
    return tmp_path / "in"


def video(path, codec, pixel_format, frames, rate=Fraction(30000, 1001)):
    with av.open(path, "w") as file:
        stream = file.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixel_format
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format=pixel_format)))
        file.mux(stream.encode(None))


def test_an_image(tmp_path):
    Image.fromarray(picture()).save(tmp_path / "in.png")
    line = written("encode", tmp_path / "in.png", tmp_path / "out.hevc", "--qp", 20, "--chroma", 444, "--threads", 1)
    stream = (tmp_path / "out.hevc").read_bytes()
    assert stream == hevc.encode(picture(), qp=20, chroma="444")
    assert line.startswith(f"out.hevc: 1 picture of 48x32, 4:4:4, 8 bit; QP 20; {len(stream):,} bytes, ")
    assert "pictures a second" in line
    written("encode", tmp_path / "in.png", tmp_path / "out.265", "--chroma", "rgb", "--lossless", "--preset", "fast")
    assert np.array_equal(hevc.decode(tmp_path / "out.265")[0].to_rgb(), picture())


def test_an_image_lies_as_its_camera_was_held(tmp_path):
    image = Image.fromarray(picture())
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "in.png", exif=exif)
    written("encode", tmp_path / "in.png", tmp_path / "out.hevc", "--chroma", "rgb", "--lossless")
    assert np.array_equal(hevc.decode(tmp_path / "out.hevc")[0].to_rgb(), np.rot90(picture(), -1))


def test_more_than_8_bits(tmp_path):
    deep = (65535 * oracle.card(48, 32)).astype(np.uint16)
    Image.fromarray(deep[..., 0]).save(tmp_path / "grey.png")
    written("encode", tmp_path / "grey.png", tmp_path / "grey.hevc", "--chroma", 400, "--bit-depth", 10, "--lossless")
    (found,) = hevc.decode(tmp_path / "grey.hevc")
    assert np.abs(found.planes[0] - deep[..., 0] * (1023 / 65535)).max() <= 0.5
    with av.open(tmp_path / "rgb.png", "w") as file:
        stream = file.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "rgb48be"
        file.mux(stream.encode(av.VideoFrame.from_ndarray(deep, format="rgb48le").reformat(format="rgb48be")))
        file.mux(stream.encode(None))
    written("encode", tmp_path / "rgb.png", tmp_path / "rgb.hevc", "--chroma", "rgb", "--bit-depth", 10, "--lossless")
    assert np.abs(hevc.decode(tmp_path / "rgb.hevc")[0].to_rgb() - deep * (1023 / 65535)).max() <= 0.5


@pytest.mark.parametrize("suffix", ["hevc", "mp4", "mov", "mkv"])
def test_a_folder(suffix, folder, tmp_path):
    out = tmp_path / f"out.{suffix}"
    written("encode", folder, out, "--chroma", "rgb", "--lossless", "--preset", "fast", "--fps", 12)
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["in", out.name]
    pictures = hevc.decode(out)
    assert [found.hash for found in pictures] == ["md5"] * 3
    for i, found in enumerate(pictures):
        assert np.array_equal(found.to_rgb(), picture(i))
    with av.open(out) as file:  # as FFmpeg's libraries see it
        stream = file.streams.video[0]
        if suffix != "hevc":  # whose rate FFmpeg's demuxer does not read
            assert stream.average_rate == 12
        if suffix in ("mp4", "mov"):
            assert stream.codec_tag == "hvc1"
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(stream)]
    assert all(np.array_equal(frame, picture(i)) for i, frame in enumerate(frames)) and len(frames) == 3


@pytest.mark.parametrize(
    ("pixel_format", "options"),
    [
        ("yuv420p", ["--chroma", 420]),
        ("yuv422p10le", ["--chroma", 422, "--bit-depth", 10]),
        ("yuv444p", ["--chroma", 444]),
    ],
)
def test_planes_of_a_video_stay_as_they_are(pixel_format, options, tmp_path):
    video(tmp_path / "in.mkv", "ffv1", pixel_format, [picture(i) for i in range(3)])
    with av.open(tmp_path / "in.mkv") as file:
        frames = list(file.decode(video=0))
    written("encode", tmp_path / "in.mkv", tmp_path / "out.mp4", *options, "--lossless", "--frames", 2)
    with av.open(tmp_path / "out.mp4") as file:
        assert file.streams.video[0].average_rate == Fraction(30000, 1001)
        found = list(file.decode(video=0))
    assert len(found) == 2
    for frame, wanted in zip(found, frames, strict=False):
        assert frame.format.name == pixel_format
        assert np.array_equal(frame.to_ndarray(), wanted.to_ndarray())


def test_other_videos(tmp_path):
    """RGB is taken as images are, planes of another format are converted, a moving GIF is a video."""
    frames = [picture(i) for i in range(2)]
    video(tmp_path / "rgb.mkv", "ffv1", "bgr0", frames)
    written("encode", tmp_path / "rgb.mkv", tmp_path / "rgb.hevc", "--chroma", "rgb", "--lossless")
    assert all(
        np.array_equal(found.to_rgb(), frame)
        for found, frame in zip(hevc.decode(tmp_path / "rgb.hevc"), frames, strict=True)
    )
    written("encode", tmp_path / "rgb.mkv", tmp_path / "grey.hevc", "--chroma", 400)
    assert [found.chroma for found in hevc.decode(tmp_path / "grey.hevc")] == ["4:0:0"] * 2
    video(tmp_path / "yuv.mkv", "ffv1", "yuv420p", frames)
    written("encode", tmp_path / "yuv.mkv", tmp_path / "deep.hevc", "--chroma", 444, "--bit-depth", 10, "--qp", 10)
    for found, frame in zip(hevc.decode(tmp_path / "deep.hevc"), frames, strict=True):
        assert (found.chroma, found.bit_depth) == ("4:4:4", 10)
        assert np.abs((found.to_rgb() >> 2).astype(float) - frame).mean() < 16
    first, second = map(Image.fromarray, frames)
    first.save(tmp_path / "in.gif", save_all=True, append_images=[second])
    written("encode", tmp_path / "in.gif", tmp_path / "gif.hevc")
    assert len(hevc.decode(tmp_path / "gif.hevc")) == 2


def test_nearest(folder, tmp_path):
    written("encode", folder, tmp_path / "out.hevc", "--nearest", "explicit", "--preset", "fast")
    assert [found.hash for found in hevc.decode(tmp_path / "out.hevc")] == ["md5"] * 3
    line = refused(tmp_path, "encode", folder, tmp_path / "out.mp4", "--nearest", "sad")
    assert "out.mp4: containers carry no streams with --nearest sad; write .hevc" in line


def test_fewer_frames_than_asked_for(folder, tmp_path):
    result = run("encode", folder, tmp_path / "out.hevc", "--frames", 9, "--preset", "fast")
    assert result.exit_code == 0 and "has 3 pictures, not 9" in result.stderr.replace("\n", " ")


def test_refusals(folder, tmp_path):
    image, out = folder / "0.png", tmp_path / "out.hevc"
    Image.fromarray(picture(0, 31, 17)).save(tmp_path / "odd.png")
    Image.new("RGBA", (16, 16)).save(tmp_path / "glass.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.png").write_bytes(image.read_bytes()[:200])
    Image.fromarray(picture(0, 32, 48)).save(folder / "3.png")
    for arguments, message in (
        (["nosuch.png", out], "nosuch.png: no such file"),
        ([tmp_path / "empty", out], "empty: no images in this folder"),
        ([folder / "notes.txt", out], "notes.txt: neither an image nor a video that can be read"),
        ([tmp_path / "broken.png", out], "broken.png: "),
        ([tmp_path / "odd.png", out], "31x17, but H.265 needs an even width and height for chroma '420': use '444'"),
        ([tmp_path / "glass.png", out], "has transparent pixels"),
        ([folder, out], "picture 3 is 32x48, but picture 0 is 48x32"),
        ([folder, tmp_path / "out.mp4", "--preset", "fast"], "picture 3 is 32x48, but picture 0 is 48x32"),
        ([image, folder], "is a folder: name a file in it"),
        ([image, tmp_path / "out.heic"], "no library that flexor uses writes HEIF; write .hevc or .mp4"),
        ([image, tmp_path / "out.png"], "must end in one of .hevc, "),
        ([image, tmp_path / "none" / "out.hevc"], "out.hevc cannot be written: No such file or directory"),
        ([image, out, "--preset", "slow"], "preset must be one of fast, medium, best, got slow"),
        ([image, out, "--nearest", "yes"], "nearest must be one of off, explicit"),
        ([image, out, "--chroma", "411"], "chroma must be one of 400, 420, 422, 444, rgb, got '411'"),
        ([image, out, "--qp", "52"], "qp must be 0 to 51, got 52"),
        ([image, out, "--bit-depth", "12"], "bit_depth must be 8 or 10, got 12"),
    ):
        assert message in refused(tmp_path, "encode", *arguments)
