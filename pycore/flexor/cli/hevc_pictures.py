# SPDX-License-Identifier: Apache-2.0
"""The picture that `flexor hevc info` draws: blocks and intra modes over the image, and what the bits were spent on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ..codec.hevc.inspection import Blocks

Colour = tuple[int, int, int]
Mark = Callable[[ImageDraw.ImageDraw, int, int], None]  # drawn at x, y
PAPER, INK, FAINT = (255, 255, 255), (24, 24, 27), (113, 113, 122)
CODING_TREE, CODING, TRANSFORM = (24, 24, 27), (82, 82, 91), (161, 161, 170)
ACROSS, DOWN, STILL = (194, 65, 12), (29, 78, 216), (21, 128, 61)  # modes 2-17, 18-34, planar and DC
LOSSLESS, PCM, SKIPPED = (134, 239, 172), (253, 224, 71), (240, 171, 252)
# Of the bar of bits: neighbours in it differ in lightness too.
GROUPS: dict[str, tuple[str, Colour]] = {
    "sao": ("SAO", (120, 53, 15)),
    "quadtree": ("quadtree", (234, 88, 12)),
    "luma_mode": ("luma modes", (253, 186, 116)),
    "chroma_mode": ("chroma modes", (133, 77, 14)),
    "coded_flags": ("coded block flags", (250, 204, 21)),
    "qp": ("QP", (63, 98, 18)),
    "transform_skip": ("transform skip, CCP", (163, 230, 53)),
    "last_position": ("last positions", (17, 94, 89)),
    "significance": ("significance", (45, 212, 191)),
    "levels": ("levels", (30, 64, 175)),
    "signs": ("signs", (147, 197, 253)),
    "pcm": ("PCM samples", (112, 26, 117)),
    "end": ("end of slice", (161, 161, 170)),
}
# intraPredAngle of modes 2 to 34 (H.265 table 8-5).
_HALF = (32, 26, 21, 17, 13, 9, 5, 2, 0, -2, -5, -9, -13, -17, -21, -26)
ANGLES = (*_HALF, -32, *reversed(_HALF[1:]), 32)
BYPASS_FLAG, PCM_FLAG, SKIPPED_FLAG = 2, 4, 2
LONGEST, MARGIN = 4096, 24


@dataclass(frozen=True)
class Structure:
    """One picture's blocks, as `flexor.codec.hevc.inspect` gives them, and the part of it that is drawn.

    window: x, y, width, height in luma samples of the picture that is shown; `origin` is its place in the coded one.
    """

    rgb: NDArray[np.uint8]
    blocks: Blocks
    ctb_size: int
    origin: tuple[int, int]
    window: tuple[int, int, int, int]
    title: str
    subtitle: str

    @property
    def scale(self) -> int:
        """Pixels a luma sample: blocks of 4x4 can be read, and the picture stays below LONGEST pixels."""
        longest = max(self.window[2:])
        return max(1, min(16, LONGEST // longest, math.ceil(1800 / longest)))


def draw(structure: Structure) -> Image.Image:
    """The title, the image with its blocks, and the legend."""
    x, y, width, height = structure.window
    scale = structure.scale
    shown = Image.fromarray(structure.rgb[y : y + height, x : x + width])
    shown = shown.resize((width * scale, height * scale), Image.Resampling.NEAREST)
    overlay = Image.new("RGB", shown.size, PAPER)
    picture = Image.blend(shown, overlay, 0.66)  # pale, so that lines stand out on anything
    _draw_blocks(picture, structure)
    canvas_width = max(picture.width, 900) + 2 * MARGIN
    legend = _legend(structure, canvas_width - 2 * MARGIN)
    top = MARGIN + 64
    canvas = Image.new("RGB", (canvas_width, top + picture.height + 20 + legend.height + MARGIN), PAPER)
    pen = ImageDraw.Draw(canvas)
    pen.text((MARGIN, MARGIN), structure.title, INK, _font(26))
    pen.text((MARGIN, MARGIN + 34), structure.subtitle, FAINT, _font(17))
    canvas.paste(picture, (MARGIN, top))
    canvas.paste(legend, (MARGIN, top + picture.height + 20))
    return canvas


def _draw_blocks(picture: Image.Image, structure: Structure) -> None:
    pen = ImageDraw.Draw(picture, "RGBA")
    coding, transform = structure.blocks.coding_blocks, structure.blocks.transform_blocks
    luma = transform[transform["component"] == 0]
    for block in luma[(luma["flags"] & SKIPPED_FLAG) != 0]:
        _fill(pen, structure, block, SKIPPED)
    for flag, colour in ((BYPASS_FLAG, LOSSLESS), (PCM_FLAG, PCM)):
        for block in coding[(coding["flags"] & flag) != 0]:
            _fill(pen, structure, block, colour)
    for block in luma:
        _frame(pen, structure, block, TRANSFORM)
    for block in coding:
        _frame(pen, structure, block, CODING)
    size, scale = structure.ctb_size, structure.scale
    left, top, width, height = structure.window
    for edge in range(-(structure.origin[0] + left) % size, width, size):
        pen.line([(edge * scale, 0), (edge * scale, height * scale)], (*CODING_TREE, 230), 2)
    for edge in range(-(structure.origin[1] + top) % size, height, size):
        pen.line([(0, edge * scale), (width * scale, edge * scale)], (*CODING_TREE, 230), 2)
    for block in structure.blocks.prediction_blocks():
        _mode(pen, structure, *(int(block[name]) for name in ("x", "y", "size", "mode")))


def _place(structure: Structure, x: float, y: float) -> tuple[float, float]:
    """From luma samples of the coded picture to pixels of the drawing."""
    left = structure.origin[0] + structure.window[0]
    top = structure.origin[1] + structure.window[1]
    return (x - left) * structure.scale, (y - top) * structure.scale


def _box(structure: Structure, block: NDArray) -> tuple[float, float, float, float]:
    size = 1 << int(block["log2_size"])
    left, top = _place(structure, int(block["x"]), int(block["y"]))
    right, bottom = _place(structure, int(block["x"]) + size, int(block["y"]) + size)
    return left, top, right - 1, bottom - 1


def _fill(pen: ImageDraw.ImageDraw, structure: Structure, block: NDArray, colour: Colour) -> None:
    pen.rectangle(_box(structure, block), (*colour, 120))


def _frame(pen: ImageDraw.ImageDraw, structure: Structure, block: NDArray, colour: Colour) -> None:
    left, top, right, bottom = _box(structure, block)
    pen.line([(left, bottom), (left, top), (right, top)], (*colour, 200), 1)


def _mode(pen: ImageDraw.ImageDraw, structure: Structure, x: int, y: int, size: int, mode: int) -> None:
    """A line along the direction of prediction; a dot for planar, a small square for DC."""
    centre = _place(structure, x + size / 2, y + size / 2)
    extent = size * structure.scale
    if extent < 8:
        return
    radius = min(extent * 0.36, 26)
    thick = 1 if extent < 24 else 2 if extent < 60 else 3
    colour = (*mode_colour(mode), 255)
    if mode < 2:
        small = max(1.5, min(radius / 3, 4))
        box = [centre[0] - small, centre[1] - small, centre[0] + small, centre[1] + small]
        if mode == 0:
            pen.ellipse(box, colour)
        else:
            pen.rectangle(box, None, colour, thick)
        return
    across, down = direction(mode)
    ends = [(centre[0] + sign * across * radius, centre[1] + sign * down * radius) for sign in (-1, 1)]
    pen.line(ends, colour, thick)


def direction(mode: int) -> tuple[float, float]:
    """Unit vector from a sample towards what it is predicted from; y points down."""
    angle = ANGLES[mode - 2]
    across, down = (-32, angle) if mode < 18 else (angle, -32)
    length = math.hypot(across, down)
    return across / length, down / length


def mode_colour(mode: int) -> Colour:
    return STILL if mode < 2 else ACROSS if mode < 18 else DOWN


def _legend(structure: Structure, width: int) -> Image.Image:
    """What lines and colours mean, and a bar of bits by group of syntax elements."""
    canvas = Image.new("RGB", (width, 400), PAPER)
    pen = ImageDraw.Draw(canvas)
    x, y = 0, 4
    for mark, label in _marks(structure):
        wide = 30 + pen.textlength(label, _font(16)) + 26
        if x and x + wide > width:
            x, y = 0, y + 28
        mark(pen, x, y)
        pen.text((x + 30, y + 9), label, INK, _font(16), anchor="lm")
        x += round(wide)
    bits = {name: structure.blocks.bits.get(name, 0.0) for name in GROUPS}
    total = sum(bits.values())
    y += 44
    pen.text((0, y), f"{total / 8:,.0f} bytes of slice data, by what they say", INK, _font(17))
    y = _bar(pen, bits, total, width, y + 28)
    return canvas.crop((0, 0, width, y))


def _bar(pen: ImageDraw.ImageDraw, bits: dict[str, float], total: float, width: int, y: int) -> int:
    """The bar and its labels, largest share first; returns where it ends."""
    left = 0.0
    for name in GROUPS:
        right = left + width * bits[name] / max(total, 1e-9)
        if right - left >= 0.5:
            pen.rectangle([left, y, right, y + 26], GROUPS[name][1])
        left = right
    x, y = 0, y + 38
    for name in sorted(bits, key=bits.__getitem__, reverse=True):
        if bits[name] < 0.0005 * total:
            continue
        label, colour = GROUPS[name]
        text = f"{label} {100 * bits[name] / total:.1f} %"
        wide = 22 + pen.textlength(text, _font(16)) + 26
        if x and x + wide > width:
            x, y = 0, y + 26
        pen.rectangle([x, y + 3, x + 13, y + 16], colour)
        pen.text((x + 22, y + 9), text, INK, _font(16), anchor="lm")
        x += round(wide)
    return y + 26


def _marks(structure: Structure) -> Iterator[tuple[Mark, str]]:
    """Of what is in the picture, with labels."""
    coding, transform = structure.blocks.coding_blocks, structure.blocks.transform_blocks

    def line(colour: Colour, thick: int) -> Mark:
        return lambda pen, x, y: pen.line([(x, y + 9), (x + 22, y + 9)], colour, thick)

    def slanted(colour: Colour, ends: Sequence[int]) -> Mark:
        return lambda pen, x, y: pen.line([(x + ends[0], y + ends[1]), (x + ends[2], y + ends[3])], colour, 3)

    def tint(colour: Colour) -> Mark:
        pale = tuple(round(0.53 * 255 + 0.47 * c) for c in colour)
        return lambda pen, x, y: pen.rectangle([x, y, x + 20, y + 18], pale, FAINT)

    yield line(CODING_TREE, 3), f"coding tree blocks, {structure.ctb_size}x{structure.ctb_size}"
    yield line(CODING, 1), "coding blocks"
    yield line(TRANSFORM, 1), "transform blocks"
    yield slanted(ACROSS, (1, 14, 21, 4)), "predicted from the left (modes 2-17)"
    yield slanted(DOWN, (6, 18, 16, 0)), "from above (18-34)"
    yield (lambda pen, x, y: pen.ellipse([x + 7, y + 5, x + 15, y + 13], STILL)), "planar"
    yield (lambda pen, x, y: pen.rectangle([x + 7, y + 5, x + 15, y + 13], None, STILL, 2)), "DC"
    if (transform["flags"][transform["component"] == 0] & SKIPPED_FLAG).any():
        yield tint(SKIPPED), "transform skipped"
    if (coding["flags"] & BYPASS_FLAG).any():
        yield tint(LOSSLESS), "lossless"
    if (coding["flags"] & PCM_FLAG).any():
        yield tint(PCM), "PCM"


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
