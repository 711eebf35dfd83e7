# SPDX-License-Identifier: Apache-2.0
"""What `flexor hevc compare` shows of one image: a magnified part of everyone's, and where nearest was chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ..codec.hevc import Blocks, inspect
from ..codec.hevc.compare import Contestant, Results, Source, psnr
from ..codec.hevc.compare.routes import RouteError
from ..codec.hevc.picture import CHROMA, Picture

WINDOW = (68, 52)  # of the magnified part: four fit side by side
MAGNIFIED = 4
STEP = 8  # between places that are tried for it
CHOSEN, EDGE = (234, 88, 12), (124, 45, 18)
SIZES = (4, 8, 16, 32)
HIGHEST_QP = 51
HEVC_PEERS = ("x265-slow", "x265-veryslow-tskip", "kvazaar")

Rgb = NDArray[np.uint8]


@dataclass(frozen=True)
class Encoded:
    stream: bytes
    level: int
    planes: list[np.ndarray]

    @property
    def bits(self) -> int:
        return 8 * len(self.stream)


@dataclass(frozen=True)
class Panel:
    """One of the magnified parts."""

    contestant: str  # or "source"
    level: int | None
    bits: int | None
    psnr_y: float | None
    picture: Image.Image


@dataclass(frozen=True)
class Share:
    """Of the luma blocks of one size with a fractional direction, those predicted by nearest."""

    size: int
    blocks: int
    nearest: int


@dataclass
class Illustration:
    """Of one image.

    Attributes:
        where: the map of blocks predicted by nearest; None without the explicit variant.
        qp: that everything is shown at.
        window: x, y, width, height of the magnified part.
    """

    image: str
    qp: int
    window: tuple[int, int, int, int]
    panels: list[Panel] = field(default_factory=list)
    where: Image.Image | None = None
    shares: list[Share] = field(default_factory=list)


def illustrate(source: Source, contestants: Sequence[Contestant], results: Results, qps: Sequence[int]) -> Illustration:
    """Encodes the image with flexor at a middling QP, and with an HEVC peer at about the same rate."""
    by_name = {contestant.name: contestant for contestant in contestants}
    qp = qps[-2]
    streams: dict[str, Encoded] = {}
    for name in ("off", "explicit"):
        if name in by_name and (encoded := _encode(by_name[name], source, qp)) is not None:
            streams[name] = encoded
    shown = Illustration(source.name, qp, (0, 0, 0, 0))
    interest = _activity(source.planes[0])
    if "explicit" in streams:
        blocks = inspect(streams["explicit"].stream, threads=1).pictures[0][1]
        mask = _nearest_mask(blocks, source.planes[0].shape)
        shown.where, shown.shares = _map(source.rgb, blocks), _shares(blocks)
        interest = interest * (mask + 0.02)
    shown.window = _best_window(interest)
    shown.panels.append(_panel("source", None, None, None, source.rgb, shown.window))
    rate = next((encoded.bits for encoded in reversed(streams.values())), None)
    peer = next((by_name[name] for name in HEVC_PEERS if name in by_name), None)
    if peer is not None:
        guess = _level_of_rate(results.curve(source.name, source.chroma, peer.name), qps, rate)
        if (encoded := _encode_to_rate(peer, source, guess, rate)) is not None:
            streams[peer.name] = encoded
    for name, encoded in streams.items():
        quality = psnr(source.planes[0], encoded.planes[0])
        rgb = _rgb(source, encoded.planes)
        shown.panels.append(_panel(name, encoded.level, encoded.bits, quality, rgb, shown.window))
    return shown


def _encode(contestant: Contestant, source: Source, qp: int) -> Encoded | None:
    """None where it fails, which the measuring has said."""
    level = contestant.level(qp)
    try:
        stream, _ = contestant.route.encode(source.planes, source.chroma, level)
        return Encoded(stream, level, contestant.route.decode(stream))
    except RouteError:
        return None


def _level_of_rate(curve: Sequence[tuple[float, float | None]], qps: Sequence[int], bits: int | None) -> int:
    """About the QP at which a curve comes to a rate: log(bits) falls about linearly with it."""
    if bits is None or len(curve) != len(qps):
        return qps[-2]
    slope, start = np.polyfit(qps, [math.log(point[0]) for point in curve], 1)
    return round((math.log(bits) - start) / slope) if slope else qps[-2]


def _encode_to_rate(contestant: Contestant, source: Source, guess: int, bits: int | None) -> Encoded | None:
    """At the QP, of `guess` and those that lead from it towards a rate, that comes nearest to it."""
    qp = min(max(guess, 0), HIGHEST_QP)
    best = _encode(contestant, source, qp)
    if best is None or bits is None:
        return best
    step = 1 if best.bits > bits else -1
    while 0 <= qp + step <= HIGHEST_QP:
        qp += step
        other = _encode(contestant, source, qp)
        if other is None or abs(math.log(other.bits / bits)) >= abs(math.log(best.bits / bits)):
            break
        best = other
    return best


def _rgb(source: Source, planes: list[np.ndarray]) -> Rgb:
    colour = source.format.colour_of(source.rgb)
    picture = Picture(planes, CHROMA[source.format.chroma_format_idc], 8, 8, colour, None, None, 0, 0)
    return picture.to_rgb()  # type: ignore[return-value]


def _panel(
    name: str, level: int | None, bits: int | None, quality: float | None, rgb: Rgb, window: tuple[int, int, int, int]
) -> Panel:
    x, y, width, height = window
    part = Image.fromarray(np.ascontiguousarray(rgb[y : y + height, x : x + width]))
    size = (width * MAGNIFIED, height * MAGNIFIED)
    return Panel(name, level, bits, quality, part.resize(size, Image.Resampling.NEAREST))


def _activity(luma: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Differences between neighbours: where there is something to see."""
    values = luma.astype(np.float64)
    across, down = (
        np.abs(np.diff(values, axis=1, append=values[:, -1:])),
        np.abs(np.diff(values, axis=0, append=values[-1:])),
    )
    return across + down


