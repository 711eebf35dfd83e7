# SPDX-License-Identifier: Apache-2.0
"""Networks that lift 2-D poses to 3-D by convolutions on a grid of joints."""

from __future__ import annotations

import copy
import os
import pickle
import re
import struct
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..nn import DGridConv, GridAttention, GridConv, LearnableGridAssignment, fuse_grid_conv_bn_eval
from ..ops import inverse_semantic_grid_transform, semantic_grid_transform


class GridLifter(nn.Module):
    """Lifts 2-D poses to 3-D: joints to a grid, residual blocks of grid convolutions, the grid back to joints.

    Called with joints (B, joints, 2) it returns joints (B, joints, 3); called with grids (B, 2, h, w) it returns grids
    (B, 3, h, w), on which the published handcrafted variants compute their loss. With T the attention's temperature,
    training starts at T = 30 and lowers it to 1 over its first epochs (`net_update_temperature`); T is not part of
    the state_dict, so what resumes or evaluates sets it.

    Args:
        joints: number of joints; 17 for the handcrafted assignment and the named priors.
        channels: channels of the hidden layers.
        blocks: residual blocks.
        dynamic: whether the convolutions have an attention (D-GridConv); else static GridConv.
        assignment: "handcrafted", or "learnable" for a `LearnableGridAssignment`.
        borders: a letter a branch, as `flexor.ops.grid_conv` has them. None for "cr", without attention "cz": the
            published ones for true 2-D poses. For detected poses "cz" was the better.
        prior, mode: of the learnable assignment.
        grid_shape: (h, w), cells.
        dropout: probability that a channel is dropped in training.
        temperature: T.

    Raises:
        ValueError: an unknown assignment, a grid or joints that it is not made for, or inputs of another shape.

    Source:
        Kang et al., 3D Human Pose Lifting with Grid Convolution, AAAI 2023; the state_dicts of the official code.
    """

    def __init__(
        self,
        joints: int = 17,
        channels: int = 256,
        blocks: int = 2,
        dynamic: bool = True,
        assignment: str = "handcrafted",
        borders: str | None = None,
        prior: str | Tensor = "standard",
        mode: str = "gumbel",
        grid_shape: Sequence[int] = (5, 5),
        dropout: float = 0.25,
        temperature: float = 30.0,
    ) -> None:
        super().__init__()
        if assignment not in ("handcrafted", "learnable"):
            raise ValueError(f"GridLifter: assignment must be 'handcrafted' or 'learnable', got {assignment!r}")
        self.joints, self.grid_shape = joints, tuple(grid_shape)
        if assignment == "handcrafted" and (joints, *self.grid_shape) != (17, 5, 5):
            raise ValueError(
                f"GridLifter: the handcrafted assignment is for 17 joints on 5x5 cells, got {joints} joints on "
                f"{'x'.join(map(str, self.grid_shape))}"
            )
        borders = ("cr" if dynamic else "cz") if borders is None else borders
        made = dynamic, borders, self.grid_shape, temperature
        self.w1, self.batch_norm1 = _conv(2, channels, dynamic, borders), nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout2d(dropout)
        self.atten_conv1 = _attention(2, dynamic, self.grid_shape, temperature)
        self.linear_stages = nn.ModuleList(GridBlock(channels, *made, dropout) for _ in range(blocks))
        self.w2 = _conv(channels, 3, dynamic, borders, bias=False)
        self.atten_conv2 = _attention(channels, dynamic, self.grid_shape, temperature)
        learnable = assignment == "learnable"
        self.sgt_layer = LearnableGridAssignment(joints, self.grid_shape, prior, mode) if learnable else None

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() == 4:
            return self._lift(input)
        if input.shape[1:] != (self.joints, 2):
            expected = f"joints (B, {self.joints}, 2) or grids (B, 2, h, w)"
            raise ValueError(f"GridLifter: input must be {expected}, got {tuple(input.shape)}")
        if self.sgt_layer is None:
            return inverse_semantic_grid_transform(self._lift(semantic_grid_transform(input)))
        assignment = self.sgt_layer()
        grid = self._lift(semantic_grid_transform(input, assignment, self.grid_shape))
        return inverse_semantic_grid_transform(grid, assignment, uncovered="zero")

    def _lift(self, grid: Tensor) -> Tensor:
        if grid.shape[1:] != (2, *self.grid_shape):
            expected = ", ".join(map(str, self.grid_shape))
            raise ValueError(f"GridLifter: grids must be (B, 2, {expected}), got {tuple(grid.shape)}")
        grid = self.dropout(self.batch_norm1(_apply(self.w1, self.atten_conv1, grid)).relu())
        for stage in self.linear_stages:
            grid = stage(grid)
        return _apply(self.w2, self.atten_conv2, grid)

    def net_update_temperature(self, temperature: float) -> None:
        """Sets the temperature of every attention."""
        for module in self.modules():
            if isinstance(module, GridAttention):
                module.update_temperature(temperature)

    def fuse(self) -> GridLifter:
        """A copy for evaluation alone, its batch norms and temperature folded into the convolutions."""
        fused = copy.deepcopy(self).eval()
        for module in list(fused.modules()):
            for conv, norm in (("w1", "batch_norm1"), ("w2", "batch_norm2")):
                if hasattr(module, norm):
                    setattr(module, conv, fuse_grid_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
                    setattr(module, norm, nn.Identity())
            for name, child in list(module.named_children()):
                if isinstance(child, GridAttention):
                    setattr(module, name, child.fused())
        return fused.requires_grad_(False)


class GridBlock(nn.Module):
    """Two grid convolutions, each with batch norm, ReLU and dropout, around which the input goes unchanged."""

    def __init__(
        self,
        channels: int,
        dynamic: bool,
        borders: str,
        grid_shape: Sequence[int],
        temperature: float,
        dropout: float,
    ) -> None:
        super().__init__()
        self.w1, self.batch_norm1 = _conv(channels, channels, dynamic, borders), nn.BatchNorm2d(channels)
        self.w2, self.batch_norm2 = _conv(channels, channels, dynamic, borders), nn.BatchNorm2d(channels)
        self.atten_conv1 = _attention(channels, dynamic, grid_shape, temperature)
        self.atten_conv2 = _attention(channels, dynamic, grid_shape, temperature)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, input: Tensor) -> Tensor:
        hidden = self.dropout(self.batch_norm1(_apply(self.w1, self.atten_conv1, input)).relu())
        return input + self.dropout(self.batch_norm2(_apply(self.w2, self.atten_conv2, hidden)).relu())


