# SPDX-License-Identifier: Apache-2.0
"""Rate-distortion points: encode, decode, compare with the source; kept as JSON so that nothing is measured twice."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..planes import Format, to_planes
from .contestants import Contestant
from .quality import Curve, Planes, psnr, weighted_psnr
from .routes import RouteError

FAMILY = "hevc_rd"

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Source:
    """A picture that everyone encodes.

    Attributes:
        name: of the image.
        rgb: (H, W, 3), uint8.
        chroma: "400", "420", "422" or "444".
        planes: what is encoded, and what decoded planes are compared with.
        digest: of the planes.
    """

    name: str
    rgb: NDArray[np.uint8]
    chroma: str
    planes: Planes
    digest: str

    @property
    def format(self) -> Format:
        return Format(self.chroma, 8, None)


def make_source(name: str, rgb: NDArray[np.uint8], chroma: str) -> Source:
    """Raises: ValueError: a size that the chroma format does not have."""
    planes = to_planes(rgb, Format(chroma, 8, None), name)
    digest = hashlib.sha256(b"".join([str(rgb.shape).encode(), *(plane.tobytes() for plane in planes)]))
    return Source(name, rgb, chroma, planes, digest.hexdigest()[:16])  # type: ignore[arg-type]


@dataclass(frozen=True)
class Point:
    """One picture encoded once.

    Attributes:
        qp: of HEVC; `level` is the contestant's step that stands for it.
        bits: of the whole stream.
        psnr: of every plane, dB; None: identical.
        seconds: of CPU time to encode it.
    """

    image: str
    digest: str
    width: int
    height: int
    chroma: str
    contestant: str
    settings: str
    version: str
    qp: int
    level: int
    bits: int
    psnr: tuple[float | None, ...]
    seconds: float

    @property
    def psnr_y(self) -> float | None:
        return self.psnr[0]

    @property
    def psnr_yuv(self) -> float | None:
        return weighted_psnr(self.psnr)

    @property
    def place(self) -> tuple:
        """What a newer measurement of the same takes."""
        return self.digest, self.chroma, self.contestant, self.qp

    @property
    def key(self) -> tuple:
        """Equal for a measurement that need not be done again."""
        return *self.place, self.settings, self.version


@dataclass(frozen=True)
class Failure:
    """A point that there is none of, and why."""

    image: str
    contestant: str
    qp: int
    why: str


@dataclass
class Results:
    """Every point, and what belongs to them.

    Attributes:
        points: of several images, chroma formats, contestants.
        failures: of the last measurement.
        absent: of the last measurement: by name, why a contestant did not take part.
        machine: on which it was measured.
    """

    points: list[Point] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)

    def add(self, point: Point) -> None:
        """In the place of an older measurement of the same."""
        self.points = [other for other in self.points if other.place != point.place]
        self.points.append(point)

    def of(self, sources: Sequence[Source], contestants: Sequence[Contestant], qps: Sequence[int]) -> Results:
        """Only what belongs to these, in their order."""
        places = {
            (source.digest, source.chroma, contestant.name, qp): len(qps) * (len(contestants) * i + j) + k
            for i, source in enumerate(sources)
            for j, contestant in enumerate(contestants)
            for k, qp in enumerate(qps)
        }
        chosen = sorted((p for p in self.points if p.place in places), key=lambda point: places[point.place])
        return dataclasses.replace(self, points=chosen)

    def names(self, chroma: str) -> list[str]:
        """Of the images that have points of this chroma format, in their order."""
        return list(dict.fromkeys(point.image for point in self.points if point.chroma == chroma))

    def chromas(self) -> list[str]:
        return sorted({point.chroma for point in self.points})

    def contestants(self, chroma: str) -> list[str]:
        return list(dict.fromkeys(point.contestant for point in self.points if point.chroma == chroma))

    def curve(self, image: str, chroma: str, contestant: str, weighted: bool = False) -> Curve:
        """(bits, PSNR) by QP: of luma, or of all planes by their weights."""
        points = [p for p in self.points if (p.image, p.chroma, p.contestant) == (image, chroma, contestant)]
        points.sort(key=lambda point: point.qp)
        return [(point.bits, point.psnr_yuv if weighted else point.psnr_y) for point in points]


def measure(
    sources: Sequence[Source], contestants: Sequence[Contestant], qps: Sequence[int], known: Iterable[Point], jobs: int
) -> Iterator[Point | Failure]:
    """The points that are not known, as they come, `jobs` processes at a time; CPU times are of one thread.

    Args:
        sources: pictures of one chroma format or several.
        contestants: who encodes each of them.
        qps: at which.
        known: points of before; those of the same version and settings are not measured again.
        jobs: 1: in this process.
    """
    yield from in_processes(measure_point, missing(sources, contestants, qps, known), jobs)


def in_processes(function: Callable[..., T], tasks: Sequence[tuple], jobs: int) -> Iterator[T]:
    """`function(*task)` of every task as they come, `jobs` at a time; 1: in this process, in their order."""
    if jobs == 1:
        for task in tasks:
            yield function(*task)
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        try:
            for future in as_completed([pool.submit(function, *task) for task in tasks]):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def missing(
    sources: Sequence[Source], contestants: Sequence[Contestant], qps: Sequence[int], known: Iterable[Point]
) -> list[tuple[Contestant, Source, int]]:
    """What there is to measure."""
    keys = {point.key for point in known}
    identities = [(contestant, contestant.route.settings(), contestant.route.version()) for contestant in contestants]
    return [
        (contestant, source, qp)
        for source in sources
        for contestant, settings, version in identities
        for qp in qps
        if (source.digest, source.chroma, contestant.name, qp, settings, version) not in keys
    ]


def measure_point(contestant: Contestant, source: Source, qp: int) -> Point | Failure:
    """Encode, decode and compare one picture."""
    route, level = contestant.route, contestant.level(qp)
    try:
        stream, seconds = route.encode(source.planes, source.chroma, level)
        decoded = route.decode(stream)
        shapes = [plane.shape for plane in source.planes]
        if [plane.shape for plane in decoded] != shapes:
            raise RouteError(f"decoded planes have shapes {[plane.shape for plane in decoded]}, expected {shapes}")
    except RouteError as error:
        return Failure(source.name, contestant.name, qp, str(error))
    height, width = source.planes[0].shape
    return Point(
        image=source.name,
        digest=source.digest,
        width=width,
        height=height,
        chroma=source.chroma,
        contestant=contestant.name,
        settings=route.settings(),
        version=route.version(),
        qp=qp,
        level=level,
        bits=8 * len(stream),
        psnr=tuple(_rounded(psnr(*pair)) for pair in zip(source.planes, decoded, strict=True)),
        seconds=round(seconds, 4),
    )


def _rounded(decibels: float | None) -> float | None:
    return None if decibels is None else round(decibels, 4)


def save(results: Results, path: Path) -> None:
    """Write results as JSON, one point on a line, whole or not at all."""
    points = sorted(results.points, key=lambda p: (p.chroma, p.image, p.contestant, p.qp))
    lines = ",\n  ".join(json.dumps(dataclasses.asdict(point)) for point in points)
    rest = {
        "family": FAMILY,
        "machine": results.machine,
        "absent": results.absent,
        "failures": [dataclasses.asdict(failure) for failure in results.failures],
    }
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(rest, indent=1)[:-2] + ',\n "points": [\n  ' + lines + "\n ]\n}\n")
    partial.replace(path)


def load(path: Path) -> Results:
    """Read what `save` wrote.

    Raises:
        ValueError: something else.
        OSError: the file cannot be read.
    """
    try:
        found = json.loads(path.read_text())
        if found["family"] != FAMILY:
            raise ValueError(f"family {found['family']}")
        points = [Point(**{**point, "psnr": tuple(point["psnr"])}) for point in found["points"]]
        failures = [Failure(**failure) for failure in found["failures"]]
        return Results(points, failures, dict(found["absent"]), dict(found["machine"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not what flexor hevc compare writes ({error}): name another file") from None
