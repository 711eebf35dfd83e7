# SPDX-License-Identifier: Apache-2.0
"""ODConv's modules: the published layer's numbers, state_dict and initialisation, and what training needs of them."""

import copy
import math
from pathlib import Path

import flexor
import numpy
import pytest
import torch
from flexor.nn import (
    CondConv2d,
    DyConv2d,
    ODConv1d,
    ODConv2d,
    annealed_temperature,
    fuse_odconv_bn_eval,
    update_temperature,
)
from flexor.nn._attention import OneValueBatchNorm2d
from flexor.testing import assert_close, running, ways
from torch import nn

GOLDEN = numpy.load(Path(__file__).parent / "data" / "odconv_golden.npz")
WAY = pytest.mark.parametrize("way", ways("odconv2d"), ids=str)


def golden_layer(name, dtype=torch.float64, device="cpu"):
    *geometry, kernel_num = GOLDEN[f"{name}/arguments"].tolist()
    layer = ODConv2d(*geometry, kernel_num=kernel_num)
    state = layer.state_dict()
    assert [f"{key} {list(value.shape)}" for key, value in state.items()] == GOLDEN[f"{name}/keys"].tolist()
    return load_flat(layer, GOLDEN[f"{name}/state"]).to(device, dtype)


def load_flat(layer, numbers):
    state = layer.state_dict()
    parts = torch.tensor(numbers.astype("float64")).split([value.numel() for value in state.values()])
    layer.load_state_dict({k: part.reshape(v.shape) for (k, v), part in zip(state.items(), parts, strict=True)})
    return layer


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", sorted({key.split("/")[0] for key in GOLDEN}))
@WAY
def test_the_published_layers_numbers(way, name, mode, dtype):
    """Output and every gradient, of input and parameters; see data/make_odconv_golden.py."""
    layer = golden_layer(name, dtype, way.device).train(mode == "train")
    layer.update_temperature(GOLDEN[f"{name}/{mode}/temperature"].item())
    input = torch.tensor(GOLDEN[f"{name}/input"], dtype=dtype, device=way.device).requires_grad_()
    with running(way):
        output = layer(input)
        grad_output = torch.tensor(GOLDEN[f"{name}/{mode}/grad_output"]).to(output)
        grads = torch.autograd.grad(output, [input, *layer.parameters()], grad_output)
    assert_close(output, torch.tensor(GOLDEN[f"{name}/{mode}/output"]), 1e-5)
    expected = torch.tensor(GOLDEN[f"{name}/{mode}/grads"]).split([g.numel() for g in grads])
    for key, grad, true in zip(["input", *dict(layer.named_parameters())], grads, expected, strict=True):
        assert_close(grad.flatten(), true, 1e-5, what=key)


@pytest.mark.parametrize("name", ["3x3", "depthwise-one"])
def test_channels_last_and_half(name):
    layer = golden_layer(name, torch.float32).eval()
    input = torch.tensor(GOLDEN[f"{name}/input"], dtype=torch.float32)
    found = layer(input.to(memory_format=torch.channels_last))
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert_close(found, torch.tensor(GOLDEN[f"{name}/eval/output"]), 1e-5)
    assert_close(layer.bfloat16()(input.bfloat16()), found, 5e-2)


