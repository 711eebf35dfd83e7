# SPDX-License-Identifier: Apache-2.0
"""DKD: a frame is matched with pose kernels that were distilled from the frame before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

from ...nn import Conv3x3, DynamicKernelMatching
from ._checks import check_images
from .resnet import ResNet
from .simple_baseline import SimpleBaseline

__all__ = ["DKD", "DKDCost", "DKDState", "FrameEncoder", "KernelDistillator", "dkd", "dkd_cost"]


class DKDState(NamedTuple):
    """What a frame leaves to the next: its features (B, width, h, w) and its heatmaps (B, joints, h, w)."""

    features: Tensor
    heatmaps: Tensor


class DKD(nn.Module):
    """Joint heatmaps of a video, frame after frame: the first by a whole network, the others by matching.

        h_1 = initialiser(I_1);   f_t = encoder(I_t);   k_t = distillator(f_{t-1}, h_{t-1})
        h_t = U (k_t (*) V f_t)   for t >= 2

    (*) correlates every channel with the kernel that was distilled for it, V and U are convolutions of 1x1
    (`flexor.nn.DynamicKernelMatching`). There is no official code: distilling kernels in one pass and matching them by
    convolution is the paper's, these equations are our reading of it, and the sizes are ours:

    * The initialiser is SimpleBaseline. The encoder is a ResNet with three transposed convolutions as well, but of
      `width` channels: one as wide as the initialiser's would already cost what SimpleBaseline costs for a frame.
    * encoder_depth below depth makes the small network for every frame that the method is meant for.
    * The distillator pools before its convolutions; see `KernelDistillator`.

    Args:
        depth: of the initialiser's ResNet: 18, 34, 50, 101 or 152.
        joints: number of heatmaps; 13 for Penn Action.
        encoder_depth: of the encoder's ResNet; None for the initialiser's.
        width: channels that are matched.
        kernel_size: side of the pose kernels in heatmap pixels, odd.

    Raises:
        ValueError: an unknown depth, an even kernel; frames or a state of other shapes.
        TypeError: frames that are not floating point.

    Source:
        Nie et al., Dynamic Kernel Distillation for Efficient Pose Estimation in Videos, ICCV 2019.
    """

    def __init__(
        self,
        depth: int = 50,
        joints: int = 13,
        encoder_depth: int | None = None,
        width: int = 128,
        kernel_size: int = 7,
    ) -> None:
        super().__init__()
        self.initialiser = SimpleBaseline(depth, joints)
        self.encoder = FrameEncoder(depth if encoder_depth is None else encoder_depth, width)
        self.distillator = KernelDistillator(width, joints, kernel_size)
        self.matching = DynamicKernelMatching(width, joints, kernel_size)
        nn.init.normal_(self.matching.mix.weight, std=0.001)  # as the initialiser's last layer: maps start near 0
        nn.init.zeros_(self.matching.mix.bias)  # type: ignore[arg-type]

    def forward(self, clip: Tensor) -> Tensor:
        """Frames (B, T, 3, H, W), H and W multiples of 32, to heatmaps (B, T, joints, H/4, W/4)."""
        if clip.dim() != 5 or clip.shape[1] == 0:
            raise ValueError(f"DKD: clip must be (B, T, 3, H, W) with T at least 1, got {tuple(clip.shape)}")
        state, heatmaps = None, []
        for frame in clip.unbind(1):
            found, state = self.step(frame, state)
            heatmaps.append(found)
        return torch.stack(heatmaps, 1)

    def step(self, frame: Tensor, state: DKDState | None = None) -> tuple[Tensor, DKDState]:
        """One frame of a stream: what `forward` does, bit for bit, without the frames to come.

        Args:
            frame: (B, 3, H, W).
            state: what the last step returned; None for the first frame, and after a cut.

        Returns:
            Heatmaps (B, joints, H/4, W/4), and the state for the next frame.
        """
        check_images("DKD", frame, argument="frame")
        features = self.encoder(frame)
        if state is None:
            heatmaps = self.initialiser(frame)
        else:
            _check_state(features, state)
            heatmaps = self.matching(features, self.distillator(*state))
        return heatmaps, DKDState(features, heatmaps)


class FrameEncoder(ResNet):
    """A frame (B, 3, H, W) to features (B, width, H/4, W/4): a ResNet and three doublings of its resolution.

    Args:
        depth: of the ResNet.
        width: channels of each transposed convolution.

    Source:
        Xiao et al., Simple Baselines for Human Pose Estimation and Tracking, ECCV 2018, without its last layer; the
        width is ours.
    """

    def __init__(self, depth: int, width: int) -> None:
        super().__init__(depth)
        self.deconv_layers = nn.Sequential()
        for inputs in (self.channels, width, width):
            deconv = nn.ConvTranspose2d(inputs, width, 4, stride=2, padding=1, bias=False)
            nn.init.normal_(deconv.weight, std=0.001)
            self.deconv_layers.extend([deconv, *_norm_relu(width)])

    def forward(self, images: Tensor) -> Tensor:
        return self.deconv_layers(super().forward(images))


class KernelDistillator(nn.Module):
    """Features and heatmaps of a frame to the kernels that will find its joints in the next one.

        cat -> 1x1 -> pool -> 3x3 -> pool -> 3x3 -> pool to kernel_size -> 3x3

    Convolutions go to `width` channels, with batch norm after each and ReLU after all but the last. The first two
    pools halve; the last is adaptive, so that any size of heatmap gives kernels of one size.

    Args:
        width: channels of the features and of the kernels.
        joints: heatmaps.
        kernel_size: side of the kernels.

    Source:
        Nie et al., ICCV 2019: a small convolutional network in one feed-forward pass; its layers are ours.
    """

    def __init__(self, width: int, joints: int, kernel_size: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width + joints, width, 1, bias=False), *_norm_relu(width), nn.MaxPool2d(2),
            Conv3x3(width, width, bias=False), *_norm_relu(width), nn.MaxPool2d(2),
            Conv3x3(width, width, bias=False), *_norm_relu(width), nn.AdaptiveMaxPool2d(kernel_size),
            Conv3x3(width, width, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, features: Tensor, heatmaps: Tensor) -> Tensor:
        """(B, width, h, w) and (B, joints, h, w) to (B, width, kernel_size, kernel_size)."""
        return self.layers(torch.cat((features, heatmaps), 1))


def dkd(
    depth: int = 50, joints: int = 13, encoder_depth: int | None = None, width: int = 128, kernel_size: int = 7
) -> DKD:
    """DKD with random weights; arguments as the class has them."""
    return DKD(depth, joints, encoder_depth, width, kernel_size)


class DKDCost(NamedTuple):
    """Multiply-adds of each part for one frame; the initialiser's are also those of SimpleBaseline for every frame."""

    initialiser: int
    encoder: int
    distillator: int
    matching: int

    @property
    def first_frame(self) -> int:
        return self.initialiser + self.encoder

    @property
    def later_frame(self) -> int:
        return self.encoder + self.distillator + self.matching


