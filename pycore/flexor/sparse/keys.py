# SPDX-License-Identifier: Apache-2.0
"""Which map a layer uses: a new one, or the one that another layer has left under the same indice_key."""

from __future__ import annotations

from typing import Any

import torch

from ..nn.sparse_tensor import enough_rows
from ..ops import SparseIndex, SparseMap
from .core import IndiceData, SparseConvTensor
from .ops import window_map


def title(layer: Any) -> str:
    """What messages call a layer."""
    return " ".join(part for part in (type(layer).__name__, layer._sparse_unique_name or layer.name) if part)


def new_map(layer: Any, input: SparseConvTensor) -> tuple[SparseMap, dict[str, Any]]:
    """A convolution's or pooling's own map, and what its output keeps by indice_key."""
    window = layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.output_padding
    map = window_map(input.checked_index(title(layer)), *window, layer.subm, layer.transposed)
    if not layer.subm:
        enough_rows(map.out.indices, layer.training)
    if layer.indice_key is None:
        return map, input.indice_dict.copy()
    data = IndiceData(map, layer.subm, layer.algo, layer.kernel_size, layer.stride, layer.dilation, layer.padding)
    return map, {**input.indice_dict, layer.indice_key: data}


def shared_map(layer: Any, input: SparseConvTensor, known: IndiceData) -> SparseMap:
    """That of another submanifold layer with this indice_key, if it may be used."""
    if not layer.subm or not known.is_subm:
        raise ValueError(
            f"{title(layer)}: indice_key {layer.indice_key!r} is taken; only submanifold convolutions share one, "
            "and inverse convolutions use that of their partner. Give this layer another"
        )
    _check_equal(layer, "kernel_size", layer.kernel_size, known.ksize)
    _check_equal(layer, "dilation", layer.dilation, known.dilation)
    _check_equal(layer, "spatial_shape of the input", input.spatial_shape, known.spatial_shape)
    _check_voxels(layer, input, known.map.input)
    return known.map


def inverse_map(layer: Any, input: SparseConvTensor, known: IndiceData | None) -> SparseMap:
    """From the outputs of the layer with this indice_key back to its inputs."""
    if known is None:
        raise ValueError(
            f"{title(layer)}: no layer before has indice_key {layer.indice_key!r}; give it to the SparseConv or "
            f"pooling that this layer inverts. Known: {sorted(input.indice_dict)}"
        )
    if known.is_subm:
        raise ValueError(
            f"{title(layer)}: indice_key {layer.indice_key!r} is that of a submanifold convolution, which needs no "
            "inverse; give that of a SparseConv or pooling"
        )
    _check_equal(layer, "kernel_size", layer.kernel_size, known.ksize)
    _check_equal(layer, "spatial_shape of the input", input.spatial_shape, known.out_spatial_shape)
    _check_voxels(layer, input, known.map.out)
    return known.map.transposed()


def _check_voxels(layer: Any, input: SparseConvTensor, index: SparseIndex) -> None:
    """The map is for these voxels, row for row; spconv compares how many there are alone."""
    if input.index is index:
        return
    _check_equal(layer, "rows of the input", input.indices.shape[0], index.indices.shape[0])
    if not torch.compiler.is_compiling() and not torch.equal(input.indices, index.indices.to(input.indices.dtype)):
        raise ValueError(
            f"{title(layer)}: indices of the input must be those of the layer with indice_key "
            f"{layer.indice_key!r}, row for row; got others. Give this layer another indice_key, or none"
        )


def _check_equal(layer: Any, what: str, got: Any, expected: Any) -> None:
    if got != expected:
        raise ValueError(
            f"{title(layer)}: {what} must be that of the layer with indice_key {layer.indice_key!r} = {expected}, "
            f"got {got}"
        )
