# SPDX-License-Identifier: Apache-2.0
"""Weights of pose networks: official checkpoints in all their wrappers, what differs, what is refused."""

import os

import numpy as np
import pytest
import torch
from flexor.models.pose.simple_baseline import simple_baseline
from flexor.models.pose.weights import WeightsError, convert, differences, load_weights, read_weights, save_weights
from safetensors import safe_open
from torch import nn


class Small(nn.Module):
    """Names as the networks have them."""

    def __init__(self, joints=3, width=4):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.final_layer = nn.Conv2d(width, joints, 1)


def filled(seed=1, **options):
    torch.manual_seed(seed)
    model = Small(**options)
    for tensor in model.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape) if tensor.is_floating_point() else torch.ones_like(tensor))
    return model


def same(a, b):
    return all(torch.equal(tensor, b.state_dict()[name]) for name, tensor in a.state_dict().items())


def renamed(state, **prefixes):
    return {f"{prefixes.get(key.split('.')[0], prefixes.get('all', ''))}{key}": value for key, value in state.items()}


def without_counts(state):
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state, other: state,
        lambda state, other: renamed(state, all="module."),
        lambda state, other: {
            "begin_epoch": 20,
            "state_dict": renamed(state, all="module."),
            "optimizer": {"state": {}},
        },
        lambda state, other: {
            "meta": {"epoch": 210, "dataset_meta": {"sigmas": np.array([0.026, 0.025]), "best": np.float64(0.7)}},
            "state_dict": renamed(state, all="backbone.", final_layer="keypoint_head."),
        },
        lambda state, other: {
            "state_dict": renamed(state, all="backbone.", final_layer="head."),
            "ema_state_dict": other,
        },
        lambda state, other: {"state_dict": other, "state_dict_ema": renamed(state, all="module.")},
        lambda state, other: {"model": {"state_dict": renamed(state, all="module.model.")}, "epoch": 3},
        lambda state, other: without_counts(state),
    ],
    ids=["bare", "parallel", "dcpose", "mmpose", "mmengine", "averaged", "nested", "old"],
)
def test_checkpoints_of_others(wrap, tmp_path):
    wanted, other = filled(1), filled(2)
    torch.save(wrap(wanted.state_dict(), other.state_dict()), tmp_path / "in.pth")
    model = filled(3)
    model.bn1.num_batches_tracked.fill_(1)
    assert load_weights(model, tmp_path / "in.pth", "small") == {}
    assert same(model, wanted)


def test_an_old_file_format(tmp_path):
    torch.save(filled().state_dict(), tmp_path / "in.pth.tar", _use_new_zipfile_serialization=False)
    model = filled(2)
    load_weights(model, tmp_path / "in.pth.tar", "small")
    assert same(model, filled())


def test_conversion_says_what_the_weights_are(tmp_path):
    torch.save({"state_dict": renamed(filled().state_dict(), all="module.")}, tmp_path / "in.pth")
    metadata = convert(tmp_path / "in.pth", tmp_path / "new" / "out.safetensors", Small(), "small")
    with safe_open(tmp_path / "new" / "out.safetensors", "pt") as file:
        assert file.metadata() == metadata
    assert metadata["model"] == "small" and metadata["source"] == "in.pth" and len(metadata["source_sha256"]) == 64
    model = filled(2)
    assert load_weights(model, tmp_path / "new" / "out.safetensors", "small") == metadata
    assert same(model, filled())
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["out.safetensors"]


def test_a_network_of_another_size_or_kind(tmp_path):
    save_weights(tmp_path / "other.safetensors", filled(joints=5), "large", {})
    message = (
        r"other.safetensors: does not fit small \(it says that it is for large\): "
        r"2 other shape: final_layer.weight \(5, 4, 1, 1\) instead of \(3, 4, 1, 1\), final_layer.bias \(5,\) instead"
    )
    model = filled(2)
    with pytest.raises(WeightsError, match=message):
        load_weights(model, tmp_path / "other.safetensors", "small")
    assert same(model, filled(2))  # nothing was loaded
    torch.save(renamed(filled().state_dict(), all="module."), tmp_path / "small.pth")
    with pytest.raises(WeightsError, match=r"small\.pth") as caught:
        load_weights(simple_baseline(18), tmp_path / "small.pth", "simple_baseline_18")
    text = str(caught.value)
    assert "missing: bn1" not in text and "missing: layer1.0.conv1.weight, " in text and "other shape: " in text
    assert text.count("layer1") <= 4 and text.count("...") == 2 and "num_batches_tracked" not in text


def test_what_differs():
    tensors = without_counts(filled().state_dict())
    assert differences(tensors, Small()) == ""
    tensors["extra"] = tensors.pop("conv1.weight")
    assert differences(tensors, Small()) == "1 missing: conv1.weight; 1 unexpected: extra"


class Runs:
    """A pickle that leaves a file where it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_pickles_that_run_code_are_refused(tmp_path):
    torch.save({"state_dict": filled().state_dict(), "meta": Runs(tmp_path / "ran")}, tmp_path / "in.pth")
    with pytest.raises(WeightsError, match=r"in.pth: refused: reading it would run (posix|nt)\.mkdir, and may run any"):
        read_weights(tmp_path / "in.pth")
    assert not (tmp_path / "ran").exists()
    torch.save(filled(), tmp_path / "whole.pth")  # a network, not its weights
    with pytest.raises(WeightsError, match=r"refused: reading it would run .*Small, .*save its state_dict alone"):
        read_weights(tmp_path / "whole.pth")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.pth", None, "none.pth: No such file or directory"),
        ("none.safetensors", None, "none.safetensors: "),
        ("text.pth", b"no checkpoint", "text.pth: .*not a checkpoint that torch can read"),
        ("empty.pth", b"", "empty.pth: is not a checkpoint that torch can read"),
        ("text.safetensors", b"no checkpoint", "text.safetensors: "),
    ],
)
def test_files_that_are_no_weights(name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        read_weights(tmp_path / name)


def test_checkpoints_without_weights(tmp_path):
    for content, message in (
        ({"epoch": 3, "best": 0.5}, "holds no weights, but a dictionary of epoch, best"),
        ({}, "holds no weights, but an empty dictionary"),
        (torch.zeros(3), "holds no weights, but one Tensor"),
    ):
        torch.save(content, tmp_path / "in.pth")
        with pytest.raises(WeightsError, match=message):
            read_weights(tmp_path / "in.pth")


def test_a_damaged_checkpoint(tmp_path):
    torch.save(filled().state_dict(), tmp_path / "in.pth")
    (tmp_path / "in.pth").write_bytes((tmp_path / "in.pth").read_bytes()[:1000])
    with pytest.raises(WeightsError, match=r"in.pth: is not a checkpoint that torch can read \("):
        read_weights(tmp_path / "in.pth")
