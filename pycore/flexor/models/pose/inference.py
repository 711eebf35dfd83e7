# SPDX-License-Identifier: Apache-2.0
"""Networks made faster for inference, without a change of what they compute."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any, TypeGuard, TypeVar

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ...nn import Conv3x3

__all__ = ["by_winograd", "for_inference"]

Model = TypeVar("Model", bound=nn.Module)


def for_inference(model: Model) -> Model:
    """A copy for inference alone: batch norms folded into the convolutions before them, 3x3 ones by Winograd.

        gamma (W*x + b - mean) / sqrt(var + eps) + beta = W'*x + b'

    A normalisation follows a convolution where the module that holds both registers it right after it, with as many
    channels, as every network of `flexor.models.pose` does; others stay. Both must be used nowhere else. Convolutions
    of stride 1 that keep the size become `flexor.nn.Conv3x3`.

    Args:
        model: a network of `flexor.models.pose`, or one that is written like them.

    Returns:
        A copy in evaluation mode, without gradients, `torch.nn.Identity` in the place of each normalisation. Its
        outputs differ by rounding.

    Raises:
        TypeError: model is no module.

    Source:
        `torch.nn.utils.fusion.fuse_conv_bn_eval`, `flexor.ops.conv3x3`.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"for_inference: model must be a torch.nn.Module, got {type(model).__name__}")
    fast = copy.deepcopy(model).eval().requires_grad_(False)
    for module in list(fast.modules()):
        children: list[tuple[str, Any]] = list(module.named_children())
        for (name, conv), (after, norm) in pairwise(children):
            if not _foldable(conv, norm):
                continue
            setattr(module, name, fuse_conv_bn_eval(conv, norm, isinstance(conv, nn.ConvTranspose2d)))
            setattr(module, after, nn.Identity())
    return by_winograd(fast)


def by_winograd(model: Model) -> Model:
    """The model itself, after its 3x3 convolutions that keep the size became `flexor.nn.Conv3x3`, parameters kept."""
    for module in list(model.modules()):
        for name, conv in list(module.named_children()):
            if not _keeps_size(conv):
                continue
            fast = Conv3x3(conv.in_channels, conv.out_channels, conv.dilation[0], conv.bias is not None)
            fast.weight, fast.bias = conv.weight, conv.bias
            setattr(module, name, fast.train(conv.training))
    return model


def _keeps_size(conv: nn.Module) -> TypeGuard[nn.Conv2d]:
    return (
        type(conv) is nn.Conv2d
        and conv.kernel_size == (3, 3)
        and conv.stride == (1, 1)
        and conv.padding == conv.dilation == conv.dilation[:1] * 2
        and conv.padding_mode == "zeros"
        and conv.groups == 1
    )


def _foldable(conv: nn.Module, norm: nn.Module) -> bool:
    if type(norm) is not nn.BatchNorm2d or not norm.track_running_stats:
        return False
    if type(conv) is nn.ConvTranspose2d:
        return conv.groups == 1 and conv.out_channels == norm.num_features  # torch folds no groups of those
    return isinstance(conv, nn.Conv2d) and conv.out_channels == norm.num_features
