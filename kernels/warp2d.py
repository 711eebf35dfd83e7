# SPDX-License-Identifier: Apache-2.0
"""Backward warping by a flow in Triton: output(p) = input(p + flow(p)), channel 0 of the flow being x."""

from __future__ import annotations

import torch

from ._warp_shared import warp_backward, warp_forward


def forward(input: torch.Tensor, flow: torch.Tensor, mode: str, padding_mode: str) -> torch.Tensor:
    """Output (batch, channels, *flow.shape[2:]) in the input's dtype and memory format."""
    return warp_forward("warp2d", input, flow, None, (flow.shape[2], flow.shape[3]), mode, padding_mode)


def backward(
    grad_output: torch.Tensor,
    input: torch.Tensor,
    flow: torch.Tensor,
    mode: str,
    padding_mode: str,
    needs: tuple[bool, bool],
    deterministic: bool,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Gradients of (input, flow) in their dtypes, None where `needs` is false."""
    return warp_backward("warp2d", grad_output, input, flow, None, mode, padding_mode, needs, deterministic)
