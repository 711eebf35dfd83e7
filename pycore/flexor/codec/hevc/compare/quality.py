# SPDX-License-Identifier: Apache-2.0
"""How near a decoded picture is to its source, and what one codec's rate is beside another's at equal quality."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Planes = Sequence[NDArray[np.uint8]]
Curve = Sequence[tuple[float, float | None]]  # bits, PSNR in dB; None: identical

FEWEST_POINTS = 4
HIGHEST_PSNR = 60.0  # dB: beyond, a curve runs off towards lossless, and the integral with it
LEAST_OVERLAP = 0.5
LARGEST_DISAGREEMENT = 1.0  # per cent, between pchip and Akima


@dataclass(frozen=True)
class Delta:
    """A Bjøntegaard delta rate.

    Attributes:
        percent: mean difference in rate at equal PSNR, negative where the tested codec needs fewer bits; None: `why`.
        akima: the same with Akima's interpolation, as a cross-check.
        overlap: of the two ranges of PSNR, as a share of what both cover together.
        excluded: points left out, identical to the source or above HIGHEST_PSNR.
        why: why there is no number.
    """

    percent: float | None
    akima: float | None
    overlap: float
    excluded: int
    why: str | None = None

    @property
    def doubt(self) -> str | None:
        """Why the number is to be read with care; None: it is not."""
        if self.percent is None or self.akima is None:
            return None
        if self.overlap < LEAST_OVERLAP:
            return f"the curves share {100 * self.overlap:.0f} % of their PSNR"
        if abs(self.percent - self.akima) > LARGEST_DISAGREEMENT:
            return f"Akima's interpolation gives {self.akima:+.1f} %"
        return None


def psnr(source: NDArray[np.uint8], decoded: NDArray[np.uint8]) -> float | None:
    """Peak signal-to-noise ratio of one plane of 8 bits.

    10 log10(255^2 / mean((source - decoded)^2))

    Args:
        source, decoded: (H, W), uint8.

    Returns:
        dB; None where the two are identical.

    Raises:
        ValueError: the shapes differ.
    """
    if source.shape != decoded.shape:
        raise ValueError(f"psnr: decoded must have the source's shape {source.shape}, got {decoded.shape}")
    difference = source.astype(np.int32) - decoded
    squares = int(np.square(difference).sum(dtype=np.int64))
    return 10 * math.log10(255**2 * source.size / squares) if squares else None


def weighted_psnr(planes: Sequence[float | None]) -> float | None:
    """(6 Y + U + V) / 8, as JCT-VC weighs them; that of luma alone for 4:0:0.

    Args:
        planes: one or three PSNR, dB; None: identical.

    Returns:
        dB; None where a plane is identical, and its PSNR infinite.
    """
    known = [value for value in planes if value is not None]
    if len(known) < len(planes):
        return None
    return known[0] if len(known) == 1 else (6 * known[0] + known[1] + known[2]) / 8


def bd_rate(anchor: Curve, test: Curve) -> Delta:
    """Bjøntegaard delta rate of `test` over `anchor`.

    10^mean(log10 R_test(D) - log10 R_anchor(D)) - 1, over the PSNR D that both reach, with piecewise cubic (pchip)
    interpolation of log10 R.

    Args:
        anchor, test: (bits, PSNR in dB) of at least FEWEST_POINTS points, in any order.

    Returns:
        The difference in per cent, or why there is none.

    Raises:
        ImportError: without the package bjontegaard.

    Source: VCEG-M33; JCTVC-L1100 for the interpolation.
    """
    try:
        import bjontegaard
    except ImportError:
        raise ImportError("BD-rates need the package bjontegaard: pip install 'flexor[cli]'") from None
    curves = [_usable(curve) for curve in (anchor, test)]
    excluded = len(anchor) + len(test) - sum(map(len, curves))
    for curve in curves:
        if len(curve) < FEWEST_POINTS:
            why = f"{len(curve)} points up to {HIGHEST_PSNR:.0f} dB, {FEWEST_POINTS} are needed"
            return Delta(None, None, 0.0, excluded, why)
        if len({quality for quality, _ in curve}) < len(curve):
            return Delta(None, None, 0.0, excluded, "two points have the same PSNR")
    overlap = _overlap(*curves)
    if overlap == 0:
        return Delta(None, None, 0.0, excluded, "the curves share no PSNR")
    (quality, bits), (test_quality, test_bits) = (zip(*curve, strict=True) for curve in curves)
    pchip, akima = (
        float(
            bjontegaard.bd_rate(
                bits, quality, test_bits, test_quality, method, require_matching_points=False, min_overlap=0
            )
        )
        for method in ("pchip", "akima")
    )
    return Delta(pchip, akima, overlap, excluded)


def _usable(curve: Curve) -> list[tuple[float, float]]:
    """(PSNR, bits) by PSNR, without what is too near lossless."""
    return sorted((quality, bits) for bits, quality in curve if quality is not None and quality <= HIGHEST_PSNR)


def _overlap(a: list[tuple[float, float]], b: list[tuple[float, float]]) -> float:
    (a_low, a_high), (b_low, b_high) = ((curve[0][0], curve[-1][0]) for curve in (a, b))
    return max(0.0, min(a_high, b_high) - max(a_low, b_low)) / (max(a_high, b_high) - min(a_low, b_low))
