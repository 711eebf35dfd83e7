# SPDX-License-Identifier: Apache-2.0
"""Point clouds from files: raw float32, PLY, LAS and LAZ, npy and npz."""

from __future__ import annotations

import math
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .ply import read_ply

SUFFIXES = (".bin", ".ply", ".las", ".laz", ".npz", ".npy")
GUESSES = ("xyzrgb", "xyzi", "xyzi_", "xyz")
COLOUR_NAMES = (("red", "green", "blue"), ("r", "g", "b"), ("diffuse_red", "diffuse_green", "diffuse_blue"))
INTENSITY_NAMES = ("intensity", "scalar_intensity", "scalar_Intensity", "reflectance", "remission")
LAS_CHUNK_BYTES = 1 << 26
LAS_VLR_BYTES, LAS_EVLR_BYTES = 54, 60  # of a record's own header, the least that one takes
LAZ_CHUNK_BYTES = 20  # a chunk begins with a point as it is


class PointsError(ValueError):
    """A point cloud that cannot be used, and why; one line meant for the user."""


@dataclass(frozen=True)
class Points:
    """Points and what was measured at them.

    Args:
        xyz: (P, 3) float64, all finite, in the file's unit.
        values: (P, C) float32 in 0..1: C is 3 for colour, 1 for intensity, 0 for neither.
        source: the file.
        dropped: points left out because a number of theirs is not finite.
    """

    xyz: NDArray[np.float64]
    values: NDArray[np.float32]
    source: str
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.xyz)

    @property
    def kind(self) -> str:
        return ("none", "intensity", "", "colour")[self.values.shape[1]]


