# SPDX-License-Identifier: Apache-2.0
"""The other ways to compute a deformable convolution (3x3, stride 1, padding = dilation)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .contest import Unavailable


def grid_sample_deform_conv2d(
    input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, mask: Tensor, dilation: int
) -> Tensor:
    """The formula in four PyTorch calls: positions, grid_sample, mask, one matrix product; differentiable."""
    batch, channels, height, width = input.shape
    taps = weight.shape[2] * weight.shape[3]
    groups = mask.shape[1] // taps
    row, column = _sampling_grid(weight.shape[2], height, width, dilation, offset)
    offset = offset.reshape(batch * groups, taps, 2, height, width)
    x = (column + offset[:, :, 1]) * (2 / (width - 1)) - 1
    y = (row + offset[:, :, 0]) * (2 / (height - 1)) - 1
    grid = torch.stack((x, y), dim=-1).reshape(batch * groups, taps * height, width, 2)
    planes = input.reshape(batch * groups, channels // groups, height, width)
    samples = F.grid_sample(planes, grid, align_corners=True)
    samples = samples.reshape(batch, groups, channels // groups, taps, height * width)
    columns = samples * mask.reshape(batch, groups, 1, taps, height * width)
    output = weight.flatten(1) @ columns.reshape(batch, channels * taps, height * width)
    return output.reshape(batch, -1, height, width) + bias.reshape(-1, 1, 1)


def _sampling_grid(kernel: int, height: int, width: int, dilation: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (taps, height, 1) and columns (taps, 1, width) that are sampled where the offset is zero."""
    tap = (torch.arange(kernel, dtype=like.dtype) - kernel // 2) * dilation
    row = tap.repeat_interleave(kernel)[:, None, None] + torch.arange(height, dtype=like.dtype)[:, None]
    column = tap.repeat(kernel)[:, None, None] + torch.arange(width, dtype=like.dtype)
    return row, column


def torchvision_deform_conv2d():
    """torchvision's operator; Unavailable without torchvision."""
    try:
        from torchvision.ops import deform_conv2d
    except ImportError as error:
        raise Unavailable(f"torchvision cannot be imported: {error}") from None
    return deform_conv2d


def onnxruntime_deform_conv2d(
    input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, mask: Tensor, dilation: int, threads: int
):
    """A call of onnxruntime's DeformConv (opset 19) on these tensors; weight and bias are constants of its graph."""
    try:
        import onnxruntime
        from onnx import TensorProto, helper, numpy_helper
    except ImportError as error:
        raise Unavailable(f"onnxruntime and onnx cannot be imported: {error}") from None
    kernel = weight.shape[2]
    node = helper.make_node(
        "DeformConv",
        ["input", "weight", "offset", "bias", "mask"],
        ["output"],
        kernel_shape=[kernel, kernel],
        dilations=[dilation, dilation],
        pads=[dilation] * 4,
        offset_group=mask.shape[1] // kernel**2,
    )
    feeds = {"input": input, "offset": offset, "mask": mask}
    graph = helper.make_graph(
        [node],
        "deform_conv2d",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, t.shape) for name, t in feeds.items()],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight.numpy(), "weight"), numpy_helper.from_array(bias.numpy(), "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # its threads must not disturb the others
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    except onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented as error:
        raise Unavailable(f"onnxruntime {onnxruntime.__version__} has no DeformConv: {error}") from None
    arrays = {name: t.numpy() for name, t in feeds.items()}
    return lambda: (torch.from_numpy(session.run(None, arrays)[0]),)
