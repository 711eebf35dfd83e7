# SPDX-License-Identifier: Apache-2.0
"""Decoding HEVC intra pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ... import _C
from .container import container_feeds
from .errors import HevcError, HevcUnsupported
from .heif import check_tile, compose, grid_feeds
from .picture import Picture, from_record
from .source import Source, SourceLike, open_source

Progress = Callable[[int, int], None]

MAX_PROBLEMS = 8  # named in a message


class Decoder:
    """Decodes a stream that comes in pieces, with the memory of the pictures at hand.

    Pieces may end anywhere. Pictures come in output order, each as soon as the stream shows that it is complete (with
    the first bytes of what follows it, or `flush`) and its turn has come. The samples do not depend on the pieces or
    on `threads`.

    Args:
        threads: that decode one picture (wavefronts, tiles, slices) or several at once; None: as many as torch has.
        verify: compare every picture with the hash that its SEI carries, if any.
        skip_inter: leave inter pictures out instead of raising HevcUnsupported at the first.
        configuration: a container's HEVCDecoderConfigurationRecord (hvcC): pieces are then NAL units after their
            lengths, else a byte stream with start codes (annex B).

    Raises:
        HevcError, HevcUnsupported: from `feed` and `flush`; their `.pictures` are those of this call. After a HevcError
            the next calls go on with what follows; a HevcUnsupported comes again.
        ValueError, TypeError: wrong arguments.

    Source: H.265 clauses 7 to 10, C.5.2, D.3.19, annex B; ISO/IEC 14496-15.
    """

    def __init__(
        self,
        threads: int | None = None,
        *,
        verify: bool = True,
        skip_inter: bool = False,
        configuration: bytes | None = None,
    ) -> None:
        length_size = 0 if configuration is None else _C.hevc_length_size(configuration)
        self._core = new_core(threads, verify, skip_inter, length_size)
        self._stopped: str | None = None
        if configuration is not None:
            self._core.add_parameter_sets(configuration)

    def feed(self, data: bytes | bytearray | memoryview) -> list[Picture]:
        """Add the next bytes of the stream; returns the pictures that have become complete."""
        self._core.feed(data, True)
        return self._take()

    def flush(self) -> list[Picture]:
        """End the stream; returns the pictures that are left. Another stream may follow."""
        self._core.finish()
        return self._take()

    def _take(self) -> list[Picture]:
        pictures, problems, unsupported = take(self._core)
        self._stopped = unsupported or self._stopped
        if self._stopped is not None:
            raise HevcUnsupported(self._stopped, pictures)
        if problems:
            raise HevcError("; ".join(problems), pictures)
        return pictures


def new_core(
    threads: int | None, verify: bool, skip_inter: bool, length_size: int, inspect: bool = False
) -> _C.HevcDecoder:
    return _C.HevcDecoder(check_threads(threads), verify, skip_inter, length_size, inspect)


def check_threads(threads: int | None) -> int:
    if threads is None:
        return _C.max_threads()
    if isinstance(threads, bool) or not isinstance(threads, int):
        raise TypeError(f"threads must be an int or None, got {type(threads).__name__}")
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}; None takes as many as torch has")
    return threads


def take(core: _C.HevcDecoder) -> tuple[list[Picture], list[str], str | None]:
    """Pictures, what was lost, and what is not supported."""
    pictures = [from_record(record) for record in core.pictures()]
    problems = core.problems()
    unsupported = next((message for fatal, message in problems if fatal), None)
    return pictures, [message for fatal, message in problems if not fatal], unsupported


def feeds(source: Source, core: Callable[[int], _C.HevcDecoder]) -> Iterator[tuple[_C.HevcDecoder, int]]:
    """Feed a source to the decoder that `core(length_size)` makes: yields it after every piece, and the bytes read."""
    if source.grid is not None:
        for i, decoder in enumerate(grid_feeds(source.file, source.grid, core)):
            yield decoder, source.size * i // len(source.grid.tiles)
    elif source.form == "container":
        yield from container_feeds(source, core)
    else:
        decoder = core(source.length_size)
        read = 0
        for piece in source.pieces():
            decoder.feed(piece, False)
            read += len(piece)
            yield decoder, read
        decoder.finish()
        yield decoder, read


def iterate(
    source: SourceLike,
    *,
    threads: int | None = None,
    verify: bool = True,
    skip_inter: bool = False,
    progress: Progress | None = None,
) -> Iterator[Picture]:
    """Decode a source picture by picture, with the memory of a few pictures.

    Args:
        source, threads, verify, skip_inter: as in `decode`.
        progress: called with the bytes read so far and the bytes in all.

    Yields:
        The pictures in output order.

    Raises:
        As `decode`; where pictures could be decoded, after them.

    Source: H.265; see `decode`.
    """
    check_threads(threads)
    opened = open_source(source)
    with opened.file:
        pictures = _pictures(opened, threads, verify, skip_inter, progress)
        if opened.grid is None:
            yield from pictures
            return
        tiles = []
        for tile in pictures:
            check_tile(opened.grid, tile)
            tiles.append(tile)
        if len(tiles) != len(opened.grid.tiles):
            raise HevcError(f"{opened.name}: {len(tiles)} of the {len(opened.grid.tiles)} tiles can be decoded")
        yield compose(opened.grid, tiles)


def _pictures(
    source: Source, threads: int | None, verify: bool, skip_inter: bool, progress: Progress | None
) -> Iterator[Picture]:
    problems: list[str] = []
    count = 0
    for core, read in feeds(source, lambda length_size: new_core(threads, verify, skip_inter, length_size)):
        pictures, more_problems, unsupported = take(core)
        problems = (problems + more_problems)[:MAX_PROBLEMS]
        count += len(pictures)
        yield from pictures
        if unsupported is not None:
            raise HevcUnsupported(f"{source.name}: {unsupported}")
        if progress is not None:
            progress(read, source.size)
    if problems:
        raise HevcError(f"{source.name}{'' if count else source.hint}: " + "; ".join(problems))
    if count == 0:
        raise HevcError(f"{source.name} holds no HEVC picture{source.hint}")


def decode(
    source: SourceLike, *, threads: int | None = None, verify: bool = True, skip_inter: bool = False
) -> list[Picture]:
    """Decode the intra pictures of an HEVC stream, still or container.

    Main, Main 10, Main Still Picture and the format range extensions up to 12 bits: 4:0:0, 4:2:0, 4:2:2 and 4:4:4.

    Args:
        source: bytes, or the path of a file: a byte stream (annex B), NAL units after their lengths, or a container
            (HEIF, MP4, MOV, MKV, MPEG-TS: needs PyAV, `pip install flexor[codec]`). The content tells which. Of HEIF,
            the primary image or grid as it is coded, before rotation and mirroring.
        threads: that decode; None: as many as torch has. The samples do not depend on it.
        verify: compare every picture with the MD5, CRC or checksum that its SEI carries, if any.
        skip_inter: leave inter pictures out instead of raising HevcUnsupported at the first.

    Returns:
        The pictures in output order. Where samples are missing or wrong, `Picture.damage` says why.

    Raises:
        HevcError: not HEVC, no picture, or whole pictures are lost; `.pictures` holds those that are not.
        HevcUnsupported: an inter picture, or a profile that flexor does not decode; `.pictures` holds those before.
        OSError: the file cannot be read.
        ImportError: a container without PyAV.
        TypeError, ValueError: wrong arguments.

    Source: H.265 (ITU-T, ISO/IEC 23008-2) clauses 7 to 10, C.5.2, D.3.19, annex B; ISO/IEC 14496-15, 23008-12.
    """
    pictures: list[Picture] = []
    try:
        for picture in iterate(source, threads=threads, verify=verify, skip_inter=skip_inter):
            pictures.append(picture)
    except (HevcError, HevcUnsupported) as error:
        error.pictures = pictures
        raise
    return pictures
