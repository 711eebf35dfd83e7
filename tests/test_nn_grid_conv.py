# SPDX-License-Identifier: Apache-2.0
"""The layers: parameters, names and initialisation of the official ones, attention, the learned assignment."""

import math

import pytest
import torch
from flexor import reference
from flexor.nn import DGridConv, GridAttention, GridConv, LearnableGridAssignment, fuse_grid_conv_bn_eval
from flexor.testing import assert_close
from torch import nn

PRIORS = ["standard", "learnt_type1", "learnt_type2", "learnt_type3", "random_prob"]


def test_static():
    layer = GridConv(4, 6, bias=True)
    keys = [f"{conv}_conv.{what}" for conv in ("donut", "tablet") for what in ("weight", "bias")]
    assert list(layer.state_dict()) == keys
    input = torch.randn(3, 4, 5, 5)
    circular = nn.functional.pad(input, (1,) * 4, "circular")
    expected = nn.functional.conv2d(circular, layer.donut_conv.weight, layer.donut_conv.bias)
    expected = expected + nn.functional.conv2d(input, layer.tablet_conv.weight, layer.tablet_conv.bias, padding=1)
    assert_close(layer(input), expected, 1e-5)
    assert list(GridConv(4, 6).state_dict()) == ["donut_conv.weight", "tablet_conv.weight"]


@pytest.mark.parametrize("padding_mode", ["cr", ("c", "z"), ["r", "z"]])
def test_dynamic(padding_mode):
    """The border letters may be a string, or a list as the official code has them."""
    layer = DGridConv(4, 6, 3, padding_mode, bias=True)
    assert list(layer.state_dict()) == ["branch1_weight", "branch2_weight", "branch1_bias", "branch2_bias"]
    for weight, bias in ((layer.branch1_weight, layer.branch1_bias), (layer.branch2_weight, layer.branch2_bias)):
        assert 0.5 / 6 < weight.abs().max() <= 1 / 6 and 0 < bias.abs().max() <= 1 / 6
    input, attention = torch.randn(3, 4, 5, 5), torch.rand(3, 9, 5, 5)
    for given in ((), (attention,), (attention.reshape(3, 1, 9, 25),)):
        expected = reference.grid_conv(input, *layer.branches(), attention if given else None, "".join(padding_mode))
        assert_close(layer(input, *given), expected, 1e-5)
    bare = DGridConv(4, 6, 5)
    assert list(bare.state_dict()) == ["branch1_weight", "branch2_weight"] and bare(input).shape == (3, 6, 5, 5)


def test_attention():
    layer = GridAttention(40, (3, 4), kernel_size=5, temperature=2.0).eval()
    shapes = {key: tuple(value.shape) for key, value in layer.state_dict().items() if not key.startswith("bn.")}
    assert shapes == {"fc.weight": (16, 40, 1, 1), "position_fc.weight": (300, 16, 1, 1), "position_fc.bias": (300,)}
    assert GridAttention(512).fc.out_channels == 32
    assert layer.position_fc.bias.eq(0).all()
    assert abs(layer.position_fc.weight.std() - math.sqrt(2 / 300)) < 0.1 * math.sqrt(2 / 300)
    input = torch.randn(7, 40, 3, 4)
    hidden = nn.functional.relu(layer.bn(layer.fc(nn.functional.adaptive_avg_pool2d(input, 1))))
    expected = torch.sigmoid(layer.position_fc(hidden).reshape(7, 25, 3, 4) / 2)
    assert_close(layer(input), expected, 1e-5)
    layer.update_temperature(30.0)
    assert (layer(input) - 0.5).abs().max() < (expected - 0.5).abs().max() / 10
    assert GridAttention(4).temperature == 30


def test_attention_trains_on_one_sample():
    layer = GridAttention(8)
    layer(torch.randn(9, 8, 5, 5))
    before = layer.bn.running_mean.clone()
    output = layer(torch.randn(1, 8, 5, 5))
    output.sum().backward()
    assert output.isfinite().all() and torch.equal(layer.bn.running_mean, before)
    assert layer.position_fc.weight.grad.isfinite().all()


@pytest.mark.parametrize("prior", PRIORS)
def test_assignment_in_evaluation(prior):
    layer = LearnableGridAssignment(prior=prior).eval()
    assert list(layer.state_dict()) == ["sgt_trans_mat"] and layer.sgt_trans_mat.shape == (1, 25, 17)
    assignment = layer()
    assert assignment.shape == (25, 17) and torch.equal(assignment.argmax(1), layer.sgt_trans_mat[0].argmax(1))
    assert assignment.sum(1).eq(1).all() and assignment.eq(assignment.round()).all()
    if prior != "random_prob":
        assert layer.uncovered() == ([0] if prior == "learnt_type3" else [])


def test_assignment_keeps_columns_of_joints_without_a_cell():
    layer = LearnableGridAssignment().eval()
    with torch.no_grad():
        layer.sgt_trans_mat[0, 23, 9] = 2  # it was joint 16's only cell, and joint 16 is the last
    assert layer().shape == (25, 17) and layer.uncovered() == [16]


