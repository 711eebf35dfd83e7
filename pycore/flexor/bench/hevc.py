# SPDX-License-Identifier: Apache-2.0
"""Contests of the HEVC decoder: pictures of 1920x1080 in memory, against ffmpeg and libde265."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flexor.codec import hevc

from . import hevc_peers
from .contest import ONE_THREAD, OURS, Call, Contest, Unavailable
from .goals import Gain, Goal
from .hevc_streams import CODE, PHOTOGRAPH, PICTURES, Coded, encode

DECODE = "decode"
FFMPEG, DE265 = "ffmpeg", "libde265"
CASES = (
    *(Coded(picture, qp) for picture in (PHOTOGRAPH, CODE) for qp in (22, 37)),
    Coded(PHOTOGRAPH, 27, wavefront=False),
    *(Coded(picture, 27, "yuv444p10le") for picture in (PHOTOGRAPH, CODE)),
)
GOALS = tuple(
    Goal("hevc", coded.name, DECODE, PICTURES, limit, peer, dtype="uint16" if "10le" in coded.pixel_format else "uint8")
    for coded in CASES
    for peer, limit in ((DE265, 1.0), (FFMPEG, 0.5))
)
GAINS = (Gain("the second thread", ONE_THREAD, FFMPEG, wherever=1.7),)


@dataclass(frozen=True, kw_only=True)
class DecodeContest(Contest):
    """A stream of PICTURES pictures, decoded to planes. No hash is compared: the peers do not either."""

    op: ClassVar[str] = "hevc"
    tensors: ClassVar[tuple[str, ...]] = tuple(
        f"plane {plane} of picture {number}" for number in range(PICTURES) for plane in range(3)
    )

    coded: Coded

    @property
    def contestants(self) -> tuple[str, ...]:
        names = (OURS, FFMPEG, DE265)
        return names if self.threads == 1 else (*names, *(name + ONE_THREAD for name in names))

    @property
    def flops(self) -> int:
        """Nothing that is counted."""
        return 0

    @property
    def bytes(self) -> int:
        """The stream is read, the samples are written."""
        return len(encode(self.coded)) + self.coded.samples * (1 if self.dtype == torch.uint8 else 2)

    @property
    def tolerance(self) -> float:
        return 0

    def enter(self) -> Iterator[tuple[str, Call | Unavailable]]:
        stream = encode(self.coded)
        for name in self.contestants:
            decode = {OURS: _ours, FFMPEG: hevc_peers.ffmpeg, DE265: hevc_peers.libde265}[name.removesuffix(ONE_THREAD)]
            call = functools.partial(decode, stream, 1 if name.endswith(ONE_THREAD) else self.threads)
            try:
                call()  # finds out whether it is there
            except Unavailable as absent:
                yield name, absent
            else:
                yield name, call

    def expected(self, results: dict[str, tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """What ffmpeg decodes."""
        return results[FFMPEG]

    def check(self, results: dict[str, tuple[Tensor, ...]]) -> dict[str, float]:
        """Every plane is the same. Raises: AssertionError where it is not."""
        expected = self.expected(results)
        for contestant, planes in results.items():
            assert len(planes) == len(expected), f"{contestant}: {len(planes)} planes, {len(expected)} are expected"
            for name, plane, wanted in zip(self.tensors, planes, expected, strict=True):
                assert torch.equal(plane, wanted), f"hevc of {contestant}: {name} is not ffmpeg's ({self.name})"
        return dict.fromkeys(results, 0.0)


def contests(everything: bool = False, images: Sequence[str] = ()) -> list[Contest]:
    """Every case on one thread; with everything, and of the images, on all threads too.

    Args:
        images: files, each decoded at QP 27 with wavefronts.
    """
    extra = tuple(Coded(image, 27) for image in images)
    found = [_contest(coded, 1) for coded in (*CASES, *extra)]
    threads = torch.get_num_threads()
    if threads > 1:
        found += [_contest(coded, threads) for coded in ((*CASES, *extra) if everything else (CASES[1], *extra))]
    return found


def extras() -> dict[str, Callable[[], object]]:
    """Versions of the peers."""
    return {"decoders": versions}


def versions() -> dict[str, str]:
    found = {}
    for name, version in ((FFMPEG, hevc_peers.ffmpeg_version), (DE265, hevc_peers.libde265_version)):
        try:
            found[name] = version()
        except Unavailable as absent:
            found[name] = f"absent: {absent}"
    return found


def _contest(coded: Coded, threads: int) -> Contest:
    dtype = torch.uint16 if coded.pixel_format.endswith("10le") else torch.uint8
    return DecodeContest(case=coded.name, coded=coded, direction=DECODE, batch=PICTURES, dtype=dtype, threads=threads)


def _ours(stream: bytes, threads: int) -> tuple[Tensor, ...]:
    pictures = hevc.decode(stream, threads=threads, verify=False)
    return tuple(_tensor(plane) for picture in pictures for plane in picture.planes)


def _tensor(plane) -> Tensor:
    """16 bits as torch can compare them."""
    return torch.from_numpy(plane.view("i2") if plane.itemsize == 2 else plane)
