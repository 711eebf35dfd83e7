# SPDX-License-Identifier: Apache-2.0
"""Encoding pictures as HEVC, each for itself."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from fractions import Fraction
from typing import SupportsIndex

from ... import _C
from .decoder import check_threads
from .picture import Colour, Plane
from .planes import Format, SourcePicture, as_pictures, to_planes

MAX_TICKS = 1001  # denominator of a frame rate


class Encoder:
    """Encodes pictures as they come: the bytes of all calls, one after the other, are the stream.

    Args:
        qp, chroma, bit_depth, lossless, preset, range_extensions, nearest, nearest_threshold, edge_filters, fps, hash,
            colour: as in `encode`.
        threads: that encode; None: as many as torch has. The stream does not depend on it.
        batch: so many pictures are encoded together, side by side where that is no fewer than threads; `encode` returns
            nothing until they are there. 1: every call returns its picture.

    Raises:
        ValueError, TypeError: wrong arguments, before anything is encoded.

    Source: H.265 clauses 7 to 9, annexes A, B and E, D.3.19.
    """

    def __init__(
        self,
        *,
        qp: int = 32,
        chroma: str = "420",
        bit_depth: int = 8,
        lossless: bool = False,
        preset: str = "medium",
        range_extensions: bool | None = None,
        nearest: str = "off",
        nearest_threshold: int | None = None,
        edge_filters: bool = False,
        threads: int | None = None,
        fps: float | Fraction | None = 25,
        hash: bool = True,
        colour: Colour | None = None,
        batch: int = 1,
    ) -> None:
        self._format = Format(chroma, bit_depth, colour)
        self._threads = check_threads(threads)
        self._batch = _integer("batch", batch)
        if self._batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        flags = (("lossless", lossless), ("edge_filters", edge_filters), ("hash", hash))
        for name, flag in flags if range_extensions is None else (*flags, ("range_extensions", range_extensions)):
            if not isinstance(flag, bool):
                raise TypeError(f"{name} must be True or False, got {flag!r}")
        for name, choice in (("preset", preset), ("nearest", nearest)):
            if not isinstance(choice, str):
                raise TypeError(f"{name} must be a string, got {type(choice).__name__}")
        threshold = -1 if nearest_threshold is None else _integer("nearest_threshold", nearest_threshold)
        if nearest_threshold is not None and threshold < 0:
            raise ValueError(f"nearest_threshold must be at least 0, got {threshold}; None takes the tuned one")
        if range_extensions is None:
            range_extensions = preset == "best" or chroma in ("444", "rgb")
        self._options = (
            _integer("qp", qp),
            lossless,
            preset,
            range_extensions,
            nearest,
            threshold,
            edge_filters,
            hash,
        )
        self._timing = _timing(fps)
        self._new_core(8, 8, Colour())  # checks the options
        self._core: _C.HevcEncoder | None = None
        self._first: tuple[tuple[int, int], Colour] | None = None
        self._waiting: list[list[Plane]] = []
        self._count = 0
        self._finished = False

    def encode(self, picture: SourcePicture) -> bytes:
        """Add a picture; returns the bytes that have become complete.

        Raises:
            ValueError, TypeError: a picture that cannot be coded, or not beside those before; it is left out.
        """
        if self._finished:
            raise ValueError("the stream is finished: start another Encoder")
        name = f"picture {self._count}"
        planes = to_planes(picture, self._format, name)
        height, width = planes[0].shape
        format = (width, height), self._format.colour_of(picture)
        if self._first is None:
            self._first = format
        self._check_format(format, name)
        self._count += 1
        self._waiting.append(planes)
        return self._encode_waiting() if len(self._waiting) == self._batch else b""

    def finish(self) -> bytes:
        """End the stream; returns the bytes that are left, which is nothing where batch is 1.

        Raises:
            ValueError: there was no picture.
        """
        if self._count == 0:
            raise ValueError("there is no picture to encode: a stream needs at least one")
        self._finished = True
        return self._encode_waiting()

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height of the pictures; None before the first."""
        return None if self._first is None else self._first[0]

    def _check_format(self, format: tuple[tuple[int, int], Colour], name: str) -> None:
        assert self._first is not None
        if format[0] != self._first[0]:
            (width, height), (first_width, first_height) = format[0], self._first[0]
            raise ValueError(
                f"{name} is {width}x{height}, but picture 0 is {first_width}x{first_height}: a stream has pictures of "
                "one size; the planes of one picture belong into a tuple"
            )
        if format[1] != self._first[1]:
            raise ValueError(
                f"{name} would be coded as {format[1]}, but picture 0 as {self._first[1]}: pass images or planes, not "
                "both, or say colour="
            )

    def _encode_waiting(self) -> bytes:
        pictures, self._waiting = self._waiting, []
        head = b""
        if self._core is None:
            assert self._first is not None
            (width, height), colour = self._first
            self._core = self._new_core(width, height, colour)
            head = self._core.parameter_sets()
        return head + b"".join(self._core.encode_many(pictures, self._threads))

    def _new_core(self, width: int, height: int, colour: Colour) -> _C.HevcEncoder:
        code_points = (colour.primaries, colour.transfer, colour.matrix, int(colour.full_range))
        format = self._format
        return _C.HevcEncoder(
            width, height, format.chroma_format_idc, format.bit_depth, *self._options, code_points, self._timing
        )


