# SPDX-License-Identifier: Apache-2.0
"""The U-Net against SparseConvNet's own numbers, and compiled; the SECOND encoder."""

from pathlib import Path

import numpy as np
import pytest
import torch
from flexor.models.second import SecondEncoder
from flexor.models.sparse_unet import SETTINGS, NormReLU, ScanNetUNet, SparseUNet, load_scn
from flexor.nn.sparse_tensor import SparseTensor
from second_weights import fill

GOLDEN = Path(__file__).with_name("data") / "sparse_unet_golden.npz"
VARIANTS = {
    "vgg": {"residual": False, "reps": 1, "final_norm": False},
    "residual": {"residual": True, "reps": 2, "final_norm": True},
}


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def state_of(golden, variant):
    prefix = f"{variant}/state/"
    return {name.removeprefix(prefix): value for name, value in golden.items() if name.startswith(prefix)}


def loaded(golden, variant):
    model = ScanNetUNet(2, levels=3, classes=4, **VARIANTS[variant])
    load_scn(model, state_of(golden, variant))
    return model


@pytest.mark.parametrize("variant", VARIANTS)
def test_sparseconvnet_eval(golden, variant):
    model = loaded(golden, variant).eval()
    with torch.no_grad():
        output = model.segment(golden["coords"].long(), golden["features"])
    torch.testing.assert_close(output, golden[f"{variant}/eval"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_sparseconvnet_training_step(golden, variant):
    """Outputs, every gradient and the running statistics, all in SparseConvNet's own names and layouts."""
    model = loaded(golden, variant)
    output = model.segment(golden["coords"].long(), golden["features"])
    torch.testing.assert_close(output, golden[f"{variant}/train"], rtol=1e-4, atol=2e-4)
    output.backward(golden["gradient"])

    state = state_of(golden, variant)
    buffers = [name for name in state if "running" in name]
    sizes = [value.numel() for name, value in state.items() if name not in buffers]
    gradients = dict(
        zip([n for n in state if n not in buffers], golden[f"{variant}/gradients"].split(sizes), strict=True)
    )
    statistics = dict(
        zip(buffers, golden[f"{variant}/statistics"].split([state[n].numel() for n in buffers]), strict=True)
    )
    # Put theirs in our layout by loading them as if they were weights.
    theirs = ScanNetUNet(2, levels=3, classes=4, **VARIANTS[variant])
    load_scn(theirs, {name: (gradients | statistics)[name].reshape(value.shape) for name, value in state.items()})
    for (name, expected), parameter in zip(theirs.named_parameters(), model.parameters(), strict=True):
        scale = float(expected.detach().abs().max())
        torch.testing.assert_close(parameter.grad, expected.detach(), rtol=1e-3, atol=1e-3 * scale, msg=name)
    for (name, expected), buffer in zip(theirs.named_buffers(), model.buffers(), strict=True):
        if "running" in name:
            torch.testing.assert_close(buffer, expected, rtol=1e-4, atol=1e-4)


def test_weights_of_other_settings_are_refused(golden):
    state = state_of(golden, "vgg")
    with pytest.raises(ValueError, match="the state_dict has no sparseModel"):
        load_scn(ScanNetUNet(2, levels=3, classes=4, **VARIANTS["residual"]), state)
    with pytest.raises(ValueError, match="nothing for sparseModel"):
        load_scn(ScanNetUNet(2, levels=2, classes=4), state)
    with pytest.raises(ValueError, match="size mismatch for linear"):
        load_scn(ScanNetUNet(2, levels=3, classes=5), state)
    with pytest.raises(ValueError, match=r"must have the \d+ numbers"):
        load_scn(ScanNetUNet(4, levels=3, classes=4), state)
    with pytest.raises(ValueError, match=r"coords must be \(P, 4\) = \(3, 4\).*got \(3, 3\)"):
        ScanNetUNet(2).segment(torch.zeros(3, 3, dtype=torch.long), torch.zeros(3, 3))
    with pytest.raises(ValueError, match="preset must be one of small, large, got 'huge'"):
        ScanNetUNet.preset("huge")
    with pytest.raises(ValueError, match="planes and reps must be at least 1"):
        SparseUNet(3, [])


def test_presets():
    small, large = (ScanNetUNet.preset(name) for name in SETTINGS)
    assert (small.linear.in_features, large.linear.in_features) == (16, 32)
    count = sum(parameter.numel() for parameter in small.parameters())
    assert count == 2_689_828
    assert sum(parameter.numel() for parameter in large.parameters()) == 30_104_308
    norm = NormReLU(4)
    assert (norm.eps, norm.momentum) == (1e-4, 0.01)


def sheet(count=60, batch=2, channels=3):
    generator = torch.Generator().manual_seed(0)
    where = torch.randint(0, 12, (count, 2), generator=generator)
    sample = torch.randint(0, batch, (count, 1), generator=generator)
    indices = torch.unique(torch.cat([sample, where, (where.sum(1, keepdim=True) // 3)], 1), dim=0).int()
    return SparseTensor(torch.randn(len(indices), channels, generator=generator), indices, batch_size=batch)


def test_scn_initialisation():
    torch.manual_seed(0)
    model = SparseUNet(3, [32, 64], residual=True)
    weight = model.levels.deeper.before[0].conv1.weight.detach()
    assert float(weight.std()) == pytest.approx((2 / (64 * 27)) ** 0.5, rel=0.05)


@pytest.mark.parametrize("rows", [0, 1])
def test_few_voxels(rows):
    model = ScanNetUNet(2, levels=3, classes=4)
    output = model(SparseTensor(torch.randn(rows, 3), torch.zeros(rows, 4, dtype=torch.int32), batch_size=1))
    assert output.shape == (rows, 4)
    output.sum().backward()


@pytest.mark.compiles
@pytest.mark.parametrize("training", [True, False])
def test_compiled_whole(training):
    """One graph forward and one backward, in which every level's voxels are only counted when it runs."""
    torch.manual_seed(0)
    model = ScanNetUNet(2, levels=2, classes=4).train(training)
    eager = ScanNetUNet(2, levels=2, classes=4).train(training)
    eager.load_state_dict(model.state_dict())
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for count in (60, 45):
        input = sheet(count)
        output, expected = compiled(input), eager(input)
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
        output.square().sum().backward()
        expected.square().sum().backward()
    for (name, parameter), other in zip(model.named_parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-3, atol=1e-3, msg=name)


def second_state(names, model, rename=str):
    """The golden file's weights, under the names of OpenPCDet."""
    random = np.random.RandomState(0)
    shapes = {rename(name): value.shape for name, value in model.state_dict().items()}
    return {name: torch.from_numpy(fill(name, tuple(shapes[name]), random)) for name in names}


def of_openpcdet(name):
    return name.replace("encoder_layers.encoder_layer", "conv")


def test_second_is_openpcdets_backbone():
    with np.load(GOLDEN.with_name("second_golden.npz")) as file:
        golden = {name: file[name] for name in file.files}
    model = SecondEncoder(4, (41, 48, 40)).eval()
    state = second_state(golden["names"].tolist(), model, of_openpcdet)
    counts = {name: value for name, value in model.state_dict().items() if name.endswith("num_batches_tracked")}
    inputs = torch.from_numpy(golden["features"]), torch.from_numpy(golden["coords"]), 2
    model.load_state_dict(state | {of_openpcdet(name): value for name, value in counts.items()})
    with torch.no_grad():
        output = model(*inputs)
    expected = torch.from_numpy(golden["output"])
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))

    # Within a detector's state_dict, and with the names that mmdetection3d gives it.
    whole = {f"backbone_3d.{name}": value for name, value in state.items()} | {"dense_head.bias": torch.zeros(2)}
    again = SecondEncoder(4, (41, 48, 40)).eval()
    again.load_state_dict(whole | {f"backbone_3d.{of_openpcdet(n)}": v for n, v in counts.items()})
    ours = SecondEncoder(4, (41, 48, 40)).eval()
    ours.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(again(*inputs), output) and torch.equal(ours(*inputs), output)


def test_second_stages_and_errors():
    model = SecondEncoder(4, (41, 48, 40))
    coords = torch.unique(torch.randint(0, 40, (200, 4)) % torch.tensor([1, 40, 40, 40]), dim=0).int()
    stages = model.stages(torch.randn(len(coords), 4), coords, 1)
    assert [list(stage.spatial_shape) for stage in stages] == [
        [41, 48, 40],
        [21, 24, 20],
        [11, 12, 10],
        [5, 6, 5],
        [2, 6, 5],
    ]
    stages[-1].features.sum().backward()
    assert model.conv_input[0].weight.grad is not None
    with pytest.raises(ValueError, match="one entry for each of encoder_channels"):
        SecondEncoder(4, (41, 48, 40), encoder_channels=((16,), (32,)))
