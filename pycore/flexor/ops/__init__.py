# SPDX-License-Identifier: Apache-2.0
"""The ops: functions that check their arguments, choose a backend and differentiate."""

from .affine_warp2d import affine_warp2d
from .conv3x3 import conv3x3
from .deform_conv2d import deform_conv2d
from .grid_conv import grid_conv
from .intra_predict import intra_predict
from .intra_search import INTRA_CANDIDATES, IntraCandidates, intra_search
from .odconv2d import odconv1d, odconv2d
from .semantic_grid_transform import inverse_semantic_grid_transform, semantic_grid_transform
from .sparse_conv import sparse_conv
from .sparse_index import SparseIndex, SparseMap
from .sparse_pool import sparse_pool
from .warp2d import warp2d
from .xcorr2d import xcorr2d
from .xcorr2d_depthwise import xcorr2d_depthwise

__all__ = [
    "INTRA_CANDIDATES",
    "IntraCandidates",
    "SparseIndex",
    "SparseMap",
    "affine_warp2d",
    "conv3x3",
    "deform_conv2d",
    "grid_conv",
    "intra_predict",
    "intra_search",
    "inverse_semantic_grid_transform",
    "odconv1d",
    "odconv2d",
    "semantic_grid_transform",
    "sparse_conv",
    "sparse_pool",
    "warp2d",
    "xcorr2d",
    "xcorr2d_depthwise",
]
