# SPDX-License-Identifier: Apache-2.0
"""`flexor hevc compare`: rate-distortion of flexor's variants and of other encoders, as a page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from .failure import fail

LARGEST_QP = 51


def compare(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGES...", help="8-bit images.", show_default=False)],
    report: Annotated[Path | None, typer.Option(metavar="OUT.html", help="The page.", show_default=False)] = None,
    json: Annotated[
        Path | None, typer.Option(metavar="OUT.json", help="Keep every point; what is in it is not measured again.")
    ] = None,
    qp: Annotated[str, typer.Option(metavar="LIST", help="At least four; AV1's steps are derived.")] = "22,27,32,37",
    chroma: Annotated[str, typer.Option(metavar="LIST", help="Of 400, 420, 422, 444.")] = "420",
    preset: Annotated[str, typer.Option(help="flexor's: fast, medium or best.")] = "best",
    crop: Annotated[
        str | None, typer.Option(metavar="WxH[+X+Y]", help="Only this part; without +X+Y the middle.")
    ] = None,
    variants: Annotated[str, typer.Option(metavar="LIST", help="flexor's.")] = "off,explicit,sad,boundary",
    peers: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="x265-slow, x265-veryslow-tskip, kvazaar, libaom, libaom-screen, svt-av1, svt-av1-screen; or none.",
        ),
    ] = "all",
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
) -> None:
    """Compare flexor's encoder, with and without the nearest-neighbour extension, with others on IMAGES.

    Every image is encoded by everyone at every QP, decoded (by FFmpeg, where the stream is an ordinary one), and
    compared with the planes that were encoded. **Prints** BD-rates: the mean difference in rate at equal PSNR, by
    piecewise cubic interpolation. **Writes** one self-contained page: rate-distortion curves, tables, times, magnified
    parts side by side, and where nearest was chosen.

    **Examples**

    - flexor hevc compare screens/*.png --report report.html
    - flexor hevc compare screens/*.png --crop 1024x576 --chroma 420,444 --json points.json --report report.html
    - flexor hevc compare shot.png --peers x265-slow --preset medium

    A peer that is not there is named, and left out: x265, kvazaar and aomenc are looked for on PATH, libx265 and
    SVT-AV1 in PyAV. Exit code 2, and one line, for images or options that cannot be used.
    """
    try:
        from . import hevc_compare_run as command
        from .frames import FrameError
    except ModuleNotFoundError as error:
        fail(f"hevc compare needs the package {error.name}: pip install 'flexor[cli]'")
    try:
        command.run(
            command.Request(
                images=images,
                report=report,
                json=json,
                qps=parse_qps(qp),
                chromas=_names(chroma),
                preset=preset,
                crop=None if crop is None else parse_crop(crop),
                variants=_names(variants),
                peers=_names(peers),
                jobs=jobs,
            )
        )
    except (FrameError, ImportError, OSError, ValueError) as error:
        fail(str(error))


def parse_qps(text: str) -> list[int]:
    """Raises: ValueError."""
    try:
        qps = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise ValueError(f"--qp must be whole numbers such as 22,27,32,37, got {text!r}") from None
    if qps[0] < 0 or qps[-1] > LARGEST_QP:
        raise ValueError(f"--qp must be from 0 to {LARGEST_QP}, got {text}")
    if len(qps) < 4:
        raise ValueError(f"--qp must list at least 4 different QPs, a BD-rate needs them, got {text}")
    return qps


def parse_crop(text: str) -> tuple[int, int, int | None, int | None]:
    """Width, height, x, y; the last two None where they are not said. Raises: ValueError."""
    found = re.fullmatch(r"(\d{1,6})x(\d{1,6})(?:\+(\d{1,6})\+(\d{1,6}))?", text)
    if found is None or not int(found[1]) or not int(found[2]):
        raise ValueError(f"--crop must be WxH or WxH+X+Y, such as 1024x576+64+128, got {text!r}")
    return int(found[1]), int(found[2]), *(None if place is None else int(place) for place in found.groups()[2:])  # type: ignore[return-value]


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
