# SPDX-License-Identifier: Apache-2.0
"""The HEVC decoder against other decoders: committed streams of every tool, and streams encoded here and now."""

import itertools
import json
from pathlib import Path

import hevc_oracle as oracle
import numpy as np
import pytest
from flexor import _C
from flexor.codec import hevc

STREAMS = Path(__file__).parent / "data" / "hevc"
GOLDEN = json.loads((STREAMS / "streams.json").read_text())
INTRA = sorted(set(GOLDEN) - {"inter"})
FORMATS = list(itertools.product(oracle.SUBSAMPLING, (8, 10, 12)))
# x265's option -> what else the grid below has
TOOLS = {
    "ctu=16": "CTB 16",
    "ctu=32:min-cu-size=16": "blocks of 16 to 32",
    "ctu=64:tu-intra-depth=4": "transform trees",
    "max-tu-size=4:ctu=16": "4x4 transforms only",
    "tskip=1": "transform skip",
    "lossless=1": "lossless",
    "cu-lossless=1": "lossless blocks",
    "slices=2:wpp=1": "slices",
    "wpp=1:ctu=16": "wavefronts",
    "wpp=0": "no wavefronts",
    "aq-mode=3:aq-strength=2:crf=24:qg-size=8": "QP deltas",
    "constrained-intra=1": "constrained intra",
    "scaling-list=default": "scaling lists",
    "deblock=0": "no deblocking",
    "deblock=5,-4:qp=38": "deblocking offsets",
    "sao=0": "no SAO",
    "signhide=0": "no sign hiding",
    "strong-intra-smoothing=0": "no strong smoothing",
    "cbqpoffs=-5:crqpoffs=6:qp=36": "chroma QP offsets",
}


@pytest.fixture
def isa():
    before = _C.active_isa()
    yield _C.set_isa
    _C.set_isa(before)


def planes_of(pictures):
    return [[oracle.md5(plane) for plane in picture.planes] for picture in pictures]


@pytest.mark.parametrize("cpu", _C.available_isas())
@pytest.mark.parametrize("name", INTRA)
def test_committed_streams(name, cpu, isa):
    isa(cpu)
    expected, stream = GOLDEN[name], STREAMS / f"{name}.hevc"
    pictures = hevc.decode(stream, threads=1)
    assert planes_of(pictures) == planes_of(hevc.decode(stream, threads=2)) == expected["planes"]
    for picture in pictures:
        assert not picture.damaged and picture.hash == expected["hash"]
        assert (picture.chroma, picture.bit_depth) == (expected["chroma"], expected["bit_depth"])
        height, width = picture.planes[0].shape
        assert [width, height] == expected["size"]
        deepest = max(picture.bit_depth, picture.bit_depth_chroma)
        assert {plane.dtype for plane in picture.planes} == {np.dtype(np.uint8 if deepest == 8 else np.uint16)}


def test_committed_streams_are_small():
    sizes = [(STREAMS / f"{name}.hevc").stat().st_size for name in GOLDEN]
    assert max(sizes) <= 3000 and sum(sizes) <= 150_000


def test_intra_pictures_before_an_inter_picture():
    with pytest.raises(hevc.HevcUnsupported, match="inter") as caught:
        hevc.decode(STREAMS / "inter.hevc")
    assert planes_of(caught.value.pictures) == GOLDEN["inter"]["planes"][:1]


def needs(program, *encoders):
    reason = oracle.missing(program, *encoders)
    return pytest.mark.skipif(reason is not None, reason=str(reason))


def check_against_others(stream, chroma, depth, size, folder):
    """Ours at 1 and 2 threads, against ffmpeg, and against libde265 where that is installed."""
    ours = planes_of(hevc.decode(stream, threads=1))
    assert planes_of(hevc.decode(stream, threads=2)) == ours
    pixel_format = oracle.PIXEL_FORMATS[chroma, depth]
    assert ours == oracle.ffmpeg_planes(stream, *size, pixel_format)
    if oracle.missing("libde265-dec265") is None and chroma != "4:0:0":  # 1.0.11 aborts on windows in 4:0:0
        assert ours == oracle.dec265_planes(stream, folder / "stream.hevc", *size, pixel_format)
    return ours


