# SPDX-License-Identifier: Apache-2.0
"""The HEVC encoder: its streams in our decoder, ffmpeg and libde265; threads, instruction sets, colours, errors."""

import itertools
import subprocess
from fractions import Fraction
from pathlib import Path

import hevc_oracle as oracle
import numpy as np
import pytest
from flexor import _C
from flexor.codec import hevc
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

CHROMA = {"400": "4:0:0", "420": "4:2:0", "422": "4:2:2", "444": "4:4:4", "rgb": "4:4:4"}
PRESETS = ("fast", "medium", "best")
EVEN = [(8, 8), (64, 64), (136, 72), (2, 66), (130, 34)]
ANY = [(1, 1), (65, 63), (9, 70), (129, 5), (3, 17)]
FORMATS = list(itertools.product(CHROMA, (8, 10)))


def image(width, height, bit_depth=8, seed=0):
    """RGB of everything that makes encoders work."""
    picture = oracle.card(max(width, 24), max(height, 24), seed)[:height, :width]
    return np.rint(((1 << bit_depth) - 1) * picture).astype(np.uint8 if bit_depth == 8 else np.uint16)


def planes(width, height, chroma="420", bit_depth=8, seed=0):
    picture = oracle.card(max(width, 24), max(height, 24), seed)[:height, :width]
    return tuple(oracle.planes_of(picture, CHROMA[chroma], bit_depth, chroma == "rgb"))


def same(pictures, others):
    return len(pictures) == len(others) and all(
        np.array_equal(plane, other)
        for picture, wanted in zip(pictures, others, strict=True)
        for plane, other in zip(picture.planes, wanted, strict=True)
    )


def md5s(pictures):
    return [[oracle.md5(plane) for plane in picture.planes] for picture in pictures]


def decoded(stream, count=1):
    """The pictures, which must be those that the encoder had: their hashes are its own."""
    pictures = hevc.decode(stream, threads=1)
    assert [(picture.hash, picture.damage) for picture in pictures] == [("md5", None)] * count
    return pictures


@pytest.fixture
def isa():
    before = _C.active_isa()
    yield _C.set_isa
    _C.set_isa(before)


def conformance_cases():
    """Every format at four sizes; QP, presets and lossless go round."""
    qps = itertools.cycle((0, 22, 37, 51, 10, 30, 4, 45))
    presets = itertools.cycle((*PRESETS, "fast"))
    for i, (chroma, bit_depth) in enumerate(FORMATS):
        sizes = EVEN if chroma in ("420", "422") else EVEN + ANY
        for k in range(4):
            size = sizes[(5 * i + 3 * k) % len(sizes)]
            extensions = (None, True, False)[(i + k) % 3]
            yield (chroma, bit_depth, size) + (
                {"qp": next(qps), "preset": next(presets), "lossless": k == 3, "range_extensions": extensions},
            )


@pytest.mark.skipif(oracle.missing("ffmpeg") is not None, reason=str(oracle.missing("ffmpeg")))
@pytest.mark.parametrize(("chroma", "bit_depth", "size", "options"), list(conformance_cases()))
def test_other_decoders(chroma, bit_depth, size, options, tmp_path):
    pictures = [planes(*size, chroma, bit_depth, seed) for seed in range(1 + (size[0] < 100))]
    stream = hevc.encode(pictures, chroma=chroma, bit_depth=bit_depth, threads=1, **options)
    found = decoded(stream, len(pictures))
    if options["lossless"]:
        assert same(found, pictures)
    ours, name = md5s(found), oracle.PIXEL_FORMATS[CHROMA[chroma], bit_depth]
    assert oracle.ffmpeg_planes(stream, *size, name) == ours
    # libde265 1.0.11 aborts on windows in 4:0:0.
    if oracle.missing("libde265-dec265") is None and chroma != "400":
        assert oracle.dec265_planes(stream, tmp_path / "stream.hevc", *size, name) == ours


@pytest.mark.skipif(oracle.missing("ffmpeg") is not None, reason=str(oracle.missing("ffmpeg")))
def test_a_large_odd_picture():
    picture = np.full((1081, 1921), 200, np.uint8)
    picture[-150:, -250:] = planes(250, 150, "400")[0]
    stream = hevc.encode(picture, chroma="400", preset="fast", qp=40, threads=2)
    assert oracle.ffmpeg_planes(stream, 1921, 1081, "gray") == md5s(decoded(stream))


