# SPDX-License-Identifier: Apache-2.0
"""Picture.to_rgb: matrices, ranges and positions of chroma."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flexor.codec import hevc
from flexor.codec.hevc import Colour, HevcUnsupported, Picture

DATA = Path(__file__).parent / "data" / "hevc"


def picture(planes, chroma, matrix=6, full=True, depth=8, location=0):
    planes = [np.asarray(plane, np.uint8 if depth == 8 else np.uint16) for plane in planes]
    return Picture(planes, chroma, depth, depth, Colour(2, 2, matrix, full), None, None, 0, 0, location)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", ["bt709", "smpte170m", "bt2020nc", "fcc", "smpte240m"])
def test_rgb_as_ffmpeg(matrix, full):
    av = pytest.importorskip("av")
    numbers = {"bt709": 1, "fcc": 4, "smpte170m": 6, "smpte240m": 7, "bt2020nc": 9}
    planes = np.random.default_rng(0).integers(60, 200, (3, 32, 48), dtype=np.uint8)
    frame = av.VideoFrame.from_ndarray(planes, format="yuv444p")
    spaces = av.video.reformatter.Colorspace
    space = {"bt709": spaces.ITU709, "fcc": spaces.FCC, "smpte170m": spaces.ITU601, "smpte240m": spaces.SMPTE240M}
    if matrix not in space:
        frame.colorspace, space[matrix] = 9, 9
    frame.color_range = 2 if full else 1
    want = frame.reformat(format="rgb24", src_colorspace=space[matrix], dst_color_range=2).to_ndarray()
    got = picture(planes, "4:4:4", numbers[matrix], full).to_rgb()
    assert got.dtype == np.uint8 and np.abs(got.astype(int) - want).max() <= 1


def test_rgb_of_the_encoder():
    (p,) = hevc.decode(DATA / "format_rgb.hevc")
    assert p.colour.matrix == 0
    assert np.array_equal(p.to_rgb(), np.stack([p.planes[2], p.planes[0], p.planes[1]], axis=-1))


def test_rgb_of_other_formats():
    grey = np.arange(256).reshape(16, 16)
    assert np.array_equal(picture([grey], "4:0:0", full=False).to_rgb(), np.stack([grey] * 3, axis=-1))
    y, cg, co = np.full((3, 2, 2), 128) + np.array([0, 20, 10])[:, None, None]
    assert picture([y, cg, co], "4:4:4", matrix=8).to_rgb()[0, 0].tolist() == [118, 148, 98]
    ten = picture(np.full((3, 2, 2), 512), "4:4:4", depth=10).to_rgb()
    assert ten.dtype == np.uint16 and ten[0, 0].tolist() == [512, 512, 512]
    limited = picture([np.array([[16, 235]]), [[128, 128]], [[128, 128]]], "4:4:4", full=False)
    assert limited.to_rgb()[0].tolist() == [[0] * 3, [255] * 3]
    unspecified = picture(np.full((3, 2, 2), 90), "4:4:4", matrix=2)
    assert np.array_equal(unspecified.to_rgb(), replace(unspecified, colour=Colour(2, 2, 6, True)).to_rgb())
    with pytest.raises(HevcUnsupported, match="matrix_coeffs 14 is not supported, expected 0"):
        picture(np.zeros((3, 2, 2)), "4:4:4", matrix=14).to_rgb()


@pytest.mark.parametrize(
    ("location", "across", "down"), [(0, 0, 0.5), (1, 0.5, 0.5), (2, 0, 0), (3, 0.5, 0), (4, 0, 1), (5, 0.5, 1)]
)
def test_chroma_locations(location, across, down):
    """A ramp of chroma stays a ramp: Cr of YCgCo goes into red as it is."""
    x, y = np.arange(16), np.arange(16)[:, None]
    cr = 50 + 4 * (2 * x + across) + 2 * (2 * y + down)
    flat = np.full((16, 16), 128)
    p = picture([np.full((32, 32), 100), flat, cr], "4:2:0", matrix=8, location=location)
    want = 100 + 50 + 4 * np.arange(32) + 2 * np.arange(32)[:, None] - 128
    inner = np.s_[2:-2, 2:-2]
    assert np.abs(p.to_rgb()[..., 0].astype(int) - np.clip(want, 0, 255))[inner].max() <= 1
    half = picture([np.full((16, 32), 100), flat, np.broadcast_to(50 + 8 * x, (16, 16))], "4:2:2", matrix=8)
    assert np.abs(half.to_rgb()[5, :-2, 0] - (22.0 + 4 * np.arange(30))).max() <= 1
