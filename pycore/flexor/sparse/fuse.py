# SPDX-License-Identifier: Apache-2.0
"""Batch norms and activations folded into the convolutions before them, for evaluation."""

from __future__ import annotations

import copy
from collections import Counter
from typing import TypeVar

import torch
from torch import nn

from ..nn import sparse
from .conv import SparseConvolution
from .core import Activation
from .modules import SparseIdentity, SparseSequential

Conv = SparseConvolution | sparse.ConvModule

_Model = TypeVar("_Model", bound=nn.Module)


def fuse(model: _Model) -> _Model:
    """A copy for evaluation, in which convolutions also do the batch norm and the activation that follow them.

    Looked for in `SparseSequential`s of `flexor.sparse` and `flexor.nn` and in `torch.nn.Sequential`s: a convolution,
    then a BatchNorm1d (any subclass), then a ReLU or LeakyReLU, of which either may lack. What is folded becomes an
    identity, so that every module keeps its name. A convolution that is in several places of the model stays.

    Args:
        model: in evaluation mode; it does not change.

    Returns:
        The copy. It computes the same up to rounding, and cannot be trained on.

    Raises:
        ValueError: a model in training mode.
    """
    if model.training:
        raise ValueError("fuse: model must be in evaluation mode; call model.eval() first")
    model = copy.deepcopy(model)
    uses = Counter(map(id, (module for _, module in model.named_modules(remove_duplicate=False))))
    for module in model.modules():
        if isinstance(module, SparseSequential | nn.Sequential):
            _fuse_chain(module, uses)
    return model


def _fuse_chain(chain: SparseSequential | nn.Sequential, uses: Counter[int]) -> None:
    conv: Conv | None = None
    for name, module in list(chain._modules.items()):
        if isinstance(module, SparseConvolution | sparse.ConvModule):
            conv = None if _activated(module) or uses[id(module)] > 1 else module
        elif conv is not None and _foldable(module):
            _fold(conv, module)  # type: ignore[arg-type]
            chain._modules[name] = SparseIdentity()
        elif conv is not None and isinstance(module, nn.ReLU | nn.LeakyReLU):
            _activate(conv, module)
            chain._modules[name] = SparseIdentity()
            conv = None
        elif not isinstance(module, nn.Identity):
            conv = None


def _foldable(module: nn.Module | None) -> bool:
    return isinstance(module, nn.BatchNorm1d) and not module.training and module.running_mean is not None


@torch.no_grad()
def _fold(conv: Conv, norm: nn.BatchNorm1d) -> None:
    """gamma / sigma * (conv - mean) + beta"""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = torch.rsqrt(norm.running_var + norm.eps)
    shift = -norm.running_mean * scale
    if norm.affine:
        scale, shift = scale * norm.weight, shift * norm.weight + norm.bias
    if conv.bias is not None:
        shift = shift + conv.bias * scale
    if isinstance(conv, SparseConvolution) and conv.one_tap:
        weight = conv.weight.reshape(conv.in_channels, conv.out_channels) * scale
    else:
        weight = conv.weight * scale.reshape(-1, *(1 for _ in range(conv.weight.dim() - 1)))
    conv.weight = nn.Parameter(weight.reshape(conv.weight.shape).to(conv.weight.dtype))
    conv.bias = nn.Parameter(shift.to(conv.weight.dtype))


def _activated(conv: Conv) -> bool:
    return conv.act_type.name != "None_" if isinstance(conv, SparseConvolution) else conv.slope is not None


def _activate(conv: Conv, module: nn.ReLU | nn.LeakyReLU) -> None:
    slope = module.negative_slope if isinstance(module, nn.LeakyReLU) else 0.0
    if isinstance(conv, SparseConvolution):
        conv.act_type, conv.act_alpha = Activation.LeakyReLU if slope else Activation.ReLU, slope
    else:
        conv.slope = slope
