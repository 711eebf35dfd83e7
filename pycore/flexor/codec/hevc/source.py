# SPDX-License-Identifier: Apache-2.0
"""Where HEVC comes from: byte streams (annex B), NAL units after their lengths, and containers. Told by content."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from .errors import HevcError
from .heif import HEIF_BRANDS, Grid, read_grid

SourceLike = bytes | bytearray | memoryview | str | os.PathLike[str]

HEAD = 1 << 16  # bytes that tell the form
PIECE = 1 << 20  # bytes read at a time

PARAMETER_SETS_AND_SEI = range(32, 41)  # what a stream may begin with, besides slices

OTHER_FORMATS = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"BM", "a BMP image"),
    (b"II*\0", "a TIFF image"),
    (b"MM\0*", "a TIFF image"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL image"),
    (b"YUV4MPEG2", "uncompressed YUV4MPEG2 video"),
    (b"%PDF", "a PDF document"),
    (b"PK\3\4", "a ZIP archive"),
    (b"\x1f\x8b", "gzip data"),
)
# The first byte after a start code, in streams of other standards.
OTHER_STREAMS = {
    0x67: "H.264",
    0x27: "H.264",
    0x47: "H.264",
    0x09: "H.264",
    0xB3: "MPEG-2",
    0xB0: "MPEG-4",
    0x00: "VVC",
}


@dataclass
class Source:
    """An opened source: `file` is at its beginning."""

    name: str
    file: BinaryIO
    size: int
    form: str  # "annexb", "lengths" or "container"
    length_size: int = 0  # of "lengths"
    grid: Grid | None = None  # of a HEIF still that has one
    hint: str = ""  # what it may be instead of HEVC

    def pieces(self) -> Iterator[bytes]:
        """The bytes, a piece at a time."""
        while piece := self.file.read(PIECE):
            yield piece


def open_source(source: SourceLike) -> Source:
    """Open a file or wrap bytes, and tell the form by content. Raises HevcError, TypeError, OSError."""
    name, file = _open(source)
    try:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        head = file.read(HEAD)
        file.seek(0)
        return _recognise(name, file, size, head)
    except BaseException:
        file.close()
        raise


def _open(source: SourceLike) -> tuple[str, BinaryIO]:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return "the data", io.BytesIO(source)
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(
            f"source must be bytes, a path or a string with a path, got {type(source).__name__}: "
            "read file objects first, source.read()"
        )
    path = Path(source)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory: name a file in it")
    try:
        return str(path), path.open("rb")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except PermissionError:
        raise PermissionError(f"{path} cannot be read: its permissions do not allow it") from None


def _recognise(name: str, file: BinaryIO, size: int, head: bytes) -> Source:
    if not head:
        raise HevcError(f"{name} is empty: expected an HEVC stream or a container with one")
    if _is_container(head):
        still = head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS
        grid = read_grid(file) if still else None
        file.seek(0)
        return Source(name, file, size, "container", grid=grid)
    for magic, what in OTHER_FORMATS:
        if head.startswith(magic):
            raise HevcError(f"{name} is {what}, not HEVC")
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        raise HevcError(f"{name} is a WebP image, not HEVC")
    for length_size in (4, 2, 1):
        if _has_lengths(head, size, length_size):
            return Source(name, file, size, "lengths", length_size)
    start = re.search(rb"\x00\x00\x01(.)", head, re.DOTALL)
    if start is None:
        raise HevcError(
            f"{name} is not HEVC: it begins with {head[:8].hex(' ')}; expected start codes (00 00 01), NAL units after "
            "their lengths, or a container (MP4, MOV, MKV, HEIF, MPEG-TS)"
        )
    other = OTHER_STREAMS.get(start[1][0])
    return Source(name, file, size, "annexb", hint=f"; it looks like {other}" if other else "")


def _is_container(head: bytes) -> bool:
    return (
        head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"styp")
        or head.startswith((b"\x1a\x45\xdf\xa3", b"FLV", b"\0\0\1\xba"))
        or (head.startswith(b"RIFF") and head[8:12] == b"AVI ")
        or (len(head) > 376 and all(head[i * 188] == 0x47 for i in range(3)))
    )


def _has_lengths(head: bytes, size: int, length_size: int) -> bool:
    """Whether lengths lead from unit to unit, to the end of the data, or through two units at least."""
    at = count = 0
    while at + length_size + 2 <= len(head):
        length = int.from_bytes(head[at : at + length_size], "big")
        unit = at + length_size
        kind, layer = head[unit] >> 1, (head[unit] & 1) << 5 | head[unit + 1] >> 3
        if length < 3 or kind > 63 or layer > 0 or head[unit + 1] & 7 == 0:
            return False
        if count == 0 and kind not in PARAMETER_SETS_AND_SEI:
            return False
        at = unit + length
        count += at <= size
    return at == size or count >= 2
