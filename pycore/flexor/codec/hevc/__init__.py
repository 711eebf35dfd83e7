# SPDX-License-Identifier: Apache-2.0
"""HEVC (H.265) intra pictures: `encode` arrays, `decode` a file, `inspect` what a stream is made of."""

from .decoder import Decoder, decode, iterate
from .encode import Encoder, encode
from .errors import HevcError, HevcUnsupported
from .inspection import Blocks, Inspection, Unit, inspect
from .picture import Colour, Picture

__all__ = [
    "Blocks",
    "Colour",
    "Decoder",
    "Encoder",
    "HevcError",
    "HevcUnsupported",
    "Inspection",
    "Picture",
    "Unit",
    "decode",
    "encode",
    "inspect",
    "iterate",
]
