# SPDX-License-Identifier: Apache-2.0
"""DKD: its equations, streams equal to clips, gradients through time, its cost, the adversarial training."""

import copy

import pytest
import torch
import torch.nn.functional as F
from flexor.models.pose.dkd import DKD, DKDState, dkd, dkd_cost
from flexor.models.pose.dkd_training import DKDTraining, TemporalDiscriminator
from flexor.models.pose.simple_baseline import SimpleBaseline
from flexor.testing import assert_close, running, ways
from pose_weights import drawn, drawn_state

SIZE = (64, 96)  # of frames; their heatmaps are 16 x 24


@pytest.fixture(scope="module")
def model():
    with torch.device("meta"):
        made = dkd(18, joints=3, width=16)
    made.load_state_dict(drawn_state(made.state_dict()), assign=True)
    return made.eval()


@pytest.fixture(scope="module")
def clip():
    return drawn("clip", (2, 3, 3, *SIZE), gain=9.0 * 64 * 96)


@pytest.mark.parametrize("way", ways("xcorr2d_depthwise"), ids=str)
def test_equations(way, model, clip):
    """The recurrence, with the matching as a convolution that has a group for every channel of every sample."""
    with running(way), torch.no_grad():
        found = model.to(way.device)(clip.to(way.device))
    model.to("cpu")
    with torch.no_grad():
        expected = [model.initialiser(clip[:, 0])]
        for t in (1, 2):
            before, now = model.encoder(clip[:, t - 1]), model.encoder(clip[:, t])
            kernels = model.distillator(before, expected[-1])
            assert kernels.shape == (2, 16, 7, 7) and now.shape == (2, 16, 16, 24)
            projected = F.conv2d(now, model.matching.project.weight, model.matching.project.bias)
            matched = F.conv2d(projected.reshape(1, 32, 16, 24), kernels.reshape(32, 1, 7, 7), padding=3, groups=32)
            mix = model.matching.mix
            expected.append(F.conv2d(matched.reshape(2, 16, 16, 24), mix.weight, mix.bias))
    assert_close(found, torch.stack(expected, 1), 1e-4)


def test_stream_is_the_clip(model, clip):
    """Bit for bit, for batches too; and a stream that is begun anew forgets."""
    with torch.no_grad():
        whole, state = model(clip), None
        for t in range(3):
            heatmaps, state = model.step(clip[:, t], state)
            assert torch.equal(heatmaps, whole[:, t])
            assert torch.equal(state.heatmaps, heatmaps)
        assert torch.equal(model.step(clip[:, 0], None)[0], whole[:, 0])
        assert torch.equal(model(clip[:, :1]), whole[:, :1]), "a clip of one frame is the initialiser's"


def test_kernels_carry_what_was_seen(model, clip):
    """The same frame after another one, or after other heatmaps of it, has other heatmaps."""
    with torch.no_grad():
        state = model.step(clip[:, 0])[1]
        found = model.step(clip[:, 1], state)[0]
        assert not torch.allclose(found, model.step(clip[:, 1], model.step(clip[:, 2])[1])[0])
        assert not torch.allclose(found, model.step(clip[:, 1], state._replace(heatmaps=-state.heatmaps))[0])


def test_gradients_through_time(model, clip):
    """The last heatmaps' gradient reaches the first frame, every part's parameters, and is the finite difference."""
    short = clip[:1, :, :, :32, :32].double().requires_grad_()
    double = DKD(18, joints=3, width=16).double().eval()
    double.load_state_dict(model.state_dict())
    last = double(short)[:, -1].sum()
    last.backward()
    assert short.grad[:, 0].abs().sum() > 0
    for part in (double.initialiser, double.encoder, double.distillator, double.matching):
        for name, parameter in part.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert any(parameter.grad.any() for parameter in part.parameters())
    direction = drawn("direction", tuple(short.shape)).double()
    with torch.no_grad():
        sides = [double(short + step * direction)[:, -1].sum() for step in (1e-7, -1e-7)]
    assert_close((sides[0] - sides[1]) / 2e-7, (short.grad * direction).sum(), 1e-4)


