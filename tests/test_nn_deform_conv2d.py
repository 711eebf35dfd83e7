# SPDX-License-Identifier: Apache-2.0
"""The modules: constructors, state_dicts, initialisation and quirks of torchvision's and mmcv's."""

import math

import flexor
import pytest
import torch
from flexor import reference
from flexor.compat import mmcv
from flexor.nn import DeformConv2d, DeformConv2dPack, ModulatedDeformConv2d, ModulatedDeformConv2dPack
from flexor.testing import assert_close
from torch import nn


def test_torchvisions_layer():
    layer = DeformConv2d(4, 6, 3, 2, 1, 2, 2, bias=False)
    assert list(layer.state_dict()) == ["weight"] and layer.bias is None
    assert repr(layer) == (
        "DeformConv2d(4, 6, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), dilation=(2, 2), groups=2, bias=False)"
    )
    assert repr(DeformConv2d(4, 6, (3, 1))) == "DeformConv2d(4, 6, kernel_size=(3, 1), stride=(1, 1))"
    layer = DeformConv2d(4, 6, 3, padding=1)
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert layer.weight.abs().max() <= 1 / math.sqrt(36) and layer.bias.abs().max() <= 1 / math.sqrt(36)
    input, offset, mask = torch.randn(2, 4, 5, 5), torch.randn(2, 18, 5, 5), torch.rand(2, 9, 5, 5)
    for extra in ((), (mask,)):
        expected = reference.deform_conv2d(
            input, offset, layer.weight, layer.bias, (1, 1), (1, 1), (1, 1), *(extra or (None,))
        )
        assert_close(layer(input, offset, *extra), expected, 1e-5)


def test_same_as_torchvisions():
    torchvision_ops = pytest.importorskip("torchvision.ops")
    for options in ({}, {"stride": 2, "padding": 1, "groups": 2}, {"bias": False, "dilation": (1, 2)}):
        torch.manual_seed(1)
        theirs = torchvision_ops.DeformConv2d(4, 6, 3, **options)
        torch.manual_seed(1)
        ours = DeformConv2d(4, 6, 3, **options)
        assert repr(ours) == repr(theirs)
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


PACKS = [
    (DeformConv2dPack, ["weight", "conv_offset.weight", "conv_offset.bias"], 2),
    (ModulatedDeformConv2dPack, ["weight", "bias", "conv_offset.weight", "conv_offset.bias"], 3),
]


@pytest.mark.parametrize(("kind", "keys", "per_tap"), PACKS, ids=lambda p: getattr(p, "__name__", None))
def test_packs(kind, keys, per_tap):
    """At first they are plain convolutions (half of one with a mask, which starts at a half)."""
    layer = kind(4, 6, 3, stride=2, padding=1, groups=2, deform_groups=2)
    assert list(layer.state_dict()) == keys
    assert layer.conv_offset.out_channels == per_tap * 2 * 9
    input = torch.randn(3, 4, 7, 8)
    expected = nn.functional.conv2d(input, layer.weight, None, 2, 1, 1, 2) / (per_tap - 1)
    assert_close(layer(input), expected, 1e-5)
    nn.init.normal_(layer.conv_offset.weight)
    layer(input).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in layer.parameters())


def test_offsets_are_the_first_two_thirds():
    layer = ModulatedDeformConv2dPack(2, 3, 3, padding=1, deform_groups=2)
    nn.init.normal_(layer.conv_offset.weight)
    input = torch.randn(1, 2, 5, 5)
    offset, mask = layer.conv_offset(input).split([36, 18], 1)
    expected = reference.deform_conv2d(input, offset, layer.weight, layer.bias, padding=(1, 1), mask=mask.sigmoid())
    assert_close(layer(input), expected, 1e-5)


@pytest.mark.parametrize("kind", [DeformConv2dPack, ModulatedDeformConv2dPack])
def test_checkpoints_from_before_version_2(kind):
    """Then `conv_offset` stood beside the layer: backbone.conv2_offset.weight."""

    class Backbone(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv2 = kind(4, 4, 3)

    old = Backbone().state_dict()
    renamed = {key.replace("conv2.conv_offset", "conv2_offset"): torch.randn_like(value) for key, value in old.items()}
    model, missing, unexpected, errors = Backbone(), [], [], []
    for name, module in model.named_modules():  # as mmengine loads: every module sees every key
        prefix = f"{name}." if name else ""
        module._load_from_state_dict(renamed, prefix, {}, True, missing, unexpected, errors)
    assert not missing and not errors
    assert torch.equal(model.conv2.conv_offset.weight, renamed["conv2.conv_offset.weight"])
    assert old._metadata["conv2"]["version"] == 2
    again = Backbone()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.conv2.conv_offset.bias, model.conv2.conv_offset.bias)


