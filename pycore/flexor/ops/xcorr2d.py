# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import _C, reference
from ..reference.xcorr2d import xcorr2d_backward
from . import _vmap
from ._matching import MatchingOperator, Pair, pair
from ._operator import Dims, Grads, Ints, Needs


def xcorr2d(input: Tensor, kernel: Tensor, padding: Pair = 0, *, backend: str | None = None) -> Tensor:
    """Cross-correlates every sample with kernels of its own, over all channels.

        output[b, k, y, x] = sum over c, i, j of kernel[b, k, c, i, j] * input[b, c, y - py + i, x - px + j]

    Args:
        input: (B, C, H, W), float64, float32, float16 or bfloat16; any strides. B may be 0.
        kernel: (B, K, C, kh, kw), input's dtype; any strides.
        padding: rows and columns of zeros around the input, an int or (y, x).
        backend: "reference", "cpu", "triton" or "cuda" in place of the automatic choice.

    Returns:
        (B, K, H + 2 * py - kh + 1, W + 2 * px - kw + 1) in input's dtype; channels_last when input is.

    Raises:
        ValueError: batches or channels that differ, a kernel larger than the padded input, different devices.
        TypeError: dtypes that are mixed or not floating point.
        RuntimeError: a backend asked for by name that cannot run here.

    Notes:
        Differentiable in both tensors, to any order. Sums are in float32 (float64 for float64). On the CPU, bits do
        not depend on threads.

    Source:
        Bertinetto et al., Fully-Convolutional Siamese Networks for Object Tracking, ECCVW 2016, section 2.1; with
        several kernels a sample Li et al., High Performance Visual Tracking with Siamese Region Proposal Network,
        CVPR 2018, section 3.2.
    """
    return _operator((input, kernel), (pair(padding),), backend)


class _Xcorr2d(MatchingOperator):
    name = "xcorr2d"
    kernel_layout = "B K C kh kw"

    def cpu_forward(self, input: Tensor, kernel: Tensor, padding: Ints) -> Tensor:
        output = self.empty_output(input, kernel, padding)
        _C.xcorr2d_forward(output, input, kernel, *padding)
        return output

    def cpu_backward(self, grads: Grads, *args: Any) -> None:
        *tensors, padding = args
        _C.xcorr2d_backward(*tensors, *grads, *padding)

    def triton_forward(self, *args: Any) -> Tensor:
        from ..kernels import xcorr2d as kernel

        return kernel.forward(*args)

    def triton_backward(self, needs: Needs, deterministic: bool, *args: Any) -> Grads:
        from ..kernels import xcorr2d as kernel

        return kernel.backward(*args, tuple(needs), deterministic)

    def reference_forward(self, *args: Any) -> Tensor:
        return reference.xcorr2d(*args)

    def reference_backward(self, *args: Any) -> Grads:
        return xcorr2d_backward(*args)

    def vmap_forward(self, batch: int, in_dims: Dims, *args: Any) -> tuple[Tensor, int]:
        """Where the input is not batched, the kernels of all calls are the kernels of one."""
        if in_dims[0] is not None:
            return super().vmap_forward(batch, in_dims, *args)
        (kernel,) = _vmap.into_channels(args[1].movedim(in_dims[1], 0))
        return _vmap.out_of_channels(batch, self.op(args[0], kernel, *args[2:])), 0


_operator = _Xcorr2d()
