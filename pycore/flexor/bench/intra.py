# SPDX-License-Identifier: Apache-2.0
"""Contests of intra prediction and its search against the same kernels written plainly, with the same flags.

No library offers either as a function, so the peer is the scalar C++ that the tests hold the kernels to: a block, a
mode and a sample at a time.
"""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flexor import _C
from flexor.ops import INTRA_CANDIDATES

from .contest import ONE_THREAD, OURS, Call, Contest
from .goals import Gain, Goal

SCALAR = "scalar C++"
PREDICT, SEARCH = "predict", "search"
SIZES = (4, 8, 16, 32, 64)
SAMPLES = 2**18  # of the blocks of a call: what a second-level cache holds
PICTURE = (1080, 1920)
DEPTH_OF = {torch.uint8: 8, torch.uint16: 10}


@dataclass(frozen=True, kw_only=True)
class IntraContest(Contest):
    """Two tables of kernels behind one function; a subclass says which."""

    size: int

    @property
    def contestants(self) -> tuple[str, ...]:
        return (OURS, SCALAR) if self.threads == 1 else (OURS, OURS + ONE_THREAD, SCALAR, SCALAR + ONE_THREAD)

    @property
    def flops(self) -> int:
        """Nothing that is counted."""
        return 0

    @property
    def tolerance(self) -> float:
        return 0

    def enter(self) -> Iterator[tuple[str, Call]]:
        run = self._prepared()
        for name in self.contestants:
            threads = 1 if name.endswith(ONE_THREAD) else self.threads
            yield name, functools.partial(_call, run, name.startswith(SCALAR), threads)

    @abstractmethod
    def _prepared(self) -> Callable[[bool], Tensor]:
        """What runs the fast kernels, or the plain ones."""

    def expected(self, results: dict[str, tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """What the plain kernels give."""
        return results[SCALAR]

    def check(self, results: dict[str, tuple[Tensor, ...]]) -> dict[str, float]:
        """The same bits. Raises: AssertionError where they are not."""
        for contestant, (found,) in results.items():
            assert torch.equal(found, self.expected(results)[0]), f"{self.op} of {contestant} differs ({self.name})"
        return dict.fromkeys(results, 0.0)


@dataclass(frozen=True, kw_only=True)
class PredictContest(IntraContest):
    """Blocks of random modes from random borders, as luma."""

    op: ClassVar[str] = "intra_predict"
    tensors: ClassVar[tuple[str, ...]] = ("blocks",)

    nearest: bool = False

    @property
    def bytes(self) -> int:
        """Borders and modes are read, blocks written."""
        return self.blocks * ((self.size**2 + 4 * self.size + 1) * self.dtype.itemsize + 8)

    @property
    def blocks(self) -> int:
        return SAMPLES // self.size**2

    def _prepared(self) -> Callable[[bool], Tensor]:
        generator = torch.Generator().manual_seed(0)
        depth = DEPTH_OF[self.dtype]
        border = torch.randint(1 << depth, (self.blocks, 4 * self.size + 1), generator=generator).to(self.dtype)
        mode = torch.randint(35, (self.blocks,), generator=generator)
        outputs = [torch.empty((self.blocks, self.size, self.size), dtype=self.dtype) for _ in range(2)]

        def run(plain: bool) -> Tensor:
            _C.intra_predict(outputs[plain], border, mode, None, depth, self.nearest, True, True, True, plain)
            return outputs[plain]

        return run


@dataclass(frozen=True, kw_only=True)
class SearchContest(IntraContest):
    """A picture of 1920x1080, all 63 candidates."""

    op: ClassVar[str] = "intra_search"
    tensors: ClassVar[tuple[str, ...]] = ("costs",)

    satd: bool = True

    @property
    def bytes(self) -> int:
        """The picture is read, the costs are written."""
        height, width = PICTURE
        return height * width * self.dtype.itemsize + self.blocks * len(INTRA_CANDIDATES) * 4

    @property
    def blocks(self) -> int:
        rows, columns = (-(-extent // self.size) for extent in PICTURE)
        return rows * columns

    def _prepared(self) -> Callable[[bool], Tensor]:
        depth = DEPTH_OF[self.dtype]
        pictures = torch.randint(1 << depth, (1, *PICTURE), generator=torch.Generator().manual_seed(0)).to(self.dtype)
        rows, columns = (-(-extent // self.size) for extent in PICTURE)
        shape = 1, rows, columns, len(INTRA_CANDIDATES)
        outputs = [torch.empty(shape, dtype=torch.int32) for _ in range(2)]

        def run(plain: bool) -> Tensor:
            _C.intra_search(outputs[plain], None, pictures, self.size, self.satd, True, depth, True, 64, plain)
            return outputs[plain]

        return run


def _call(run: Callable[[bool], Tensor], plain: bool, threads: int) -> tuple[Tensor, ...]:
    torch.set_num_threads(threads)
    return (run(plain),)


def _cases(threads: int) -> list[Contest]:
    found: list[Contest] = []
    for size in SIZES:
        blocks = f"{size}x{size}"
        for nearest in (False, True):
            case = f"{blocks} {'nearest' if nearest else 'bilinear'}"
            found.append(
                PredictContest(
                    case=case, size=size, nearest=nearest, direction=PREDICT, dtype=torch.uint8, threads=threads
                )
            )
    found.append(
        PredictContest(case="8x8 bilinear 10 bit", size=8, direction=PREDICT, dtype=torch.uint16, threads=threads)
    )
    for size in SIZES:
        found.append(
            SearchContest(
                case=f"1080p {size}x{size} SATD", size=size, direction=SEARCH, dtype=torch.uint8, threads=threads
            )
        )
    sad, deep = {"satd": False, "dtype": torch.uint8}, {"dtype": torch.uint16}
    for name, kind in (("SAD", sad), ("SATD 10 bit", deep)):
        found.append(SearchContest(case=f"1080p 8x8 {name}", size=8, direction=SEARCH, threads=threads, **kind))
    return found


GOALS = tuple(
    Goal(contest.op, contest.case, contest.direction, 1, 8, SCALAR, dtype=str(contest.dtype).removeprefix("torch."))
    for contest in _cases(1)
)
GAINS = (Gain("the second thread", ONE_THREAD, SCALAR),)


def contests(everything: bool = False) -> list[Contest]:
    """Every size on one thread; the search of 8x8 blocks, or with everything all of them, on all threads too."""
    threads = torch.get_num_threads()
    found = _cases(1)
    if threads > 1:
        all_threads = _cases(threads)
        found += all_threads if everything else [c for c in all_threads if c.case == "1080p 8x8 SATD"]
    return found


def extras() -> dict[str, Callable[[], object]]:
    """Nothing beside the contests."""
    return {}
