# SPDX-License-Identifier: Apache-2.0
"""DCPose and FAMI-Pose: the official numbers, names and sizes; their branches, freezing, training and errors."""

import functools
import hashlib
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from flexor.models.pose.dcpose import DILATIONS, DCPose, dcpose
from flexor.models.pose.fami_pose import FAMIPose, fami_pose
from flexor.models.pose.inference import for_inference
from flexor.models.pose.mutual_information import information_loss, information_terms
from flexor.models.pose.predicted_deform import Branch, mean_of_predicted, predicted_deform_conv2d
from flexor.nn import Conv3x3, ModulatedDeformConv2d
from flexor.ops import deform_conv2d
from flexor.testing import assert_close, error
from pose_weights import drawn, video_state
from torch import nn

GOLDEN = np.load(Path(__file__).parent / "data" / "pose_video_golden.npz")
MAKERS = {"dcpose": functools.partial(dcpose, freeze_backbone=False), "fami": fami_pose}
MARGIN = torch.tensor([[1, 3]])


@functools.cache
def loaded(name):
    """The network with the golden file's weights, in evaluation. Tests leave it as it is."""
    with torch.random.fork_rng():
        model = MAKERS[name]().eval()
    model.load_state_dict(video_state(model.state_dict()))
    return model


@pytest.fixture
def dc():
    return loaded("dcpose")


@pytest.fixture
def fami():
    return loaded("fami")


def tiny_backbone(joints=5):
    """Heatmaps at a quarter of the size, and a batch norm with statistics."""
    return nn.Sequential(nn.Conv2d(3, joints, 4, 4), nn.BatchNorm2d(joints))


def sampled(tensor):
    values = tensor.detach().numpy().ravel()
    return torch.from_numpy(np.random.default_rng(0).choice(values, 600) if values.size > 600 else values)


def expected(name):
    return torch.from_numpy(GOLDEN[name]).float()


def relative(gradient, exact):
    """The distance of two gradients over the norm of the exact one."""
    return (sampled(gradient) - exact).norm() / exact.norm()


@pytest.mark.parametrize(("name", "entries"), [("dcpose", 2215), ("fami", 1929)])
def test_official_names_and_sizes(name, entries):
    state = loaded(name).state_dict()
    lines = [f"{key} {','.join(map(str, value.shape))}" for key, value in state.items()]
    assert len(lines) == entries
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == str(GOLDEN[f"{name}/keys"])
    parameters = sum(p.numel() for p in loaded(name).parameters())
    assert parameters == GOLDEN[f"{name}/parameters"] == {"dcpose": 65_198_798, "fami": 64_655_204}[name]


def test_dcpose_is_the_official_one(dc):
    """From images, with unequal distances to the neighbours; see data/make_pose_video_golden.py."""
    frames = drawn("frames", (1, 9, 64, 64), gain=10 * 9 * 64 * 64).requires_grad_()
    rough, heatmaps = dc(frames, MARGIN)
    assert_close(sampled(rough), expected("dcpose/rough"), 1e-4)
    assert_close(sampled(heatmaps), expected("dcpose/heatmaps"), 1e-4)
    (gradient,) = torch.autograd.grad((heatmaps * drawn("grad", heatmaps.shape)).sum(), frames)
    assert relative(gradient, expected("dcpose/grad")) < 1e-3


@pytest.mark.parametrize("kept_bytes", [0, 1 << 20, 64 << 20])
def test_the_head_of_dcpose(dc, kept_bytes, monkeypatch):
    """Whatever is kept for the backward, and without gradients; a frame twice as far weighs half."""
    monkeypatch.setattr(dc, "kept_bytes", kept_bytes)
    rough = drawn("rough", (6, 17, 24, 20), gain=17 * 24 * 20).requires_grad_()
    margin = torch.tensor([[1, 3], [1, 1]])
    heatmaps = dc.correct(rough, margin)
    assert_close(sampled(heatmaps), expected("dcpose/head/heatmaps"), 1e-4)
    with torch.no_grad():
        assert_close(sampled(dc.correct(rough, margin)), expected("dcpose/head/heatmaps"), 1e-4)
    (gradient,) = torch.autograd.grad((heatmaps * drawn("grad", heatmaps.shape)).sum(), rough)
    assert relative(gradient, expected("dcpose/head/grad")) < 1e-3


