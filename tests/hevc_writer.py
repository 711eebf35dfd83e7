# SPDX-License-Identifier: Apache-2.0
"""Writes what no encoder at hand writes: parameter sets with any values, NAL units moved about, HEIF grids."""

import struct

START = b"\0\0\0\1"
VPS, SPS, PPS, EOS, SUFFIX_SEI = 32, 33, 34, 36, 40


class Bits:
    def __init__(self):
        self.bits = []

    def u(self, value, size):
        self.bits += [value >> (size - 1 - i) & 1 for i in range(size)]
        return self

    def ue(self, value):
        size = (value + 1).bit_length()
        return self.u(0, size - 1).u(value + 1, size)

    def se(self, value):
        return self.ue(2 * value - 1 if value > 0 else -2 * value)

    def unit(self, kind):
        """As a NAL unit, with its stop bit and emulation prevention."""
        bits = [*self.bits, 1]
        bits += [0] * (-len(bits) % 8)
        raw = bytes(int("".join(map(str, bits[i : i + 8])), 2) for i in range(0, len(bits), 8))
        out = bytearray([kind << 1, 1])
        for byte in raw:
            if byte <= 3 and out[-2:] == b"\0\0" and len(out) > 3:
                out.append(3)
            out.append(byte)
        return bytes(out)


def sps(
    width=64, height=64, chroma=1, separate=0, depth=8, level=93, window=None, reorder=0, min_cb=3, ctb=4, min_tb=2,
    max_tb=4, pcm=None, sets=0, extensions=(), profile=1,
):  # fmt: skip
    """extensions: bits of sps_range_extension_flag to sps_extension_4bits, then those that follow."""
    b = Bits().u(0, 4).u(0, 3).u(1, 1)
    b.u(0, 3).u(profile, 5).u(1 << (31 - profile), 32).u(0b1001, 4).u(0, 32).u(0, 12).u(level, 8)
    b.ue(0).ue(chroma)
    if chroma == 3:
        b.u(separate, 1)
    b.ue(width).ue(height).u(window is not None, 1)
    for offset in window or ():
        b.ue(offset)
    b.ue(depth - 8).ue(depth - 8).ue(4).u(1, 1).ue(4).ue(reorder).ue(0)
    b.ue(min_cb - 3).ue(ctb - min_cb).ue(min_tb - 2).ue(max_tb - min_tb).ue(0).ue(0)
    b.u(0, 1).u(0, 1).u(0, 1).u(pcm is not None, 1)
    if pcm is not None:
        b.u(pcm[0] - 1, 4).u(pcm[0] - 1, 4).ue(pcm[1] - 3).ue(0).u(0, 1)
    b.ue(sets).u(0, 1).u(0, 1).u(0, 1).u(0, 1).u(bool(extensions), 1)
    for bit in extensions:
        b.u(bit, 1)
    return b.unit(SPS)


def pps(sps_id=0, init_qp=0, depth=None, tiles=None, scc=False, cross_component=False):
    b = Bits().ue(0).ue(sps_id).u(0, 1).u(0, 1).u(0, 3).u(0, 1).u(0, 1).ue(0).ue(0).se(init_qp).u(0, 1).u(0, 1)
    b.u(depth is not None, 1)
    if depth is not None:
        b.ue(depth)
    b.se(0).se(0).u(0, 4).u(tiles is not None, 1).u(0, 1)
    if tiles is not None:
        b.ue(tiles[0] - 1).ue(tiles[1] - 1).u(1, 1).u(1, 1)
    b.u(0, 1).u(0, 1).u(0, 1).u(0, 1).ue(0).u(0, 1).u(scc or cross_component, 1)
    if scc or cross_component:
        b.u(cross_component, 1).u(0, 2).u(scc, 1).u(0, 4)
    if cross_component:
        b.u(1, 1).u(0, 1).ue(0).ue(0)
    return b.unit(PPS)


