# SPDX-License-Identifier: Apache-2.0
"""Rate-distortion comparison of flexor's encoder with others: `choose` who, `measure` points, `comparisons` of them."""

from .contestants import CHROMA, PEERS, PRESETS, VARIANTS, Contestant, choose
from .points import FAMILY, Failure, Point, Results, Source, load, make_source, measure, missing, save
from .quality import Delta, bd_rate, psnr, weighted_psnr
from .tables import Comparison, comparisons, markdown

__all__ = [
    "CHROMA",
    "FAMILY",
    "PEERS",
    "PRESETS",
    "VARIANTS",
    "Comparison",
    "Contestant",
    "Delta",
    "Failure",
    "Point",
    "Results",
    "Source",
    "bd_rate",
    "choose",
    "comparisons",
    "load",
    "make_source",
    "markdown",
    "measure",
    "missing",
    "psnr",
    "save",
    "weighted_psnr",
]
