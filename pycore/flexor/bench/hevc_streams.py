# SPDX-License-Identifier: Apache-2.0
"""HEVC streams to decode: pictures of 1920x1080, encoded on the spot by x265, every picture intra."""

from __future__ import annotations

import argparse
import functools
import inspect
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flexor.codec.hevc.planes import Format, to_planes

WIDTH, HEIGHT = 1920, 1080
PICTURES = 12
STEP = 24  # pixels that a picture is moved against the one before
PHOTOGRAPH, CODE = "photo", "code"  # a photograph that scikit-image ships; a page of program text


@dataclass(frozen=True)
class Coded:
    """How a picture is encoded; `picture` is PHOTOGRAPH, CODE or a path."""

    picture: str
    qp: int
    pixel_format: str = "yuv420p"
    wavefront: bool = True

    @property
    def name(self) -> str:
        sampling = ":".join(self.pixel_format[3:6])
        depth = 10 if self.pixel_format.endswith("10le") else 8
        rows = "WPP" if self.wavefront else "no WPP"
        return f"{Path(self.picture).stem} QP {self.qp}, {sampling} {depth} bit, {rows}"

    @property
    def samples(self) -> int:
        """Of all pictures and planes."""
        return PICTURES * WIDTH * HEIGHT * (6 if self.pixel_format.startswith("yuv444") else 3) // 2


@functools.cache
def encode(coded: Coded) -> bytes:
    """The stream, Annex B, without hash SEI. Raises: ImportError without PyAV, OSError for an unreadable picture."""
    import av

    encoder = av.CodecContext.create("libx265", "w")
    encoder.width, encoder.height, encoder.pix_fmt = WIDTH, HEIGHT, coded.pixel_format
    encoder.time_base = Fraction(1, 25)
    rows = int(coded.wavefront)
    parameters = f"keyint=1:qp={coded.qp}:ipratio=1:aq-mode=0:wpp={rows}:hash=0:info=0:pools=2:log-level=none"
    encoder.options = {"preset": "medium", "x265-params": parameters}
    picture, packets = load(coded.picture), []
    for number in range(PICTURES):
        frame = av.VideoFrame.from_ndarray(np.roll(picture, STEP * number, 1), "rgb24")
        packets += encoder.encode(frame.reformat(format=coded.pixel_format))
    packets += encoder.encode(None)
    return b"".join(map(bytes, packets))


@functools.cache
def load(picture: str) -> NDArray[np.uint8]:
    """RGB of 1920x1080; smaller pictures are continued by their mirror image."""
    if picture == CODE:
        return _page()
    if picture == PHOTOGRAPH:
        from skimage import data

        rgb = data.coffee()
    else:
        from PIL import Image

        rgb = np.asarray(Image.open(picture).convert("RGB"))
    rgb = rgb[:HEIGHT, :WIDTH]
    return np.pad(rgb, ((0, HEIGHT - rgb.shape[0]), (0, WIDTH - rgb.shape[1]), (0, 0)), "symmetric")


@functools.lru_cache(maxsize=1)
def moving_planes(picture: str, count: int) -> list[tuple[NDArray[np.uint8], ...]]:
    """Y, Cb and Cr of so many pictures, 4:2:0, each moved against the one before."""
    form = Format("420", 8, None)
    return [tuple(to_planes(np.roll(load(picture), STEP * number, 1), form)) for number in range(count)]


def _page() -> NDArray[np.uint8]:
    """The text of a module of the standard library in three columns, its comments and strings in colours."""
    from PIL import Image, ImageDraw, ImageFont

    page = Image.new("RGB", (WIDTH, HEIGHT), (250, 250, 248))
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    lines = inspect.getsource(argparse).splitlines()[200:]
    for column in range(3):
        for row in range(63):
            text = lines[63 * column + row][:86]
            bare = text.lstrip()
            colour = (0, 128, 60) if bare[:1] == "#" else (170, 30, 30) if bare[:1] in "'\"" and bare else (30, 30, 90)
            pen.text((12 + 640 * column, 4 + 17 * row), text, colour, font)
    return np.asarray(page)
