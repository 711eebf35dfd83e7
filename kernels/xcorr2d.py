# SPDX-License-Identifier: Apache-2.0
"""Cross-correlation of every image with kernels of its own in Triton; the method is told in `_scaled_conv`."""

from __future__ import annotations

import torch

from ._common import check_supported
from ._scaled_conv import Geometry, Scales, scaled_conv
from ._scaled_conv_bwd_weight import Wanted, unpack_weight, weight_sums

NAME = "xcorr2d"


def forward(input: torch.Tensor, kernel: torch.Tensor, padding: tuple[int, int]) -> torch.Tensor:
    """Output (batch, kernels, output_height, output_width) in the input's dtype and memory format."""
    check_supported(NAME, input)
    geometry = Geometry(padding=padding)
    size = geometry.output_size(input.shape[2:], kernel.shape[3:])
    return scaled_conv(NAME, input, kernel, Scales(), size, geometry)


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
        grad_input = scaled_conv(NAME, grad_output, kernel, Scales(), size, geometry, transposed=True)
    if needs[1]:
        sums = weight_sums(NAME, grad_output, input, kernel, Scales(), geometry, Wanted(weight=True), per_image=True)
        grad_kernel = unpack_weight(sums.weight.squeeze(1), kernel, groups=1)
    return grad_input, grad_kernel
