# SPDX-License-Identifier: Apache-2.0
"""What the points say: BD-rates by image, times, settings; as Markdown for documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from .contestants import PEERS, VARIANTS
from .points import Results
from .quality import Delta, bd_rate

LABELS = {
    "off": "flexor",
    "main": "flexor, profile Main",
    "explicit": "flexor, explicit",
    "explicit-edges": "flexor, explicit, edge filters",
    "sad": "flexor, SAD",
    "boundary": "flexor, boundary",
    "x265-slow": "x265 slow",
    "x265-veryslow-tskip": "x265 veryslow, tskip",
    "kvazaar": "kvazaar placebo",
    "libaom": "libaom",
    "libaom-screen": "libaom, screen tools",
    "svt-av1": "SVT-AV1",
    "svt-av1-screen": "SVT-AV1, screen tools",
}
ORDER = (*VARIANTS, *PEERS)
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Comparison:
    """BD-rates of several contestants over one.

    Attributes:
        anchor, tests: their names.
        luma, weighted: by image and test: by PSNR-Y, and by PSNR-YUV (6:1:1).
    """

    anchor: str
    tests: list[str]
    luma: dict[str, dict[str, Delta]]
    weighted: dict[str, dict[str, Delta]]

    def mean(self, test: str, weighted: bool = False) -> float | None:
        """Over the images that have a number."""
        rows = (self.weighted if weighted else self.luma).values()
        numbers = [row[test].percent for row in rows]
        known = [number for number in numbers if number is not None]
        return fmean(known) if known else None

    def counted(self, test: str) -> int:
        """How many images the mean is of."""
        return sum(row[test].percent is not None for row in self.luma.values())


def compare(results: Results, chroma: str, anchor: str, tests: Sequence[str]) -> Comparison:
    """BD-rates of `tests` over `anchor` for every image of a chroma format."""
    luma: dict[str, dict[str, Delta]] = {}
    weighted: dict[str, dict[str, Delta]] = {}
    for image in results.names(chroma):
        for table, by_weight in ((luma, False), (weighted, True)):
            base = results.curve(image, chroma, anchor, by_weight)
            table[image] = {test: bd_rate(base, results.curve(image, chroma, test, by_weight)) for test in tests}
    return Comparison(anchor, list(tests), luma, weighted)


def comparisons(results: Results, chroma: str) -> list[Comparison]:
    """The extension over flexor without it; everyone over x265 slow, or the first HEVC peer that is there."""
    present = results.contestants(chroma)
    names = [name for name in ORDER if name in present]
    found = []
    extension = [name for name in names if name in VARIANTS[1:]]
    if "off" in names and extension:
        found.append(compare(results, chroma, "off", extension))
    anchor = next((name for name in PEERS[:3] if name in names), "off" if "off" in names else None)
    others = [name for name in names if name != anchor]
    if anchor == "off":
        others = [name for name in others if name not in extension]
    if anchor is not None and others:
        found.append(compare(results, chroma, anchor, others))
    return found


@dataclass(frozen=True)
class Timing:
    """CPU seconds a picture, mean over images and QPs."""

    contestant: str
    seconds: float
    settings: str
    version: str


def timings(results: Results, chroma: str) -> list[Timing]:
    found = []
    for name in ORDER:
        points = [point for point in results.points if (point.chroma, point.contestant) == (chroma, name)]
        if points:
            seconds = fmean(point.seconds for point in points)
            found.append(Timing(name, seconds, points[-1].settings, points[-1].version))
    return found


def doubts(comparison: Comparison) -> list[str]:
    """Every number that is missing, or to be read with care, and why."""
    found = []
    for table, metric in ((comparison.luma, "PSNR-Y"), (comparison.weighted, "PSNR-YUV")):
        for image, row in table.items():
            for test, delta in row.items():
                why = delta.why or delta.doubt
                left_out = f"{delta.excluded} points lossless or above 60 dB left out" if delta.excluded else None
                if why or left_out:
                    reasons = "; ".join(filter(None, (why, left_out)))
                    found.append(f"{image}, {LABELS[test]} over {LABELS[comparison.anchor]}, {metric}: {reasons}")
    return found


def signed(percent: float | None) -> str:
    """One decimal, with a real minus sign; a dash where there is no number."""
    return "–" if percent is None else f"{percent:+.1f}".replace("-", MINUS)


def markdown(results: Results) -> str:
    """BD-rates and times of every chroma format, what they were measured with, who was absent."""
    parts = [part for chroma in results.chromas() for part in _of_chroma(results, chroma)]
    notes = [f"- {LABELS.get(name, name)} absent: {why}" for name, why in results.absent.items()]
    notes += [f"- {f.image}, {LABELS[f.contestant]}, QP {f.qp}: {f.why}" for f in results.failures]
    return "\n\n".join([*parts, *(["\n".join(notes)] if notes else []), circumstances(results)]) + "\n"


def circumstances(results: Results) -> str:
    """Sizes, QPs, machine, date."""
    sizes = sorted({f"{point.width}x{point.height}" for point in results.points})
    qps = sorted({point.qp for point in results.points})
    machine = results.machine
    where = f" {machine['cpu']}, {machine['date']}." if machine else ""
    return (
        f"{len({point.image for point in results.points})} images of {', '.join(sizes)}; QP {', '.join(map(str, qps))} "
        f"(AV1: steps of comparable quality). Times: CPU seconds of one encoding each, one thread.{where}"
    )


def _of_chroma(results: Results, chroma: str) -> list[str]:
    parts = []
    for comparison in comparisons(results, chroma):
        heads = [LABELS[test] for test in comparison.tests]
        title = f"**{':'.join(chroma)}: BD-rate over {LABELS[comparison.anchor]}, %, by PSNR-Y / PSNR-YUV**"
        lines = [f"| image | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
        for image in comparison.luma:
            cells = (
                f"{_marked(comparison.luma[image][test])} / {_marked(comparison.weighted[image][test])}"
                for test in comparison.tests
            )
            lines.append(f"| {image} | {' | '.join(cells)} |")
        means = (f"**{signed(comparison.mean(t))}** / {signed(comparison.mean(t, True))}" for t in comparison.tests)
        lines.append(f"| mean | {' | '.join(means)} |")
        parts += [title, "\n".join(lines)]
    lines = ["| | CPU s a picture | version | settings |", "|---|---|---|---|"]
    lines += [
        f"| {LABELS[t.contestant]} | {t.seconds:.2f} | {t.version} | `{t.settings}` |" for t in timings(results, chroma)
    ]
    return [*parts, f"**{':'.join(chroma)}: times and settings**", "\n".join(lines)]


def _marked(delta: Delta) -> str:
    return signed(delta.percent) + ("\\*" if delta.doubt else "")