def test_mmcv_initialisation():
    layer = ModulatedDeformConv2d(16, 8, 3, groups=2)
    assert layer.weight.abs().max() <= 1 / math.sqrt(16 * 9) and layer.bias.eq(0).all()
    assert layer.transposed is False and layer.output_padding == (0,)
    assert ModulatedDeformConv2d(4, 4, 3, bias=False).bias is None
    assert ModulatedDeformConv2d(4, 4, 3, bias="auto").bias is not None
    with pytest.warns(DeprecationWarning, match="deform_groups"):
        assert ModulatedDeformConv2d(4, 4, 3, deformable_groups=2).deform_groups == 2
    weight = mmcv.DeformConv2d(64, 64, 3).weight
    assert abs(weight.std() - math.sqrt(2 / 576)) < 0.1 * math.sqrt(2 / 576)


@pytest.mark.parametrize("size", [(2, 5), (1, 1), (3, 2)])
def test_mmcv_pads_small_images(size):
    layer = mmcv.DeformConv2d(2, 3, 3, padding=1)
    input, offset = torch.randn(5, 2, *size), torch.randn(5, 18, *size)
    below, right = max(3 - size[0], 0), max(3 - size[1], 0)
    padded = [nn.functional.pad(t, (0, right, 0, below)) for t in (input, offset)]
    expected = reference.deform_conv2d(*padded, layer.weight, padding=(1, 1))[..., : size[0], : size[1]]
    assert_close(layer(input, offset), expected, 1e-5)


def test_mmcv_functions():
    """Its order of arguments, and everything in the dtype of the offsets."""
    input, weight, bias = torch.randn(3, 4, 5, 5), torch.randn(6, 2, 3, 3), torch.randn(6)
    offset, mask = torch.randn(3, 36, 5, 5), torch.rand(3, 18, 5, 5)
    expected = reference.deform_conv2d(input, offset, weight, None, (1, 1), (1, 1))
    assert_close(mmcv.deform_conv2d(input, offset, weight, 1, 1, 1, 2, 2, False, 2), expected, 1e-5)
    expected = reference.deform_conv2d(input, offset, weight, bias, (1, 1), (1, 1), mask=mask)
    assert_close(mmcv.modulated_deform_conv2d(input, offset, mask, weight, bias, 1, 1, 1, 2, 2), expected, 1e-5)
    half = mmcv.modulated_deform_conv2d(input, offset.half(), mask, weight, bias, 1, 1, 1, 2, 2)
    assert half.dtype == torch.float16


def test_errors():
    with pytest.raises(ValueError, match="multiples of groups = 3, got 4 and 6"):
        DeformConv2d(4, 6, 3, groups=3)
    with pytest.raises(ValueError, match="bias must be False"):
        DeformConv2dPack(4, 4, 3, bias=True)
    layer = ModulatedDeformConv2d(4, 4, 3, padding=1, deform_groups=2)
    input = torch.randn(1, 4, 5, 5)
    with pytest.raises(ValueError, match=r"offset.shape\[1\] must be 2\*deform_groups\*kh\*kw = 36, got 18"):
        layer(input, torch.zeros(1, 18, 5, 5), torch.zeros(1, 9, 5, 5))
    with pytest.raises(ValueError, match=r"groups\*weight.shape\[1\] = 8, got 4"):
        mmcv.deform_conv2d(input, torch.zeros(1, 18, 3, 3), torch.zeros(4, 4, 3, 3), groups=2)
    with pytest.raises(ValueError, match=r"2\*deform_groups\*kh\*kw = 36, got 18"):
        mmcv.deform_conv2d(input, torch.zeros(1, 18, 3, 3), torch.zeros(4, 4, 3, 3), deform_groups=2)


@pytest.mark.compiles
def test_pack_compiles_and_exports():
    layer = ModulatedDeformConv2dPack(4, 6, 3, padding=1)
    nn.init.normal_(layer.conv_offset.weight)
    input = torch.randn(2, 4, 6, 5)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert_close(compiled(input), layer(input), 1e-6)
    assert_close(torch.export.export(layer, (input,)).module()(input), layer(input), 1e-6)


def test_half_precision_model():
    layer = flexor.nn.ModulatedDeformConv2dPack(4, 6, 3, padding=1).bfloat16()
    output = layer(torch.randn(2, 4, 6, 5, dtype=torch.bfloat16))
    output.float().sum().backward()
    assert output.dtype == torch.bfloat16 and layer.weight.grad.isfinite().all()
