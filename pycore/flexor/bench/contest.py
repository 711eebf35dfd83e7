# SPDX-License-Identifier: Apache-2.0
"""How flexor is timed against its peers: one process, rounds in turn, ratios only within a round."""

from __future__ import annotations

import gc
import resource
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import ClassVar

import torch
from torch import Tensor

Call = Callable[[], tuple[Tensor, ...]]
Record = dict  # one measured contest, as it stands in the JSON

OURS = "flexor"
ONE_THREAD = ", 1 thread"  # behind the name of a contestant: in a contest of more
FORWARD = "forward"
TRAINING = "forward+backward"
BACKWARD = "backward"
BUILD = "from coordinates"  # of a map

SECONDS_A_CONTESTANT = 0.6
SHORTEST_SAMPLE = 3e-3  # seconds: shorter calls are repeated within one sample
MOST_ROUNDS = 25


class Unavailable(RuntimeError):
    """A contestant that cannot take part; the text says why."""


@dataclass(frozen=True, kw_only=True)
class Contest(ABC):
    """The same work done by every contestant in turn; a subclass says what the work is.

    threads: 1 is timed in CPU time of the process and of programs it ran, more in wall-clock time.
    """

    op: ClassVar[str]
    tensors: ClassVar[tuple[str, ...]]  # names of what a call returns
    other_work: ClassVar[tuple[str, ...]] = ()  # contestants that compute something else, for scale

    case: str
    direction: str = FORWARD
    batch: int = 1
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"
    threads: int = 1

    @property
    @abstractmethod
    def contestants(self) -> tuple[str, ...]:
        """Names, ours first."""

    @property
    @abstractmethod
    def flops(self) -> int:
        """Floating-point operations of one call, by formula."""

    @property
    @abstractmethod
    def bytes(self) -> int:
        """Bytes that one call must read and write when each tensor is touched once, by formula."""

    @property
    @abstractmethod
    def tolerance(self) -> float:
        """The largest error that `check` accepts."""

    @property
    def peer_tolerance(self) -> float:
        """The same for a peer: whether it did the same work, however coarsely it rounds."""
        return self.tolerance

    @property
    def items(self) -> int:
        """What a call's time is also given for each of; 0 for nothing."""
        return 0

    @abstractmethod
    def enter(self) -> Iterator[tuple[str, Call | Unavailable]]:
        """Each contestant's call on the same inputs, or why it is absent."""

    @abstractmethod
    def expected(self, results: dict[str, tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """What every contestant should have computed: a peer's result, or the reference's."""

    def check(self, results: dict[str, tuple[Tensor, ...]]) -> dict[str, float]:
        """Each contestant's largest error relative to its tensor's largest magnitude.

        Raises: AssertionError when flexor's is above `tolerance` and above every peer's, or a peer's above
            `peer_tolerance`.
        """
        expected = [t.double() for t in self.expected(results)]
        errors = {
            contestant: [
                float((actual.double() - wanted).abs().max() / wanted.abs().max())
                for actual, wanted in zip(tensors, expected, strict=False)
            ]
            for contestant, tensors in results.items()
            if contestant not in self.other_work
        }
        for contestant, of_tensors in errors.items():
            peers = [errors[peer] for peer in errors if peer not in (OURS, contestant)]
            for i, error in enumerate(of_tensors):
                limit = self.peer_tolerance
                if contestant == OURS:
                    limit = max([self.tolerance] + [of_peer[i] for of_peer in peers if i < len(of_peer)])
                if not error <= limit:
                    raise AssertionError(
                        f"{self.op} of {contestant}: {self.tensors[i]} is off by {error:.1e} of its largest value, "
                        f"at most {limit:.0e} is accepted ({self.name})"
                    )
        return {contestant: max(of_tensors) for contestant, of_tensors in errors.items()}

    def sizes(self, results: dict[str, tuple[Tensor, ...]]) -> dict[str, int]:
        """Bytes of what each contestant made, where contestants make more or less."""
        return {}

    @property
    def name(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{self.op} {self.case}, batch {self.batch}, {self.direction}, {dtype}, {self.layout}, {threads}"


def directed(forward: Callable[[], Tensor], wanted: Sequence[Tensor], grad_output: Tensor, direction: str) -> Call:
    """A call of `forward` without gradients, with the gradients of `wanted`, or of these gradients alone."""
    if direction == FORWARD:
        without_gradients = torch.no_grad()(forward)
        return lambda: (without_gradients(),)
    if direction == TRAINING:

        def forward_backward() -> tuple[Tensor, ...]:
            output = forward()
            return output.detach(), *torch.autograd.grad(output, wanted, grad_output)

        return forward_backward
    output = forward()
    return lambda: torch.autograd.grad(output, wanted, grad_output, retain_graph=True)


def entered(names: Sequence[str], call: Callable[[str], Call]) -> Iterator[tuple[str, Call | Unavailable]]:
    """Each contestant's call, or why there is none."""
    for name in names:
        try:
            yield name, call(name)
        except Unavailable as absent:
            yield name, absent


def on_one_thread(call: Call, threads: int) -> Call:
    """A call on one thread, in the midst of others on so many."""

    def one() -> tuple[Tensor, ...]:
        torch.set_num_threads(1)
        try:
            return call()
        finally:
            torch.set_num_threads(threads)

    return one


def cpu_seconds() -> float:
    """Of this process, and of those that it has started and that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def run(contest: Contest, seconds: float = SECONDS_A_CONTESTANT) -> Record:
    """Times a contest, then checks what every contestant computed last."""
    calls: dict[str, Call] = {}
    skipped: dict[str, str] = {}
    clock = cpu_seconds if contest.threads == 1 else time.perf_counter
    threads = torch.get_num_threads()
    torch.set_num_threads(contest.threads)
    try:
        for name, call in contest.enter():
            if isinstance(call, Unavailable):
                skipped[name] = str(call)
            else:
                calls[name] = call
        samples, results = interleave(calls, clock, seconds)
    finally:
        torch.set_num_threads(threads)
    sizes = contest.sizes(results)
    return {
        "op": contest.op,
        "case": contest.case,
        "direction": contest.direction,
        "batch": contest.batch,
        "dtype": str(contest.dtype).removeprefix("torch."),
        "layout": contest.layout,
        "threads": contest.threads,
        "clock": "cpu" if contest.threads == 1 else "wall",
        "flops": contest.flops,
        "bytes": contest.bytes,
        **({"items": contest.items} if contest.items else {}),
        "ms": {name: [float(f"{1e3 * t:.4g}") for t in times] for name, times in samples.items()},
        "error": {name: float(f"{e:.1e}") for name, e in contest.check(results).items()},
        **({"sizes": sizes} if sizes else {}),
        "skipped": skipped,
    }


def interleave(
    calls: dict[str, Call], clock: Callable[[], float], seconds: float
) -> tuple[dict[str, list[float]], dict[str, tuple[Tensor, ...]]]:
    """Seconds of one call in each round, and each contestant's last result.

    The order turns round after every round (ours, peer, peer, ours), so that a drift of the machine falls
    on both alike. A slow contestant leaves after its share of `seconds`; the others go on.
    """
    results: dict[str, tuple[Tensor, ...]] = {}
    repeats, rounds = {}, {}
    for name, call in calls.items():
        call()
        start = clock()
        results[name] = call()
        once = max(clock() - start, 1e-7)
        repeats[name] = max(1, min(20, round(SHORTEST_SAMPLE / once)))
        fewest = 3 if once > 2 else 5
        rounds[name] = max(fewest, min(MOST_ROUNDS, int(seconds / (once * repeats[name]))))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    gc.collect()
    gc.disable()
    try:
        for number in range(max(rounds.values(), default=0)):
            for name in names if number % 2 == 0 else reversed(names):
                if number >= rounds[name]:
                    continue
                call = calls[name]
                start = clock()
                for _ in range(repeats[name]):
                    result = call()
                samples[name].append((clock() - start) / repeats[name])
                results[name] = result
    finally:
        gc.enable()
    return samples, results


def speedups(record: Record, peer: str, ours: str = OURS) -> list[float]:
    """The peer's time over ours in every round in which both ran; empty when the peer is absent."""
    times = record["ms"]
    return [p / o for p, o in zip(times.get(peer, ()), times.get(ours, ()), strict=False)]


def summary(values: Sequence[float]) -> tuple[float, float]:
    """(median, minimum)."""
    return median(values), min(values)


def latency_ns(calls: dict[str, Callable[[], object]], batches: int = 30, calls_a_batch: int = 400) -> dict[str, float]:
    """Nanoseconds of one call: the fastest of interleaved batches, CPU time, one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    best = dict.fromkeys(calls, float("inf"))
    try:
        for _ in range(batches):
            for name, call in calls.items():
                start = time.process_time_ns()
                for _ in range(calls_a_batch):
                    call()
                best[name] = min(best[name], (time.process_time_ns() - start) / calls_a_batch)
    finally:
        torch.set_num_threads(threads)
    return best
