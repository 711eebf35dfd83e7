# SPDX-License-Identifier: Apache-2.0
"""What the tests of every op under transformations compare: the op with its twin, or with itself."""

import torch
from flexor.testing import assert_close


def loss(f):
    return lambda *args: f(*args).square().sum()


def assert_same(ours, twin, function, *args):
    """The same transformation of the op and of its twin, as a tree of tensors."""
    found, expected = (torch.utils._pytree.tree_leaves(function(f)(*args)) for f in (ours, twin))
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, 1e-10)


def assert_same_double_backward(ours, twin, args):
    """The gradient of a penalty on the gradients of all tensors."""
    args = [t.requires_grad_() for t in args]

    def penalty(f):
        first = torch.autograd.grad(f(*args).square().sum(), args, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), args)

    for a, b in zip(penalty(ours), penalty(twin), strict=True):
        assert_close(a, b, 1e-9)


def assert_deterministic(ours, args):
    """Equal bits in two runs where deterministic algorithms are asked for."""
    args = [t.requires_grad_() for t in args]
    torch.use_deterministic_algorithms(True)
    try:
        runs = [torch.autograd.grad(ours(*args).square().sum(), args) for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