def test_constructor():
    layer = ODConv2d(32, 48, (3, 5), 2, (1, 2), 1, 4, 0.25, 2)
    assert layer.weight.shape == (2, 48, 8, 3, 5) and layer.attention.fc.out_channels == 16
    assert layer.attention.spatial_fc.out_channels == 15 and layer.bias is None
    assert repr(layer).startswith(
        "ODConv2d(\n  32, 48, kernel_size=(3, 5), stride=(2, 2), padding=(1, 2), groups=4, kernel_num=2"
    )
    layer.update_temperature(4)
    assert "temperature=4" in repr(layer) and "bias=True" in repr(ODConv2d(2, 2, 3, dilation=2, bias=True))
    assert ODConv2d(1024, 8, 1).attention.fc.out_channels == 64
    assert ODConv2d(8, 8, 3, min_channel=4).attention.fc.out_channels == 4
    depthwise = ODConv2d(8, 8, 1, groups=8, kernel_num=1).attention
    assert depthwise.filter_fc is depthwise.spatial_fc is depthwise.kernel_fc is None
    kernels = ODConv2d(64, 64, 3).weight
    assert abs(kernels.std() - math.sqrt(2 / 576)) < 0.05 * math.sqrt(2 / 576)
    assert layer.attention.fc.bias is None and layer.attention.channel_fc.bias.eq(0).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ODConv2d(6, 4, 3, groups=4), "in_planes and out_planes must be multiples of groups = 4, got 6 and 4"),
        (lambda: ODConv2d(6, 4, 3, groups=0), "multiples of groups = 0"),
        (lambda: ODConv1d(4, 6, 3, groups=4), "ODConv1d: in_planes and out_planes must be multiples"),
        (lambda: ODConv2d(6, 4, 3, kernel_num=0), "ODConv2d: kernel_num must be at least 1, got 0"),
        (lambda: ODConv2d(6, 4, 3, norm="gn"), "norm must be 'bn' or 'ln' or 'none', got 'gn'"),
        (lambda: ODConv2d(6, 4, (3, 3, 3)), "ODConv2d: sizes must be an int or 2 of them"),
        (lambda: annealed_temperature(3, 0), "total must be positive and iteration not negative, got 0 and 3"),
        (lambda: annealed_temperature(-1, 2), "got 2 and -1"),
        (lambda: update_temperature(ODConv2d(4, 4, 3), 0.0), "temperature must be positive, got 0.0"),
        (lambda: fuse_odconv_bn_eval(ODConv2d(4, 4, 3), nn.BatchNorm2d(4)), "must be in evaluation mode"),
        (
            lambda: fuse_odconv_bn_eval(ODConv2d(4, 4, 3).eval(), nn.BatchNorm2d(5).eval()),
            "bn.num_features must be odconv.out_planes = 4, got 5",
        ),
        (lambda: CondConv2d(6, 4, groups=4), "CondConv2d: input and output channels must be multiples of groups = 4"),
        (lambda: CondConv2d(6, 4, padding="full"), "padding must be '', 'same', 'valid' or sizes, got 'full'"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_errors_of_from_conv():
    with pytest.raises(TypeError, match=r"conv must be a torch.nn.Conv2d, got Conv1d"):
        ODConv2d.from_conv(nn.Conv1d(4, 4, 3))
    with pytest.raises(NotImplementedError, match="padding_mode must be 'zeros', got 'reflect'"):
        ODConv2d.from_conv(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"))
    with pytest.raises(NotImplementedError, match="padding 'same' must be the same on both sides"):
        ODConv2d.from_conv(nn.Conv2d(4, 4, 2, padding="same"))


def test_training_with_one_sample():
    """One value a channel has no variance: the running statistics serve, and do not move. Two samples move them."""
    layer = ODConv2d(8, 6, 3, padding=1)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        nn.BatchNorm2d(16)(torch.randn(1, 16, 1, 1))
    layer(torch.randn(4, 8, 5, 5))
    before, input = copy.deepcopy(layer.state_dict()), torch.randn(1, 8, 5, 5)
    output = layer(input)
    output.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
    assert all(torch.equal(a, b) for a, b in zip(layer.state_dict().values(), before.values(), strict=True))
    assert torch.equal(layer.eval()(input), output)
    layer.train()(torch.randn(2, 8, 5, 5))
    assert layer.attention.bn.num_batches_tracked == 2
    assert not torch.equal(layer.attention.bn.running_mean, before["attention.bn.running_mean"])


def test_batch_norm_is_torchs():
    """Cumulative averages and statistics of the batch alone, too."""
    for options in ({}, {"momentum": None}, {"track_running_stats": False}, {"affine": False}):
        ours, theirs = OneValueBatchNorm2d(4, **options), nn.BatchNorm2d(4, **options)
        for training in (True, True, False):
            input = torch.randn(3, 4, 1, 1)
            assert_close(ours.train(training)(input), theirs.train(training)(input), 1e-6)
        assert all(torch.equal(a, b) for a, b in zip(ours.buffers(), theirs.buffers(), strict=True))
    assert isinstance(nn.SyncBatchNorm.convert_sync_batchnorm(ODConv2d(4, 4, 3)).attention.bn, nn.SyncBatchNorm)


@pytest.mark.parametrize("norm", ["ln", "none"])
def test_other_norms(norm):
    """They look at one sample at a time, so that it does not matter which others are in the batch."""
    layer, input = ODConv2d(8, 6, 3, padding=1, norm=norm), torch.randn(3, 8, 5, 5)
    assert ("attention.bn.weight" in layer.state_dict()) == (norm == "ln")
    assert "attention.bn.running_mean" not in layer.state_dict()
    assert_close(layer(input)[:1], layer(input[:1]), 1e-6)
    hidden = layer.attention.fc(input.mean((2, 3), keepdim=True)).flatten(1)
    expected = nn.functional.layer_norm(hidden, (16,)) if norm == "ln" else hidden
    assert_close(layer.attention.bn(hidden[:, :, None, None]).flatten(1), expected, 1e-5)


def test_temperature():
    layer, input = ODConv2d(8, 6, 3).eval(), torch.randn(3, 8, 5, 5)
    assert layer.attention.temperature == 1 and "temperature" not in "".join(layer.state_dict())
    model = nn.Sequential(layer, nn.ModuleDict({"inner": ODConv1d(4, 4, 3), "other": DyConv2d(4, 4, 3)}))
    update_temperature(model, 1e6)
    channel, filter, spatial, kernel = layer.attention(input)
    assert all((a - 0.5).abs().max() < 1e-4 for a in (channel, filter, spatial)) and (kernel - 0.25).abs().max() < 1e-4
    assert model[1]["inner"].attention.temperature == model[1]["other"].attention.temperature == 1e6
    update_temperature(layer, 2.0)
    assert layer.attention.temperature == 2


def test_annealing():
    """30 before the first update, 1 after ten epochs and from then on."""
    schedule = [annealed_temperature(i, 1000) for i in (0, 1, 500, 1000, 5000)]
    assert schedule == [30.0, 30 - 29 / 1000, 15.5, 1.0, 1.0]
    assert annealed_temperature(0, 10, start=4) == 4


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(6, 8, 3, 2, 1),
        nn.Conv2d(6, 8, 1, bias=False),
        nn.Conv2d(8, 8, 3, padding="same", dilation=2, groups=8),
        nn.Conv2d(8, 4, (3, 2), padding="valid", groups=2).double(),
    ],
    ids=["strided", "one-tap", "depthwise", "grouped"],
)
@pytest.mark.parametrize("kernel_num", [1, 4])
def test_from_conv(conv, kernel_num):
    """The same output at any temperature; then training moves every kernel, and each its own way."""
    layer = ODConv2d.from_conv(conv.eval(), kernel_num)
    assert not layer.training and layer.weight.dtype == conv.weight.dtype
    layer.train()
    input = torch.randn(4, conv.in_channels, 7, 6, dtype=conv.weight.dtype)
    for temperature in (30.0, 1.0):
        layer.update_temperature(temperature)
        assert_close(layer(input), conv(input), 1e-6)
    optimizer = torch.optim.SGD(layer.parameters(), 0.01)
    for _ in range(3):
        optimizer.zero_grad()
        layer(input).square().mean().backward()
        optimizer.step()
    assert layer.attention.channel_fc.weight.abs().max() > 0
    if kernel_num > 1:
        assert not torch.allclose(layer.weight[0], layer.weight[1], rtol=1e-6, atol=0)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", [ODConv1d, ODConv2d])
