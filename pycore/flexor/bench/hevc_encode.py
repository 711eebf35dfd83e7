# SPDX-License-Identifier: Apache-2.0
"""Contests of the HEVC encoder: screens of 1920x1080, planes to a stream, each preset beside one of x265's."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from flexor.codec import hevc
from flexor.codec.hevc.compare import psnr

from . import hevc_encode_peers as peers
from . import hevc_streams
from .contest import ONE_THREAD, OURS, Call, Contest, Unavailable
from .goals import Gain, Goal
from .hevc_streams import CODE, moving_planes
from .memory import peak_extra_of

ENCODE = "encode"
ROWS, SIDE_BY_SIDE = "", ", side by side"  # how threads share the work: rows of a picture, or a picture each
PEERS = {"fast": peers.ULTRAFAST, "medium": peers.MEDIUM, "best": peers.VERYSLOW}
PICTURES = {"fast": 4, "medium": 4, "best": 2}  # of a call
SCREENS = (CODE, "terminal")  # what goals are for; the second comes as an image
MOST_TIMES = {"fast": 3, "best": 2}  # what ours may take of the peer's
LEAST_DECIBELS = 26.0  # of luma: below, a contestant did not encode this picture
STREAMED = (4, 16)  # pictures
MEMORY = "pictures as they come"


@dataclass(frozen=True)
class Work:
    """What is encoded, and how; `picture` is CODE or a path."""

    picture: str
    preset: str
    qp: int = 27
    sharing: str = ROWS

    @property
    def name(self) -> str:
        return f"{Path(self.picture).stem} QP {self.qp}, {self.preset}{self.sharing}"


GOALS = tuple(
    Goal("hevc", Work(screen, preset).name, ENCODE, PICTURES[preset], limit, PEERS[preset], at_most=True, dtype="uint8")
    for preset, limit in MOST_TIMES.items()
    for screen in SCREENS
)
GAINS = (Gain("the second thread", ONE_THREAD, PEERS["medium"], least=1.7),)


@dataclass(frozen=True, kw_only=True)
class EncodeContest(Contest):
    """Pictures of 4:2:0, 8 bits, every one intra, at a fixed QP, without hashes. Sizes of the streams are kept."""

    op: ClassVar[str] = "hevc"
    tensors: ClassVar[tuple[str, ...]] = ("stream",)

    work: Work

    @property
    def contestants(self) -> tuple[str, ...]:
        names = (OURS, PEERS[self.work.preset])
        return names if self.threads == 1 else (*names, *(name + ONE_THREAD for name in names))

    @property
    def flops(self) -> int:
        """Nothing that is counted."""
        return 0

    @property
    def bytes(self) -> int:
        """The samples that are read."""
        return self.batch * hevc_streams.WIDTH * hevc_streams.HEIGHT * 3 // 2

    @property
    def tolerance(self) -> float:
        """As `check` gives it, a root of mean squares."""
        return 10 ** (-LEAST_DECIBELS / 20)

    def enter(self) -> Iterator[tuple[str, Call | Unavailable]]:
        work, pictures = self.work, moving_planes(self.work.picture, self.batch)
        for name in self.contestants:
            threads = 1 if name.endswith(ONE_THREAD) else self.threads
            if name.startswith(OURS):
                yield name, functools.partial(_ours, pictures, work, threads)
                continue
            try:
                program = peers.X265(PEERS[work.preset], work.qp, threads, 1 if work.sharing == ROWS else threads)
                source = peers.y4m_file(work.picture, self.batch)
            except Unavailable as absent:
                yield name, absent
            else:
                yield name, functools.partial(program.encode, source)

    def expected(self, results: dict[str, tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """The pictures' luma, one below the other."""
        return (torch.from_numpy(np.concatenate([y for y, *_ in moving_planes(self.work.picture, self.batch)])),)

    def check(self, results: dict[str, tuple[Tensor, ...]]) -> dict[str, float]:
        """Decodes every stream: the luma's root mean square error as a share of 255.

        Raises: AssertionError where pictures are missing, or too far from their source.
        """
        source = self.expected(results)[0].numpy()
        errors = {}
        for contestant, (stream,) in results.items():
            decoded = hevc.decode(stream.numpy().tobytes(), verify=False)
            assert len(decoded) == self.batch, f"{contestant}: {len(decoded)} pictures, {self.batch} are expected"
            decibels = psnr(source, np.concatenate([picture.planes[0] for picture in decoded]))
            errors[contestant] = 0.0 if decibels is None else 10 ** (-decibels / 20)
            assert errors[contestant] <= self.tolerance, (
                f"hevc of {contestant}: PSNR {decibels:.1f} dB, at least {LEAST_DECIBELS:.0f} dB is expected "
                f"({self.name})"
            )
        return errors

    def sizes(self, results: dict[str, tuple[Tensor, ...]]) -> dict[str, int]:
        """Bytes of each stream."""
        return {contestant: stream.numel() for contestant, (stream,) in results.items()}


