# SPDX-License-Identifier: Apache-2.0
"""The vertices of a PLY file, ASCII or binary: nothing is allocated that the file's size does not vouch for."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

TYPES = {
    "char": "i1",
    "uchar": "u1",
    "short": "i2",
    "ushort": "u2",
    "int": "i4",
    "uint": "u4",
    "float": "f4",
    "double": "f8",
    "int8": "i1",
    "uint8": "u1",
    "int16": "i2",
    "uint16": "u2",
    "int32": "i4",
    "uint32": "u4",
    "float32": "f4",
    "float64": "f8",
}
ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
LONGEST_HEADER = 1 << 16


@dataclass
class _Element:
    name: str
    count: int
    scalars: list[tuple[str, str]] = field(default_factory=list)  # name and numpy type
    lists: list[tuple[int, str, str]] = field(default_factory=list)  # scalars before it, types of length and items

    def dtype(self, order: str) -> np.dtype:
        return np.dtype([(name, order + kind) for name, kind in self.scalars])


def read_ply(path: Path) -> dict[str, NDArray]:
    """The scalar properties of the element "vertex", an array (N,) each, in their own types (ASCII: float64).

    Args:
        path: a PLY file of format ascii, binary_little_endian or binary_big_endian 1.0. Other elements are skipped.

    Raises:
        ValueError: no PLY file, a header that is wrong, or fewer vertices than it promises.
        OSError: a file that cannot be read.

    Source:
        Turk, "The PLY Polygon File Format", 1994.
    """
    size = os.path.getsize(path)
    with path.open("rb") as file:
        order, elements = _header(file)
        for element in elements:
            if element.name == "vertex":
                break
            _skip(file, element, order, size)
        else:
            raise ValueError("its header names no element vertex")
        if element.lists:
            raise ValueError("a vertex holds a list property, which is not supported")
        if not element.scalars:
            raise ValueError("a vertex holds no properties")
        return _ascii(file, element, size) if not order else _binary(file, element, order, size)


def _header(file: BinaryIO) -> tuple[str, list[_Element]]:
    lines = iter(_lines(file))
    if next(lines, "") != "ply":
        raise ValueError("it does not begin with the line ply")
    order, elements = None, []
    for line in lines:
        words = line.split()
        if not words or words[0] in ("comment", "obj_info"):
            continue
        try:
            if words[0] == "end_header":
                if order is None:
                    raise ValueError("its header names no format")
                return order, elements
            if words[0] == "format":
                order = ORDERS[words[1]]
            elif words[0] == "element":
                elements.append(_Element(words[1], int(words[2])))
            elif words[0] == "property" and words[1] == "list":
                elements[-1].lists.append((len(elements[-1].scalars), TYPES[words[2]], TYPES[words[3]]))
            elif words[0] == "property":
                elements[-1].scalars.append((words[2], TYPES[words[1]]))
            else:
                raise KeyError(words[0])
        except (IndexError, KeyError):
            raise ValueError(f"its header has a line that PLY does not know: {line[:60]!r}") from None
        if elements and elements[-1].count < 0:
            raise ValueError(f"its header promises {elements[-1].count} of {elements[-1].name}")
        if elements and len({name for name, _ in elements[-1].scalars}) < len(elements[-1].scalars):
            raise ValueError(f"its header names the property {elements[-1].scalars[-1][0]} twice")
    raise ValueError("its header does not end")


def _lines(file: BinaryIO) -> itertools.chain[str]:
    def read() -> Iterator[str]:
        while file.tell() < LONGEST_HEADER and (line := file.readline(1024)):
            yield line.decode("latin1").strip()

    return itertools.chain(read())


def _skip(file: BinaryIO, element: _Element, order: str, size: int) -> None:
    """Go past an element that stands before the vertices."""
    if not order:
        for _ in range(min(element.count, size)):
            if not file.readline():
                raise ValueError(f"it ends within the {element.count} of {element.name}")
        return
    if not element.lists:
        length = element.count * element.dtype(order).itemsize
        _require(file, element, length, size)
        file.seek(length, os.SEEK_CUR)
        return
    _require(file, element, element.count, size)
    for _ in range(element.count):
        done = 0
        for before, length_kind, item_kind in element.lists:
            file.seek(sum(np.dtype(kind).itemsize for _, kind in element.scalars[done:before]), os.SEEK_CUR)
            done = before
            content = _exactly(file, element, np.dtype(length_kind).itemsize)
            items = int(np.frombuffer(content, order + length_kind)[0])
            if items < 0:
                raise ValueError(f"a list in its {element.name} has {items} items")
            _require(file, element, items * np.dtype(item_kind).itemsize, size)
            file.seek(items * np.dtype(item_kind).itemsize, os.SEEK_CUR)
        file.seek(sum(np.dtype(kind).itemsize for _, kind in element.scalars[done:]), os.SEEK_CUR)


def _binary(file: BinaryIO, element: _Element, order: str, size: int) -> dict[str, NDArray]:
    dtype = element.dtype(order)
    _require(file, element, element.count * dtype.itemsize, size)
    rows = np.frombuffer(_exactly(file, element, element.count * dtype.itemsize), dtype)
    return {name: rows[name].astype(kind) for name, kind in element.scalars}


def _ascii(file: BinaryIO, element: _Element, size: int) -> dict[str, NDArray]:
    columns = len(element.scalars)
    _require(file, element, element.count * 2 * columns - 1, size)  # a digit and a space or line end for each value
    lines = (line.decode("latin1") for line in itertools.islice(file, element.count))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of no data, which the count tells better
        rows = np.loadtxt(lines, ndmin=2, comments=None)
    if rows.shape != (element.count, columns):
        found = f"{rows.shape[0]} lines of {rows.shape[1]} numbers"
        raise ValueError(f"its header promises {element.count} vertices of {columns} numbers, it holds {found}")
    return {name: rows[:, column] for column, (name, _) in enumerate(element.scalars)}


def _require(file: BinaryIO, element: _Element, length: int, size: int) -> None:
    left = size - file.tell()
    if length > left:
        raise ValueError(
            f"its header promises {element.count} of {element.name}, at least {length} bytes, but {left} are left"
        )


def _exactly(file: BinaryIO, element: _Element, length: int) -> bytes:
    content = file.read(length)
    if len(content) != length:
        raise ValueError(f"it ends within the {element.count} of {element.name}")
    return content
