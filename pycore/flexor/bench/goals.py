# SPDX-License-Identifier: Apache-2.0
"""What a contest should reach: a ratio of times or of rates, a share of the machine's FMA ceiling, a gain."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from .contest import OURS, Record, speedups


@dataclass(frozen=True)
class Goal:
    """A limit on one thread, contiguous.

    peer: whose time the ratio is taken to, or None for the share of the FMA ceiling.
    at_most: the ratio is our time over the peer's and must not be above `limit`; else the peer's over ours, not below.
    peer_flops: operations of one call of a peer that does other work: rates are compared in place of times.
    per_item: the limit is on nanoseconds for each of the contest's items; nobody is compared to.
    """

    op: str
    case: str
    direction: str
    batch: int
    limit: float
    peer: str | None = None
    at_most: bool = False
    peer_flops: int = 0
    per_item: bool = False
    dtype: str = "float32"

    def find(self, contests: list[Record]) -> Record | None:
        """The contest that this goal is about; None where it did not run."""
        wanted = (self.op, self.case, self.direction, self.batch, self.dtype, "contiguous", 1)
        fields = ("op", "case", "direction", "batch", "dtype", "layout", "threads")
        return next((record for record in contests if tuple(record[f] for f in fields) == wanted), None)

    def reached(self, record: Record, ceiling: float, contestant: str = OURS) -> list[float]:
        """What a contestant reached in every round; empty when it or the peer is absent. `ceiling`: GFLOP/s."""
        times = record["ms"].get(contestant, ())
        if self.per_item:
            return [1e6 * ms / record["items"] for ms in times]
        if self.peer is None:
            return [record["flops"] / ms / 1e6 / ceiling for ms in times]
        ratios = [(t, p) for t, p in zip(times, record["ms"].get(self.peer, ()), strict=False)]
        work = record["flops"] / self.peer_flops if self.peer_flops else 1
        return [t / p if self.at_most else work * p / t for t, p in ratios]

    def met(self, value: float) -> bool:
        return value <= self.limit if self.at_most or self.per_item else value >= self.limit

    def worst(self, values: list[float]) -> float:
        return max(values) if self.at_most or self.per_item else min(values)

    def show(self, value: float) -> str:
        if self.per_item:
            return f"{value:.0f} ns"
        return f"{value:.0%}" if self.peer is None or self.limit < 1 else f"{value:.3g}x"

    @property
    def measure(self) -> str:
        """In words what the numbers are."""
        if self.per_item:
            return "time of each"
        if self.peer is None:
            return "share of the FMA ceiling"
        if self.peer_flops:
            return f"rate over {self.peer}'s"
        return f"time over {self.peer}'s" if self.at_most else f"times as fast as {self.peer}"


@dataclass(frozen=True)
class Gain:
    """How much faster calls are under a condition than without it, beside what a yardstick gains in the same rounds.

    under: the condition, in words.
    without: what is behind the name of a contestant that goes without it.
    share: what ours should gain at least, as a part of the yardstick's gain; 0 for no such goal.
    least: what ours should gain whatever the yardstick does; `wherever` the yardstick gains that, ours should too.
    """

    under: str
    without: str
    yardstick: str
    share: float = 0
    least: float = 0
    wherever: float = 0

    def find(self, record: Record) -> tuple[float, float] | None:
        """Ours and the yardstick's, medians; None where the contest is about something else."""
        gains = [speedups(record, name + self.without, name) for name in (OURS, self.yardstick)]
        return (median(gains[0]), median(gains[1])) if all(gains) else None

    def limit(self, yardstick: float) -> float:
        demanded = self.wherever if self.wherever and yardstick >= self.wherever else self.least
        return max(demanded, self.share * yardstick)

    def met(self, ours: float, yardstick: float) -> bool:
        return ours >= self.limit(yardstick)
