# SPDX-License-Identifier: Apache-2.0
"""HEIF stills that are a grid of tiles, as phones write them (ISO/IEC 23008-12, ISO/IEC 14496-12).

FFmpeg's demuxer gives their tiles as unrelated streams, so the boxes that say how they fit are read here.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from ... import _C
from .errors import HevcError
from .picture import Picture

HEIF_BRANDS = (b"heic", b"heix", b"mif1", b"heim", b"heis")

MAX_META = 1 << 24  # bytes of boxes that are read
MAX_SAMPLES = 1 << 28  # of a grid
MAX_EXTENTS = 1 << 16  # of all items


@dataclass
class Tile:
    configuration: bytes  # hvcC
    extents: list[tuple[int, int]]  # offset and length in the file


@dataclass
class Grid:
    rows: int
    columns: int
    width: int
    height: int
    tiles: list[Tile]


class _Reader:
    """Big-endian numbers of a box; raises HevcError past its end."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise HevcError("a box of the HEIF file ends early")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def full_box(self) -> tuple[int, int]:
        """Version and flags."""
        return self.number(1), self.number(3)

    def boxes(self) -> Iterator[tuple[bytes, _Reader]]:
        while self.at < len(self.data):
            size, kind = self.number(4), self.take(4)
            if size == 1:
                size = self.number(8) - 8
            body = len(self.data) - self.at if size == 0 else size - 8
            yield kind, _Reader(self.take(max(body, 0)))


def read_grid(file: BinaryIO) -> Grid | None:
    """The grid that a HEIF file's primary item is; None if it is something else."""
    meta = _find_meta(file)
    if meta is None:
        return None
    meta.full_box()
    boxes = dict(meta.boxes())
    if not {b"pitm", b"iinf", b"iloc", b"iprp", b"iref"} <= boxes.keys():
        return None
    version, _ = boxes[b"pitm"].full_box()
    primary = boxes[b"pitm"].number(4 if version else 2)
    if _item_kinds(boxes[b"iinf"]).get(primary) != b"grid":
        return None
    extents = _item_extents(boxes[b"iloc"])
    if primary not in extents:
        raise HevcError("the grid of a HEIF file has no data")
    descriptor = _Reader(_read_item(file, boxes.get(b"idat"), extents[primary]))
    descriptor.number(1)
    wide = 4 if descriptor.number(1) & 1 else 2
    rows, columns = descriptor.number(1) + 1, descriptor.number(1) + 1
    width, height = descriptor.number(wide), descriptor.number(wide)
    if not 0 < width * height <= MAX_SAMPLES:
        raise HevcError(f"a HEIF grid has {width}x{height} samples, expected 1 to {MAX_SAMPLES}")
    items = _derived_from(boxes[b"iref"], primary)
    if len(items) != rows * columns:
        raise HevcError(f"a HEIF grid of {rows}x{columns} tiles has {len(items)}")
    configurations = _configurations(boxes[b"iprp"])
    try:
        tiles = [Tile(configurations[item], extents[item][1]) for item in items]
    except KeyError as error:
        raise HevcError(f"tile {error} of a HEIF grid has no HEVC configuration or no data") from None
    if sum(length for tile in tiles for _, length in tile.extents) > file.seek(0, os.SEEK_END):
        raise HevcError("the tiles of a HEIF grid have more data than the file")
    return Grid(rows, columns, width, height, tiles)


def grid_feeds(file: BinaryIO, grid: Grid, core: Callable[[int], _C.HevcDecoder]) -> Iterator[_C.HevcDecoder]:
    """Feed the tiles to a decoder, which is yielded after each."""
    known = grid.tiles[0].configuration
    try:
        decoder = core(_C.hevc_length_size(known))
        decoder.add_parameter_sets(known)
        for tile in grid.tiles:
            if tile.configuration != known:
                decoder.add_parameter_sets(tile.configuration)
                known = tile.configuration
            for offset, length in tile.extents:
                decoder.feed(_read_at(file, offset, length), False)
            yield decoder
    except ValueError as error:
        raise HevcError(str(error)) from None
    decoder.finish()
    yield decoder


def check_tile(grid: Grid, tile: Picture) -> None:
    """That every tile of this size is needed: what is decoded is bounded by the grid's size."""
    if (grid.columns - 1) * tile.width >= grid.width or (grid.rows - 1) * tile.height >= grid.height:
        raise HevcError(
            f"{grid.rows}x{grid.columns} tiles of {tile.width}x{tile.height} are more than the "
            f"{grid.width}x{grid.height} samples of a HEIF grid"
        )


