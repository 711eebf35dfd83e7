# SPDX-License-Identifier: Apache-2.0
"""Everything that needs a real GPU, in one call of under ten minutes: correctness, determinism, speed.

    python bench/gpu_check.py [--out gpu_check.json] [--minutes 9]

Values and gradients on CUDA tensors are compared with the float64 reference on the CPU, deterministic
backward passes with themselves, and times (CUDA events) with torchvision's or plain PyTorch's. The JSON
names the GPU, driver and versions. Without a GPU it says so and does nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import gpu_cases
import gpu_sparse
import torch
from flexor import ops, reference

DEVICE = "cuda"
# Relative to the largest magnitude of the exact result. TF32 is off in the comparison.
LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


class Shape(NamedTuple):
    """A 3x3 modulated convolution with stride 1 and padding = dilation."""

    batch: int
    channels: int
    height: int
    width: int
    groups: int = 1
    offset_groups: int = 1
    dilation: int = 1

    def tensors(self, dtype: torch.dtype, channels_last: bool, offset_dtype: torch.dtype) -> list[torch.Tensor]:
        """Input, offset, weight, bias, mask."""
        b, c, h, w = self.batch, self.channels, self.height, self.width
        generator = torch.Generator().manual_seed(0)
        randn = lambda *size: torch.randn(*size, generator=generator)  # noqa: E731
        input = randn(b, c, h, w).to(dtype)
        made = [
            input.to(memory_format=torch.channels_last) if channels_last else input,
            (2 * randn(b, 18 * self.offset_groups, h, w)).to(offset_dtype),
            (randn(c, c // self.groups, 3, 3) / (c // self.groups * 9) ** 0.5).to(dtype),
            randn(c).to(dtype),
            randn(b, 9 * self.offset_groups, h, w).to(offset_dtype),
        ]
        return [t.to(DEVICE) for t in made]

    @property
    def geometry(self) -> dict[str, tuple[int, int]]:
        return {"padding": (self.dilation,) * 2, "dilation": (self.dilation,) * 2}

    @property
    def flops(self) -> int:
        return 2 * self.batch * self.height * self.width * self.channels * self.channels // self.groups * 9


CHECKED = {
    "one offset group": Shape(2, 64, 28, 20),
    "fami": Shape(1, 48, 24, 18, offset_groups=12, dilation=3),
    "wide": Shape(1, 256, 14, 14),
    "dcpose": Shape(1, 17, 24, 18, offset_groups=17, dilation=6),
    "grouped": Shape(2, 64, 15, 13, groups=4, offset_groups=2),
    "depthwise": Shape(1, 32, 16, 16, groups=32),
    "uneven groups": Shape(1, 24, 9, 11, groups=4, offset_groups=3),
}
EDGES = Shape(1, 32, 8, 9)
WARPED = (2, 20, 33, 41)
TIMED = {
    "dcpose 17@96x72 dg17 B8": Shape(8, 17, 96, 72, offset_groups=17, dilation=3),
    "fami 48@96x72 dg12 B8": Shape(8, 48, 96, 72, offset_groups=12, dilation=3),
    "edvr 64@64x64 dg8 B8": Shape(8, 64, 64, 64, offset_groups=8),
    "r50 128@100x168 B8": Shape(8, 128, 100, 168),
    "r50 256@56x56 B8": Shape(8, 256, 56, 56),
    "r50 512@28x28 B8": Shape(8, 512, 28, 28),
}


class Deadline(Exception):
    pass


class Report:
    """Collects checks, printing each; the whole run keeps to a deadline."""

    def __init__(self, minutes: float):
        self.end = time.monotonic() + 60 * minutes
        self.checks: list[dict[str, object]] = []
        self.times: list[dict[str, object]] = []

    def check(self, name: str, run: Callable[[], float], limit: float) -> None:
        if time.monotonic() > self.end:
            raise Deadline
        try:
            error, message = run(), ""
        except Exception as exception:  # one broken kernel must not hide what the others do
            error, message = float("nan"), f"{type(exception).__name__}: {exception}"
        passed = error <= limit
        self.checks.append({"name": name, "error": error, "limit": limit, "passed": passed, "message": message})
        if not passed:
            print(f"FAILED {name}: error {error:.3g}, limit {limit:.3g} {message}")


def relative_error(actual: torch.Tensor, exact: torch.Tensor) -> float:
    actual = actual.detach().double().cpu()
    if not torch.equal(actual.isnan(), exact.isnan()):
        return float("inf")
    difference = (actual - exact).nan_to_num().abs().amax()
    return float(difference / exact.nan_to_num().abs().amax().clamp_min(1e-30))


def gradients(call: Callable[..., torch.Tensor], tensors: list[torch.Tensor], grad: torch.Tensor) -> list[torch.Tensor]:
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    return list(torch.autograd.grad(call(*leaves), leaves, grad))


def deform(shape: Shape, backend: str | None) -> Callable[..., torch.Tensor]:
    function = ops.deform_conv2d if backend else reference.deform_conv2d
    extra = {"backend": backend} if backend else {}

    def call(input, offset, weight, bias, mask):
        return function(input, offset, weight, bias, mask=mask, **shape.geometry, **extra)

    return call


def check_deform(report: Report) -> None:
    """Every dtype and layout of two shapes, float32 and bfloat16 of the rest: each combination compiles anew."""
    for i, (name, shape) in enumerate(CHECKED.items()):
        combinations = [(torch.float32, False, torch.float32), (torch.bfloat16, True, torch.float32)]
        if i < 2:
            combinations += [(dtype, last, dtype) for dtype in LIMITS for last in (False, True)]
        for dtype, channels_last, offset_dtype in dict.fromkeys(combinations):
            label = f"{name} {dtype} {'nhwc' if channels_last else 'nchw'} offsets {offset_dtype}"
            tensors = shape.tensors(dtype, channels_last, offset_dtype)
            check_op(report, label, deform(shape, None), deform(shape, "triton"), tensors)


def check_dynamic(report: Report) -> None:
    """Attentions stay float32 beside bfloat16; these kernels are always deterministic."""
    for case in (*gpu_cases.CHECKED, *gpu_sparse.CHECKED):
        for dtype, channels_last in ((torch.float32, False), (torch.bfloat16, True)):
            label = f"{case.name} {dtype} {'nhwc' if channels_last else 'nchw'}"
            tensors = case.tensors(dtype, channels_last, torch.float32, DEVICE)
            check_op(report, label, case.reference, case.kernel, tensors, modes=(True,))


def check_op(
    report: Report,
    label: str,
    plain: Callable[..., torch.Tensor],
    kernel: Callable[..., torch.Tensor],
    tensors: list[torch.Tensor],
    modes: tuple[bool, ...] = (False, True),
) -> None:
    """Forward and gradients, these with deterministic algorithms asked for or not, as modes say."""
    dtype = tensors[0].dtype
    exact = [t.double().cpu() for t in tensors]
    output = plain(*exact)
    grad = torch.randn_like(output).to(dtype)
    exact_gradients = gradients(plain, exact, grad.double())
    report.check(f"forward {label}", lambda: relative_error(kernel(*tensors), output), LIMITS[dtype])
    for deterministic in modes:
        torch.use_deterministic_algorithms(deterministic)
        try:
            check_gradients(report, label, kernel, tensors, grad.to(DEVICE), exact_gradients, deterministic)
        finally:
            torch.use_deterministic_algorithms(False)


def check_gradients(
    report: Report,
    label: str,
    kernel: Callable[..., torch.Tensor],
    tensors: list[torch.Tensor],
    grad: torch.Tensor,
    exact: list[torch.Tensor],
    deterministic: bool,
) -> None:
    found: list[torch.Tensor] = []

    def worst() -> float:
        found.extend(gradients(kernel, tensors, grad))
        return max(relative_error(a, e) for a, e in zip(found, exact, strict=True))

    kind = "deterministic " if deterministic else ""
    report.check(f"{kind}gradients {label}", worst, LIMITS[tensors[0].dtype])
    if deterministic and found:
        again = lambda: float(  # noqa: E731
            sum(not torch.equal(a, b) for a, b in zip(found, gradients(kernel, tensors, grad), strict=True))
        )
        report.check(f"same bits twice {label}", again, 0.0)


def check_edges(report: Report) -> None:
    """NaN, infinite and border offsets; a pixel sampled from far outside."""
    shape = EDGES
    tensors = [t.cpu() for t in shape.tensors(torch.float32, False, torch.float32)]
    offset = tensors[1]
    offset[0, 0, 0, 0] = torch.nan
    offset[0, 1, 1, 1] = torch.inf
    offset[0, 2, 2, 2] = -1e30
    offset[0, 8:10] = offset[0, 8:10].round()
    exact = [t.double() for t in tensors]
    output = deform(shape, None)(*exact)
    cuda = [t.to(DEVICE) for t in tensors]
    kernel = deform(shape, "triton")
    report.check("edges forward", lambda: relative_error(kernel(*cuda), output), 1e-5)
    grad = torch.randn_like(output)
    grad[:, :, 0, 0] = 0
    expected = gradients(deform(shape, None), exact, grad)
    report.check(
        "edges gradient of the input",
        lambda: relative_error(gradients(kernel, cuda, grad.float().to(DEVICE))[0], expected[0]),
        1e-5,
    )


def check_warps(report: Report) -> None:
    b, _, h, w = WARPED
    matrix = torch.tensor([[[1.125, 0.125, 2.0], [-0.25, 0.875, 3.0]]]).repeat(b, 1, 1)
    for dtype, limit in LIMITS.items():
        for channels_last in (False, True):
            for mode in ("bilinear", "nearest"):
                for padding in ("zeros", "border"):
                    label = f"{dtype} {'nhwc' if channels_last else 'nchw'} {mode} {padding}"
                    image = torch.randn(WARPED).to(dtype)
                    if channels_last:
                        image = image.to(memory_format=torch.channels_last)
                    flow = (6 * torch.randn(b, 2, h - 3, w - 4)).to(dtype)
                    check_warp(report, label, image, flow, matrix, mode, padding, limit)


def check_warp(
    report: Report,
    label: str,
    image: torch.Tensor,
    flow: torch.Tensor,
    matrix: torch.Tensor,
    mode: str,
    padding: str,
    limit: float,
) -> None:
    if mode == "nearest":  # does not depend on the flow; and ties of an affine position depend on rounding
        plain = lambda a: reference.warp2d(a, flow.double(), mode, padding)  # noqa: E731
        kernel = lambda a: ops.warp2d(a, flow.to(DEVICE), mode, padding, backend="triton")  # noqa: E731
        compare(report, f"warp2d {label}", plain, kernel, [image], limit)
        return
    plain = lambda a, f: reference.warp2d(a, f, mode, padding)  # noqa: E731
    kernel = lambda a, f: ops.warp2d(a, f, mode, padding, backend="triton")  # noqa: E731
    compare(report, f"warp2d {label}", plain, kernel, [image, flow], limit)
    plain = lambda a: reference.affine_warp2d(a, matrix.double(), None, mode, padding)  # noqa: E731
    kernel = lambda a: ops.affine_warp2d(a, matrix.to(DEVICE), None, mode, padding, backend="triton")  # noqa: E731
    compare(report, f"affine_warp2d {label}", plain, kernel, [image], limit)


def compare(
    report: Report,
    label: str,
    plain: Callable[..., torch.Tensor],
    kernel: Callable[..., torch.Tensor],
    inputs: list[torch.Tensor],
    limit: float,
) -> None:
    exact_inputs = [t.double() for t in inputs]
    cuda = [t.to(DEVICE) for t in inputs]
    output = plain(*exact_inputs)
    report.check(f"forward {label}", lambda: relative_error(kernel(*cuda), output), limit)
    grad = torch.randn_like(output).to(inputs[0].dtype)
    expected = gradients(plain, exact_inputs, grad.double())

    def worst() -> float:
        found = gradients(kernel, cuda, grad.to(DEVICE))
        return max(relative_error(a, e) for a, e in zip(found, expected, strict=True))

    report.check(f"gradients {label}", worst, limit)


def milliseconds(run: Callable[[], object]) -> float:
    """Median of CUDA-event times; the L2 cache is overwritten before each."""
    flush = torch.empty(64 * 2**20, dtype=torch.int32, device=DEVICE)
    times = []
    for _ in range(3):
        run()
    for _ in range(20):
        flush.zero_()
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop))
    return sorted(times)[len(times) // 2]


def benchmark(report: Report) -> None:
    try:
        from torchvision.ops import deform_conv2d as torchvision_deform_conv2d
    except ImportError:
        torchvision_deform_conv2d = None
        print("torchvision is not installed: times without a peer")
    for name, shape in TIMED.items():
        for dtype, channels_last in ((torch.float32, False), (torch.bfloat16, True), (torch.float16, False)):
            tensors = shape.tensors(dtype, channels_last, dtype)

            def torchvision_call(input, offset, weight, bias, mask, shape=shape):
                return torchvision_deform_conv2d(input, offset, weight, bias, mask=mask, **shape.geometry)

            ways = {"flexor": deform(shape, "triton")}
            if torchvision_deform_conv2d and dtype != torch.bfloat16:
                ways["torchvision"] = torchvision_call
            time_ways(report, name, ways, tensors, shape.flops)
    for case in (*gpu_cases.TIMED, *gpu_sparse.TIMED):
        for dtype, channels_last in ((torch.float32, False), (torch.bfloat16, True)):
            tensors = case.tensors(dtype, channels_last, dtype, DEVICE)
            time_ways(report, case.name, {"flexor": case.kernel, "torch": case.peer}, tensors, case.flops)


def time_ways(
    report: Report, name: str, ways: dict[str, Callable[..., torch.Tensor]], tensors: list[torch.Tensor], flops: int
) -> None:
    dtype = tensors[0].dtype
    for way, call in ways.items():
        if time.monotonic() > report.end:
            raise Deadline
        leaves = [t.clone().requires_grad_() for t in tensors]
        output = call(*leaves)
        grad = torch.randn_like(output)
        forward = milliseconds(lambda: call(*tensors))  # noqa: B023
        both = milliseconds(lambda: torch.autograd.grad(call(*leaves), leaves, grad))  # noqa: B023
        row = {
            "shape": name, "dtype": str(dtype), "channels_last": not tensors[0].is_contiguous(), "library": way,
            "forward_ms": forward, "forward_backward_ms": both, "forward_tflops": flops / forward / 1e9,
        }  # fmt: skip
        report.times.append(row)
        print(f"{name:32} {dtype!s:15} {way:12} {forward:8.3f} ms forward {both:8.3f} ms with backward")


def machine() -> dict[str, object]:
    import triton

    properties = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    smi = subprocess.run(query, capture_output=True, text=True, check=False) if torch.version.cuda else None
    return {
        "gpu": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "driver": smi.stdout.splitlines()[0] if smi and smi.stdout else None,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": sys.version.split()[0],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu_check.json"))
    parser.add_argument("--minutes", type=float, default=9.0, help="stop after this long and report what was done")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu-check needs a GPU that torch can use; there is none here, so nothing was run")
        return 0
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.manual_seed(0)
    report = Report(arguments.minutes)
    finished = True
    try:
        check_edges(report)
        gpu_sparse.check_index(report.check, DEVICE)
        check_warps(report)
        # The times come before the long list of checks, so that a slow first compilation cannot squeeze them out.
        benchmark(report)
        check_dynamic(report)
        check_deform(report)
    except Deadline:
        finished = False
        print(f"stopped after {arguments.minutes} minutes")
    failed = sum(not c["passed"] for c in report.checks)
    result = {"machine": machine(), "finished": finished, "checks": report.checks, "times": report.times}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{len(report.checks)} checks, {failed} failed; {arguments.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
