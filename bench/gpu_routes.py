# SPDX-License-Identifier: Apache-2.0
"""What gpu_check.py runs of the ways to a kernel on a GPU: compilers, autocast, tensors past 2**31 elements."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import gpu_cases
import gpu_deform
import gpu_report
import gpu_sparse
import torch
from flexor import ops, reference
from flexor.testing import error
from gpu_report import LIMITS, Op, Report, check_op
from torch import Tensor

DEFAULTS = (torch.float32, False, torch.float32)
WARP = gpu_cases.Case(
    "warp2d", ops.warp2d, reference.warp2d, reference.warp2d, ((2, 20, 33, 41), (2, 2, 33, 41)), (), 0
)
DENSE = {
    case.name: case
    for case in (
        WARP,
        gpu_cases.odconv(2, 40, 9, 4),
        gpu_cases.matching(2, 48, 15, 0, 5),
        gpu_cases.grid(33, 48, 40, "cr"),
    )
}
SPARSE = gpu_sparse.SparseCase(20, 48, 40)
ROUTED = ("one offset group", "grouped")
AUTOCAST_LIMIT = 3e-2  # operands and result are rounded to bfloat16
PIXELS = 1024  # a side of the images past 2**31 elements


def groups() -> Iterator[tuple[str, Callable[[Report], None]]]:
    for name in (*DENSE, *(f"deform_conv2d {shape}" for shape in ROUTED), SPARSE.name):
        yield f"compiled {name}", partial(check_compiled, name)
        yield f"autocast {name}", partial(check_autocast, name)
    yield "past 2**31 elements", check_wide


def routed(name: str) -> tuple[Op, Op, list[Tensor]]:
    """Reference, op with the automatic choice of backend, and float32 tensors."""
    if name in DENSE:
        case = DENSE[name]
        return case.reference, partial(case.op, backend=None), case.tensors(*DEFAULTS)
    if name == SPARSE.name:
        map = SPARSE.map(torch.device(gpu_report.DEVICE), None)  # made here: a compiler would trace the making of it
        call = lambda features, weight, *others: ops.sparse_conv(features, weight, map, *others)  # noqa: E731
        return SPARSE.reference, call, SPARSE.tensors(*DEFAULTS)
    shape = gpu_deform.CHECKED[name.removeprefix("deform_conv2d ")]

    def deform(input, offset, weight, bias, mask):
        return ops.deform_conv2d(input, offset, weight, bias, mask=mask, **shape.geometry)

    return gpu_deform.deform(shape, None), deform, shape.tensors(*DEFAULTS)


def check_compiled(name: str, report: Report) -> None:
    plain, call, tensors = routed(name)
    check_op(report, f"compiled {name}", plain, torch.compile(call, fullgraph=True), tensors, modes=(False,))


def check_autocast(name: str, report: Report) -> None:
    plain, call, tensors = routed(name)

    def cast(*args: Tensor) -> Tensor:
        with torch.autocast(gpu_report.DEVICE, torch.bfloat16):
            return call(*args)

    check_op(report, f"autocast {name}", plain, cast, tensors, modes=(False,), limit=AUTOCAST_LIMIT)


def check_wide(report: Report) -> None:
    """Channels at the end of an image past 2**31 elements, as they come out of an image of their own."""
    channels = 2**31 // PIXELS**2 + 64
    device = {"device": gpu_report.DEVICE, "dtype": torch.float16}
    input = torch.randn(1, channels, PIXELS, PIXELS, **device)
    last = input[:, -32:].contiguous()
    flow = 4 * torch.randn(1, 2, PIXELS, PIXELS, **device)
    offset = torch.randn(1, 18, PIXELS, PIXELS, **device)
    weight = torch.randn(channels, 32, 3, 3, **device) / 17
    kernels = torch.randn(1, channels, 3, 3, **device)
    ways = {
        "warp2d": lambda a: ops.warp2d(a, flow),
        "xcorr2d_depthwise": lambda a: ops.xcorr2d_depthwise(a, kernels[:, -a.shape[1] :], padding=1),
        "deform_conv2d": lambda a: ops.deform_conv2d(a, offset, weight[-a.shape[1] :], padding=1),
    }
    for name, call in ways.items():
        what = f"{name} past 2**31 elements"
        report.check(what, lambda: differing(call, input, last), LIMITS[torch.float16])  # noqa: B023


def differing(call: Op, whole: Tensor, part: Tensor) -> float:
    """The larger error, of the output or of the gradient."""
    leaves = whole.requires_grad_(), part.requires_grad_()
    found, expected = (call(leaf)[:, -part.shape[1] :] for leaf in leaves)
    grad = torch.randn_like(expected)
    gradients = (
        torch.autograd.grad(output, leaf, grad)[0] for output, leaf in zip((found, expected), leaves, strict=True)
    )
    found_gradient, expected_gradient = (gradient[:, -part.shape[1] :] for gradient in gradients)
    return max(error(found, expected), error(found_gradient, expected_gradient))
