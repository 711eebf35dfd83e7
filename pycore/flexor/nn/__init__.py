# SPDX-License-Identifier: Apache-2.0
"""Modules that hold the parameters of the ops."""

from .condconv2d import CondConv2d, DyConv2d
from .deform_conv2d import DeformConv2d, DeformConv2dPack, ModulatedDeformConv2d, ModulatedDeformConv2dPack
from .grid_conv import DGridConv, GridAttention, GridConv, LearnableGridAssignment, fuse_grid_conv_bn_eval
from .matching import DepthwiseRPN, DepthwiseXCorr, DynamicKernelMatching, MultiRPN, UPChannelRPN, XCorr
from .odconv2d import ODConv1d, ODConv2d, annealed_temperature, fuse_odconv_bn_eval, update_temperature

__all__ = [
    "CondConv2d",
    "DGridConv",
    "DeformConv2d",
    "DeformConv2dPack",
    "DepthwiseRPN",
    "DepthwiseXCorr",
    "DyConv2d",
    "DynamicKernelMatching",
    "GridAttention",
    "GridConv",
    "LearnableGridAssignment",
    "ModulatedDeformConv2d",
    "ModulatedDeformConv2dPack",
    "MultiRPN",
    "ODConv1d",
    "ODConv2d",
    "UPChannelRPN",
    "XCorr",
    "annealed_temperature",
    "fuse_grid_conv_bn_eval",
    "fuse_odconv_bn_eval",
    "update_temperature",
]
