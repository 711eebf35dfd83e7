# SPDX-License-Identifier: Apache-2.0
"""Export to ONNX: deform_conv2d as the standard operator DeformConv (opset 19), odconv2d as matrix products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


def translation_table() -> dict[Any, Callable[..., Any]]:
    """Gives what `torch.onnx.export(..., dynamo=True, custom_translation_table=)` needs to know flexor's ops.

    Returns:
        A dict from op to translation, for opset 19 or later.

    Raises:
        ImportError: without onnxscript (pip install flexor[onnx]).

    Source:
        https://onnx.ai/onnx/operators/onnx__DeformConv.html

    Notes:
        A standard Conv has the same weights for every sample. odconv2d becomes one MatMul that mixes the kernels, and
        one of the mixtures with what every output pixel reads, gathered by a Slice per tap; any batch size runs. With
        one kernel and no attention to taps it is a Conv between two products.
    """
    from onnxscript import opset19 as opset

    def deform_conv2d(
        input: Any,
        offset: Any,
        weight: Any,
        bias: Any,
        mask: Any,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        backend: str | None = None,
    ) -> Any:
        kernel = [int(weight.shape[2]), int(weight.shape[3])]
        return opset.DeformConv(
            input,
            weight,
            offset,
            bias,
            mask,
            dilations=list(dilation),
            group=int(input.shape[1]) // int(weight.shape[1]),
            kernel_shape=kernel,
            offset_group=int(offset.shape[1]) // (2 * kernel[0] * kernel[1]),
            pads=[*padding, *padding],
            strides=list(stride),
        )

    return {torch.ops.flexor.deform_conv2d.default: deform_conv2d, torch.ops.flexor.odconv2d.default: _odconv2d(opset)}


def _odconv2d(opset: Any) -> Callable[..., Any]:
    def ints(*values: int) -> Any:
        return opset.Constant(value_ints=list(values))

    def columns(input: Any, taps: Sequence[int], stride: Any, padding: Any, dilation: Any) -> tuple[Any, Any]:
        """What every tap reads: (B, Ci, K, oh, ow), and its last two sizes."""
        image = opset.Pad(input, ints(0, 0, *padding, 0, 0, *padding))
        reads = []
        for tap in ((y, x) for y in range(taps[0]) for x in range(taps[1])):
            starts = [t * d for t, d in zip(tap, dilation, strict=True)]
            # Counted from the end of the axis, so that the image's size may change; 0 would be its beginning.
            ends = [(t - k + 1) * d or 2**31 - 1 for t, k, d in zip(tap, taps, dilation, strict=True)]
            reads.append(opset.Slice(image, ints(*starts), ints(*ends), ints(2, 3), ints(*stride)))
        size = opset.Shape(reads[0], start=2)
        return opset.Concat(*[opset.Unsqueeze(read, ints(2)) for read in reads], axis=2), size

    def odconv2d(
        input: Any,
        weight: Any,
        channel: Any,
        filter: Any,
        spatial: Any,
        kernel: Any,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
        backend: str | None = None,
    ) -> Any:
        n, co, per_group, *taps = (int(size) for size in weight.shape)
        channel, filter, spatial, kernel = (
            value if value is None or value.dtype == input.dtype else opset.CastLike(value, input)
            for value in (channel, filter, spatial, kernel)
        )
        if channel is not None:
            input = opset.Mul(input, opset.Unsqueeze(channel, ints(2, 3)))
        if spatial is None and n == 1 and kernel is None:
            output = opset.Conv(
                input,
                opset.Squeeze(weight, ints(0)),
                dilations=list(dilation),
                group=groups,
                kernel_shape=taps,
                pads=[*padding, *padding],
                strides=list(stride),
            )
        else:
            reads, size = columns(input, taps, stride, padding, dilation)
            if spatial is not None:
                reads = opset.Mul(reads, opset.Unsqueeze(spatial, ints(1, 3, 4)))
            reads = opset.Reshape(reads, ints(0, groups, per_group * taps[0] * taps[1], -1))
            mixed = weight if kernel is None else opset.MatMul(kernel, opset.Reshape(weight, ints(n, -1)))
            mixed = opset.Reshape(mixed, ints(-1, groups, co // groups, per_group * taps[0] * taps[1]))
            output = opset.Reshape(opset.MatMul(mixed, reads), opset.Concat(ints(0, co), size, axis=0))
        return output if filter is None else opset.Mul(output, opset.Unsqueeze(filter, ints(2, 3)))

    return odconv2d
