# SPDX-License-Identifier: Apache-2.0
"""spconv's functions: sums over the union of voxels, and convolution and pooling given who is whose neighbour.

Where spconv's functions take tables of neighbours, these also take a `flexor.ops.SparseMap` in their place, such as
`x.find_indice_pair(key).map`: that is what the layers do, and fast. Tables are for code that has made its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..nn.sparse_tensor import unique_rows
from ..ops import SparseMap, sparse_conv, sparse_pool
from .core import Activation, SparseConvTensor

Table = Tensor | SparseMap
Taps = Iterator[tuple[int, Tensor, Tensor]]  # each tap, its input rows and its output rows


def check_alike(name: str, tensors: Sequence[SparseConvTensor], rows: bool = False, channels: bool = True) -> None:
    """Raises unless all have the first one's spatial shape and batch size, and what else is asked for."""
    if not tensors:
        raise ValueError(f"{name}: expected at least one SparseConvTensor, got none")
    facts: list[tuple[str, Callable[[SparseConvTensor], Any], str]] = [
        ("spatial_shape", lambda t: t.spatial_shape, ""),
        ("batch_size", lambda t: t.batch_size, ""),
    ]
    if channels:
        facts.append(("features.shape[1]", lambda t: t.features.shape[1], ""))
    if rows:
        facts.append(("features.shape[0]", lambda t: t.features.shape[0], "; AddTableMisaligned adds other voxels"))
    for i, tensor in enumerate(tensors[1:], 1):
        for what, of, hint in facts:
            if of(tensor) != of(tensors[0]):
                raise ValueError(
                    f"{name}: {what} of tensor {i} must be that of tensor 0 = {of(tensors[0])}, got {of(tensor)}{hint}"
                )


def sparse_add(*tens: SparseConvTensor) -> SparseConvTensor:
    """Adds tensors over the union of their voxels.

    If one of them has every voxel of the union, the rows are in its order and its maps stay usable; otherwise they are
    in lexicographic order and later inverse convolutions cannot use what came before.

    Args:
        tens: of equal spatial_shape, batch_size and number of channels.

    Raises:
        ValueError: other shapes.
    """
    check_alike("sparse_add", tens)
    voxels, place = unique_rows(torch.cat([tensor.indices for tensor in tens]))
    rows = [tensor.features.shape[0] for tensor in tens]
    largest = max(range(len(tens)), key=lambda i: rows[i])
    whole = rows[largest] == len(voxels)
    if whole:
        own = place.split(rows)[largest]
        place = torch.zeros_like(own).scatter(0, own, torch.arange(len(own), device=own.device))[place]
    features = torch.cat([tensor.features for tensor in tens])
    total = features.new_zeros(len(voxels), features.shape[1]).index_add(0, place, features)
    if whole:
        return tens[largest].replace_feature(total)
    return SparseConvTensor(total, voxels, tens[0].spatial_shape, tens[0].batch_size, benchmark=tens[0].benchmark)


sparse_add_hash_based = sparse_add  # spconv has two algorithms for one result


def activate(features: Tensor, act_type: Any, alpha: float) -> Tensor:
    """None_, ReLU, Sigmoid or LeakyReLU with slope alpha; act_type is known by its name."""
    if act_type.name == "ReLU":
        return F.relu(features)
    if act_type.name == "LeakyReLU":
        return F.leaky_relu(features, alpha)
    if act_type.name == "Sigmoid":
        return features.sigmoid()
    if act_type.name == "None_":
        return features
    raise NotImplementedError(f"act_type must be one of {', '.join(a.name for a in Activation)}, got {act_type.name}")


def indice_conv(
    features: Tensor,
    filters: Tensor,
    indice_pairs: Table,
    indice_pair_num: Tensor | None = None,
    num_activate_out: int = 0,
    algo: Any = None,
    timer: Any = None,
    bias: Tensor | None = None,
    act_alpha: float = 0.0,
    act_beta: float = 0.0,
    act_type: Any = Activation.None_,
) -> Tensor:
    """A convolution, from its pairs of rows.

    Args:
        features: (N, Cin).
        filters: (Cout, *k, Cin).
        indice_pairs: (2, K, N), input rows and output rows; or a map, and the next three are not used.
        indice_pair_num: (K,), how many pairs each tap has.
        num_activate_out: output rows.
        algo, timer, act_beta: accepted and not used.
        bias: (Cout,) or None.
        act_alpha, act_type: see `activate`.
    """
    taps = _pairs(indice_pairs, indice_pair_num, False)
    return activate(_convolve(features, filters, indice_pairs, taps, num_activate_out, bias), act_type, act_alpha)


def indice_inverse_conv(
    features: Tensor,
    filters: Tensor,
    indice_pairs: Table,
    indice_pair_num: Tensor | None = None,
    num_activate_out: int = 0,
    algo: Any = None,
    timer: Any = None,
    bias: Tensor | None = None,
    act_alpha: float = 0.0,
    act_beta: float = 0.0,
    act_type: Any = Activation.None_,
) -> Tensor:
    """`indice_conv` from the outputs of a convolution to its inputs, with the pairs of that convolution."""
    map = indice_pairs.transposed() if isinstance(indice_pairs, SparseMap) else indice_pairs
    taps = ((tap, outputs, inputs) for tap, inputs, outputs in _pairs(indice_pairs, indice_pair_num, False))
    return activate(_convolve(features, filters, map, taps, num_activate_out, bias), act_type, act_alpha)