def load_official(model: GridLifter, path: str | os.PathLike[str], temperature: float = 1.0) -> dict[str, int | float]:
    """Loads a checkpoint of the official code into a GridLifter of the same variant, running none of its code.

    Those files hold a pickled optimizer beside the weights; it is read as inert data and dropped, and every other
    object that is not a tensor or plain data is refused.

    Args:
        model: a GridLifter built as the checkpoint's network was.
        path: the file, as PyTorch 1.4 under Python 2 or anything newer wrote it.
        temperature: set in every attention. 1 is what the published training ends with; its evaluation script leaves
            the constructor's 30.

    Returns:
        The checkpoint's epoch, learning rate and error, where it has them.

    Raises:
        ValueError: a file that is no such checkpoint, or that holds other objects.
        RuntimeError: weights of another variant.

    Source:
        github.com/OSVAI/GridConv, tool/log.py.
    """
    try:
        with torch.serialization.safe_globals(_INERT), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "pickle_load_args")  # of the encoding, which it does use
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, encoding="latin1")
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it holds {found[1]}, which is refused" if found else "it is none of PyTorch's files, or damaged"
        raise ValueError(
            f"load_official: {path} is no checkpoint of weights and an Adam optimizer: {reason}"
        ) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ValueError(f"load_official: {path} must hold a dictionary with a state_dict")
    model.load_state_dict(checkpoint["state_dict"])
    model.net_update_temperature(temperature)
    return {key: checkpoint[key] for key in ("epoch", "lr", "error") if key in checkpoint}


class _Dropped:
    """Stands for a pickled object that is not wanted."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def _number(_: Any, data: str | bytes) -> float:
    """NumPy's float64, whose bytes Python 2 pickled as text."""
    return struct.unpack("<d", data.encode("latin1") if isinstance(data, str) else data)[0]


def _plain_dict(*_: Any) -> dict:
    return {}


# What is called in place of what the optimizer and the error were pickled by.
_INERT: list[Any] = [
    dict,
    (_plain_dict, "collections.defaultdict"),
    (_Dropped, "torch.optim.adam.Adam"),
    (_Dropped, "numpy.dtype"),
    (_number, "numpy.core.multiarray.scalar"),
    (_number, "numpy._core.multiarray.scalar"),
]


def _conv(inputs: int, outputs: int, dynamic: bool, borders: str, bias: bool = True) -> DGridConv | GridConv:
    kind = DGridConv if dynamic else GridConv
    return kind(inputs, outputs, 3, bias=bias, padding_mode=borders)


def _attention(channels: int, dynamic: bool, grid_shape: Sequence[int], temperature: float) -> GridAttention | None:
    return GridAttention(channels, grid_shape, 3, temperature) if dynamic else None


def _apply(conv: DGridConv | GridConv, attention: GridAttention | None, input: Tensor) -> Tensor:
    return conv(input) if attention is None else conv(input, attention(input))