def _best_window(interest: NDArray[np.float64]) -> tuple[int, int, int, int]:
    """x, y, width, height of the part with the most of it."""
    height, width = min(WINDOW[1], interest.shape[0]), min(WINDOW[0], interest.shape[1])
    sums = np.pad(interest, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    totals = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    totals = totals[::STEP, ::STEP]
    y, x = np.unravel_index(int(totals.argmax()), totals.shape)
    return int(x) * STEP, int(y) * STEP, width, height


def _nearest_mask(blocks: Blocks, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    mask = np.zeros(shape, bool)
    for block in blocks.prediction_blocks():
        if block["nearest"]:
            x, y, size = int(block["x"]), int(block["y"]), int(block["size"])
            mask[y : y + size, x : x + size] = True
    return mask


def _shares(blocks: Blocks) -> list[Share]:
    predicted = blocks.prediction_blocks()
    fractional = predicted[(predicted["mode"] >= 2) & (predicted["mode"] % 8 != 2)]
    found = []
    for size in SIZES:
        of_size = fractional[fractional["size"] == size]
        found.append(Share(size, len(of_size), int(of_size["nearest"].sum())))
    return found


def _map(rgb: Rgb, blocks: Blocks) -> Image.Image:
    """The image in pale grey, blocks that took nearest in orange."""
    scale = 2 if rgb.shape[1] <= 700 else 1
    grey = Image.fromarray(rgb).convert("L").convert("RGB")
    pale = Image.blend(grey, Image.new("RGB", grey.size, (255, 255, 255)), 0.45)
    picture = pale.resize((pale.width * scale, pale.height * scale), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(picture, "RGBA")
    for block in blocks.prediction_blocks():
        if block["nearest"]:
            left, top, size = int(block["x"]) * scale, int(block["y"]) * scale, int(block["size"]) * scale
            edge = (*EDGE, 150) if block["size"] >= 8 else None
            pen.rectangle([left, top, left + size - 1, top + size - 1], (*CHOSEN, 110), edge)
    return picture
