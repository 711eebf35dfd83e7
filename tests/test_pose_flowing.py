# SPDX-License-Identifier: Apache-2.0
"""Flowing ConvNets against a network written from the released Caffe file's numbers, and grid_sample for the warp."""

import pytest
import torch
import torch.nn.functional as F
from flexor.models.pose.flowing_convnet import (
    FlowingConvNet,
    FusedHeatmaps,
    SpatialFusionNet,
    flowing_convnet,
    resize_flow,
    spatial_fusion_loss,
)
from flexor.testing import assert_close, running, ways
from pose_weights import drawn, drawn_state

# models/heatmap-flic-fusion/train_val.prototxt: name, num_output, kernel_size, pad, whether a ReLU follows.
CAFFE = {
    "conv1": (128, 5, 2, True),
    "conv2": (128, 5, 2, True),
    "conv3": (128, 5, 2, True),
    "conv4": (256, 9, 4, True),
    "conv5": (512, 9, 4, True),
    "conv6": (256, 1, 0, True),
    "conv7": (256, 1, 0, True),
    "conv8": (7, 1, 0, True),
    "conv1_fusion": (64, 7, 3, True),
    "conv2_fusion": (64, 13, 6, True),
    "conv3_fusion": (128, 13, 6, True),
    "conv4_fusion": (256, 1, 0, True),
    "conv5_fusion": (7, 1, 0, False),
}


def caffe(state, images):
    """Every layer's output, as Caffe computes the file: bottoms by name, ReLUs in place, pools of 2."""
    tops, bottom = {"pool": images}, images
    for name, (outputs, side, pad, relu) in CAFFE.items():
        if name == "conv1_fusion":
            bottom = torch.cat((tops["conv3"], tops["conv7"]), 1)
        weight = state[f"{name}.weight"]
        assert weight.shape == (outputs, bottom.shape[1], side, side)
        top = F.conv2d(bottom, weight, state[f"{name}.bias"], padding=pad)
        bottom = tops[name] = top.clamp(min=0) if relu else top
        if name in ("conv1", "conv2"):
            bottom = F.max_pool2d(bottom, 2, stride=2)
    return tops


@pytest.fixture(scope="module")
def spatial():
    with torch.device("meta"):
        made = SpatialFusionNet()
    made.load_state_dict(drawn_state(made.state_dict()), assign=True)
    return made


def test_caffe_numbers(spatial):
    images = drawn("images", (2, 3, 24, 32), gain=3.0 * 24 * 32)
    with torch.no_grad():
        found, tops = spatial(images), caffe(spatial.state_dict(), images)
    assert found.fused.shape == (2, 7, 6, 8)
    assert_close(found.fused, tops["conv5_fusion"], 1e-5)
    assert_close(found.heatmaps, tops["conv8"], 1e-5)
    assert (found.fused < 0).any() and (found.heatmaps == 0).any()


def test_caffe_layers_and_size():
    with torch.device("meta"):
        model = flowing_convnet()
        state = model.spatial.state_dict()
        assert model(torch.empty(1, 31, 3, 256, 256), torch.empty(1, 30, 2, 256, 256)).shape == (1, 7, 64, 64)
    assert {key.split(".")[0]: value.shape[0] for key, value in state.items()} == {k: v[0] for k, v in CAFFE.items()}
    assert len(state) == 2 * len(CAFFE)
    by_hand, before = 0, 3
    for name, (outputs, side, _, _) in CAFFE.items():
        before = 128 + 256 if name == "conv1_fusion" else before
        by_hand += outputs * (before * side * side + 1)
        before = outputs
    assert sum(p.numel() for p in model.spatial.parameters()) == by_hand == 17_615_886
    assert model.pooling.weight.numel() == 7 * 31


def sampled(heatmaps, flow):
    """Heatmaps (N, K, h, w) at p + flow(p)."""
    h, w = heatmaps.shape[2:]
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    grid = torch.stack(((x + flow[:, 0]) * 2 / (w - 1) - 1, (y + flow[:, 1]) * 2 / (h - 1) - 1), -1)
    return F.grid_sample(heatmaps, grid, align_corners=True)


@pytest.mark.parametrize("way", ways("warp2d"), ids=str)
def test_pooling_along_the_flow(way):
    """Against grid_sample and a weighted sum; the flow is four times as fine as the heatmaps, and leaves them."""
    with torch.device("meta"):
        model = FlowingConvNet(3, neighbours=2)
    model.load_state_dict(drawn_state(model.state_dict()), assign=True)
    heatmaps, flow = torch.randn(2, 5, 3, 12, 9), 12 * torch.randn(2, 4, 2, 48, 36)
    with running(way), torch.no_grad():
        found = model.to(way.device).pool(heatmaps.to(way.device), flow.to(way.device))
    small = flow.view(2, 4, 2, 12, 4, 9, 4).mean((4, 6)) / 4
    weight, expected = model.pooling.weight.detach().cpu().view(3, 5), torch.zeros(2, 3, 12, 9)
    for frame in range(5):
        neighbour = frame - (frame > 2)
        aligned = heatmaps[:, frame] if frame == 2 else sampled(heatmaps[:, frame], small[:, neighbour])
        expected += weight[:, frame, None, None] * aligned
    assert_close(found, expected, 1e-5)


