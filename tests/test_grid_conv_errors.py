# SPDX-License-Identifier: Apache-2.0
"""What grid_conv says to arguments that do not fit, on every backend."""

import pytest
import torch
from flexor import ops
from flexor.testing import running, ways

WAYS = [way for way in ways("grid_conv") if way.device == "cpu"]


def bad(**changes):
    arguments = {
        "input": torch.zeros(2, 6, 5, 5),
        "weight1": torch.zeros(4, 6, 3, 3),
        "weight2": torch.zeros(4, 6, 3, 3),
        "bias1": torch.zeros(4),
        "bias2": torch.zeros(4),
        "attention": torch.zeros(2, 9, 5, 5),
    }
    return arguments | changes


ONE = {"weight2": None, "bias2": None}
ERRORS = {
    "input-rank": (bad(input=torch.zeros(6, 5, 5)), ValueError, r"input must have 4 dimensions .*got \(6, 5, 5\)"),
    "input-none": (bad(input=None), TypeError, "input must be a tensor, got NoneType"),
    "input-dtype": (bad(input=torch.zeros(2, 6, 5, 5, dtype=torch.int32)), TypeError, "got torch.int32"),
    "input-sparse": (bad(input=torch.zeros(2, 6, 5, 5).to_sparse()), TypeError, "strided tensor, got torch.sparse_coo"),
    "input-channels": (
        bad(input=torch.zeros(2, 5, 5, 5)),
        ValueError,
        r"input.shape\[1\] must be weight1.shape\[1\] = 6, got 5 \(weight1 \(4, 6, 3, 3\)\)",
    ),
    "input-no-cells": (
        bad(input=torch.zeros(2, 6, 0, 5), attention=None),
        ValueError,
        "the grid must have cells, got 0x5",
    ),
    "weight1-rank": (bad(weight1=torch.zeros(4, 6, 3)), ValueError, "weight1 must have 4 dimensions"),
    "weight1-even": (
        bad(weight1=torch.zeros(4, 6, 3, 4)),
        ValueError,
        r"the kernel must have odd sides, got 3x4 \(weight1 \(4, 6, 3, 4\)\)",
    ),
    "weight1-empty": (bad(weight1=torch.zeros(0, 6, 3, 3)), ValueError, "no empty dimension"),
    "no-channels": (
        bad(input=torch.zeros(2, 0, 5, 5), weight1=torch.zeros(4, 0, 3, 3), weight2=torch.zeros(4, 0, 3, 3)),
        ValueError,
        r"weight1 must have no empty dimension, got \(4, 0, 3, 3\)",
    ),
    "no-filters": (
        bad(weight1=torch.zeros(0, 6, 3, 3), weight2=None, bias1=None, bias2=None, borders="c"),
        ValueError,
        r"weight1 must have no empty dimension, got \(0, 6, 3, 3\)",
    ),
    "weight1-dtype": (bad(weight1=torch.zeros(4, 6, 3, 3).double()), TypeError, "weight1 must have input's dtype"),
    "weight2-shape": (
        bad(weight2=torch.zeros(4, 6, 5, 3)),
        ValueError,
        r"weight2.shape must be weight1.shape = \(4, 6, 3, 3\), got \(4, 6, 5, 3\)",
    ),
    "weight2-dtype": (bad(weight2=torch.zeros(4, 6, 3, 3).half()), TypeError, "weight2 must have input's dtype"),
    "bias1-shape": (bad(bias1=torch.zeros(5)), ValueError, r"bias1.shape must be .* = \(4,\), got \(5,\)"),
    "bias2-shape": (bad(bias2=torch.zeros(3)), ValueError, r"bias2.shape must be .* = \(4,\), got \(3,\)"),
    "bias2-rank": (bad(bias2=torch.zeros(4, 1)), ValueError, "bias2 must have 1 dimensions"),
    "bias2-dtype": (bad(bias2=torch.zeros(4).double()), TypeError, "bias2 must have input's dtype"),
    "bias2-alone": (
        bad(weight2=None, borders="c"),
        ValueError,
        r"bias2 must be None where weight2 is None, got \(4,\)",
    ),
    "attention-rank": (bad(attention=torch.zeros(2, 9, 25)), ValueError, "attention must have 4 dimensions"),
    "attention-taps": (
        bad(attention=torch.zeros(2, 25, 5, 5)),
        ValueError,
        r"attention.shape must be \(B, kh\*kw, h, w\) = \(2, 9, 5, 5\), got \(2, 25, 5, 5\)",
    ),
    "attention-batch": (bad(attention=torch.zeros(1, 9, 5, 5)), ValueError, r"got \(1, 9, 5, 5\)"),
    "attention-axes": (bad(attention=torch.zeros(2, 1, 25, 9)), ValueError, r"got \(2, 1, 25, 9\)"),
    "attention-official-batch": (bad(attention=torch.zeros(1, 1, 9, 25)), ValueError, r"got \(1, 9, 5, 5\)"),
    "attention-dtype": (bad(attention=torch.zeros(2, 9, 5, 5).double()), TypeError, "attention must have input's"),
    "borders-short": (bad(borders="c"), ValueError, "borders must be two letters, one a branch, each .* got 'c'"),
    "borders-letter": (bad(borders="cx"), ValueError, "each 'c', 'r' or 'z', got 'cx'"),
    "borders-one": (bad(**ONE), ValueError, "borders must be one letter, weight2 being None, each .* got 'cr'"),
    "borders-empty": (bad(borders="", **ONE), ValueError, "got ''"),
    "backend": (bad(backend="numpy"), ValueError, "backend must be one of cpu, cuda, reference, triton, got 'numpy'"),
    "backend-cuda": (bad(backend="cuda"), RuntimeError, "backend 'cuda' cannot run: there is no CUDA"),
    "device": (
        bad(bias1=torch.zeros(4, device="meta")),
        ValueError,
        "all tensors must be on one device, got input on cpu",
    ),
}


@pytest.mark.parametrize(("arguments", "kind", "message"), ERRORS.values(), ids=ERRORS.keys())
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_errors(way, arguments, kind, message):
    with running(way), pytest.raises(kind, match=message):
        ops.grid_conv(**arguments)


def test_sizes_that_no_machine_has():
    """Checked arithmetic on meta tensors: nothing is allocated."""

    def meta(*shape):
        return torch.empty(1, device="meta").expand(shape)

    big = ops.grid_conv(meta(2**30, 1, 5, 5), meta(3, 1, 3, 3), borders="c")
    assert big.shape == (2**30, 3, 5, 5)
    with pytest.raises(ValueError, match=r"output .* would have .* bytes, more than a 64-bit size can hold"):
        ops.grid_conv(meta(2**30, 1, 2**16, 2**14), meta(3, 1, 1, 1), borders="c")
