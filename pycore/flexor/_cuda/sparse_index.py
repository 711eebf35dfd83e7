# SPDX-License-Identifier: Apache-2.0
"""Indices and maps of sparse convolution on a GPU."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from .. import reference
from . import neighbours

Ints = Sequence[int]


def sparse_map(
    out_parts: Sequence[Tensor],
    in_parts: Sequence[Tensor],
    dims: int,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    transposed: bool,
) -> list[Tensor]:
    """The pairs of two indices at every tap, as `neighbours` has them."""
    lists = reference.sparse_map(out_parts, in_parts, dims, kernel, stride, padding, dilation, transposed)
    return neighbours.from_lists([out_parts[0], in_parts[0], *lists], math.prod(kernel))
