# SPDX-License-Identifier: Apache-2.0
"""The page that `flexor hevc compare` writes: one file of HTML, with its style, curves and pictures inside."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape

from PIL import Image

from ..codec.hevc.compare import Comparison, Delta, Results, comparisons
from ..codec.hevc.compare.contestants import VARIANTS
from ..codec.hevc.compare.tables import LABELS, ORDER, circumstances, compare, doubts, signed, timings
from .hevc_compare_curves import rate_distortion, rate_saved, swatch
from .hevc_compare_pictures import MAGNIFIED, Illustration, Panel, Share
from .hevc_compare_style import STYLE

# What the page begins with, where both are there: test, anchor, and what the number is.
KEY_FIGURES = (
    ("explicit", "off", "explicit nearest, over flexor without"),
    ("off", "x265-slow", "flexor without the extension, over x265 slow"),
    ("off", "x265-veryslow-tskip", "flexor without the extension, over x265 veryslow with transform skip"),
    ("libaom-screen", "explicit", "AV1 with palette and intra block copy (libaom), over flexor with explicit nearest"),
    (
        "svt-av1-screen",
        "explicit",
        "AV1 with palette and intra block copy (SVT-AV1), over flexor with explicit nearest",
    ),
)
MOST_FIGURES = 4


def page(results: Results, illustrations: Sequence[Illustration]) -> str:
    """The whole document.

    Args:
        results: every point that is to be shown.
        illustrations: of the images, for the first chroma format.
    """
    chromas = results.chromas()
    by_image = {illustration.image: illustration for illustration in illustrations}
    images = list(dict.fromkeys(name for chroma in chromas for name in results.names(chroma)))
    links = " ".join(f'<a href="#{_anchor(images, image)}">{escape(image)}</a>' for image in images)
    parts = [
        "<header><h1>flexor hevc compare</h1>",
        f"<p>{escape(circumstances(results))}</p>",
        f"<nav>{links}</nav></header>",
        *(_figures(results, chroma) for chroma in chromas),
        *(_tables(results, chroma) for chroma in chromas),
        _legend(results),
        *(_image(results, image, _anchor(images, image), by_image.get(image)) for image in images),
        *(_times(results, chroma) for chroma in chromas),
        _method(results),
    ]
    body = "\n".join(filter(None, parts))
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>flexor hevc compare</title>'
    head += f"\n<style>{STYLE}</style>"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def _figures(results: Results, chroma: str) -> str:
    """The numbers that the page is about."""
    present = results.contestants(chroma)
    cards: list[str] = []
    for test, anchor, text in KEY_FIGURES:
        if test not in present or anchor not in present or len(cards) == MOST_FIGURES:
            continue
        comparison = compare(results, chroma, anchor, [test])
        mean = comparison.mean(test)
        if mean is None:
            continue
        known = {image: row[test].percent for image, row in comparison.luma.items()}
        numbers = {image: percent for image, percent in known.items() if percent is not None}
        ends = sorted(numbers, key=lambda image: numbers[image])
        span = ", ".join(f"{escape(image)} {signed(numbers[image])}" for image in dict.fromkeys((ends[0], ends[-1])))
        cards.append(
            f'<div class="card"><b class="{_sign(mean)}">{signed(mean)}\u202f%</b>'
            f"<p>{text}</p><small>{span}</small></div>"
        )
    title = f"<h2>Rate at equal PSNR-Y, {':'.join(chroma)}</h2>"
    return f'<section>{title}<div class="cards">{"".join(cards)}</div></section>' if cards else ""


def _tables(results: Results, chroma: str) -> str:
    parts = []
    for comparison in comparisons(results, chroma):
        remarks = doubts(comparison)
        listed = "".join(f"<li>{escape(remark)}</li>" for remark in remarks)
        notes = f"<details><summary>{len(remarks)} numbers with a remark</summary><ul>{listed}</ul></details>"
        parts += [_table(chroma, comparison), notes if remarks else ""]
    return f"<section>{''.join(parts)}</section>" if parts else ""


def _table(chroma: str, comparison: Comparison) -> str:
    heads = "".join(f"<th>{escape(LABELS[test])}</th>" for test in comparison.tests)
    rows = []
    for image, row in comparison.luma.items():
        cells = (_cell(row[test], comparison.weighted[image][test]) for test in comparison.tests)
        rows.append(f"<tr><th>{escape(image)}</th>{''.join(cells)}</tr>")
    means = "".join(_mean(comparison, test) for test in comparison.tests)
    caption = f"{':'.join(chroma)}: BD-rate over {LABELS[comparison.anchor]}, %"
    return (
        f'<h2>{escape(caption)}</h2><div class="scroll"><table><thead><tr><th></th>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody><tfoot><tr><th>mean</th>{means}</tr></tfoot></table></div>"
        "<p>By PSNR-Y; small: by PSNR-YUV, weighted 6:1:1. Negative: fewer bits for the same quality.</p>"
    )


def _cell(luma: Delta, weighted: Delta) -> str:
    remark = luma.why or luma.doubt or ""
    star = "*" if remark else ""
    sign = _sign(luma.percent)
    return (
        f'<td class="{sign}" title="{escape(remark)}">{signed(luma.percent)}{star}'
        f"<small>{signed(weighted.percent)}</small></td>"
    )


def _mean(comparison: Comparison, test: str) -> str:
    mean = comparison.mean(test)
    counted, images = comparison.counted(test), len(comparison.luma)
    note = f" of {counted}" if counted < images else ""
    weighted = signed(comparison.mean(test, weighted=True))
    return f'<td class="{_sign(mean)}">{signed(mean)}<small>{weighted}{note}</small></td>'


def _sign(percent: float | None) -> str:
    return "none" if percent is None else "fewer" if percent < -0.05 else "more" if percent > 0.05 else "same"


def _legend(results: Results) -> str:
    present = {point.contestant for point in results.points}
    marks = (f"<span>{swatch(name)}{escape(LABELS[name])}</span>" for name in ORDER if name in present)
    return f'<div class="legend">{"".join(marks)}</div>'


def _image(results: Results, image: str, anchor: str, illustration: Illustration | None) -> str:
    parts = [f'<section id="{anchor}"><h2>{escape(image)}</h2>']
    for chroma in results.chromas():
        names = [name for name in ORDER if name in results.contestants(chroma)]
        curves = {name: results.curve(image, chroma, name) for name in names}
        plots = [(f"{':'.join(chroma)}, rate and quality", rate_distortion(curves))]
        extension = {name: curve for name, curve in curves.items() if name in VARIANTS[1:]}
        if "off" in curves and extension:
            title = f"{':'.join(chroma)}, rate beside flexor without the extension"
            plots.append((title, rate_saved(curves["off"], extension)))
        figures = (f"<figure><figcaption>{title}</figcaption>{plot}</figure>" for title, plot in plots if plot)
        parts.append(f'<div class="plots">{"".join(figures)}</div>')
    if illustration is not None:
        parts += [_panels(illustration), _where(illustration)]
    return "".join([*parts, "</section>"])


def _panels(illustration: Illustration) -> str:
    x, y, width, height = illustration.window
    figures = "".join(map(_panel, illustration.panels))
    place = f"{width}x{height} samples at {x},{y}, magnified {MAGNIFIED} times"
    return f'<h3>Side by side <small>{place}</small></h3><div class="panels">{figures}</div>'


def _panel(panel: Panel) -> str:
    if panel.bits is None:
        name, facts = "source", ""
    else:
        name = LABELS[panel.contestant]
        quality = "identical luma" if panel.psnr_y is None else f"{panel.psnr_y:.2f} dB"
        facts = f"QP {panel.level}, {panel.bits / 1000:,.1f} kbit, {quality}"
    caption = f"<figcaption><b>{escape(name)}</b> <small>{facts}</small></figcaption>"
    return f'<figure>{caption}<img class="magnified" src="{_data(panel.picture)}" alt="{escape(name)}"></figure>'


def _where(illustration: Illustration) -> str:
    if illustration.where is None:
        return ""
    shares = "; ".join(map(_share, (share for share in illustration.shares if share.blocks)))
    return (
        f"<h3>Where nearest was chosen <small>explicit, QP {illustration.qp}</small></h3>"
        f"<p>Of the luma blocks with a fractional direction {shares or 'there are none'}.</p>"
        f'<img class="where" src="{_data(illustration.where)}" alt="blocks predicted by nearest, in orange">'
    )


def _share(share: Share) -> str:
    percent = 100 * share.nearest / share.blocks
    return f"{share.size}x{share.size}: {share.nearest:,} of {share.blocks:,} ({percent:.0f}\u202f%)"


def _times(results: Results, chroma: str) -> str:
    found = timings(results, chroma)
    if not found:
        return ""
    most = max(timing.seconds for timing in found)
    rows = (
        f"<tr><th>{escape(t.contestant and LABELS[t.contestant])}</th><td>{t.seconds:.3f}</td>"
        f'<td class="bar"><i style="width:{100 * t.seconds / most:.1f}%"></i></td>'
        f"<td class=words>{escape(t.version)}</td><td class=words><code>{escape(t.settings)}</code></td></tr>"
        for t in found
    )
    return (
        f"<section><h2>{':'.join(chroma)}: CPU seconds a picture</h2>"
        '<div class="scroll"><table class="times"><thead><tr><th></th><th>s</th><th></th><th class=words>version</th>'
        f"<th class=words>settings</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def _method(results: Results) -> str:
    machine = results.machine
    absent = [f"{LABELS[name]} was left out: {why}" for name, why in results.absent.items()]
    failed = [f"{f.image}, {LABELS[f.contestant]}, QP {f.qp}: {f.why}" for f in results.failures]
    notes = [
        "Every contestant encodes the same planes, converted once from RGB by the BT.709 matrix, limited range; PSNR "
        "is against these.",
        "Bits are those of the whole stream, parameter sets included; no SEI messages.",
        "Ordinary streams are decoded by FFmpeg, those with the extension by flexor.",
        "BD-rate: piecewise cubic (pchip) interpolation of the logarithm of the rate over PSNR, with Akima's as a "
        "cross-check. Points identical to the source or above 60 dB are left out. A star marks a number whose curves "
        "share less than half of their PSNR, or on which the two interpolations differ by more than one point.",
        "Times are of one encoding each, one thread, CPU seconds of the encoder's process.",
        *absent,
        *failed,
    ]
    if machine:
        notes.append(f"{machine['cpu']}, {machine['isa']}, {machine['date']}, commit {machine['commit']}.")
    return f"<section><h2>How this was measured</h2><ul>{_items(notes)}</ul></section>"


def _items(texts: Iterable[str]) -> str:
    return "".join(f"<li>{escape(text)}</li>" for text in texts)


def _anchor(images: Sequence[str], image: str) -> str:
    return f"image-{images.index(image) + 1}"


def _data(picture: Image.Image) -> str:
    """A data URI, lossless."""
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
