# SPDX-License-Identifier: Apache-2.0
"""Everything above slice data: forms of input, parameter sets, picture order, hashes, damage, errors."""

import io
import random
import sys
import zlib
from pathlib import Path

import hevc_writer as writer
import numpy as np
import pytest
from flexor.codec import hevc
from flexor.codec.hevc import Colour, HevcError, HevcUnsupported
from hypothesis import given, settings
from hypothesis import strategies as st

DATA = Path(__file__).parent / "data" / "hevc"


def load(name):
    return (DATA / f"{name}.hevc").read_bytes()


def fingerprint(pictures):
    return [(p.poc, p.hash, p.damage, *[zlib.crc32(plane.tobytes()) for plane in p.planes]) for p in pictures]


def decode(data, **options):
    """Pictures, and the error if there is one."""
    try:
        return hevc.decode(data, **options), None
    except (HevcError, HevcUnsupported) as error:
        return error.pictures, error


def assert_right(pictures, count):
    assert len(pictures) == count
    for picture in pictures:
        assert picture.hash is not None and not picture.damaged, picture.damage


REORDER = load("stream_reorder")  # 17 intra pictures that are coded out of order
IDR = load("pictures_idr")
HEADERS, GROUPS = writer.pictures(REORDER)


# Forms of input.


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
def test_bytes_and_paths(wrap, tmp_path):
    pictures = hevc.decode(wrap(IDR))
    assert_right(pictures, 3)
    assert fingerprint(hevc.decode(DATA / "pictures_idr.hevc")) == fingerprint(pictures)
    assert fingerprint(hevc.decode(str(DATA / "pictures_idr.hevc"))) == fingerprint(pictures)


@pytest.mark.parametrize("length_size", [1, 2, 4])
def test_lengths(length_size):
    # Slices of more than 255 bytes do not fit lengths of one.
    source = load("vui_sei") if length_size == 1 else REORDER
    units = [unit for unit in writer.units(source) if len(unit) < 256 or length_size > 1]
    data = writer.with_lengths(writer.stream(units), length_size)
    want, problem = decode(writer.stream(units))
    assert fingerprint(decode(data)[0]) == fingerprint(want) and (problem is None or length_size == 1)


def test_configuration():
    decoder = hevc.Decoder(configuration=writer.configuration(HEADERS, 2))
    data = b"".join(writer.with_lengths(writer.stream(group), 2) for group in GROUPS)
    pictures = [p for i in range(0, len(data), 100) for p in decoder.feed(data[i : i + 100])] + decoder.flush()
    assert fingerprint(pictures) == fingerprint(hevc.decode(REORDER))


@pytest.mark.parametrize("name", ["mp4", "mov", "matroska", "mpegts"])
def test_containers(name, tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "clip"  # without a telling name
    with av.open(io.BytesIO(IDR), format="hevc") as stream, av.open(str(path), "w", format=name) as container:
        output = container.add_stream_from_template(stream.streams.video[0])
        for i, packet in enumerate(stream.demux(video=0)):
            if packet.size:
                packet.stream, packet.pts, packet.dts = output, i, i
                container.mux(packet)
    assert fingerprint(hevc.decode(path)) == fingerprint(hevc.decode(IDR))
    assert len(hevc.inspect(path.read_bytes()).pictures) == 3


def test_heif():
    tiles = hevc.decode(IDR)
    units = [group[0] for group in writer.pictures(IDR)[1]]
    height, width = tiles[0].height, tiles[0].width
    whole = writer.heif(IDR, 3, 1, (width - 5, 3 * height - 3), (width, height))
    (picture,) = hevc.decode(whole)
    assert picture.hash == "md5" and not picture.damaged
    for i, plane in enumerate(picture.planes):
        stacked = np.concatenate([tile.planes[i] for tile in tiles])
        shift = 1 if i else 0
        assert np.array_equal(plane, stacked[: (3 * height - 3 + shift) >> shift, : (width - 5 + shift) >> shift])
    with pytest.raises(HevcError, match="do not cover its 73x120"):
        hevc.decode(writer.heif(IDR, 3, 1, (width + 1, 3 * height), (width, height)))
    with pytest.raises(HevcError, match="2 of the 3 tiles"):
        hevc.decode(whole.replace(units[1], writer.retyped(units[1], 63)))
    broken = bytearray(whole)
    broken[whole.index(units[2]) + 60] ^= 255
    assert "tile 2: " in hevc.decode(bytes(broken))[0].damage


def test_heif_of_one():
    pytest.importorskip("av")
    data = writer.heif(IDR, 3, 1, (72, 120), (72, 40), primary=b"hvc1")
    assert fingerprint(hevc.decode(data)) == fingerprint(hevc.decode(IDR))[:1]


def test_containers_need_pyav(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"is a container, and reading it needs PyAV: pip install flexor\[codec\]"):
        hevc.decode(b"\0\0\0\x18ftypisom" + bytes(100))


def test_broken_containers():
    pytest.importorskip("av")
    with pytest.raises(HevcError, match="the container cannot be read"):
        hevc.decode(b"\0\0\0\x18ftypisom" + bytes(100))


# Streams in pieces.


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 700), min_size=1, max_size=40), st.integers(1, 3))
def test_any_pieces(sizes, threads):
    decoder, pictures, at = hevc.Decoder(threads), [], 0
    for size in sizes:
        pictures += decoder.feed(REORDER[at : at + size])
        at += size
    pictures += decoder.feed(REORDER[at:]) + decoder.flush()
    assert fingerprint(pictures) == fingerprint(hevc.decode(REORDER))


