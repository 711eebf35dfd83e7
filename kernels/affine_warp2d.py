# SPDX-License-Identifier: Apache-2.0
"""Affine warping in Triton: output(p) = input(A p), A = inverse_matrix from destination to source pixels."""

from __future__ import annotations

import torch

from ._warp_shared import warp_backward, warp_forward


def forward(
    input: torch.Tensor, inverse_matrix: torch.Tensor, size: tuple[int, int], mode: str, padding_mode: str
) -> torch.Tensor:
    """Output (batch, channels, *size) in the input's dtype and memory format."""
    return warp_forward("affine_warp2d", input, None, coefficients(input, inverse_matrix), size, mode, padding_mode)


def backward(
    grad_output: torch.Tensor,
    input: torch.Tensor,
    inverse_matrix: torch.Tensor,
    mode: str,
    padding_mode: str,
    needs: tuple[bool, bool],
    deterministic: bool,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Gradients of (input, inverse_matrix) in their dtypes, None where `needs` is false."""
    matrix = coefficients(input, inverse_matrix)
    grad_input, grad_matrix = warp_backward(
        "affine_warp2d", grad_output, input, None, matrix, mode, padding_mode, needs, deterministic
    )
    return grad_input, None if grad_matrix is None else grad_matrix.to(inverse_matrix.dtype)


def coefficients(input: torch.Tensor, inverse_matrix: torch.Tensor) -> torch.Tensor:
    """The matrix as the kernel reads it: contiguous, in the dtype that coordinates have."""
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    return inverse_matrix.to(dtype).contiguous()
