# SPDX-License-Identifier: Apache-2.0
"""What a contest should reach: a ratio of times, or a share of the machine's FMA ceiling."""

from __future__ import annotations

from dataclasses import dataclass

from .contest import OURS, Record


@dataclass(frozen=True)
class Goal:
    """A limit on one thread, float32, contiguous.

    peer: whose time the ratio is taken to, or None for the share of the FMA ceiling.
    at_most: the ratio is our time over the peer's and must not be above `limit`; else the peer's over ours, not below.
    """

    op: str
    case: str
    direction: str
    batch: int
    limit: float
    peer: str | None = None
    at_most: bool = False

    def find(self, contests: list[Record]) -> Record | None:
        """The contest that this goal is about; None where it did not run."""
        wanted = (self.op, self.case, self.direction, self.batch, "float32", "contiguous", 1)
        fields = ("op", "case", "direction", "batch", "dtype", "layout", "threads")
        return next((record for record in contests if tuple(record[f] for f in fields) == wanted), None)

    def reached(self, record: Record, ceiling: float, contestant: str = OURS) -> list[float]:
        """What a contestant reached in every round; empty when it or the peer is absent. `ceiling`: GFLOP/s."""
        times = record["ms"].get(contestant, ())
        if self.peer is None:
            return [record["flops"] / ms / 1e6 / ceiling for ms in times]
        ratios = [(t, p) for t, p in zip(times, record["ms"].get(self.peer, ()), strict=False)]
        return [t / p if self.at_most else p / t for t, p in ratios]

    def met(self, value: float) -> bool:
        return value <= self.limit if self.at_most else value >= self.limit

    def worst(self, values: list[float]) -> float:
        return max(values) if self.at_most else min(values)

    def show(self, value: float) -> str:
        return f"{value:.0%}" if self.peer is None or self.limit < 1 else f"{value:.3g}x"

    @property
    def measure(self) -> str:
        """In words what the numbers are."""
        if self.peer is None:
            return "share of the FMA ceiling"
        return f"time over {self.peer}'s" if self.at_most else f"times as fast as {self.peer}"
