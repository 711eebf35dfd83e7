# SPDX-License-Identifier: Apache-2.0
"""Point clouds from files: what is read, what is refused, and that damage never ends in anything but PointsError."""

import contextlib
import struct
import warnings

import laspy
import numpy as np
import pytest
from flexor.models.points import PointsError, read_points
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

RNG = np.random.default_rng(0)
XYZ = RNG.uniform(-4, 4, (50, 3)).astype(np.float32)
RGB = RNG.integers(0, 256, (50, 3)).astype(np.uint8)
INTENSITY = RNG.uniform(0, 1, 50).astype(np.float32)


def write_ply(path, form="binary_little_endian", before="", after="", count=50, cut=0):
    """Vertices of XYZ and RGB; `before` and `after` are elements with their data, already in the form's words."""
    order = ">" if "big" in form else "<"
    dtype = np.dtype([*((n, order + "f4") for n in "xyz"), *((n, "u1") for n in ("red", "green", "blue"))])
    rows = np.empty(50, dtype)
    for column, name in enumerate(dtype.names):
        rows[name] = XYZ[:, column] if column < 3 else RGB[:, column - 3]
    if form == "ascii":
        data = "".join(" ".join(map(str, row)) + "\n" for row in rows.tolist()).encode()
    else:
        data = rows.tobytes()
    (head_before, data_before), (head_after, data_after) = (part or ("", b"") for part in (before, after))
    properties = "".join(f"property float {n}\n" for n in "xyz")
    properties += "".join(f"property uchar {n}\n" for n in ("red", "green", "blue"))
    header = f"ply\nformat {form} 1.0\ncomment made up\n{head_before}element vertex {count}\n{properties}{head_after}"
    content = header.encode() + b"end_header\n" + data_before + data + data_after
    path.write_bytes(content[: len(content) - cut])
    return path


def write_las(path, points=50, **header):
    las = laspy.create(point_format=3, file_version="1.2")
    las.header.scales, las.header.offsets = [0.001] * 3, [0, 0, 0]
    las.x, las.y, las.z = XYZ[:points].T.astype(float)
    las.red, las.green, las.blue = RGB[:points].T.astype(np.uint16) * 257
    las.write(path)
    return path


def same(points, tolerance=0.0, kind="colour"):
    np.testing.assert_allclose(points.xyz, XYZ, atol=tolerance)
    assert points.kind == kind and points.values.dtype == np.float32 and points.xyz.dtype == np.float64
    expected = {"colour": RGB / 255, "intensity": INTENSITY[:, None], "none": np.zeros((50, 0))}[kind]
    np.testing.assert_allclose(points.values, expected, atol=1e-6)
    return True


def table(columns):
    parts = {"xyzrgb": [XYZ, RGB], "xyzi": [XYZ, INTENSITY[:, None]], "xyzi_": [XYZ, INTENSITY[:, None], XYZ[:, :1]]}
    return np.concatenate(parts.get(columns, [XYZ]), 1).astype(np.float32)


@pytest.mark.parametrize("columns", ["xyzrgb", "xyzi", "xyzi_", "xyz"])
@pytest.mark.parametrize("given_columns", [True, False])
def test_raw_and_numpy(tmp_path, columns, given_columns):
    kind = {"xyzrgb": "colour", "xyz": "none"}.get(columns, "intensity")
    rows = table(columns)
    rows.tofile(tmp_path / "a.bin")
    np.save(tmp_path / "a.npy", rows)
    np.savez(tmp_path / "a.npz", points=rows)
    np.savez_compressed(tmp_path / "b.npz", xyz=XYZ, rgb=RGB, intensity=INTENSITY)
    np.savez(tmp_path / "c.npz", xyz=XYZ, intensity=INTENSITY)
    for name in ("a.bin", "a.npy", "a.npz"):
        assert same(read_points(tmp_path / name, columns if given_columns else None), kind=kind)
    assert same(read_points(tmp_path / "b.npz"))
    assert same(read_points(tmp_path / "c.npz"), kind="intensity")


def test_columns_in_any_order_and_colour_in_any_range(tmp_path):
    rows = np.concatenate([RGB / 255, XYZ[:, ::-1], XYZ[:, :1]], 1).astype(np.float32)
    rows.tofile(tmp_path / "a.bin")
    assert same(read_points(str(tmp_path / "a.bin"), "rgbzyx_"))
    np.savez(tmp_path / "b.npz", xyz=XYZ, rgb=RGB.astype(np.uint16) * 257)
    assert same(read_points(tmp_path / "b.npz"))
    dark = np.minimum(RGB, 1)
    np.savez(tmp_path / "c.npz", xyz=XYZ, rgb=dark)
    assert read_points(tmp_path / "c.npz").values.max() == pytest.approx(1 / 255)


