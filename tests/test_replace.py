# SPDX-License-Identifier: Apache-2.0
"""flexor.replace on live models, with torchvision's layers and with stand-ins that have mmcv's names and attributes."""

import copy

import flexor
import pytest
import torch
from flexor import reference
from flexor.testing import assert_close
from torch import Tensor, nn
from torch.nn.modules.utils import _pair, _single


def stands_in(module: str, name: str):
    """Gives a class the name by which replace knows the original."""

    def rename(cls):
        cls.__module__, cls.__qualname__, cls.__name__ = module, name, name
        return cls

    return rename


@stands_in("torchvision.ops.deform_conv", "DeformConv2d")
class TorchvisionLayer(nn.Module):
    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1, bias=True):
        super().__init__()
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride = _pair(kernel_size), _pair(stride)
        self.padding, self.dilation = _pair(padding), _pair(dilation)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels // groups, *self.kernel_size))
        self.bias = nn.Parameter(torch.randn(out_channels)) if bias else None

    def forward(self, input: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
        geometry = self.stride, self.padding, self.dilation
        return reference.deform_conv2d(input, offset, self.weight, self.bias, *geometry, mask)


class MmcvLayer(nn.Module):
    """The attributes that all of mmcv's layers have; no `bias` in the first version."""

    def __init__(
        self, in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1, deform_groups=1
    ):
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride = _pair(kernel_size), _pair(stride)
        self.padding, self.dilation = _pair(padding), _pair(dilation)
        self.groups, self.deform_groups, self.im2col_step = groups, deform_groups, 32
        self.transposed, self.output_padding = False, _single(0)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels // groups, *self.kernel_size))

    def run(self, x, offset, mask=None):
        bias = getattr(self, "bias", None)
        return reference.deform_conv2d(x, offset, self.weight, bias, self.stride, self.padding, self.dilation, mask)

    def predictor(self, per_tap):
        channels = per_tap * self.deform_groups * self.kernel_size[0] * self.kernel_size[1]
        return nn.Conv2d(self.in_channels, channels, self.kernel_size, self.stride, self.padding, self.dilation)


@stands_in("mmcv.ops.deform_conv", "DeformConv2d")
class MmcvDeform(MmcvLayer):
    def forward(self, x, offset):
        return self.run(x, offset)


@stands_in("mmcv.ops.deform_conv", "DeformConv2dPack")
class MmcvDeformPack(MmcvLayer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.conv_offset = self.predictor(2)

    def forward(self, x):
        return self.run(x, self.conv_offset(x))


@stands_in("mmcv.ops.modulated_deform_conv", "ModulatedDeformConv2d")
class MmcvModulated(MmcvLayer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.bias = nn.Parameter(torch.randn(self.out_channels))

    def forward(self, x, offset, mask):
        return self.run(x, offset, mask)


@stands_in("mmcv.ops.modulated_deform_conv", "ModulatedDeformConv2dPack")
class MmcvModulatedPack(MmcvModulated):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.conv_offset = self.predictor(3)

    def forward(self, x):
        first, second, mask = self.conv_offset(x).chunk(3, 1)
        return self.run(x, torch.cat((first, second), 1), mask.sigmoid())


class Model(nn.Module):
    def __init__(self, torchvision_layer=TorchvisionLayer):
        super().__init__()
        self.predict = nn.Conv2d(4, 27, 3, padding=1)
        self.deform = torchvision_layer(4, 4, 3, padding=1)
        self.packs = nn.Sequential(
            MmcvDeformPack(4, 4, 3, padding=1, deform_groups=2), nn.ReLU(), MmcvModulatedPack(4, 4, 3, padding=1)
        )
        self.first, self.second = MmcvDeform(4, 4, 3, padding=1), MmcvModulated(4, 6, 3, padding=1)
        self.shared = self.deform

    def forward(self, x):
        offset, mask = self.predict(x).split([18, 9], 1)
        x = self.packs(self.deform(x, offset, mask) + self.shared(x, offset))
        return self.second(self.first(x, offset), offset, mask)


def test_same_output_and_same_training():
    torch.manual_seed(0)
    model = Model()
    original = copy.deepcopy(model)
    report = flexor.replace(model)
    assert len(report.swapped) == 5 and not report.left
    inputs = [torch.randn(2, 4, 6, 7) for _ in range(6)]
    assert_close(model(inputs[0]), original(inputs[0]), 1e-5)
    curves = []
    for trained in (model, original):
        optimizer = torch.optim.SGD(trained.parameters(), 1e-4)
        curves.append([])
        for input in inputs:
            loss = trained(input).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curves[-1].append(loss.detach())
    assert_close(torch.stack(curves[0]), torch.stack(curves[1]), 1e-4)
    assert curves[0][-1] != curves[0][0]


def test_everything_but_the_code_stays():
    model = Model().double().eval()
    model.deform.train()
    model.second.weight.requires_grad_(False)
    calls = []
    model.first.register_forward_hook(lambda *_: calls.append("hook"))
    before, keys, objects = dict(model.named_parameters()), list(model.state_dict()), list(model.modules())
    flexor.replace(model)
    after = dict(model.named_parameters())
    assert list(before) == list(after) and all(after[name] is before[name] for name in before)
    assert list(model.state_dict()) == keys
    assert all(a is b for a, b in zip(model.modules(), objects, strict=True))
    assert model.deform is model.shared and model.deform.training and not model.first.training
    assert not model.second.weight.requires_grad
    model(torch.randn(1, 4, 5, 5, dtype=torch.float64))
    assert calls == ["hook"]
    assert type(model.deform) is flexor.nn.DeformConv2d
    assert type(model.first) is flexor.compat.mmcv.DeformConv2d
    assert type(model.packs[2]) is flexor.nn.ModulatedDeformConv2dPack
    repr(model)


def test_what_is_left_and_why():
    class Custom(TorchvisionLayer):
        def forward(self, input):
            return input

    @stands_in("basicsr.ops.dcn.deform_conv", "DCNv2Pack")
    class Unknown(nn.Module):
        pass

    model = nn.ModuleDict({"custom": Custom(2, 2, 3), "other": Unknown(), "patched": TorchvisionLayer(2, 2, 3)})
    model["patched"].forward = lambda input: input
    report = flexor.replace(model)
    assert not report.swapped
    reasons = {entry.name: entry.outcome for entry in report.left}
    assert "a subclass of torchvision.ops.deform_conv.DeformConv2d" in reasons["custom"]
    assert reasons["other"] == "no layer that flexor knows"
    assert "forward was replaced" in reasons["patched"]
    text = str(report)
    assert "left: no layer that flexor knows" in text and text.endswith("0 swapped, 3 left")


def test_the_model_itself_and_again():
    layer = TorchvisionLayer(2, 2, 3)
    report = flexor.replace(layer)
    assert type(layer) is flexor.nn.DeformConv2d and report.swapped[0].name == "(model)"
    assert "flexor.nn.deform_conv2d.DeformConv2d" in str(report)
    again = flexor.replace(layer)
    assert not again.swapped and not again.left


def test_state_dict_goes_both_ways():
    theirs = Model()
    ours = copy.deepcopy(theirs)
    flexor.replace(ours)
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())


def test_torchvision_itself():
    torchvision_ops = pytest.importorskip("torchvision.ops")
    model = Model(torchvision_ops.DeformConv2d)
    original, input = copy.deepcopy(model), torch.randn(2, 4, 6, 7)
    assert len(flexor.replace(model).swapped) == 5
    assert_close(model(input), original(input), 1e-5)


@pytest.mark.compiles
def test_compiles_after():
    model = Model()
    flexor.replace(model)
    input = torch.randn(2, 4, 6, 7)
    torch._dynamo.reset()
    assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(input), model(input), 1e-5)