def test_byte_by_byte():
    decoder = hevc.Decoder()
    pictures = [p for i in range(len(IDR)) for p in decoder.feed(IDR[i : i + 1])]
    assert len(pictures) == 2  # the last one might go on
    assert_right(pictures + decoder.flush(), 3)
    assert decoder.flush() == []


def test_pictures_come_promptly():
    decoder = hevc.Decoder(threads=4)
    headers, groups = writer.pictures(IDR)
    assert decoder.feed(writer.stream(headers + groups[0])) == []
    assert len(decoder.feed(writer.stream(groups[1]))) == 1  # as soon as the next one begins
    assert len(decoder.flush()) == 1


def test_zero_bytes_and_other_units():
    units = [unit + bytes(3) for unit in writer.units(IDR)]
    extra = [bytes([41 << 1, 1, 7]), bytes([50 << 1, 1, 7]), bytes([1 << 1, 9, 7])]  # the last of layer 1
    assert fingerprint(hevc.decode(writer.stream([*units[:3], *extra, *units[3:]]))) == fingerprint(hevc.decode(IDR))
    assert fingerprint(hevc.decode(IDR.replace(writer.START, b"\0\0\1"))) == fingerprint(hevc.decode(IDR))


def test_iterate_reports_progress():
    steps = []
    pictures = list(hevc.iterate(REORDER, progress=lambda done, size: steps.append((done, size))))
    assert_right(pictures, 17)
    assert steps == sorted(steps) and steps[-1] == (len(REORDER), len(REORDER))


# Order of output.


def test_reordering():
    pictures = hevc.decode(REORDER)
    assert_right(pictures, 17)
    assert [p.poc for p in pictures] == list(range(17))
    assert [p.number for p in pictures][:9] == [0, 4, 3, 5, 2, 7, 6, 8, 1]
    numbers = [p.number for p in hevc.decode(REORDER, threads=3)]
    assert numbers == [p.number for p in pictures]


END = [bytes([writer.EOS << 1, 1])]
NO_OUTPUT = [GROUPS[0][0][:2] + bytes([GROUPS[0][0][2] | 0x40]) + GROUPS[0][0][3:], GROUPS[0][1]]
BLA = [writer.retyped(GROUPS[9][0], 16), GROUPS[9][1]]