@pytest.mark.parametrize("form", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_ply(tmp_path, form):
    order = ">" if "big" in form else "<"
    plain = ("element camera 2\nproperty short a\nproperty double b\n", np.zeros(2, "i2,f8").tobytes())
    faces = [np.array(3, "u1").tobytes() + np.array([0, 1, 2], order + "i4").tobytes() + b"\7" for _ in range(3)]
    lists = (
        "element face 3\nproperty list uchar int vertex_indices\nproperty uchar flag\n",
        b"".join(faces),
    )
    if form == "ascii":
        plain, lists = (plain[0], b"1 2\n3 4\n"), (lists[0], b"3 0 1 2 7\n" * 3)
    assert same(read_points(write_ply(tmp_path / "a.ply", form)), 1e-6)
    assert same(read_points(write_ply(tmp_path / "b.ply", form, before=plain, after=lists)), 1e-6)
    assert same(read_points(write_ply(tmp_path / "c.ply", form, before=lists)), 1e-6)


def test_las_and_laz(tmp_path):
    assert same(read_points(write_las(tmp_path / "a.las")), 1e-3)
    assert same(read_points(write_las(tmp_path / "a.laz")), 1e-3)
    las = laspy.create(point_format=3)
    las.x, las.y, las.z = XYZ.T.astype(float)
    las.intensity = np.full(50, 300)
    las.write(tmp_path / "b.las")
    points = read_points(tmp_path / "b.las")
    assert points.kind == "intensity", "colour that nobody filled in is no colour"
    assert points.values == pytest.approx(300 / 65535)


def test_points_that_are_not_finite_are_left_out(tmp_path):
    rows = table("xyzi")
    rows[3, 0], rows[7, 3], rows[9, 2] = np.nan, np.inf, -np.inf
    rows.tofile(tmp_path / "a.bin")
    points = read_points(tmp_path / "a.bin", "xyzi")
    assert len(points) == 47 and points.dropped == 3
    np.full((4, 3), np.nan, np.float32).tofile(tmp_path / "b.bin")
    with pytest.raises(PointsError, match=r"b.bin: holds no points with finite numbers"):
        read_points(tmp_path / "b.bin", "xyz")


def refused(path, content=None, columns=None):
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PointsError) as error:
        read_points(path, columns)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_raw_and_numpy_errors(tmp_path):
    assert "must be one of .bin, .ply" in refused(tmp_path / "a.pcd")
    assert "a.bin: no such file" in refused(tmp_path / "a.bin")
    assert "but it is 0 bytes long" in refused(tmp_path / "a.bin", b"")
    assert "but it is 10 bytes long" in refused(tmp_path / "a.bin", b"0123456789")
    assert "holds 28 values, not rows of 6 (xyzrgb)" in refused(tmp_path / "a.bin", bytes(112), "xyzrgb")
    junk = RNG.normal(0, 1e3, 50).astype(np.float32).tobytes()
    assert "make no sense; say what the columns are, such as --columns" in refused(tmp_path / "a.bin", junk)
    for columns in ("xy", "xyzz", "xyzrg", "xyzq", ""):
        assert "must hold x, y and z once each" in refused(tmp_path / "a.bin", junk, columns)
    np.save(tmp_path / "a.npy", np.zeros((4, 9)))
    assert "9 columns of unknown meaning" in refused(tmp_path / "a.npy")
    assert "are 3, but points have 9" in refused(tmp_path / "a.npy", columns="xyz")
    np.save(tmp_path / "a.npy", np.zeros(4))
    assert "must be numbers (P, columns), got float64 (4,)" in refused(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", np.array([None]), allow_pickle=True)
    assert "a.npy: " in refused(tmp_path / "a.npy")
    np.savez(tmp_path / "a.npz", other=XYZ)
    assert "must hold the array points, or xyz" in refused(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", xyz=XYZ, rgb=RGB[:40])
    assert "xyz has 50 rows" in refused(tmp_path / "a.npz")
    assert "not a numpy file" in refused(tmp_path / "a.npz", b"PK junk")
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (10**14, 3)})
    assert "promises an array (100000000000000, 3)" in refused(tmp_path / "a.npy")


