# SPDX-License-Identifier: Apache-2.0
"""Between flexor.bench, which interleaves the contestants, and pytest-benchmark, which times one after another."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from flexor import bench
from flexor.bench import machine
from flexor.bench.contest import OURS, Contest, Record, speedups, summary


class RecordedClock:
    """A clock that stands still until a measured time is played: pytest-benchmark then reports that time."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def play(self, benchmark, seconds: Iterable[float]) -> None:
        times = list(seconds)
        following = iter(times)

        def advance() -> None:
            self.now += next(following)

        benchmark.pedantic(advance, rounds=len(times))


clock = RecordedClock()
timed = pytest.mark.benchmark(timer=clock)


class Scoreboard:
    """Runs each contest once, hands its contestants' times to their tests, and keeps all of it for the JSON."""

    def __init__(self) -> None:
        self.families: dict[str, dict] = {}
        self._records: dict[Contest, Record] = {}

    def report(self, benchmark, family: str, contest: Contest, contestant: str) -> None:
        """Reports one contestant in the group of its operator and direction; the whole contest runs first."""
        record = self._record(family, contest, quick=benchmark.disabled)
        if contestant in record["skipped"]:
            pytest.skip(f"{contestant}: {record['skipped'][contestant]}")
        benchmark.group = f"{contest.op}-{contest.direction}"
        benchmark.extra_info.update(
            contest=contest.name, contestant=contestant, clock=record["clock"], flops=contest.flops, bytes=contest.bytes
        )
        if contestant != OURS:
            benchmark.extra_info["over_flexor_median_and_least"] = summary(speedups(record, contestant))
        clock.play(benchmark, [ms / 1e3 for ms in record["ms"][contestant]])

    def add(self, family: str, name: str, value: object) -> None:
        """Keeps an extra of a family: peak memory, latency."""
        self._family(family)[name] = value

    def save(self, folder: Path) -> None:
        for family, results in self.families.items():
            bench.save(results, folder / f"{family}.json")

    def _record(self, family: str, contest: Contest, quick: bool) -> Record:
        if contest not in self._records:
            results = self._family(family)
            self._records[contest] = bench.run(contest, **({"seconds": 0} if quick else {}))
            results["contests"].append(self._records[contest])
        return self._records[contest]

    def _family(self, family: str) -> dict:
        if family not in self.families:
            self.families[family] = {"family": family, "machine": machine.describe(), "contests": []}
        return self.families[family]


def entries(contests: Iterable[Contest]) -> list:
    """Every contestant of every contest as pytest parameters."""
    return [
        pytest.param(contest, contestant, id=f"{contest.name}-{contestant}".replace(" ", "_"))
        for contest in contests
        for contestant in contest.contestants
    ]
