# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import _C, reference
from ..reference.warp2d import warp2d_backward
from . import _check, _warp
from ._operator import Grads, Needs, empty_image

_NAME = "warp2d"


def warp2d(
    input: Tensor, flow: Tensor, mode: str = "bilinear", padding_mode: str = "zeros", *, backend: str | None = None
) -> Tensor:
    """Reads the input at every output pixel plus the flow there.

        output[b, c, p] = input[b, c, p + flow[b, :, p]]

    Args:
        input: (B, C, H, W), float64, float32, float16 or bfloat16; any strides.
        flow: (B, 2, oh, ow), pixels; channel 0 is x, channel 1 is y. Has input's dtype, or float32 beside
            half-precision input. Its size is the output's and may differ from input's.
        mode: "bilinear" or "nearest" (halves to even).
        padding_mode: "zeros" around the input, or "border" for positions clamped to it.
        backend: "reference", "cpu", "triton" or "cuda" in place of the automatic choice.

    Returns:
        (B, C, oh, ow) in input's dtype; channels_last when input is.

    Raises:
        ValueError: shapes that do not fit, tensors on different devices, unknown modes.
        TypeError: dtypes that are mixed or not floating point.
        RuntimeError: a backend asked for by name that cannot run here.

    Notes:
        Differentiable in both tensors, to any order; nearest has no gradient for the flow, and a clamped coordinate
        has none either. The same as `torch.nn.functional.grid_sample(align_corners=True)` without its rescaling.
        A NaN in the flow makes its own output pixel NaN; an infinite one reads 0, or the border.

    Source:
        Jaderberg et al., Spatial Transformer Networks, NeurIPS 2015, eq. 3 and 5.
    """
    return _operator((input, flow), (mode, padding_mode), backend)


class _Warp2d(_warp.WarpOperator):
    name = _NAME
    tensors = ("Tensor input", "Tensor flow")
    params = ("str mode", "str padding_mode")

    def check(self, *args: Any) -> None:
        input, flow, mode, padding_mode = args
        _warp.check_modes(_NAME, mode, padding_mode)
        _warp.check_input(_NAME, input)
        _check.tensor(_NAME, "flow", flow, "B 2 oh ow")
        _check.same_dtype(_NAME, "flow", flow, input, or_float32=True)
        _check.same_device(_NAME, input=input, flow=flow)
        _check.shape(_NAME, "flow.shape", flow, (input.shape[0], 2, *flow.shape[2:]), "(B, 2, oh, ow)")
        _check.fits(_NAME, "output", (*input.shape[:2], *flow.shape[2:]), input.dtype)

    def empty_output(self, input: Tensor, flow: Tensor, *_: Any) -> Tensor:
        return empty_image(input, input.shape[0], input.shape[1], flow.shape[2], flow.shape[3])

    def cpu_forward(self, input: Tensor, flow: Tensor, mode: str, padding_mode: str) -> Tensor:
        output = self.empty_output(input, flow)
        _C.warp2d_forward(output, input, flow, *_warp.kernel_modes(mode, padding_mode))
        return output

    def cpu_backward(self, grads: Grads, *args: Any) -> None:
        grad_output, input, flow, *modes = args
        _C.warp2d_backward(grad_output, input, flow, *grads, *_warp.kernel_modes(*modes))

    def triton_forward(self, *args: Any) -> Tensor:
        from ..kernels import warp2d as kernel

        return kernel.forward(*args)

    def triton_backward(self, needs: Needs, deterministic: bool, *args: Any) -> Grads:
        from ..kernels import warp2d as kernel

        return kernel.backward(*args, tuple(needs), deterministic)

    def reference_forward(self, *args: Any) -> Tensor:
        return reference.warp2d(*args)

    def reference_backward(self, *args: Any) -> Grads:
        return warp2d_backward(*args)


_operator = _Warp2d()
