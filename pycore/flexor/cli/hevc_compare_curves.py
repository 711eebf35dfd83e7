# SPDX-License-Identifier: Apache-2.0
"""The curves of `flexor hevc compare`, as SVG whose colours the page sets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from scipy.interpolate import PchipInterpolator

from ..codec.hevc.compare.quality import Curve
from ..codec.hevc.compare.tables import LABELS, MINUS

WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 40
STEPS = 48  # of an interpolated curve

Spot = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """From values to places in the drawing."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = self.low, self.high, value
        if self.logarithmic:
            low, high, at = math.log(low), math.log(high), math.log(at)
        return self.start + (at - low) / (high - low) * (self.end - self.start)


def rate_distortion(curves: Mapping[str, Curve]) -> str:
    """PSNR-Y over rate, which is logarithmic."""
    spots = {name: [(bits / 1000, psnr) for bits, psnr in curve if psnr is not None] for name, curve in curves.items()}
    everything = [spot for curve in spots.values() for spot in curve]
    if not everything:
        return ""
    rates, decibels = zip(*everything, strict=True)
    x = Axis(min(rates) / 1.06, max(rates) * 1.06, LEFT, WIDTH - RIGHT, logarithmic=True)
    y = Axis(math.floor(min(decibels) - 0.5), math.ceil(max(decibels) + 0.5), HEIGHT - BOTTOM, TOP)
    parts = [_frame(x, y, _round_rates(x.low, x.high), _round_numbers(y.low, y.high), "kbit", "PSNR-Y, dB")]
    for name, curve in spots.items():
        parts.append(_line(name, [(x(rate), y(psnr)) for rate, psnr in curve]))
        parts += [_dot(name, x(rate), y(psnr), f"{rate:,.1f} kbit, {psnr:.2f} dB") for rate, psnr in curve]
    return _svg("PSNR-Y over rate", parts)


def rate_saved(anchor: Curve, curves: Mapping[str, Curve]) -> str:
    """Difference in rate from the anchor over PSNR-Y, where both reach it: what a BD-rate is the mean of."""
    base = _interpolated(anchor)
    lines: dict[str, list[Spot]] = {}
    for name, curve in curves.items():
        other = _interpolated(curve)
        if base is None or other is None:
            continue
        low, high = max(base[1], other[1]), min(base[2], other[2])
        if low < high:
            places = [low + (high - low) * i / STEPS for i in range(STEPS + 1)]
            lines[name] = [(psnr, 100 * math.expm1(other[0](psnr) - base[0](psnr))) for psnr in places]
    everything = [spot for line in lines.values() for spot in line]
    if not everything:
        return ""
    decibels, percents = zip(*everything, strict=True)
    margin = 0.08 * max(1.0, max(*percents, 0) - min(*percents, 0))
    x = Axis(min(decibels), max(decibels), LEFT, WIDTH - RIGHT)
    y = Axis(min(*percents, 0) - margin, max(*percents, 0) + margin, HEIGHT - BOTTOM, TOP)
    ticks = _round_numbers(y.low, y.high)
    parts = [_frame(x, y, _round_numbers(x.low, x.high), ticks, "PSNR-Y, dB", "rate, %", signs=True)]
    parts.append(f'<line class="zero" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(0):.1f}" y2="{y(0):.1f}"/>')
    parts += [_line(name, [(x(psnr), y(percent)) for psnr, percent in line]) for name, line in lines.items()]
    return _svg("Rate at equal PSNR-Y beside flexor without the extension", parts)


def swatch(name: str) -> str:
    """A piece of a contestant's line, for the legend."""
    line = f'<line class="curve c-{name}" x1="1" y1="6" x2="25" y2="6"/>'
    return f'<svg class="swatch" viewBox="0 0 26 12" aria-hidden="true">{line}</svg>'


def _interpolated(curve: Curve) -> tuple[Callable[[float], float], float, float] | None:
    """log(bits) by PSNR, and the PSNR it begins and ends at; None for fewer than two points."""
    points = sorted({psnr: math.log(bits) for bits, psnr in curve if psnr is not None}.items())
    if len(points) < 2:
        return None
    decibels, rates = zip(*points, strict=True)
    return PchipInterpolator(decibels, rates), decibels[0], decibels[-1]


def _svg(label: str, parts: Sequence[str]) -> str:
    return (
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg>"
    )


def _frame(
    x: Axis, y: Axis, x_ticks: Sequence[float], y_ticks: Sequence[float], x_name: str, y_name: str, signs: bool = False
) -> str:
    bottom = HEIGHT - BOTTOM
    parts = []
    for tick in x_ticks:
        place = x(tick)
        parts.append(f'<line class="grid" x1="{place:.1f}" x2="{place:.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{place:.1f}" y="{bottom + 15}" text-anchor="middle">{tick:g}</text>')
    for tick in y_ticks:
        place = y(tick)
        text = f"{tick:+g}".replace("-", MINUS) if signs and tick else f"{tick:g}"
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place:.1f}" y2="{place:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{place + 4:.1f}" text-anchor="end">{text}</text>')
    middle = (TOP + bottom) / 2
    parts.append(f'<text class="name" x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">{x_name}</text>')
    parts.append(
        f'<text class="name" x="12" y="{middle:.0f}" text-anchor="middle" transform="rotate(-90 12 {middle:.0f})">'
        f"{y_name}</text>"
    )
    return "".join(parts)


def _line(name: str, spots: Sequence[Spot]) -> str:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
    return f'<polyline class="curve c-{name}" points="{points}"><title>{escape(LABELS[name])}</title></polyline>'


def _dot(name: str, x: float, y: float, text: str) -> str:
    title = f"<title>{escape(LABELS[name])}: {escape(text)}</title>"
    return f'<circle class="dot c-{name}" cx="{x:.1f}" cy="{y:.1f}" r="2.6">{title}</circle>'


def _round_numbers(low: float, high: float) -> list[float]:
    """Four to eight round numbers between the two."""
    rough = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first = math.ceil(low / step)
    return [round(i * step, 10) for i in range(first, math.floor(high / step) + 1)]


def _round_rates(low: float, high: float) -> list[float]:
    """1, 2, 5, 10 and so on, or finer where the range is short."""
    for factors in ((1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9)):
        ticks = [
            factor * 10.0**power
            for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            for factor in factors
        ]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 4:
            break
    return ticks
