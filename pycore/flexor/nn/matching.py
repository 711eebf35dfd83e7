# SPDX-License-Identifier: Apache-2.0
"""Heads that match features with kernels made from another image: SiamRPN's, SiamRPN++'s and DKD's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..ops import xcorr2d, xcorr2d_depthwise


class DynamicKernelMatching(nn.Module):
    """Joint heatmaps of a frame from pose kernels of the frame before: project, match channel by channel, mix.

        heatmaps = U(kernel (*) V(features)), V and U convolutions of 1x1

    Args:
        channels: of features and kernels.
        joints: heatmaps.
        kernel_size: side of the kernels, pixels, odd; the heatmaps have the size of the features.

    Raises:
        ValueError: an even kernel_size; at the call a kernel of another size.

    Source:
        Nie et al., Dynamic Kernel Distillation for Efficient Pose Estimation in Videos, ICCV 2019; the factorisation
        is that of Bertinetto et al., Learning feed-forward one-shot learners, NIPS 2016.
    """

    def __init__(self, channels: int = 256, joints: int = 13, kernel_size: int = 7) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"DynamicKernelMatching: kernel_size must be odd, got {kernel_size}")
        self.channels, self.joints, self.kernel_size = channels, joints, kernel_size
        self.project = nn.Conv2d(channels, channels, 1)
        self.mix = nn.Conv2d(channels, joints, 1)

    def forward(self, features: Tensor, kernel: Tensor) -> Tensor:
        """Features (B, channels, H, W) and kernel (B, channels, kernel_size, kernel_size) to (B, joints, H, W)."""
        expected = (features.shape[0], self.channels, self.kernel_size, self.kernel_size)
        if tuple(kernel.shape) != expected:
            raise ValueError(
                f"DynamicKernelMatching: kernel must be (B, channels, kernel_size, kernel_size) = {expected}, "
                f"got {tuple(kernel.shape)}"
            )
        matched: Tensor = self.mix(xcorr2d_depthwise(self.project(features), kernel, self.kernel_size // 2))
        return matched

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}"


class XCorr(nn.Module):
    """Matching over all channels: a convolution turns the template into one kernel for every output channel.

    Args:
        in_channels: of template and search features.
        out_channels: of the response, as many kernels are made from each template.
        kernel_size: of both convolutions, which have no padding.

    Source:
        Li et al., High Performance Visual Tracking with Siamese Region Proposal Network, CVPR 2018, section 3.2.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.template_conv = nn.Conv2d(in_channels, in_channels * out_channels, kernel_size)
        self.search_conv = nn.Conv2d(in_channels, in_channels, kernel_size)

    def forward(self, kernel: Tensor, search: Tensor) -> Tensor:
        """Template features (B, C, h, w) and search features (B, C, H, W) to (B, out_channels, H-h+1, W-w+1)."""
        return _up_channel(self.template_conv(kernel), self.search_conv(search))


class UPChannelRPN(nn.Module):
    """SiamRPN's head: two matchings over all channels, anchors' classes and boxes; pysot's class of that name.

    Args:
        anchor_num: anchors at every position.
        feature_in: channels of template and search features.

    Source:
        Li et al., High Performance Visual Tracking with Siamese Region Proposal Network, CVPR 2018, section 3.2.
        Attributes, and so checkpoints, are those of github.com/STVIR/pysot.
    """

    def __init__(self, anchor_num: int = 5, feature_in: int = 256) -> None:
        super().__init__()
        cls_output, loc_output = 2 * anchor_num, 4 * anchor_num
        self.template_cls_conv = nn.Conv2d(feature_in, feature_in * cls_output, 3)
        self.template_loc_conv = nn.Conv2d(feature_in, feature_in * loc_output, 3)
        self.search_cls_conv = nn.Conv2d(feature_in, feature_in, 3)
        self.search_loc_conv = nn.Conv2d(feature_in, feature_in, 3)
        self.loc_adjust = nn.Conv2d(loc_output, loc_output, 1)

    def forward(self, z_f: Tensor, x_f: Tensor) -> tuple[Tensor, Tensor]:
        """Features of template z_f and search x_f to classes (B, 2 * anchors, h, w), boxes (B, 4 * anchors, h, w)."""
        cls = _up_channel(self.template_cls_conv(z_f), self.search_cls_conv(x_f))
        loc = _up_channel(self.template_loc_conv(z_f), self.search_loc_conv(x_f))
        return cls, self.loc_adjust(loc)