@pytest.mark.parametrize(
    ("groups", "pocs"),  # as ffmpeg 5.1 has them
    [
        (GROUPS[1:], range(8, 17)),  # begins with CRA: its RASL pictures are skipped
        ([*GROUPS[:9], END, *GROUPS[9:]], [*range(6), 16]),  # CRA after EOS: what waits is dropped
        ([*GROUPS[:9], BLA, *GROUPS[10:]], [*range(9), 16]),
        ([*GROUPS[:1], *GROUPS[9:]], [0, *range(9, 17)]),
        ([*GROUPS, *GROUPS], [*range(17), *range(17)]),
        ([*GROUPS, END, *GROUPS], [*range(17), *range(17)]),
        ([*GROUPS[:4], NO_OUTPUT, *GROUPS[1:]], [0, *range(17)]),
    ],
    ids=["CRA first", "EOS", "BLA", "gap", "twice", "twice EOS", "no_output_of_prior_pics"],
)
def test_sequences(groups, pocs):
    pictures = hevc.decode(writer.stream(HEADERS + [unit for group in groups for unit in group]))
    assert_right(pictures, len(pocs))
    assert [p.poc for p in pictures] == list(pocs)


def test_inter_pictures():
    data = load("stream_gop")
    with pytest.raises(
        HevcUnsupported, match=r"picture 1 \(in decoding order; POC 3\) is inter coded \(slice_type P\)"
    ) as caught:
        hevc.decode(data)
    assert_right(caught.value.pictures, 1)
    pictures = hevc.decode(data, skip_inter=True)
    assert_right(pictures, 4)
    assert [p.poc for p in pictures] == [0, 6, 12, 18]
    decoder = hevc.Decoder()
    with pytest.raises(HevcUnsupported, match="skip_inter=True") as caught:
        decoder.feed(data)
    assert_right(caught.value.pictures, 1)
    with pytest.raises(HevcUnsupported, match="picture 1"):
        decoder.feed(data)
    found = hevc.inspect(data)
    assert [p.poc for p, _ in found.pictures] == [0, 6, 12, 18] and not found.problems
    assert sum(unit.elements.get("slice_type") in (0, 1) for unit in found.units) == 16


# Parameter sets that streams at hand do not have.


@pytest.mark.parametrize(
    ("headers", "error", "match"),
    [
        ([writer.sps(depth=14), writer.pps()], HevcUnsupported, "14 bits a sample; flexor decodes 8 to 12"),
        ([writer.sps(chroma=3, separate=1), writer.pps()], HevcUnsupported, "separate_colour_plane_flag 1"),
        ([writer.sps(extensions=(0, 0, 0, 1, 0, 0, 0, 0))], HevcUnsupported, "sps_scc_extension_flag 1"),
        ([writer.sps(extensions=(0, 0, 1, 0, 0, 0, 0, 0))], HevcUnsupported, "sps_3d_extension_flag 1"),
        ([writer.sps(), writer.pps(scc=True)], HevcUnsupported, "pps_scc_extension_flag 1"),
        ([writer.sps(width=8192, height=4320)], HevcError, "8192x4320 is beyond the 8912896 samples of level_idc 93"),
        ([writer.sps(width=65536, height=8, level=0)], HevcError, "65536x8 is beyond"),
        ([writer.sps(width=0)], HevcError, "0x64 is beyond"),
        ([writer.sps(width=60, height=62)], HevcError, "60x62 must be a multiple of MinCbSizeY 8"),
        ([writer.sps(window=(16, 16, 0, 0))], HevcError, "conformance window leaves nothing"),
        ([writer.sps(ctb=3)], HevcError, "CtbLog2SizeY must be 4 to 6, got 3"),
        ([writer.sps(min_tb=3, max_tb=4)], HevcError, "transform blocks of 8 to 16 do not fit"),
        ([writer.sps(max_tb=5)], HevcError, "transform blocks of 4 to 32 do not fit"),
        ([writer.sps(pcm=(9, 3))], HevcError, "PCM samples have more bits"),
        ([writer.sps(pcm=(8, 5))], HevcError, "PCM blocks of 32 to 32 do not fit"),
        ([writer.sps(chroma=4)], HevcError, "chroma_format_idc must be 0 to 3, got 4"),
        ([writer.sps(sets=65)], HevcError, "num_short_term_ref_pic_sets must be 0 to 64, got 65"),
        ([writer.sps()[:20]], HevcError, "a sequence parameter set cannot be read: the data end"),
        ([writer.sps(), writer.pps(init_qp=-27)], HevcError, "init_qp_minus26 must be -26 to 25 with this SPS"),
        ([writer.sps(), writer.pps(depth=2)], HevcError, "diff_cu_qp_delta_depth must be 0 to 1 with this SPS, got 2"),
        ([writer.sps(), writer.pps(tiles=(5, 1))], HevcError, "5 tile columns do not fit a picture of 4 CTBs"),
        ([writer.sps(), writer.pps(cross_component=True)], HevcError, "for 4:4:4 only"),
        ([writer.sps(), writer.pps(sps_id=3)], HevcError, "its sequence parameter set 3 is missing"),
        ([writer.sps()], HevcError, "its picture parameter set 0 is missing"),
    ],
)  # fmt: skip
def test_parameter_sets(headers, error, match):
    with pytest.raises(error, match=match):
        hevc.decode(writer.stream([*headers, writer.idr_slice()]))


