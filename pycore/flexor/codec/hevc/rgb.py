# SPDX-License-Identifier: Apache-2.0
"""Between the planes of a picture and RGB (H.273 clause 8.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .errors import HevcUnsupported

if TYPE_CHECKING:
    from .picture import Colour, Picture, Plane

F = NDArray[np.float32]

LUMA_WEIGHTS = {  # Kr, Kb by matrix_coeffs
    1: (0.2126, 0.0722),
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
}
UNSPECIFIED = 6  # as FFmpeg and HEIF have it

# Where chroma samples lie between luma samples, horizontally and vertically, in luma samples (figure E.1).
LOCATIONS = ((0.0, 0.5), (0.5, 0.5), (0.0, 0.0), (0.5, 0.0), (0.0, 1.0), (0.5, 1.0))


def to_rgb(picture: Picture) -> Plane:
    luma_plane = picture.planes[0]
    if len(picture.planes) == 1:
        return np.stack([luma_plane, luma_plane, luma_plane], axis=-1)  # type: ignore[return-value]
    matrix = picture.colour.matrix
    if matrix == 2:
        matrix = UNSPECIFIED
    if matrix not in LUMA_WEIGHTS and matrix not in (0, 8):
        raise HevcUnsupported(
            f"to_rgb: matrix_coeffs {matrix} is not supported, expected 0 (GBR), 1, 4, 5, 6, 7, 8 (YCgCo) or 9; "
            "convert .planes yourself"
        )
    luma = _luma(picture, luma_plane, picture.bit_depth)
    if matrix == 0:  # all three are scaled as luma
        blue, red = (
            _upsample(picture, _luma(picture, plane, picture.bit_depth_chroma)) for plane in picture.planes[1:]
        )
        return _quantise(picture, [red, luma, blue])
    cb, cr = (_upsample(picture, _chroma(picture, plane)) for plane in picture.planes[1:])
    if matrix == 8:
        return _quantise(picture, [luma - cb + cr, luma + cb, luma - cb - cr])
    kr, kb = LUMA_WEIGHTS[matrix]
    red = luma + np.float32(2 * (1 - kr)) * cr
    blue = luma + np.float32(2 * (1 - kb)) * cb
    green = (luma - np.float32(kr) * red - np.float32(kb) * blue) * np.float32(1 / (1 - kr - kb))
    return _quantise(picture, [red, green, blue])


def _luma(picture: Picture, plane: Plane, bit_depth: int) -> F:
    """To 0 .. 1."""
    black, span = _luma_range(picture.colour, bit_depth)
    return (plane - np.float32(black)) * np.float32(1 / span)


def _chroma(picture: Picture, plane: Plane) -> F:
    """To -0.5 .. 0.5."""
    middle, span = _chroma_range(picture.colour, picture.bit_depth_chroma)
    return (plane - np.float32(middle)) * np.float32(1 / span)


def _luma_range(colour: Colour, bit_depth: int) -> tuple[int, int]:
    """The samples of 0, and how many there are up to 1."""
    return (0, (1 << bit_depth) - 1) if colour.full_range else (16 << (bit_depth - 8), 219 << (bit_depth - 8))


def _chroma_range(colour: Colour, bit_depth: int) -> tuple[int, int]:
    """The sample of 0, and how many there are from -0.5 to 0.5."""
    return 1 << (bit_depth - 1), (1 << bit_depth) - 1 if colour.full_range else 224 << (bit_depth - 8)


def _upsample(picture: Picture, plane: F) -> F:
    across, down = LOCATIONS[picture.chroma_location] if picture.chroma == "4:2:0" else LOCATIONS[2]
    if plane.shape[0] != picture.height:
        plane = _interpolate(plane, picture.height, down)
    if plane.shape[1] != picture.width:
        plane = np.ascontiguousarray(_interpolate(plane.T, picture.width, across).T)
    return plane


def _interpolate(rows: F, size: int, offset: float) -> F:
    """Rows at 0, 1, .. size - 1 from rows that lie at 2 i + offset; the outermost go on."""
    position = np.clip((np.arange(size) - offset) / 2, 0, len(rows) - 1)
    below = position.astype(np.intp)
    above = np.minimum(below + 1, len(rows) - 1)
    weight = (position - below).astype(np.float32)[:, None]
    return rows[below] * (1 - weight) + rows[above] * weight


def _quantise(picture: Picture, channels: list[F]) -> Plane:
    most = (1 << picture.bit_depth) - 1
    return np.stack([_samples(channel, 0, most, picture.bit_depth) for channel in channels], axis=-1)  # type: ignore[return-value]


def _samples(values: F, zero: int, span: int, bit_depth: int) -> Plane:
    """The nearest samples, `zero` for 0 and `span` more for 1."""
    most = (1 << bit_depth) - 1
    rounded = np.clip(values * np.float32(span) + np.float32(zero + 0.5), 0, most)
    return rounded.astype(np.uint8 if bit_depth == 8 else np.uint16)


def from_rgb(rgb: Plane, chroma: str, bit_depth: int, colour: Colour) -> list[Plane]:
    """The planes of an (H, W, 3) image, uint8, or uint16 with values up to 2**bit_depth - 1.

    Y = Kr R + (1 - Kr - Kb) G + Kb B,  Cb = (B - Y) / (2 (1 - Kb)),  Cr = (R - Y) / (2 (1 - Kr)), and G, B, R as they
    are where the matrix is 0. Chroma of 4:2:0 and 4:2:2 is averaged where its samples lie by default: [1 2 1] / 4
    across, [1 1] / 2 down.
    """
    if colour.matrix == 0:
        return [from_grey(rgb[..., i], bit_depth, colour) for i in (1, 2, 0)]
    kr, kb = LUMA_WEIGHTS[colour.matrix]
    red, green, blue = (rgb[..., i] * np.float32(1 / _peak(rgb, bit_depth)) for i in range(3))
    luma = np.float32(kr) * red + np.float32(1 - kr - kb) * green + np.float32(kb) * blue
    planes = [_samples(luma, *_luma_range(colour, bit_depth), bit_depth)]
    if chroma != "4:0:0":
        for channel, weight in ((blue, kb), (red, kr)):
            difference = _downsample((channel - luma) * np.float32(0.5 / (1 - weight)), chroma)
            planes.append(_samples(difference, *_chroma_range(colour, bit_depth), bit_depth))
    return planes


def from_grey(grey: Plane, bit_depth: int, colour: Colour) -> Plane:
    """The samples of luma, or of one colour where the matrix is 0."""
    peak = _peak(grey, bit_depth)
    black, span = _luma_range(colour, bit_depth)
    if black == 0 and span == peak:
        return grey
    return _samples(grey * np.float32(1 / peak), black, span, bit_depth)


def _peak(image: Plane, bit_depth: int) -> int:
    return 255 if image.dtype == np.uint8 else (1 << bit_depth) - 1


def _downsample(plane: F, chroma: str) -> F:
    if chroma in ("4:2:0", "4:2:2"):
        before = np.concatenate([plane[:, :1], plane[:, 1:-1:2]], axis=1)
        plane = np.float32(0.25) * (before + plane[:, 1::2]) + np.float32(0.5) * plane[:, ::2]
    if chroma == "4:2:0":
        plane = np.float32(0.5) * (plane[::2] + plane[1::2])
    return plane
