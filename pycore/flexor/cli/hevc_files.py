# SPDX-License-Identifier: Apache-2.0
"""The files that `flexor hevc decode` writes: .png, .yuv and .y4m, whole or not at all."""

from __future__ import annotations

import re
import struct
import tempfile
import zlib
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np
from numpy.typing import NDArray

from ..codec.hevc import Picture

SUFFIXES = (".png", ".yuv", ".y4m")
NUMBER = re.compile(r"%0?\d*d")
# Of YUV4MPEG2's C parameter, before the bit depth; 4:2:0 by the place of its chroma samples (H.265 figure E.1).
Y4M_CHROMA = {"4:0:0": "mono", "4:2:2": "422", "4:4:4": "444"}
Y4M_420 = {0: "420mpeg2", 1: "420jpeg", 2: "420paldv"}


class OutputError(ValueError):
    """What was decoded does not fit the file that was asked for."""


class Output(ABC):
    """Takes pictures one after the other; the file is there when the `with` ends well, and nothing when it does not."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files: list[Path] = []  # written

    def __enter__(self) -> Output:
        try:  # beside the result, so that moving it there is one step
            self._folder = tempfile.TemporaryDirectory(prefix=f".{self.path.name[:40]}.", dir=self.path.parent)
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written: {error.strerror}") from error
        self.partial = Path(self._folder.name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
            if kind is None:
                for part in sorted(self.partial.iterdir()):
                    self.files.append(part.replace(self.path.parent / part.name))
        finally:
            self._folder.cleanup()

    @abstractmethod
    def write(self, picture: Picture) -> None:
        """Raises: OutputError for a picture that the format cannot hold beside those before."""

    @abstractmethod
    def close(self) -> None:
        """What is open."""


class Raw(Output):
    """Planes one after the other; samples of more than 8 bits are little-endian pairs of bytes."""

    def __enter__(self) -> Raw:
        super().__enter__()
        self._file: IO[bytes] = (self.partial / self.path.name).open("wb")
        self._first: tuple | None = None
        return self

    def write(self, picture: Picture) -> None:
        shape = (picture.planes[0].shape, picture.chroma, picture.bit_depth, picture.bit_depth_chroma)
        if self._first is None:
            self._first = shape
            self._file.write(self._header(picture))
        if shape != self._first:
            (height, width), chroma, depth, _ = shape
            raise OutputError(
                f"{self.path.name} cannot hold pictures of several formats, and one of {width}x{height}, {chroma}, "
                f"{depth} bit follows; use .png"
            )
        self._file.write(self._picture_header())
        for plane in picture.planes:
            little = plane if plane.dtype == np.uint8 else plane.astype("<u2", copy=False)
            self._file.write(np.ascontiguousarray(little).data)

    def _header(self, picture: Picture) -> bytes:
        return b""

    def _picture_header(self) -> bytes:
        return b""

    def close(self) -> None:
        self._file.close()


class Y4m(Raw):
    """YUV4MPEG2, whose header says size, chroma format and bit depth."""

    def _header(self, picture: Picture) -> bytes:
        height, width = picture.planes[0].shape
        depth = picture.bit_depth
        if picture.chroma != "4:0:0" and picture.bit_depth_chroma != depth:
            raise OutputError(
                f".y4m has one bit depth, and luma has {depth}, chroma {picture.bit_depth_chroma}; use .yuv or .png"
            )
        chroma = Y4M_CHROMA.get(picture.chroma) or Y4M_420.get(picture.chroma_location, "420mpeg2")
        if depth > 8:  # names of the place are for 8 bits only
            chroma = f"{chroma[:3]}p{depth}" if picture.chroma != "4:0:0" else f"mono{depth}"
        levels = "FULL" if picture.colour.full_range else "LIMITED"
        width_to_height = ":".join(map(str, picture.sample_aspect_ratio))
        return f"YUV4MPEG2 W{width} H{height} F25:1 Ip A{width_to_height} C{chroma} XCOLORRANGE={levels}\n".encode()

    def _picture_header(self) -> bytes:
        return b"FRAME\n"


class Png(Output):
    """One picture, or with %d in the name each in a file of its own, from 0."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._numbered = NUMBER.search(path.name) is not None
        self._count = 0

    def write(self, picture: Picture) -> None:
        if self._count and not self._numbered:
            raise OutputError(
                f"{self.path.name} holds one picture, and there are more: number them with %d, "
                f"{self.path.stem}_%03d.png, or take the first with --frames 1"
            )
        name = NUMBER.sub(lambda number: number.group() % self._count, self.path.name)
        (self.partial / name).write_bytes(png(picture.to_rgb(), max(picture.bit_depth, picture.bit_depth_chroma)))
        self._count += 1

    def close(self) -> None:
        pass


def output(path: Path) -> Output:
    """By the suffix of `path`. Raises: OutputError for another suffix."""
    kinds: dict[str, type[Output]] = dict(zip(SUFFIXES, (Png, Raw, Y4m), strict=True))
    if path.suffix.lower() not in kinds:
        raise OutputError(f"{path.name}: the name must end in one of {', '.join(SUFFIXES)}")
    return kinds[path.suffix.lower()](path)


def png(rgb: NDArray, bit_depth: int) -> bytes:
    """A PNG of (height, width, 3), 8 bits a sample, or 16 with `bit_depth` significant ones.

    Pillow writes no colour of 16 bits. Each row is stored as its difference from the one above.
    """
    height, width, _ = rgb.shape
    if bit_depth > 8:
        rgb = (rgb << (16 - bit_depth) | rgb >> (2 * bit_depth - 16)).astype(">u2")  # the greatest value is 65535
    rows = np.ascontiguousarray(rgb).view(np.uint8).reshape(height, -1)
    filtered = np.empty((height, rows.shape[1] + 1), np.uint8)
    filtered[:, 0] = 2  # "up"
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, 8 * rgb.itemsize, 2, 0, 0, 0)
    parts = [(b"IHDR", header)]
    if bit_depth > 8:
        parts.append((b"sBIT", bytes([bit_depth] * 3)))
    parts += [(b"IDAT", zlib.compress(filtered.data, 6)), (b"IEND", b"")]
    chunks = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
