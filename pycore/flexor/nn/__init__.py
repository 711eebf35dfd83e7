# SPDX-License-Identifier: Apache-2.0
"""Modules that hold the parameters of the ops."""

from .deform_conv2d import DeformConv2d, DeformConv2dPack, ModulatedDeformConv2d, ModulatedDeformConv2dPack
from .matching import DepthwiseRPN, DepthwiseXCorr, DynamicKernelMatching, MultiRPN, UPChannelRPN, XCorr

__all__ = [
    "DeformConv2d",
    "DeformConv2dPack",
    "DepthwiseRPN",
    "DepthwiseXCorr",
    "DynamicKernelMatching",
    "ModulatedDeformConv2d",
    "ModulatedDeformConv2dPack",
    "MultiRPN",
    "UPChannelRPN",
    "XCorr",
]
