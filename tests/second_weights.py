# SPDX-License-Identifier: Apache-2.0
"""Weights that test_sparse_unet.py and data/make_second_golden.py draw alike: so many would not fit in a small file."""

import numpy as np


def fill(name: str, shape: tuple[int, ...], random: np.random.RandomState) -> np.ndarray:
    """A weight of that name and shape, of about its usual size."""
    drawn = random.standard_normal(shape).astype(np.float32)
    if len(shape) == 5:
        return drawn * np.float32((2 / np.prod(shape[1:])) ** 0.5)
    return 1 + np.abs(drawn) if name.endswith(("running_var", "weight")) else drawn / 10
