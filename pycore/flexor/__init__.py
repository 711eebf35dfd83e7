"""flexor: compiled kernels for the convolutions that bend, CPU and GPU, forward and backward."""

import torch  # noqa: F401  # first: flexor._C then shares torch's OpenMP runtime

from . import _C  # noqa: F401

__version__ = "0.1.0"