def test_fused_batch_norm(kind, bias):
    layer = kind(6, 8, 3, padding=1, bias=bias)
    bn = (nn.BatchNorm2d if kind is ODConv2d else nn.BatchNorm1d)(8)
    for tensor in (bn.weight, bn.bias, bn.running_mean, *([layer.bias] if bias else [])):
        nn.init.normal_(tensor)
    nn.init.uniform_(bn.running_var, 0.5, 2.0)
    model = nn.Sequential(layer, bn).eval()
    input = torch.randn(3, 6, 7, 5) if kind is ODConv2d else torch.randn(3, 6, 9)
    before = copy.deepcopy(model.state_dict())
    assert_close(fuse_odconv_bn_eval(*model)(input), model(input), 1e-5)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.values(), strict=True))


def test_one_dimension_is_a_row():
    """The 1-D layer on a sequence, and the 2-D layer of the same numbers on an image one row high."""
    row = ODConv2d(6, 8, (1, 3), 2, (0, 1), groups=2)
    line = ODConv1d(6, 8, 3, 2, 1, groups=2)
    state = row.state_dict()
    line.load_state_dict(state | {"weight": state["weight"].squeeze(3)})
    input = torch.randn(3, 6, 11)
    assert_close(line(input), row(input.unsqueeze(2)).squeeze(2), 1e-6)
    assert ODConv1d(4, 4, 3, bias=True)(torch.randn(2, 4, 5)).shape == (2, 4, 3)


def test_replicas_use_their_own_parameters():
    """What torch.nn.DataParallel does to a module: a shallow copy with other parameters, and a deep one."""
    layer, input = ODConv2d(6, 8, 3).eval(), torch.randn(2, 6, 5, 5)
    replica = layer._replicate_for_data_parallel()
    replica.attention = copy.deepcopy(layer.attention)
    replica.weight, replica.bias = 2 * layer.weight, None
    assert_close(replica(input), 2 * layer(input), 1e-6)
    other = copy.deepcopy(layer)
    nn.init.zeros_(other.attention.kernel_fc.weight)
    assert not torch.equal(other(input), layer(input))
    assert not [name for name, value in vars(layer).items() if callable(value) and not name.startswith("_")]


