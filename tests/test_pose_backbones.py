# SPDX-License-Identifier: Apache-2.0
"""HRNet, SimpleBaseline and RTMPose: the official numbers, names and sizes; what training and inference need."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from flexor.models.pose.dcpose import dcpose
from flexor.models.pose.dkd import DKD
from flexor.models.pose.hrnet import HRNet, hrnet_w32, hrnet_w48
from flexor.models.pose.inference import for_inference
from flexor.models.pose.okdhp import okdhp
from flexor.models.pose.resnet import BasicBlock, Bottleneck, ResNet
from flexor.models.pose.rtmpose import RTMPose, rtmpose
from flexor.models.pose.simple_baseline import SimpleBaseline, simple_baseline
from flexor.nn import Conv3x3
from flexor.testing import assert_close, error
from pose_weights import drawn, drawn_state
from torch import nn
from torch.utils._device import _device_constructors

GOLDEN = np.load(Path(__file__).parent / "data" / "pose_backbones_golden.npz")
# Name in the golden file: the network, the images' (H, W), the gain of its weights.
CASES = {
    "hrnet_w32": (hrnet_w32, (64, 96), 0.6),
    "hrnet_w48": (hrnet_w48, (64, 64), 0.6),
    "simple_baseline_18": (functools.partial(simple_baseline, 18), (64, 96), 1.0),
    "simple_baseline_50": (simple_baseline, (96, 64), 1.0),
    "rtmpose_t": (functools.partial(rtmpose, "t"), (256, 192), 2.0),
    "rtmpose_s": (functools.partial(rtmpose, "s", input_size=(96, 64)), (96, 64), 2.0),
    "rtmpose_m": (functools.partial(rtmpose, "m", input_size=(96, 64)), (96, 64), 2.0),
    "rtmpose_l": (functools.partial(rtmpose, "l", 133, (64, 64)), (64, 64), 2.0),
}


def loaded(name):
    """The network of a case with the golden file's weights, and its images."""
    make, size, gain = CASES[name]
    model = make().eval()
    model.load_state_dict(drawn_state(model.state_dict(), gain))
    return model, drawn("images", (2, 3, *size), gain=10 * 3 * size[0] * size[1])


def tensors(output):
    return output if isinstance(output, tuple) else (output,)


def sampled(tensor):
    return torch.from_numpy(np.random.default_rng(0).choice(tensor.detach().numpy().ravel(), 600))


@pytest.mark.parametrize("name", CASES)
def test_official(name):
    """Names, outputs and input gradients of the official modules; see data/make_pose_backbones_golden.py."""
    model, images = loaded(name)
    keys = [f"{key} {','.join(map(str, value.shape))}" for key, value in model.state_dict().items()]
    assert sorted(keys) == sorted(bytes(GOLDEN[f"{name}/keys"]).decode().split("\n"))
    with torch.no_grad():
        single = tensors(model(images))
    outputs = tensors(model.double()(images := images.double().requires_grad_()))
    for i, output in enumerate(outputs):
        exact = torch.from_numpy(GOLDEN[f"{name}/output{i}"])
        assert_close(sampled(output), exact, 1e-6, what=f"output {i}")
        assert_close(sampled(single[i]), exact, 1e-4, what=f"output {i} in float32")
    sum((output * drawn(f"grad{i}", output.shape)).sum() for i, output in enumerate(outputs)).backward()
    exact = torch.from_numpy(GOLDEN[f"{name}/grad"])
    assert (sampled(images.grad) - exact).norm() < 1e-6 * exact.norm()


# As published, or as published to three digits (HRNet-W32, SimpleBaseline); the ResNets with torchvision's classifier.
SIZES = {
    (HRNet, 48): 63_595_745,
    (HRNet, 32): 28_536_113,
    (SimpleBaseline, 50): 33_999_697,
    (SimpleBaseline, 101): 52_991_825,
    (SimpleBaseline, 152): 68_635_473,
    (RTMPose, "t"): 3_337_007,
    (RTMPose, "s"): 5_473_251,
    (RTMPose, "m"): 13_587_611,
    (RTMPose, "l"): 27_660_339,
    (RTMPose, "m", 17, (384, 288)): 13_717_659,
    (RTMPose, "l", 17, (384, 288)): 27_790_387,
    (RTMPose, "x", 17, (384, 288)): 49_434_283,
    (ResNet, 18): 11_689_512,
    (ResNet, 34): 21_797_672,
    (ResNet, 50): 25_557_032,
    (ResNet, 101): 44_549_160,
    (ResNet, 152): 60_192_808,
}


@pytest.mark.compiles
@pytest.mark.parametrize("case", SIZES, ids=lambda case: "-".join(map(str, (case[0].__name__, *case[1:]))))
def test_published_sizes(case):
    _device_constructors.cache_clear()  # it may know the poisoned ones of another test
    with torch.device("meta"):
        model = case[0](*case[1:])
    classifier = 1000 * model.channels + 1000 if type(model) is ResNet else 0
    assert sum(p.numel() for p in model.parameters()) + classifier == SIZES[case]