@pytest.mark.parametrize(
    "headers",
    [
        [writer.sps(extensions=(0, 1, 0, 0, 0, 0, 0, 0, 1)), writer.pps()],
        [writer.sps(extensions=(0, 0, 0, 0, 1, 1, 1, 1, 1, 0, 1)), writer.pps()],  # extension data are passed over
        [writer.sps(width=4096, height=2176, level=30), writer.pps()],
    ],
)
def test_lenient(headers):
    slices = writer.idr_slice() + b"\x55" * 4352
    (picture,) = hevc.decode(writer.stream([*headers, slices]))
    assert picture.damage == "slice data are missing or cannot be decoded"


def test_headers_without_data():
    """They make no pictures, which would be large."""
    headers = [writer.sps(width=4096, height=2176), writer.pps()]
    with pytest.raises(HevcError, match=r"picture 0 has fewer bits than coding tree .* picture 7 has") as caught:
        hevc.decode(writer.stream([*headers, *[writer.idr_slice()] * 1000]))
    assert not caught.value.pictures


def test_many_hashes():
    """A hash that is repeated without end is not computed without end."""
    headers, ((slice_, sei), *_) = writer.pictures(IDR)
    message = sei[2:-1]
    many = writer.stream([*headers, slice_, sei[:2] + message * 20000 + sei[-1:]])
    assert_right(hevc.decode(many), 1)


def test_headers():
    found = hevc.inspect(load("stream_vui"))
    names = [unit.name for unit in found.units if unit.name != "PREFIX_SEI"]
    assert names == ["AUD", "VPS", "SPS", "PPS", "IDR_N_LP", "SUFFIX_SEI"]
    want = {  # ffmpeg's trace_headers
        "general_profile_idc": 4, "general_level_idc": 60, "pic_width_in_luma_samples": 64, "aspect_ratio_idc": 4,
        "overscan_appropriate_flag": 0, "video_full_range_flag": 1, "colour_primaries": 9, "matrix_coeffs": 9,
        "chroma_sample_loc_type_top_field": 2, "vui_time_scale": 25, "initial_cpb_removal_delay_length_minus1": 18,
        "bit_rate_value_minus1": 15624, "cbr_flag": 0, "sps_extension_present_flag": 0,
    }  # fmt: skip
    sps = found.units[2].elements
    assert {name: sps[name] for name in want} == want
    lights = [unit.elements for unit in found.units if unit.name == "PREFIX_SEI"]
    assert any(e.get("display_primaries_x") == [13250, 7500, 34000] for e in lights)
    assert any(e.get("max_content_light_level") == 1000 for e in lights)
    ((picture, blocks),) = found.pictures
    assert [unit.picture for unit in found.units if unit.kind < 32] == [picture.number] == [0]
    assert picture.colour == Colour(9, 16, 9, True) and picture.chroma_location == 2
    assert "BT.2020, transfer PQ (ST 2084), matrix BT.2020 non-constant, full range" in str(picture.colour)
    assert picture.sample_aspect_ratio == (16, 11) and picture.hash == "checksum"
    assert (4.0 ** blocks.coding_blocks["log2_size"]).sum() == 64 * 48
    assert blocks.sao_types.shape == (4, 3) and sum(blocks.bits.values()) > 100


