# SPDX-License-Identifier: Apache-2.0
"""Random pictures, arguments and orders of calls: what is encoded is decoded to the encoder's own samples, what is not
is refused by name."""

import numpy as np
import pytest
from flexor.codec import hevc
from flexor.codec.hevc.planes import Format, to_planes
from hypothesis import given, settings
from hypothesis import strategies as st

CHROMA = ("400", "420", "422", "444", "rgb")
NEAREST = ("off", "explicit", "sad", "boundary")
PRESETS = ("fast", "medium", "best")


def flat(noise, height, width):
    return np.full((height, width), noise.random())


def random(noise, height, width):
    levels = noise.choice([2, 3, 256])
    return noise.integers(0, levels, (height, width)) / (levels - 1)


def text(noise, height, width):
    """Glyphs of 5x7 in cells of 6x9, each of a few, some upside down, in grey that is not quite black."""
    glyphs = noise.random((6, 7, 5)) < 0.45
    page = np.full((height + 9, width + 6), 0.95)
    for top in range(0, height, 9):
        for left in range(0, width, 6):
            page[top : top + 7, left : left + 5][glyphs[noise.integers(6)][:: noise.choice([1, -1])]] = 0.1
    return page[:height, :width]


def ramp(noise, height, width):
    """A slope in any direction, folded where it leaves 0..1."""
    y, x = np.mgrid[0:height, 0:width]
    slope = noise.uniform(-0.2, 0.2, 2)
    return np.abs((noise.random() + slope[0] * x + slope[1] * y) % 2 - 1)


def extremes(noise, height, width):
    """Black and white in stripes and checks of one to eight samples."""
    y, x = np.mgrid[0:height, 0:width]
    across, down = noise.integers(1, 9, 2)
    return ((x // across + (y // down if noise.random() < 0.7 else 0)) % 2).astype(float)


PATTERNS = (flat, random, text, ramp, extremes)


def drawn_image(data, width, height, bit_depth):
    """(H, W) or (H, W, 3), its parts of different patterns."""
    noise = np.random.default_rng(data.draw(st.integers(0, 9999), "seed"))
    upper, lower = (data.draw(st.sampled_from(PATTERNS), "pattern") for _ in range(2))
    channels = []
    for _ in range(data.draw(st.sampled_from((1, 3)), "channels")):
        channel = upper(noise, height, width)
        cut = data.draw(st.integers(0, height), "cut")
        channel[cut:] = lower(noise, height - cut, width)
        channels.append(channel)
    wide = bit_depth > 8 and data.draw(st.booleans(), "wide")
    most, dtype = ((1 << bit_depth) - 1, np.uint16) if wide else (255, np.uint8)
    image = np.rint(most * np.stack(channels, -1)).astype(dtype)
    return image[..., 0] if image.shape[2] == 1 else image


def drawn_options(data):
    return {
        "qp": data.draw(st.integers(0, 51), "qp"),
        "lossless": data.draw(st.integers(0, 3), "lossless") == 0,
        "preset": data.draw(st.sampled_from(PRESETS), "preset"),
        "nearest": data.draw(st.sampled_from(NEAREST), "nearest"),
        "nearest_threshold": data.draw(st.none() | st.integers(0, 255), "threshold"),
        "range_extensions": data.draw(st.none() | st.booleans(), "range extensions"),
        "edge_filters": data.draw(st.booleans(), "edge filters"),
        "threads": data.draw(st.integers(1, 3), "threads"),
    }


def decoded(stream, count=1):
    pictures = hevc.decode(stream, threads=1)
    assert [(picture.hash, picture.damage) for picture in pictures] == [("md5", None)] * count
    return pictures


@settings(max_examples=400, deadline=None, derandomize=True)
@given(data=st.data())
def test_images(data):
    chroma, bit_depth = data.draw(st.sampled_from(CHROMA), "chroma"), data.draw(st.sampled_from((8, 10)), "depth")
    width, height = (data.draw(st.integers(1, 70), side) for side in ("width", "height"))
    image = drawn_image(data, width, height, bit_depth)
    options = drawn_options(data) | {"chroma": chroma, "bit_depth": bit_depth}
    if (width % 2 and chroma in ("420", "422")) or (height % 2 and chroma == "420"):
        with pytest.raises(ValueError, match=rf"is {width}x{height}, but H.265 needs an even"):
            hevc.encode(image, **options)
        return
    (found,) = decoded(hevc.encode(image, **options))
    wanted = to_planes(image, Format(chroma, bit_depth, None))
    assert [plane.shape for plane in found.planes] == [plane.shape for plane in wanted]
    if not options["lossless"]:
        return
    assert all(np.array_equal(*pair) for pair in zip(found.planes, wanted, strict=True))
    if chroma == "rgb" and image.ndim == 3 and (image.dtype == np.uint16 or bit_depth == 8):
        assert np.array_equal(found.to_rgb(), image)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.data())
def test_quality(data):
    """At a fine QP what comes back is near what went in, whatever it is: nothing is merely decodable."""
    bit_depth = data.draw(st.sampled_from((8, 10)), "depth")
    width, height = (data.draw(st.integers(1, 48), side) for side in ("width", "height"))
    image = drawn_image(data, width, height, bit_depth)
    options = drawn_options(data) | {"qp": data.draw(st.integers(0, 12), "fine qp"), "lossless": False}
    (found,) = decoded(hevc.encode(image, chroma="444", bit_depth=bit_depth, **options))
    wanted = to_planes(image, Format("444", bit_depth, None))
    for plane, source in zip(found.planes, wanted, strict=True):
        error = np.abs(plane.astype(int) - source) >> (bit_depth - 8)
        assert np.sqrt(np.square(error).mean()) <= 4


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 300), st.floats(), st.sampled_from((8.0, np.int64(8), b"1", [])),
    st.text(max_size=4), st.just(np.zeros(2)),
)  # fmt: skip
CHOICES = {
    "qp": st.integers(0, 51), "chroma": st.sampled_from(CHROMA), "bit_depth": st.sampled_from((8, 10)),
    "lossless": st.booleans(), "preset": st.just("fast"), "nearest": st.sampled_from(NEAREST),
    "nearest_threshold": st.none() | st.integers(0, 255), "threads": st.integers(1, 2),
    "fps": st.none() | st.floats(1, 240), "hash": st.booleans(),
}  # fmt: skip


