# SPDX-License-Identifier: Apache-2.0
"""x265's program: its CPU time is that of a process of its own, from start to end."""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from flexor.codec.hevc.compare.routes import program_version, y4m

from .contest import Unavailable
from .hevc_streams import moving_planes

ULTRAFAST, MEDIUM, VERYSLOW = "x265 ultrafast", "x265 medium", "x265 veryslow, tskip"
PRESETS = {
    ULTRAFAST: "--preset ultrafast",
    MEDIUM: "--preset medium",
    VERYSLOW: "--preset veryslow --tskip",
}
ARGUMENTS = "--tune psnr --keyint 1 --ipratio 1 --aq-mode 0 --no-info --no-progress --log-level error"
SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class X265:
    """The program with a preset, on so many threads of its pool and so many pictures at a time.

    Raises: Unavailable where it is not on PATH.
    """

    name: str
    qp: int
    threads: int
    pictures: int

    def __post_init__(self) -> None:
        x265_version()

    def encode(self, source: Source) -> tuple[Tensor]:
        """The stream. Raises: subprocess.CalledProcessError."""
        pool = f"--pools {self.threads} --frame-threads {self.pictures}"
        words = f"x265 {PRESETS[self.name]} {ARGUMENTS} {pool} --qp {self.qp}".split()
        subprocess.run([*words, "--input", source.y4m, "--output", source.stream], check=True, capture_output=True)
        return (torch.frombuffer(bytearray(source.stream.read_bytes()), dtype=torch.uint8),)


class Source:
    """Files in memory where the system has such a folder; they go when nobody holds this any more."""

    def __init__(self, picture: str, count: int) -> None:
        shared = SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
        folder = tempfile.mkdtemp(prefix="flexor-bench-", dir=shared)
        weakref.finalize(self, shutil.rmtree, folder)
        self.y4m, self.stream = (Path(folder, name) for name in ("in.y4m", "out.hevc"))
        self.y4m.write_bytes(y4m(moving_planes(picture, count), "420"))


@functools.lru_cache(maxsize=1)
def y4m_file(picture: str, count: int) -> Source:
    return Source(picture, count)


def x265_version() -> str:
    """Raises: Unavailable."""
    if shutil.which("x265") is None:
        raise Unavailable("x265 is not on PATH (apt install x265)")
    return program_version("x265", "--version", r"version (\S+)").removeprefix("x265 ")
