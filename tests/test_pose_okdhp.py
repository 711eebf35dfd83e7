# SPDX-License-Identifier: Apache-2.0
"""OKDHP: the official networks' keys, numbers, gradients and losses; the stack index; deploying; learning."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from flexor.models.pose.okdhp import Heatmaps, HourglassBranch, okdhp, okdhp_loss
from flexor.testing import assert_close
from pose_weights import drawn, drawn_state

GOLDEN = np.load(Path(__file__).parent / "data" / "okdhp_golden.npz")
# of the golden file
CASES = {
    "2": {"stacks": 2},
    "4-published": {"published_ensemble": True},
    "4": {},
    "shared-published": {"shared": 2, "published_ensemble": True},
}


@functools.cache
def official_state(**options):
    with torch.device("meta"):
        return drawn_state(okdhp(**options).state_dict(), gain=0.2)


def built(dtype=torch.float32, **options):
    with torch.device("meta"):
        model = okdhp(**options)
    options.pop("published_ensemble", None)
    model.load_state_dict(official_state(**options), assign=True)
    return model.to(dtype).eval()


def golden(name):
    return torch.from_numpy(GOLDEN[name])


@pytest.mark.parametrize("name", CASES)
def test_official_numbers(name):
    """Every stack's heatmaps and the ensemble; see data/make_okdhp_golden.py."""
    with torch.no_grad():
        stacks, ensemble = built(**CASES[name])(drawn("images", (1, 3, 64, 64), gain=100))
    for found, expected in zip(stacks, golden(f"{name}/stacks"), strict=True):
        assert_close(found[:, ::3, ::5, ::5], expected, 1e-4, what="stack")
    assert_close(ensemble[:, ::3, ::3, ::3], golden(f"{name}/ensemble"), 1e-4, what="ensemble")


@pytest.mark.parametrize("name", ["2", "4", "shared-published"])
def test_official_gradients(name):
    """Of the images, in float64: in float32 rounding moves places of maxima, theirs as ours."""
    images = drawn("images", (1, 3, 64, 64), gain=100).double().requires_grad_()
    stacks, ensemble = built(torch.float64, **CASES[name])(images)
    ((sum(stacks) + ensemble) * drawn("grad", tuple(ensemble.shape))).sum().backward()
    assert_close(ensemble[:, ::3, ::3, ::3], golden(f"{name}/ensemble"), 1e-6, what="ensemble")
    assert_close(images.grad[:, :, ::5, ::5], golden(f"{name}/grad_images"), 1e-6, what="gradient")


def test_official_losses():
    *stacks, ensemble, target = (drawn(f"maps{index}", (2, 16, 8, 8), gain=64) for index in range(5))
    weight = (drawn("visible", (2, 16)) > 0).float()
    loss = okdhp_loss(Heatmaps(stacks, ensemble), target, weight, epoch=15, ramp=60)
    factors = torch.tensor([1.0, 6.0, 5 * np.exp(-5 * 0.75**2)], dtype=torch.float64)
    assert_close(torch.stack(loss), golden("losses") * factors, 1e-5)
    assert_close(loss.distillation, golden("losses")[2] * factors[2], 1e-5)
    assert torch.equal(loss.total, sum(loss))


COUNTS = {
    "4": ({}, 43_491_504, 3775, 13_018_816),
    "shared": ({"shared": 2}, 30_915_696, 2547, 13_018_816),
    "2": ({"stacks": 2}, 24_627_792, 1933, 6_730_912),
}


@pytest.mark.parametrize(("options", "parameters", "keys", "deployed"), COUNTS.values(), ids=COUNTS.keys())
def test_counts(options, parameters, keys, deployed):
    with torch.device("meta"):
        model = okdhp(**options)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(model.state_dict()) == keys
    unit = [p for name, p in model.named_parameters() if name.startswith(("convs.", "fc.", "fcs."))]
    assert round(sum(p.numel() for p in unit) / 1e6, 2) == 5.46
    assert sum(p.numel() for p in model.deploy().parameters()) == deployed


def test_published_keys():
    with torch.device("meta"):
        state, shared = okdhp().state_dict(), okdhp(shared=2).state_dict()
    expected = {
        "conv1.weight": (64, 3, 7, 7),
        "layer1.0.downsample.0.bias": (128,),
        "layer2.0.conv2.weight": (128, 128, 3, 3),
        "layer3.0.bn1.running_mean": (256,),
        "convs.2.0.weight": (256, 256, 7, 7),
        "convs.0.1.running_var": (256,),
        "fc.weight": (64, 256),
        "fcs.1.weight": (16, 64),
        "ind_b_2_s_3.0.hg.0.3.0.conv3.bias": (256,),
        "ind_b_0_s_0.1.0.conv1.weight": (128, 256, 1, 1),
        "ind_b_1_s_2.2.1.weight": (256,),
        "score_b_2_s_3.weight": (16, 256, 1, 1),
        "_fc_b_0_s_2.bias": (256,),
        "_score_b_1_s_0.weight": (256, 16, 1, 1),
    }
    assert {key: tuple(state[key].shape) for key in expected} == expected
    assert "_fc_b_0_s_3.weight" not in state and "layer3.0.downsample.0.weight" not in state
    assert {"ind_s_1.0.hg.3.0.0.bn1.weight", "_score_s_1.bias", "score_b_2_s_1.bias"} < set(shared)
    assert "_fc_b_0_s_1.weight" not in shared and "ind_s_2.0.hg.0.0.0.bn1.weight" not in shared


