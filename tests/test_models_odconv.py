# SPDX-License-Identifier: Apache-2.0
"""Networks of ODConvs: published sizes, checkpoints, conversion of a plain network, fusing, counting."""

import pickle

import pytest
import torch
from flexor.models import odconv
from flexor.nn import ODConv2d
from flexor.testing import assert_close
from torch import nn
from torch.utils._device import _device_constructors

# Parameters as published, and entries of the published code's state_dict.
PUBLISHED = {
    ("od_resnet18", 1): (11_943_944, 314),
    ("od_resnet18", 4): (44_901_640, 346),
    ("od_resnet34", 1): (22_290_168, 602),
    ("od_resnet34", 2): (43_377_624, 666),
    ("od_resnet34", 4): (85_551_288, 666),
    ("od_resnet50", 1): (28_635_112, 832),
    ("od_resnet50", 4): (90_670_888, 928),
    ("od_resnet101", 1): (50_818_769, 1682),
    ("od_resnet101", 2): (90_441_623, 1880),
    ("od_mobilenetv2_050", 1): (2_425_537, 824),
    ("od_mobilenetv2_050", 4): (4_435_501, 926),
    ("od_mobilenetv2_075", 1): (3_507_113, 824),
    ("od_mobilenetv2_075", 4): (7_496_013, 926),
    ("od_mobilenetv2_100", 1): (4_940_185, 824),
    ("od_mobilenetv2_100", 4): (11_512_149, 926),
}


def on_meta(name, **options):
    """A model without numbers, which takes no time to make."""
    _device_constructors.cache_clear()  # it may know the poisoned ones of another test
    with torch.device("meta"):
        return getattr(odconv, name)(**options)


@pytest.mark.compiles
@pytest.mark.parametrize(("name", "kernel_num"), PUBLISHED, ids=lambda v: str(v))
def test_published_sizes(name, kernel_num):
    model = on_meta(name, kernel_num=kernel_num)
    assert (sum(p.numel() for p in model.parameters()), len(model.state_dict())) == PUBLISHED[name, kernel_num]


@pytest.mark.compiles
def test_published_work():
    """The convolutions of the published code, and on top the mixing of kernels."""
    one, four = (odconv.count(on_meta("od_resnet18", kernel_num=n)) for n in (1, 4))
    assert abs(one.macs / 1.8143e9 - 1) < 1e-3
    assert abs((four.macs - one.macs) / (four.parameters - one.parameters) * 3 / 4 - 1) < 0.01


KEYS = {
    "od_resnet18": {
        "conv1.weight": (64, 3, 7, 7),
        "layer2.0.conv1.weight": (4, 128, 64, 3, 3),
        "layer2.0.conv1.attention.fc.weight": (16, 64, 1, 1),
        "layer2.0.conv1.attention.bn.running_var": (16,),
        "layer2.0.conv1.attention.spatial_fc.bias": (9,),
        "layer2.0.bn2.num_batches_tracked": (),
        "layer2.0.downsample.0.weight": (128, 64, 1, 1),
        "layer4.1.conv2.attention.kernel_fc.weight": (4, 32, 1, 1),
        "fc.weight": (10, 512),
    },
    "od_resnet50": {"layer1.0.conv3.weight": (4, 256, 64, 1, 1), "layer3.5.conv2.attention.filter_fc.bias": (256,)},
    "od_mobilenetv2_100": {
        "features.0.0.weight": (32, 3, 3, 3),
        "features.1.conv.0.0.weight": (4, 32, 1, 3, 3),
        "features.1.conv.1.attention.channel_fc.bias": (32,),
        "features.1.conv.2.running_mean": (16,),
        "features.2.conv.0.1.weight": (96,),
        "features.2.conv.1.0.attention.spatial_fc.weight": (9, 16, 1, 1),
        "features.2.conv.2.weight": (4, 24, 96, 1, 1),
        "features.18.0.attention.fc.weight": (20, 320, 1, 1),
        "classifier.1.bias": (10,),
    },
}


