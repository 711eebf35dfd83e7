# SPDX-License-Identifier: Apache-2.0
"""What every check of gpu_check.py is made of: a list of results, and an op beside its float64 reference on the CPU."""

from __future__ import annotations

import contextlib
import itertools
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import torch
from flexor._cuda import launch
from flexor.testing import error

Tensors = Sequence[torch.Tensor]
Op = Callable[..., torch.Tensor]

DEVICE = "cuda"
CHANNELS_LAST = (False, True)
# Relative to the largest magnitude of the exact result. TF32 is off in the comparison.
LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


class Deadline(Exception):
    pass


class Report:
    """Collects checks, printing those that fail; the whole run keeps to a deadline."""

    def __init__(self, seconds: float):
        self.end = time.monotonic() + seconds
        self.checks: list[dict[str, object]] = []

    def keep_deadline(self) -> None:
        if time.monotonic() > self.end:
            raise Deadline

    def check(self, name: str, run: Callable[[], float], limit: float) -> None:
        self.keep_deadline()
        try:
            found, message = float(run()), ""
        except Exception as exception:  # one broken kernel must not hide what the others do
            found, message = float("nan"), f"{type(exception).__name__}: {exception}"
            traceback.print_exc()
        self.add(name, found, limit, found <= limit, message)

    def add(self, name: str, found: float, limit: float, passed: bool, message: str) -> None:
        error = found if abs(found) < float("inf") else None  # JSON knows no NaN
        self.checks.append({"name": name, "error": error, "limit": limit, "passed": passed, "message": message})
        if not passed:
            print(f"FAILED {name}: error {found:.3g}, limit {limit:.3g} {message}", flush=True)


def on_device(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    return [t.to(DEVICE) for t in tensors]


@contextlib.contextmanager
def only_files(suffix: str) -> Iterator[None]:
    """CUDA C++ is found as files of this kind only: .fatbin, made by nvcc, or .cu, for NVRTC."""
    find = launch.Source.find
    launch.Source.find = lambda self, wanted: find(self, wanted) if wanted == suffix else None
    try:
        yield
    finally:
        launch.Source.find = find


def gradients(call: Op, tensors: Tensors, grad: torch.Tensor) -> list[torch.Tensor]:
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    return list(torch.autograd.grad(call(*leaves), leaves, grad))


def worst(found: Tensors, exact: Tensors) -> float:
    return max(error(a, e) for a, e in zip(found, exact, strict=True))


def check_op(
    report: Report,
    label: str,
    plain: Op,
    kernel: Op,
    tensors: Tensors,
    modes: tuple[bool, ...] = (False, True),
    limit: float | None = None,
) -> None:
    """Forward and gradients, these with deterministic algorithms asked for or not, as modes say."""
    dtype = tensors[0].dtype
    limit = LIMITS[dtype] if limit is None else limit
    exact = [t.double().cpu() for t in tensors]
    output = plain(*exact)
    grad = torch.randn_like(output).to(dtype)
    exact_gradients = gradients(plain, exact, grad.double())
    tensors, grad = on_device(tensors), grad.to(DEVICE)
    report.check(f"forward {label}", lambda: error(kernel(*tensors), output), limit)
    for deterministic in modes:
        torch.use_deterministic_algorithms(deterministic)
        try:
            check_gradients(report, label, kernel, tensors, grad, exact_gradients, deterministic, limit)
        finally:
            torch.use_deterministic_algorithms(False)


class Case(Protocol):
    """An op with a shape; attentions may have a dtype of their own."""

    @property
    def name(self) -> str: ...
    def tensors(self, dtype: torch.dtype, channels_last: bool, attention_dtype: torch.dtype) -> Tensors: ...
    def reference(self, *tensors: torch.Tensor) -> torch.Tensor: ...
    def kernel(self, *tensors: torch.Tensor) -> torch.Tensor: ...


def check_case(case: Case, report: Report) -> None:
    """Attentions stay float32 beside bfloat16; these kernels are always deterministic."""
    for dtype, channels_last in itertools.product(LIMITS, CHANNELS_LAST):
        tensors = case.tensors(dtype, channels_last, torch.float32 if dtype == torch.bfloat16 else dtype)
        label = f"{case.name} {dtype} {'nhwc' if channels_last else 'nchw'}"
        check_op(report, label, case.reference, case.kernel, tensors, modes=(True,))


def check_gradients(
    report: Report,
    label: str,
    kernel: Op,
    tensors: Tensors,
    grad: torch.Tensor,
    exact: Tensors,
    deterministic: bool,
    limit: float,
) -> None:
    found: list[torch.Tensor] = []

    def run() -> float:
        found.extend(gradients(kernel, tensors, grad))
        return worst(found, exact)

    kind = "deterministic " if deterministic else ""
    report.check(f"{kind}gradients {label}", run, limit)
    if deterministic and found:
        again = lambda: sum(  # noqa: E731
            not torch.equal(a, b) for a, b in zip(found, gradients(kernel, tensors, grad), strict=True)
        )
        report.check(f"same bits twice {label}", again, 0.0)