def encode(
    pictures: Iterable[SourcePicture] | SourcePicture,
    *,
    qp: int = 32,
    chroma: str = "420",
    bit_depth: int = 8,
    lossless: bool = False,
    preset: str = "medium",
    range_extensions: bool | None = None,
    nearest: str = "off",
    nearest_threshold: int | None = None,
    edge_filters: bool = False,
    threads: int | None = None,
    fps: float | Fraction | None = 25,
    hash: bool = True,
    colour: Colour | None = None,
) -> bytes:
    """Encode pictures as an HEVC stream (annex B) of intra pictures, each of which can be decoded for itself.

    Profiles Main, Main 10 and those of the format range extensions; what `nearest` adds is an extension of our own.

    Args:
        pictures: one picture or an iterable of them, all of one size. A picture is an array (H, W, 3) of RGB or (H, W)
            of grey, a PIL image, or a tuple of planes (H, W): Y, Cb, Cr as `chroma` has them, G, B, R for "rgb", Y
            for "400". Samples are uint8, or uint16 with values up to 2**bit_depth - 1. Images of 8 bits are scaled to
            `bit_depth`, planes are coded as they are.
        qp: 0 (best) to 51; a step of 6 doubles the quantiser's step.
        chroma: "400" (grey), "420", "422", "444", or "rgb": green, blue and red as they are, of full range. "420" needs
            an even width and height, "422" an even width.
        bit_depth: 8 or 10.
        lossless: decoded samples are those of the planes; `qp` has no effect. An RGB image comes back bit for bit with
            chroma "rgb", a grey one with "400".
        preset: "fast", "medium" or "best": what time is given for the size.
        range_extensions: tools for residuals without a transform (implicit RDPCM, rotation) and persistent Rice
            parameters: a tenth and more of the rate of text. They make 4:2:0 too a stream of the Main 4:4:4 profile,
            which software decodes and much hardware does not, and leave its threads no wavefronts. None: with "best"
            and in 4:4:4 and RGB; False: Main, Main 10 and the other profiles of the chroma format. Lossless blocks
            have the Rice parameters only.
        nearest: "off", or how angular prediction may take the nearest reference sample instead of interpolating:
            "explicit" by rate and distortion, "sad" or "boundary" by what the decoder knows. Players refuse or skip
            such streams; `decode` reads them.
        nearest_threshold: of "sad" and "boundary"; None: the tuned one.
        edge_filters: with `nearest`: keep the edge filters of DC, horizontal and vertical prediction, which are off
            there; ordinary streams always have them.
        threads: that encode; None: as many as torch has. The stream does not depend on it.
        fps: pictures a second, for players; None: not said.
        hash: add the MD5 of every decoded picture, which decoders can check.
        colour: what the stream says of its colours, and the matrix and range that RGB is converted with. None: for
            images sRGB primaries and transfer with the BT.709 matrix in the limited range, or in the full range for
            "rgb" (matrix 0) and "400" (luma as it is); for planes unspecified.

    Returns:
        The stream, with the parameter sets at its beginning.

    Raises:
        TypeError: something that is no picture, samples of another type, such as floats.
        ValueError: no picture, shapes and sizes that do not fit, samples beyond `bit_depth`, options out of range.

    RGB becomes Y = Kr R + (1 - Kr - Kb) G + Kb B, Cb = (B - Y) / (2 (1 - Kb)), Cr = (R - Y) / (2 (1 - Kr)), rounded to
    nearest. Chroma of 4:2:0 and 4:2:2 is averaged by [1 2 1] / 4 across and, for 4:2:0, [1 1] / 2 down: its samples lie
    where chroma_sample_loc_type 0, the default, says they do.

    Source: H.265 (ITU-T, ISO/IEC 23008-2) clauses 7 to 9, annexes A, B and E, D.3.19; H.273 clause 8.3.
    """
    encoder = Encoder(
        qp=qp,
        chroma=chroma,
        bit_depth=bit_depth,
        lossless=lossless,
        preset=preset,
        range_extensions=range_extensions,
        nearest=nearest,
        nearest_threshold=nearest_threshold,
        edge_filters=edge_filters,
        threads=threads,
        fps=fps,
        hash=hash,
        colour=colour,
        batch=check_threads(threads),
    )
    stream = [encoder.encode(picture) for picture in as_pictures(pictures)]
    return b"".join([*stream, encoder.finish()])


def _integer(name: str, value: SupportsIndex) -> int:
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    raise TypeError(f"{name} must be an int, got {value!r}")


def _timing(fps: float | Fraction | None) -> tuple[int, int]:
    """vui_num_units_in_tick and vui_time_scale."""
    if fps is None:
        return 0, 0
    try:
        rate = Fraction(fps).limit_denominator(MAX_TICKS)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"fps must be a number of pictures a second or None, got {fps!r}") from None
    if not 0 < rate < 1 << 31:
        raise ValueError(f"fps must be above 0, 1/{MAX_TICKS} at least, got {fps!r}")
    return rate.denominator, rate.numerator
