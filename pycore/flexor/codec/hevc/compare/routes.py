# SPDX-License-Identifier: Apache-2.0
"""Ways to an encoder: flexor's own, a program on PATH, a library inside PyAV."""

from __future__ import annotations

import hashlib
import os
import re
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .... import _C
from ..decoder import decode
from ..encode import encode
from .quality import Planes

Y4M_CHROMA = {"400": "mono", "420": "420mpeg2", "422": "422", "444": "444"}
PYAV_FORMATS = {"400": "gray", "420": "yuv420p", "422": "yuv422p", "444": "yuv444p"}
LONGEST_WAIT = 3600  # seconds for one picture


class RouteError(RuntimeError):
    """An encoder that is there and does not encode this; the message is one line."""


class Route(Protocol):
    """How an encoder is reached."""

    def absent(self) -> str | None:
        """Why it cannot be used; None: it can."""

    def version(self) -> str:
        """What was measured, if it is there."""

    def settings(self) -> str:
        """What it is asked for, `{q}` in the place of the quantiser's step."""

    def encode(self, planes: Planes, chroma: str, level: int) -> tuple[bytes, float]:
        """The stream of one picture, and the CPU seconds that it took. Raises: RouteError."""

    def decode(self, stream: bytes) -> list[np.ndarray]:
        """The planes of its picture. Raises: RouteError."""


@dataclass(frozen=True)
class Ours:
    """flexor. Ordinary streams are decoded by FFmpeg, so that what is measured is what players show."""

    preset: str
    nearest: str = "off"
    range_extensions: bool | None = None
    edge_filters: bool = False
    nearest_threshold: int | None = None

    def absent(self) -> str | None:
        return None

    def version(self) -> str:
        return f"flexor, build {_build()}"

    def settings(self) -> str:
        extensions = "" if self.range_extensions is not False else " --no-range-extensions"
        edges = " --edge-filters" if self.edge_filters else ""
        threshold = "" if self.nearest_threshold is None else f" (threshold {self.nearest_threshold})"
        options = f"--preset {self.preset}{extensions} --nearest {self.nearest}{threshold}{edges} --threads 1"
        return f"flexor hevc encode --qp {{q}} {options}"

    def encode(self, planes: Planes, chroma: str, level: int) -> tuple[bytes, float]:
        start = time.process_time()
        stream = encode(
            tuple(planes),
            qp=level,
            chroma=chroma,
            preset=self.preset,
            range_extensions=self.range_extensions,
            nearest=self.nearest,
            edge_filters=self.edge_filters,
            nearest_threshold=self.nearest_threshold,
            threads=1,
            fps=None,
            hash=False,
        )
        return stream, time.process_time() - start

    def decode(self, stream: bytes) -> list[np.ndarray]:
        if self.nearest == "off":
            return pyav_decode(stream, "hevc")
        (picture,) = decode(stream, threads=1)
        if picture.damage is not None:
            raise RouteError(f"flexor: {picture.damage}")
        return list(picture.planes)


@dataclass(frozen=True)
class Program:
    """An encoder that reads a YUV4MPEG2 file and writes a stream, on PATH.

    Attributes:
        name: of the executable.
        arguments: with {q}, {input} and {output}.
        probe: arguments that make it name its version, which `pattern` finds.
        decoder: of PyAV, for its streams.
    """

    name: str
    arguments: str
    probe: str
    pattern: str
    decoder: str

    def absent(self) -> str | None:
        if shutil.which(self.name) is None:
            return f"{self.name} is not on PATH"
        if not self.version():
            return f"{self.name} does not offer it ({self.name} {self.probe})"
        return None

    def version(self) -> str:
        return program_version(self.name, self.probe, self.pattern)

    def settings(self) -> str:
        return f"{self.name} {self.arguments}"

    def encode(self, planes: Planes, chroma: str, level: int) -> tuple[bytes, float]:
        with tempfile.TemporaryDirectory(prefix="flexor-compare-") as folder:
            source, out = Path(folder, "in.y4m"), Path(folder, "out")
            source.write_bytes(y4m([planes], chroma))
            values = {"q": level, "input": source, "output": out}
            command = [self.name, *(argument.format(**values) for argument in self.arguments.split())]
            start = _children_seconds()
            try:
                done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=LONGEST_WAIT)
            except subprocess.TimeoutExpired:
                raise RouteError(f"{self.name} took longer than {LONGEST_WAIT} s") from None
            seconds = _children_seconds() - start
            stream = out.read_bytes() if out.exists() else b""
        if done.returncode or not stream:
            said = (done.stderr + done.stdout).decode(errors="replace").strip().splitlines() or ["nothing said"]
            raise RouteError(f"{self.name} ended with {done.returncode}: {said[-1].strip()[:200]}")
        return stream, seconds

    def decode(self, stream: bytes) -> list[np.ndarray]:
        return pyav_decode(stream, self.decoder)