def test_fami_pose_is_the_official_one(fami, monkeypatch):
    monkeypatch.setattr(fami, "information", "as_released")
    key = drawn("key", (1, 3, 288, 288), gain=10 * 3 * 288 * 288)
    supporting = drawn("supporting", (1, 12, 288, 288), gain=10 * 12 * 288 * 288)
    with torch.no_grad():
        heatmaps, rough, terms = fami(key, supporting)
    assert_close(sampled(rough), expected("fami/rough"), 1e-4)
    assert_close(sampled(heatmaps), expected("fami/heatmaps"), 1e-4)
    assert len(terms) == 6 and torch.stack(terms).isfinite().all()


def test_the_head_of_fami_pose(fami):
    features = drawn("features", (5, 48, 66, 65), gain=0.1 * 48 * 66 * 65).requires_grad_()
    heatmaps, merged, joined = fami.align(features)
    assert_close(sampled(heatmaps), expected("fami/head/heatmaps"), 1e-4)
    (gradient,) = torch.autograd.grad((heatmaps * drawn("grad", heatmaps.shape)).sum(), features, retain_graph=True)
    assert relative(gradient, expected("fami/head/grad")) < 1e-3
    terms = information_terms(fami.backbone.final_layer, heatmaps, features[:1], merged, joined)
    assert_close(torch.stack(terms), expected("fami/head/terms"), 1e-4)
    (gradient,) = torch.autograd.grad(information_loss(terms), features)
    assert relative(gradient, expected("fami/head/information_grad")) < 1e-3


def branches(joints=3, features=8):
    for d in DILATIONS:
        offset, mask = (Conv3x3(features, n * 9 * joints, d, bias=False) for n in (2, 1))
        yield Branch(offset, mask, ModulatedDeformConv2d(joints, joints, 3, 1, d, d, deform_groups=joints))


def plain_mean(input, features, found):
    """The published way: two convolutions and a deformable one a branch, everything kept."""
    each = [
        deform_conv2d(input, b.offset(features), b.deform.weight, b.deform.bias, padding=d, dilation=d,
                      mask=b.mask(features))
        for d, b in zip(DILATIONS, found, strict=True)
    ]  # fmt: skip
    return sum(each) / len(each)


@pytest.mark.parametrize("kept_bytes", [0, 1 << 18, 1 << 30])
def test_branches_in_one_call_are_branches_one_by_one(kept_bytes):
    found = list(branches())
    input, features = torch.randn(2, 3, 18, 19, requires_grad=True), torch.randn(2, 8, 18, 19, requires_grad=True)
    leaves = [input, features, *(p for branch in found for layer in branch for p in layer.parameters())]
    ours, plain = mean_of_predicted(input, features, found, kept_bytes), plain_mean(input, features, found)
    assert_close(ours, plain.detach(), 1e-5)
    grad_output = torch.randn_like(plain)
    for a, b in zip(*(torch.autograd.grad(y, leaves, grad_output) for y in (ours, plain)), strict=True):
        assert_close(a, b, 1e-4)


def test_every_way_of_differentiating_a_branch():
    """The gradients of offsets and masks are written into one tensor, or joined where they are differentiated again."""
    branch = Branch(*(layer.double() for layer in next(branches())))
    input, features = torch.randn(2, 3, 7, 8).double(), torch.randn(2, 8, 7, 8).double()
    leaves = [input.requires_grad_(), features.requires_grad_(), *(p for layer in branch for p in layer.parameters())]
    grad_output = torch.randn(2, 3, 7, 8).double()

    def published(input, features):
        return branch.deform(input, branch.offset(features), branch.mask(features))

    def gradients(output):
        again = torch.autograd.grad(output, leaves, grad_output, create_graph=True)
        both = torch.stack((grad_output, -grad_output))
        batched = torch.autograd.grad(output, leaves, both, is_grads_batched=True, retain_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in again), leaves[:-1], retain_graph=True)
        some = torch.autograd.grad(output, features, grad_output, retain_graph=True)
        return *again, *batched, *second, *some, *torch.autograd.grad(output, leaves, grad_output)

    ours, plain = predicted_deform_conv2d(input, features, branch), published(input, features)
    for a, b in zip(gradients(ours), gradients(plain), strict=True):
        assert_close(a, b, 1e-10)
    of_features = [
        torch.func.grad(lambda f, way=way: way(input, f).square().sum())(features)
        for way in (lambda x, f: predicted_deform_conv2d(x, f, branch), published)
    ]
    assert_close(of_features[0], of_features[1], 1e-10)


