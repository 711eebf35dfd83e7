# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import _C, _backend, reference
from ..reference.intra_predict import MODES
from . import _check, _intra

_NAME = "intra_predict"
_COMPONENTS = ("luma", "chroma", "chroma444")
INTERPOLATIONS = ("bilinear", "nearest")


def intra_predict(
    border: Any,
    mode: Any,
    *,
    bit_depth: int = 8,
    interpolation: str = "bilinear",
    available: Any = None,
    component: str = "luma",
    smoothing: bool = True,
    strong_smoothing: bool = True,
    edge_filter: bool = True,
    backend: str | None = None,
) -> Any:
    """Predicts n x n blocks from the samples around them, in any of HEVC's 35 intra modes.

        block[y, x] = ((32 - f) * ref[x + i + 1] + f * ref[x + i + 2] + 16) >> 5,  i = (y + 1) * angle >> 5

    is a vertical angular mode with f = (y + 1) * angle & 31; a horizontal one is its transpose, 0 is planar, 1 DC.
    "nearest" takes ref[x + i + 2] where f >= 16, else ref[x + i + 1], in the 28 modes whose angle is no multiple of
    32. All the rest stays as the standard has it.

    Args:
        border: (N, 4 * n + 1), uint8, int16, uint16 or int32, any strides: what surrounds each block, from the bottom
            left up to the corner and on to the top right. The corner p[-1][-1] is at 2 * n, p[-1][y] at
            2 * n - 1 - y and p[x][-1] at 2 * n + 1 + x. n is 4, 8, 16, 32 or 64. N may be 0.
        mode: 0 to 34, an int for all blocks or (N,) integers.
        bit_depth: 8 to 12; samples are below 2 ** bit_depth.
        interpolation: "bilinear" or "nearest".
        available: (N, 4 * n + 1), bool; samples that are not are substituted (8.4.4.2.2). None: all are.
        component: "luma"; "chroma" has neither smoothing nor edge filters; "chroma444" has smoothing.
        smoothing: False never smooths the border, as intra_smoothing_disabled_flag.
        strong_smoothing: strong_intra_smoothing_enabled_flag, of luma blocks of 32 and 64.
        edge_filter: False filters no edges of DC, horizontal and vertical blocks, as disableIntraBoundaryFilter.
        backend: "reference", "cpu" or "cuda" in place of the automatic choice.

    Returns:
        (N, n, n) of border's kind (NumPy, CuPy or torch) and dtype.

    Raises:
        ValueError: shapes that do not fit, samples or modes out of range, other names of component or interpolation.
        TypeError: other kinds of arrays or dtypes.
        RuntimeError: a backend asked for by name that cannot run here.

    Notes:
        Integer arithmetic, the same bits from every backend and for any number of threads. Blocks of 64, which the
        standard predicts as four of 32, follow the same formulas with the rules of 32.

    Source:
        ITU-T H.265, clause 8.4.4.2; nearest: Chen, Saxena and Fernandes, On Intra Prediction for Screen Content Video
        Coding, arXiv 1511.01862.
    """
    tensor, kind = _intra.as_tensor(_NAME, "border", border, "N 4*n+1")
    _intra.samples(_NAME, "border", tensor)
    if tensor.shape[1] not in [4 * size + 1 for size in _intra.SIZES]:
        raise ValueError(
            f"{_NAME}: border must have 4 * n + 1 = 17, 33, 65, 129 or 257 samples a block, got {tuple(tensor.shape)}"
        )
    _intra.depth(_NAME, bit_depth)
    _check.one_of(_NAME, "interpolation", interpolation, INTERPOLATIONS)
    _check.one_of(_NAME, "component", component, _COMPONENTS)
    modes = _modes(mode, tensor)
    there = None if available is None else _available(available, tensor)
    _check.same_device(_NAME, border=tensor, mode=modes, available=there)
    nearest = interpolation == "nearest"
    flags = nearest, component, bool(smoothing), bool(strong_smoothing), bool(edge_filter)
    return kind(_predict(tensor, modes, there, bit_depth, *flags, backend))


def _modes(mode: Any, border: Tensor) -> Tensor:
    blocks = border.shape[0]
    if isinstance(mode, int) and not isinstance(mode, bool):
        if not 0 <= mode < MODES:
            raise ValueError(f"{_NAME}: mode must be 0 to {MODES - 1}, got {mode}")
        return border.new_full((blocks,), mode, dtype=torch.int64)
    modes, _ = _intra.as_tensor(_NAME, "mode", mode, "N")
    if modes.dtype not in _intra.INTEGERS:
        raise TypeError(f"{_NAME}: mode must be an int or integers, got {modes.dtype}")
    _check.shape(_NAME, "mode", modes, (blocks,), "one a block")
    return modes.to(torch.int64)


def _available(available: Any, border: Tensor) -> Tensor:
    there, _ = _intra.as_tensor(_NAME, "available", available, "N 4*n+1")
    if there.dtype != torch.bool:
        raise TypeError(f"{_NAME}: available must be bool, got {there.dtype}")
    _check.shape(_NAME, "available", there, tuple(border.shape), "shaped like border")
    return there


def _run(
    border: Tensor,
    mode: Tensor,
    available: Tensor | None,
    bit_depth: int,
    nearest: bool,
    component: str,
    smoothing: bool,
    strong_smoothing: bool,
    edge_filter: bool,
    backend: str | None,
) -> Tensor:
    chosen = _backend.choose(_NAME, border.device, border.dtype, backend)
    if chosen in ("cpu", "cuda"):
        output = _empty(border)
        flags = (
            nearest,
            smoothing and component != "chroma",
            strong_smoothing and component == "luma",
            edge_filter and component == "luma",
        )
        if not _kernel(chosen, border, bit_depth)(output, border, mode, available, bit_depth, *flags):
            _check_values(border, mode, bit_depth)
        return output
    _check_values(border, mode, bit_depth)
    return reference.intra_predict(
        border, mode, available, bit_depth, nearest, component, smoothing, strong_smoothing, edge_filter
    )


def _kernel(backend: str, border: Tensor, bit_depth: int) -> Callable[..., bool]:
    if backend == "cpu":
        return _C.intra_predict
    from .._cuda.intra import intra_predict as kernel

    _intra.fits_16_bits(_NAME, "border", border, bit_depth)
    return kernel


def _check_values(border: Tensor, mode: Tensor, bit_depth: int) -> None:
    bad = ((mode < 0) | (mode >= MODES)).nonzero()
    if bad.shape[0]:
        row = int(bad[0])
        raise ValueError(f"{_NAME}: mode must be 0 to {MODES - 1}, got {int(mode[row])} at {row}")
    _intra.in_range(_NAME, "border", border, bit_depth)


def _empty(border: Tensor, *_: Any) -> Tensor:
    size = border.shape[1] // 4
    return border.new_empty((border.shape[0], size, size))


_predict = _intra.register(
    _NAME,
    "Tensor border, Tensor mode, Tensor? available, int bit_depth, bool nearest, str component, bool smoothing, "
    "bool strong_smoothing, bool edge_filter, str? backend) -> Tensor",
    _run,
    _empty,
)
