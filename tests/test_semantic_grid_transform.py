# SPDX-License-Identifier: Apache-2.0
"""Joints to grids and back: the handcrafted layout, assignment matrices, errors."""

import pytest
import torch
from flexor import ops
from flexor.testing import assert_close
from torch import func

# From running the official code on joints 0 to 16: what each cell holds (8.5: the midpoint of 8 and 9) ...
GRID = [[7, 7, 7, 7, 7], [0, 8, 8, 8, 0], [1, 14, 8.5, 11, 4], [2, 15, 9, 12, 5], [3, 16, 10, 13, 6]]
# ... and on cells 0 to 24: what each joint is read as.
JOINTS = [7, 10, 15, 20, 14, 19, 24, 2, 7, 17, 22, 13, 18, 23, 11, 16, 21]


def one_hot(choice, joints=17):
    return torch.nn.functional.one_hot(torch.as_tensor(choice), joints).float()


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("batch", [0, 1, 5])
def test_handcrafted(batch, channels):
    scale = torch.rand(batch, channels) + 1
    grid = ops.semantic_grid_transform(torch.arange(17.0)[None, :, None] * scale[:, None])
    assert grid.shape == (batch, channels, 5, 5) and grid.is_contiguous()
    assert_close(grid, torch.tensor(GRID) * scale[:, :, None, None], 1e-6)
    cells = torch.arange(25.0).reshape(1, 1, 5, 5) * scale[:, :, None, None]
    joints = ops.inverse_semantic_grid_transform(cells)
    assert joints.shape == (batch, 17, channels)
    assert_close(joints, torch.tensor(JOINTS, dtype=torch.float32)[None, :, None] * scale[:, None], 1e-6)


def test_handcrafted_there_and_back():
    joints = torch.randn(3, 17, 3)
    grid = ops.semantic_grid_transform(joints)
    assert_close(ops.inverse_semantic_grid_transform(grid), joints, 1e-6)
    moved = grid.clone()
    moved[:, :, 2, 2] = torch.nan  # the midpoint is dropped
    assert torch.equal(ops.inverse_semantic_grid_transform(moved), ops.inverse_semantic_grid_transform(grid))
    joints[1, 5] = torch.nan  # a joint that was not detected stays in its cell
    assert ops.semantic_grid_transform(joints).isnan()[1, 0].nonzero().tolist() == [[3, 4]]


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("shape", [(5, 5), (4, 6)])
def test_assignment(hard, shape):
    """Against the sums, written out."""
    cells, joints = shape[0] * shape[1], 9
    choice = torch.cat((torch.arange(joints), torch.randint(joints, (cells - joints,))))
    assignment = one_hot(choice, joints).double() if hard else torch.rand(cells, joints).double().softmax(1)
    poses = torch.randn(4, joints, 2).double()
    grid = ops.semantic_grid_transform(poses, assignment, shape)
    expected = torch.einsum("pj,bjc->bcp", assignment, poses).reshape(4, 2, *shape)
    assert_close(grid, expected, 1e-12)
    back = ops.inverse_semantic_grid_transform(grid, assignment)
    expected = torch.einsum("pj,bcp->bjc", assignment, grid.flatten(2)) / (assignment.sum(0)[:, None] + 1e-8)
    assert_close(back, expected, 1e-12)
    if hard:
        assert_close(back, poses, 1e-7)  # of which 1e-8 is in the formula


def test_uncovered_joints():
    assignment = one_hot([0, 1, 1, 3], 5)
    grid = torch.randn(2, 3, 2, 2)
    with pytest.raises(ValueError, match=r"leaves joints \[2, 4\] without a cell \(uncovered='zero' gives zeros\)"):
        ops.inverse_semantic_grid_transform(grid, assignment)
    joints = ops.inverse_semantic_grid_transform(grid, assignment, uncovered="zero")
    assert joints[:, [2, 4]].eq(0).all() and joints[:, [0, 1, 3]].abs().min() > 0


