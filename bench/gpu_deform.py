# SPDX-License-Identifier: Apache-2.0
"""What gpu_check.py runs of deformable convolution and of warps."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import gpu_report
import torch
from flexor import ops, reference
from flexor.testing import error
from gpu_report import LIMITS, Op, Report, check_op, gradients, on_device
from torch import Tensor


class Shape(NamedTuple):
    """A 3x3 modulated convolution with stride 1 and padding = dilation."""

    batch: int
    channels: int
    height: int
    width: int
    groups: int = 1
    offset_groups: int = 1
    dilation: int = 1

    def tensors(self, dtype: torch.dtype, channels_last: bool, offset_dtype: torch.dtype) -> list[Tensor]:
        """Input, offset, weight, bias, mask, on the CPU."""
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
        return made

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


def deform(shape: Shape, backend: str | None) -> Op:
    """The op on a backend, None for the reference."""
    function = ops.deform_conv2d if backend else reference.deform_conv2d
    extra = {"backend": backend} if backend else {}

    def call(input, offset, weight, bias, mask):
        return function(input, offset, weight, bias, mask=mask, **shape.geometry, **extra)

    return call


def groups() -> Iterator[tuple[str, Callable[[Report], None]]]:
    yield "deform edges", check_edges
    for name, shape in CHECKED.items():
        for channels_last in gpu_report.CHANNELS_LAST:
            yield f"deform {name}{' nhwc' if channels_last else ''}", partial(check_deform, name, shape, channels_last)
    for dtype in LIMITS:
        yield f"warps {dtype}", partial(check_warps, dtype)


def check_deform(name: str, shape: Shape, channels_last: bool, report: Report) -> None:
    for dtype in LIMITS:
        wide = torch.float32 if dtype == torch.bfloat16 else dtype  # offsets stay float32 beside bfloat16
        label = f"deform_conv2d {name} {dtype} {'nhwc' if channels_last else 'nchw'} offsets {wide}"
        check_op(report, label, deform(shape, None), deform(shape, "triton"), shape.tensors(dtype, channels_last, wide))


def check_edges(report: Report) -> None:
    """NaN, infinite and border offsets; a pixel sampled from far outside."""
    shape = EDGES
    tensors = shape.tensors(torch.float32, False, torch.float32)
    offset = tensors[1]
    offset[0, 0, 0, 0] = torch.nan
    offset[0, 1, 1, 1] = torch.inf
    offset[0, 2, 2, 2] = -1e30
    offset[0, 8:10] = offset[0, 8:10].round()
    exact = [t.double() for t in tensors]
    output = deform(shape, None)(*exact)
    cuda = on_device(tensors)
    kernel = deform(shape, "triton")
    report.check("edges forward", lambda: error(kernel(*cuda), output), 1e-5)
    grad = torch.randn_like(output)
    grad[:, :, 0, 0] = 0
    expected = gradients(deform(shape, None), exact, grad)
    (cuda_grad,) = on_device([grad.float()])
    report.check("edges gradient of the input", lambda: error(gradients(kernel, cuda, cuda_grad)[0], expected[0]), 1e-5)


def check_warps(dtype: torch.dtype, report: Report) -> None:
    b, _, h, w = WARPED
    matrix = torch.tensor([[[1.125, 0.125, 2.0], [-0.25, 0.875, 3.0]]]).repeat(b, 1, 1)
    for channels_last, mode, padding in itertools.product(
        gpu_report.CHANNELS_LAST, ("bilinear", "nearest"), ("zeros", "border")
    ):
        label = f"{dtype} {'nhwc' if channels_last else 'nchw'} {mode} {padding}"
        image = torch.randn(WARPED).to(dtype)
        if channels_last:
            image = image.to(memory_format=torch.channels_last)
        flow = (6 * torch.randn(b, 2, h - 3, w - 4)).to(dtype)
        check_warp(report, label, image, flow, matrix, mode, padding)


def check_warp(
    report: Report, label: str, image: Tensor, flow: Tensor, matrix: Tensor, mode: str, padding: str
) -> None:
    wide = torch.float64 if image.dtype == torch.float64 else torch.float32  # what the op inverts the matrix in
    flow_there, matrix_there = on_device([flow, matrix.to(wide)])
    if mode == "nearest":  # does not depend on the flow; and ties of an affine position depend on rounding
        plain = lambda a: reference.warp2d(a, flow.double(), mode, padding)  # noqa: E731
        kernel = lambda a: ops.warp2d(a, flow_there, mode, padding, backend="triton")  # noqa: E731
        check_op(report, f"warp2d {label}", plain, kernel, [image])
        return
    plain = lambda a, f: reference.warp2d(a, f, mode, padding)  # noqa: E731
    kernel = lambda a, f: ops.warp2d(a, f, mode, padding, backend="triton")  # noqa: E731
    check_op(report, f"warp2d {label}", plain, kernel, [image, flow])
    plain = lambda a: reference.affine_warp2d(a, matrix.double(), None, mode, padding)  # noqa: E731
    kernel = lambda a: ops.affine_warp2d(a, matrix_there, None, mode, padding, backend="triton")  # noqa: E731
    check_op(report, f"affine_warp2d {label}", plain, kernel, [image])
