# SPDX-License-Identifier: Apache-2.0
"""What gpu_check.py runs of intra prediction and its search: integers, so that a GPU gives the CPU's or it is wrong."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import gpu_report
import torch
from flexor import ops
from gpu_report import Report
from torch import Tensor

SIZES = (4, 8, 16, 32, 64)
PICTURES = (2, 203, 338)
BLOCKS = 350
DTYPES = {torch.uint8: 8, torch.int16: 10, torch.uint16: 12, torch.int32: 9}  # and a bit depth


def groups() -> Iterator[tuple[str, Callable[[Report], None]]]:
    """By the code that nvcc made, and one by what NVRTC makes."""
    for size in SIZES:
        yield f"intra {size}", partial(check_size, size)
    yield "intra by NVRTC", check_nvrtc
    yield "intra arrays of CuPy", check_cupy


def picture(bit_depth: int) -> Tensor:
    """Noise beside a slope, which strong smoothing is for."""
    _, height, width = PICTURES
    noise = torch.randint(0, 1 << bit_depth, PICTURES)
    slope = (torch.arange(height)[:, None] + torch.arange(width) + noise % 2) % (1 << bit_depth)
    return torch.cat([noise[..., : width // 2], slope[..., width // 2 :]], 2)


def check_size(size: int, report: Report) -> None:
    for (dtype, bit_depth), ctb_size in itertools.product(DTYPES.items(), (None, 64)):
        pictures = picture(bit_depth).to(dtype)
        for metric, strong in (("satd", True), ("sad", False)):
            run = partial(
                ops.intra_search,
                size=size,
                metric=metric,
                bit_depth=bit_depth,
                strong_smoothing=strong,
                ctb_size=ctb_size,
            )
            what = f"intra_search {size} {dtype} {metric} coding tree blocks {ctb_size}"
            report.check(what, lambda: differing(run, pictures), 0)  # noqa: B023
    for (dtype, bit_depth), interpolation in itertools.product(DTYPES.items(), ("bilinear", "nearest")):
        border = torch.randint(0, 1 << bit_depth, (BLOCKS, 4 * size + 1))
        border[::3] = torch.arange(4 * size + 1) // 2 % (1 << bit_depth)
        available = torch.rand(border.shape) < torch.rand(BLOCKS, 1)
        mode = torch.arange(BLOCKS) % 35
        for component in ("luma", "chroma", "chroma444"):
            run = partial(ops.intra_predict, bit_depth=bit_depth, interpolation=interpolation, component=component)
            what = f"intra_predict {size} {dtype} {interpolation} {component}"
            call = lambda b, m, a: run(b, m, available=a)  # noqa: B023, E731
            report.check(what, lambda: differing(call, border.to(dtype), mode, available), 0)  # noqa: B023


def differing(call: Callable[..., Tensor], *tensors: Tensor) -> int:
    """Elements that the GPU makes unlike the CPU."""
    found = call(*(t.to(gpu_report.DEVICE) for t in tensors))
    return int((found.cpu().int() != call(*tensors).int()).sum())


def check_nvrtc(report: Report) -> None:
    with gpu_report.only_files(".cu"):
        check_size(8, report)


def check_cupy(report: Report) -> None:
    import cupy

    pictures = picture(8).to(torch.uint8)
    expected = ops.intra_search(pictures, best=4)
    found = ops.intra_search(cupy.asarray(pictures.numpy()), best=4)
    same = [isinstance(a, cupy.ndarray) and (a.get() == b.numpy()).all() for a, b in zip(found, expected, strict=True)]
    report.check("intra_search of CuPy", lambda: sum(not s for s in same), 0)
    border = pictures[0, :, :17]
    found = ops.intra_predict(cupy.asarray(border.numpy()), 30)
    right = isinstance(found, cupy.ndarray) and (found.get() == ops.intra_predict(border, 30).numpy()).all()
    report.check("intra_predict of CuPy", lambda: int(not right), 0)
