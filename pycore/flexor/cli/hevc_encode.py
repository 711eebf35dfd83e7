# SPDX-License-Identifier: Apache-2.0
"""The work behind `flexor hevc encode`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
from rich.console import Console

from .. import _C
from ..codec import hevc
from .hevc_files import OutputError
from .hevc_sources import Pictures, open_pictures
from .progress import counted

STREAMS = (".hevc", ".h265", ".265", ".bit")
CONTAINERS = (".mp4", ".mov", ".mkv")
FPS = Fraction(25)  # of pictures that come without


@dataclass(frozen=True)
class Encoding:
    qp: int
    chroma: str
    bit_depth: int
    lossless: bool
    preset: str
    range_extensions: bool | None
    nearest: str
    edge_filters: bool
    fps: float | None
    threads: int | None
    frames: int | None


def encode(source: Path, out: Path, settings: Encoding) -> None:
    """Writes the stream, and one line on what it is.

    Raises: ValueError, TypeError, OSError: what cannot be read, coded or written.
    """
    _check_output(out, settings.nearest)
    pictures = open_pictures(source, settings.chroma, settings.bit_depth)
    fps = Fraction(settings.fps).limit_denominator(1001) if settings.fps else pictures.fps or FPS
    threads = settings.threads or _C.max_threads()
    encoder = hevc.Encoder(
        qp=settings.qp,
        chroma=settings.chroma,
        bit_depth=settings.bit_depth,
        lossless=settings.lossless,
        preset=settings.preset,
        range_extensions=settings.range_extensions,
        nearest=settings.nearest,
        edge_filters=settings.edge_filters,
        threads=threads,
        fps=fps,
        colour=pictures.colour,
        batch=threads,
    )
    start = time.perf_counter()
    with _whole_file(out) as part:
        stream = part if out.suffix.lower() in STREAMS else part.with_suffix(".hevc")
        count = _write(stream, encoder, pictures, source.name, settings.frames)
        taken = time.perf_counter() - start
        size = stream.stat().st_size
        if stream != part:
            _mux(stream, part, fps)
    console = Console()
    if settings.frames is not None and count < settings.frames:
        Console(stderr=True).print(f"{source} has {count} pictures, not {settings.frames}", style="yellow")
    width, height = encoder.size or (0, 0)
    format = "RGB" if settings.chroma == "rgb" else ":".join(settings.chroma)
    facts = [
        f"{count} {'picture' if count == 1 else 'pictures'} of {width}x{height}, {format}, {settings.bit_depth} bit",
        "lossless" if settings.lossless else f"QP {settings.qp}",
        f"{size:,} bytes, {8 * size / (count * width * height):.3f} bits a pixel",
        f"{count / taken:.2f} pictures a second",
    ]
    console.print(f"{out.name}: {'; '.join(facts)}", highlight=False, soft_wrap=True)


def _check_output(out: Path, nearest: str) -> None:
    suffix = out.suffix.lower()
    if out.is_dir():
        raise OutputError(f"{out} is a folder: name a file in it")
    if suffix in (".heic", ".heif"):
        raise OutputError(f"{out.name}: no library that flexor uses writes HEIF; write {STREAMS[0]} or {CONTAINERS[0]}")
    if suffix not in STREAMS + CONTAINERS:
        raise OutputError(f"{out.name}: the name must end in one of {', '.join(STREAMS + CONTAINERS)}")
    if suffix in CONTAINERS and nearest != "off":
        raise OutputError(f"{out.name}: containers carry no streams with --nearest {nearest}; write {STREAMS[0]}")


@contextmanager
def _whole_file(path: Path) -> Iterator[Path]:
    """A file beside `path` that takes its place when all went well."""
    try:
        folder = tempfile.TemporaryDirectory(prefix=f".{path.name[:40]}.", dir=path.parent)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error
    with folder as name:
        part = Path(name) / path.name
        yield part
        try:
            part.replace(path)
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror}") from error


def _write(stream: Path, encoder: hevc.Encoder, pictures: Pictures, name: str, frames: int | None) -> int:
    total = min(filter(None, (pictures.count, frames)), default=None)
    count = 0
    with stream.open("wb") as file, counted(name, total, "pictures") as advance:
        for picture in islice(pictures.pictures, frames):
            data = encoder.encode(picture)
            count += 1
            file.write(data)
            if data:
                advance(count)
        file.write(encoder.finish())
    return count


def _mux(stream: Path, out: Path, fps: Fraction) -> None:
    """The pictures of a byte stream, each a key frame, into a container."""
    with av.open(stream, format="hevc") as source, av.open(out, "w") as container:
        from_stream = source.streams.video[0]
        to_stream = container.add_stream_from_template(from_stream)
        to_stream.time_base = 1 / fps
        if out.suffix.lower() != ".mkv":
            to_stream.codec_tag = "hvc1"  # parameter sets in the header alone, as some players ask
        packets = (packet for packet in source.demux(from_stream) if packet.size)
        for number, packet in enumerate(packets):
            packet.stream = to_stream
            packet.time_base = 1 / fps
            packet.pts = packet.dts = number
            packet.duration = 1
            container.mux(packet)