def contests(everything: bool = False, images: Sequence[str] = ()) -> list[Contest]:
    """Every preset on one thread, medium on all threads; with everything, at other QPs too.

    Args:
        images: files, each cut or mirrored to 1920x1080.
    """
    screens = (CODE, *images)
    found = [_contest(Work(screen, preset), 1) for preset in PEERS for screen in screens]
    if everything:
        found += [_contest(Work(CODE, preset, qp), 1) for preset in PEERS for qp in (22, 37)]
    threads = torch.get_num_threads()
    if threads > 1:
        kinds = (ROWS, SIDE_BY_SIDE)
        found += [_contest(Work(screen, "medium", sharing=kind), threads) for screen in screens for kind in kinds]
    return found


def extras() -> dict[str, Callable[[], object]]:
    """Versions of the peers; memory of pictures that come one by one."""
    return {"encoders": versions, "memory_bytes": memory}


def versions() -> dict[str, str]:
    try:
        return {"x265": peers.x265_version()}
    except Unavailable as absent:
        return {"x265": f"absent: {absent}"}


def memory() -> dict[str, dict[str, int | None]]:
    """Peak memory of few and of many pictures, one at a time, and as many at a time as there are threads."""
    found: dict[str, dict[str, int | None]] = {}
    threads = torch.get_num_threads()
    for at_once in dict.fromkeys((1, threads)):
        for pictures in STREAMED:
            case = f"{pictures} pictures, {at_once} at a time"
            found[case] = {OURS: peak_extra_of(f"{__name__}:streaming", str(pictures), str(at_once))}
    return found


def streaming(pictures: str, at_once: str) -> Callable[[], list[Tensor]]:
    """A call that makes pictures, encodes them as they come, and lets go of what is done."""
    source = moving_planes(CODE, 1)[0]

    def call() -> list[Tensor]:
        encoder = hevc.Encoder(preset="fast", qp=27, threads=int(at_once), batch=int(at_once))
        for number in range(int(pictures)):
            encoder.encode(tuple(np.roll(plane, number, 0) for plane in source))
        encoder.finish()
        return []

    return call


def _contest(work: Work, threads: int) -> Contest:
    batch = PICTURES[work.preset]
    return EncodeContest(case=work.name, work=work, direction=ENCODE, batch=batch, dtype=torch.uint8, threads=threads)


def _ours(pictures: Sequence[tuple[np.ndarray, ...]], work: Work, threads: int) -> tuple[Tensor]:
    batch = 1 if work.sharing == ROWS else threads
    encoder = hevc.Encoder(preset=work.preset, qp=work.qp, threads=threads, batch=batch, hash=False)
    stream = b"".join([*(encoder.encode(picture) for picture in pictures), encoder.finish()])
    return (torch.frombuffer(bytearray(stream), dtype=torch.uint8),)
