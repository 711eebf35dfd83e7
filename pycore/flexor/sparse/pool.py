# SPDX-License-Identifier: Apache-2.0
"""spconv's pooling layers, under its names."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from ..nn.sparse import global_pool
from ..ops import sparse_pool
from .core import ConvAlgo, SparseConvTensor, expand_nd, sparse_conv_tensor
from .keys import new_map, title
from .modules import CountsVoxels, SparseModule


class _Pool(CountsVoxels):
    _mode: ClassVar[str]
    transposed, output_padding = False, ()  # what a map also depends on in convolutions

    def __init__(
        self,
        ndim: int,
        kernel_size: Any = 3,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        indice_key: str | None = None,
        subm: bool = False,
        algo: ConvAlgo | None = None,
        record_voxel_count: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.ndim, self.kernel_size = ndim, expand_nd(ndim, kernel_size)
        self.stride = self.kernel_size.copy() if stride is None else expand_nd(ndim, stride)
        self.padding, self.dilation = expand_nd(ndim, padding), expand_nd(ndim, dilation)
        self.subm, self.indice_key, self.algo = subm, indice_key, algo or ConvAlgo.Native
        self.record_voxel_count = record_voxel_count
        if record_voxel_count and not subm:
            self.count_voxels()

    def forward(self, input: SparseConvTensor) -> SparseConvTensor:
        input = sparse_conv_tensor(input)
        if input.find_indice_pair(self.indice_key) is not None:
            raise ValueError(f"{title(self)}: indice_key {self.indice_key!r} is taken; give this layer another")
        started = input.clock()
        map, indice_dict = new_map(self, input)
        mapped = input.clock()
        output = input.replace(sparse_pool(input.features, map, self._mode), map.out)
        output.indice_dict = indice_dict
        self.note_voxels(output.features.shape[0])
        names = ("kernel_size", "stride", "padding", "dilation")
        params = {name: getattr(self, name) for name in names} | {"channels": input.features.shape[1]}
        input.record(self, started, mapped, output, **params)
        return output

    def extra_repr(self) -> str:
        parts = [f"kernel_size={self.kernel_size}, stride={self.stride}"]
        for name, default in (("padding", 0), ("dilation", 1)):
            if getattr(self, name) != [default] * self.ndim:
                parts.append(f"{name}={getattr(self, name)}")
        return ", ".join(parts)


class SparseMaxPool(_Pool):
    """The largest of 0 and the active inputs of each window: spconv's maximum starts from 0.

    The sane one, from minus infinity, is `flexor.nn.SparseMaxPool3d`.

    Args:
        ndim: 1 to 4.
        kernel_size, stride, padding, dilation: an axis or all axes; stride None means kernel_size.
        indice_key: for the inverse convolution that goes back.
        subm: outputs are where inputs are.
        algo: accepted and not used.
        record_voxel_count: keeps the largest number of outputs in a buffer.
        name: for `benchmark_record`.

    Raises:
        ValueError: when called, an indice_key that is taken.

    Source:
        spconv.pytorch.pool 2.3.8.
    """

    _mode = "max0"


class SparseAvgPool(_Pool):
    """The mean of the active inputs of each window, of any size; arguments as for `SparseMaxPool`.

    Source:
        spconv.pytorch.pool 2.3.8, which on a CPU raises.
    """

    _mode = "avg"


class SparseGlobalMaxOrAvgPool(SparseModule):
    """(B, C): the mean, or the maximum, of each sample's rows; 0 for a sample without rows.

    Source:
        spconv.pytorch.pool 2.3.8, which on a CPU raises, and whose mean is that of the first channel alone.
    """

    def __init__(self, is_mean: bool, name: str | None = None) -> None:
        super().__init__(name=name)
        self.is_mean = is_mean

    def forward(self, input: SparseConvTensor) -> Tensor:
        return global_pool(sparse_conv_tensor(input), "mean" if self.is_mean else "amax")


class SparseGlobalAvgPool(SparseGlobalMaxOrAvgPool):
    def __init__(self, name: str | None = None) -> None:
        super().__init__(True, name=name)


class SparseGlobalMaxPool(SparseGlobalMaxOrAvgPool):
    def __init__(self, name: str | None = None) -> None:
        super().__init__(False, name=name)


class _PerDimension(_Pool):
    _ndim: ClassVar[int]

    def __init__(
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        indice_key: str | None = None,
        algo: ConvAlgo | None = None,
        record_voxel_count: bool = False,
        name: str | None = None,
    ) -> None:
        window = kernel_size, stride, padding, dilation
        super().__init__(self._ndim, *window, indice_key, algo=algo, record_voxel_count=record_voxel_count, name=name)


class SparseMaxPool1d(_PerDimension, SparseMaxPool):
    _ndim = 1


class SparseMaxPool2d(_PerDimension, SparseMaxPool):
    _ndim = 2


class SparseMaxPool3d(_PerDimension, SparseMaxPool):
    _ndim = 3


class SparseMaxPool4d(_PerDimension, SparseMaxPool):
    _ndim = 4


class SparseAvgPool1d(_PerDimension, SparseAvgPool):
    _ndim = 1


class SparseAvgPool2d(_PerDimension, SparseAvgPool):
    _ndim = 2


class SparseAvgPool3d(_PerDimension, SparseAvgPool):
    _ndim = 3


class SparseAvgPool4d(_PerDimension, SparseAvgPool):
    _ndim = 4