def read_points(path: str | Path, columns: str | None = None) -> Points:
    """Read a point cloud.

    Args:
        path: .bin, rows of float32; .ply, ASCII or binary; .las or .laz; .npy, (P, columns); .npz, with `points`
            (P, columns), or `xyz` (P, 3) and perhaps `rgb` (P, 3) or `intensity` (P,).
        columns: what the columns of .bin, .npy and `points` hold: a letter each of x, y, z, r, g, b, i (intensity) and
            _ (anything else). None: the first of xyzrgb, xyzi, xyzi_ and xyz that fits the number of values and in
            which colour and intensity lie in 0..1, or are whole numbers in 0..255.

    Returns:
        The points; colour before intensity where a file has both. Values of an unsigned type of 8 bits are divided by
        255; others are taken as they are up to 1, divided by 255 up to 255, else by 65535.

    Raises:
        PointsError: no such file, one that is damaged, lies about its size or is of another format, or no points.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise PointsError(f"{path}: must be one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise PointsError(f"{path}: no such file")
    if columns is not None:
        _check_columns(columns)
    try:
        if suffix == ".bin":
            return _points(path, _of_table(_raw(path, columns), columns))
        if suffix == ".ply":
            return _points(path, _of_names(read_ply(path)))
        if suffix in (".las", ".laz"):
            return _points(path, _las(path))
        return _points(path, _numpy(path, columns))
    except MemoryError:
        raise PointsError(f"{path}: too large for this machine's memory") from None
    except (ValueError, OSError) as error:
        text = _line(error)
        raise PointsError(text if text.startswith(str(path)) else f"{path}: {text}") from None


Columns = dict[str, NDArray]  # x, y, z and perhaps r, g, b or i


def _points(path: Path, columns: Columns) -> Points:
    """Check, scale and join what a reader found."""
    names = "rgb" if "r" in columns else "i" if "i" in columns else ""
    xyz = np.stack([np.asarray(columns[name], np.float64) for name in "xyz"], -1)
    raw = [columns[name] for name in names]
    finite = np.isfinite(xyz).all(-1)
    for column in raw:
        finite &= np.isfinite(column)
    if not finite.any():
        raise PointsError(f"{path}: holds no points" + (" with finite numbers" if len(xyz) else ""))
    values = np.stack([column[finite] for column in raw], -1) if raw else np.zeros((int(finite.sum()), 0))
    return Points(xyz[finite], _to_unit(values), str(path), int((~finite).sum()))


def _to_unit(values: NDArray) -> NDArray[np.float32]:
    top = 255.0 if values.dtype == np.uint8 else 1.0
    largest = float(values.max()) if values.size else 0.0
    if largest > top:
        top = 255.0 if largest <= 255 else 65535.0
    return np.clip(values.astype(np.float32) / np.float32(top), 0, 1)


def _check_columns(columns: str) -> None:
    letters = set(columns) - {"_"}
    repeated = any(columns.count(letter) > 1 for letter in letters)
    if repeated or not set("xyz") <= letters <= set("xyzrgbi") or len(letters & set("rgb")) not in (0, 3):
        raise PointsError(
            f"columns {columns!r}: must hold x, y and z once each, perhaps r, g and b, or i, and _ for the rest"
        )


def _raw(path: Path, columns: str | None) -> NDArray[np.float32]:
    """Rows of a .bin file."""
    size = path.stat().st_size
    if size == 0 or size % 4:
        raise PointsError(f"{path}: must be rows of float32, but it is {size} bytes long")
    flat = np.fromfile(path, "<f4")
    for guess in [columns] if columns else GUESSES:
        if flat.size % len(guess) == 0 and (columns or _plausible(flat.reshape(-1, len(guess)), guess)):
            return flat.reshape(-1, len(guess))
    wanted = f"not rows of {len(columns)} ({columns})" if columns else "in rows of 3 to 6 they make no sense"
    raise PointsError(f"{path}: holds {flat.size} values, {wanted}; say what the columns are, such as --columns xyzi_")


def _plausible(table: NDArray, columns: str) -> bool:
    """Whether colour or intensity could be in these columns."""
    measured = [index for index, letter in enumerate(columns) if letter in "rgbi"]
    values = table[:, measured]
    values = values[np.isfinite(values)]
    unit = bool(((values >= 0) & (values <= 1)).all())
    return unit or bool(((values >= 0) & (values <= 255) & (values == np.round(values))).all())


def _of_table(table: NDArray, columns: str | None) -> Columns:
    if table.ndim != 2 or table.dtype.kind not in "fiu":
        raise ValueError(f"points must be numbers (P, columns), got {table.dtype} {table.shape}")
    width = table.shape[1]
    if columns is None:
        columns = next((guess for guess in GUESSES if len(guess) == width and _plausible(table, guess)), None)
        if columns is None:
            raise ValueError(f"points have {width} columns of unknown meaning: say which, such as --columns xyzi_")
    if len(columns) != width:
        raise ValueError(f"columns {columns!r} are {len(columns)}, but points have {width}")
    return {letter: table[:, index] for index, letter in enumerate(columns) if letter != "_"}


def _of_names(found: dict[str, NDArray]) -> Columns:
    """Columns of a file that names them."""
    if missing := {"x", "y", "z"} - found.keys():
        raise ValueError(f"its points have no {', '.join(sorted(missing))}, only {', '.join(found) or 'nothing'}")
    columns = {name: found[name] for name in "xyz"}
    for names in COLOUR_NAMES:
        if found.keys() >= set(names):
            return columns | dict(zip("rgb", (found[name] for name in names), strict=True))
    for name in INTENSITY_NAMES:
        if name in found:
            return columns | {"i": found[name]}
    return columns


def _numpy(path: Path, columns: str | None) -> Columns:
    try:
        with path.open("rb") as stream:
            if path.suffix.lower() == ".npy":
                _vouch(stream, path.stat().st_size)
                return _of_table(np.load(stream, allow_pickle=False), columns)
            with zipfile.ZipFile(stream) as archive:
                arrays = {
                    name: _member(archive, name)
                    for name in ("points", "xyz", "rgb", "intensity")
                    if f"{name}.npy" in archive.namelist()
                }
    except (MemoryError, OSError, ValueError):
        raise
    except Exception as error:  # a damaged archive or header lets zipfile, zlib and tokenize speak in their own tongues
        raise PointsError(f"{path}: not a numpy file that can be read ({_line(error)})") from None
    if "points" in arrays:
        return _of_table(arrays["points"], columns)
    if "xyz" not in arrays:
        raise PointsError(f"{path}: must hold the array points, or xyz with rgb or intensity")
    found = _of_table(arrays["xyz"], "xyz")
    if "rgb" in arrays:
        found |= dict(zip("rgb", _of_table(arrays["rgb"], "xyz").values(), strict=True))
    elif "intensity" in arrays:
        found["i"] = _of_table(arrays["intensity"].reshape(-1, 1), "i")["i"]
    if len({len(column) for column in found.values()}) > 1:
        raise PointsError(f"{path}: xyz has {len(found['x'])} rows, but rgb or intensity has another number")
    return found


def _member(archive: zipfile.ZipFile, name: str) -> NDArray:
    with archive.open(f"{name}.npy") as stream:
        _vouch(stream, archive.getinfo(f"{name}.npy").file_size)
    with archive.open(f"{name}.npy") as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def _vouch(stream: Any, size: int) -> None:
    """Refuse an array whose header promises more than `size` bytes; the stream is at its start again."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    promised = math.prod(shape) * dtype.itemsize
    if promised > size:
        raise ValueError(f"its header promises an array {shape}, {promised} bytes, but it is {size} bytes long")
    stream.seek(0)