def test_ensemble_of_each_branch():
    """Which stacks are combined, of 0 to S-1 of branch 0, then branch 1, then branch 2."""
    with torch.device("meta"):
        assert okdhp().ensemble_of == [3, 7, 11]
        assert okdhp(2).ensemble_of == okdhp(2, published_ensemble=True).ensemble_of == [1, 3, 5]
        assert okdhp(3, shared=2).ensemble_of == okdhp(3, shared=2, published_ensemble=True).ensemble_of == [2, 3, 4]
        assert okdhp(1, 2).ensemble_of == [0, 1]


@pytest.mark.parametrize("name", ["2", "shared-published"])
def test_deploy(name):
    """A branch alone gives what it gives within the whole, and has no aggregation unit or other branch."""
    model = built(**CASES[name])
    images = drawn("images", (1, 3, 64, 64), gain=100)
    with torch.no_grad():
        stacks, _ = model(images)
        for branch in range(3):
            alone = model.deploy(branch)
            assert isinstance(alone, HourglassBranch) and not alone.training
            own = model.stacks - model.shared
            assert torch.equal(alone(images), stacks[model.shared + own * (branch + 1) - 1])
            keys = set(alone.state_dict())
            assert keys < set(model.state_dict())
            assert not any(key.startswith(("convs", "fc.", "fcs")) or f"_b_{(branch + 1) % 3}_" in key for key in keys)
        alone.conv1.weight.zero_()
    assert model.conv1.weight.any(), "the deployed branch has copies"


def test_learns():
    """A few steps of the whole objective lower it, and every parameter has a gradient."""
    torch.manual_seed(0)
    model = okdhp(1, 2, joints=3)
    images, target, weight = torch.randn(2, 3, 64, 64), torch.rand(2, 3, 16, 16), torch.ones(2, 3)
    optimizer, losses = torch.optim.Adam(model.parameters(), 1e-3), []
    for _ in range(4):
        optimizer.zero_grad()
        loss = okdhp_loss(model(images), target, weight, epoch=60)
        loss.total.backward()
        optimizer.step()
        losses.append(float(loss.total.detach()))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert losses[-1] < 0.8 * losses[0]


def test_loss_weights():
    """Joints of weight 0 do not count against the truth; the ramp starts at exp(-5) and stays at 1."""
    stacks, ensemble = [torch.randn(2, 3, 4, 4)], torch.randn(2, 3, 4, 4)
    target, weight = torch.rand(2, 3, 4, 4), torch.tensor([[1.0, 0, 1], [1, 1, 0]])
    made = okdhp_loss(Heatmaps(stacks, ensemble), target, weight, epoch=0)
    visible = weight.bool()
    assert_close(made.stacks, (stacks[0] - target)[visible].square().sum() / 2 / target.numel(), 1e-6)
    full = [okdhp_loss(Heatmaps(stacks, ensemble), target, weight, epoch).distillation for epoch in (60, 90)]
    assert torch.equal(*full) and torch.equal(
        full[0], okdhp_loss(Heatmaps(stacks, ensemble), target, weight, 0, ramp=0)[2]
    )
    assert_close(made.distillation / full[0], torch.tensor(np.exp(-5.0)), 1e-6)
    same = okdhp_loss(Heatmaps([ensemble], ensemble), target, weight, epoch=60).distillation
    assert abs(float(same)) < 1e-6


def test_errors():
    with pytest.raises(ValueError, match=r"branches at least 2 and shared .* - 1, got stacks 4, branches 1"):
        okdhp(branches=1)
    with pytest.raises(ValueError, match="got stacks 2, branches 3, shared 2"):
        okdhp(2, shared=2)
    with pytest.raises(ValueError, match=r"published_ensemble takes heatmaps \[0, 2, 4\], of which .* have only 3"):
        okdhp(1, published_ensemble=True)
    with pytest.raises(ValueError, match="OKDHP: joints must be at least 1, got 0"):
        okdhp(joints=0)
    with torch.device("meta"):
        model = okdhp(1, 2)
        with pytest.raises(ValueError, match="OKDHP: height and width of images must be multiples of 64, got 64 x 96"):
            model(torch.zeros(1, 3, 64, 96))
        with pytest.raises(ValueError, match=r"HourglassBranch: images must be \(B, 3, H, W\), got \(1, 4, 64, 64\)"):
            model.deploy()(torch.zeros(1, 4, 64, 64))
        with pytest.raises(ValueError, match="deploy: branch must be from 0 to 1, got 2"):
            model.deploy(2)
    maps = Heatmaps([torch.zeros(1, 2, 4, 4)], torch.zeros(1, 2, 4, 4))
    with pytest.raises(ValueError, match=r"okdhp_loss: target must be .* = \(1, 2, 4, 4\) .*, got \(1, 2, 4, 5\)"):
        okdhp_loss(maps, torch.zeros(1, 2, 4, 5), torch.ones(1, 2), 0)
    with pytest.raises(ValueError, match=r"weight \(B, joints\) = \(1, 2\), got \(1, 2, 4, 4\) and \(1, 2, 1\)"):
        okdhp_loss(maps, maps.ensemble, torch.ones(1, 2, 1), 0)
