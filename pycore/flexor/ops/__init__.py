# SPDX-License-Identifier: Apache-2.0
"""The ops: functions that check their arguments, choose a backend and differentiate."""

from .deform_conv2d import deform_conv2d

__all__ = ["deform_conv2d"]