def test_inspect_ends_early():
    assert [p.poc for p, _ in hevc.inspect(REORDER, pictures=3).pictures] == [0, 1, 2]
    assert (
        "16 bits" in hevc.inspect(writer.stream([writer.sps(depth=16), writer.pps(), writer.idr_slice()])).problems[0]
    )


# Hashes and damage.


@pytest.mark.parametrize(
    ("name", "kind"), [("pictures_idr", "md5"), ("hash_crc", "crc"), ("hash_checksum", "checksum")]
)
def test_hashes(name, kind):
    data = load(name)
    assert {p.hash for p in hevc.decode(data)} == {kind}
    assert {p.hash for p in hevc.decode(data, verify=False)} == {None}
    units = writer.units(data)
    sei = next(i for i, unit in enumerate(units) if writer.kind(unit) == writer.SUFFIX_SEI)
    units[sei] = units[sei][:-2] + bytes([units[sei][-2] ^ 1]) + units[sei][-1:]
    picture = hevc.decode(writer.stream(units))[0]
    assert picture.damage == f"the Cr samples do not match the stream's {kind}" and "damaged" in repr(picture)
    assert not hevc.decode(writer.stream(units), verify=False)[0].damaged


def test_hash_of_other_planes():
    headers, groups = writer.pictures(load("format_400_8"))
    sei = writer.pictures(load("format_420_8"))[1][0][1]
    (picture,) = hevc.decode(writer.stream([*headers, groups[0][0], sei]))
    assert "the md5 SEI is for 3 planes, the picture has 1" in picture.damage


def test_missing_slices():
    data = load("slices_and_segments")
    headers, groups = writer.pictures(data)
    slices = [group[0] for group in groups]
    hashes = groups[-1][1:]
    (right,) = hevc.decode(data)
    (first_lost,), error = decode(writer.stream([*headers, *slices[1:], *hashes]))
    assert "the slice that a dependent slice segment continues is missing" in str(error)
    assert "its first slice is missing" in first_lost.damage and first_lost.planes[0].shape == right.planes[0].shape
    (last_lost,) = hevc.decode(writer.stream([*headers, *slices[:-1]]))
    assert last_lost.damage == "slice data are missing or cannot be decoded"
    cut = [*slices[:-1], slices[-1][:3]]
    assert "a slice cannot be read: " in hevc.decode(writer.stream([*headers, *cut]))[0].damage


def test_lost_pictures_are_told():
    headers, groups = writer.pictures(IDR)
    ignored = writer.retyped(groups[1][0], 63)
    pictures = hevc.decode(writer.stream([*headers, *groups[0], ignored, groups[1][1], *groups[2]]))
    assert "do not match the stream's md5" in pictures[0].damage  # it has two hashes now
    with pytest.raises(HevcError, match="the hash of a picture comes without the picture") as caught:
        hevc.decode(writer.stream([*headers, ignored, groups[1][1], *groups[2]]))
    assert_right(caught.value.pictures, 1)
    unknown = writer.idr_slice(pps_id=5)
    with pytest.raises(
        HevcError, match="picture 1: a slice cannot be read: its picture parameter set 5 is missing"
    ) as caught:
        hevc.decode(writer.stream([*headers, *groups[0], unknown, *groups[2]]))
    assert_right(caught.value.pictures, 2)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (writer.stream(HEADERS + GROUPS[0][:1])[:-100], None),
        (writer.stream([*HEADERS, *GROUPS[0], *HEADERS]), "before the picture that follows their last headers"),
        (writer.stream([*HEADERS, *GROUPS[0]]) + b"\0\0\1", "the data end after a start code"),
        (writer.stream([*HEADERS, *GROUPS[0]]) + b"\0\0\1\x26", "a NAL unit ends inside its header"),
        (writer.stream([*HEADERS, *GROUPS[0], b"\xa6\1\2\3"]), "forbidden_zero_bit 1"),
        (writer.stream([*HEADERS, *GROUPS[0], b"\x26\0\2\3"]), "nuh_temporal_id_plus1 0"),
        (b"\7\7" + writer.stream([*HEADERS, *GROUPS[0]]), "2 bytes before the first start code were skipped"),
        (writer.with_lengths(writer.stream([*HEADERS, *GROUPS[0]]), 4) + b"\0\0", "the data end inside a NAL unit"),
    ],
)
def test_ends(data, match):
    pictures, error = decode(data)
    assert len(pictures) == 1
    assert pictures[0].damaged if match is None else match in str(error)


