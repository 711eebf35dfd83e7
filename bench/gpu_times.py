# SPDX-License-Identifier: Apache-2.0
"""Times of gpu_check.py, by CUDA events, beside torchvision's or plain PyTorch's in the same process."""

from __future__ import annotations

from collections.abc import Callable

import gpu_cases
import gpu_deform
import gpu_report
import gpu_sparse
import torch
from gpu_report import Op, Report, on_device

Rows = list[dict[str, object]]


def milliseconds(run: Callable[[], object]) -> float:
    """Median of CUDA-event times; the L2 cache is overwritten before each."""
    flush = torch.empty(64 * 2**20, dtype=torch.int32, device=gpu_report.DEVICE)
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


def measure(report: Report, rows: Rows) -> None:
    try:
        from torchvision.ops import deform_conv2d as torchvision_deform_conv2d
    except ImportError:
        torchvision_deform_conv2d = None
        print("torchvision is not installed: times without a peer")
    for name, shape in gpu_deform.TIMED.items():
        for dtype, channels_last in ((torch.float32, False), (torch.bfloat16, True), (torch.float16, False)):

            def torchvision_call(input, offset, weight, bias, mask, shape=shape):
                return torchvision_deform_conv2d(input, offset, weight, bias, mask=mask, **shape.geometry)

            ways = {"flexor": gpu_deform.deform(shape, "triton")}
            if torchvision_deform_conv2d and dtype != torch.bfloat16:
                ways["torchvision"] = torchvision_call
            time_ways(report, rows, name, ways, shape.tensors(dtype, channels_last, dtype), shape.flops)
    for case in (*gpu_cases.TIMED, *gpu_sparse.TIMED):
        for dtype, channels_last in ((torch.float32, False), (torch.bfloat16, True)):
            tensors = case.tensors(dtype, channels_last, dtype)
            time_ways(report, rows, case.name, {"flexor": case.kernel, "torch": case.peer}, tensors, case.flops)


def time_ways(
    report: Report, rows: Rows, name: str, ways: dict[str, Op], tensors: list[torch.Tensor], flops: int
) -> None:
    tensors = on_device(tensors)
    dtype = tensors[0].dtype
    for way, call in ways.items():
        report.keep_deadline()
        leaves = [t.clone().requires_grad_() for t in tensors]
        output = call(*leaves)
        grad = torch.randn_like(output)
        forward = milliseconds(lambda: call(*tensors))  # noqa: B023
        both = milliseconds(lambda: torch.autograd.grad(call(*leaves), leaves, grad))  # noqa: B023
        row = {
            "shape": name, "dtype": str(dtype), "channels_last": not tensors[0].is_contiguous(), "library": way,
            "forward_ms": forward, "forward_backward_ms": both, "forward_tflops": flops / forward / 1e9,
        }  # fmt: skip
        rows.append(row)
        print(f"{name:32} {dtype!s:15} {way:12} {forward:8.3f} ms forward {both:8.3f} ms with backward")
