# SPDX-License-Identifier: Apache-2.0
"""Which thresholds suit the implicit variants of nearest-neighbour prediction: BD-rates of each on given screens.

    python bench/tune_nearest.py screens/*.png --crop 512x288

Every image is encoded without the extension, and with "sad" and "boundary" at each threshold. Writes
bench/results/nearest_thresholds.json, and tables into docs/hevc_nearest.md; --draw writes the tables alone. Points are
kept in build/nearest_points.json, and are not measured again by the same build.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from flexor.bench.machine import describe
from flexor.cli.hevc_compare import parse_crop
from flexor.cli.hevc_compare_run import read_images
from flexor.codec.hevc.compare import Contestant, Failure, Results, Source, load, make_source, measure, missing, save
from flexor.codec.hevc.compare.routes import Ours
from flexor.codec.hevc.compare.tables import compare, signed
from report import write_block

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results" / "nearest_thresholds.json"
POINTS = ROOT / "build" / "nearest_points.json"
DOCUMENT = ROOT / "docs" / "hevc_nearest.md"

FAMILY = "nearest_thresholds"
UNTUNED = {"sad": 32, "boundary": 16}  # before anything was measured
THRESHOLDS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 255)
QPS = (22, 27, 32, 37, 42)  # five: text at the first may be too near lossless for a BD-rate
ANCHOR = "off"

Rates = dict[str, dict[str, float]]  # by threshold and image: BD-rate over the anchor, %


def contestants(thresholds: Sequence[int], preset: str) -> list[Contestant]:
    """The anchor, then each variant at each threshold, by names that `rates` knows."""
    tuned = [(variant, threshold) for variant in UNTUNED for threshold in thresholds]
    return [
        Contestant(ANCHOR, Ours(preset)),
        *(
            Contestant(_name(variant, threshold), Ours(preset, nearest=variant, nearest_threshold=threshold))
            for variant, threshold in tuned
        ),
    ]


def points(sources: Sequence[Source], everyone: Sequence[Contestant], jobs: int) -> Results:
    """Measured where they are not known. Raises: SystemExit where one cannot be."""
    kept = load(POINTS) if POINTS.exists() else Results()
    POINTS.parent.mkdir(exist_ok=True)
    total = len(missing(sources, everyone, QPS, kept.points))
    for number, outcome in enumerate(measure(sources, everyone, QPS, list(kept.points), jobs), 1):
        if isinstance(outcome, Failure):
            raise SystemExit(f"{outcome.image}, {outcome.contestant}, QP {outcome.qp}: {outcome.why}")
        kept.add(outcome)
        if number % 20 == 0 or number == total:
            save(kept, POINTS)
            print(f"{number} of {total} pictures", flush=True)
    return kept.of(sources, everyone, QPS)


def rates(measured: Results, chroma: str, thresholds: Sequence[int]) -> dict[str, Rates]:
    """BD-rates by PSNR-Y of every variant. Raises: SystemExit where an image has none."""
    found: dict[str, Rates] = {}
    for variant in UNTUNED:
        names = [_name(variant, threshold) for threshold in thresholds]
        luma = compare(measured, chroma, ANCHOR, names).luma
        without = [f"{image}: {row[name].why}" for image, row in luma.items() for name in names if row[name].why]
        if without:
            raise SystemExit("\n".join(without))
        found[variant] = {
            str(threshold): {image: round(row[name].percent or 0.0, 3) for image, row in luma.items()}
            for threshold, name in zip(thresholds, names, strict=True)
        }
    return found


def best(by_threshold: Rates, without: str | None = None) -> str:
    """The threshold of the least mean, over all images or all but one."""
    return min(by_threshold, key=lambda t: fmean(rate for image, rate in by_threshold[t].items() if image != without))


def unseen(by_threshold: Rates) -> float:
    """The mean where each image has the threshold that is best for the others."""
    images = next(iter(by_threshold.values()))
    return fmean(by_threshold[best(by_threshold, image)][image] for image in images)


def table(results: dict[str, Any]) -> str:
    """A table a variant, and what tuning is worth."""
    parts = []
    for variant, by_threshold in results["percent"].items():
        images, chosen, before = list(next(iter(by_threshold.values()))), best(by_threshold), str(UNTUNED[variant])
        lines = [["threshold", *images, "mean"], ["---"] * (len(images) + 2)]
        for threshold, row in by_threshold.items():
            label = threshold + (", untuned" if threshold == before else "") + (", best" if threshold == chosen else "")
            lines.append([label, *(signed(rate) for rate in row.values()), f"**{signed(fmean(row.values()))}**"])
        parts.append(f"**{variant}: BD-rate over flexor without the extension, %, by PSNR-Y**")
        parts.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
        untuned = f"{signed(fmean(by_threshold[before].values()))} % at {before}, " if before in by_threshold else ""
        parts.append(
            f"{variant}: {untuned}{signed(fmean(by_threshold[chosen].values()))} % at {chosen}, which is the best for "
            f"these images; {signed(unseen(by_threshold))} % where each image has the threshold that is best for the "
            "others."
        )
    machine = results["machine"]
    parts.append(
        f"{':'.join(results['chroma'])}, {results['size']}, preset {results['preset']}, QP "
        f"{', '.join(map(str, QPS))}; commit {machine['commit']}, {machine['date']} (`bench/tune_nearest.py`)."
    )
    return "\n\n".join(parts) + "\n"


def _name(variant: str, threshold: int) -> str:
    return f"{variant} {threshold}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*", type=Path)
    parser.add_argument("--crop", default="512x288", help="WxH[+X+Y] (default: %(default)s, the middle)")
    parser.add_argument("--thresholds", default=",".join(map(str, THRESHOLDS)), help="0 to 255 (default: %(default)s)")
    parser.add_argument("--chroma", default="420", choices=("400", "420", "422", "444"))
    parser.add_argument("--preset", default="best", choices=("fast", "medium", "best"))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--draw", action="store_true", help="measure nothing: the tables from the JSON")
    options = parser.parse_args()
    if not options.draw:
        if not options.images:
            parser.error("name images, or --draw")
        thresholds = sorted({int(threshold) for threshold in options.thresholds.split(",")})
        images = read_images(options.images, parse_crop(options.crop))
        sources = [make_source(name, rgb, options.chroma) for name, rgb in images]
        measured = points(sources, contestants(thresholds, options.preset), options.jobs)
        kept = {"family": FAMILY, "chroma": options.chroma, "size": options.crop, "preset": options.preset}
        kept |= {"machine": describe(), "percent": rates(measured, options.chroma, thresholds)}
        RESULTS.write_text(json.dumps(kept) + "\n")
    write_block(DOCUMENT, FAMILY, table(json.loads(RESULTS.read_text())))


if __name__ == "__main__":
    main()
