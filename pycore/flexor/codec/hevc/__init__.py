# SPDX-License-Identifier: Apache-2.0
"""HEVC (H.265) intra pictures: `decode` a file, feed a `Decoder`, `inspect` what a stream is made of."""

from .decoder import Decoder, decode, iterate
from .errors import HevcError, HevcUnsupported
from .inspection import Inspection, Unit, inspect
from .picture import Colour, Picture

__all__ = [
    "Colour",
    "Decoder",
    "HevcError",
    "HevcUnsupported",
    "Inspection",
    "Picture",
    "Unit",
    "decode",
    "inspect",
    "iterate",
]