@pytest.mark.parametrize("mode", ["gumbel", "straight-through"])
def test_assignment_learns(mode):
    """A gradient reaches every logit, and following it moves the choice."""
    torch.manual_seed(1)
    layer = LearnableGridAssignment(mode=mode)
    target = LearnableGridAssignment(prior="learnt_type2").eval()()
    assignment = layer()
    assert assignment.sum(1).sub(1).abs().max() < 1e-5
    if mode == "straight-through":
        assert torch.equal(assignment, layer.eval()())
        layer.train()
    (assignment * torch.randn(25, 17)).sum().backward()
    assert layer.sgt_trans_mat.grad.ne(0).all()
    optimizer = torch.optim.SGD(layer.parameters(), 1.0)
    for _ in range(60):
        optimizer.zero_grad()
        (layer() - target).square().sum().backward()
        optimizer.step()
    assert torch.equal(layer.eval()().argmax(1), target.argmax(1))


def test_gumbel_noise_and_temperature():
    layer = LearnableGridAssignment(prior="learnt_type1")
    assert not torch.equal(layer(), layer())
    sharp = LearnableGridAssignment(prior="learnt_type1", tau=0.01)
    assert sharp().amax(1).mean() > 0.95 > layer().amax(1).mean()


def test_a_prior_of_ones_own():
    prior = torch.eye(6).repeat(2, 1)
    layer = LearnableGridAssignment(6, (3, 4), prior).eval()
    assert torch.equal(layer(), prior) and layer.sgt_trans_mat.data_ptr() != prior.data_ptr()
    assert LearnableGridAssignment(6, (3, 4), "random_prob")().shape == (12, 6)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [GridConv, DGridConv])
def test_fuse(kind, bias):
    conv, bn = kind(3, 4, bias=bias).eval(), nn.BatchNorm2d(4).eval()
    for value in (*bn.parameters(), bn.running_mean, bn.running_var):
        nn.init.uniform_(value, 0.5, 2)
    fused, input = fuse_grid_conv_bn_eval(conv, bn), torch.randn(5, 3, 5, 5)
    assert_close(fused(input), bn(conv(input)), 1e-5)
    assert fused.branch2_bias is None and len(list(fused.parameters())) == 3


def test_fuse_attention():
    attention, input = GridAttention(6, temperature=3.0), torch.randn(9, 6, 5, 5)
    attention(3 * input + 1)
    fused = attention.fused()
    assert attention.training and not fused.training and fused.temperature == 1
    assert_close(fused(input), attention.eval()(input), 1e-5)


ERRORS = {
    "fuse-training": (
        lambda: fuse_grid_conv_bn_eval(GridConv(3, 4), nn.BatchNorm2d(4).eval()),
        "fuse_grid_conv_bn_eval: both modules must be in evaluation mode",
    ),
    "fuse-statistics": (
        lambda: fuse_grid_conv_bn_eval(GridConv(3, 4).eval(), nn.BatchNorm2d(4, track_running_stats=False).eval()),
        "bn must have a weight, a bias and running statistics",
    ),
    "kernel": (lambda: DGridConv(4, 4, 2), "DGridConv: kernel_size must be odd, got 2"),
    "kernel-static": (lambda: GridConv(4, 4, 4), "GridConv: kernel_size must be odd, got 4"),
    "letters": (lambda: DGridConv(4, 4, 3, "cx"), "padding_mode must be two letters of 'c', 'r' and 'z', got 'cx'"),
    "letters-one": (lambda: GridConv(4, 4, padding_mode=["c"]), r"padding_mode must be two letters .* got \['c'\]"),
    "mode": (lambda: LearnableGridAssignment(mode="soft"), "mode must be 'gumbel' or 'straight-through', got 'soft'"),
    "prior": (lambda: LearnableGridAssignment(prior="best"), "prior must be 'standard', .* got 'best'"),
    "prior-joints": (
        lambda: LearnableGridAssignment(16),
        "prior 'standard' is for 17 joints on 5x5 cells, got 16 joints on 5x5",
    ),
    "prior-grid": (
        lambda: LearnableGridAssignment(17, (4, 5), "learnt_type1"),
        "prior 'learnt_type1' is for 17 joints on 5x5 cells, got 17 joints on 4x5",
    ),
    "prior-shape": (
        lambda: LearnableGridAssignment(17, (5, 5), torch.zeros(17, 25)),
        r"prior.shape must be \(5\*5 cells, joints\) = \(25, 17\), got \(17, 25\)",
    ),
    "prior-uncovered": (
        lambda: LearnableGridAssignment(3, (1, 2), torch.eye(3)[:2]),
        r"the prior leaves joints \[2\] without a cell",
    ),
}


@pytest.mark.parametrize(("function", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_errors(function, message):
    with pytest.raises(ValueError, match=message):
        function()
