# SPDX-License-Identifier: Apache-2.0
"""What a stream is made of: the syntax elements of its headers, the blocks of its pictures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .decoder import feeds, new_core
from .picture import Picture, from_record
from .source import SourceLike, open_source

UNIT_NAMES = {
    0: "TRAIL_N", 1: "TRAIL_R", 2: "TSA_N", 3: "TSA_R", 4: "STSA_N", 5: "STSA_R", 6: "RADL_N", 7: "RADL_R",
    8: "RASL_N", 9: "RASL_R", 16: "BLA_W_LP", 17: "BLA_W_RADL", 18: "BLA_N_LP", 19: "IDR_W_RADL", 20: "IDR_N_LP",
    21: "CRA", 32: "VPS", 33: "SPS", 34: "PPS", 35: "AUD", 36: "EOS", 37: "EOB", 38: "FD", 39: "PREFIX_SEI",
    40: "SUFFIX_SEI", 48: "NEAREST_SLICE", 49: "NEAREST_PARAMETERS",
}  # fmt: skip
"""Table 7-1 of H.265, and the two types of docs/hevc_nearest.md."""


NXN, PCM, NEAREST = 1, 4, 8  # flags of coding blocks


@dataclass(frozen=True)
class Unit:
    """A NAL unit.

    Attributes:
        kind: nal_unit_type.
        layer: nuh_layer_id.
        temporal_id: nuh_temporal_id_plus1 - 1.
        size: bytes, header and emulation prevention included.
        picture: of a slice: the number, in decoding order, of its picture.
        elements: of a header: syntax elements by the standard's names, in order; a list where a name comes more than
            once. SEI messages are named by payloadType.
    """

    kind: int
    layer: int
    temporal_id: int
    size: int
    picture: int | None
    elements: dict[str, int | list[int]]

    @property
    def name(self) -> str:
        return UNIT_NAMES.get(self.kind, f"type {self.kind}")


@dataclass(frozen=True, eq=False)
class Blocks:
    """How a picture is divided, and where its bits go.

    Attributes:
        bits: information content by group of syntax elements.
        coding_blocks: structured array: x, y (luma samples), log2_size, flags (1 NxN, 2 transquant bypass, 4 PCM; 8,
            16, 32, 64: the four parts are predicted by nearest, see docs/hevc_nearest.md), qp (QpY), chroma_mode,
            luma_modes (four; NxN uses all).
        transform_blocks: structured array: x, y (samples of the component), log2_size, component (0 Y, 1 Cb, 2 Cr),
            flags (1 coded, 2 transform skip, 4 RDPCM, 8 cross-component prediction, 16 rotated, 32 hidden signs).
        sao_types: (CTBs, 3), raster scan: by component 0 none, 1 band, 2 edge.
    """

    bits: dict[str, float]
    coding_blocks: NDArray[Any]
    transform_blocks: NDArray[Any]
    sao_types: NDArray[np.uint8]

    def prediction_blocks(self) -> NDArray[Any]:
        """Every luma prediction block that has a mode: structured array of x, y, size, mode, nearest (bool)."""
        coding = self.coding_blocks[(self.coding_blocks["flags"] & PCM) == 0]
        divided = (coding["flags"] & NXN) != 0
        of, part = np.nonzero(np.stack([np.ones(len(coding), bool), divided, divided, divided], axis=1))
        blocks = np.empty(len(of), [("x", "i4"), ("y", "i4"), ("size", "i4"), ("mode", "i4"), ("nearest", "?")])
        blocks["size"] = 1 << (coding["log2_size"].astype(np.int32) - divided)[of]
        blocks["x"] = coding["x"][of] + part % 2 * blocks["size"]
        blocks["y"] = coding["y"][of] + part // 2 * blocks["size"]
        blocks["mode"] = coding["luma_modes"][of, part]
        blocks["nearest"] = coding["flags"][of] >> part & NEAREST
        return blocks


@dataclass(frozen=True, eq=False)
class Inspection:
    """What `inspect` found.

    Attributes:
        units: every NAL unit, in the order of the stream (a container's parameter sets first).
        pictures: the intra pictures in output order, each with its blocks.
        problems: what is lost, damaged beyond a picture, or not supported.
    """

    units: list[Unit] = field(default_factory=list)
    pictures: list[tuple[Picture, Blocks]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def inspect(source: SourceLike, *, pictures: int | None = None, threads: int | None = None) -> Inspection:
    """Read every header of a stream and the block structure of its intra pictures.

    Args:
        source: as in `decode`.
        pictures: end once this many pictures are decoded; None: never.
        threads: as in `decode`.

    Returns:
        The NAL units, pictures and problems. Inter pictures are listed by their headers only.

    Raises:
        HevcError: not HEVC.
        OSError, ImportError, TypeError, ValueError: as `decode`.

    Source: H.265 clauses 7.3, E.2, D.2.
    """
    found = Inspection()
    opened = open_source(source)
    with opened.file:
        for core, _ in feeds(opened, lambda length_size: new_core(threads, True, True, length_size, inspect=True)):
            for record in core.pictures():
                found.pictures.append((from_record(record), Blocks(**record["analysis"])))
            found.problems.extend(message for _, message in core.problems())
            found.units.extend(
                Unit(
                    record["nal_unit_type"],
                    record["nuh_layer_id"],
                    record["temporal_id"],
                    record["bytes"],
                    record["picture"],
                    record["elements"],
                )
                for record in core.units()
            )
            if pictures is not None and len(found.pictures) >= pictures:
                break
    if pictures is not None:
        del found.pictures[pictures:]
    return found