def indice_subm_conv(
    features: Tensor,
    filters: Tensor,
    indice_pairs: Table,
    indice_pair_num: Tensor | None = None,
    num_activate_out: int = 0,
    algo: Any = None,
    timer: Any = None,
    bias: Tensor | None = None,
    act_alpha: float = 0.0,
    act_beta: float = 0.0,
    act_type: Any = Activation.None_,
) -> Tensor:
    """`indice_conv` of a submanifold convolution, whose table lists the taps before the centre alone."""
    taps = _pairs(indice_pairs, indice_pair_num, True)
    return activate(_convolve(features, filters, indice_pairs, taps, len(features), bias), act_type, act_alpha)


def implicit_gemm(
    features: Tensor,
    filters: Tensor,
    pair_fwd: Table,
    pair_bwd: Any = None,
    pair_mask_fwd_splits: Any = None,
    pair_mask_bwd_splits: Any = None,
    mask_argsort_fwd_splits: Any = None,
    mask_argsort_bwd_splits: Any = None,
    num_activate_out: int = 0,
    masks: Any = None,
    is_train: bool = True,
    is_subm: bool = False,
    timer: Any = None,
    fp32_accum: bool | None = None,
    bias: Tensor | None = None,
    act_alpha: float = 0.0,
    act_beta: float = 0.0,
    act_type: Any = Activation.None_,
) -> Tensor:
    """A convolution, from the (K, N_out) table of input rows that each output meets, or a map.

    The other tables, masks and sort orders are accepted and not used.
    """
    output = _convolve(features, filters, pair_fwd, _columns(pair_fwd), num_activate_out, bias)
    return activate(output, act_type, act_alpha)


def indice_maxpool(
    features: Tensor, indice_pairs: Table, indice_pair_num: Tensor | None = None, num_activate_out: int = 0
) -> Tensor:
    """The largest of 0 and the inputs of each output; arguments as for `indice_conv`."""
    if isinstance(indice_pairs, SparseMap):
        return sparse_pool(features, indice_pairs, "max0")
    return _max_from_zero(features, list(_pairs(indice_pairs, indice_pair_num, False)), num_activate_out)


def indice_maxpool_implicit_gemm(
    features: Tensor, indice_pairs_fwd: Table, indice_pairs_bwd: Any = None, num_activate_out: int = 0
) -> Tensor:
    """`indice_maxpool` from the table that `implicit_gemm` takes."""
    if isinstance(indice_pairs_fwd, SparseMap):
        return sparse_pool(features, indice_pairs_fwd, "max0")
    return _max_from_zero(features, list(_columns(indice_pairs_fwd)), num_activate_out)


def indice_avgpool_implicit_gemm(
    features: Tensor,
    indice_pairs_fwd: Table,
    indice_pairs_bwd: Any = None,
    num_activate_out: int = 0,
    calc_count: bool = True,
) -> Tensor:
    """The mean of the active inputs of each output, from the table that `implicit_gemm` takes."""
    if isinstance(indice_pairs_fwd, SparseMap):
        return sparse_pool(features, indice_pairs_fwd, "avg")
    total = features.new_zeros(num_activate_out, features.shape[1])
    for _, inputs, outputs in _columns(indice_pairs_fwd):
        total = total.index_add(0, outputs, features[inputs])
    return total / (indice_pairs_fwd >= 0).sum(0).clamp(min=1)[:, None].to(total.dtype)


def _pairs(table: Table, counts: Tensor | None, mirrored: bool) -> Taps:
    if isinstance(table, SparseMap):
        return
    if counts is None:
        raise ValueError("indice_pair_num must be a tensor (K,) where indice_pairs is one, got None")
    taps = table.shape[1]
    for tap, count in enumerate(counts.tolist()):
        inputs, outputs = table[:, tap, :count].long()
        yield tap, inputs, outputs
        if mirrored and taps % 2 and tap < taps // 2:
            yield taps - 1 - tap, outputs, inputs
    if mirrored and taps % 2:
        rows = torch.arange(table.shape[2], device=table.device)
        yield taps // 2, rows, rows


def _columns(table: Table) -> Taps:
    if isinstance(table, SparseMap):
        return
    for tap, inputs in enumerate(table.long()):
        outputs = (inputs >= 0).nonzero()[:, 0]
        yield tap, inputs[outputs], outputs


def _convolve(features: Tensor, filters: Tensor, table: Table, taps: Taps, rows: int, bias: Tensor | None) -> Tensor:
    if isinstance(table, SparseMap):
        return sparse_conv(features, filters, table, bias)
    weights = filters.flatten(1, -2)
    output = features.new_zeros(rows, filters.shape[0])
    for tap, inputs, outputs in taps:
        output = output.index_add(0, outputs, features[inputs] @ weights[:, tap].t())
    return output if bias is None else output + bias


def _max_from_zero(features: Tensor, taps: list[tuple[int, Tensor, Tensor]], rows: int) -> Tensor:
    """Every input equal to the output gets its gradient, as in spconv; a maximum of PyTorch's would divide it."""
    highest = features.detach().new_zeros(rows, features.shape[1])
    for _, inputs, outputs in taps:
        place = outputs[:, None].expand(-1, features.shape[1])
        highest = highest.scatter_reduce(0, place, features.detach()[inputs], "amax")
    output = highest
    for _, inputs, outputs in taps:
        reached = features[inputs]
        same = (reached == highest[outputs]).to(reached.dtype)
        output = output.index_add(0, outputs, (reached - reached.detach()) * same)
    return output