@pytest.mark.compiles
@pytest.mark.parametrize("name", KEYS)
def test_published_keys(name):
    state = on_meta(name, kernel_num=4, num_classes=10).state_dict()
    assert {key: tuple(state[key].shape) for key in KEYS[name]} == KEYS[name]
    assert "features.2.conv.1.0.attention.filter_fc.weight" not in state, "depth-wise: no attention to filters"


def test_options():
    model = odconv.od_resnet18(num_classes=7, dropout=0.3, reduction=0.5, kernel_num=2, norm="ln")
    assert model.fc.out_features == 7 and model.dropout.p == 0.3
    layers = [module for module in model.modules() if isinstance(module, ODConv2d)]
    assert len(layers) == 16 and all(layer.kernel_num == 2 for layer in layers)
    assert layers[0].attention.fc.out_channels == 32 and isinstance(layers[0].attention.bn, nn.GroupNorm)
    model.net_update_temperature(30.0)
    assert all(layer.attention.temperature == 30 for layer in layers)
    assert odconv.od_mobilenetv2_050(dropout=0.4).classifier[0].p == 0.4


@pytest.fixture(scope="module")
def small():
    """A small network, trained a little so that its statistics and temperatures are not those of the start."""
    torch.manual_seed(0)
    model = odconv.od_mobilenetv2_050(num_classes=5, kernel_num=2)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 32, 32)).logsumexp(1).mean().backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    return model.eval()


def test_official_checkpoints(small, tmp_path):
    """As the authors' script saves them, from a model in DistributedDataParallel, and as a bare state_dict."""
    state = {f"module.{key}": value for key, value in small.state_dict().items()}
    rest = {"epoch": 3, "acc": 61.5, "best_acc": 62.0, "optimizer": torch.optim.SGD(small.parameters(), 1).state_dict()}
    torch.save({"state_dict": state} | rest, tmp_path / "ddp.pth.tar")
    torch.save(small.state_dict(), tmp_path / "bare.pth")
    input = torch.randn(2, 3, 32, 32)
    for name in ("ddp.pth.tar", "bare.pth"):
        model = odconv.od_mobilenetv2_050(num_classes=5, kernel_num=2)
        assert odconv.load_official(model, tmp_path / name) is model
        assert_close(model.eval()(input), small(input), 1e-6)


class Evil:
    def __reduce__(self):
        return print, ("code from the checkpoint ran",)


def test_checkpoints_that_do_not_fit(small, tmp_path, capsys):
    path = tmp_path / "checkpoint.pth"
    torch.save(small.state_dict(), path)
    one_kernel = odconv.od_mobilenetv2_050(num_classes=5)
    classes = odconv.od_mobilenetv2_050(num_classes=6, kernel_num=2)
    with pytest.raises(ValueError, match=r"102 keys are unexpected \(features.1.*; its kernel_num is 2, the model's 1"):
        odconv.load_official(one_kernel, path)
    with pytest.raises(ValueError, match=r"2 shapes differ \(classifier.1.weight has \(5, 1280\), the model \(6, 1280"):
        odconv.load_official(classes, path)
    torch.save({key: value for key, value in small.state_dict().items() if "classifier" not in key}, path)
    with pytest.raises(ValueError, match=r"2 keys are missing \(classifier.1.bias, classifier.1.weight\)$"):
        odconv.load_official(small, path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match=r"checkpoint.pth holds no state_dict, but list"):
        odconv.load_official(small, path)
    path.write_bytes(pickle.dumps(Evil(), 2))
    with pytest.raises(ValueError, match=r"checkpoint.pth is no checkpoint of plain tensors"):
        odconv.load_official(small, path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"is no checkpoint of plain tensors"):
        odconv.load_official(small, path)
    assert "code" not in capsys.readouterr().out
    with pytest.raises(FileNotFoundError):
        odconv.load_official(small, tmp_path / "absent.pth")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(8, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12)
        self.conv2 = nn.Conv2d(12, 12, 1)
        self.downsample = nn.Sequential(nn.Conv2d(8, 12, 1, 2), nn.BatchNorm2d(12))

    def forward(self, x):
        return self.conv2(self.bn1(self.conv1(x)).relu()) + self.downsample(x)


class Subclass(nn.Conv2d):
    pass