def test_state_dict():
    """The initialiser takes a SimpleBaseline's weights, and the encoder of one as deep all but its wide layers."""
    with torch.device("meta"):
        model = DKD(34, joints=13, encoder_depth=18)
        assert set(model.initialiser.state_dict()) == set(SimpleBaseline(34, 13).state_dict())
        trunk = [key for key in SimpleBaseline(18, 13).state_dict() if not key.startswith(("deconv", "final"))]
        assert set(trunk) < set(model.encoder.state_dict())
    assert model.encoder.deconv_layers[6].weight.shape == (128, 128, 4, 4)
    assert model.matching.mix.weight.shape == (13, 128, 1, 1)


@pytest.mark.parametrize("depth", [18, 50])
def test_cost(depth):
    """Below SimpleBaseline on the same ResNet, and by more than half with a small encoder."""
    same, small = dkd_cost(depth), dkd_cost(depth, encoder_depth=18)
    assert same.later_frame < 0.95 * same.initialiser
    assert same.first_frame == same.initialiser + same.encoder and same.encoder < same.initialiser
    assert small.initialiser == same.initialiser and small.later_frame < 3.2e9
    # By hand, on heatmaps of 64 x 64: V, the correlation and U; the distillator's four convolutions.
    assert same.matching == 64 * 64 * 128 * (128 + 49 + 13)
    assert same.distillator == 128 * (64 * 64 * 141 + (32 * 32 + 16 * 16 + 7 * 7) * 9 * 128)


def moving_squares():
    """Clips of a bright square that walks, with Gaussians on three of its corners."""
    clip, joints = torch.zeros(2, 3, 3, 64, 64), []
    for sample in range(2):
        for t in range(3):
            x, y = 12 + 8 * t, 16 + 12 * sample
            clip[sample, t, :, y : y + 16, x : x + 16] = 2.0
            joints.append([[x, y], [x + 16, y], [x, y + 16]])
    places = torch.tensor(joints).view(2, 3, 3, 2) / 4
    grid = torch.arange(16.0)
    apart = (grid - places[..., 1:]).square()[..., :, None] + (grid - places[..., :1]).square()[..., None, :]
    return clip, torch.exp(-apart / 4.5), torch.ones(2, 3, 3)


def test_training_lowers_the_loss():
    """Of the heatmaps and of the reconstruction; later frames, which only kernels find, improve as well."""
    torch.manual_seed(0)
    clip, target, weights = moving_squares()
    model = DKD(18, joints=3, width=32).train()
    training = DKDTraining(model, 3, learning_rate=1e-3)
    losses = [training.step(clip, target, weights) for _ in range(8)]
    assert losses[-1].heatmaps < 0.6 * losses[0].heatmaps
    assert losses[-1].real < losses[0].real
    with torch.no_grad():
        later = F.mse_loss(model(clip)[:, 1:], target[:, 1:])
    assert later < 0.8 * target[:, 1:].square().mean(), "better than empty heatmaps"
    assert all(parameter.grad is not None for parameter in training.parameters())


class Scripted(DKD):
    """Gives the heatmaps that it is told to."""

    def __init__(self, heatmaps):
        torch.nn.Module.__init__(self)
        self.heatmaps = torch.nn.Parameter(heatmaps)

    def forward(self, clip):
        return self.heatmaps.clone()


