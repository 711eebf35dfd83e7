# SPDX-License-Identifier: Apache-2.0
"""Puts what `flexor hevc` says of a stream into docs/hevc.md, and its picture of the blocks into docs/images.

python docs/hevc_result.py

The stream is made by PyAV's x265 from a photograph that scikit-image ships (coffee, CC0, by Rachel Michetti) beside a
few lines of text, so that it shows both kinds of picture. A table lists the committed streams of tests/data/hevc.
"""

import inspect
import json
import re
import subprocess
import sys
import tempfile
import textwrap
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from skimage import data

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "hevc.md"
PICTURE = ROOT / "docs" / "images" / "hevc_info.png"
STREAMS = ROOT / "tests" / "data" / "hevc" / "streams.json"
WIDTH, HEIGHT = 320, 176


def page() -> np.ndarray:
    """A photograph on the left, text on the right."""
    canvas = Image.new("RGB", (WIDTH, HEIGHT), (252, 252, 250))
    photograph = Image.fromarray(data.coffee()).resize((240, 160)).crop((40, 0, 200, 160))
    canvas.paste(photograph.resize((176, 176)), (0, 0))
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(10)
    for row, line in enumerate(inspect.getsource(textwrap.dedent).splitlines()[:14]):
        pen.text((184, 3 + 12 * row), line[:30], (20, 40, 120) if row else (160, 20, 20), font)
    return np.asarray(canvas)


def encode(path: Path) -> None:
    encoder = av.CodecContext.create("libx265", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = WIDTH, HEIGHT, "yuv420p", Fraction(1)
    parameters = "keyint=1:qp=30:tskip=1:hash=1:info=0:colormatrix=bt709:range=limited:pools=1:log-level=none"
    encoder.options = {"preset": "slower", "x265-params": parameters}
    frame = av.VideoFrame.from_ndarray(page(), "rgb24").reformat(format="yuv420p", dst_colorspace="ITU709")
    path.write_bytes(b"".join(map(bytes, [*encoder.encode(frame), *encoder.encode(None)])))


def said(folder: Path, *arguments: str) -> str:
    """A command as it was typed, and what it printed."""
    command = [str(Path(sys.executable).with_name("flexor")), "hevc", *arguments]
    environment = {"PATH": "/usr/bin:/bin", "COLUMNS": "100", "TERM": "dumb"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    lines = [line.rstrip() for line in re.sub(r"\d+\.\d\d s\b", "0.02 s", done.stdout).splitlines()]
    return f"$ flexor hevc {' '.join(arguments)}\n" + "\n".join(line for line in lines if line) + "\n"


def streams() -> str:
    """The committed streams by encoder, and which decoders give the planes that HM gives."""
    entries = json.loads(STREAMS.read_text())
    encoders: dict[str, list[dict]] = {}
    for entry in entries.values():
        encoders.setdefault(entry["encoder"].split(",")[0], []).append(entry)
    rows = ["| encoder | streams | ffmpeg decodes alike | libde265 decodes alike |", "|---|---|---|---|"]
    for encoder, found in encoders.items():
        alike = [sum(name in entry["agree"] for entry in found) for name in ("ffmpeg", "libde265")]
        rows.append(f"| {encoder} | {len(found)} | {alike[0]} | {alike[1]} |")
    different = {
        name: [key for key, entry in entries.items() if name not in entry["agree"]] for name in ("ffmpeg", "libde265")
    }
    told = [f"- {name}: {', '.join(f'`{key}`' for key in keys)}" for name, keys in different.items()]
    return "\n".join([*rows, "", "Not alike:", "", *told])


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        encode(folder / "page.hevc")
        shown = [
            said(folder, "decode", "page.hevc", "page.png"),
            said(folder, "info", "page.hevc", "--picture", "blocks.png"),
        ]
        with Image.open(folder / "blocks.png") as picture:
            picture.save(PICTURE, optimize=True)
    document = DOCUMENT.read_text()
    for key, text in {"shown": "```\n" + "\n".join(shown) + "```", "streams": streams()}.items():
        marked = f"<!-- hevc:{key}:start -->\n{text}\n<!-- hevc:{key}:end -->"
        pattern = f"<!-- hevc:{key}:start -->.*?<!-- hevc:{key}:end -->"
        document, count = re.subn(pattern, lambda _, marked=marked: marked, document, flags=re.DOTALL)
        if count != 1:
            sys.exit(f"{DOCUMENT}: must hold one block {key}, holds {count}")
    DOCUMENT.write_text(document)


if __name__ == "__main__":
    main()