@needs("ffmpeg", "libx265")
@pytest.mark.parametrize("options", TOOLS, ids=list(TOOLS.values()))
def test_tools_of_x265(options, tmp_path):
    chroma, depth = FORMATS[list(TOOLS).index(options) % len(FORMATS)]
    if chroma == "4:4:4" and "scaling" in options:
        chroma = "4:2:2"  # libde265 1.0.11 has no lists for 32x32 chroma
    planes = oracle.planes_of(oracle.card(232, 136), chroma, depth)
    quality = "" if any(word in options for word in ("qp=", "crf=", "lossless=1")) else "qp=24:"
    stream = oracle.encode(planes, chroma, depth, quality + options)
    found = check_against_others(stream, chroma, depth, (232, 136), tmp_path)
    if options == "lossless=1":
        assert found == [[oracle.md5(plane) for plane in planes]]


@needs("ffmpeg", "libx265")
@pytest.mark.parametrize(("chroma", "depth"), FORMATS)
def test_formats_of_x265(chroma, depth):
    """Each format at two QP, of 0, 10, 30 and 51."""
    planes = oracle.planes_of(oracle.card(120, 72), chroma, depth)
    odd = FORMATS.index((chroma, depth)) % 2
    for qp in ((0, 30), (10, 51))[odd]:
        stream = oracle.encode(planes, chroma, depth, f"qp={qp}:ctu=32:tskip=1")
        pictures = hevc.decode(stream, threads=1)
        assert [(picture.hash, picture.damage) for picture in pictures] == [("md5", None)]
        if (chroma, depth, qp) != ("4:4:4", 12, 51):  # there ffmpeg and libde265 contradict the hash
            assert planes_of(pictures) == oracle.ffmpeg_planes(stream, 120, 72, oracle.PIXEL_FORMATS[chroma, depth])


@needs("ffmpeg", "libx265")
@pytest.mark.parametrize("size", [(16, 16), (34, 34), (66, 130), (258, 18), (1921, 1081), (4096, 2176)])
def test_sizes(size, tmp_path):
    width, height = size
    chroma = "4:4:4" if width % 2 or height % 2 else "4:2:0"
    card = oracle.card(min(width, 1024), min(height, 544))
    repeats = (-(-height // card.shape[0]), -(-width // card.shape[1]), 1)
    planes = oracle.planes_of(np.tile(card, repeats)[:height, :width], chroma, 8)
    ctu = 16 if min(size) < 32 else 32 if min(size) < 64 else 64
    stream = oracle.encode(planes, chroma, 8, f"qp=34:ctu={ctu}:rd=2", preset="ultrafast" if width > 1000 else "medium")
    check_against_others(stream, chroma, 8, size, tmp_path)


@needs("ffmpeg", "libx265")
def test_a_screen_and_a_photograph(tmp_path):
    """Pictures as people have them: a page of text, and a photograph that matplotlib ships."""
    cbook = pytest.importorskip("matplotlib.cbook")
    from PIL import Image, ImageDraw

    with cbook.get_sample_data("grace_hopper.jpg") as file:
        photograph = np.asarray(Image.open(file).convert("RGB"))[:384, :512] / 255
    page = Image.new("RGB", (512, 384), "white")
    lines = Path(__file__).read_text().splitlines()[:32]
    ImageDraw.Draw(page).multiline_text((4, 4), "\n".join(lines), "black", spacing=0)
    pictures = [photograph, np.asarray(page) / 255]
    for chroma, depth, options in (("4:2:0", 8, "qp=22"), ("4:4:4", 10, "qp=30:tskip=1"), ("4:2:2", 8, "crf=26")):
        planes = [plane for picture in pictures for plane in oracle.planes_of(picture, chroma, depth)]
        stream = oracle.encode(planes, chroma, depth, options, frames=2)
        assert len(check_against_others(stream, chroma, depth, (512, 384), tmp_path)) == 2
