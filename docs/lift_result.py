# SPDX-License-Identifier: Apache-2.0
"""Puts the lifting experiment into docs/lift.md: tables made from its JSON, and the pictures.

python docs/lift_result.py FOLDER      FOLDER: --out of bench/lift_experiment.py
"""

import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "bench" / "results" / "lift.json"
DOCUMENT = ROOT / "docs" / "lift.md"
NAMES = {"dgridconv": "D-GridConv", "gridconv": "GridConv", "martinez": "Martinez et al.", "gcn": "SemGCN"}
TITLES = {"equal_epochs": "Equal epochs", "equal_cpu_time": "Equal CPU time"}


def main(folder: Path | None) -> None:
    """Write the block between the lift markers, and docs/images/lift_*.jpg if there is a folder to take them from."""
    found = json.loads(RESULT.read_text())
    text = "\n\n".join([*(table(found[key], title) for key, title in TITLES.items()), by_action(found["equal_epochs"])])
    text = f"<!-- lift:start -->\n{text}\n\n{circumstances(found)}\n<!-- lift:end -->"
    document, count = re.subn(
        "<!-- lift:start -->.*?<!-- lift:end -->", lambda _: text, DOCUMENT.read_text(), flags=re.DOTALL
    )
    if count != 1:
        sys.exit(f"{DOCUMENT}: must hold one lift block, holds {count}")
    DOCUMENT.write_text(document)
    for name in ("curves", "skeletons") if folder else ():
        with Image.open(folder / "equal_epochs" / f"{name}.png") as picture:
            picture.convert("RGB").save(ROOT / "docs" / "images" / f"lift_{name}.jpg", quality=88, optimize=True)


def table(result: dict[str, Any], title: str) -> str:
    """The models as Markdown, the best first."""
    lines = [
        f"**{title}**",
        "",
        "| model | channels | parameters | poses seen | CPU s | protocol 1, mm | protocol 2, mm |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["summary"]:
        cost = f"{row['parameters']:,} | {row['poses']:,.0f} | {row['cpu_seconds']:.0f}"
        errors = f"{spread(row['p1_mm'])} | {spread(row['p2_mm'])}"
        lines.append(f"| {NAMES[row['model']]} | {row['width']} | {cost} | {errors} |")
    mean = result["mean_pose"]
    errors = " | ".join(f"{mean[protocol]['mean_over_actions_mm']:.1f}" for protocol in ("p1", "p2"))
    return "\n".join([*lines, f"| the training's mean pose | | | | | {errors} |"])


def spread(errors: list[float]) -> str:
    """Mean over the seeds, and the least and greatest."""
    return f"**{statistics.mean(errors):.1f}** ({min(errors):.1f} to {max(errors):.1f})"


def by_action(result: dict[str, Any]) -> str:
    """Protocol 1 of each action, the mean over the seeds."""
    rows = [(row["model"], row["width"]) for row in result["summary"]]
    runs = {key: [r for r in result["runs"] if (r["settings"]["model"], r["settings"]["width"]) == key] for key in rows}
    lines = ["<details><summary>Protocol 1 by action, equal epochs, mm</summary>", ""]
    lines.append("| action | " + " | ".join(f"{NAMES[model]} {width}" for model, width in rows) + " |")
    lines.append("|---" * (len(rows) + 1) + "|")
    for action in result["runs"][0]["p1"]["by_action_mm"]:
        errors = (statistics.mean(run["p1"]["by_action_mm"][action] for run in runs[key]) for key in rows)
        lines.append(f"| {action} | " + " | ".join(f"{error:.1f}" for error in errors) + " |")
    return "\n".join([*lines, "", "</details>"])


def circumstances(found: dict[str, Any]) -> str:
    """What was measured on what."""
    data, machine = found["equal_epochs"]["data"], found["machine"]
    versions, settings = machine["versions"], found["equal_epochs"]["runs"][0]["settings"]
    seeds = len(found["equal_epochs"]["summary"][0]["seeds"])
    return (
        f"{data['source']}: {data['poses']:,} poses in {data['clips']:,} clips, {data['clips_held_out']:,} of them "
        f"({data['samples_held_out']:,} poses) held out. {seeds} seeds; in brackets the best and the worst. Errors are "
        f"means over actions. Equal epochs: {settings['epochs']} of {settings['poses']:,} poses, batches of "
        f"{settings['batch']}. One thread a training on {machine['cpu']} ({machine['isa']}), "
        f"flexor {versions['flexor']}, torch {versions['torch']}, {machine['date']}."
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
