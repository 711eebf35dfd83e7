# SPDX-License-Identifier: Apache-2.0
"""GridLifter: the official networks' numbers, keys and checkpoints; joints and grids; fusing, compiling, learning."""

import pickle
from pathlib import Path

import numpy
import pytest
import torch
from flexor.models.gridconv import GridLifter, load_official
from flexor.testing import assert_close, running, ways
from torch import nn

DATA = Path(__file__).parent / "data"
GOLDEN = numpy.load(DATA / "gridconv_golden.npz")
CHECKPOINT = DATA / "gridconv_python2.pth.tar"  # as Python 2.7 and PyTorch 1.4 wrote it
WAY = pytest.mark.parametrize("way", ways("grid_conv"), ids=str)

# case of the golden file: official network, GridLifter's arguments, in training, temperature
CASES = {
    "dynamic-cr-30": ("dgridconv", {}, True, 30.0),
    "dynamic-cr-1": ("dgridconv", {}, True, 1.0),
    "dynamic-cz-30": ("dgridconv", {"borders": "cz"}, False, 30.0),
    "dynamic-cz-1": ("dgridconv", {"borders": "cz"}, False, 1.0),
    "learnable-hard": ("dgridconv_autogrids", {"borders": "cz"}, False, 1.0),
    "learnable-straight-through": ("dgridconv_autogrids", {"borders": "cz", "mode": "straight-through"}, True, 30.0),
    "learnable-gumbel": ("dgridconv_autogrids", {"borders": "cr", "mode": "gumbel"}, True, 1.0),
    "static": ("gridconv", {}, True, 1.0),
    "static-eval": ("gridconv", {}, False, 1.0),
}
KINDS = {
    "dgridconv": {},
    "dgridconv_autogrids": {"assignment": "learnable"},
    "gridconv": {"dynamic": False},
}
SMALL = {"channels": 4, "blocks": 1}


def official_state(model, network):
    """The random weights of the golden file, which has them flat in the order of the sorted keys."""
    values, state = torch.tensor(GOLDEN[f"{network}/state"]).float() / 64, {}
    for key, value in sorted(model.state_dict().items()):
        if not key.endswith("num_batches_tracked"):
            state[key], values = values[: value.numel()].reshape(value.shape), values[value.numel() :]
    assert values.numel() == 0
    return state


def thin(gradient):
    return gradient.flatten()[::17] if gradient.numel() > 300 else gradient.flatten()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", CASES)
@WAY
def test_official_numbers(way, name, dtype, monkeypatch):
    """Output and every gradient of the official modules; see data/make_gridconv_golden.py.

    The gradients of training are compared in float64 alone: batch norm over three samples amplifies float32's rounding,
    theirs as ours, to 1e-4.
    """
    network, options, training, temperature = CASES[name]
    golden = {key.split("/")[1]: torch.tensor(value) for key, value in GOLDEN.items() if key.startswith(f"{name}/")}
    noise = torch.tensor(GOLDEN["noise"]).to(way.device)
    monkeypatch.setattr(nn.functional, "gumbel_softmax", lambda logits, tau, dim: ((logits + noise) / tau).softmax(dim))
    lifter = GridLifter(channels=6, dropout=0.0, **KINDS[network], **options)
    lifter.load_state_dict(official_state(lifter, network), strict=False)
    lifter.to(way.device, dtype).train(training).net_update_temperature(temperature)
    input = golden["input"].to(way.device, dtype).requires_grad_()
    with running(way):
        output = lifter(input)
        output.backward(golden["grad_output"].to(way.device, dtype))
    assert_close(output, golden["output"], 1e-5)
    if training and dtype == torch.float32:
        return
    assert_close(input.grad, golden["grad_input"], 1e-5, what="input")
    grads, least = golden["grads"], 1e-6 * golden["grads"].abs().max()
    for key, parameter in sorted(lifter.named_parameters()):
        if parameter.grad is None:
            assert (key, training) == ("sgt_layer.sgt_trans_mat", False)
            continue
        found = thin(parameter.grad).cpu()
        expected, grads = grads[: found.numel()], grads[found.numel() :]
        if expected.abs().max() > least:  # batch norm cancels a bias before it: its gradient is only rounding
            assert_close(found, expected, 1e-5, what=key)
    assert grads.numel() == 0


COUNTS = {
    "dynamic": ({}, 4_790_406, 95),
    "learnable": ({"assignment": "learnable"}, 4_790_831, 96),
    "static": ({"dynamic": False}, 4_746_752, 47),
    "1-block": ({"blocks": 1}, 2_413_156, 61),
    "64-channels": ({"channels": 64}, 330_246, 95),
}