def test_ply_that_lies(tmp_path):
    ply = tmp_path / "a.ply"
    for form in ("ascii", "binary_little_endian"):
        for count in (10**15, 51):
            assert "its header promises" in refused(write_ply(ply, form, count=count))
        assert "promises -1 of vertex" in refused(write_ply(ply, form, count=-1))
        assert "holds no points" in refused(write_ply(ply, form, count=0)) or form == "ascii"
        assert refused(write_ply(ply, form, cut=40))
    camera = ("element camera 1000000000000\nproperty double a\n", b"")
    assert "of camera" in refused(write_ply(ply, before=camera))
    face = ("element face 1\nproperty list uint int vertex_indices\n", struct.pack("<I", 4_000_000_000))
    assert "of face, at least 16000000000 bytes" in refused(write_ply(ply, before=face))
    negative = ("element face 1\nproperty list int int vertex_indices\n", struct.pack("<i", -9))
    assert "has -9 items" in refused(write_ply(ply, before=negative))


def test_ply_errors(tmp_path):
    ply = tmp_path / "a.ply"

    def header(*lines):
        return "\n".join(["ply", "format ascii 1.0", *lines, "end_header", ""]).encode()

    xyz = [f"property float {name}" for name in "xyz"]
    assert "does not begin with the line ply" in refused(ply, b"obj\n")
    assert "header does not end" in refused(ply, b"ply\nformat ascii 1.0\n" + b"comment x\n" * 10000)
    assert "names no format" in refused(ply, b"ply\nend_header\n")
    assert "does not know: 'format vax 1.0'" in refused(ply, b"ply\nformat vax 1.0\n")
    assert "no element vertex" in refused(ply, header("element face 0"))
    assert "does not know: 'property float16 x'" in refused(ply, header("element vertex 1", "property float16 x"))
    assert "does not know: 'property float x'" in refused(ply, header("property float x"))
    assert "names the property x twice" in refused(ply, header("element vertex 1", *xyz, "property float x"))
    assert "list property" in refused(ply, header("element vertex 1", *xyz, "property list uchar int a"))
    assert "holds no properties" in refused(ply, header("element vertex 1"))
    assert "have no z, only x, y" in refused(ply, header("element vertex 1", *xyz[:2]) + b"1 2\n")
    assert "could not convert" in refused(ply, header("element vertex 1", *xyz) + b"1 2 x\n")
    assert "it holds 1 lines of 4 numbers" in refused(ply, header("element vertex 1", *xyz) + b"1 2 3 4\n")


def test_las_errors(tmp_path):
    whole = write_las(tmp_path / "a.las").read_bytes()
    las = tmp_path / "b.las"
    assert "header promises 50 points" in refused(las, whole[:-20])
    lying = bytearray(whole)
    lying[107:111] = struct.pack("<I", 4_000_000_000)
    assert "header promises 4000000000 points" in refused(las, bytes(lying))
    assert "not a LAS or LAZ file" in refused(las, b"LASF")
    assert "b.laz: " in refused(tmp_path / "b.laz", write_las(tmp_path / "a.laz").read_bytes()[:-60])


def samples(folder):
    """A sound file of each kind."""
    folder.mkdir(exist_ok=True)
    table("xyzi").tofile(folder / "a.bin")
    np.save(folder / "a.npy", table("xyzrgb"))
    np.savez_compressed(folder / "a.npz", xyz=XYZ, rgb=RGB)
    np.savez(folder / "b.npz", points=table("xyzi"))
    face = ("element face 1\nproperty list uchar int vertex_indices\n", b"\1" + bytes(4))
    write_ply(folder / "a.ply", before=face)
    write_ply(folder / "b.ply", "ascii")
    write_las(folder / "a.las")
    write_las(folder / "a.laz")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return [(path, path.read_bytes()) for path in samples(tmp_path_factory.mktemp("points") / "sound")]


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_damaged_files_are_read_or_refused(sound, data):
    """Bytes changed, cut out or added anywhere, most of all in the header: points or PointsError, nothing else."""
    path, content = data.draw(st.sampled_from(sound))
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        top = data.draw(st.sampled_from([64, 400, len(changed)]))
        place = data.draw(st.integers(0, max(min(top, len(changed)) - 1, 0)))
        length = data.draw(st.integers(0, 9))
        changed[place : place + length] = data.draw(st.binary(max_size=9))
    target = path.with_name(f"damaged{path.suffix}")
    target.write_bytes(changed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        points = None
        with contextlib.suppress(PointsError):
            points = read_points(target)
        if points is not None:
            assert len(points) and np.isfinite(points.xyz).all() and np.isfinite(points.values).all()
            assert points.values.size == 0 or (points.values.min() >= 0 and points.values.max() <= 1)


@settings(max_examples=100, deadline=None)
@given(suffix=st.sampled_from([".bin", ".npy", ".npz", ".ply", ".las", ".laz"]), content=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(sound, suffix, content):
    target = sound[0][0].with_name(f"any{suffix}")
    target.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(PointsError):
            assert len(read_points(target))
