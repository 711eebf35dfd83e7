# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _C
from ..reference.bilinear import compute_dtype
from ..reference.warp2d import inverse_affine_warp2d, inverse_affine_warp2d_backward, invert_affine
from . import _check, _warp
from ._operator import Grads, Ints, Needs, empty_image

_NAME = "affine_warp2d"


def affine_warp2d(
    input: Tensor,
    matrix: Tensor,
    size: Sequence[int] | None = None,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    *,
    backend: str | None = None,
) -> Tensor:
    """Moves every image by its own affine map.

        output[b, c, p] = input[b, c, M_b^-1 p]      with M_b = matrix[b], p = (x, y, 1)

    Args:
        input: (B, C, H, W), float64, float32, float16 or bfloat16; any strides.
        matrix: (B, 2, 3), from source to destination pixels as in OpenCV's warpAffine and kornia's
            warp_affine(align_corners=True); any floating dtype.
        size: (oh, ow) of the output; input's by default.
        mode: "bilinear" or "nearest" (halves to even).
        padding_mode: "zeros" around the input, or "border" for positions clamped to it.
        backend: "reference", "cpu", "triton" or "cuda" in place of the automatic choice.

    Returns:
        (B, C, oh, ow) in input's dtype; channels_last when input is.

    Raises:
        ValueError: shapes that do not fit, tensors on different devices, unknown modes.
        TypeError: dtypes that are not floating point.
        RuntimeError: a backend asked for by name that cannot run here.

    Notes:
        Differentiable in both tensors, to any order; the gradient reaches the matrix through its inverse, which is
        computed in float32 at least. A singular matrix gives NaN or what lies outside, never an error: looking would
        wait for the device.

    Source:
        Jaderberg et al., Spatial Transformer Networks, NeurIPS 2015, eq. 1 and 5.
    """
    _warp.check_input(_NAME, input)
    _check.tensor(_NAME, "matrix", matrix, "B 2 3")
    _check.floating(_NAME, "matrix", matrix)
    _check.shape(_NAME, "matrix.shape", matrix, (input.shape[0], 2, 3), "(B, 2, 3)")
    size = (input.shape[2], input.shape[3]) if size is None else _warp.plain_size(size)
    inverse = invert_affine(matrix).to(compute_dtype(input))
    return _operator((input, inverse), (size, mode, padding_mode), backend)


class _AffineWarp2d(_warp.WarpOperator):
    name = _NAME
    tensors = ("Tensor input", "Tensor inverse_matrix")
    params = ("SymInt[2] size", "str mode", "str padding_mode")

    def check(self, *args: Any) -> None:
        input, inverse_matrix, size, mode, padding_mode = args
        _warp.check_modes(_NAME, mode, padding_mode)
        _warp.check_input(_NAME, input)
        _check.integers(_NAME, "size", size, 0, "an integer not below 0")
        _check.tensor(_NAME, "inverse_matrix", inverse_matrix, "B 2 3")
        _check.shape(_NAME, "inverse_matrix.shape", inverse_matrix, (input.shape[0], 2, 3), "(B, 2, 3)")
        if inverse_matrix.dtype != compute_dtype(input):
            raise TypeError(
                f"{_NAME}: inverse_matrix must be {compute_dtype(input)} beside {input.dtype} input, "
                f"got {inverse_matrix.dtype}"
            )
        _check.same_device(_NAME, input=input, matrix=inverse_matrix)
        _check.fits(_NAME, "output", (*input.shape[:2], *size), input.dtype)

    def empty_output(self, input: Tensor, inverse_matrix: Tensor, size: Ints, *_: Any) -> Tensor:
        return empty_image(input, input.shape[0], input.shape[1], size[0], size[1])

    def cpu_forward(self, input: Tensor, inverse_matrix: Tensor, size: Ints, *modes: str) -> Tensor:
        output = self.empty_output(input, inverse_matrix, size)
        _C.affine_warp2d_forward(output, input, inverse_matrix, *_warp.kernel_modes(*modes))
        return output

    def cpu_backward(self, grads: Grads, *args: Any) -> None:
        grad_output, input, inverse_matrix, _, *modes = args
        _C.affine_warp2d_backward(grad_output, input, inverse_matrix, *grads, *_warp.kernel_modes(*modes))

    def triton_forward(self, *args: Any) -> Tensor:
        from ..kernels import affine_warp2d as kernel

        return kernel.forward(*args)

    def triton_backward(self, needs: Needs, deterministic: bool, *args: Any) -> Grads:
        from ..kernels import affine_warp2d as kernel

        grad_output, input, inverse_matrix, _, *modes = args
        return kernel.backward(grad_output, input, inverse_matrix, *modes, tuple(needs), deterministic)

    def reference_forward(self, *args: Any) -> Tensor:
        return inverse_affine_warp2d(*args)

    def reference_backward(self, *args: Any) -> Grads:
        return inverse_affine_warp2d_backward(*args)

    def autocast(self, dtype: torch.dtype, *args: Any) -> tuple[Any, ...]:
        """As they come: the inverse already has the dtype that positions need."""
        return args


_operator = _AffineWarp2d()