@pytest.mark.parametrize(("options", "parameters", "keys"), COUNTS.values(), ids=COUNTS.keys())
def test_counts(options, parameters, keys):
    with torch.device("meta"):
        lifter = GridLifter(**{"prior": "random_prob"} | options)
    assert sum(p.numel() for p in lifter.parameters()) == parameters
    assert len(lifter.state_dict()) == keys and not any(key.startswith("module.") for key in lifter.state_dict())


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_joints_and_grids(kind):
    """With joints it is the network on grids between the two transforms."""
    from flexor import ops

    lifter = GridLifter(**SMALL, **kind).eval()
    joints = torch.randn(3, 17, 2)
    assignment = "handcrafted" if lifter.sgt_layer is None else lifter.sgt_layer()
    grid = lifter(ops.semantic_grid_transform(joints, assignment))
    output = lifter(joints)
    assert grid.shape == (3, 3, 5, 5) and output.shape == (3, 17, 3)
    assert_close(output, ops.inverse_semantic_grid_transform(grid, assignment), 1e-6)


def test_gradient_reaches_the_assignment():
    """In training, by default: the official training loop never lets it."""
    for mode in ("gumbel", "straight-through"):
        lifter = GridLifter(**SMALL, assignment="learnable", mode=mode)
        lifter(torch.randn(3, 17, 2)).square().sum().backward()
        assert lifter.sgt_layer.sgt_trans_mat.grad.ne(0).all(), mode


def test_joints_without_a_cell_are_zero():
    lifter = GridLifter(**SMALL, assignment="learnable", prior="learnt_type3").eval()
    output = lifter(torch.randn(3, 17, 2))
    assert lifter.sgt_layer.uncovered() == [0]
    assert output[:, 0].eq(0).all() and output[:, 1:].ne(0).any((0, 2)).all()


def test_other_skeletons_and_grids():
    lifter = GridLifter(15, **SMALL, assignment="learnable", prior=torch.eye(15).repeat(2, 1)[:28], grid_shape=(4, 7))
    assert lifter(torch.randn(3, 15, 2)).shape == (3, 15, 3)
    assert lifter(torch.randn(3, 2, 4, 7)).shape == (3, 3, 4, 7)


def test_temperature():
    lifter = GridLifter(**SMALL, dropout=0.0)
    joints, attentions = torch.randn(3, 17, 2), [m for m in lifter.modules() if hasattr(m, "temperature")]
    assert [a.temperature for a in attentions] == [30.0] * 4
    at_30 = lifter.eval()(joints)
    lifter.net_update_temperature(1.0)
    assert [a.temperature for a in attentions] == [1.0] * 4
    assert (lifter(joints) - at_30).abs().max() > 1e-3 * at_30.abs().max()


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
@WAY
def test_fuse(way, kind):
    """The same numbers from fewer layers, at any temperature; the original is as it was."""
    lifter = GridLifter(**SMALL, **kind, temperature=2.0)
    for module in lifter.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, -1, 1)
            nn.init.normal_(module.bias)
    before = {key: value.clone() for key, value in lifter.state_dict().items()}
    fused, joints = lifter.fuse().to(way.device), torch.randn(3, 17, 2, device=way.device)
    assert lifter.training and all(torch.equal(value, before[key]) for key, value in lifter.state_dict().items())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    with running(way):
        assert_close(fused(joints), lifter.to(way.device).eval()(joints), 1e-5)
    assert not any(p.requires_grad for p in fused.parameters())


def test_one_pose_in_training():
    for kind in KINDS.values():
        GridLifter(**SMALL, **kind)(torch.randn(1, 17, 2)).sum().backward()


def test_it_learns():
    """Depth that is a function of the pose, from thirty steps."""
    lifter = GridLifter(channels=8, blocks=1, dropout=0.0)
    joints = torch.randn(16, 17, 2)
    target = torch.cat((joints, joints.roll(1, 1).prod(2, keepdim=True)), 2)
    optimizer = torch.optim.Adam(lifter.parameters(), 1e-2)
    losses = []
    for step in range(30):
        lifter.net_update_temperature(max(1.0, 30.0 - step))
        loss = (lifter(joints) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_official_checkpoint():
    """With its optimizer object, its NumPy number and Python 2's strings; the network ran under PyTorch 1.4."""
    lifter = GridLifter(**SMALL, dynamic=False).eval()
    found = load_official(lifter, CHECKPOINT)
    assert found == {"epoch": 3, "lr": 1e-3, "error": 37.15} and type(found["error"]) is float
    extra = torch.load(CHECKPOINT, weights_only=False, encoding="latin1")
    assert_close(lifter(extra["input"]), extra["output"], 1e-5)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints_of_today(tmp_path, kind, zipped):
    """What the official code would write under a PyTorch of today, loaded at the published final temperature."""
    theirs, ours = (GridLifter(**SMALL, **kind) for _ in range(2))
    optimizer = torch.optim.Adam(theirs.parameters())
    theirs(torch.randn(3, 17, 2)).sum().backward()
    optimizer.step()
    state = {"epoch": 7, "lr": 1e-3, "error": numpy.float64(40.5), "state_dict": theirs.state_dict()}
    torch.save(state | {"optimizer": optimizer}, tmp_path / "x.tar", _use_new_zipfile_serialization=zipped)
    assert load_official(ours, tmp_path / "x.tar") == {"epoch": 7, "lr": 1e-3, "error": 40.5}
    assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in ours.state_dict().items())
    assert {m.temperature for m in ours.modules() if hasattr(m, "temperature")} <= {1.0}
    load_official(ours, tmp_path / "x.tar", temperature=30.0)
    assert {m.temperature for m in ours.modules() if hasattr(m, "temperature")} <= {30.0}