def test_gradients():
    joints, grid = torch.randn(2, 17, 2).double(), torch.randn(2, 3, 5, 5).double()
    assignment = torch.rand(25, 17).double()
    there, back = ops.semantic_grid_transform, ops.inverse_semantic_grid_transform
    assert torch.autograd.gradcheck(there, joints.requires_grad_())
    assert torch.autograd.gradcheck(back, grid.requires_grad_())
    assert torch.autograd.gradcheck(there, (joints[:1], assignment.requires_grad_()), fast_mode=True)
    assert torch.autograd.gradcheck(back, (grid[:1], assignment), fast_mode=True)


@pytest.mark.compiles
def test_vmap_compile_export():
    joints = torch.randn(2, 3, 17, 2)
    grids = func.vmap(ops.semantic_grid_transform)(joints)
    assert torch.equal(grids[1], ops.semantic_grid_transform(joints[1]))
    torch._dynamo.reset()

    class There(torch.nn.Module):
        def forward(self, joints, assignment):
            back = ops.inverse_semantic_grid_transform(ops.semantic_grid_transform(joints))
            grid = ops.semantic_grid_transform(back, assignment)
            return ops.inverse_semantic_grid_transform(grid, assignment, uncovered="zero")

    args = joints[0], torch.rand(25, 17)
    expected = There()(*args)
    assert_close(torch.compile(There(), fullgraph=True, backend="aot_eager")(*args), expected, 1e-6)
    assert_close(torch.export.export(There(), args).module()(*args), expected, 1e-6)


THERE, BACK = ops.semantic_grid_transform, ops.inverse_semantic_grid_transform
ERRORS = {
    "joints-rank": (lambda: THERE(torch.zeros(17, 2)), ValueError, "joints must have 3 dimensions"),
    "joints-list": (lambda: THERE([[0, 0]]), TypeError, "joints must be a tensor, got list"),
    "joints-dtype": (lambda: THERE(torch.zeros(1, 17, 2).int()), TypeError, "joints must be float64.* got torch.int32"),
    "joints-16": (
        lambda: THERE(torch.zeros(1, 16, 2)),
        ValueError,
        "handcrafted assignment is for 17 joints on 5x5 cells, got 16 joints on 5x5",
    ),
    "grid-4x5": (lambda: THERE(torch.zeros(1, 17, 2), grid_shape=(4, 5)), ValueError, "got 17 joints on 4x5"),
    "grid-back": (lambda: BACK(torch.zeros(1, 3, 5, 6)), ValueError, "17 joints on 5x5 cells, got 17 joints on 5x6"),
    "grid-rank": (lambda: BACK(torch.zeros(3, 5, 5)), ValueError, "grid must have 4 dimensions"),
    "name": (lambda: THERE(torch.zeros(1, 17, 2), "standard"), ValueError, "assignment must be 'handcrafted', got"),
    "assignment-rank": (
        lambda: THERE(torch.zeros(1, 17, 2), torch.zeros(1, 25, 17)),
        ValueError,
        "assignment must have 2 dimensions",
    ),
    "assignment-shape": (
        lambda: THERE(torch.zeros(1, 17, 2), torch.zeros(24, 17)),
        ValueError,
        r"assignment.shape must be \(5\*5 cells, 17 joints\) = \(25, 17\), got \(24, 17\)",
    ),
    "assignment-joints": (
        lambda: THERE(torch.zeros(1, 17, 2), torch.zeros(25, 16)),
        ValueError,
        r"= \(25, 17\), got \(25, 16\)",
    ),
    "assignment-back": (
        lambda: BACK(torch.zeros(1, 3, 4, 5), torch.zeros(25, 17)),
        ValueError,
        r"assignment.shape must be \(4\*5 cells, joints\) = \(20, 17\), got \(25, 17\)",
    ),
    "assignment-dtype": (
        lambda: THERE(torch.zeros(1, 17, 2), torch.zeros(25, 17).double()),
        TypeError,
        "assignment must have dtype torch.float32, got torch.float64",
    ),
    "uncovered": (lambda: BACK(torch.zeros(1, 3, 5, 5), uncovered="nan"), ValueError, "uncovered must be 'error' or"),
}


@pytest.mark.parametrize(("function", "kind", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_errors(function, kind, message):
    with pytest.raises(kind, match=message):
        function()
