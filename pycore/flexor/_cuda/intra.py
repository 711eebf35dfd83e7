# SPDX-License-Identifier: Apache-2.0
"""Intra prediction and the open-loop search on a GPU.

Kernels take contiguous samples of 16 bits, prediction also of 8, and say with a flag whether something is out of range:
whoever asks then finds out what.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .launch import Source, launch, struct, u64

THREADS = 256
SAMPLES_TOGETHER = 256  # small blocks that one CUDA block predicts
UNITS = 32  # parts of 8 x 8 samples that one CUDA block searches; 64 of a block of 64
PREDICT, SEARCH = Source("intra", "intra_predict"), Source("intra", "intra_search")


def intra_predict(
    output: Tensor,
    border: Tensor,
    mode: Tensor,
    available: Tensor | None,
    bit_depth: int,
    nearest: bool,
    smoothing: bool,
    strong_smoothing: bool,
    edge_filter: bool,
) -> bool:
    """Writes blocks (N, n, n); False where a sample or a mode is out of range. int32 samples fit 16 bits."""
    lines = border.contiguous() if border.dtype == torch.uint8 else _short(border)
    blocks, size = output.shape[0], output.shape[1]
    found, amiss = torch.empty(output.shape, dtype=lines.dtype, device=border.device), _flag(border)
    flags = nearest, smoothing, strong_smoothing, edge_filter
    name, together = f"intra_predict_u{8 * lines.dtype.itemsize}", max(1, SAMPLES_TOGETHER // size**2)
    launch(
        PREDICT, name, -(-blocks // together), THREADS,
        found, lines, mode.contiguous(), u64(0) if available is None else available.contiguous(),
        struct(blocks, size.bit_length() - 1, bit_depth, *map(int, flags)), amiss,
    )  # fmt: skip
    output.copy_(found.view(output.dtype) if found.dtype.itemsize == output.dtype.itemsize else found)
    return not amiss.item()


def intra_search(
    costs: Tensor,
    pictures: Tensor,
    size: int,
    satd: bool,
    bit_depth: int,
    strong_smoothing: bool,
    ctb_size: int | None,
) -> bool:
    """Writes costs (B, rows, columns, 63 or 35); False where a sample is out of range. int32 samples fit 16 bits."""
    images = _short(pictures)
    (batch, height, width), (rows, columns, considered) = images.shape, costs.shape[1:]
    blocks, amiss = batch * rows * columns, _flag(pictures)
    ctb_log2 = 0 if ctb_size is None else ctb_size.bit_length() - 1
    geometry = height, width, rows, columns, blocks, size.bit_length() - 1, ctb_log2
    launch(
        SEARCH, "intra_search", -(-blocks // max(1, UNITS // max(1, size // 8) ** 2)), THREADS,
        images, costs, struct(*geometry, bit_depth, considered, int(satd), int(strong_smoothing)), amiss,
    )  # fmt: skip
    return not amiss.item()


def _short(value: Tensor) -> Tensor:
    """Contiguous, of 16 bits."""
    return (value if value.dtype.itemsize == 2 else value.to(torch.int16)).contiguous()


def _flag(like: Tensor) -> Tensor:
    return torch.zeros(1, dtype=torch.int32, device=like.device)
