# SPDX-License-Identifier: Apache-2.0
"""Puts a result of `flexor align` into the documents: the picture, and the table made from its JSON.

python docs/align_result.py FOLDER
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "deform.md")
IMAGES = ROOT / "docs" / "images"
NAMES = {
    "before": "not aligned",
    "affine": "global affine warp",
    "flow": "dense flow",
    "deformable": "deformable convolution",
}


def main(folder: Path) -> None:
    """Write docs/images/align.jpg and flow.png, and the block between the align markers of each document."""
    report = json.loads((folder / "alignment.json").read_text())
    IMAGES.mkdir(exist_ok=True)
    with Image.open(folder / "overview.png") as overview:
        overview.thumbnail((1500, 1500), Image.Resampling.LANCZOS)
        overview.save(IMAGES / "align.jpg", quality=88, optimize=True)
    (IMAGES / "flow.png").write_bytes((folder / "flow.png").read_bytes())
    block = f"<!-- align:start -->\n{table(report)}\n<!-- align:end -->"
    for document in DOCUMENTS:
        text, count = re.subn(
            "<!-- align:start -->.*?<!-- align:end -->", lambda _: block, document.read_text(), flags=re.DOTALL
        )
        if count != 1:
            sys.exit(f"{document}: must hold one align block, holds {count}")
        document.write_text(text)


def table(report: dict[str, Any]) -> str:
    """The stages as Markdown, and one sentence on how they were made."""
    lines = ["| stage | PSNR, dB | SSIM | PSNR on held-out tiles, dB |", "|---|---|---|---|"]
    for stage, quality in {"before": report["before"], **report["stages"]}.items():
        held_out = quality["psnr_db_held_out"]
        lines.append(f"| {NAMES[stage]} | {quality['psnr_db']:.2f} | {quality['ssim']:.3f} | {held_out:.2f} |")
    size, settings, versions = report["size"], report["settings"], report["versions"]
    lines += [
        "",
        f"{report['neighbour']} onto {report['key']}, {size['width']}x{size['height']}, whole frame; "
        f"{report['seconds']['cpu']:.0f} s of CPU time with {settings['threads']} threads ({versions['cpu_kernels']}), "
        f"{report['learned_numbers_per_pixel_value']:.2f} learned numbers for each pixel value. "
        f"flexor {versions['flexor']}, torch {versions['torch']}.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
