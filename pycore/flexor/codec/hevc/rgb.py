# SPDX-License-Identifier: Apache-2.0
"""From the planes of a picture to RGB (H.273 clause 8.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .errors import HevcUnsupported

if TYPE_CHECKING:
    from .picture import Picture, Plane

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
    if picture.colour.full_range:
        return plane * np.float32(1 / ((1 << bit_depth) - 1))
    step = 1 << (bit_depth - 8)
    return (plane - np.float32(16 * step)) * np.float32(1 / (219 * step))


def _chroma(picture: Picture, plane: Plane) -> F:
    """To -0.5 .. 0.5."""
    depth = picture.bit_depth_chroma
    scale = (1 << depth) - 1 if picture.colour.full_range else 224 << (depth - 8)
    return (plane - np.float32(1 << (depth - 1))) * np.float32(1 / scale)


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
    out = np.empty((picture.height, picture.width, 3), np.uint8 if most == 255 else np.uint16)
    for i, channel in enumerate(channels):
        np.clip(channel * np.float32(most) + np.float32(0.5), 0, most, out=out[..., i], casting="unsafe")
    return out
