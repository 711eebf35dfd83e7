# SPDX-License-Identifier: Apache-2.0
"""From the pictures that people have to the planes that are coded."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Union

import numpy as np
from numpy.typing import NDArray

from .picture import CHROMA, MATRICES, Colour, Plane
from .rgb import LUMA_WEIGHTS, from_grey, from_rgb

if TYPE_CHECKING:
    from PIL import Image

SourcePicture = Union[NDArray[Any], "Image.Image", Sequence[NDArray[Any]]]

FORMATS = {"400": 0, "420": 1, "422": 2, "444": 3, "rgb": 3}  # chroma_format_idc


@dataclass(frozen=True)
class Format:
    """How pictures are coded."""

    chroma: str  # of FORMATS
    bit_depth: int
    colour: Colour | None

    def __post_init__(self) -> None:
        if not isinstance(self.chroma, str) or self.chroma not in FORMATS:
            raise ValueError(f"chroma must be one of {', '.join(FORMATS)}, got {self.chroma!r}")
        if not isinstance(self.bit_depth, (int, np.integer)) or self.bit_depth not in (8, 10):
            raise ValueError(f"bit_depth must be 8 or 10, got {self.bit_depth!r}")
        if self.colour is None:
            return
        if not isinstance(self.colour, Colour):
            raise TypeError(f"colour must be a hevc.Colour or None, got {type(self.colour).__name__}")
        if (self.chroma == "rgb") != (self.colour.matrix == 0) and not self.chroma == "444":
            raise ValueError(
                f"colour.matrix must be 0 (GBR) for chroma 'rgb' and only there, got {self.colour.matrix} for "
                f"chroma {self.chroma!r}"
            )

    @property
    def chroma_format_idc(self) -> int:
        return FORMATS[self.chroma]

    @property
    def most(self) -> int:
        """The greatest sample."""
        return (1 << self.bit_depth) - 1

    def colour_of(self, picture: SourcePicture) -> Colour:
        """What the stream is to say: sRGB for an image, nothing for planes, where it was not told otherwise."""
        if self.colour is not None:
            return self.colour
        known = 2 if is_planes(picture) else 1
        if self.chroma == "rgb":
            return Colour(known, 13 if known == 1 else 2, 0, True)
        return Colour() if known == 2 else Colour(1, 13, 1, self.chroma == "400")


def is_planes(picture: object) -> bool:
    return isinstance(picture, (tuple, list))


def as_pictures(pictures: object) -> Iterable[SourcePicture]:
    """The pictures of an iterable, or the one that is given instead."""
    if isinstance(pictures, np.ndarray):
        return pictures if pictures.ndim == 4 else [pictures]
    if _is_pillow(pictures) or (isinstance(pictures, tuple) and pictures and all(map(_is_plane, pictures))):
        return [pictures]  # type: ignore[list-item]
    if isinstance(pictures, (str, bytes, dict)) or not isinstance(pictures, Iterable):
        raise TypeError(
            f"pictures must be NumPy arrays, PIL images or tuples of planes, one or an iterable of them, got "
            f"{_describe(pictures)}"
        )
    return pictures


def to_planes(picture: SourcePicture, format: Format, name: str = "picture") -> list[Plane]:
    """The planes of a picture in the format's order and type, checked.

    Raises: TypeError, ValueError.
    """
    if is_planes(picture):
        return _check_planes(picture, format, name)  # type: ignore[arg-type]
    image = _image(picture, format, name)
    colour = format.colour_of(picture)
    height, width = image.shape[:2]
    _check_size(width, height, format, name)
    if image.ndim == 3:
        if colour.matrix not in LUMA_WEIGHTS and colour.matrix != 0:
            raise ValueError(
                f"{name}: RGB cannot be converted with matrix {MATRICES.get(colour.matrix, colour.matrix)}, expected "
                f"one of {', '.join(map(str, LUMA_WEIGHTS))}; convert it yourself and pass planes"
            )
        return from_rgb(image, CHROMA[format.chroma_format_idc], format.bit_depth, colour)
    luma = from_grey(image, format.bit_depth, colour)
    if format.chroma == "400":
        return [luma]
    if colour.matrix == 0:
        return [luma, luma, luma]
    shape = _chroma_shape(height, width, format)
    return [luma] + 2 * [np.full(shape, 1 << (format.bit_depth - 1), luma.dtype)]


def _image(picture: object, format: Format, name: str) -> Plane:
    """(H, W, 3) or (H, W), uint8, or uint16 up to the format's greatest sample."""
    if _is_pillow(picture):
        picture = _from_pillow(picture, name)
    if not isinstance(picture, np.ndarray):
        raise TypeError(f"{name} must be a NumPy array, a PIL image or a tuple of planes, got {_describe(picture)}")
    if picture.ndim not in (2, 3) or (picture.ndim == 3 and picture.shape[2] != 3):
        raise ValueError(
            f"{name} must have shape (H, W, 3) for RGB or (H, W) for grey, got {picture.shape}{_how(picture.shape)}"
        )
    return _check_samples(picture, format, name)


