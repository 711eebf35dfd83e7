# SPDX-License-Identifier: Apache-2.0
"""Layers over sparse tensors, with torch's names and arguments.

spconv's own, with its numbers wherever trained weights depend on them, are in `flexor.sparse`. Both take the tensors of
either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..ops import SparseIndex, SparseMap, sparse_conv, sparse_pool
from .sparse_tensor import SparseTensor, reduce_rows

Size = int | Sequence[int]


def reset_parameters(weight: Tensor, bias: Tensor | None) -> None:
    """As torch's convolutions are initialised: uniform, by the fan-in of a weight whose first axis is outputs."""
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
    if bias is not None:
        bound = 1 / math.sqrt(weight[0].numel())
        nn.init.uniform_(bias, -bound, bound)


def global_pool(input: SparseTensor, reduce: str) -> Tensor:
    """(B, C): "mean" or "amax" over each sample's rows, 0 for a sample without rows."""
    return reduce_rows(input.features, input.indices[:, 0].long(), input.batch_size, reduce)


class SparseModule(nn.Module):
    """A module that takes sparse tensors; a `SparseSequential` applies all others to features."""


class SparseSequential(SparseModule, nn.Sequential):
    """Modules one after another, those that are no `SparseModule` applied to the features.

    Args:
        modules: as for `torch.nn.Sequential`.
    """

    def forward(self, input: Any) -> Any:
        for module in self:
            if isinstance(module, SparseModule) or not isinstance(input, SparseTensor):
                input = module(input)
            else:
                input = input.replace(module(input.features))
        return input


class _Window(SparseModule):
    """A kernel and how it moves."""

    ndim: ClassVar[int]

    def __init__(self, kernel_size: Size, stride: Size, padding: Size, dilation: Size) -> None:
        super().__init__()
        self.kernel_size, self.stride = self._axes(kernel_size), self._axes(stride)
        self.padding, self.dilation = self._axes(padding), self._axes(dilation)

    def _axes(self, value: Size) -> tuple[int, ...]:
        values = (value,) * self.ndim if isinstance(value, int) else tuple(value)
        if len(values) != self.ndim:
            raise ValueError(f"{type(self).__name__}: expected one number or {self.ndim} of them, got {values}")
        return values

    def extra_repr(self) -> str:
        parts = [f"kernel_size={self.kernel_size}, stride={self.stride}"]
        for name, default in (("padding", 0), ("dilation", 1)):
            if getattr(self, name) != (default,) * self.ndim:
                parts.append(f"{name}={getattr(self, name)}")
        return ", ".join(parts)