@pytest.mark.parametrize("qp", range(0, 52, 3))
def test_every_preset_and_size_at(qp):
    """Sizes from 1 to 40, with what makes extreme residuals."""
    noise = np.random.default_rng(qp)
    for chroma, bit_depth in FORMATS:
        width, height = (2 * noise.integers(1, 21, 2) - (chroma not in ("420", "422"))).tolist()
        picture = image(width, height, bit_depth, qp % 5)
        picture[: height // 2] = noise.choice([0, (1 << bit_depth) - 1], picture[: height // 2].shape)
        decoded(hevc.encode(picture, qp=qp, chroma=chroma, bit_depth=bit_depth, preset=PRESETS[qp % 3], threads=1))


def test_a_better_preset_and_a_greater_qp_are_smaller():
    picture = image(120, 72)
    sizes = [len(hevc.encode(picture, preset=preset)) for preset in PRESETS]
    assert sizes[1] < sizes[0] and sizes[2] < 1.02 * sizes[1]
    streams = [hevc.encode(picture, preset="fast", qp=qp, chroma="444") for qp in (10, 22, 34, 46)]
    assert sorted(map(len, streams), reverse=True) == [len(stream) for stream in streams]
    errors = [np.square(picture - decoded(stream)[0].to_rgb().astype(float)).mean() for stream in streams]
    assert sorted(errors) == errors and errors[0] < 4


@pytest.mark.parametrize(
    "options",
    [
        {"preset": "fast", "chroma": "420"},
        {"preset": "medium", "chroma": "444", "bit_depth": 10, "qp": 20},
        {"preset": "best", "chroma": "422", "nearest": "explicit"},
        {"preset": "fast", "chroma": "rgb", "nearest": "sad"},
        {"preset": "medium", "chroma": "400", "nearest": "boundary"},
        {"preset": "medium", "chroma": "rgb", "lossless": True},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_bytes_depend_on_nothing_else(options, isa):
    """Not on threads, not on the instruction set, not on what is encoded beside it."""
    size = (40, 104) if options["preset"] == "fast" else (72, 72)  # several rows of CTBs
    pictures = [image(*size, options.get("bit_depth", 8), seed) for seed in range(3)]
    alone = [hevc.encode(picture, threads=1, **options) for picture in pictures]
    expected = hevc.encode(pictures, threads=1, **options)
    head = len(alone[0]) + len(alone[1]) + len(alone[2]) - len(expected)
    assert expected == alone[0] + alone[1][head // 2 :] + alone[2][head // 2 :]
    for cpu, threads in zip(itertools.cycle(_C.available_isas()), (2, 3, 4), strict=False):
        isa(cpu)
        assert hevc.encode(pictures, threads=threads, **options) == expected
    decoded(expected, 3)


def text(width=128, height=64):
    """Dark strokes of one sample on white: what residuals without a transform are for."""
    noise = np.random.default_rng(5)
    glyphs = np.where(noise.random((40, 8, 6)) < 0.4, 30, 235).astype(np.uint8)
    glyphs[:, :, -1] = glyphs[:, -1] = 235
    lines = [np.hstack(glyphs[noise.integers(0, 40, width // 6 + 1)])[:, :width] for _ in range(height // 8)]
    return np.vstack(lines)


def profile_of(stream):
    (sps,) = (unit.elements for unit in hevc.inspect(stream).units if unit.name == "SPS")
    return sps["general_profile_idc"]


def test_range_extensions():
    """Smaller by a tenth on text; Main without them; on with best and in 4:4:4 where nothing is said."""
    picture = np.stack(3 * [text()], -1)
    sizes, profiles = {}, {}
    for preset, chroma in (("best", "420"), ("medium", "420"), ("medium", "444"), ("best", "rgb")):
        for extensions in (None, False, True):
            stream = hevc.encode(picture, qp=24, chroma=chroma, preset=preset, range_extensions=extensions, threads=1)
            decoded(stream)
            sizes[preset, chroma, extensions] = len(stream)
            profiles[preset, chroma, extensions] = profile_of(stream)
        on = sizes[preset, chroma, True]
        assert on < 0.9 * sizes[preset, chroma, False]
        assert sizes[preset, chroma, None] == (
            sizes[preset, chroma, False] if (preset, chroma) == ("medium", "420") else on
        )
    assert profiles["best", "420", False] == profiles["medium", "420", None] == 1
    assert profiles["best", "420", None] == profiles["medium", "420", True] == profiles["medium", "444", False] == 4


def test_edge_filters_are_off_with_nearest_unless_asked_for():
    picture = (text(), *(np.full((32, 64), 128, np.uint8),) * 2)
    streams = {
        (nearest, filters): hevc.encode(picture, preset="fast", nearest=nearest, edge_filters=filters, threads=1)
        for nearest in ("off", "explicit")
        for filters in (False, True)
    }
    assert streams["off", False] == streams["off", True]  # H.265 has them always
    assert streams["explicit", False] != streams["explicit", True]
    for stream in streams.values():
        decoded(stream)


@pytest.mark.parametrize("nearest", ["explicit", "sad", "boundary"])
def test_nearest_is_for_our_decoder_alone(nearest, tmp_path):
    picture = planes(136, 72)
    stream = hevc.encode(picture, nearest=nearest, preset="fast")
    decoded(stream)
    assert stream != hevc.encode(picture, preset="fast")
    if nearest != "explicit":
        assert stream != hevc.encode(picture, nearest=nearest, nearest_threshold=255, preset="fast")
    (tmp_path / "stream.hevc").write_bytes(stream)
    for program in (["ffmpeg", "-v", "error", "-i"], ["libde265-dec265", "-q", "-o"]):
        if oracle.missing(program[0]) is None:
            out = str(tmp_path / f"{program[0]}.yuv")
            names = [str(tmp_path / "stream.hevc"), out]
            subprocess.run([*program, *(names if program[0] == "ffmpeg" else names[::-1])], capture_output=True)
            assert not Path(out).exists() or Path(out).stat().st_size == 0


def test_an_encoder_a_picture_at_a_time():
    pictures = [image(40, 24, seed=seed) for seed in range(5)]
    whole = hevc.encode(pictures, threads=2)
    for batch, at_once in ((1, [True] * 5), (2, [False, True, False, True, False]), (9, [False] * 5)):
        encoder = hevc.Encoder(threads=2, batch=batch)
        assert encoder.size is None
        pieces = [encoder.encode(picture) for picture in pictures]
        assert [bool(piece) for piece in pieces] == at_once and encoder.size == (40, 24)
        assert b"".join(pieces) + encoder.finish() == whole
        with pytest.raises(ValueError, match="finished"):
            encoder.encode(pictures[0])
    encoder = hevc.Encoder()
    first = encoder.encode(pictures[0])
    with pytest.raises(ValueError, match=r"picture 1 is 24x40, but picture 0 is 40x24"):
        encoder.encode(np.swapaxes(pictures[1], 0, 1))
    assert first + encoder.encode(pictures[1]) == hevc.encode(pictures[:2])  # it goes on after an error


def test_lossless_round_trips():
    for width, height in ((1, 1), (65, 63)):
        picture = image(width, height)
        (found,) = decoded(hevc.encode(picture, chroma="rgb", lossless=True))
        assert np.array_equal(found.to_rgb(), picture) and found.colour == hevc.Colour(1, 13, 0, True)
        assert np.array_equal(found.planes, [picture[..., i] for i in (1, 2, 0)])
        deep = image(width, height, 10)
        assert np.array_equal(decoded(hevc.encode(deep, chroma="rgb", bit_depth=10, lossless=True))[0].to_rgb(), deep)
        (found,) = decoded(hevc.encode(picture[..., 0], chroma="400", lossless=True))
        assert np.array_equal(found.planes[0], picture[..., 0])


def test_forms_of_a_picture():
    """Arrays, PIL images, planes; one, several, an array of several; any strides."""
    rgb = image(24, 16)
    expected = hevc.encode([rgb], chroma="444")
    pillow = Image.fromarray(rgb)
    opaque = pillow.convert("RGBA")
    for form in (rgb, pillow, opaque, [pillow], iter([rgb]), rgb[None], np.asfortranarray(rgb), rgb[::-1][::-1]):
        assert hevc.encode(form, chroma="444") == expected
    assert hevc.encode(rgb.astype(np.uint16), chroma="444") == expected
    assert hevc.encode(rgb.astype(">u2"), chroma="444") == expected
    assert hevc.encode([rgb, rgb]) == hevc.encode(np.stack([rgb, rgb]))
    y, cb, cr = planes(24, 16)
    stream = hevc.encode((y, cb, cr), lossless=True)
    assert same(decoded(stream), [(y, cb, cr)])
    assert hevc.encode([[y, cb, cr]], lossless=True) == stream
    wide = np.zeros((16, 48), np.uint8)
    wide[:, ::2] = y
    assert hevc.encode((wide[:, ::2], cb, cr), lossless=True) == stream
    assert hevc.encode((y[::-1][::-1], np.asfortranarray(cb), cr), lossless=True) == stream
    palette = pillow.quantize(16)
    assert hevc.encode(palette) == hevc.encode(palette.convert("RGB"))
    grey = pillow.convert("L")
    for chroma in CHROMA:
        (found,) = decoded(hevc.encode(grey, chroma=chroma, lossless=True))
        error = np.abs(found.to_rgb().astype(int) - np.asarray(grey)[..., None])
        assert error.max() <= (0 if chroma in ("400", "rgb") else 1)
    (black,) = decoded(hevc.encode(Image.new("1", (8, 8)), chroma="400", lossless=True))
    assert not black.planes[0].any()


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("matrix", [1, 6, 9])
def test_colours_come_back(matrix, full_range):
    colour = hevc.Colour(1, 13, matrix, full_range)
    picture = image(64, 48, 10)
    for given_picture in (picture, (picture >> 2).astype(np.uint8)):
        stream = hevc.encode(given_picture, chroma="444", bit_depth=10, lossless=True, colour=colour)
        (found,) = decoded(stream)
        wanted = given_picture if given_picture.dtype == np.uint16 else given_picture * (1023 / 255)
        assert found.colour == colour and np.abs(found.to_rgb() - wanted.astype(float)).max() < 2.5


@pytest.mark.parametrize("chroma", ["420", "422"])
def test_chroma_lies_where_decoders_think(chroma):
    """A slow ramp of colour stays what it is, to the sample."""
    y, x = np.mgrid[0:64, 0:96]
    ramp = np.stack([60 + x, 100 + y, 200 - x - y // 2], -1).astype(np.uint8)
    (found,) = decoded(hevc.encode(ramp, chroma=chroma, lossless=True, colour=hevc.Colour(1, 13, 1, True)))
    assert found.chroma_location == 0
    inner = (found.to_rgb().astype(int) - ramp)[2:-2, 2:-2]
    assert np.abs(inner).max() <= 2 and np.abs(inner.mean((0, 1))).max() < 0.3


def headers(stream):
    return {name: value for unit in hevc.inspect(stream).units for name, value in unit.elements.items()}


def test_what_the_stream_says():
    picture = image(24, 16)
    said = headers(hevc.encode(picture))
    assert (said["vui_num_units_in_tick"], said["vui_time_scale"]) == (1, 25)
    said = headers(hevc.encode(picture, fps=Fraction(30000, 1001)))
    assert (said["vui_num_units_in_tick"], said["vui_time_scale"]) == (1001, 30000)
    assert not headers(hevc.encode(picture, fps=None))["vui_timing_info_present_flag"]
    assert decoded(hevc.encode(picture))[0].colour == hevc.Colour(1, 13, 1, False)
    assert decoded(hevc.encode(picture, chroma="400"))[0].colour == hevc.Colour(1, 13, 1, True)
    assert decoded(hevc.encode(planes(24, 16)))[0].colour == hevc.Colour()
    assert decoded(hevc.encode(planes(24, 16, "rgb"), chroma="rgb"))[0].colour == hevc.Colour(2, 2, 0, True)
    (silent,) = hevc.decode(hevc.encode(picture, hash=False))
    assert silent.hash is None and not silent.damaged


GREY = np.zeros((16, 16), np.uint8)
RGB = np.zeros((16, 16, 3), np.uint8)
WRONG = [
    (RGB.astype(np.float32), {}, TypeError, "must be uint8, or uint16 .* got float32"),
    (np.full((8, 8, 3), np.nan), {}, TypeError, "got float64; scale it to whole samples"),
    (RGB.astype(bool), {}, TypeError, "got bool"),
    (RGB.astype(np.int64), {}, TypeError, "got int64"),
    (RGB[..., :2], {}, ValueError, r"shape \(H, W, 3\) for RGB or \(H, W\) for grey, got \(16, 16, 2\)"),
    (np.zeros((16, 16, 4), np.uint8), {}, ValueError, r"alpha cannot be coded: picture\[\.\.\., :3\]"),
    (np.zeros((3, 16, 16), np.uint8), {}, ValueError, "channels last: np.moveaxis"),
    (np.zeros((16, 16, 1), np.uint8), {}, ValueError, r"drop the last axis"),
    (np.zeros((0, 16, 3), np.uint8), {}, ValueError, "has no samples"),
    (np.zeros(16, np.uint8), {}, ValueError, r"got \(16,\)"),
    ([], {}, ValueError, "there is no picture to encode"),
    (iter(()), {}, ValueError, "there is no picture to encode"),
    ("screen.png", {}, TypeError, "pictures must be NumPy arrays, PIL images or tuples of planes.* got str"),
    (None, {}, TypeError, "pictures must be .* got NoneType"),
    ([b"x"], {}, TypeError, "picture 0 must be a NumPy array, a PIL image or a tuple of planes, got bytes"),
    ([RGB, RGB[:8]], {}, ValueError, "picture 1 is 16x8, but picture 0 is 16x16: a stream has pictures of one size"),
    ([GREY, GREY[:8, :8], GREY[:8, :8]], {}, ValueError, "the planes of one picture belong into a tuple"),
    ([RGB, (GREY, GREY, GREY)], {"chroma": "444"}, ValueError, "pass images or planes, not both"),
    (RGB[:15], {}, ValueError, "16x15, but H.265 needs an even width and height .* crop it to 16x14"),
    (RGB[:, :15], {"chroma": "422"}, ValueError, "15x16, but H.265 needs an even width for .* '444' or 'rgb'"),
    (RGB[:1, :1], {}, ValueError, "use '444' or 'rgb'$"),
    ((GREY, GREY), {}, ValueError, "must be 3 planes .* got .an array of shape"),
    ((GREY, GREY, GREY), {}, ValueError, r"plane 1, must have shape \(8, 8\) beside luma of \(16, 16\)"),
    ((GREY, GREY, GREY), {"chroma": "400"}, ValueError, "must be 1 plane "),
    ((GREY, GREY, GREY), {"chroma": "444", "bit_depth": 10}, TypeError, "plane 0, must be uint16 for bit_depth 10"),
    ((GREY.astype(float),), {"chroma": "400"}, TypeError, "plane 0, must be uint8"),
    (RGB.astype(np.uint16) + 256, {}, ValueError, "sample of 256, but bit_depth 8 allows 255"),
    (RGB.astype(np.uint16) + 1024, {"bit_depth": 10}, ValueError, "sample of 1024, but bit_depth 10 allows 1023"),
    ((GREY.astype(np.uint16) + 300,), {"chroma": "400"}, ValueError, "plane 0, has a sample of 300"),
    (Image.new("RGBA", (8, 8)), {}, ValueError, "transparent pixels, and alpha cannot be coded"),
    (Image.new("F", (8, 8)), {}, TypeError, "PIL image of mode F, expected 8 bits a channel"),
    (Image.new("I;16", (8, 8)), {}, TypeError, "mode I;16, .* pass a uint16 array"),
    (RGB, {"qp": 52}, ValueError, "qp must be 0 to 51, got 52"),
    (RGB, {"qp": -1}, ValueError, "qp must be 0 to 51, got -1"),
    (RGB, {"qp": 30.5}, TypeError, "qp must be an int, got 30.5"),
    (RGB, {"chroma": "411"}, ValueError, "chroma must be one of 400, 420, 422, 444, rgb, got '411'"),
    (RGB, {"chroma": 420}, ValueError, "chroma must be one of .* got 420"),
    (RGB, {"bit_depth": 12}, ValueError, "bit_depth must be 8 or 10, got 12"),
    (RGB, {"preset": "slow"}, ValueError, "preset must be one of fast, medium, best, got slow"),
    (RGB, {"preset": 1}, TypeError, "preset must be a string, got int"),
    (RGB, {"nearest": "yes"}, ValueError, "nearest must be one of off, explicit, sad, boundary, got yes"),
    (RGB, {"nearest_threshold": -2}, ValueError, "nearest_threshold must be at least 0"),
    (RGB, {"nearest_threshold": 256}, ValueError, "nearest_threshold must be .* got 256"),
    (RGB, {"lossless": 1}, TypeError, "lossless must be True or False, got 1"),
    (RGB, {"hash": "md5"}, TypeError, "hash must be True or False"),
    (RGB, {"range_extensions": "off"}, TypeError, "range_extensions must be True or False, got 'off'"),
    (RGB, {"edge_filters": 0}, TypeError, "edge_filters must be True or False, got 0"),
    (RGB, {"threads": 0}, ValueError, "threads must be at least 1"),
    (RGB, {"threads": 1.5}, TypeError, "threads must be an int"),
    (RGB, {"fps": 0}, ValueError, "fps must be above 0"),
    (RGB, {"fps": float("nan")}, ValueError, "fps must be a number"),
    (RGB, {"fps": "fast"}, ValueError, "fps must be a number"),
    (RGB, {"colour": 1}, TypeError, "colour must be a hevc.Colour or None, got int"),
    (RGB, {"colour": hevc.Colour(1, 13, 0, True)}, ValueError, r"colour.matrix must be 0 \(GBR\) for chroma 'rgb'"),
    (RGB, {"chroma": "rgb", "colour": hevc.Colour()}, ValueError, "colour.matrix must be 0"),
    (RGB, {"colour": hevc.Colour(9, 16, 14)}, ValueError, "RGB cannot be converted with matrix ICtCp"),
    (RGB, {"colour": hevc.Colour(300, 16, 9)}, ValueError, "colour must be 0 to 255, got 300"),
]


@pytest.mark.parametrize(("picture", "options", "error", "message"), WRONG)
def test_errors(picture, options, error, message):
    with pytest.raises(error, match=message):
        hevc.encode(picture, **options)


def test_the_core_checks_for_itself():
    def core(**changed):
        options = {"width": 16, "height": 16, "chroma_format": 1, "bit_depth": 10, "qp": 30, "lossless": False}
        options |= {"preset": "fast", "range_extensions": False, "nearest": "off", "nearest_threshold": -1}
        options |= {"edge_filters": False, "hash": True}
        return _C.HevcEncoder(**{**options, "colour": (2, 2, 2, 0), "timing": (0, 0), **changed})

    luma, chroma = np.zeros((16, 16), np.uint16), np.zeros((8, 8), np.uint16)
    for planes_given, error, message in (
        ([luma, chroma], ValueError, "must have 3 planes, got 2"),
        ([luma, chroma, luma], ValueError, r"planes\[2\] must have shape \(8, 8\), got \(16, 16\)"),
        ([luma, chroma, None], TypeError, r"planes\[2\] must be a NumPy array"),
        ([luma, chroma, chroma.astype(np.int16)], TypeError, r"planes\[2\] must be uint8 or uint16, got int16"),
        ([luma, chroma + 1024, chroma], ValueError, r"planes\[1\] has a sample of 1024"),
    ):
        with pytest.raises(error, match=message):
            core().encode(planes_given, 1)
        with pytest.raises(error, match=message):
            core().encode_many([planes_given], 1)
    assert core().encode_many([], 2) == []
    with pytest.raises(ValueError, match="threads must be at least 1"):
        core().encode([luma, chroma, chroma], 0)
    for changed, message in (
        ({"width": 0}, "width must be 1 to 16384, got 0"),
        ({"height": 1 << 20}, "height must be 1 to 16384"),
        ({"chroma_format": 4}, "chroma_format must be 0 to 3"),
        ({"bit_depth": 9}, "bit_depth must be 8 or 10"),
        ({"width": 15}, "an odd size cannot be told"),
    ):
        with pytest.raises(ValueError, match=message):
            core(**changed)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_whatever_is_encoded_is_decoded(data):
    """Random planes and arguments: the samples are the encoder's own, and the source's where it is lossless."""
    chroma, bit_depth = data.draw(st.sampled_from(FORMATS))
    across, down = oracle.SUBSAMPLING[CHROMA[chroma]] or (1, 1)
    width, height = (step * data.draw(st.integers(1, 40 // step)) for step in (across, down))
    noise = np.random.default_rng(data.draw(st.integers(0, 1000)))
    levels = data.draw(st.sampled_from((1, 2, 3, 1 << bit_depth)))
    shapes = [(height, width)] + 2 * [(height // down, width // across)]
    most, dtype = (1 << bit_depth) - 1, np.uint8 if bit_depth == 8 else np.uint16
    picture = tuple(
        (noise.integers(0, levels, shape) * most // max(levels - 1, 1)).astype(dtype)
        for shape in shapes[: 1 if chroma == "400" else 3]
    )
    options = {
        "qp": data.draw(st.integers(0, 51)),
        "lossless": data.draw(st.booleans()),
        "preset": data.draw(st.sampled_from(PRESETS)),
        "nearest": data.draw(st.sampled_from(("off", "explicit", "sad", "boundary"))),
        "nearest_threshold": data.draw(st.none() | st.integers(0, 255)),
        "range_extensions": data.draw(st.none() | st.booleans()),
        "edge_filters": data.draw(st.booleans()),
        "threads": data.draw(st.integers(1, 3)),
    }
    found = decoded(hevc.encode(picture, chroma=chroma, bit_depth=bit_depth, **options))
    assert found[0].planes[0].shape == (height, width)
    if options["lossless"]:
        assert same(found, [picture])
