# SPDX-License-Identifier: Apache-2.0
"""Cross-correlation of every channel of every image with a kernel of its own in Triton, directly: a dot product of
one channel has no second operand to share; see `_depthwise`."""

from __future__ import annotations

import torch

from ._common import check_supported
from ._depthwise import products, scaled_conv
from ._scaled_conv import Geometry, Scales

NAME = "xcorr2d_depthwise"


def forward(input: torch.Tensor, kernel: torch.Tensor, padding: tuple[int, int]) -> torch.Tensor:
    """Output (batch, channels, output_height, output_width) in the input's dtype and memory format."""
    check_supported(NAME, input)
    geometry = Geometry(padding=padding)
    size = geometry.output_size(input.shape[2:], kernel.shape[2:])
    return scaled_conv(NAME, input, kernel.unsqueeze(2), Scales(), size, geometry)


def backward(
    grad_output: torch.Tensor,
    input: torch.Tensor,
    kernel: torch.Tensor,
    padding: tuple[int, int],
    needs: tuple[bool, bool],
    deterministic: bool,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Gradients of (input, kernel) in their dtypes, None where `needs` is false; always deterministic."""
    check_supported(NAME, input)
    geometry = Geometry(padding=padding)
    if grad_output.numel() == 0:
        return torch.zeros_like(input) if needs[0] else None, torch.zeros_like(kernel) if needs[1] else None
    grad_input = grad_kernel = None
    if needs[0]:
        size = (input.shape[2], input.shape[3])
        grad_input = scaled_conv(NAME, grad_output, kernel.unsqueeze(2), Scales(), size, geometry, transposed=True)
    if needs[1]:
        size = (kernel.shape[2], kernel.shape[3])
        grad_kernel = products(NAME, grad_output, input, size, geometry).to(kernel.dtype)
    return grad_input, grad_kernel
