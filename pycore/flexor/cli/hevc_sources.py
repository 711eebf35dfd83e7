# SPDX-License-Identifier: Apache-2.0
"""The pictures that `flexor hevc encode` reads: an image, a folder of them, or a video."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from ..codec.hevc import Colour
from ..codec.hevc.planes import SourcePicture

# FFmpeg's planar formats by what they are coded as; those of full range have a second name for it.
PLANAR = {
    ("400", 8): ("gray",), ("400", 10): ("gray10le",),
    ("420", 8): ("yuv420p", "yuvj420p"), ("420", 10): ("yuv420p10le",),
    ("422", 8): ("yuv422p", "yuvj422p"), ("422", 10): ("yuv422p10le",),
    ("444", 8): ("yuv444p", "yuvj444p"), ("444", 10): ("yuv444p10le",),
}  # fmt: skip
FULL_RANGE, GBR, UNSPECIFIED = 2, 0, 2  # AVCOL_RANGE_JPEG; code points of H.273


class SourceError(ValueError):
    """A file that holds no pictures; the message is one line meant for the user."""


@dataclass
class Pictures:
    """Pictures as they are read, and what is known of them before."""

    pictures: Iterator[SourcePicture]
    count: int | None = None
    fps: Fraction | None = None
    colour: Colour | None = None  # of planes; images say theirs by being images


def open_pictures(path: Path, chroma: str, bit_depth: int) -> Pictures:
    """The pictures of an image, a folder or a video, planes where a video has them as they are to be coded.

    Raises: SourceError, OSError.
    """
    if not path.exists():
        raise SourceError(f"{path}: no such file")
    if not path.is_dir():
        image = _open_image(path)
        if image is None:
            return _open_video(path, chroma, bit_depth)
        return Pictures(iter([image]), 1)
    suffixes = Image.registered_extensions()
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in suffixes and file.is_file())
    if not files:
        raise SourceError(f"{path}: no images in this folder")
    return Pictures(_images(files, bit_depth), len(files))


def _images(files: list[Path], bit_depth: int) -> Iterator[SourcePicture]:
    for file in files:
        image = _open_image(file)
        yield image if image is not None else next(_open_video(file, "rgb", bit_depth).pictures)


def _open_image(path: Path) -> Image.Image | None:
    """An image as it is to be seen; None for what Pillow cannot read in full: moving ones, and more than 8 bits."""
    try:
        with Image.open(path) as image:
            deep = image.mode[0] in "IF" or any("16" in str(tile.args) for tile in image.tile)
            if deep or getattr(image, "n_frames", 1) > 1:
                return None
            image.load()
            return ImageOps.exif_transpose(image)
    except UnidentifiedImageError:
        return None
    except (SyntaxError, Image.DecompressionBombError) as error:
        raise SourceError(f"{path}: {str(error).splitlines()[0]}") from None
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror or error}") from None


def _open_video(path: Path, chroma: str, bit_depth: int) -> Pictures:
    try:
        clip = av.open(path)
        stream = clip.streams.video[0] if clip.streams.video else None
    except av.FFmpegError as error:
        raise SourceError(f"{path}: neither an image nor a video that can be read ({error.strerror})") from None
    if stream is None:
        clip.close()
        raise SourceError(f"{path}: holds no video")
    stream.thread_type = "AUTO"
    format, context = stream.format, stream.codec_context
    as_planes = format is not None and not format.is_rgb and format.name != "pal8" and chroma not in ("rgb", "400")
    colour = None
    if as_planes:
        full = int(context.color_range) == FULL_RANGE or "yuvj" in format.name
        matrix = int(context.colorspace)
        colour = Colour(
            int(context.color_primaries), int(context.color_trc), UNSPECIFIED if matrix == GBR else matrix, full
        )
    pictures = _frames(path, clip, chroma if as_planes else None, bit_depth)
    return Pictures(pictures, stream.frames or None, stream.average_rate, colour)


def _frames(path: Path, clip: Any, chroma: str | None, bit_depth: int) -> Iterator[SourcePicture]:
    """Planes in `chroma`, or RGB or grey images."""
    with clip:
        try:
            for frame in clip.decode(video=0):
                yield _image(frame, bit_depth) if chroma is None else _planes(frame, chroma, bit_depth)
        except av.FFmpegError as error:
            raise SourceError(f"{path}: {error.strerror}") from None


def _planes(frame: Any, chroma: str, bit_depth: int) -> tuple[NDArray[Any], ...]:
    names = PLANAR[chroma, bit_depth]
    if frame.format.name not in names:
        frame = frame.reformat(format=names[0], src_color_range=frame.color_range, dst_color_range=frame.color_range)
    return tuple(_samples(plane, bit_depth) for plane in frame.planes)


def _image(frame: Any, bit_depth: int) -> NDArray[Any]:
    """(H, W, 3) of RGB, or (H, W) of grey; more than 8 bits become `bit_depth`."""
    grey = frame.format.name.startswith("gray")
    deep = bit_depth > 8 and max(component.bits for component in frame.format.components) > 8
    if not deep:
        return frame.to_ndarray(format="gray" if grey else "rgb24")
    wide = frame.to_ndarray(format="gray16le" if grey else "rgb48le").astype(np.uint16, copy=False)
    # From a greatest sample of 65535 to that of the depth, rounded to nearest.
    most = (1 << bit_depth) - 1
    return ((wide.astype(np.uint32) * most + 32767) // 65535).astype(np.uint16)


def _samples(plane: Any, bit_depth: int) -> NDArray[Any]:
    dtype = np.dtype(np.uint8 if bit_depth == 8 else "<u2")
    rows = np.frombuffer(plane, dtype).reshape(plane.height, plane.line_size // dtype.itemsize)
    return rows[:, : plane.width]
