# SPDX-License-Identifier: Apache-2.0
"""The layers of grid convolution networks, with the parameters, names and initialisation of the published ones."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import grid_conv
from ._attention import OneValueBatchNorm2d

Branches = tuple[Tensor, Tensor, Tensor | None, Tensor | None]

_SKELETON = (17, 5, 5)  # joints and grid of the named priors
PRIORS: dict[str, tuple[tuple[int, ...], ...]] = {
    "standard": (
        (7, 7, 7, 7, 7),
        (0, 8, 8, 8, 0),
        (4, 11, 9, 14, 1),
        (5, 12, 9, 15, 2),
        (6, 13, 10, 16, 3),
    ),
    "learnt_type1": (
        (7, 4, 7, 1, 0),
        (0, 8, 8, 8, 0),
        (4, 11, 9, 14, 1),
        (5, 12, 9, 15, 2),
        (6, 13, 10, 16, 3),
    ),
    "learnt_type2": (
        (0, 15, 7, 1, 0),
        (1, 14, 8, 7, 0),
        (4, 0, 9, 13, 1),
        (2, 6, 11, 10, 2),
        (5, 12, 14, 16, 3),
    ),
    "learnt_type3": (
        (9, 7, 7, 10, 7),
        (13, 8, 10, 15, 16),
        (9, 12, 7, 14, 1),
        (4, 5, 7, 3, 11),
        (7, 6, 9, 2, 14),
    ),
}


class GridConv(nn.Module):
    """Static grid convolution: a circular and a zero-bordered convolution, summed.

    Args:
        in_channels, out_channels: channels.
        kernel_size: side of both kernels, taps, odd.
        bias: whether both branches have one.
        padding_mode: a letter a branch, as `flexor.ops.grid_conv` has them.

    Raises:
        ValueError: an even kernel, or other letters.

    Source:
        Kang et al., 3D Human Pose Lifting with Grid Convolution, AAAI 2023; TwoBranchGridConv of its official code,
        with the border of one cell that the paper means (newer versions of PyTorch no longer run that code).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        bias: bool = False,
        padding_mode: Sequence[str] = "cz",
    ) -> None:
        super().__init__()
        self.borders = _borders(type(self).__name__, kernel_size, padding_mode)
        self.donut_conv = nn.Conv2d(in_channels, out_channels, kernel_size, bias=bias)
        self.tablet_conv = nn.Conv2d(in_channels, out_channels, kernel_size, bias=bias)

    def branches(self) -> Branches:
        """Both weights, then both biases."""
        return self.donut_conv.weight, self.tablet_conv.weight, self.donut_conv.bias, self.tablet_conv.bias

    def forward(self, input: Tensor) -> Tensor:
        return grid_conv(input, *self.branches(), None, self.borders)