def test_offsets_follow_the_parameters_as_they_are():
    branch = next(branches())
    input, features = torch.randn(1, 3, 16, 17), torch.randn(1, 8, 16, 17)
    with torch.no_grad():
        before = predicted_deform_conv2d(input, features, branch)
        branch.offset.weight.mul_(2)
        branch.mask.weight.add_(0.1)
        after = predicted_deform_conv2d(input, features, branch)
        exact = branch.deform(input, branch.offset(features), branch.mask(features))
    assert_close(after, exact, 1e-5)
    assert error(after, before) > 0.01


def test_offsets_of_one_branch_at_a_time(monkeypatch):
    """Without gradients; none but the next branch's are alive when they are predicted."""
    alive = []
    forward = Conv3x3._conv_forward

    def watched(self, *args):
        assert all(each() is None for each in alive)
        output = forward(self, *args)
        alive.append(weakref.ref(output))
        return output

    monkeypatch.setattr(Conv3x3, "_conv_forward", watched)
    with torch.no_grad():
        mean_of_predicted(torch.randn(1, 3, 16, 16), torch.randn(1, 8, 16, 16), list(branches()))
    assert len(alive) == len(DILATIONS)


@pytest.mark.parametrize(("kept", "least", "most"), [(0, 0, 0.9), (2.5, 2, 2.9), (5, 5, 5.9)])
def test_what_is_kept_for_the_backward(kept, least, most):
    """In offsets and masks of one branch."""
    found = list(branches())
    input, features = torch.randn(1, 3, 40, 40), torch.randn(1, 8, 40, 40, requires_grad=True)
    one = 3 * 9 * 3 * 40 * 40 * 4
    sizes = {}

    def keep(tensor):
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = mean_of_predicted(input, features, found, int(kept * one))
    assert output.requires_grad
    assert least <= sum(sizes.values()) / one < most


def test_mean_of_no_branches():
    with pytest.raises(ValueError, match="mean_of_predicted: branches must not be empty"):
        mean_of_predicted(torch.randn(1, 3, 8, 8), torch.randn(1, 8, 8, 8), [])


def test_freezing_of_parameters_decides_what_is_returned():
    frames, margin = torch.randn(2, 9, 64, 64), torch.ones(2, 2)
    frozen = DCPose(5, backbone=tiny_backbone())
    free = DCPose(5, freeze_backbone=False, backbone=tiny_backbone())
    assert not any(p.requires_grad for p in frozen.backbone.parameters())
    heatmaps = frozen(frames, margin)
    heatmaps.sum().backward()
    assert all(p.grad is None for p in frozen.backbone.parameters())
    assert all(p.grad is not None for name, p in frozen.named_parameters() if not name.startswith("rough"))
    rough, corrected = free(frames, margin)
    assert heatmaps.shape == rough.shape == corrected.shape == (2, 5, 16, 16)
    (rough.sum() + corrected.sum()).backward()
    assert all(p.grad is not None for p in free.parameters())


@pytest.mark.parametrize("freeze_statistics", [False, True])
def test_freezing_of_statistics(freeze_statistics):
    model = DCPose(5, freeze_statistics=freeze_statistics, backbone=tiny_backbone()).train()
    before = model.backbone[1].running_mean.clone()
    model(torch.randn(1, 9, 64, 64), torch.ones(1, 2))
    assert torch.equal(model.backbone[1].running_mean, before) == freeze_statistics
    assert model.diff_temporal_fuse.layers[0].conv_bn_relu1.bn.training
    assert not model.eval().backbone.training and model.train().backbone.training != freeze_statistics