def _las(path: Path) -> Columns:
    try:
        import laspy
    except ModuleNotFoundError:
        raise PointsError(f"{path}: reading it needs the package laspy: pip install 'flexor[cli]'") from None
    try:
        _vouch_las(path)
        # One thread: the parallel decoder allocates whatever a damaged chunk table asks for, and aborts.
        with laspy.open(path, laz_backend=laspy.LazBackend.Lazrs, read_evlrs=False) as reader:
            header = reader.header
            count, size = header.point_count, header.point_format.size
            left = path.stat().st_size - header.offset_to_point_data
            if not header.are_points_compressed and count * size > left:
                raise ValueError(f"its header promises {count} points, {count * size} bytes, but {left} are left")
            chunks = [_las_columns(chunk) for chunk in reader.chunk_iterator(max(1, LAS_CHUNK_BYTES // size))]
    except (MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # laspy and its LAZ decoder let out anything, the decoder's Rust panics too
        raise PointsError(f"{path}: not a LAS or LAZ file that can be read ({_line(error)})") from None
    if not chunks:
        raise PointsError(f"{path}: holds no points")
    found = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
    if len(found["x"]) != count:
        raise PointsError(f"{path}: its header promises {count} points, it holds {len(found['x'])}")
    if "red" in found and not any(found[name].any() for name in COLOUR_NAMES[0]):
        for name in COLOUR_NAMES[0]:  # a colour nobody filled in
            del found[name]
    return _of_names(found)


def _vouch_las(path: Path) -> None:
    """Refuse a header that promises more records than the file can hold, which laspy would go on counting."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(375)
        if len(header) < 227 or header[:4] != b"LASF":
            raise ValueError("it has no LAS header")
        chunks = _laz_chunks(file, size, struct.unpack_from("<I", header, 96)[0]) if header[104] & 0x80 else 0
    if chunks * LAZ_CHUNK_BYTES > size:
        raise ValueError(f"its chunk table promises {chunks} chunks, but it is {size} bytes")
    (records,) = struct.unpack_from("<I", header, 100)
    (extended,) = struct.unpack_from("<I", header, 243) if header[25] >= 4 and len(header) == 375 else (0,)
    if records * LAS_VLR_BYTES + extended * LAS_EVLR_BYTES > size:
        raise ValueError(f"its header promises {records + extended} variable length records, but it is {size} bytes")


def _laz_chunks(file: BinaryIO, size: int, start: int) -> int:
    """How many chunks the table of a LAZ file promises; the place of the table stands where the points begin."""
    file.seek(start)
    (place,) = struct.unpack("<q", file.read(8).ljust(8, b"\0"))
    if place == -1:
        file.seek(max(size - 8, 0))
        (place,) = struct.unpack("<q", file.read(8).ljust(8, b"\0"))
    if not 0 <= place <= size - 8:
        raise ValueError(f"its chunk table would be at byte {place}, but it is {size} bytes")
    file.seek(place)
    return struct.unpack("<II", file.read(8))[1]


def _las_columns(chunk: Any) -> dict[str, NDArray]:
    names = {*COLOUR_NAMES[0], "intensity"} & set(chunk.point_format.dimension_names)
    found: dict[str, ArrayLike] = {"x": chunk.x, "y": chunk.y, "z": chunk.z, **{name: chunk[name] for name in names}}
    return {name: np.array(column) for name, column in found.items()}


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