@pytest.mark.parametrize("name", ["hrnet_w32", "simple_baseline_18"])
def test_features(name):
    model, images = loaded(name)
    with torch.no_grad():
        features = model.features(images)
        assert features.shape == (2, 32 if name == "hrnet_w32" else 256, 16, 24)
        assert torch.equal(model.final_layer(features), model(images))


def test_whole_body():
    x, y = rtmpose("t", joints=133, input_size=(64, 96)).eval()(torch.randn(1, 3, 64, 96))
    assert x.shape == (1, 133, 192) and y.shape == (1, 133, 128)


@pytest.mark.parametrize("make", [lambda: HRNet(8), lambda: simple_baseline(18), lambda: rtmpose("t", 17, (64, 64))])
def test_training_reaches_every_parameter(make):
    model = make().train()
    model.load_state_dict(drawn_state(model.state_dict(), gain=1.0))
    statistics = {name: value.clone() for name, value in model.named_buffers()}
    sum(output.square().sum() for output in tensors(model(torch.randn(2, 3, 64, 64)))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name
    for name, value in model.named_buffers():
        assert not torch.equal(value, statistics[name]), name


def test_initialisation():
    """The official laws: N(0, 0.001) in HRNet and heads, He's in the ResNet, N(0, 0.01) in RTMPose's linear layers."""
    model = HRNet(16)
    for layer in (m for m in model.modules() if isinstance(m, nn.Conv2d) and m.weight.numel() > 5000):
        assert abs(layer.weight.std() / 0.001 - 1) < 0.1
    baseline = simple_baseline(18)
    assert abs(baseline.layer3[0].conv1.weight.std() / (2 / (256 * 9)) ** 0.5 - 1) < 0.02
    pose = rtmpose("t")
    for layer in (*baseline.deconv_layers[::3], baseline.final_layer, pose.head.final_layer):
        assert abs(layer.weight.std() / 0.001 - 1) < 0.05
    for layer in (pose.head.mlp[1], pose.head.gau.uv, pose.head.gau.o, pose.head.cls_x, pose.head.cls_y):
        assert abs(layer.weight.std() / 0.01 - 1) < 0.05
    assert abs(pose.backbone.stem[2].conv.weight.std() / (1 / (3 * 12 * 9)) ** 0.5 - 1) < 0.1
    attention = pose.backbone.stage1[1].attention
    for head in (model.final_layer, baseline.final_layer, pose.head.final_layer, attention.fc):
        assert not head.bias.any()


@pytest.mark.parametrize("name", ["hrnet_w32", "simple_baseline_50", "rtmpose_t"])
def test_for_inference(name):
    """The same numbers, without and with channels last; the network itself is as it was."""
    model, images = loaded(name)
    fused, before = for_inference(model.train()), {k: v.clone() for k, v in model.state_dict().items()}
    assert model.training and not fused.training and not any(p.requires_grad for p in fused.parameters())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert not any(isinstance(module, Conv3x3) for module in model.modules())
    assert any(isinstance(module, Conv3x3) for module in fused.modules())
    assert all(p.requires_grad for p in model.parameters())
    with torch.no_grad():
        exact = tensors(model.eval()(images))
        for network in (fused, fused.to(memory_format=torch.channels_last)):
            for actual, expected in zip(tensors(network(images)), exact, strict=True):
                assert_close(actual, expected, 1e-5)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_for_inference_of_the_estimators():
    """The networks that are built on these: their own blocks fold as well."""
    cases = [
        (dcpose(17, backbone=HRNet(8)), (drawn("frames", (1, 9, 64, 64)), torch.ones(1, 2)), 0),
        (okdhp(2, 2), (drawn("images", (1, 3, 64, 64)),), 59),  # norms that come before their convolution
        (DKD(18, encoder_depth=18, width=32), (drawn("clip", (1, 2, 3, 64, 64)),), 0),
    ]
    for model, inputs, left in cases:
        model.load_state_dict(drawn_state(model.state_dict(), gain=0.2))
        fused, inputs = for_inference(model.eval().double()), [input.double() * 100 for input in inputs]
        assert sum(isinstance(module, nn.BatchNorm2d) for module in fused.modules()) == left, type(model).__name__
        with torch.no_grad():
            actual, expected = (getattr(output, "ensemble", output) for output in (fused(*inputs), model(*inputs)))
        assert_close(actual, expected, 1e-12, what=type(model).__name__)


def test_for_inference_leaves():
    """A norm that follows no convolution, or one of other channels, or a grouped transposed one, or is the batch's."""
    pre_activated = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 1), nn.ReLU(), nn.BatchNorm2d(6))
    elsewhere = nn.ModuleList([nn.Conv2d(4, 6, 1), nn.BatchNorm2d(4)])
    by_batch = nn.Sequential(nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6, track_running_stats=False))
    grouped = nn.Sequential(nn.ConvTranspose2d(4, 4, 2, groups=2), nn.BatchNorm2d(4))
    for model in (pre_activated, elsewhere, by_batch, grouped):
        kinds = [type(module) for module in model.modules()]
        assert [type(module) for module in for_inference(model).modules()] == kinds
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got function"):
        for_inference(hrnet_w32)


