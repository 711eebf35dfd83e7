# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _C, _backend, reference
from ..reference.intra_search import CANDIDATES
from . import _check, _intra

_NAME = "intra_search"
_METRICS = ("satd", "sad")
_MODES = {"all": len(CANDIDATES), "bilinear": 35}

INTRA_CANDIDATES: tuple[tuple[int, str], ...] = CANDIDATES
"""(mode, interpolation) of every column of `intra_search`: 35 bilinear modes, then the 28 that nearest changes."""


class IntraCandidates(NamedTuple):
    """The best of every block, cheapest first; of equal ones the first in `INTRA_CANDIDATES`.

    Attributes:
        costs: (B, rows, columns, k), int32.
        candidates: (B, rows, columns, k), uint8, places in `INTRA_CANDIDATES`.
    """

    costs: Any
    candidates: Any


def intra_search(
    pictures: Any,
    *,
    size: int = 8,
    metric: str = "satd",
    modes: str = "all",
    best: int | None = None,
    bit_depth: int = 8,
    strong_smoothing: bool = True,
    ctb_size: int | None = 64,
    backend: str | None = None,
) -> Any:
    """Costs of every intra mode for every block of a picture, predicted from the picture's own samples.

        costs[b, r, c, k] = metric(block(b, r, c) - intra_predict(border of the block, *INTRA_CANDIDATES[k]))

    is what an encoder looks through before it codes anything: no block waits for another one.

    Args:
        pictures: (B, H, W) of luma, uint8, int16, uint16 or int32, any strides. H and W need not be multiples of
            size; the last row and column are repeated then. B may be 0.
        size: of the blocks, 4, 8, 16, 32 or 64.
        metric: "satd", magnitudes of the Hadamard coefficients of 8 x 8 parts, summed and (sum + 2) >> 2 a part, 4 x 4
            blocks (sum + 1) >> 1; or "sad", magnitudes of the differences, summed.
        modes: "all", the 63 of `INTRA_CANDIDATES`, or "bilinear", the first 35.
        best: gives that many of the cheapest instead of all.
        bit_depth: 8 to 12; samples are below 2 ** bit_depth. Costs are not scaled by it.
        strong_smoothing: strong_intra_smoothing_enabled_flag, of blocks of 32 and 64.
        ctb_size: of coding tree blocks, from size to 64: the border is then available where blocks of this size would
            have been coded before this one. None: wherever the picture has samples. The rest is substituted as in
            the standard.
        backend: "reference", "cpu" or "cuda" in place of the automatic choice.

    Returns:
        (B, ceil(H / size), ceil(W / size), 63 or 35), int32, of pictures' kind (NumPy, CuPy or torch); with best an
        `IntraCandidates`.

    Raises:
        ValueError: shapes, sizes or names that do not fit, samples out of range.
        TypeError: other kinds of arrays or dtypes.
        RuntimeError: a backend asked for by name that cannot run here.

    Notes:
        Integer arithmetic, the same bits from every backend and for any number of threads.

    Source:
        Modes and their filters: ITU-T H.265, clause 8.4.4.2. The metrics are those of the HM reference encoder.
    """
    tensor, kind = _intra.as_tensor(_NAME, "pictures", pictures, "B H W")
    _intra.samples(_NAME, "pictures", tensor)
    if 0 in tensor.shape[1:] or max(tensor.shape[1:]) >= 2**30:
        raise ValueError(f"{_NAME}: pictures must have 1 to 2**30 - 1 rows and columns, got {tuple(tensor.shape)}")
    if size not in _intra.SIZES:
        raise ValueError(f"{_NAME}: size must be 4, 8, 16, 32 or 64, got {size!r}")
    if ctb_size is not None and (ctb_size not in _intra.SIZES or ctb_size < size):
        raise ValueError(f"{_NAME}: ctb_size must be None or a power of 2 from size {size} to 64, got {ctb_size!r}")
    _intra.depth(_NAME, bit_depth)
    _check.one_of(_NAME, "metric", metric, _METRICS)
    _check.one_of(_NAME, "modes", modes, tuple(_MODES))
    if best is not None and not (isinstance(best, int) and 1 <= best <= _MODES[modes]):
        raise ValueError(f"{_NAME}: best must be None or 1 to {_MODES[modes]}, got {best!r}")
    found = _search(tensor, size, metric, modes == "all", best, bit_depth, bool(strong_smoothing), ctb_size, backend)
    return kind(found[0]) if best is None else IntraCandidates(*map(kind, found))


def _run(
    pictures: Tensor,
    size: int,
    metric: str,
    nearest: bool,
    best: int | None,
    bit_depth: int,
    strong_smoothing: bool,
    ctb_size: int | None,
    backend: str | None,
) -> list[Tensor]:
    chosen = _backend.choose(_NAME, pictures.device, pictures.dtype, backend)
    if chosen == "cpu":
        costs, *candidates = found = _empty(pictures, size, metric, nearest, best)
        args = metric == "satd", nearest, bit_depth, strong_smoothing, ctb_size or 0
        if not _C.intra_search(costs, candidates[0] if candidates else None, pictures, size, *args):
            _intra.in_range(_NAME, "pictures", pictures, bit_depth)
        return found
    if chosen == "cuda":
        from .._cuda.intra import intra_search as search

        (costs,) = _empty(pictures, size, metric, nearest, None)
        _intra.fits_16_bits(_NAME, "pictures", pictures, bit_depth)
        if not search(costs, pictures, size, metric == "satd", bit_depth, strong_smoothing, ctb_size):
            _intra.in_range(_NAME, "pictures", pictures, bit_depth)
        return [costs] if best is None else _cheapest(costs, best)
    _intra.in_range(_NAME, "pictures", pictures, bit_depth)
    costs = reference.intra_search(pictures, size, metric, nearest, bit_depth, strong_smoothing, ctb_size)
    return [costs] if best is None else _cheapest(costs, best)


def _cheapest(costs: Tensor, best: int) -> list[Tensor]:
    numbers = torch.arange(costs.shape[3], device=costs.device)
    keys = (costs.to(torch.int64) * len(CANDIDATES) + numbers).topk(best, largest=False).values
    return [(keys // len(CANDIDATES)).to(torch.int32), (keys % len(CANDIDATES)).to(torch.uint8)]


def _empty(pictures: Tensor, size: int, metric: str, nearest: bool, best: int | None, *_: Any) -> list[Tensor]:
    rows, columns = -(-pictures.shape[1] // size), -(-pictures.shape[2] // size)
    shape = pictures.shape[0], rows, columns, best or (len(CANDIDATES) if nearest else _MODES["bilinear"])
    costs = pictures.new_empty(shape, dtype=torch.int32)
    return [costs] if best is None else [costs, pictures.new_empty(shape, dtype=torch.uint8)]


_search = _intra.register(
    _NAME,
    "Tensor pictures, int size, str metric, bool nearest, int? best, int bit_depth, bool strong_smoothing, "
    "int? ctb_size, str? backend) -> Tensor[]",
    _run,
    _empty,
)