def _how(shape: tuple[int, ...]) -> str:
    if len(shape) == 3 and shape[0] == 3:
        return "; bring the channels last: np.moveaxis(picture, 0, -1)"
    if len(shape) == 3 and shape[2] == 4:
        return "; alpha cannot be coded: picture[..., :3]"
    if len(shape) == 3 and shape[2] == 1:
        return "; drop the last axis: picture[..., 0]"
    return ""


def _check_samples(array: NDArray[Any], format: Format, name: str) -> Plane:
    if array.size == 0:
        raise ValueError(f"{name} has no samples: its shape is {array.shape}")
    if array.dtype.kind != "u" or array.itemsize > 2:
        raise TypeError(
            f"{name} must be uint8, or uint16 with values up to {format.most}, got {array.dtype}; scale it to whole "
            f"samples first, such as (255 * picture.clip(0, 1)).round().astype(np.uint8) from 0..1"
        )
    if array.itemsize == 1:
        return array
    native = array.astype(np.uint16, copy=False)
    largest = int(native.max())
    if largest > format.most:
        raise ValueError(
            f"{name} has a sample of {largest}, but bit_depth {format.bit_depth} allows {format.most} at most; shift "
            "it down, or encode with a greater bit_depth"
        )
    return native


def _check_planes(planes: Sequence[NDArray[Any]], format: Format, name: str) -> list[Plane]:
    count = 1 if format.chroma == "400" else 3
    if len(planes) != count or not all(map(_is_plane, planes)):
        given = ", ".join(map(_describe, planes))
        raise ValueError(
            f"{name} must be {count} {'plane' if count == 1 else 'planes'} (H, W) for chroma {format.chroma!r}, got "
            f"({given})"
        )
    height, width = planes[0].shape
    out = []
    for i, plane in enumerate(planes):
        checked = _check_samples(plane, format, f"{name}, plane {i},")
        if checked.dtype == np.uint8 and format.bit_depth > 8:
            raise TypeError(
                f"{name}, plane {i}, must be uint16 for bit_depth {format.bit_depth}, got uint8: planes are coded as "
                f"they are; plane.astype(np.uint16) << {format.bit_depth - 8} scales it"
            )
        out.append(checked)
    _check_size(width, height, format, name)
    shape = _chroma_shape(height, width, format)
    for i, plane in enumerate(out[1:], 1):
        if plane.shape != shape:
            raise ValueError(
                f"{name}, plane {i}, must have shape {shape} beside luma of {(height, width)} for chroma "
                f"{format.chroma!r}, got {plane.shape}"
            )
    return out


def _check_size(width: int, height: int, format: Format, name: str) -> None:
    even_width = width - width % 2 if format.chroma in ("420", "422") else width
    even_height = height - height % 2 if format.chroma == "420" else height
    if (even_width, even_height) != (width, height):
        sides = "width and height" if format.chroma == "420" else "width"
        crop = f", or crop it to {even_width}x{even_height}" if even_width and even_height else ""
        raise ValueError(
            f"{name} is {width}x{height}, but H.265 needs an even {sides} for chroma {format.chroma!r}: use '444' or "
            f"'rgb'{crop}"
        )


def _chroma_shape(height: int, width: int, format: Format) -> tuple[int, int]:
    return height >> (format.chroma == "420"), width >> (format.chroma in ("420", "422"))


def _is_plane(plane: object) -> bool:
    return isinstance(plane, np.ndarray) and plane.ndim == 2


def _is_pillow(picture: object) -> bool:
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(picture, pillow.Image)


def _from_pillow(image: Any, name: str) -> NDArray[Any]:
    if image.mode in ("F", "I") or ";16" in image.mode:
        raise TypeError(
            f"{name} is a PIL image of mode {image.mode}, expected 8 bits a channel; pass a uint16 array instead"
        )
    if image.has_transparency_data:
        if image.convert("RGBA").getextrema()[3][0] < 255:
            raise ValueError(
                f"{name} has transparent pixels, and alpha cannot be coded: lay it over a colour first, or "
                "image.convert('RGB')"
            )
        return np.asarray(image.convert("RGBA").convert("RGB"))
    return np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))


def _describe(thing: object) -> str:
    if isinstance(thing, np.ndarray):
        return f"an array of shape {thing.shape}"
    return type(thing).__name__