class DepthwiseXCorr(nn.Module):
    """SiamRPN++'s matching: both features through a convolution, channel by channel, then mixed by two of 1x1.

    Args:
        in_channels: of template and search features.
        hidden: channels that are matched.
        out_channels: of the response.
        kernel_size: of the convolutions before the matching, which have no padding.

    Source:
        Li et al., SiamRPN++, CVPR 2019, section 3.4. Attributes, and so checkpoints, are those of
        github.com/STVIR/pysot.
    """

    def __init__(self, in_channels: int, hidden: int, out_channels: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.conv_kernel = _conv_bn_relu(in_channels, hidden, kernel_size)
        self.conv_search = _conv_bn_relu(in_channels, hidden, kernel_size)
        self.head = nn.Sequential(*_conv_bn_relu(hidden, hidden, 1), nn.Conv2d(hidden, out_channels, 1))

    def forward(self, kernel: Tensor, search: Tensor) -> Tensor:
        """Template features (B, C, h, w) and search features (B, C, H, W) to (B, out_channels, H-h+1, W-w+1)."""
        matched: Tensor = self.head(xcorr2d_depthwise(self.conv_search(search), self.conv_kernel(kernel)))
        return matched


class DepthwiseRPN(nn.Module):
    """SiamRPN++'s head of one layer: two depth-wise matchings, anchors' classes and boxes; pysot's of that name.

    Args:
        anchor_num: anchors at every position.
        in_channels: of template and search features.
        out_channels: that are matched.

    Source:
        Li et al., SiamRPN++, CVPR 2019, section 3.4.
    """

    def __init__(self, anchor_num: int = 5, in_channels: int = 256, out_channels: int = 256) -> None:
        super().__init__()
        self.cls = DepthwiseXCorr(in_channels, out_channels, 2 * anchor_num)
        self.loc = DepthwiseXCorr(in_channels, out_channels, 4 * anchor_num)

    def forward(self, z_f: Tensor, x_f: Tensor) -> tuple[Tensor, Tensor]:
        """Features of template z_f and search x_f to classes (B, 2 * anchors, h, w), boxes (B, 4 * anchors, h, w)."""
        return self.cls(z_f, x_f), self.loc(z_f, x_f)


class MultiRPN(nn.Module):
    """SiamRPN++'s head of several layers: the mean of their responses, weighted where asked; pysot's of that name.

    Args:
        anchor_num: anchors at every position.
        in_channels: of each layer's features.
        weighted: the mean has learnt weights, one softmax for the classes and one for the boxes.

    Source:
        Li et al., SiamRPN++, CVPR 2019, section 3.3.
    """

    def __init__(self, anchor_num: int, in_channels: Sequence[int], weighted: bool = False) -> None:
        super().__init__()
        self.weighted = weighted
        for layer, channels in enumerate(in_channels, start=2):
            self.add_module(f"rpn{layer}", DepthwiseRPN(anchor_num, channels, channels))
        if weighted:
            self.cls_weight = nn.Parameter(torch.ones(len(in_channels)))
            self.loc_weight = nn.Parameter(torch.ones(len(in_channels)))

    def forward(self, z_fs: Sequence[Tensor], x_fs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """One template and one search feature a layer, to classes and boxes as `DepthwiseRPN` gives them."""
        pairs = zip(self.children(), z_fs, x_fs, strict=True)
        cls, loc = (torch.stack(each) for each in zip(*(rpn(z_f, x_f) for rpn, z_f, x_f in pairs), strict=True))
        if not self.weighted:
            return cls.mean(0), loc.mean(0)
        return _weighted_mean(cls, self.cls_weight), _weighted_mean(loc, self.loc_weight)


def _up_channel(kernel: Tensor, search: Tensor) -> Tensor:
    """Kernel (B, K * C, h, w), of which every C channels are one kernel, and search (B, C, H, W)."""
    return xcorr2d(search, kernel.unflatten(1, (-1, search.shape[1])))


def _conv_bn_relu(in_channels: int, out_channels: int, kernel_size: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


def _weighted_mean(layers: Tensor, weight: Tensor) -> Tensor:
    return (layers * weight.softmax(0)[:, None, None, None, None]).sum(0)
