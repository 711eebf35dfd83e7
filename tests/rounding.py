# SPDX-License-Identifier: Apache-2.0
"""How far GPU kernels in float16 and bfloat16 may be off, element by element."""

import torch


def assert_rounded(found, exact, magnitude, what=""):
    """Tensor cores take operands in half precision: a scaled input, a mixed weight and the result are each rounded by
    half an epsilon of their size. magnitude is the result with every number in it made positive."""
    limits = torch.finfo(found.dtype)
    excess = (found.double().cpu() - exact).abs() - 2 * limits.eps * magnitude - limits.tiny
    assert found.shape == exact.shape and (excess <= 0).all(), f"{what}: beyond rounding by {excess.max():.3g}"


def positive(tensors):
    return [None if t is None else t.double().cpu().abs() for t in tensors]
