# SPDX-License-Identifier: Apache-2.0
"""The ops: functions that check their arguments, choose a backend and differentiate."""

from .affine_warp2d import affine_warp2d
from .deform_conv2d import deform_conv2d
from .odconv2d import odconv1d, odconv2d
from .warp2d import warp2d
from .xcorr2d import xcorr2d
from .xcorr2d_depthwise import xcorr2d_depthwise

__all__ = ["affine_warp2d", "deform_conv2d", "odconv1d", "odconv2d", "warp2d", "xcorr2d", "xcorr2d_depthwise"]