def test_for_inference_grouped():
    """Transposed, depth-wise, strided, dilated, with a bias: each folded as it computes."""
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, 2, 1, bias=True),
        nn.BatchNorm2d(8, eps=0.1),
        nn.Conv2d(8, 8, 3, 1, 2, dilation=2, groups=8, bias=False),
        nn.BatchNorm2d(8, affine=False),
        nn.ConvTranspose2d(8, 6, 4, 2, 1),
        nn.BatchNorm2d(6),
    ).double()
    model.load_state_dict(drawn_state(model.state_dict()))
    model.eval()
    fused, input = for_inference(model), torch.randn(2, 4, 9, 11, dtype=torch.float64)
    assert [type(layer) for layer in fused[1::2]] == [nn.Identity] * 3
    assert_close(fused(input), model(input), 1e-12)


@pytest.mark.compiles
def test_export():
    model, images = loaded("rtmpose_s")
    exported = torch.export.export(model, (images,)).module()
    for actual, expected in zip(exported(images), model(images), strict=True):
        assert error(actual, expected) < 1e-5


def test_blocks():
    """A shortcut has weights only where the shape changes."""
    for block, outputs in ((BasicBlock, 8), (Bottleneck, 32)):
        assert not any("downsample" in key for key in block(outputs, 8).state_dict())
        for inputs, stride in ((outputs, 2), (5, 1)):
            made = block(inputs, 8, stride)
            assert made.state_dict()["downsample.0.weight"].shape == (outputs, inputs, 1, 1)
            assert made(torch.randn(1, inputs, 6, 6)).shape == (1, outputs, 6 // stride, 6 // stride)


ERRORS = [
    (lambda: simple_baseline(49), ValueError, "SimpleBaseline: depth must be one of 18, 34, 50, 101, 152, got 49"),
    (lambda: ResNet(0), ValueError, "ResNet: depth must be one of"),
    (lambda: rtmpose("xl"), ValueError, "RTMPose: variant must be one of t, s, m, l, x, got 'xl'"),
    (lambda: rtmpose("t", 17, (256, 200)), ValueError, r"input_size must be \(H, W\), both positive multiples of 32"),
    (lambda: rtmpose("t", 17, (0, 192)), ValueError, r"input_size must be \(H, W\), .*got \(0, 192\)"),
    (lambda: rtmpose("t", 17, (256,)), ValueError, r"input_size must be \(H, W\), .*got \(256,\)"),
    (lambda: HRNet(0), ValueError, "HRNet: width must be at least 1, got 0"),
    (lambda: HRNet(4, 0), ValueError, "HRNet: joints must be at least 1, got 0"),
    (lambda: simple_baseline(18, -1), ValueError, "SimpleBaseline: joints must be at least 1, got -1"),
    (lambda: rtmpose("t", 0), ValueError, "RTMPose: joints must be at least 1, got 0"),
    (lambda: HRNet(4, 2.0), TypeError, "HRNet: joints must be an integer, got 2.0"),
]


@pytest.mark.parametrize(("call", "kind", "message"), ERRORS)
def test_construction_errors(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


@pytest.mark.parametrize("make", [lambda: HRNet(4), lambda: simple_baseline(18), lambda: rtmpose("t")])
def test_image_errors(make):
    model = make().eval()
    name = type(model).__name__
    with pytest.raises(ValueError, match=rf"{name}: images must be \(B, 3, H, W\), got \(1, 4, 64, 64\)"):
        model(torch.zeros(1, 4, 64, 64))
    with pytest.raises(ValueError, match=rf"{name}: images must be \(B, 3, H, W\), got \(3, 64, 64\)"):
        model(torch.zeros(3, 64, 64))
    with pytest.raises(ValueError, match=f"{name}: .*multiples of 32, got 64 x 40: crop or pad the images"):
        model(torch.zeros(1, 3, 64, 40))
    with pytest.raises(ValueError, match="multiples of 32, got 0 x 64"):
        model(torch.zeros(1, 3, 0, 64))
    with pytest.raises(TypeError, match=f"{name}: images must be floating point, .*, got torch.uint8"):
        model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


def test_other_input_size():
    with pytest.raises(ValueError, match=r"RTMPose: images must be 256 x 192, the input_size that .*, got 64 x 64"):
        rtmpose("t")(torch.zeros(1, 3, 64, 64))