class ConvModule(_Window):
    """weight is (Cout, *kernel, Cin / groups); slope, set by `flexor.sparse.fuse`, is of an activation that follows."""

    slope: float | None = None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        window: tuple[Size, Size, Size, Size],
        groups: int,
        bias: bool,
    ) -> None:
        super().__init__(*window)
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(
                f"{type(self).__name__}: groups must divide in_channels = {in_channels} and "
                f"out_channels = {out_channels}, got {groups}"
            )
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.weight = nn.Parameter(torch.empty(out_channels, *self.kernel_size, in_channels // groups))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        reset_parameters(self.weight, self.bias)

    def _convolved(self, input: SparseTensor, map: SparseMap, residual: SparseTensor | None) -> SparseTensor:
        added = None if residual is None else residual.features
        features = sparse_conv(input.features, self.weight, map, self.bias, added, self.groups, self.slope)
        return input.replace(features, map.out)

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, {super().extra_repr()}"
        text += "" if self.groups == 1 else f", groups={self.groups}"
        text += "" if self.bias is not None else ", bias=False"
        return text if self.slope is None else f"{text}, slope={self.slope}"


class _SparseConv(ConvModule):
    """Convolution whose outputs are all voxels with an input within the kernel.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as for `torch.nn.Conv3d`.

    Raises:
        ValueError: channels that groups do not divide.

    Source:
        `flexor.ops.sparse_conv`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, (kernel_size, stride, padding, dilation), groups, bias)

    def forward(self, input: SparseTensor, residual: SparseTensor | None = None) -> SparseTensor:
        _, map = input.index.strided(self.kernel_size, self.stride, self.padding, self.dilation)
        return self._convolved(input, map, residual)


class _SubmanifoldConv(ConvModule):
    """Convolution whose outputs are the voxels of its input, the kernel's middle `kernel_size // 2` on each.

    Args:
        in_channels, out_channels, kernel_size, dilation, groups, bias: as for `torch.nn.Conv3d`.

    Raises:
        ValueError: channels that groups do not divide.

    Source:
        Graham et al., 3D Semantic Segmentation with Submanifold Sparse Convolutional Networks, CVPR 2018.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, (kernel_size, 1, 0, dilation), groups, bias)
        self.padding = tuple(k // 2 * d for k, d in zip(self.kernel_size, self.dilation, strict=True))

    def forward(self, input: SparseTensor, residual: SparseTensor | None = None) -> SparseTensor:
        return self._convolved(input, input.index.submanifold(self.kernel_size, self.dilation), residual)


class _SparseConvTranspose(ConvModule):
    """Transposed convolution, to all voxels that it reaches, or to those of a target alone.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation: as for
            `torch.nn.ConvTranspose3d`. Weights are (Cout, *kernel, Cin / groups), as of all layers here.

    Raises:
        ValueError: channels that groups do not divide; in a call, a target that the input was not made from.

    Source:
        `flexor.ops.sparse_conv`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        output_padding: Size = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Size = 1,
    ) -> None:
        super().__init__(in_channels, out_channels, (kernel_size, stride, padding, dilation), groups, bias)
        self.output_padding = self._axes(output_padding)

    def forward(
        self, input: SparseTensor, target: SparseTensor | None = None, residual: SparseTensor | None = None
    ) -> SparseTensor:
        """With a target, the output has its voxels, row for row: it must be what a convolution with this layer's
        kernel, stride, padding and dilation made the input's voxels from.
        """
        window = self.kernel_size, self.stride, self.padding, self.dilation
        if target is None:
            return self._convolved(input, input.index.generative(*window, self.output_padding)[1], residual)
        index, map = target.index.strided(*window)
        if index is not input.index and not _same_voxels(index, input.index):
            raise ValueError(
                f"{type(self).__name__}: target must be a tensor that a convolution with kernel, stride, padding and "
                f"dilation {window} made the input's voxels from; got one that makes {len(index)} other voxels, and "
                f"the input has {len(input.index)}"
            )
        return self._convolved(input, map.transposed(), residual)


def _same_voxels(a: SparseIndex, b: SparseIndex) -> bool:
    """Row for row; what a compiler cannot compare counts as different."""
    return not torch.compiler.is_compiling() and torch.equal(a.indices, b.indices)


class _Pool(_Window):
    """Pooling over the voxels that are there.

    Args:
        kernel_size, stride, padding, dilation: as for `torch.nn.MaxPool3d`; stride None means kernel_size.

    Source:
        `flexor.ops.sparse_pool`.
    """

    mode: ClassVar[str]

    def __init__(self, kernel_size: Size, stride: Size | None = None, padding: Size = 0, dilation: Size = 1) -> None:
        super().__init__(kernel_size, kernel_size if stride is None else stride, padding, dilation)

    def forward(self, input: SparseTensor) -> SparseTensor:
        _, map = input.index.strided(self.kernel_size, self.stride, self.padding, self.dilation)
        return input.replace(sparse_pool(input.features, map, self.mode), map.out)


class SparseGlobalMaxPool(SparseModule):
    """(B, C): the maximum over each sample's voxels, 0 for a sample without any."""

    def forward(self, input: SparseTensor) -> Tensor:
        return global_pool(input, "amax")


class SparseGlobalAvgPool(SparseModule):
    """(B, C): the mean over each sample's voxels, 0 for a sample without any."""

    def forward(self, input: SparseTensor) -> Tensor:
        return global_pool(input, "mean")


class ToDense(SparseModule):
    """(B, C, *spatial), 0 where no voxel is."""

    def forward(self, input: SparseTensor) -> Tensor:
        return input.dense()


class SparseConv1d(_SparseConv):
    ndim = 1


class SparseConv2d(_SparseConv):
    ndim = 2


class SparseConv3d(_SparseConv):
    ndim = 3


class SparseConv4d(_SparseConv):
    ndim = 4


class SubmanifoldConv1d(_SubmanifoldConv):
    ndim = 1


class SubmanifoldConv2d(_SubmanifoldConv):
    ndim = 2


class SubmanifoldConv3d(_SubmanifoldConv):
    ndim = 3


class SubmanifoldConv4d(_SubmanifoldConv):
    ndim = 4


class SparseConvTranspose1d(_SparseConvTranspose):
    ndim = 1


class SparseConvTranspose2d(_SparseConvTranspose):
    ndim = 2


class SparseConvTranspose3d(_SparseConvTranspose):
    ndim = 3


class SparseConvTranspose4d(_SparseConvTranspose):
    ndim = 4


class SparseMaxPool1d(_Pool):
    ndim = 1
    mode = "max"


class SparseMaxPool2d(_Pool):
    ndim = 2
    mode = "max"


class SparseMaxPool3d(_Pool):
    ndim = 3
    mode = "max"


class SparseMaxPool4d(_Pool):
    ndim = 4
    mode = "max"


class SparseAvgPool1d(_Pool):
    ndim = 1
    mode = "avg"


class SparseAvgPool2d(_Pool):
    ndim = 2
    mode = "avg"


class SparseAvgPool3d(_Pool):
    ndim = 3
    mode = "avg"


class SparseAvgPool4d(_Pool):
    ndim = 4
    mode = "avg"