def dkd_cost(
    depth: int = 50,
    joints: int = 13,
    encoder_depth: int | None = None,
    width: int = 128,
    kernel_size: int = 7,
    input_size: Sequence[int] = (256, 256),
) -> DKDCost:
    """Counts the multiply-adds of convolutions and of the matching for one frame.

    Args:
        depth, joints, encoder_depth, width, kernel_size: as for `DKD`.
        input_size: (H, W), pixels, multiples of 32.

    Returns:
        The count of every part. Nothing is computed or allocated.
    """
    with torch.device("meta"):
        model = DKD(depth, joints, encoder_depth, width, kernel_size).eval()
        frame = torch.empty(1, 3, *input_size)
    state = model.step(frame)[1]
    kernels = model.distillator(*state)
    return DKDCost(
        _multiply_adds(model.initialiser, frame),
        _multiply_adds(model.encoder, frame),
        _multiply_adds(model.distillator, *state),
        _multiply_adds(model.matching, state.features, kernels),
    )


def _multiply_adds(module: nn.Module, *inputs: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*inputs)
    return counter.get_total_flops() // 2


@register_flop_formula(torch.ops.flexor.xcorr2d_depthwise)
def _xcorr2d_depthwise_flops(
    input: Sequence[int], kernel: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any
) -> int:
    """Two for every multiply-add."""
    return 2 * torch.Size(out_shape).numel() * kernel[2] * kernel[3]


def _norm_relu(width: int) -> tuple[nn.Module, nn.Module]:
    return nn.BatchNorm2d(width), nn.ReLU(inplace=True)


def _check_state(features: Tensor, state: DKDState) -> None:
    if not isinstance(state, DKDState):
        raise TypeError(f"DKD.step: state must be the DKDState of the step before or None, got {type(state).__name__}")
    if state.features.shape != features.shape:
        raise ValueError(
            f"DKD.step: the state is of frames whose features are {tuple(state.features.shape)}, this frame's are "
            f"{tuple(features.shape)}; pass state=None to begin anew"
        )
