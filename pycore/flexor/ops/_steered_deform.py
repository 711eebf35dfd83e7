# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor

from .. import _backend
from ._operator import Ints, is_plain
from .deform_conv2d import _operator, deform_conv2d


def steered_deform_conv2d(
    input: Tensor,
    steering: Tensor,
    offsets: int,
    weight: Tensor,
    bias: Tensor | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
) -> Tensor:
    """`deform_conv2d` with offsets and masks in one tensor, so that their gradients need not be put together.

    Args:
        input, weight, bias, stride, padding, dilation: as for `deform_conv2d`, the last three as tuples.
        steering: (N, 3 * DG * kh * kw, oh, ow), the offsets and then the masks.
        offsets: how many of its channels are offsets.

    Returns:
        (N, O, oh, ow).
    """
    tensors = (input, steering, weight, bias)
    place = stride, padding, dilation
    if torch.is_grad_enabled() and steering.requires_grad and is_plain(tensors) and _on_cpu(input, steering):
        return _Steered.apply(*tensors, offsets, place)
    offset, mask = _parts(steering, offsets)
    return deform_conv2d(input, offset, weight, bias, *place, mask=mask)


class _Steered(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        steering: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        offsets: int,
        place: tuple[Ints, ...],
    ) -> Tensor:
        ctx.offsets, ctx.place = offsets, place
        ctx.save_for_backward(input, steering, weight, bias)
        offset, mask = _parts(steering, offsets)
        return deform_conv2d(input, offset, weight, bias, *place, mask=mask)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        input, steering, weight, bias = ctx.saved_tensors
        needs_input, needs_steering, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        offset, mask = _parts(steering, ctx.offsets)
        args = (grad_output, input, offset, weight, bias, mask, *ctx.place)
        watched = is_legacy_batchedtensor(grad_output) or torch.is_grad_enabled() or not is_plain(args[:6])
        if watched or not needs_steering or not _on_cpu(input, steering):
            needs = needs_input, needs_steering, needs_weight, needs_bias, needs_steering
            given = _operator.backward_op(*args, needs, None)
            joined = torch.cat((given[1], given[4]), 1) if needs_steering else None
            return given[0], joined, given[2], given[3], None, None
        wanted = zip((input, steering, weight, bias), ctx.needs_input_grad, strict=False)
        grads = tuple(torch.empty_like(t) if need else None for t, need in wanted)
        grad_offset, grad_mask = _parts(grads[1], ctx.offsets)
        _operator.cpu_backward((grads[0], grad_offset, *grads[2:], grad_mask), *args)
        return *grads, None, None


def _parts(steering: Tensor, offsets: int) -> tuple[Tensor, ...]:
    return steering.split((offsets, steering.shape[1] - offsets), 1)


def _on_cpu(input: Tensor, steering: Tensor) -> bool:
    return _backend.choose("deform_conv2d", input.device, input.dtype) == "cpu" and steering.is_cpu
