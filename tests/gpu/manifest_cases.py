# SPDX-License-Identifier: Apache-2.0
"""The calls whose kernels manifest.py compiles: shapes of real networks, every dtype, sizes of one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from flexor.kernels import (
    affine_warp2d,
    deform_conv2d,
    grid_conv,
    odconv2d,
    sparse_conv,
    sparse_pool,
    warp2d,
    xcorr2d,
    xcorr2d_depthwise,
)


def image(
    channels: int, size: tuple[int, int], dtype: torch.dtype, channels_last: bool, batch: int = 8
) -> torch.Tensor:
    format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(batch, channels, *size, device="meta", dtype=dtype, memory_format=format)


@contextlib.contextmanager
def tf32_allowed(allowed: bool) -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def deform(
    channels: int,
    size: tuple[int, int],
    offset_groups: int,
    dtype: torch.dtype,
    channels_last: bool,
    tf32: bool = False,
    groups: int = 1,
) -> Callable[[], None]:
    """A launcher of all passes of a 3x3 modulated convolution, batch 8."""

    def run() -> None:
        meta = {"device": "meta", "dtype": dtype}
        input = image(channels, size, dtype, channels_last)
        offset = torch.empty(8, 18 * offset_groups, *size, **meta)
        mask = torch.empty(8, 9 * offset_groups, *size, **meta)
        weight = torch.empty(channels, channels // groups, 3, 3, **meta)
        bias = torch.empty(channels, **meta)
        geometry = ((1, 1), (1, 1), (1, 1), groups, offset_groups)
        with tf32_allowed(tf32):
            deform_conv2d.forward(input, offset, weight, bias, mask, *geometry)
            for deterministic in (False, True):
                needs = (True, True, not deterministic, False, True)
                deform_conv2d.backward(input, input, offset, weight, mask, *geometry, needs, deterministic)

    return run


def warp(dtype: torch.dtype, channels_last: bool, affine: bool) -> Callable[[], None]:
    """A launcher of all passes of a warp of 48 channels, batch 8."""

    def run() -> None:
        input = image(48, (96, 72), dtype, channels_last)
        if affine:
            matrix = torch.empty(8, 2, 3, device="meta")
            affine_warp2d.forward(input, matrix, (96, 72), "bilinear", "zeros")
            affine_warp2d.backward(input, input, matrix, "bilinear", "zeros", (True, True), False)
        else:
            flow = torch.empty(8, 2, 96, 72, device="meta", dtype=dtype)
            warp2d.forward(input, flow, "bilinear", "border")
            for deterministic in (False, True):
                warp2d.backward(input, input, flow, "bilinear", "border", (True, True), deterministic)

    return run


def dynamic(
    channels: int,
    size: tuple[int, int],
    kernels: int,
    dtype: torch.dtype,
    channels_last: bool,
    tf32: bool = False,
    groups: int = 1,
    attended: bool = True,
) -> Callable[[], None]:
    """A launcher of all passes of a 3x3 ODConv with float32 attentions, batch 8."""

    def run() -> None:
        input = image(channels, size, dtype, channels_last)
        weight = torch.empty(kernels, channels, channels // groups, 3, 3, device="meta", dtype=dtype)
        widths = (channels, channels, 9, kernels)
        attentions = [torch.empty(8, n, device="meta") if attended else None for n in widths]
        geometry = ((1, 1), (1, 1), (1, 1), groups)
        with tf32_allowed(tf32):
            odconv2d.forward(input, weight, *attentions, *geometry)
            odconv2d.backward(input, input, weight, *attentions, *geometry, (True,) * 6, False)

    return run


def matching(
    outputs: int, channels: int, size: int, kernel: int, dtype: torch.dtype, channels_last: bool
) -> Callable[[], None]:
    """A launcher of all passes of both cross-correlations of a square image, batch 8."""

    def run() -> None:
        input = image(channels, (size, size), dtype, channels_last)
        kernels = torch.empty(8, outputs, channels, kernel, kernel, device="meta", dtype=dtype)
        for op, template in ((xcorr2d, kernels), (xcorr2d_depthwise, kernels[:, 0])):
            output = op.forward(input, template, (kernel // 2, kernel // 2))
            op.backward(output, input, template, (kernel // 2, kernel // 2), (True, True), False)

    return run


def grid(channels: int, outputs: int, batch: int, dtype: torch.dtype, tf32: bool = False) -> Callable[[], None]:
    """A launcher of all passes of a D-GridConv layer on 5x5 grids."""

    def run() -> None:
        meta = {"device": "meta", "dtype": dtype}
        input = torch.empty(batch, channels, 5, 5, **meta)
        weights = [torch.empty(outputs, channels, 3, 3, **meta) for _ in range(2)]
        biases = [torch.empty(outputs, **meta) for _ in range(2)]
        attention = torch.empty(batch, 9, 5, 5, **meta)
        with tf32_allowed(tf32):
            output = grid_conv.forward(input, *weights, *biases, attention, "cr")
            grid_conv.backward(output, input, *weights, *biases, attention, "cr", (True,) * 6, False)

    return run


def table(rows: int, taps: int) -> list[torch.Tensor]:
    """The tensors of a sparse map."""
    shapes = ((rows,), (rows,), (rows, taps), (rows, -(-taps // 32)), (rows,))
    return [torch.empty(shape, device="meta", dtype=torch.int32) for shape in shapes]


def sparse(
    channels: int, outputs: int, dtype: torch.dtype, tf32: bool = False, groups: int = 1, taps: int = 27
) -> Callable[[], None]:
    """A launcher of all passes of a convolution of 100 000 voxels."""

    def run() -> None:
        rows, meta = 100_000, {"device": "meta", "dtype": dtype}
        map = table(rows, taps)
        features, grad = torch.empty(rows, channels, **meta), torch.empty(rows, outputs, **meta)
        weight = torch.empty(outputs, taps, channels // groups, **meta)
        tensors = (features, weight, torch.empty(outputs, **meta), grad)
        with tf32_allowed(tf32):
            # The forward is the last launch of its kernel, with all that the gradient of the features has and more.
            sparse_conv.backward(grad, *tensors, map, [], groups, None, (True,) * 4, False)
            sparse_conv.forward(*tensors, map, [], groups, 0.0)

    return run


def sparse_pooling(channels: int, dtype: torch.dtype, mode: str, taps: int) -> Callable[[], None]:
    """A launcher of both passes of a pooling of 100 000 voxels."""

    def run() -> None:
        features = torch.empty(100_000, channels, device="meta", dtype=dtype)
        map = table(100_000, taps)
        sparse_pool.forward(features, map, [], mode)
        sparse_pool.backward(features, features, map, [], mode, (True,), False)

    return run


class Case(NamedTuple):
    run: Callable[[], None]
    matrix: bool = False  # the dots must use matrix instructions
    wide: bool = False  # 16-byte loads must appear (AMD's wider waves cut the tile finer)
    nvidia_only: bool = False
    quick: bool = True  # also in the short check


CASES = {
    "r50-256.bf16.nhwc": Case(deform(256, (56, 56), 1, torch.bfloat16, True), matrix=True, wide=True),
    "r50-256.fp32.nchw": Case(deform(256, (56, 56), 1, torch.float32, False)),
    "r50-256.tf32.nchw": Case(deform(256, (56, 56), 1, torch.float32, False, tf32=True), matrix=True, nvidia_only=True),
    "r50-64.fp64.nchw": Case(deform(64, (56, 56), 1, torch.float64, False), nvidia_only=True),
    "fami.fp16.nchw": Case(deform(48, (96, 72), 12, torch.float16, False), matrix=True),
    "dcpose.bf16.nchw": Case(deform(17, (96, 72), 17, torch.bfloat16, False), matrix=True),
    "dcpose.fp32.nchw": Case(deform(17, (96, 72), 17, torch.float32, False)),
    "uneven-groups.bf16.nchw": Case(deform(24, (32, 32), 3, torch.bfloat16, False, groups=4)),
    "single.fp32.nchw": Case(deform(1, (1, 1), 1, torch.float32, False)),  # sizes of 1 become constants
    "flow.bf16.nhwc": Case(warp(torch.bfloat16, True, affine=False), wide=True),
    "flow.fp32.nchw": Case(warp(torch.float32, False, affine=False)),
    "affine.fp32.nchw": Case(warp(torch.float32, False, affine=True)),
    "od-512-n4.bf16.nhwc": Case(dynamic(512, (7, 7), 4, torch.bfloat16, True), matrix=True, wide=True),
    "xcorr-17.bf16.nhwc": Case(matching(17, 256, 64, 7, torch.bfloat16, True)),
    "grid-256.bf16": Case(grid(256, 256, 1024, torch.bfloat16), matrix=True, wide=True),
    "sparse-64.bf16": Case(sparse(64, 64, torch.bfloat16), matrix=True, wide=True),
} | {
    name: case._replace(quick=False)
    for name, case in {
        "od-64-n1.bf16.nhwc": Case(dynamic(64, (56, 56), 1, torch.bfloat16, True), matrix=True, wide=True),
        "od-64-n4.bf16.nhwc": Case(dynamic(64, (56, 56), 4, torch.bfloat16, True), matrix=True, wide=True),
        "od-128-n4.fp16.nchw": Case(dynamic(128, (28, 28), 4, torch.float16, False), matrix=True),
        "od-128-n4.fp32.nchw": Case(dynamic(128, (28, 28), 4, torch.float32, False)),
        "od-128-n1.fp32.nchw": Case(dynamic(128, (28, 28), 1, torch.float32, False, attended=False)),
        "od-128-n4.tf32.nchw": Case(
            dynamic(128, (28, 28), 4, torch.float32, False, tf32=True), matrix=True, nvidia_only=True
        ),
        "od-64-n4.fp64.nchw": Case(dynamic(64, (56, 56), 4, torch.float64, False), nvidia_only=True),
        "od-96-n4-depthwise.bf16.nhwc": Case(dynamic(96, (56, 56), 4, torch.bfloat16, True, groups=96)),
        "od-24-n4-groups.bf16.nchw": Case(dynamic(24, (32, 32), 4, torch.bfloat16, False, groups=4), matrix=True),
        "xcorr-17.fp32.nchw": Case(matching(17, 256, 64, 7, torch.float32, False)),
        "grid-256.fp32": Case(grid(256, 256, 1024, torch.float32)),
        "grid-256.tf32": Case(grid(256, 256, 1024, torch.float32, tf32=True), matrix=True, nvidia_only=True),
        "grid-256.fp64": Case(grid(256, 256, 200, torch.float64), nvidia_only=True),
        "grid-2.fp32": Case(grid(2, 256, 1, torch.float32)),
        "sparse-3-16.fp16": Case(sparse(3, 16, torch.float16), matrix=True),
        "sparse-96-48-k5.fp16": Case(sparse(96, 48, torch.float16, taps=125), matrix=True, wide=True),
        "sparse-256.bf16": Case(sparse(256, 256, torch.bfloat16), matrix=True, wide=True),
        "sparse-64.fp32": Case(sparse(64, 64, torch.float32)),
        "sparse-3-16.fp32": Case(sparse(3, 16, torch.float32)),
        "sparse-64.tf32": Case(sparse(64, 64, torch.float32, tf32=True), matrix=True, nvidia_only=True),
        "sparse-32.fp64": Case(sparse(32, 32, torch.float64), nvidia_only=True),
        "sparse-64-groups.bf16": Case(sparse(64, 64, torch.bfloat16, groups=4), matrix=True),
        "sparse-64-depthwise.bf16": Case(sparse(64, 64, torch.bfloat16, groups=64)),
        "sparse-max-64.bf16": Case(sparse_pooling(64, torch.bfloat16, "max", 8)),
        "sparse-avg-20.fp32": Case(sparse_pooling(20, torch.float32, "avg", 27)),
    }.items()
}