def test_adversarial_objective():
    """The losses and the balance are those of the formulas, and each side's step is taken by its own optimizer."""
    clip, target, weights = moving_squares()
    weights[0, 1, 2] = 0
    scripted = Scripted(torch.rand(2, 3, 3, 16, 16))
    training = DKDTraining(scripted, 3, coherence=0.5, equity=0.9, rate=0.1, width=8)
    training.balance.fill_(0.25)
    discriminator, heatmaps = copy.deepcopy(training.discriminator), scripted.heatmaps.detach().clone()

    def errors(maps):
        total = []
        for t in (1, 2):
            both = (weights[:, t] * weights[:, t - 1])[..., None, None]
            change = both * (maps[:, t] - maps[:, t - 1])
            rebuilt = discriminator(change, torch.cat((clip[:, t - 1], clip[:, t]), 1))
            total.append((both * (change - rebuilt)).square())
        return torch.cat(total).mean()

    found = training.step(clip, target, weights)
    fake, real = errors(heatmaps), errors(target)
    scale = weights[..., None, None]
    assert_close(torch.tensor(found.heatmaps), F.mse_loss(heatmaps * scale, target * scale), 1e-5)
    assert_close(torch.tensor([found.fake, found.real]), torch.stack([fake, real]), 1e-5)
    assert_close(torch.tensor(found.balance), (0.25 + 0.1 * (0.9 * real - fake)).clamp(0, 1), 1e-5)
    grads = torch.autograd.grad(real - 0.25 * fake, list(discriminator.parameters()))
    for (name, parameter), expected in zip(training.discriminator.named_parameters(), grads, strict=True):
        assert_close(parameter.grad, expected, 1e-4, what=name)
        assert not torch.equal(parameter, discriminator.get_parameter(name)), name
    leaf = heatmaps.clone().requires_grad_()
    (F.mse_loss(leaf * scale, target * scale) + 0.5 * errors(leaf)).backward()
    assert_close(scripted.heatmaps.grad, leaf.grad, 1e-4)


def test_balance_stays_within_0_and_1():
    clip, target, weights = moving_squares()
    training = DKDTraining(Scripted(9 * torch.rand(2, 3, 3, 16, 16)), 3, rate=1e6, width=4)
    assert training.step(clip, target, weights).balance == 0
    training.model.heatmaps.data.zero_()
    assert training.step(clip, target, weights).balance == 1
    assert "balance" in training.state_dict()


def test_discriminator_sees_both_frames():
    discriminator = TemporalDiscriminator(3, 8)
    change, frames = torch.randn(1, 3, 16, 24), torch.randn(1, 6, *SIZE, requires_grad=True)
    rebuilt = discriminator(change, frames)
    assert rebuilt.shape == change.shape
    rebuilt.sum().backward()
    assert frames.grad[:, :3].any() and frames.grad[:, 3:].any()


def test_errors(model):
    frame = torch.zeros(1, 3, 64, 64)
    with pytest.raises(ValueError, match=r"DKD: clip must be .* with T at least 1, got \(1, 3, 64, 64\)"):
        model(frame)
    with pytest.raises(ValueError, match="with T at least 1, got \\(1, 0, 3, 64, 64\\)"):
        model(frame[:, None][:, :0])
    with pytest.raises(ValueError, match="DKD: height and width of frame must be multiples of 32, got 64 x 60"):
        model.step(frame[..., :60])
    with pytest.raises(TypeError, match=r"DKD: frame must be floating point, .* got torch.uint8"):
        model.step(frame.byte())
    state = DKDState(torch.zeros(1, 16, 16, 24), torch.zeros(1, 3, 16, 24))
    with pytest.raises(ValueError, match=r"are \(1, 16, 16, 24\), this frame's are \(1, 16, 16, 16\); pass state"):
        model.step(frame, state)
    with pytest.raises(TypeError, match=r"DKD.step: state must be the DKDState of the step before or None, got tuple"):
        model.step(frame, tuple(state))
    with pytest.raises(ValueError, match="kernel_size must be odd, got 6"):
        DKD(18, kernel_size=6)
    with pytest.raises(ValueError, match=r"FrameEncoder: depth must be one of 18, .*, got 20"):
        DKD(18, encoder_depth=20)
    with pytest.raises(ValueError, match=r"DKDTraining: clip must be .* T at least 2, got \(1, 1, 3, 64, 64\)"):
        DKDTraining(model, 3).step(frame[:, None], torch.zeros(1, 1, 3, 16, 16), torch.ones(1, 1, 3))
