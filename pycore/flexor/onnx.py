# SPDX-License-Identifier: Apache-2.0
"""Export to ONNX: deform_conv2d as the standard operator DeformConv (opset 19)."""

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

    return {torch.ops.flexor.deform_conv2d.default: deform_conv2d}
