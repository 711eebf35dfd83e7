# SPDX-License-Identifier: Apache-2.0
"""The work behind `flexor hevc info`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ..codec import hevc
from .hevc_tools import Blocks, Headers, headers_of, tools, units_by_kind

BAR = 24  # characters


@dataclass(frozen=True)
class Reading:
    frames: int | None
    threads: int | None


@dataclass(frozen=True)
class Drawing:
    out: Path
    number: int
    region: str | None


def info(source: Path, reading: Reading, drawing: Drawing | None, headers: bool, as_json: bool) -> None:
    """Prints what a stream is made of, and draws a picture of it.

    Raises: HevcError, OSError; ValueError for a picture or region that is not there.
    """
    if drawing is not None and (drawing.out.suffix.lower() != ".png" or drawing.out.is_dir()):
        raise ValueError(f"--picture {drawing.out}: must name a .png file")
    found = hevc.inspect(source, pictures=reading.frames, threads=reading.threads)
    console = Console(highlight=False, soft_wrap=True)
    if not found.pictures and not (headers and found.units and drawing is None):
        why = f": {found.problems[0]}" if found.problems else ""
        raise ValueError(f"{source} holds no intra picture{why}")
    if drawing is not None:
        _draw(found, source, drawing)
    if as_json and found.pictures:
        print(json.dumps(report(found, source), indent=1))
        return
    if headers:
        _print_headers(found, console)
    else:
        _print(found, source, console)
    if drawing is not None:
        console.print(f"{drawing.out}: picture {drawing.number} with its blocks")


def report(found: hevc.Inspection, source: Path) -> dict[str, Any]:
    """Everything, JSON-able."""
    blocks = Blocks.of(found)
    first, _ = found.pictures[0]
    return {
        "file": str(source),
        "profile": headers_of(found, first.number).profile,
        "pictures": [
            {
                "poc": picture.poc,
                "number": picture.number,
                "width": picture.width,
                "height": picture.height,
                "chroma": picture.chroma,
                "bit_depth": picture.bit_depth,
                "bit_depth_chroma": picture.bit_depth_chroma,
                "colour": asdict(picture.colour),
                "hash": picture.hash,
                "damage": picture.damage,
                "bits": {name: round(bits, 1) for name, bits in each.bits.items()},
            }
            for picture, each in found.pictures
        ],
        "bits": {name: round(bits, 1) for name, bits in blocks.bits.items()},
        "areas": blocks.areas(),
        "tools": [asdict(tool) for tool in tools(headers_of(found, first.number), blocks)],
        "units": [{"name": unit.name, **asdict(unit)} for unit in found.units],
        "problems": found.problems,
    }


def _print(found: hevc.Inspection, source: Path, console: Console) -> None:
    picture, _ = found.pictures[0]
    headers, blocks = headers_of(found, picture.number), Blocks.of(found)
    count = len(found.pictures)
    console.print(
        f"[bold]{source.name}[/bold]: {count} intra {'picture' if count == 1 else 'pictures'} of "
        f"{picture.width}x{picture.height}, {picture.chroma}, {_depth(picture)} bit"
    )
    console.print(headers.profile)
    console.print(str(picture.colour))
    least, most = headers.transform_log2
    console.print(
        f"coding tree blocks {1 << headers.ctb_log2}, coding blocks from {1 << headers.min_coding_log2}, transforms "
        f"{1 << least} to {1 << most}, trees of them {headers.sps['max_transform_hierarchy_depth_intra']} deep"
    )
    console.print(_checks(found))
    for problem in found.problems[:8]:
        console.print(problem, style="yellow")
    kinds = units_by_kind(found.units)
    console.print("units: " + ", ".join(f"{n} {name} ({size:,} bytes)" for name, (n, size) in kinds.items()))
    console.print(_tool_table(headers, blocks), _bits_table(blocks), _area_table(blocks), sep="\n")


def _depth(picture: hevc.Picture) -> str:
    same = picture.bit_depth == picture.bit_depth_chroma
    return f"{picture.bit_depth}" if same else f"{picture.bit_depth} and {picture.bit_depth_chroma}"


def _checks(found: hevc.Inspection) -> str:
    pictures = [picture for picture, _ in found.pictures]
    right = sum(picture.hash is not None and not picture.damaged for picture in pictures)
    damaged = [picture for picture in pictures if picture.damaged]
    text = f"hash: {right} of {len(pictures)} checked and right" if right else "hash: none"
    if damaged:
        text += f"; {len(damaged)} damaged, the first: {damaged[0].damage}"
    return text


def _tool_table(headers: Headers, blocks: Blocks) -> Table:
    table = _table("Tools of the first picture's headers, and their use in all", "tool", "headers", "use")
    for tool in tools(headers, blocks):
        style = "dim" if tool.headers == "off" else None
        table.add_row(tool.name, tool.headers, tool.used if tool.headers != "off" else "", style=style)
    return table


def _bits_table(blocks: Blocks) -> Table:
    from .hevc_pictures import GROUPS

    total = sum(blocks.bits.values())
    table = _table(f"{total / 8:,.0f} bytes of slice data, by what they say", "syntax elements", "bits", "share", "")
    for name, bits in sorted(blocks.bits.items(), key=lambda item: -item[1]):
        if bits >= 0.5:
            part = bits / total
            table.add_row(GROUPS[name][0], f"{bits:,.0f}", f"{part:.1%}", "█" * round(part * BAR))
    for column in table.columns[1:3]:
        column.justify = "right"
    return table


def _area_table(blocks: Blocks) -> Table:
    table = _table("Shares of the area", "of", "")
    for name, shares in blocks.areas().items():
        shown = ", ".join(f"{kind} {part:.1%}" for kind, part in shares.items() if part)
        table.add_row(name.replace("_", " "), shown)
    return table


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        table.add_column(heading)
    return table


def _print_headers(found: hevc.Inspection, console: Console) -> None:
    for problem in found.problems:
        console.print(problem, style="yellow")
    for unit in found.units:
        of = "" if unit.picture is None else f" of picture {unit.picture}"
        console.print(f"[bold]{unit.name}[/bold]{of}, {unit.size} bytes, layer {unit.layer}, time {unit.temporal_id}")
        for name, value in unit.elements.items():
            console.print(f"  {name} = {value}", markup=False)


def _draw(found: hevc.Inspection, source: Path, drawing: Drawing) -> None:
    from .hevc_pictures import Structure, draw

    if drawing.number >= len(found.pictures):
        raise ValueError(f"--number {drawing.number}: {source} has {len(found.pictures)} intra pictures, from 0")
    picture, blocks = found.pictures[drawing.number]
    headers = headers_of(found, picture.number)
    window = _region(drawing.region, picture)
    rgb = picture.to_rgb()
    qps = blocks.coding_blocks["qp"]
    spread = f"QP {qps.min()}" if qps.min() == qps.max() else f"QP {qps.min()} to {qps.max()}"
    size = sum(unit.size for unit in found.units if unit.picture == picture.number)
    structure = Structure(
        rgb=(rgb >> (picture.bit_depth - 8)).astype(np.uint8),
        blocks=blocks,
        ctb_size=1 << headers.ctb_log2,
        origin=headers.window,
        window=window,
        title=f"{source.name}, picture {drawing.number}",
        subtitle=f"{picture.width}x{picture.height}, {picture.chroma}, {_depth(picture)} bit, {headers.profile}, "
        f"{spread}, {len(blocks.coding_blocks):,} coding blocks, {size:,} bytes"
        + (f"; shown from {window[0]},{window[1]}" if drawing.region else ""),
    )
    part = drawing.out.with_name(f".{drawing.out.name}.part")
    try:
        draw(structure).save(part, "PNG")
        part.replace(drawing.out)
    except OSError as error:
        raise ValueError(f"--picture {drawing.out}: cannot be written: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)


def _region(text: str | None, picture: hevc.Picture) -> tuple[int, int, int, int]:
    if text is None:
        return 0, 0, picture.width, picture.height
    try:
        x, y, width, height = map(int, text.split(","))
    except ValueError:
        raise ValueError(f"--region {text}: must be X,Y,WIDTH,HEIGHT in luma samples") from None
    if x < 0 or y < 0 or min(width, height) < 8 or x + width > picture.width or y + height > picture.height:
        raise ValueError(
            f"--region {text}: must lie within the {picture.width}x{picture.height} picture, at least 8 wide and high"
        )
    return x, y, width, height
