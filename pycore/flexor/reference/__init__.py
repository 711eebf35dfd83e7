# SPDX-License-Identifier: Apache-2.0
"""Plain PyTorch twins of the ops: readable, differentiable to any order, and slow."""

from .conv3x3 import conv3x3
from .deform_conv2d import deform_conv2d
from .grid_conv import grid_conv
from .intra_predict import intra_predict
from .intra_search import intra_search
from .odconv2d import odconv1d, odconv2d
from .sparse_conv import sparse_conv
from .sparse_index import sparse_index, sparse_map, sparse_output_index
from .sparse_pool import sparse_pool
from .warp2d import affine_warp2d, warp2d
from .xcorr2d import xcorr2d, xcorr2d_depthwise

__all__ = [
    "affine_warp2d",
    "conv3x3",
    "deform_conv2d",
    "grid_conv",
    "intra_predict",
    "intra_search",
    "odconv1d",
    "odconv2d",
    "sparse_conv",
    "sparse_index",
    "sparse_map",
    "sparse_output_index",
    "sparse_pool",
    "warp2d",
    "xcorr2d",
    "xcorr2d_depthwise",
]
