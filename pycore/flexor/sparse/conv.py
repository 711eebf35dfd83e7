# SPDX-License-Identifier: Apache-2.0
"""spconv's convolutions: its constructors, attributes, state_dict, rules for indice_key, and its 1x1 kernel."""

from __future__ import annotations

import math
import os
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..nn.sparse import reset_parameters
from ..ops import SparseMap, sparse_conv
from .core import Activation, ConvAlgo, SparseConvTensor, expand_nd, sparse_conv_tensor
from .functional import activate
from .keys import inverse_map, new_map, shared_map, title
from .modules import VOXEL_COUNT, CountsVoxels

LAYOUTS = ("KRSC", "RSKC", "RSCK")

_SLOPED = ("ReLU", "LeakyReLU")


class SparseConvolution(CountsVoxels):
    """What all of spconv's convolutions are made of.

        output[o] = act(bias + add_input[o] + sum over taps k of weight[:, k] @ features[i]),  i the input at o's tap k

    A kernel of one tap (with stride 1, or submanifold) instead computes `features @ weight.view(Cin, Cout)`, which is
    not the transpose of the weight but its memory: weights trained with spconv 2 depend on it. With groups, which
    spconv lacks, it is an ordinary convolution; so it is in `flexor.nn`.

    Args:
        ndim: 1 to 4.
        in_channels, out_channels, kernel_size, stride, padding, dilation, output_padding, groups, bias: as for
            `torch.nn.Conv3d`, an axis or all axes; kept as lists. A submanifold convolution ignores stride and padding.
        subm: outputs are where inputs are.
        transposed: outputs are wherever the kernel reaches.
        inverse: outputs are the inputs of the layer that has the same indice_key; so are stride and padding.
        indice_key: a name under which the map is kept for other layers. One map serves all submanifold layers on the
            same tensor and with the same window even without.
        algo, fp32_accum, large_kernel_fast_algo: accepted and not used; sums are always in float32 or better.
        record_voxel_count: keeps the largest number of outputs in a buffer.
        act_type, act_alpha: `Activation` applied last, in training too; alpha is LeakyReLU's slope.
        act_beta: not used.
        name: for `benchmark_record`.

    Raises:
        ValueError: channels that groups do not divide, a 1x1 kernel with padding; when called, channels or rows that
            do not fit, a broken rule of indice_key.

    Source:
        spconv.pytorch.conv 2.3.8.
    """

    def __init__(
        self,
        ndim: int,
        in_channels: int,
        out_channels: int,
        kernel_size: Any = 3,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        subm: bool = False,
        output_padding: Any = 0,
        transposed: bool = False,
        inverse: bool = False,
        indice_key: str | None = None,
        algo: ConvAlgo | None = None,
        fp32_accum: bool | None = None,
        record_voxel_count: bool = False,
        act_type: Any = Activation.None_,
        act_alpha: float = 0,
        act_beta: float = 0,
        large_kernel_fast_algo: bool = False,
        name: str | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(name=name)
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(
                f"{type(self).__name__}: groups must divide in_channels = {in_channels} and "
                f"out_channels = {out_channels}, got {groups}"
            )
        self.ndim, self.in_channels, self.out_channels, self.groups = ndim, in_channels, out_channels, groups
        self.kernel_size, self.stride = expand_nd(ndim, kernel_size), expand_nd(ndim, stride)
        self.padding, self.dilation = expand_nd(ndim, padding), expand_nd(ndim, dilation)
        self.output_padding = expand_nd(ndim, output_padding)
        self.subm, self.transposed, self.inverse, self.indice_key = subm, transposed, inverse, indice_key
        self.conv1x1 = math.prod(self.kernel_size) == 1 and (subm or math.prod(self.stride) == 1)
        if self.conv1x1 and not subm and any(self.padding):
            raise ValueError(f"{type(self).__name__}: padding must be 0 where kernel and stride are 1, got {padding}")
        self.algo, self.fp32_accum = algo or ConvAlgo.Native, fp32_accum
        self.act_type, self.act_alpha, self.act_beta = act_type, act_alpha, act_beta
        self.record_voxel_count = record_voxel_count
        self.scale, self.zero_point = 1.0, 0
        self.weight_shape = [out_channels, *self.kernel_size, in_channels // groups]
        if record_voxel_count and not subm and not inverse:
            self.count_voxels(device)
        self.weight = nn.Parameter(torch.empty(self.weight_shape, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        reset_parameters(self.weight, self.bias)

    def is_inverseable(self) -> bool:
        return self.indice_key is not None and not self.subm

    @property
    def one_tap(self) -> bool:
        """Whether the weight's memory is a (Cin, Cout) matrix, as spconv uses it for one tap."""
        return self.conv1x1 and self.groups == 1

    def forward(self, input: SparseConvTensor, add_input: SparseConvTensor | None = None) -> SparseConvTensor:
        input = sparse_conv_tensor(input)
        if input.features.shape[1] != self.in_channels:
            raise ValueError(
                f"{title(self)}: input must have in_channels = {self.in_channels} channels, "
                f"got {input.features.shape[1]}"
            )
        residual = None if add_input is None else add_input.features
        if self.one_tap:
            return input.replace(self._one_tap(input.features, residual))
        started = input.clock()
        map, indice_dict = self._map(input)
        mapped = input.clock()
        sloped = self.act_type.name in _SLOPED
        slope = (self.act_alpha if self.act_type.name == "LeakyReLU" else 0.0) if sloped else None
        features = sparse_conv(input.features, self.weight, map, self.bias, residual, self.groups, slope)
        if not sloped:
            features = activate(features, self.act_type, self.act_alpha)
        self.note_voxels(features.shape[0])
        output = input.replace(features, map.out)
        output.indice_dict = indice_dict
        input.record(self, started, mapped, output, **self._params())
        return output

    def _one_tap(self, features: Tensor, residual: Tensor | None) -> Tensor:
        matrix = self.weight.reshape(self.in_channels, self.out_channels)
        features = features @ matrix if self.bias is None else torch.addmm(self.bias, features, matrix)
        return activate(features if residual is None else features + residual, self.act_type, self.act_alpha)

    def _map(self, input: SparseConvTensor) -> tuple[SparseMap, dict[str, Any]]:
        """This layer's map, and what the output keeps by indice_key."""
        known = input.find_indice_pair(self.indice_key)
        if self.inverse:
            return inverse_map(self, input, known), input.indice_dict.copy()
        if known is not None:
            return shared_map(self, input, known), input.indice_dict.copy()
        return new_map(self, input)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Takes weights in the layout that SPCONV_SAVED_WEIGHT_LAYOUT names, and checkpoints without a voxel count."""
        count = self.get_max_num_voxels()
        if count is not None:
            state_dict.setdefault(f"{prefix}{VOXEL_COUNT}", torch.zeros_like(count))
        layout = os.environ.get("SPCONV_SAVED_WEIGHT_LAYOUT", "")
        key = f"{prefix}weight"
        if layout and key in state_dict:
            if layout not in LAYOUTS:
                raise ValueError(f"SPCONV_SAVED_WEIGHT_LAYOUT must be one of {', '.join(LAYOUTS)}, got {layout!r}")
            state_dict[key] = to_krsc(state_dict[key], layout, self.one_tap)
            if self.one_tap:
                state_dict[key] = state_dict[key].reshape(self.weight_shape)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _params(self) -> dict[str, Any]:
        names = ("kernel_size", "stride", "padding", "dilation", "output_padding", "subm", "transposed", "out_channels")
        return {name: getattr(self, name) for name in names} | {"input_channels": self.in_channels}

    def extra_repr(self) -> str:
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"]
        for name, default in (("padding", 0), ("dilation", 1), ("output_padding", 0)):
            if getattr(self, name) != [default] * self.ndim:
                parts.append(f"{name}={getattr(self, name)}")
        if self.groups != 1:
            parts.append(f"groups={self.groups}")
        if self.bias is None:
            parts.append("bias=False")
        if self.indice_key is not None:
            parts.append(f"indice_key={self.indice_key!r}")
        if self.act_type.name != "None_":
            parts.append(f"act={self.act_type.name}")
        return ", ".join(parts)


def to_krsc(weight: Tensor, layout: str, one_tap: bool = False) -> Tensor:
    """A weight in spconv 2.2's layout (Cout, *k, Cin), from "KRSC", "RSKC" or "RSCK".

    Of one tap, spconv has always used the memory as (Cin, Cout), whatever the layout: it stays as it is.
    """
    if one_tap or layout == "KRSC":
        return weight
    out, inner = (-2, -1) if layout == "RSKC" else (-1, -2)
    axes = [axis % weight.dim() for axis in (out, *range(weight.dim() - 2), inner)]
    return weight.permute(axes).contiguous()


class _Conv(SparseConvolution):
    """Outputs are wherever the kernel meets an input.

    Source:
        spconv.pytorch.SparseConv1d to SparseConv4d; see `SparseConvolution`.
    """

    _ndim: ClassVar[int]
    _transposed: ClassVar[bool] = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        indice_key: str | None = None,
        algo: ConvAlgo | None = None,
        fp32_accum: bool | None = None,
        record_voxel_count: bool = False,
        large_kernel_fast_algo: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(
            self._ndim,
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            transposed=self._transposed,
            indice_key=indice_key,
            algo=algo,
            fp32_accum=fp32_accum,
            record_voxel_count=record_voxel_count,
            name=name,
        )


class _ConvTranspose(_Conv):
    """Outputs are wherever the transposed kernel reaches.

        out = (in - 1) * stride - 2 * padding + kernel + output_padding cells an axis

    Source:
        spconv.pytorch.SparseConvTranspose1d to SparseConvTranspose4d; see `SparseConvolution`.
    """

    _transposed = True


class _SubMConv(SparseConvolution):
    """Outputs are where inputs are; even kernels have their middle at `kernel // 2`.

    Source:
        spconv.pytorch.SubMConv1d to SubMConv4d; see `SparseConvolution`.
    """

    _ndim: ClassVar[int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        indice_key: str | None = None,
        algo: ConvAlgo | None = None,
        fp32_accum: bool | None = None,
        large_kernel_fast_algo: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(
            self._ndim,
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            subm=True,
            indice_key=indice_key,
            algo=algo,
            fp32_accum=fp32_accum,
            name=name,
        )


class _InverseConv(SparseConvolution):
    """Goes back to the voxels that the `SparseConv` or pooling with the same indice_key came from, row for row.

    Source:
        spconv.pytorch.SparseInverseConv1d to SparseInverseConv4d; see `SparseConvolution`.
    """

    _ndim: ClassVar[int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        indice_key: str | None,
        bias: bool = True,
        algo: ConvAlgo | None = None,
        fp32_accum: bool | None = None,
        large_kernel_fast_algo: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(
            self._ndim,
            in_channels,
            out_channels,
            kernel_size,
            bias=bias,
            inverse=True,
            indice_key=indice_key,
            algo=algo,
            fp32_accum=fp32_accum,
            name=name,
        )


class SparseConv1d(_Conv):
    _ndim = 1


class SparseConv2d(_Conv):
    _ndim = 2


class SparseConv3d(_Conv):
    _ndim = 3


class SparseConv4d(_Conv):
    _ndim = 4


class SparseConvTranspose1d(_ConvTranspose):
    _ndim = 1


class SparseConvTranspose2d(_ConvTranspose):
    _ndim = 2


class SparseConvTranspose3d(_ConvTranspose):
    _ndim = 3


class SparseConvTranspose4d(_ConvTranspose):
    _ndim = 4


class SubMConv1d(_SubMConv):
    _ndim = 1


class SubMConv2d(_SubMConv):
    _ndim = 2


class SubMConv3d(_SubMConv):
    _ndim = 3


class SubMConv4d(_SubMConv):
    _ndim = 4


class SparseInverseConv1d(_InverseConv):
    _ndim = 1


class SparseInverseConv2d(_InverseConv):
    _ndim = 2


class SparseInverseConv3d(_InverseConv):
    _ndim = 3


class SparseInverseConv4d(_InverseConv):
    _ndim = 4
