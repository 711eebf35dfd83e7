# SPDX-License-Identifier: Apache-2.0
"""A decoded picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .rgb import to_rgb

Plane = NDArray[np.uint8] | NDArray[np.uint16]

CHROMA = ("4:0:0", "4:2:0", "4:2:2", "4:4:4")  # by chroma_format_idc

# H.273, tables 2 to 4.
PRIMARIES = {
    1: "BT.709", 2: "unspecified", 4: "BT.470 System M", 5: "BT.470 System BG", 6: "SMPTE 170M", 7: "SMPTE 240M",
    8: "generic film", 9: "BT.2020", 10: "SMPTE ST 428-1 (XYZ)", 11: "SMPTE RP 431-2", 12: "Display P3", 22: "EBU 3213",
}  # fmt: skip
TRANSFERS = {
    1: "BT.709", 2: "unspecified", 4: "gamma 2.2", 5: "gamma 2.8", 6: "SMPTE 170M", 7: "SMPTE 240M", 8: "linear",
    9: "logarithmic 100:1", 10: "logarithmic 316:1", 11: "IEC 61966-2-4", 12: "BT.1361", 13: "sRGB",
    14: "BT.2020 10-bit", 15: "BT.2020 12-bit", 16: "PQ (ST 2084)", 17: "SMPTE ST 428-1", 18: "HLG",
}  # fmt: skip
MATRICES = {
    0: "GBR", 1: "BT.709", 2: "unspecified", 4: "FCC", 5: "BT.470 System BG", 6: "SMPTE 170M", 7: "SMPTE 240M",
    8: "YCgCo", 9: "BT.2020 non-constant", 10: "BT.2020 constant", 11: "SMPTE ST 2085",
    12: "chromaticity-derived non-constant", 13: "chromaticity-derived constant", 14: "ICtCp",
}  # fmt: skip


@dataclass(frozen=True)
class Colour:
    """What a stream says of its colours: code points of H.273, 2 where it says nothing."""

    primaries: int = 2
    transfer: int = 2
    matrix: int = 2
    full_range: bool = False

    def __str__(self) -> str:
        return (
            f"primaries {PRIMARIES.get(self.primaries, self.primaries)}, "
            f"transfer {TRANSFERS.get(self.transfer, self.transfer)}, "
            f"matrix {MATRICES.get(self.matrix, self.matrix)}, {'full' if self.full_range else 'limited'} range"
        )


@dataclass(frozen=True, eq=False)
class Picture:
    """One decoded picture, cropped to the conformance window.

    Attributes:
        planes: Y, Cb, Cr (G, B, R where `colour.matrix` is 0); one plane of 4:0:0. uint8 where every bit depth is 8,
            else uint16 with the value in the low bits.
        chroma: "4:0:0", "4:2:0", "4:2:2" or "4:4:4".
        bit_depth: of luma.
        bit_depth_chroma: of chroma; that of luma for 4:0:0.
        colour: what the stream says of its colours.
        damage: why the samples are not, or may not be, what was encoded; None where nothing is known.
        hash: the hash in the stream that the samples were compared with, "md5", "crc" or "checksum"; None: there is
            none, or it was not asked for.
        poc: picture order count within its coded video sequence.
        number: in decoding order, from 0.
        chroma_location: chroma_sample_loc_type, 0 (the default: left, centred vertically) to 5.
        sample_aspect_ratio: width and height of a sample, (0, 0) where the stream does not say.
    """

    planes: list[Plane]
    chroma: str
    bit_depth: int
    bit_depth_chroma: int
    colour: Colour
    damage: str | None
    hash: str | None
    poc: int
    number: int
    chroma_location: int = 0
    sample_aspect_ratio: tuple[int, int] = (0, 0)

    @property
    def damaged(self) -> bool:
        """Whether samples are known to be wrong or missing; `damage` says why."""
        return self.damage is not None

    @property
    def width(self) -> int:
        return self.planes[0].shape[1]

    @property
    def height(self) -> int:
        return self.planes[0].shape[0]

    def to_rgb(self) -> Plane:
        """Convert to RGB with the stream's matrix and range.

        Chroma is brought to the size of luma by linear interpolation at the positions that `chroma_location` names.
        Where the stream names no matrix it is that of BT.601, as FFmpeg and HEIF have it. 4:0:0 is its luma three
        times, as it is: encoders write grey of full range without saying so. Transfer function and primaries are left
        as they are; no sample aspect ratio, rotation or tone mapping is applied.

        R' = Y' + 2 (1 - Kr) Cr,  B' = Y' + 2 (1 - Kb) Cb,  G' = (Y' - Kr R' - Kb B') / (1 - Kr - Kb).

        Returns:
            (H, W, 3), uint8 for 8 bits, else uint16 with values up to 2**bit_depth - 1.

        Raises:
            HevcUnsupported: a matrix_coeffs that is reserved or needs more than a matrix (10 to 14).

        Source: H.273 clause 8.3; positions from H.265 figure E.1.
        """
        return to_rgb(self)

    def __repr__(self) -> str:
        state = f", damaged: {self.damage}" if self.damaged else f", {self.hash} right" if self.hash else ""
        format = f"{self.width}x{self.height} {self.chroma} {self.bit_depth}-bit"
        return f"<Picture {self.number} (POC {self.poc}) {format}{state}>"


def from_record(record: dict[str, Any]) -> Picture:
    """The picture that `flexor._C.HevcDecoder` describes."""
    return Picture(
        planes=record["planes"],
        chroma=CHROMA[record["chroma_format_idc"]],
        bit_depth=record["bit_depth"],
        bit_depth_chroma=record["bit_depth_chroma"] if record["chroma_format_idc"] else record["bit_depth"],
        colour=Colour(*record["colour"]),
        damage=record["damage"],
        hash=record["hash"],
        poc=record["poc"],
        number=record["number"],
        chroma_location=record["chroma_location"],
        sample_aspect_ratio=record["sample_aspect_ratio"],
    )
