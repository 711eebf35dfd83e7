# SPDX-License-Identifier: Apache-2.0
"""The work behind `flexor pose evaluate`: results against annotations, by COCO's, PoseTrack's or PCK's rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ..models.checkpoint import write_atomically
from ..models.pose.metrics import box_norm, coco_average_precision, pck
from ..models.pose.posetrack import posetrack_average_precision, read_posetrack, read_posetrack_folders
from ..models.pose.skeleton import COCO17
from ..models.pose.tracking import MIN_SIMILARITY, greedy_pairs, overlaps

METRICS = ("coco", "posetrack", "pck")
Content = dict[str, Any]


def evaluate(results: Path, annotations: Path, metric: str, threshold: float, out: Path | None) -> None:
    """Print a table of figures, and write them as JSON where asked.

    Raises: ValueError, OSError: files that cannot be read or do not fit each other.
    """
    if metric not in METRICS:
        raise ValueError(f"--metric must be one of {', '.join(METRICS)}, got {metric}")
    for path in (results, annotations):
        if not path.exists():
            raise ValueError(f"{path}: no such file")
    if metric == "coco":
        figures = coco_average_precision(annotations, results)
    elif metric == "posetrack":
        figures = _posetrack(results, annotations)
    else:
        figures = _pck(results, annotations, threshold)
    title = f"PCK@{threshold:g}" if metric == "pck" else {"coco": "COCO", "posetrack": "PoseTrack AP, %"}[metric]
    table = Table()
    table.add_column(title)
    table.add_column(justify="right")
    digits = 1 if metric == "posetrack" else 3
    for name, value in figures.items():
        table.add_row(name, f"{value:.{digits}f}")
    console = Console()
    console.print(f"{results} against {annotations.name}", highlight=False, soft_wrap=True)
    console.print(table)
    if out is not None:
        known = {name: None if np.isnan(value) else value for name, value in figures.items()}
        write_atomically(out, json.dumps(known, indent=2).encode() + b"\n")


def _posetrack(results: Path, annotations: Path) -> dict[str, float]:
    if annotations.is_dir():
        truth, found = read_posetrack_folders(annotations, results)
    else:
        truth, found = read_posetrack(annotations), read_posetrack(results)
    return posetrack_average_precision(truth, found).columns()


def _pck(results: Path, annotations: Path, threshold: float) -> dict[str, float]:
    """By the joints' names, of each annotated person and the one found whose box overlaps theirs most."""
    truth, found = json.loads(annotations.read_text()), json.loads(results.read_text())
    if not isinstance(truth, dict) or "annotations" not in truth or not truth.get("categories"):
        raise ValueError(f"{annotations}: must have images, annotations and categories, as COCO's")
    if not isinstance(found, list):
        raise ValueError(f"{results}: must be a list of people, as COCO's results are")
    names = truth["categories"][0]["keypoints"]
    shared = [name for name in COCO17.joints if name in names]
    people = [person for person in truth["annotations"] if any(person.get("keypoints", [])[2::3])]
    if not people:
        raise ValueError(f"{annotations}: nobody in it has joints")
    targets = _joints([person["keypoints"] for person in people], len(names))[:, [names.index(n) for n in shared]]
    predictions = np.full((len(people), len(shared), 2), np.nan)
    poses = _joints([person["keypoints"] for person in found], len(COCO17))[:, list(map(COCO17.index, shared)), :2]
    for image in {person["image_id"] for person in people}:
        here = [number for number, person in enumerate(people) if person["image_id"] == image]
        near = [number for number, person in enumerate(found) if person["image_id"] == image]
        shares = overlaps([people[number]["bbox"] for number in here], [found[number]["bbox"] for number in near])
        for person, pose in greedy_pairs(shares, MIN_SIMILARITY):
            predictions[here[person]] = poses[near[pose]]
    norms = box_norm([person["bbox"] for person in people])
    accuracy = pck(predictions, targets[..., :2], targets[..., 2], norms, threshold)
    counted = [name for name, count in zip(shared, accuracy.counts, strict=True) if count]
    rates = dict(zip(shared, accuracy.rates.tolist(), strict=True))
    return {**{name: rates[name] for name in counted}, "mean": accuracy.mean()}


def _joints(keypoints: list[list[float]], joints: int) -> np.ndarray:
    return np.array(keypoints, np.float64).reshape(len(keypoints), joints, 3)
