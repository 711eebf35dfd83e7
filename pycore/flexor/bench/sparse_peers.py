# SPDX-License-Identifier: Apache-2.0
"""The other ways to convolve sparse voxels with 3x3x3 kernels, and to find which voxels meet."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flexor.ops import SparseMap
from flexor.reference.sparse_conv import Pairs, pairs, pairs_by_tap

from .contest import Unavailable

KERNEL = 3
TAPS = KERNEL**3
SCN_EXTENT = 4096  # of the field that SparseConvNet's examples lay scenes into

Conv = Callable[[Tensor, Tensor], Tensor]  # (features, weight (Cout, 3, 3, 3, Cin)) -> output


@dataclass(frozen=True, eq=False)
class Voxels:
    """What each way starts from: coordinates (N, 4) from 0 up, their bounds, and the pairs that meet."""

    indices: Tensor
    bounds: Sequence[int]
    samples: int
    map: SparseMap

    @functools.cached_property
    def by_tap(self) -> list[Pairs]:
        return list(pairs_by_tap(self.map.tensors, TAPS))


def gather_mm_add(voxels: Voxels) -> Conv:
    """Plain PyTorch: for every tap rows are gathered, multiplied and added; differentiable."""
    taps = voxels.by_tap

    def convolve(features: Tensor, weight: Tensor) -> Tensor:
        kernels = weight.flatten(1, 3).permute(1, 2, 0)
        output = features.new_zeros(features.shape[0], weight.shape[0])
        for tap, outputs, inputs in taps:
            output.index_add_(0, outputs, features.index_select(0, inputs) @ kernels[tap])
        return output

    return convolve


def import_spconv() -> Any:
    """spconv.pytorch; Unavailable without it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its import alone sets off some of torch's deprecations
            import spconv.pytorch as spconv
    except Exception as error:  # an ABI that does not fit shows as anything
        raise Unavailable(f"spconv cannot be imported: {error}") from None
    return spconv


def spconv_conv(voxels: Voxels) -> Conv:
    """spconv's layer with its pairs found before."""
    spconv = import_spconv()
    place = voxels.indices, list(voxels.bounds), voxels.samples
    layer = spconv.SubMConv3d(1, 1, KERNEL, bias=False, indice_key="pairs").eval()
    with torch.no_grad():
        kept = layer(spconv.SparseConvTensor(torch.ones(len(voxels.indices), 1), *place)).indice_dict
    layers: dict[tuple[int, ...], Any] = {}

    def convolve(features: Tensor, weight: Tensor) -> Tensor:
        shape = weight.shape[-1], weight.shape[0]
        if shape not in layers:
            layers[shape] = spconv.SubMConv3d(*shape, KERNEL, bias=False, indice_key="pairs").eval()
            layers[shape].weight = torch.nn.Parameter(weight.detach())
        return layers[shape](spconv.SparseConvTensor(features, *place, indice_dict=kept)).features

    return convolve


def spconv_pairs(indices: Tensor, bounds: Sequence[int], samples: int, kernel: int, stride: int, padding: int):
    """A call that finds spconv's pairs: (output coordinates, pairs at each tap); a stride of 1 is submanifold."""
    import_spconv()
    from spconv.core import ConvAlgo
    from spconv.pytorch.ops import get_indice_pairs

    window = [kernel] * 3, [stride] * 3, [padding] * 3, [1] * 3, [0] * 3
    submanifold = stride == 1

    def find() -> tuple[Tensor, Tensor]:
        found, _, counts = get_indice_pairs(indices, samples, list(bounds), ConvAlgo.Native, *window, submanifold)
        return found, counts

    return find


def spconv_counts(counts: Tensor, rows: int, submanifold: bool) -> Tensor:
    """Pairs at every tap. Of a submanifold kernel spconv leaves out the middle, and the half that mirrors the other."""
    half = counts[: len(counts) // 2]
    return torch.cat([half, counts.new_tensor([rows]), half.flip(0)]) if submanifold else counts


def import_scn() -> Any:
    """sparseconvnet; Unavailable without it."""
    try:
        import sparseconvnet
    except Exception as error:  # an ABI that does not fit shows as anything
        raise Unavailable(f"SparseConvNet cannot be imported: {error}") from None
    return sparseconvnet


def scn_conv(voxels: Voxels) -> Conv:
    """SparseConvNet's function, whose first call finds its rules; differentiable."""
    scn = import_scn()
    function = scn.submanifoldConvolution.SubmanifoldConvolutionFunction
    laid = scn.InputLayer(3, SCN_EXTENT, mode=0)([voxels.indices[:, [1, 2, 3, 0]].long(), torch.ones(1, 1)])
    size, bias = torch.full((3,), KERNEL), torch.empty(0)

    def convolve(features: Tensor, weight: Tensor) -> Tensor:
        return function.apply(features, scn_weight(weight), bias, laid.metadata, laid.spatial_size, 3, size)

    return convolve


def scn_weight(weight: Tensor) -> Tensor:
    """(Cout, *kernel, Cin) as (taps, 1, Cin, Cout)"""
    return weight.flatten(1, -2).permute(1, 2, 0).unsqueeze(1).contiguous()


def open3d_conv(voxels: Voxels) -> Conv:
    """Open3D's operator on a list of neighbours made before."""
    try:
        import open3d.ml.torch as ml3d
    except Exception as error:  # it raises Exception where torch is not the one that it was built for
        raise Unavailable(f"Open3D's operators cannot be imported: {' '.join(str(error).split())}") from None
    tap, outputs, inputs = pairs(voxels.map.tensors)
    order = outputs.argsort(stable=True)
    rows = torch.nn.functional.pad(outputs.bincount(minlength=len(voxels.indices)).cumsum(0), (1, 0))
    none = torch.empty(0)
    lists = {
        "inp_importance": none,
        "neighbors_index": inputs[order].int(),
        "neighbors_kernel_index": tap[order].to(torch.uint8),
        "neighbors_importance": none,
        "neighbors_row_splits": rows,
    }

    def convolve(features: Tensor, weight: Tensor) -> Tensor:
        filters = weight.permute(1, 2, 3, 4, 0).contiguous()
        return ml3d.ops.sparse_conv(filters=filters, inp_features=features, **lists, normalize=False)

    return convolve
