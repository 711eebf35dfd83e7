# SPDX-License-Identifier: Apache-2.0
"""The pictures that `flexor align` writes: flow in colour with its wheel, differences, and titled panels."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .frames import Frame

BACKGROUND, INK, FAINT = (255, 255, 255), (24, 24, 27), (113, 113, 122)
DIFFERENCE_GAIN = 4

# The colour wheel of Baker et al., "A Database and Evaluation Methodology for Optical Flow" (IJCV 2011):
# 55 steps whose hues run red, yellow, green, cyan, blue, magenta and back to red.
_WHEEL_STEPS = (0, 15, 21, 25, 36, 49, 55)
_WHEEL_RED = (1, 1, 0, 0, 0, 1, 1)
_WHEEL_GREEN = (0, 1, 1, 1, 0, 0, 0)
_WHEEL_BLUE = (0, 0, 0, 1, 1, 1, 0)


def flow_to_colour(flow: NDArray[np.float32], longest: float) -> Frame:
    """Colour a flow (2, H, W) in pixels: hue is direction, saturation is length, full at `longest` pixels."""
    x, y = flow
    step = (np.arctan2(-y, -x) / (2 * np.pi) + 0.5) * 55
    hue = np.stack([np.interp(step, _WHEEL_STEPS, c) for c in (_WHEEL_RED, _WHEEL_GREEN, _WHEEL_BLUE)], -1)
    length = np.minimum(np.hypot(x, y) / longest, 1)[..., None]
    return np.round(255 * (1 - length * (1 - hue))).astype(np.uint8)


def flow_picture(flow: NDArray[np.float32], border: int = 24, wheel: int = 96) -> Image.Image:
    """The flow in colour, full colour at the length that 99 % of its vectors stay under, beside its legend."""
    longest = longest_motion(flow)
    picture = Image.fromarray(flow_to_colour(flow, longest))
    height = max(picture.height, wheel + 4 * border)
    canvas = Image.new("RGB", (picture.width + wheel + 2 * border, height), BACKGROUND)
    canvas.paste(picture, (0, (height - picture.height) // 2))
    canvas.paste(_wheel(wheel), (picture.width + border, (height - wheel) // 2 - border // 2))
    draw = ImageDraw.Draw(canvas)
    middle = picture.width + border + wheel // 2
    below = (height + wheel) // 2 - border // 2 + 4
    draw.text((middle, below), f"rim: {longest:.1f} px", INK, _font(14), anchor="ma")
    draw.text((middle, below + 18), "x right, y down", FAINT, _font(11), anchor="ma")
    return canvas


def longest_motion(flow: NDArray[np.float32]) -> float:
    return max(float(np.percentile(np.hypot(*flow), 99)), 0.1)


def difference(a: Frame, b: Frame) -> Frame:
    """Absolute difference of two frames, amplified DIFFERENCE_GAIN times so that it can be seen."""
    amplified = np.abs(a.astype(np.int16) - b.astype(np.int16)) * DIFFERENCE_GAIN
    return np.minimum(amplified, 255).astype(np.uint8)


def panels(rows: Sequence[Sequence[tuple[str, str, Frame]]], gap: int = 12, title: int = 26) -> Image.Image:
    """Frames of one size in rows; each is (title, remark, frame), the remark in grey at the right where it fits."""
    height, width = rows[0][0][2].shape[:2]
    columns = max(len(row) for row in rows)
    size = columns * (width + gap) + gap, len(rows) * (height + title + gap) + gap
    canvas = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for i, row in enumerate(rows):
        for j, (name, remark, frame) in enumerate(row):
            left, top = gap + j * (width + gap), gap + i * (height + title + gap)
            draw.text((left, top + title // 2 - 2), name, INK, _font(16), anchor="lm")
            if draw.textlength(name, _font(16)) + draw.textlength(remark, _font(14)) < width:
                draw.text((left + width, top + title // 2 - 2), remark, FAINT, _font(14), anchor="rm")
            canvas.paste(Image.fromarray(frame), (left, top + title))
    return canvas


def _wheel(diameter: int) -> Image.Image:
    scale = 4  # drawn larger, then reduced, so that its rim is smooth
    axis = (np.arange(diameter * scale) + 0.5) / (diameter * scale) * 2 - 1
    y, x = np.meshgrid(axis, axis, indexing="ij")
    colour = flow_to_colour(np.stack([x, y]).astype(np.float32), 1)
    colour[np.hypot(x, y) > 1] = BACKGROUND
    return Image.fromarray(colour).resize((diameter, diameter), Image.Resampling.LANCZOS)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
