# SPDX-License-Identifier: Apache-2.0
"""The choice of thresholds in bench/tune_nearest.py."""

import json

import pytest
import tune_nearest as tune
from PIL import Image
from test_hevc_compare import screen

# By threshold: x is best at 8, y and z at 32, all together at 16.
RATES = {
    "8": {"x": -6.0, "y": 1.0, "z": 1.0},
    "16": {"x": -4.0, "y": -1.0, "z": -1.0},
    "32": {"x": 0.0, "y": -2.0, "z": -2.0},
}


def test_the_best_and_what_it_is_worth_on_others():
    assert tune.best(RATES) == "16"
    assert tune.best(RATES, without="x") == "32" and tune.best(RATES, without="y") == "8"
    assert tune.unseen(RATES) == pytest.approx((0.0 + 1.0 + 1.0) / 3)


def test_images_are_measured_and_shown(tmp_path, monkeypatch):
    names = {"RESULTS": "results.json", "POINTS": "kept/points.json", "DOCUMENT": "page.md", "ROOT": ""}
    for name, file in names.items():
        monkeypatch.setattr(tune, name, tmp_path / file)
    monkeypatch.setattr("report.ROOT", tmp_path)
    for seed, name in enumerate(("one", "two")):
        Image.fromarray(screen(48, 48, seed)).save(tmp_path / f"{name}.png")
    block = "before\n<!-- bench:nearest_thresholds:start -->\n<!-- bench:nearest_thresholds:end -->\nafter\n"
    (tmp_path / "page.md").write_text(block)
    images = [str(tmp_path / f"{name}.png") for name in ("one", "two")]
    arguments = [*images, "--crop", "32x32", "--thresholds", "16,255", "--preset", "fast"]
    monkeypatch.setattr("sys.argv", ["tune_nearest.py", *arguments])
    tune.main()
    found = json.loads((tmp_path / "results.json").read_text())
    assert {variant: list(rates) for variant, rates in found["percent"].items()} == {
        "sad": ["16", "255"],
        "boundary": ["16", "255"],
    }
    assert found["percent"]["boundary"]["16"] != found["percent"]["boundary"]["255"]
    page = (tmp_path / "page.md").read_text()
    assert "| threshold | one | two | mean |" in page and "16, untuned" in page and page.endswith("after\n")
    kept = len(json.loads((tmp_path / "kept" / "points.json").read_text())["points"])
    assert kept == 2 * len(tune.QPS) * (1 + 2 * 2), "images, QPs, contestants"
    monkeypatch.setattr(tune, "measure", lambda *arguments: iter(()))  # all is known
    tune.main()
    assert json.loads((tmp_path / "results.json").read_text())["percent"] == found["percent"]
