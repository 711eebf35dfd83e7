# SPDX-License-Identifier: Apache-2.0
"""flexor: compiled kernels for the convolutions that bend, CPU and GPU, forward and backward."""

import torch  # noqa: F401  # first: flexor._C then shares torch's OpenMP runtime

from . import codec, compat, nn, ops, reference, sparse
from ._backend import set_backend
from ._info import explain, info
from ._replace import replace

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "codec",
    "compat",
    "explain",
    "info",
    "nn",
    "ops",
    "reference",
    "replace",
    "set_backend",
    "sparse",
]
