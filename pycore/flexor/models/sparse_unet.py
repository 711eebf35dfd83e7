# SPDX-License-Identifier: Apache-2.0
"""The U-Net of submanifold convolutions that SparseConvNet trains on ScanNet, with its weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn.sparse import SparseConv3d, SparseConvTranspose3d, SparseModule, SubmanifoldConv3d
from ..nn.sparse_norm import SparseBatchNorm
from ..nn.sparse_tensor import SparseTensor
from ..sparse.weights import load_weights

CLASSES = (
    *("wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture"),
    *("counter", "desk", "curtain", "refrigerator", "shower curtain", "toilet", "sink", "bathtub", "other furniture"),
)


@dataclass(frozen=True)
class ScanNetSettings:
    """How the official example trains on ScanNet: Adam at its default rate, cross entropy over points, 512 epochs.

    Args:
        width: channels of the first level, m; level l has l * m.
        reps: blocks on each side of a level.
        residual: residual blocks instead of VGG-style ones.
        scale: voxels a metre.
        batch: scenes a step.
        views: of each scene at test time, whose logits are summed; each is flipped, turned and moved at random.
        levels: of the U-Net.
        full_scale: voxels along each axis of the field into which a scene is moved at random.
        jitter: standard deviation of what is added to the entries of the identity that turns a scene in training.
        colour_jitter: standard deviation of what is added to a scene's three colour channels, of -1..1, in training.

    Source:
        github.com/facebookresearch/SparseConvNet, examples/ScanNet.
    """

    width: int
    reps: int
    residual: bool
    scale: float
    batch: int
    views: int
    levels: int = 7
    full_scale: int = 4096
    jitter: float = 0.1
    colour_jitter: float = 0.1


SETTINGS = {
    "small": ScanNetSettings(width=16, reps=1, residual=False, scale=20, batch=32, views=1),
    "large": ScanNetSettings(width=32, reps=2, residual=True, scale=50, batch=5, views=3),
}


class NormReLU(SparseBatchNorm):
    """Batch norm and (leaky) ReLU as SparseConvNet has them: eps 1e-4, a running mean of 1 % of each batch.

    Args:
        channels: of the input.
        slope: of the ReLU below 0.
        momentum: share of a batch in the running statistics; SparseConvNet counts it from the other end, 0.99.
    """

    def __init__(self, channels: int, slope: float = 0.0, momentum: float = 0.01) -> None:
        super().__init__(channels, eps=1e-4, momentum=momentum)
        self.slope = slope

    def forward(self, input: Any) -> Any:
        normed = super().forward(input)
        if isinstance(normed, SparseTensor):
            return normed.replace(F.leaky_relu(normed.features, self.slope, inplace=True))
        return F.leaky_relu(normed, self.slope, inplace=True)


@dataclass(frozen=True)
class _Style:
    reps: int
    residual: bool
    slope: float
    momentum: float

    def norm(self, channels: int) -> NormReLU:
        return NormReLU(channels, self.slope, self.momentum)

    def blocks(self, inputs: int, outputs: int) -> nn.ModuleList:
        kind = _ResidualBlock if self.residual else _Block
        return nn.ModuleList(kind(inputs if i == 0 else outputs, outputs, self) for i in range(self.reps))


class _Block(SparseModule):
    """conv(norm(x))"""

    def __init__(self, inputs: int, outputs: int, style: _Style) -> None:
        super().__init__()
        self.norm, self.conv = style.norm(inputs), SubmanifoldConv3d(inputs, outputs, 3, bias=False)

    def forward(self, input: SparseTensor) -> SparseTensor:
        return self.conv(self.norm(input))

    def scn_names(self) -> dict[str, str]:
        return {"norm": "0", "conv": "1"}


class _ResidualBlock(SparseModule):
    """shortcut(x) + conv2(norm2(conv1(norm1(x))))"""

    def __init__(self, inputs: int, outputs: int, style: _Style) -> None:
        super().__init__()
        self.shortcut = nn.Linear(inputs, outputs, bias=False) if inputs != outputs else nn.Identity()
        self.norm1, self.conv1 = style.norm(inputs), SubmanifoldConv3d(inputs, outputs, 3, bias=False)
        self.norm2, self.conv2 = style.norm(outputs), SubmanifoldConv3d(outputs, outputs, 3, bias=False)

    def forward(self, input: SparseTensor) -> SparseTensor:
        shortcut = input.replace(self.shortcut(input.features))
        return self.conv2(self.norm2(self.conv1(self.norm1(input))), residual=shortcut)

    def scn_names(self) -> dict[str, str]:
        return {"shortcut": "0", "norm1": "1.0", "conv1": "1.1", "norm2": "1.2", "conv2": "1.3"}


class _Level(SparseModule):
    """Blocks; beside the result, the same at half the resolution and so on; blocks on both together."""

    def __init__(self, planes: Sequence[int], style: _Style) -> None:
        super().__init__()
        self.before = style.blocks(planes[0], planes[0])
        self.deepest = len(planes) == 1
        if not self.deepest:
            self.down_norm, self.down = style.norm(planes[0]), SparseConv3d(planes[0], planes[1], 2, 2, bias=False)
            self.deeper = _Level(planes[1:], style)
            self.up_norm = style.norm(planes[1])
            self.up = SparseConvTranspose3d(planes[1], planes[0], 2, 2, bias=False)
            self.after = style.blocks(2 * planes[0], planes[0])

    def forward(self, input: SparseTensor) -> SparseTensor:
        for block in self.before:
            input = block(input)
        if self.deepest:
            return input
        deep = self.deeper(self.down(self.down_norm(input)))
        output = self.up(self.up_norm(deep), target=input)
        output = output.replace(torch.cat([input.features, output.features], 1))
        for block in self.after:
            output = block(output)
        return output

    def scn_names(self, ours: str, theirs: str) -> Iterator[tuple[str, str]]:
        """Pairs of a module's name here and in SparseConvNet's nested sequences."""
        count = 0
        for side in ("before", "after"):
            for index, block in enumerate(getattr(self, side, ())):
                for name, place in block.scn_names().items():
                    yield f"{ours}.{side}.{index}.{name}", f"{theirs}.{count}.{place}"
                count += 2 if isinstance(block, _ResidualBlock) else 1  # a residual block is two: table and sum
            if side == "before" and not self.deepest:
                for place, name in enumerate(("down_norm", "down", "", "up_norm", "up")):
                    if name:
                        yield f"{ours}.{name}", f"{theirs}.{count}.1.{place}"
                yield from self.deeper.scn_names(f"{ours}.deeper", f"{theirs}.{count}.1.2")
                count += 2


class SparseUNet(SparseModule):
    """A U-Net whose every layer keeps the voxels of its level: blocks, halving, blocks, ..., doubling, blocks.

        level(x) = blocks([y, up(norm(level'(down(norm(y)))))]),  y = blocks(x)

    Submanifold convolutions of 3x3x3 within a level, convolutions of 2x2x2 with stride 2 between levels, and their
    transposes back onto the voxels that were there. No biases; batch norm and ReLU come before each convolution.

    Args:
        in_channels: features of a voxel.
        planes: channels of each level.
        reps: blocks on each side of a level.
        residual: residual blocks of two convolutions, instead of one convolution a block.
        slope: of the ReLUs below 0.
        momentum: of the batch norms, see NormReLU.
        final_norm: whether batch norm and ReLU end it. SparseConvNet's example on ScanNet has none.

    Returns:
        A sparse tensor on the voxels of the input, planes[0] channels.

    Source:
        Graham et al., 3D Semantic Segmentation with Submanifold Sparse Convolutional Networks, CVPR 2018;
        github.com/facebookresearch/SparseConvNet, UNet.
    """

    def __init__(
        self,
        in_channels: int,
        planes: Sequence[int],
        reps: int = 1,
        residual: bool = False,
        slope: float = 0.0,
        momentum: float = 0.01,
        final_norm: bool = False,
    ) -> None:
        super().__init__()
        if not planes or min(planes) < 1 or reps < 1:
            raise ValueError(f"SparseUNet: planes and reps must be at least 1, got {list(planes)} and {reps}")
        style = _Style(reps, residual, slope, momentum)
        self.stem = SubmanifoldConv3d(in_channels, planes[0], 3, bias=False)
        self.levels = _Level(planes, style)
        self.final_norm = style.norm(planes[0]) if final_norm else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As SparseConvNet draws them: normal, of variance 2 / (Cin * taps)."""
        for module in self.modules():
            if isinstance(module, (SubmanifoldConv3d, SparseConv3d, SparseConvTranspose3d, nn.Linear)):
                nn.init.normal_(module.weight, 0, math.sqrt(2 / module.weight[0].numel()))

    def forward(self, input: SparseTensor) -> SparseTensor:
        ordered, place = input.in_block_order()
        output = self.levels(self.stem(ordered))
        output = output if self.final_norm is None else self.final_norm(output)
        return input.replace(output.features.index_select(0, place))

    def scn_names(self, ours: str, theirs: str) -> Iterator[tuple[str, str]]:
        """Pairs of module names; theirs is the sequence that the U-Net is part of, behind its input layer."""
        yield f"{ours}.stem", f"{theirs}.1"
        yield from self.levels.scn_names(f"{ours}.levels", f"{theirs}.2")
        if self.final_norm is not None:
            yield f"{ours}.final_norm", f"{theirs}.3"


class ScanNetUNet(nn.Module):
    """SparseConvNet's network for ScanNet: the U-Net and a linear classifier.

    Args:
        width, reps, residual, levels: see ScanNetSettings; the defaults are those of SETTINGS["small"].
        in_channels: features of a point; ScanNet's are its colour in -1..1.
        classes: of the result.
        slope, momentum, final_norm: see SparseUNet.

    Source:
        github.com/facebookresearch/SparseConvNet, examples/ScanNet/unet.py.
    """

    def __init__(
        self,
        width: int = 16,
        reps: int = 1,
        residual: bool = False,
        levels: int = 7,
        in_channels: int = 3,
        classes: int = len(CLASSES),
        slope: float = 0.0,
        momentum: float = 0.01,
        final_norm: bool = False,
    ) -> None:
        super().__init__()
        planes = [width * level for level in range(1, levels + 1)]
        self.unet = SparseUNet(in_channels, planes, reps, residual, slope, momentum, final_norm)
        self.linear = nn.Linear(width, classes)

    @classmethod
    def preset(cls, name: str, **arguments: Any) -> ScanNetUNet:
        """The network of SETTINGS[name], "small" or "large"."""
        if name not in SETTINGS:
            raise ValueError(f"ScanNetUNet: preset must be one of {', '.join(SETTINGS)}, got {name!r}")
        settings = SETTINGS[name]
        shape = {"width": settings.width, "reps": settings.reps, "residual": settings.residual}
        return cls(**{**shape, "levels": settings.levels, **arguments})

    def forward(self, input: SparseTensor) -> Tensor:
        """Logits (N, classes) of the voxels."""
        return self.linear(self.unet(input).features)

    def segment(self, coords: Tensor, features: Tensor) -> Tensor:
        """Logits (P, classes) of points, as SparseConvNet's input and output layers make them.

        Args:
            coords: (P, 4) integers: x, y, z in voxels, then the sample. Points of one voxel share their mean feature.
            features: (P, in_channels).
        """
        if coords.dim() != 2 or coords.shape[1] != 4 or coords.shape[0] != features.shape[0]:
            raise ValueError(
                f"ScanNetUNet: coords must be (P, 4) = ({features.shape[0]}, 4), x, y, z and the sample, "
                f"got {tuple(coords.shape)}"
            )
        voxels, inverse, count = torch.unique(coords[:, [3, 0, 1, 2]], dim=0, return_inverse=True, return_counts=True)
        sums = features.new_zeros(len(voxels), features.shape[1]).index_add(0, inverse, features)
        return self(SparseTensor(sums / count[:, None], voxels))[inverse]


def load_scn(model: ScanNetUNet, state_dict: Mapping[str, Tensor]) -> None:
    """Loads a state_dict of SparseConvNet's network for ScanNet.

    Args:
        model: built with the same width, reps, residual, levels, classes and final_norm.
        state_dict: with names such as sparseModel.2.0.0.weight and linear.bias. Convolutions are
            (taps, groups, Cin, Cout) or, of early versions, (taps, Cin, Cout); one-by-one ones (Cin, Cout).

    Raises:
        ValueError: names or shapes of another network.
    """
    ours = model.state_dict()
    values = {name: value for name, value in ours.items() if name.endswith("num_batches_tracked")}  # scn counts none
    names = dict(model.unet.scn_names("unet", "sparseModel")) | {"linear": "linear"}
    left = set(state_dict)
    for name in ours.keys() - values.keys():
        module, _, parameter = name.rpartition(".")
        theirs = f"{names[module]}.{parameter}"
        if theirs not in left:
            raise ValueError(f"load_scn: the state_dict has no {theirs}: it is of a network of other settings")
        left.remove(theirs)
        values[name] = state_dict[theirs].t() if module.endswith("shortcut") else state_dict[theirs]
    if left:
        raise ValueError(f"load_scn: the network has nothing for {min(left)}: it is of other settings")
    try:
        load_weights(model, values, layout="scn")
    except RuntimeError as error:
        raise ValueError(f"load_scn: {error}") from error
