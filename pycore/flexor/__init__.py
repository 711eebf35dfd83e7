# SPDX-License-Identifier: Apache-2.0
"""flexor: compiled kernels for the convolutions that bend, CPU and GPU, forward and backward."""

import torch  # noqa: F401  # first: flexor._C then shares torch's OpenMP runtime

from . import _C, ops, reference  # noqa: F401
from ._backend import set_backend

__version__ = "0.1.0"

__all__ = ["__version__", "ops", "reference", "set_backend"]