def damage_at_random(random, data):
    data = bytearray(data)
    at = random.randrange(len(data))
    match random.randrange(4):
        case 0:
            data[at] ^= 1 << random.randrange(8)
        case 1:
            del data[at:]
        case 2:
            del data[at : at + random.choice([1, 4, 50])]
        case 3:
            data[at:at] = data[at : at + random.choice([1, 30, 300])]
    return bytes(data)


@pytest.mark.parametrize("name", ["pictures_idr", "slices_and_segments", "wavefront"])
def test_never_silent(name):
    data = load(name)
    right = fingerprint(hevc.decode(data))
    source = random.Random(0)
    for _ in range(150):
        pictures, error = decode(damage_at_random(source, data), threads=1)
        told = error is not None or any(picture.damaged for picture in pictures)
        # Data may also end between two pictures.
        assert told or [(p[0], *p[3:]) for p in fingerprint(pictures)] == [
            (p[0], *p[3:]) for p in right[: len(pictures)]
        ]


def test_broken_heif():
    data = writer.heif(IDR, 3, 1, (72, 120), (72, 40))
    source = random.Random(1)
    head = data.index(b"mdat")
    for _ in range(200):
        broken = bytearray(data)
        broken[source.randrange(head)] = source.choice([0, 1, 127, 255])
        pictures, error = decode(bytes(broken))
        assert error is not None or len(pictures) == 1 or len(pictures) == 3  # a boxed track instead of a grid
    with pytest.raises(HevcError, match="3x1 tiles of 72x40 are more than the 72x70 samples"):
        hevc.decode(writer.heif(IDR, 3, 1, (72, 70), (72, 40)))


# What is not HEVC.


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "the data is empty: expected an HEVC stream or a container"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "is a PNG image, not HEVC"),
        (b"RIFF\0\0\0\0WEBPVP8 " + bytes(50), "is a WebP image, not HEVC"),
        (b"hello, this is text" * 9, "is not HEVC: it begins with 68 65 6c 6c 6f 2c 20 74; expected start codes"),
        (b"\0\0\0\1\x67\x42\0\x1e" + bytes(range(50)), "it looks like H.264"),
        (writer.stream(HEADERS[:1]), "before the picture"),
        (writer.stream([END[0]]), "holds no HEVC picture"),
        (writer.stream(GROUPS[0]), "its picture parameter set 0 is missing"),
    ],
)
def test_not_hevc(data, match):
    with pytest.raises(HevcError, match=match):
        hevc.decode(data)


def test_containers_without_hevc():
    av = pytest.importorskip("av")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25, width=64, height=64, pix_fmt="yuv420p")
        container.mux(stream.encode(av.VideoFrame(64, 64, "yuv420p")) + stream.encode())
    with pytest.raises(HevcError, match="holds h264, not HEVC"):
        hevc.decode(file.getvalue())


def test_paths(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.hevc: no such file"):
        hevc.decode(tmp_path / "none.hevc")
    with pytest.raises(IsADirectoryError, match="is a directory: name a file in it"):
        hevc.decode(tmp_path)
    with pytest.raises(TypeError, match="source must be bytes, a path or a string with a path, got int"):
        hevc.decode(7)


def test_arguments():
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        hevc.decode(IDR, threads=0)
    with pytest.raises(TypeError, match="threads must be an int or None, got float"):
        hevc.Decoder(threads=1.5)
    with pytest.raises(ValueError, match="configurationVersion 0, not 1"):
        hevc.Decoder(configuration=bytes(30))
    with pytest.raises(ValueError, match="hvcC\\) ends early"):
        hevc.Decoder(configuration=b"\1")
    with pytest.raises(TypeError, match="data must be contiguous bytes"):
        hevc.Decoder().feed(memoryview(IDR)[::2])
