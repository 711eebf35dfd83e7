# SPDX-License-Identifier: Apache-2.0
"""Benchmarks of flexor against its peers: what `flexor bench` and the project's own `bench/` both run.

A family is a module with `contests(everything)`, the comparisons it consists of, and `extras()`, what
else it measures, by name.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from . import machine
from .contest import Contest, Record, run

FAMILIES = ("deform", "warp", "dynamic", "match", "grid", "sparse", "intra", "hevc", "hevc_encode", "pose")


def family_module(family: str) -> ModuleType:
    """The module of a family. Raises: ValueError for a name that is none."""
    if family not in FAMILIES:
        raise ValueError(f"bench: family must be one of {', '.join(FAMILIES)}, got {family}")
    return importlib.import_module(f".{family}", __name__)


def measure(
    family: str,
    everything: bool = False,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
    inputs: Sequence[str] = (),
) -> dict:
    """Runs a family: its main shapes, or everything it has.

    Args:
        progress: called with what runs now, how many steps are done, and how many there are.
        inputs: files of the families that take some, see `contests` of `flexor.bench.sparse`, `.hevc`, `.hevc_encode`.
    Returns: a JSON-able dict {"family", "machine", "contests": [...], and the family's extras}.
    """
    module = family_module(family)
    contests: list[Contest] = module.contests(everything, *([inputs] if inputs else []))
    extras: dict[str, Callable[[], object]] = module.extras()
    total = len(contests) + len(extras)
    found: dict = {"family": family, "machine": machine.describe(), "contests": []}
    for done, contest in enumerate(contests):
        progress(contest.name, done, total)
        found["contests"].append(run(contest))
    for done, (name, extra) in enumerate(extras.items(), len(contests)):
        progress(name, done, total)
        found[name] = extra()
    progress("done", total, total)
    return found


def save(results: dict, path: Path) -> None:
    """Writes results as JSON, one contest on a line."""
    records: list[Record] = results["contests"]
    lines = ",\n  ".join(json.dumps(record) for record in records)
    rest = {key: value for key, value in results.items() if key != "contests"}
    text = json.dumps(rest, indent=1)[:-2] + ',\n "contests": [\n  ' + lines + "\n ]\n}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def load(path: Path) -> dict:
    """Reads what `save` wrote."""
    return json.loads(path.read_text())
