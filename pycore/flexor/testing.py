# SPDX-License-Identifier: Apache-2.0
"""For tests of code that uses flexor: every way to run an op here, and how close is close enough."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from . import _C, _backend


class Way(NamedTuple):
    """One way to run an op: a backend, on the CPU also an instruction set."""

    backend: str
    isa: str | None
    device: str

    def __str__(self) -> str:
        return "-".join(part for part in (self.backend, self.isa) if part)


def ways(op: str) -> list[Way]:
    """Every way to run an op on this machine; the Triton interpreter does not count."""
    found = [Way("reference", None, "cpu")]
    if _backend.why_not("cpu", op, torch.device("cpu"), torch.float32) is None:
        found += [Way("cpu", isa, "cpu") for isa in _C.available_isas()]
    if torch.cuda.is_available():
        found += [
            Way(name, None, "cuda")
            for name in ("triton", "cuda")
            if _backend.why_not(name, op, torch.device("cuda", 0), torch.float32) is None
        ]
    return found


@contextlib.contextmanager
def running(way: Way, threads: int | None = None) -> Iterator[None]:
    """Runs the ops of this block one way, on so many threads."""
    isa, count, backend = _C.active_isa(), torch.get_num_threads(), _backend.forced()
    try:
        _backend.set_backend(way.backend)
        if way.isa is not None:
            _C.set_isa(way.isa)
        if threads is not None:
            torch.set_num_threads(threads)
        yield
    finally:
        _backend.set_backend(backend)
        _C.set_isa(isa)
        torch.set_num_threads(count)


def error(actual: Tensor, exact: Tensor) -> float:
    """The largest difference over the largest exact magnitude; NaN and infinities must be in the same places."""
    if actual.shape != exact.shape:
        raise AssertionError(f"shape {tuple(actual.shape)} is not {tuple(exact.shape)}")
    actual, exact = actual.detach().double().cpu(), exact.detach().double().cpu()
    finite = exact.isfinite()
    odd = torch.where(finite, 0, exact), torch.where(actual.isfinite(), 0, actual)
    if not torch.equal(odd[0].nan_to_num(1, 2, 3), odd[1].nan_to_num(1, 2, 3)):
        raise AssertionError("NaN or infinities in other places")
    if not finite.any():
        return 0.0
    scale = exact[finite].abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    return float((actual[finite] - exact[finite]).abs().max() / scale)


def assert_close(actual: Tensor, exact: Tensor, limit: float, baseline: Tensor | None = None, what: str = "") -> None:
    """Fails unless the error is within limit, or within twice the error of a plain implementation in that dtype."""
    allowed = limit if baseline is None else max(limit, 2 * error(baseline, exact))
    found = error(actual, exact)
    if found > allowed:
        raise AssertionError(f"{what}: relative error {found:.3g}, allowed {allowed:.3g}, shape {tuple(exact.shape)}")