def test_a_moving_joint_is_pooled_in_its_place():
    """A Gaussian that moves 2 heatmap pixels a frame: with the true flow, every frame says the same as the middle."""
    y, x = torch.meshgrid(torch.arange(24.0), torch.arange(32.0), indexing="ij")

    def at(px, py):
        return torch.exp(-((x - px) ** 2 + (y - py) ** 2) / 8)

    heatmaps = torch.stack([at(12 + 2 * t, 10 + t) for t in range(5)])[None, :, None]
    flow = torch.stack([torch.tensor([8.0 * t, 4.0 * t]) for t in (-2, -1, 1, 2)])[None, :, :, None, None]
    model = FlowingConvNet(1, neighbours=2)
    with torch.no_grad():
        found = model.pool(heatmaps, flow.expand(1, 4, 2, 96, 128))
        still = model.pool(heatmaps, torch.zeros(1, 4, 2, 96, 128))
    inside = (..., slice(2, -2), slice(4, -4))  # nearer to the border the flow leads outside
    assert_close(found[inside], heatmaps[:, 2][inside], 1e-5)
    assert still.max() < 0.7 and int(found.argmax()) == 12 * 32 + 16


def test_clip_and_gradients():
    """The frames' heatmaps are pooled; the loss reaches every parameter and the flow, and its step lowers it."""
    torch.manual_seed(0)
    model, clip = FlowingConvNet(2, neighbours=1), torch.randn(1, 3, 3, 16, 20)
    for name, parameter in model.spatial.named_parameters():
        if name.endswith("weight"):
            torch.nn.init.kaiming_normal_(parameter)
    flow = (2 * torch.randn(1, 2, 2, 16, 20)).requires_grad_()
    found = model(clip, flow)
    maps = torch.stack([model.spatial(frame).fused for frame in clip[0].split(1)], 1)
    assert_close(found, model.pool(maps, flow), 1e-6)
    (found - 1).square().sum().backward()
    assert flow.grad.any() and model.pooling.weight.grad.all()
    without = {"spatial.conv8.weight", "spatial.conv8.bias"}  # the other head
    assert {name for name, parameter in model.named_parameters() if parameter.grad is None} == without


def test_spatial_loss(spatial):
    """Its gradient at each head is the difference, as the Caffe layer's; a step along it lowers the loss."""
    heads = FusedHeatmaps(torch.randn(2, 7, 3, 4, requires_grad=True), torch.randn(2, 7, 3, 4, requires_grad=True))
    target = torch.rand(2, 7, 3, 4)
    spatial_fusion_loss(heads, target).backward()
    for head in heads:
        assert_close(head.grad, head - target, 1e-6)
    images, target, losses = drawn("images", (1, 3, 8, 8), gain=192.0), torch.rand(1, 7, 2, 2), []
    optimizer = torch.optim.SGD(spatial.parameters(), 1e-5)
    for _ in range(3):
        optimizer.zero_grad()
        loss = spatial_fusion_loss(spatial(images), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > losses[1] > losses[2]


def test_resize_flow():
    flow = torch.stack([torch.full((8, 12), 6.0), torch.full((8, 12), -4.0)])[None]
    assert torch.equal(resize_flow(flow, (8, 12)), flow)
    found = resize_flow(flow, (4, 3))
    assert found.shape == (1, 2, 4, 3)
    assert torch.equal(found[0, 0], torch.full((4, 3), 1.5)) and torch.equal(found[0, 1], torch.full((4, 3), -2.0))


def test_errors():
    with pytest.raises(ValueError, match="neighbours must be at least 0, got -1"):
        FlowingConvNet(7, -1)
    with torch.device("meta"):
        model = FlowingConvNet(7, 1)
        with pytest.raises(TypeError, match=r"SpatialFusionNet: joints must be an integer, got 7\.5"):
            SpatialFusionNet(7.5)
        with pytest.raises(ValueError, match=r"SpatialFusionNet: height and width .* multiples of 4, got 16 x 18"):
            model.spatial(torch.zeros(1, 3, 16, 18))
        with pytest.raises(ValueError, match=r"clip must be \(B, 3, 3, H, W\), got \(1, 5, 3, 16, 16\)"):
            model(torch.zeros(1, 5, 3, 16, 16), torch.zeros(1, 4, 2, 16, 16))
        heatmaps = torch.zeros(2, 3, 7, 4, 4)
        with pytest.raises(ValueError, match=r"heatmaps must be \(B, 3, 7, h, w\), got \(2, 3, 6, 4, 4\)"):
            model.pool(heatmaps[:, :, 1:], torch.zeros(2, 2, 2, 16, 16))
        with pytest.raises(ValueError, match=r"flow must be \(2, 2, 2, fh, fw\), got \(2, 3, 2, 16, 16\)"):
            model.pool(heatmaps, torch.zeros(2, 3, 2, 16, 16))
        with pytest.raises(ValueError, match=r"spatial_fusion_loss: target must be \(1, 7, 2, 2\), got \(1, 7, 2, 3\)"):
            spatial_fusion_loss(model.spatial(torch.zeros(1, 3, 8, 8)), torch.zeros(1, 7, 2, 3))