@settings(max_examples=500, deadline=None, derandomize=True)
@given(name=st.sampled_from(sorted(CHOICES)), junk=JUNK, data=st.data())
def test_arguments(name, junk, data):
    """One argument is anything: it is taken, or refused by its name and nobody else's."""
    options = {other: data.draw(choice, other) for other, choice in CHOICES.items() if data.draw(st.booleans())}
    options |= {"preset": "fast", "threads": 1, name: junk}
    image = np.arange(3 * 8 * 8, dtype=np.uint8).reshape(8, 8, 3)
    try:
        stream, message = hevc.encode(image, **options), name
    except (TypeError, ValueError) as error:
        stream, message = b"", str(error)
    assert message.startswith(name) and ("\n" not in message or isinstance(junk, str))
    if stream:
        (picture,) = hevc.decode(stream, threads=1)
        assert not picture.damaged and (picture.width, picture.height) == (8, 8)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_pictures_as_they_come(data):
    """Pictures that are refused leave no trace, and neither batch nor threads change a bit."""
    good = [np.full((18, 34), data.draw(st.integers(0, 255)), np.uint8) for _ in range(data.draw(st.integers(1, 5)))]
    bad = [np.zeros((18, 33), np.uint8), np.zeros((2, 2, 2), np.uint8), np.zeros((18, 34)), None, "picture", ()]
    encoder = hevc.Encoder(chroma="400", preset="fast", batch=data.draw(st.integers(1, 4)), threads=2)
    stream = b""
    for picture in good:
        stream += encoder.encode(picture)
        if data.draw(st.booleans()):
            with pytest.raises((TypeError, ValueError), match=r"^picture "):
                encoder.encode(data.draw(st.sampled_from(bad)))
    stream += encoder.finish()
    assert stream == hevc.encode(good, chroma="400", preset="fast", threads=1)
    found = decoded(stream, len(good))
    assert all(np.abs(found[i].planes[0].astype(int) - good[i]).max() <= 12 for i in range(len(good)))
