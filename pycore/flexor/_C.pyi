# SPDX-License-Identifier: Apache-2.0
# The compiled kernels. They write into tensors that the caller made, check what memory safety needs, release the GIL.
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

def available_isas() -> list[str]: ...
def active_isa() -> str: ...
def set_isa(name: str) -> None: ...
def cpu_features() -> list[str]: ...
def max_threads() -> int: ...
def build_info() -> dict[str, Any]: ...
def conv3x3_forward(output: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> None: ...
def conv3x3_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    grad_input: Tensor | None,
    grad_weight: Tensor | None,
    grad_bias: Tensor | None,
    dilation: int,
) -> None: ...
def deform_conv2d_forward(
    output: Tensor,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    groups: int,
    offset_groups: int,
) -> None: ...
def deform_conv2d_backward(
    grad_output: Tensor,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    grad_input: Tensor | None,
    grad_offset: Tensor | None,
    grad_weight: Tensor | None,
    grad_bias: Tensor | None,
    grad_mask: Tensor | None,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    groups: int,
    offset_groups: int,
) -> None: ...
def warp2d_forward(output: Tensor, input: Tensor, flow: Tensor, mode: int, border: bool) -> None: ...
def warp2d_backward(
    grad_output: Tensor,
    input: Tensor,
    flow: Tensor,
    grad_input: Tensor | None,
    grad_flow: Tensor | None,
    mode: int,
    border: bool,
) -> None: ...
def affine_warp2d_forward(output: Tensor, input: Tensor, inverse_matrix: Tensor, mode: int, border: bool) -> None: ...
def affine_warp2d_backward(
    grad_output: Tensor,
    input: Tensor,
    inverse_matrix: Tensor,
    grad_input: Tensor | None,
    grad_inverse_matrix: Tensor | None,
    mode: int,
    border: bool,
) -> None: ...
def xcorr2d_forward(output: Tensor, input: Tensor, kernel: Tensor, pad_h: int, pad_w: int) -> None: ...
def xcorr2d_backward(
    grad_output: Tensor,
    input: Tensor,
    kernel: Tensor,
    grad_input: Tensor | None,
    grad_kernel: Tensor | None,
    pad_h: int,
    pad_w: int,
) -> None: ...
def xcorr2d_depthwise_forward(output: Tensor, input: Tensor, kernel: Tensor, pad_h: int, pad_w: int) -> None: ...
def xcorr2d_depthwise_backward(
    grad_output: Tensor,
    input: Tensor,
    kernel: Tensor,
    grad_input: Tensor | None,
    grad_kernel: Tensor | None,
    pad_h: int,
    pad_w: int,
) -> None: ...
def grid_conv_forward(
    output: Tensor,
    input: Tensor,
    weight1: Tensor,
    weight2: Tensor | None,
    bias1: Tensor | None,
    bias2: Tensor | None,
    attention: Tensor | None,
    borders: str,
) -> None: ...
def grid_conv_backward(
    grad_output: Tensor,
    input: Tensor,
    weight1: Tensor,
    weight2: Tensor | None,
    attention: Tensor | None,
    grad_input: Tensor | None,
    grad_weight1: Tensor | None,
    grad_weight2: Tensor | None,
    grad_bias1: Tensor | None,
    grad_bias2: Tensor | None,
    grad_attention: Tensor | None,
    borders: str,
) -> None: ...
def odconv2d_forward(
    output: Tensor,
    input: Tensor,
    weight: Tensor,
    channel_attention: Tensor | None,
    filter_attention: Tensor | None,
    spatial_attention: Tensor | None,
    kernel_attention: Tensor | None,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    groups: int,
) -> None: ...
def odconv2d_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    channel_attention: Tensor | None,
    filter_attention: Tensor | None,
    spatial_attention: Tensor | None,
    kernel_attention: Tensor | None,
    grad_input: Tensor | None,
    grad_weight: Tensor | None,
    grad_channel_attention: Tensor | None,
    grad_filter_attention: Tensor | None,
    grad_spatial_attention: Tensor | None,
    grad_kernel_attention: Tensor | None,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    groups: int,
) -> None: ...
def intra_predict(
    output: Tensor,
    border: Tensor,
    mode: Tensor,
    available: Tensor | None,
    bit_depth: int,
    nearest: bool,
    smoothing: bool,
    strong_smoothing: bool,
    edge_filter: bool,
    reference: bool = False,
) -> bool: ...
def intra_search(
    costs: Tensor,
    candidates: Tensor | None,
    pictures: Tensor,
    size: int,
    satd: bool,
    nearest: bool,
    bit_depth: int,
    strong_smoothing: bool,
    ctb_size: int,
    reference: bool = False,
) -> bool: ...
def sparse_index(
    indices: Tensor, batch_size: int, lower: Sequence[int] | None, upper: Sequence[int] | None
) -> tuple[np.ndarray, ...]: ...
def sparse_output_index(
    parts: Sequence[Tensor],
    dims: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    lower: Sequence[int] | None,
    upper: Sequence[int] | None,
    wide: bool,
) -> tuple[np.ndarray, ...]: ...
def sparse_map(
    out_parts: Sequence[Tensor],
    in_parts: Sequence[Tensor],
    dims: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
) -> tuple[np.ndarray, ...]: ...
def sparse_conv_forward(
    output: Tensor,
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    map: Sequence[Tensor],
    groups: int,
    slope: float,
) -> None: ...
def sparse_conv_backward(
    grad_output: Tensor,
    features: Tensor,
    weight: Tensor,
    map: Sequence[Tensor],
    transposed_map: Sequence[Tensor],
    grad_features: Tensor | None,
    grad_weight: Tensor | None,
    grad_bias: Tensor | None,
    groups: int,
) -> None: ...
def sparse_pool_forward(output: Tensor, features: Tensor, map: Sequence[Tensor], mode: str) -> None: ...
def sparse_pool_backward(
    grad_output: Tensor,
    output: Tensor,
    features: Tensor,
    map: Sequence[Tensor],
    transposed_map: Sequence[Tensor],
    grad_features: Tensor,
    mode: str,
) -> None: ...
def hevc_residual(blocks: np.ndarray, kind: str, width: int, height: int, bit_depth: int, reference: bool) -> None: ...
def hevc_cross_component(
    blocks: np.ndarray, luma: np.ndarray, scale: int, bit_depth_luma: int, bit_depth_chroma: int, reference: bool
) -> None: ...
def hevc_add(samples: np.ndarray, blocks: np.ndarray, bit_depth: int, reference: bool) -> None: ...
def hevc_deblock(
    samples: np.ndarray, edges: np.ndarray, place: int, columns: bool, length: int, bit_depth: int, reference: bool
) -> None: ...
def hevc_sao(
    output: np.ndarray, samples: np.ndarray, offsets: np.ndarray, direction: int, bit_depth: int, reference: bool
) -> None: ...
def hevc_narrow(output: np.ndarray, samples: np.ndarray, reference: bool) -> None: ...

class HevcDecoder:
    def __init__(self, threads: int, verify: bool, skip_inter: bool, length_size: int, inspect: bool) -> None: ...
    def add_parameter_sets(self, record: Any) -> None: ...
    def feed(self, data: Any, prompt: bool) -> None: ...
    def finish(self) -> None: ...
    def pictures(self) -> list[dict[str, Any]]: ...
    def problems(self) -> list[tuple[bool, str]]: ...
    def units(self) -> list[dict[str, Any]]: ...

def hevc_length_size(record: Any) -> int: ...

class HevcEncoder:
    def __init__(
        self,
        width: int,
        height: int,
        chroma_format: int,
        bit_depth: int,
        qp: int,
        lossless: bool,
        preset: str,
        range_extensions: bool,
        nearest: str,
        nearest_threshold: int,
        edge_filters: bool,
        hash: bool,
        colour: tuple[int, int, int, int],
        timing: tuple[int, int],
    ) -> None: ...
    def parameter_sets(self) -> bytes: ...
    def encode(self, planes: Sequence[np.ndarray], threads: int) -> bytes: ...
    def encode_many(self, pictures: Sequence[Sequence[np.ndarray]], threads: int) -> list[bytes]: ...