def published_layer(name, module="modules.odconv"):
    """A layer with the class name and attributes of the published one, built from ours."""

    class ODConv2d(nn.Module):
        def forward(self, x):
            raise AssertionError("the published code ran")

    class Attention(nn.Module):
        pass

    ODConv2d.__module__ = Attention.__module__ = module
    ours = golden_layer(name, torch.float32)
    layer, attention = ODConv2d(), Attention()
    arguments = GOLDEN[f"{name}/arguments"].tolist()
    names = ("in_planes", "out_planes", "kernel_size", "stride", "padding", "dilation", "groups", "kernel_num")
    for key, value in zip(names, arguments, strict=True):
        setattr(layer, key, value)
    attention.temperature, attention.avgpool, attention.relu = 1.0, nn.AdaptiveAvgPool2d(1), nn.ReLU(inplace=True)
    for key, child in ours.attention.named_children():
        setattr(attention, key, child)
    attention.bn = nn.BatchNorm2d(16)
    attention.bn.load_state_dict(ours.attention.bn.state_dict())
    layer.attention, layer.weight = attention, ours.weight
    layer._forward_impl, attention.func_channel = layer.forward, attention.forward
    return layer


@pytest.mark.parametrize("name", ["3x3", "depthwise-one", "1x1"])
def test_replace(name):
    model = nn.Sequential(published_layer(name), nn.ReLU())
    layer, keys = model[0], set(model.state_dict())
    report = flexor.replace(model.eval())
    assert [entry.name for entry in report.swapped] == ["0"] and not report.left
    assert model[0] is layer and type(layer) is ODConv2d and set(model.state_dict()) == keys
    input = torch.tensor(GOLDEN[f"{name}/input"], dtype=torch.float32)
    assert_close(layer(input), torch.tensor(GOLDEN[f"{name}/eval/output"]), 1e-5)
    assert layer.train()(input[:1]).isfinite().all(), "trains on one sample"
    assert not flexor.replace(model).swapped
    repr(copy.deepcopy(model))


def test_replace_leaves_what_only_has_the_name():
    odd = published_layer("3x3")
    odd.attention.extra = nn.Linear(2, 2)
    biased = published_layer("3x3")
    biased.bias = nn.Parameter(torch.zeros(6))
    patched = published_layer("3x3")
    patched.forward = lambda x: x
    report = flexor.replace(nn.ModuleDict({"odd": odd, "biased": biased, "patched": patched}))
    assert not report.swapped
    reasons = {entry.name: entry.outcome for entry in report.left}
    assert reasons["odd"] == reasons["biased"] == "no layer that flexor knows"
    assert "forward was replaced" in reasons["patched"]


@pytest.mark.parametrize("padding", ["", "same", "valid", 1, (0, 2)])
@pytest.mark.parametrize("stride", [1, 2])
def test_condconv(padding, stride):
    layer = CondConv2d(6, 8, 3, stride, padding, groups=2, bias=True, num_experts=3)
    assert {key: tuple(value.shape) for key, value in layer.state_dict().items()} == {
        "weight": (3, 216),
        "bias": (3, 8),
    }
    input, routing = torch.randn(4, 6, 8, 7), torch.rand(4, 3)
    found = layer(input, routing)
    for image, shares, output in zip(input, routing, found, strict=True):
        kernel = (shares @ layer.weight).reshape(8, 3, 3, 3)
        if padding == "same" and stride == 2:  # 8 rows are read as 9, 7 columns as 9
            image, sizes = nn.functional.pad(image, (1, 1, 0, 1)), 0
        else:
            sizes = {"": 1, "same": 1, "valid": 0}.get(padding, padding)
        expected = nn.functional.conv2d(image[None], kernel, shares @ layer.bias, stride, sizes, groups=2)[0]
        assert_close(output, expected, 1e-5)


def test_timms_condconv():
    timm = pytest.importorskip("timm")
    for options in ({}, {"stride": 2, "padding": "same", "bias": True}, {"groups": 2, "padding": 1}):
        theirs = timm.layers.CondConv2d(6, 8, 3, num_experts=3, **options)
        torch.manual_seed(1)
        input, routing = torch.randn(4, 6, 9, 8), torch.rand(4, 3)
        expected = theirs(input, routing)
        ours = CondConv2d(6, 8, 3, num_experts=3, **options)
        ours.load_state_dict(theirs.state_dict())
        assert_close(ours(input, routing), expected, 1e-5)
        assert len(flexor.replace(theirs).swapped) == 1
        assert_close(theirs(input, routing), expected, 1e-5)


def test_dyconv():
    layer, input = DyConv2d(16, 8, 3, 2, 1), torch.randn(3, 16, 7, 6)
    layer.update_temperature(5.0)
    nn.init.normal_(layer.bias)
    shares = (layer.attention.fc2(layer.attention.fc1(input.mean((2, 3), keepdim=True)).relu()) / 5).flatten(1)
    shares = shares.softmax(1)
    for index, output in enumerate(layer(input)):
        kernel, bias = torch.einsum("n,noihw->oihw", shares[index], layer.weight), shares[index] @ layer.bias
        assert_close(output, nn.functional.conv2d(input[index : index + 1], kernel, bias, 2, 1)[0], 1e-5)
