# SPDX-License-Identifier: Apache-2.0
"""Puts what `flexor voxels` found into docs/voxels.md: tables made from its JSON, and the pictures of one scan.

python docs/voxels_result.py SHOWN FITTED...      folders: --out of `flexor voxels` and of `flexor voxels fit`

SHOWN and the first FITTED are of the scan whose pictures are shown; its name is that of its file. Without arguments the
tables are written again from bench/results/voxels.json.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "bench" / "results" / "voxels.json"
DOCUMENT = ROOT / "docs" / "voxels.md"
IMAGES = ROOT / "docs" / "images"
WIDEST = 1500  # pixels


def main(folders: list[Path]) -> None:
    """Write the blocks between the markers of docs/voxels.md, and docs/images/voxels_*.jpg if there are folders."""
    if folders:
        shown, *fitted = folders
        found = {
            "shown": json.loads((shown / "voxels.json").read_text()),
            "fitted": [without_history(json.loads((folder / "metrics.json").read_text())) for folder in fitted],
        }
        RESULT.write_text(json.dumps(found, indent=1) + "\n")
        name = found["fitted"][0]["scans"][0]["scan"]
        for source, target in (
            (shown / f"{name}.png", "voxels_shown"),
            (fitted[0] / f"{name}.png", "voxels_completed"),
            (fitted[0] / "curves.png", "voxels_curves"),
        ):
            with Image.open(source) as picture:
                picture = picture.convert("RGB")
                picture.thumbnail((WIDEST, WIDEST))
                picture.save(IMAGES / f"{target}.jpg", quality=86, optimize=True)
    found = json.loads(RESULT.read_text())
    document = DOCUMENT.read_text()
    blocks = {
        "shown": f"{sparsity(found['shown'])}\n\n{times(found['shown'])}",
        "fitted": f"{scores(found['fitted'])}\n\n{circumstances(found)}",
    }
    for name, text in blocks.items():
        marked = f"<!-- voxels:{name}:start -->\n{text}\n<!-- voxels:{name}:end -->"
        pattern = f"<!-- voxels:{name}:start -->.*?<!-- voxels:{name}:end -->"
        document, count = re.subn(pattern, lambda _, marked=marked: marked, document, flags=re.DOTALL)
        if count != 1:
            sys.exit(f"{DOCUMENT}: must hold one block {name}, holds {count}")
    DOCUMENT.write_text(document)


def without_history(metrics: dict[str, Any]) -> dict[str, Any]:
    """All but the figures of every epoch; of these the CPU seconds and steps at the end."""
    history = metrics.pop("history")
    return metrics | {"steps": history[-1]["steps"], "cpu_seconds": history[-1]["cpu_seconds"]}


def sparsity(shown: dict[str, Any]) -> str:
    """The levels of the first scan as Markdown."""
    scan = shown["scans"][0]
    lines = [
        f"{scan['scan']}: {scan['points']:,} points in voxels of {100 * scan['voxel']:g} cm",
        "",
        "| level | voxels | box | occupied | neighbours of 26 | pairs |",
        "|---|---|---|---|---|---|",
    ]
    for number, level in enumerate(scan["levels"]):
        box, share = "x".join(map(str, level["shape"])), f"{100 * level['occupancy']:.2f} %"
        lines.append(
            f"| {number} | {level['voxels']:,} | {box} | {share} | {level['neighbours']:.1f} | {level['pairs']:,} |"
        )
    return "\n".join(lines)


def times(shown: dict[str, Any]) -> str:
    """The slowest layers of the first scan, and all together."""
    layers = shown["scans"][0]["layers"]
    lines = ["| layer | channels | voxels | map, ms | convolution, ms | GFLOP/s |", "|---|---|---|---|---|---|"]
    for layer in sorted(layers, key=lambda layer: -layer["map"] - layer["compute"])[:6]:
        made = "shared" if layer["shared"] else f"{1e3 * layer['map']:.2f}" if layer["pairs"] else ""
        speed = f"{layer['flops'] / layer['compute'] / 1e9:.0f}" if layer["flops"] else ""
        name, computed = layer["name"].removeprefix("unet."), f"{1e3 * layer['compute']:.2f}"
        lines.append(f"| {name} | {layer['channels']} | {layer['voxels']:,} | {made} | {computed} | {speed} |")
    map_time, compute = (1e3 * shown["scans"][0]["seconds"][part] for part in ("map", "compute"))
    return "\n".join([*lines, f"| all {len(layers)} | | | {map_time:.2f} | {compute:.2f} | |"])


def scores(fitted: list[dict[str, Any]]) -> str:
    """Held-out IoU and error of each training."""
    lines = [
        "| scan | voxels | held out | IoU: nearest | U-Net | error of values: nearest | mean of eight | U-Net |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for metrics in fitted:
        (scan,) = metrics["scans"]
        nearest, unet, mean = metrics["nearest"], metrics["unet"], metrics["interpolated"]["value_error"]
        iou = f"{nearest['iou']:.3f} | **{unet['iou']:.3f}**"
        error = f"{nearest['value_error']:.4f} | {mean:.4f} | **{unet['value_error']:.4f}**"
        size = f"{scan['voxels']:,} of {100 * scan['voxel']:g} cm | {scan['held_out']:,}"
        lines.append(f"| {scan['scan']} | {size} | {iou} | {error} |")
    return "\n".join(lines)


def circumstances(found: dict[str, Any]) -> str:
    """What was measured how."""
    first = found["fitted"][0]
    seconds = [metrics["cpu_seconds"] for metrics in found["fitted"]]
    versions = first["versions"]
    return (
        f"One training each: {first['steps']} steps, {first['parameters']:,} parameters, "
        f"{min(seconds):.0f} to {max(seconds):.0f} s of CPU time. flexor {versions['flexor']}, "
        f"torch {versions['torch']}, {versions['cpu_kernels']}."
    )


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
