# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import _C, reference
from ..reference.xcorr2d import xcorr2d_depthwise_backward
from ._matching import MatchingOperator, Pair, pair
from ._operator import Grads, Ints, Needs


def xcorr2d_depthwise(input: Tensor, kernel: Tensor, padding: Pair = 0, *, backend: str | None = None) -> Tensor:
    """Cross-correlates every channel of every sample with a kernel of its own.

        output[b, c, y, x] = sum over i, j of kernel[b, c, i, j] * input[b, c, y - py + i, x - px + j]

    Args:
        input: (B, C, H, W), float64, float32, float16 or bfloat16; any strides. B may be 0.
        kernel: (B, C, kh, kw), input's dtype; any strides.
        padding: rows and columns of zeros around the input, an int or (y, x).
        backend: "reference", "cpu", "triton" or "cuda" in place of the automatic choice.

    Returns:
        (B, C, H + 2 * py - kh + 1, W + 2 * px - kw + 1) in input's dtype; channels_last when input is.

    Raises:
        ValueError: batches or channels that differ, a kernel larger than the padded input, different devices.
        TypeError: dtypes that are mixed or not floating point.
        RuntimeError: a backend asked for by name that cannot run here.

    Notes:
        Differentiable in both tensors, to any order. Sums are in float32 (float64 for float64). On the CPU, bits do
        not depend on threads.

    Source:
        Li et al., SiamRPN++, CVPR 2019, section 3.4, depth-wise cross-correlation; Nie et al., Dynamic Kernel
        Distillation for Efficient Pose Estimation in Videos, ICCV 2019, where pose kernels match a frame.
    """
    return _operator((input, kernel), (pair(padding),), backend)


class _Xcorr2dDepthwise(MatchingOperator):
    name = "xcorr2d_depthwise"
    kernel_layout = "B C kh kw"

    def cpu_forward(self, input: Tensor, kernel: Tensor, padding: Ints) -> Tensor:
        output = self.empty_output(input, kernel, padding)
        _C.xcorr2d_depthwise_forward(output, input, kernel, *padding)
        return output

    def cpu_backward(self, grads: Grads, *args: Any) -> None:
        *tensors, padding = args
        _C.xcorr2d_depthwise_backward(*tensors, *grads, *padding)

    def triton_forward(self, *args: Any) -> Tensor:
        from ..kernels import xcorr2d_depthwise as kernel

        return kernel.forward(*args)

    def triton_backward(self, needs: Needs, deterministic: bool, *args: Any) -> Grads:
        from ..kernels import xcorr2d_depthwise as kernel

        return kernel.backward(*args, tuple(needs), deterministic)

    def reference_forward(self, *args: Any) -> Tensor:
        return reference.xcorr2d_depthwise(*args)

    def reference_backward(self, *args: Any) -> Grads:
        return xcorr2d_depthwise_backward(*args)


_operator = _Xcorr2dDepthwise()
