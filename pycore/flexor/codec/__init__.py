# SPDX-License-Identifier: Apache-2.0
"""Video codecs: `flexor.codec.hevc` decodes the intra pictures of HEVC."""

from . import hevc

__all__ = ["hevc"]