def test_initialisation_as_published():
    """Small convolutions without biases; masks then start near 0, and so do DCPose's heatmaps."""
    model = DCPose(5, backbone=tiny_backbone())
    deform = model.modulated_deform_conv_list[2]["deform_conv"]
    assert torch.equal(deform.weight[:, :, 1, 1], torch.eye(5)) and deform.weight.sum() == 5 and not deform.bias.any()
    conv = model.offsets_list[0][0]
    assert 0.0009 < conv.weight.std() < 0.0011 and not model.backbone[0].bias.any()
    heatmaps = model.eval()(torch.randn(1, 9, 64, 64), torch.ones(1, 2))
    assert heatmaps.abs().max() < 1e-6
    with torch.random.fork_rng():
        fresh = FAMIPose(5, backbone=FeaturesOfAConvolution())
    assert 0.0009 < fresh.dcn_mask_3.conv.weight.std() < 0.0011 and not fresh.dcn_mask_3.conv.bias.any()
    assert fresh.dcn_1.weight.std() > 0.01 and not fresh.dcn_1.bias.any()
    linear = fresh.feat_global_offset_layers[7]
    assert linear.weight.std() > 0.01 and not linear.bias.any()


class FeaturesOfAConvolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.features, self.final_layer = nn.Conv2d(3, 48, 4, 4), nn.Conv2d(48, 5, 1)


def test_fami_pose_returns_what_the_official_one_does():
    model = FAMIPose(5, backbone=FeaturesOfAConvolution()).eval()
    key, supporting = torch.randn(1, 3, 288, 288), torch.randn(1, 12, 288, 288)
    assert not any(p.requires_grad for p in model.backbone.parameters())
    with torch.no_grad():
        heatmaps, rough = model(key, supporting)
        assert heatmaps.shape == rough.shape == (1, 5, 72, 72)
        assert_close(rough, model.hrnet.final_layer(model.hrnet.features(key)), 1e-6)
        model.information = "corrected"
        assert len(model(key, supporting)[2]) == 6


def test_a_shift_of_all_supports_is_undone():
    """What is at p - t goes to p: of a map that moved two pixels left, t = (2, 0) gives it back."""
    model = FAMIPose(5, backbone=FeaturesOfAConvolution()).eval()
    last = model.feat_global_offset_layers[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([2.0, 0.0]))
        still = torch.randn(1, 48, 72, 72)
        moved = model.move(still.roll(-2, 3), still)
    assert_close(moved[..., 2:], still[..., 2:], 1e-5)
    assert not moved[..., :2].any()


def test_batch_norms_are_folded(dc):
    rough = drawn("rough", (3, 17, 24, 20), gain=17 * 24 * 20)
    fused = for_inference(dc)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    assert isinstance(fused.offset_mask_combine_conv.layers[0].conv_bn_relu2_1_1.conv, Conv3x3)
    with torch.no_grad():
        assert_close(fused.correct(rough, MARGIN), dc.correct(rough, MARGIN), 1e-5)


def test_errors(dc, fami):
    with pytest.raises(ValueError, match=r"DCPose: frames must be \(B, 9, H, W\), got \(1, 3, 64, 64\)"):
        dc(torch.zeros(1, 3, 64, 64), MARGIN)
    with pytest.raises(ValueError, match=r"DCPose: margin must be \(B, 2\) = \(1, 2\), frames to .*, got \(2,\)"):
        dc(torch.zeros(1, 9, 64, 64), torch.ones(2))
    with pytest.raises(TypeError, match=r"DCPose: joints must be an integer, got 1\.5"):
        dcpose(1.5)
    with pytest.raises(TypeError, match="DCPose: frames must be floating point"):
        dc(torch.zeros(1, 9, 64, 64, dtype=torch.uint8), MARGIN)
    with pytest.raises(ValueError, match=r"FAMIPose: height and width of key must be .* 288 to 384, got 64 x 288"):
        fami(torch.zeros(1, 3, 64, 288), torch.zeros(1, 12, 64, 288))
    with pytest.raises(ValueError, match="FAMIPose: key and supporting must have the same B, H and W, got"):
        fami(torch.zeros(1, 3, 288, 288), torch.zeros(2, 12, 288, 288))
    with pytest.raises(ValueError, match=r"FAMIPose: supporting must be \(B, 12, H, W\), got \(1, 9, 288, 288\)"):
        fami(torch.zeros(1, 3, 288, 288), torch.zeros(1, 9, 288, 288))
    with pytest.raises(
        ValueError, match="FAMIPose: information must be one of as_released, corrected or None, got 'kl'"
    ):
        FAMIPose(5, information="kl", backbone=FeaturesOfAConvolution())