class DGridConv(nn.Module):
    """Dynamic grid convolution: two kernels with different borders, both under an attention that comes with a call.

    Args:
        in_channels, out_channels: channels.
        kernel_size: side of both kernels, taps, odd.
        padding_mode: a letter a branch, as `flexor.ops.grid_conv` has them.
        bias: whether both branches have one.

    Raises:
        ValueError: an even kernel, or other letters.

    Source:
        Kang et al., 3D Human Pose Lifting with Grid Convolution, AAAI 2023; TwoBranchDGridConv of its official code.
    """

    branch1_bias: Tensor | None
    branch2_bias: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        padding_mode: Sequence[str] = "cr",
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.borders = _borders(type(self).__name__, kernel_size, padding_mode)
        shape = out_channels, in_channels, kernel_size, kernel_size
        self.branch1_weight = nn.Parameter(torch.empty(shape))
        self.branch2_weight = nn.Parameter(torch.empty(shape))
        for name in ("branch1_bias", "branch2_bias"):
            self.register_parameter(name, nn.Parameter(torch.empty(out_channels)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        weight1, weight2, bias1, bias2 = self.branches()
        for weight, bias in ((weight1, bias1), (weight2, bias2)):
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
            if bias is not None:
                bound = 1 / math.sqrt(weight[0].numel())
                nn.init.uniform_(bias, -bound, bound)

    def branches(self) -> Branches:
        """Both weights, then both biases."""
        return self.branch1_weight, self.branch2_weight, self.branch1_bias, self.branch2_bias

    def forward(self, input: Tensor, attention: Tensor | None = None) -> Tensor:
        return grid_conv(input, *self.branches(), attention, self.borders)


class GridAttention(nn.Module):
    """What a dynamic grid convolution multiplies each tap by at each cell, from the mean of its input.

        attention = sigmoid(position_fc(relu(bn(fc(mean of input over cells)))) / temperature)

    A single sample in training has no variance: the running statistics serve, where the published layer raises.

    Args:
        in_channels: channels of the convolution's input.
        grid_shape: (h, w), cells.
        kernel_size: side of the convolution's kernels, taps.
        temperature: what the logits are divided by. Not part of the state_dict.
        ratio: hidden channels per input channel.
        min_channels: hidden channels at least.

    Source:
        Kang et al., 3D Human Pose Lifting with Grid Convolution, AAAI 2023; DynamicAttention2D of its official code.
    """

    def __init__(
        self,
        in_channels: int,
        grid_shape: Sequence[int] = (5, 5),
        kernel_size: int = 3,
        temperature: float = 30.0,
        ratio: float = 1 / 16,
        min_channels: int = 16,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        hidden = max(int(in_channels * ratio), min_channels)
        self.shape = (kernel_size**2, *grid_shape)
        self.fc = nn.Conv2d(in_channels, hidden, 1, bias=False)
        self.bn = OneValueBatchNorm2d(hidden)
        self.position_fc = nn.Conv2d(hidden, math.prod(self.shape), 1)
        for conv in (self.fc, self.position_fc):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.position_fc.bias)

    def update_temperature(self, temperature: float) -> None:
        self.temperature = temperature

    def forward(self, input: Tensor) -> Tensor:
        hidden = F.linear(input.mean((2, 3)), self.fc.weight.flatten(1), self.fc.bias)
        hidden = self.bn(hidden[:, :, None, None]).flatten(1).relu()
        logits = F.linear(hidden, self.position_fc.weight.flatten(1), self.position_fc.bias)
        return (logits / self.temperature).sigmoid().unflatten(1, self.shape)

    @torch.no_grad()
    def fused(self) -> GridAttention:
        """A copy for evaluation alone, its batch norm and temperature folded into the layers around them."""
        fused = copy.deepcopy(self).eval()
        fused.fc = nn.utils.fuse_conv_bn_eval(fused.fc, fused.bn)
        fused.bn = nn.Identity()
        for parameter in fused.position_fc.parameters():
            parameter.div_(self.temperature)
        fused.temperature = 1.0
        return fused


def fuse_grid_conv_bn_eval(conv: GridConv | DGridConv, bn: nn.BatchNorm2d) -> DGridConv:
    """A grid convolution that also does the batch normalisation after it, in evaluation.

        gamma / sigma * (sum of both branches - mean) + beta, with the biases of both and the shift as one bias

    Args:
        conv: a `GridConv` or `DGridConv`.
        bn: with weight, bias and running statistics, as many channels as conv has outputs.

    Returns:
        A `DGridConv` in evaluation mode, called with the attention that conv has, if any; neither argument changes.

    Raises:
        ValueError: either module is in training mode, or bn lacks one of these.
    """
    if conv.training or bn.training:
        raise ValueError("fuse_grid_conv_bn_eval: both modules must be in evaluation mode")
    if bn.weight is None or bn.running_mean is None or bn.running_var is None:
        raise ValueError("fuse_grid_conv_bn_eval: bn must have a weight, a bias and running statistics")
    weight1, weight2, *biases = conv.branches()
    outputs, inputs, size, _ = weight1.shape
    fused = DGridConv(inputs, outputs, size, conv.borders, bias=True).to(weight1).eval()
    with torch.no_grad():
        scale = bn.weight * (bn.running_var + bn.eps).rsqrt()
        shift = bn.bias - bn.running_mean * scale
        for bias in biases:
            shift = shift if bias is None else shift + bias * scale
        fused.branch1_weight.copy_(weight1 * scale[:, None, None, None])
        fused.branch2_weight.copy_(weight2 * scale[:, None, None, None])
    fused.branch1_bias, fused.branch2_bias = nn.Parameter(shift), None
    return fused


class LearnableGridAssignment(nn.Module):
    """A learned choice of one joint for every cell of a grid: in evaluation each cell's best joint alone.

    In training every logit receives a gradient: through a softmax of the logits with Gumbel noise, or through the
    hard choice as if it were the logits themselves (straight-through).

    Args:
        joints: number of joints.
        grid_shape: (h, w), cells.
        prior: where the logits start: a layout of 17 joints on 5x5 cells ("standard", "learnt_type1" to
            "learnt_type3", of which the last leaves joint 0 without a cell), "random_prob" for random probabilities
            on any grid, or a tensor (h * w, joints) in which every joint is some cell's best.
        mode: "gumbel" or "straight-through", the way of training.
        tau: temperature of the Gumbel softmax.

    Raises:
        ValueError: an unknown prior or mode; a named prior for other joints or another grid; a prior of the wrong
            shape, or that leaves joints without a cell.

    Source:
        Kang et al., 3D Human Pose Lifting with Grid Convolution, AAAI 2023; AutoSGT of its official code.
    """

    def __init__(
        self,
        joints: int = 17,
        grid_shape: Sequence[int] = (5, 5),
        prior: str | Tensor = "standard",
        mode: str = "gumbel",
        tau: float = 1.0,
    ) -> None:
        super().__init__()
        if mode not in ("gumbel", "straight-through"):
            raise ValueError(f"LearnableGridAssignment: mode must be 'gumbel' or 'straight-through', got {mode!r}")
        self.mode, self.tau = mode, tau
        self.sgt_trans_mat = nn.Parameter(_prior(joints, *grid_shape, prior)[None])
        if isinstance(prior, Tensor) and self.uncovered():
            raise ValueError(f"LearnableGridAssignment: the prior leaves joints {self.uncovered()} without a cell")

    def forward(self) -> Tensor:
        """The assignment (h * w, joints) that `flexor.ops.semantic_grid_transform` takes."""
        logits = self.sgt_trans_mat[0]
        if self.training and self.mode == "gumbel":
            return F.gumbel_softmax(logits, self.tau, dim=-1)
        hard = torch.zeros_like(logits).scatter(1, logits.argmax(1, keepdim=True), 1.0)
        return hard + (logits - logits.detach()) if self.training else hard

    def uncovered(self) -> list[int]:
        """The joints that no cell chooses; in evaluation they come out as zeros."""
        chosen = set(self.sgt_trans_mat[0].argmax(1).tolist())
        return [joint for joint in range(self.sgt_trans_mat.shape[2]) if joint not in chosen]


def _borders(name: str, kernel_size: int, padding_mode: Sequence[str]) -> str:
    borders = "".join(padding_mode)
    if len(borders) != 2 or not set(borders) <= set("crz"):
        raise ValueError(f"{name}: padding_mode must be two letters of 'c', 'r' and 'z', got {padding_mode!r}")
    if kernel_size % 2 == 0:
        raise ValueError(f"{name}: kernel_size must be odd, got {kernel_size}")
    return borders


def _prior(joints: int, h: int, w: int, prior: str | Tensor) -> Tensor:
    if isinstance(prior, Tensor):
        if prior.shape != (h * w, joints):
            raise ValueError(
                f"LearnableGridAssignment: prior.shape must be ({h}*{w} cells, joints) = ({h * w}, {joints}), "
                f"got {tuple(prior.shape)}"
            )
        return prior.detach().clone()
    if prior == "random_prob":
        return torch.rand(h * w, joints).softmax(1)
    if prior not in PRIORS:
        names = ", ".join(map(repr, PRIORS))
        raise ValueError(f"LearnableGridAssignment: prior must be {names}, 'random_prob' or a tensor, got {prior!r}")
    if (joints, h, w) != _SKELETON:
        raise ValueError(
            f"LearnableGridAssignment: prior {prior!r} is for 17 joints on 5x5 cells, got {joints} joints on {h}x{w}"
        )
    return F.one_hot(torch.tensor(PRIORS[prior]).flatten(), joints).float()