class Attack:
    def __reduce__(self):
        return print, ("this code must not run",)


def test_no_code_of_a_checkpoint_runs(tmp_path, capsys):
    path = tmp_path / "x.tar"
    torch.save({"state_dict": {}, "optimizer": Attack()}, path)
    with pytest.raises(ValueError, match=r"x.tar is no checkpoint .* it holds print, which is refused"):
        load_official(GridLifter(**SMALL), path)
    torch.save({"state_dict": {}, "optimizer": Attack()}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="it holds print, which is refused"):
        load_official(GridLifter(**SMALL), path)
    assert capsys.readouterr().out == ""


def test_files_that_are_no_checkpoints(tmp_path):
    lifter, path = GridLifter(**SMALL), tmp_path / "x.tar"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="it is none of PyTorch's files, or damaged"):
        load_official(lifter, path)
    path.write_bytes(pickle.dumps([1, 2], 2))
    with pytest.raises(ValueError, match=r"it is none of PyTorch's files, or damaged"):
        load_official(lifter, path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match=r"x.tar must hold a dictionary with a state_dict"):
        load_official(lifter, path)
    torch.save({"state_dict": GridLifter(**SMALL, dynamic=False).state_dict()}, path)
    with pytest.raises(RuntimeError, match="Missing key"):
        load_official(lifter, path)
    with pytest.raises(FileNotFoundError):
        load_official(lifter, tmp_path / "absent.tar")


ERRORS = {
    "assignment": (lambda: GridLifter(assignment="random"), "'handcrafted' or 'learnable', got 'random'"),
    "joints": (lambda: GridLifter(16), "handcrafted assignment is for 17 joints on 5x5 cells, got 16 joints on 5x5"),
    "grid": (lambda: GridLifter(grid_shape=(5, 6)), "17 joints on 5x5 cells, got 17 joints on 5x6"),
    "prior": (
        lambda: GridLifter(assignment="learnable", grid_shape=(4, 4)),
        "prior 'standard' is for 17 joints on 5x5 cells, got 17 joints on 4x4",
    ),
    "borders": (lambda: GridLifter(borders="c"), "padding_mode must be two letters"),
    "input-joints": (
        lambda: GridLifter(**SMALL)(torch.zeros(2, 16, 2)),
        r"input must be joints \(B, 17, 2\) or grids \(B, 2, h, w\), got \(2, 16, 2\)",
    ),
    "input-rank": (lambda: GridLifter(**SMALL)(torch.zeros(17, 2)), r"got \(17, 2\)"),
    "input-3d": (lambda: GridLifter(**SMALL)(torch.zeros(2, 17, 3)), r"got \(2, 17, 3\)"),
    "input-grid": (
        lambda: GridLifter(**SMALL)(torch.zeros(2, 2, 5, 6)),
        r"grids must be \(B, 2, 5, 5\), got \(2, 2, 5, 6\)",
    ),
}


@pytest.mark.parametrize(("function", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_errors(function, message):
    with pytest.raises(ValueError, match=message):
        function()


@pytest.mark.compiles
def test_compile():
    """One graph, in training, through the learned assignment."""
    torch._dynamo.reset()
    options = {"assignment": "learnable", "dropout": 0.0, "mode": "straight-through"}
    lifter, joints = GridLifter(**SMALL, **options), torch.randn(3, 17, 2)
    compiled = torch.compile(lifter, fullgraph=True, backend="aot_eager")
    assert_close(compiled(joints), lifter(joints), 1e-5)


@pytest.mark.compiles
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_export(kind):
    """For any batch, fused."""
    model, auto = GridLifter(**SMALL, **kind).fuse(), {0: torch.export.Dim.AUTO}
    program = torch.export.export(model, (torch.randn(3, 17, 2),), dynamic_shapes=(auto,))
    for batch in (3, 7):
        joints = torch.randn(batch, 17, 2)
        assert_close(program.module()(joints), model(joints), 1e-5)


def test_data_parallel_replicas_and_copies():
    """Nothing on an instance points back at another: replicas and copies run on their own parameters."""
    import copy

    lifter, joints = GridLifter(**SMALL).eval(), torch.randn(3, 17, 2)
    twin = copy.deepcopy(lifter)
    with torch.no_grad():
        for parameter in lifter.parameters():
            parameter.zero_()
    assert twin(joints).abs().max() > 0 and lifter(joints).abs().max() == 0
    assert_close(pickle.loads(pickle.dumps(twin))(joints), twin(joints), 1e-12)
