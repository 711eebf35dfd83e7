# SPDX-License-Identifier: Apache-2.0
"""Writes the scan of docs/voxels.md: a garage with a motorcycle, measured with structured light, in colour.

python docs/motorcycle_scan.py motorcycle.npz

It comes with scikit-image (`skimage.data.stereo_motorcycle`, BSD-3-Clause) and is of the Middlebury 2014 stereo data:
Scharstein et al., High-resolution stereo datasets with subpixel-accurate ground truth, GCPR 2014.
"""

import sys
from pathlib import Path

import numpy as np
from skimage import data

FOCAL, CENTRE_X, CENTRE_Y, OFFSET = 994.978, 311.193, 254.877, 31.086  # pixels, as scikit-image documents them
BASELINE = 0.193001  # metres
STEEPEST = 0.5  # pixels of disparity a pixel: beyond are edges, whose disparities were averaged over nothing real


def main(path: Path) -> None:
    """Metres: x to the right, y away from the camera, z up."""
    colour, _, disparity = data.stereo_motorcycle()
    known = np.where(np.isfinite(disparity), disparity.astype(np.float64), np.nan)
    steep = np.maximum(*np.abs(np.gradient(known)))
    depth = FOCAL * BASELINE / (known + OFFSET)
    row, column = np.mgrid[: depth.shape[0], : depth.shape[1]]
    xyz = np.stack([(column - CENTRE_X) * depth / FOCAL, depth, (CENTRE_Y - row) * depth / FOCAL], -1)
    good = np.isfinite(depth) & (steep < STEEPEST)
    np.savez_compressed(path, xyz=xyz[good].astype(np.float32), rgb=colour[good])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