def plain():
    """A stem, a block with a shortcut, one layer in two places, and convolutions that cannot be converted."""
    twice = nn.Conv2d(12, 12, 3, padding=1, groups=12)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), Block(), twice, nn.BatchNorm2d(12), twice,
        nn.Conv2d(12, 12, 3, padding=1, padding_mode="reflect"), Subclass(12, 6, 3), ODConv2d(6, 4, 1),
    )  # fmt: skip


def test_convert():
    """The same output at first; the stem, shortcuts and what may do something else stay static."""
    model, input = plain().eval(), torch.randn(2, 3, 16, 16)
    expected, untouched = model(input), model[7]
    report = odconv.convert(model, kernel_num=3, reduction=0.25)
    assert_close(model(input), expected, 1e-5)
    assert [entry.name for entry in report.swapped] == ["1.conv1", "1.conv2", "2", "4"]
    reasons = {entry.name: entry.outcome for entry in report.left}
    assert reasons["0"] == "the first one stays static"
    assert reasons["1.downsample.0"] == "a 1x1 shortcut stays static"
    assert "padding_mode must be 'zeros'" in reasons["5"] and "a subclass of torch.nn.Conv2d" in reasons["6"]
    assert model[2] is model[4] and model[2].kernel_num == 3 and model[7] is untouched
    assert isinstance(untouched.attention.fc, nn.Conv2d) and len(reasons) == 4
    assert "ODConv2d, kernel_num 3" in str(report) and "4 swapped, 4 left" in str(report)
    model.train()(input).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert not odconv.convert(model).swapped, "only what is static yet is converted"


def test_convert_as_told():
    model = plain()
    report = odconv.convert(model, skip=lambda name, conv: conv.groups > 1)
    assert [entry.name for entry in report.swapped] == ["0", "1.conv1", "1.conv2", "1.downsample.0"]
    assert [entry.outcome for entry in report.left if entry.name in ("2", "4")] == ["skip says so"] * 2
    with pytest.raises(TypeError, match=r"must contain its convolutions; for one, use ODConv2d.from_conv"):
        odconv.convert(nn.Conv2d(4, 4, 3))


def test_fuse(small):
    """All normalisations after convolutions are gone, those in the attentions stay; the model is not changed."""
    input = torch.randn(2, 3, 32, 32)
    expected, fused = small(input), odconv.fuse(small)
    assert_close(fused(input), expected, 1e-4)
    left = [name for name, module in fused.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert left and all(name.endswith("attention.bn") for name in left)
    assert_close(small(input), expected, 1e-7)


def test_fuse_leaves_what_is_used_twice():
    model, input = plain()[:5].eval(), torch.randn(2, 3, 16, 16)
    nn.init.normal_(model[3].running_mean)
    fused = odconv.fuse(model)
    assert isinstance(fused[3], nn.BatchNorm2d) and isinstance(fused[1].bn1, nn.Identity)
    assert_close(fused(input), model(input), 1e-5)


def test_count():
    """By hand: two convolutions, the attention's matrix products and the mixing of kernels."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), ODConv2d(8, 6, 3, 2, 1, groups=2, kernel_num=4))
    kernels = 6 * 4 * 9
    attention = 8 * 16 + 16 * (8 + 6 + 9 + 4)
    count = odconv.count(model, (3, 10, 12))
    assert count.macs == 10 * 12 * 3 * 8 * 9 + 5 * 6 * kernels + 4 * kernels + attention
    assert count.parameters == sum(p.numel() for p in model.parameters())
    assert next(model.parameters()).device.type == "cpu"


@pytest.mark.compiles
def test_compile_and_export():
    torch._dynamo.reset()
    model = odconv.InvertedResidual(8, 8, 1, 2, {"kernel_num": 2}).eval()
    input = torch.randn(2, 8, 7, 7)
    with torch.no_grad():
        assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(input), model(input), 1e-5)
        batch = torch.export.Dim("batch", min=1)
        program = torch.export.export(model, (input,), dynamic_shapes=({0: batch},))
        assert_close(program.module()(input[:1]), model(input[:1]), 1e-5)