def compose(grid: Grid, tiles: list[Picture]) -> Picture:
    """One picture from the tiles, row after row, cropped at the right and at the bottom."""
    first = tiles[0]
    if any([plane.shape for plane in tile.planes] != [plane.shape for plane in first.planes] for tile in tiles):
        raise HevcError("the tiles of a HEIF grid differ in size")
    planes = []
    for i, plane in enumerate(first.planes):
        rows = [
            np.concatenate([tile.planes[i] for tile in tiles[row * grid.columns : (row + 1) * grid.columns]], axis=1)
            for row in range(grid.rows)
        ]
        whole = np.concatenate(rows)
        height = -(-grid.height * plane.shape[0] // first.height)
        width = -(-grid.width * plane.shape[1] // first.width)
        if whole.shape[0] < height or whole.shape[1] < width:
            raise HevcError(f"the tiles of a HEIF grid do not cover its {grid.width}x{grid.height} samples")
        planes.append(np.ascontiguousarray(whole[:height, :width]))
    damage = "; ".join(f"tile {i}: {tile.damage}" for i, tile in enumerate(tiles) if tile.damage)
    verified = first.hash if all(tile.hash == first.hash for tile in tiles) else None
    return dataclasses.replace(first, planes=planes, damage=damage or None, hash=verified)


def _find_meta(file: BinaryIO) -> _Reader | None:
    """The top-level meta box."""
    size = file.seek(0, os.SEEK_END)
    at = 0
    while at + 8 <= size:
        header = _Reader(_read_at(file, at, min(16, size - at)))
        length, kind = header.number(4), header.take(4)
        if length == 1:
            length = header.number(8)
        if kind == b"meta" and header.at <= length <= min(MAX_META, size - at):
            return _Reader(_read_at(file, at + header.at, length - header.at))
        if length < header.at:
            break
        at += length
    return None


def _item_kinds(box: _Reader) -> dict[int, bytes]:
    version, _ = box.full_box()
    box.number(4 if version else 2)
    kinds = {}
    for _, entry in box.boxes():
        version, _ = entry.full_box()
        if version >= 2:
            item = entry.number(2 if version == 2 else 4)
            entry.number(2)
            kinds[item] = entry.take(4)
    return kinds


def _item_extents(box: _Reader) -> dict[int, tuple[int, list[tuple[int, int]]]]:
    """Construction method (0 the file, 1 the idat box) and extents by item."""
    version, _ = box.full_box()
    sizes = box.number(2)
    offset_size, length_size, base_size = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
    index_size = sizes & 15 if version else 0
    items: dict[int, tuple[int, list[tuple[int, int]]]] = {}
    total = 0
    for _ in range(box.number(2 if version < 2 else 4)):
        item = box.number(2 if version < 2 else 4)
        method = box.number(2) & 15 if version else 0
        box.number(2)
        base = box.number(base_size)
        extents = []
        count = box.number(2)
        total += count
        if total > MAX_EXTENTS:
            raise HevcError(f"a HEIF file has more than {MAX_EXTENTS} extents")
        for _ in range(count):
            box.number(index_size)
            offset = base + box.number(offset_size)
            extents.append((offset, box.number(length_size)))
        items[item] = (method, extents)
    return items


def _derived_from(box: _Reader, primary: int) -> list[int]:
    """The tiles of the primary item."""
    version, _ = box.full_box()
    size = 4 if version else 2
    for kind, entry in box.boxes():
        if kind == b"dimg" and entry.number(size) == primary:
            return [entry.number(size) for _ in range(entry.number(2))]
    return []


def _configurations(box: _Reader) -> dict[int, bytes]:
    """The hvcC property of each item."""
    boxes = dict(box.boxes())
    if not {b"ipco", b"ipma"} <= boxes.keys():
        return {}
    properties = [(kind, body.data) for kind, body in boxes[b"ipco"].boxes()]
    links = boxes[b"ipma"]
    version, flags = links.full_box()
    found = {}
    for _ in range(links.number(4)):
        item = links.number(4 if version else 2)
        for _ in range(links.number(1)):
            index = (links.number(2) & 0x7FFF) if flags & 1 else (links.number(1) & 0x7F)
            if 0 < index <= len(properties) and properties[index - 1][0] == b"hvcC":
                found[item] = properties[index - 1][1]
    return found


def _read_item(file: BinaryIO, idat: _Reader | None, location: tuple[int, list[tuple[int, int]]]) -> bytes:
    """The first extent of a small item."""
    method, extents = location
    offset, length = extents[0] if extents else (0, 0)
    if method == 1 and idat is not None:
        return idat.data[offset : offset + length]
    return _read_at(file, offset, min(length, MAX_META))


def _read_at(file: BinaryIO, offset: int, length: int) -> bytes:
    """Not more than the file has."""
    size = file.seek(0, os.SEEK_END)
    file.seek(min(offset, size))
    return file.read(min(length, size))