@dataclass(frozen=True)
class Library:
    """An encoder inside PyAV's FFmpeg.

    Attributes:
        codec: its name there.
        options: by name, with {q}.
        decoder: of PyAV, for its streams.
    """

    codec: str
    options: tuple[tuple[str, str], ...]
    decoder: str

    def absent(self) -> str | None:
        try:
            import av
        except ImportError:
            return "PyAV is not installed"
        return None if self.codec in av.codecs_available else f"PyAV has no encoder {self.codec}"

    def version(self) -> str:
        import av

        return f"{self.codec} of PyAV {av.__version__}"

    def settings(self) -> str:
        return " ".join([f"PyAV {self.codec}", *(f"{name}={value}" for name, value in self.options)])

    def encode(self, planes: Planes, chroma: str, level: int) -> tuple[bytes, float]:
        import av

        frame = _frame(planes, chroma)
        os.environ.setdefault("SVT_LOG", "1")  # errors only: it writes to stderr
        try:
            encoder: Any = av.CodecContext.create(self.codec, "w")
            encoder.width, encoder.height, encoder.pix_fmt = frame.width, frame.height, frame.format.name
            encoder.time_base = Fraction(1, 25)
            encoder.options = {name: value.format(q=level) for name, value in self.options}
            start = time.process_time()
            packets = [*encoder.encode(frame), *encoder.encode(None)]
            seconds = time.process_time() - start
        except av.FFmpegError as error:
            raise RouteError(f"{self.codec}: {error.strerror}") from None
        return b"".join(map(bytes, packets)), seconds

    def decode(self, stream: bytes) -> list[np.ndarray]:
        return pyav_decode(stream, self.decoder)


def pyav_decode(stream: bytes, codec: str) -> list[np.ndarray]:
    """The planes of the one picture of a stream.

    Raises: RouteError: the decoder is not there, or does not decode one picture of 8 bits from it.
    """
    import av

    try:
        decoder: Any = av.CodecContext.create(codec, "r")
        pictures = [*decoder.decode(av.Packet(stream)), *decoder.decode(None)]
    except (av.FFmpegError, ValueError) as error:
        raise RouteError(f"PyAV's decoder {codec}: {error}") from None
    if len(pictures) != 1:
        raise RouteError(f"PyAV's decoder {codec} gives {len(pictures)} pictures, expected 1")
    planes = []
    for plane in pictures[0].planes:
        rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
        planes.append(rows[: plane.height, : plane.width].copy())
    return planes


def _frame(planes: Planes, chroma: str) -> Any:
    import av

    height, width = planes[0].shape
    frame = av.VideoFrame(width, height, PYAV_FORMATS[chroma])
    for target, plane in zip(frame.planes, planes, strict=True):
        rows = np.zeros((target.buffer_size // target.line_size, target.line_size), np.uint8)
        rows[: plane.shape[0], : plane.shape[1]] = plane
        target.update(rows.tobytes())
    return frame


def y4m(pictures: Sequence[Planes], chroma: str) -> bytes:
    """A YUV4MPEG2 file of pictures of one size."""
    height, width = pictures[0][0].shape
    header = f"YUV4MPEG2 W{width} H{height} F25:1 Ip A1:1 C{Y4M_CHROMA[chroma]}\n".encode()
    return b"".join([header, *(part for planes in pictures for part in (b"FRAME\n", *map(np.ndarray.tobytes, planes)))])


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@cache
def program_version(name: str, probe: str, pattern: str) -> str:
    """Its name and what `pattern` finds in what it says; empty where it does not say that."""
    try:
        done = subprocess.run(
            [name, *probe.split()], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = re.search(pattern, done.stdout + done.stderr)
    return f"{name} {found[1]}" if found else ""


@cache
def _build() -> str:
    """Of the compiled kernels: what they encode may change with them."""
    return hashlib.sha256(Path(_C.__file__).read_bytes()).hexdigest()[:10]
