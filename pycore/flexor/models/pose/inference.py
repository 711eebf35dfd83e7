# SPDX-License-Identifier: Apache-2.0
"""Networks made faster for inference, without a change of what they compute."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any, TypeVar

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

__all__ = ["fuse_batch_norm"]

Model = TypeVar("Model", bound=nn.Module)


def fuse_batch_norm(model: Model) -> Model:
    """A copy for inference alone, whose convolutions also do the batch normalisations that follow them.

        gamma (W*x + b - mean) / sqrt(var + eps) + beta = W'*x + b'

    A normalisation follows a convolution where the module that holds both registers it right after it, with as many
    channels, as every network of `flexor.models.pose` does; others stay. Both must be used nowhere else.

    Args:
        model: a network of `flexor.models.pose`, or one that is written like them.

    Returns:
        A copy in evaluation mode, without gradients, `torch.nn.Identity` in the place of each normalisation.

    Raises:
        TypeError: model is no module.

    Source:
        `torch.nn.utils.fusion.fuse_conv_bn_eval`.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"fuse_batch_norm: model must be a torch.nn.Module, got {type(model).__name__}")
    fused = copy.deepcopy(model).eval().requires_grad_(False)
    for module in list(fused.modules()):
        children: list[tuple[str, Any]] = list(module.named_children())
        for (name, conv), (after, norm) in pairwise(children):
            if not _foldable(conv, norm):
                continue
            setattr(module, name, fuse_conv_bn_eval(conv, norm, isinstance(conv, nn.ConvTranspose2d)))
            setattr(module, after, nn.Identity())
    return fused


def _foldable(conv: nn.Module, norm: nn.Module) -> bool:
    if type(norm) is not nn.BatchNorm2d or not norm.track_running_stats:
        return False
    if type(conv) is nn.ConvTranspose2d:
        return conv.groups == 1 and conv.out_channels == norm.num_features  # torch folds no groups of those
    return isinstance(conv, nn.Conv2d) and conv.out_channels == norm.num_features