def idr_slice(first=True, pps_id=0):
    """The header of an I slice, and no data worth the name."""
    return Bits().u(first, 1).u(0, 1).ue(pps_id).ue(2).se(0).u(1, 1).u(0, 7).u(0, 64).unit(19)


def stream(units):
    return b"".join(START + unit for unit in units)


def units(data):
    """The NAL units of a byte stream."""
    return [unit.rstrip(b"\0") for unit in data.split(b"\0\0\1")[1:]]


def kind(unit):
    return unit[0] >> 1 & 63


def retyped(unit, nal_unit_type):
    return bytes([nal_unit_type << 1 | unit[0] & 1]) + unit[1:]


def pictures(data):
    """Parameter sets, and the units of each picture: a slice and its hash."""
    headers = [unit for unit in units(data) if kind(unit) in (VPS, SPS, PPS)]
    groups = []
    for unit in units(data):
        if kind(unit) < 32:
            groups.append([unit])
        elif kind(unit) == SUFFIX_SEI:
            groups[-1].append(unit)
    return headers, groups


def with_lengths(data, length_size):
    return b"".join(len(unit).to_bytes(length_size, "big") + unit for unit in units(data))


def configuration(headers, length_size=4):
    """HEVCDecoderConfigurationRecord."""
    arrays = b"".join(struct.pack(">BHH", 0x80 | kind(unit), 1, len(unit)) + unit for unit in sorted(headers, key=kind))
    return b"\1" + bytes(20) + bytes([0xFC | length_size - 1, len(headers)]) + arrays


def box(name, *parts):
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), name) + body


def full_box(name, version, flags, *parts):
    return box(name, struct.pack(">I", version << 24 | flags), *parts)


def heif(data, rows, columns, size, tile_size, primary=b"grid"):
    """A HEIF file whose primary item is a grid of the stream's pictures, or one of them."""
    headers, groups = pictures(data)
    count = rows * columns
    tiles = [with_lengths(stream(group), 4) for group in groups[:count]]
    grid = struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, *size)
    kinds = [b"grid"] + [b"hvc1"] * count
    entries = [full_box(b"infe", 2, 0, struct.pack(">HH4s", i + 1, 0, k), b"\0") for i, k in enumerate(kinds)]
    sizes = [full_box(b"ispe", 0, 0, struct.pack(">II", *s)) for s in (tile_size, size)]
    links = [struct.pack(">HBB", 1, 1, 3)] + [struct.pack(">HBBB", i + 2, 2, 0x81, 2) for i in range(count)]
    references = struct.pack(f">HH{count}H", 1, count, *range(2, count + 2))

    def meta(at):
        places = struct.pack(">HHHHII", 1, 1, 0, 1, 0, len(grid))
        for i, tile in enumerate(tiles):
            places += struct.pack(">HHHHII", i + 2, 0, 0, 1, at, len(tile))
            at += len(tile)
        return full_box(
            b"meta", 0, 0,
            full_box(b"hdlr", 0, 0, b"\0\0\0\0pict", bytes(13)),
            full_box(b"pitm", 0, 0, struct.pack(">H", 1 if primary == b"grid" else 2)),
            full_box(b"iinf", 0, 0, struct.pack(">H", len(kinds)), *entries),
            full_box(b"iref", 0, 0, box(b"dimg", references)),
            box(b"iprp", box(b"ipco", box(b"hvcC", configuration(headers)), *sizes),
                full_box(b"ipma", 0, 0, struct.pack(">I", count + 1), *links)),
            box(b"idat", grid),
            full_box(b"iloc", 1, 0, struct.pack(">HH", 0x4400, count + 1), places),
        )  # fmt: skip

    brand = box(b"ftyp", b"heic\0\0\0\0mif1heic")
    return brand + meta(len(brand) + len(meta(0)) + 8) + box(b"mdat", *tiles)
