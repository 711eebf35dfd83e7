# SPDX-License-Identifier: Apache-2.0
"""A few steps of the comparison in bench/train_odconv.py."""

import pytest
import torch
import train_odconv
from flexor.nn import ODConv2d


def test_twins_start_alike_learn_and_are_shown(monkeypatch, tmp_path):
    pytest.importorskip("sklearn")
    monkeypatch.setattr(train_odconv, "SIZE", 16)
    monkeypatch.setattr(train_odconv, "BATCH", 16)
    monkeypatch.setattr(train_odconv, "LEARNING_RATE", 0.005)
    (images, labels), test = train_odconv.digits()
    assert images.shape == (1437, 3, 16, 16) and len(test[1]) == 360 and labels.bincount().min() > 130
    models = train_odconv.twins()
    assert sum(isinstance(module, ODConv2d) for module in models["dynamic"].modules()) == 16
    with torch.no_grad():
        plain, dynamic = (model.eval()(images[:4]) for model in models.values())
    torch.testing.assert_close(dynamic, plain, rtol=1e-3, atol=1e-3)

    few, held = (images[:32], labels[:32]), (test[0][:32], test[1][:32])
    results = {"machine": {"cpu": "a cpu", "threads": 1, "isa": "avx2", "date": "today"}, "models": {},
               "training_images": 32, "test_images": 32, "difference_at_first": 1e-6,
               "settings": {"epochs": 2, "batch": 16}}  # fmt: skip
    for name, model in models.items():
        history = list(train_odconv.train(model, few, held, epochs=2))
        assert [epoch["epoch"] for epoch in history] == [1, 2]
        assert history[1]["training_loss"] < history[0]["training_loss"]
        results["models"][name] = {"parameters": 10**7, "epochs": history}
    layer = next(module for module in models["dynamic"].modules() if isinstance(module, ODConv2d))
    assert layer.attention.temperature == 1

    document = tmp_path / "dynamic.md"
    document.write_text(f"a\n{train_odconv.START}\nold\n{train_odconv.END}\nb\n")
    monkeypatch.setattr(train_odconv, "DOCUMENT", document)
    monkeypatch.setattr(train_odconv, "CURVES", tmp_path / "images" / "curves.svg")
    pytest.importorskip("matplotlib")
    train_odconv.publish(results)
    text = document.read_text()
    assert "old" not in text and "converted to ODConv | 10.0 M" in text and text.endswith("\nb\n")
    assert (tmp_path / "images" / "curves.svg").stat().st_size > 1000
