# SPDX-License-Identifier: Apache-2.0
"""How each network is used: the size and frames of its input, the crop, the decoding, the joints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .dcpose import dcpose
from .dkd import DKD, DKDState, dkd
from .fami_pose import fami_pose
from .geometry import ENLARGE
from .hrnet import hrnet_w32, hrnet_w48
from .rtmpose import rtmpose
from .simple_baseline import simple_baseline
from .skeleton import COCO17, PENN13, POSETRACK17, Skeleton
from .small import small

Maps = Tensor | tuple[Tensor, Tensor]  # heatmaps (B, K, h, w), or SimCC's x (B, K, 2W) and y (B, K, 2H)
Predict = Callable[[nn.Module, Tensor], Maps]  # the network, windows (B, T, 3, H, W)
# The same and a state, a tuple of tensors with people first, or None before the first frame: heatmaps and a new state.
Step = Callable[[nn.Module, Tensor, Any], tuple[Tensor, tuple[Tensor, ...]]]


@dataclass(frozen=True)
class Recipe:
    """How a network is used.

    Args:
        name: of the model.
        build: makes the network, with random weights.
        predict: calls it with windows.
        input_size: (H, W) of the crops.
        skeleton: what its joints are.
        window: offsets of the frames it sees, in its order; the frame itself is 0 and comes first.
        crop: "biased" or "udp", see `flexor.models.pose.geometry.crop_affine`.
        decode: a method of `flexor.models.pose.decode_heatmaps`, or "simcc".
        enlarge: factor on a box before it is cropped.
        step: for a recurrent network, in place of `predict`.
    """

    name: str
    build: Callable[[], nn.Module]
    predict: Predict
    input_size: tuple[int, int]
    skeleton: Skeleton = COCO17
    window: tuple[int, ...] = (0,)
    crop: str = "biased"
    decode: str = "quarter"
    enlarge: float = ENLARGE
    step: Step | None = None


def _one_frame(model: nn.Module, windows: Tensor) -> Maps:
    return model(windows[:, 0])


def _dcpose(model: nn.Module, windows: Tensor) -> Maps:
    """The margins stay 1 where a frame stands in for its neighbour, as in the official loader."""
    return model(windows.flatten(1, 2), torch.ones(len(windows), 2, device=windows.device))


def _fami_pose(model: nn.Module, windows: Tensor) -> Maps:
    return model(windows[:, 0], windows[:, 1:].flatten(1, 2))[0]


def _dkd(model: nn.Module, windows: Tensor) -> Maps:
    """Frames without a past: the initialiser alone."""
    return _dkd_step(model, windows, None)[0]


def _dkd_step(model: nn.Module, windows: Tensor, state: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
    assert isinstance(model, DKD)
    return model.step(windows[:, 0], None if state is None else DKDState(*state))


def _rtmpose(variant: str) -> Recipe:
    return Recipe(f"rtmpose_{variant}", partial(rtmpose, variant), _one_frame, (256, 192), decode="simcc")


_RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("small", small, _one_frame, (128, 96), crop="udp", decode="udp"),
        Recipe("hrnet_w32", hrnet_w32, _one_frame, (256, 192)),
        Recipe("hrnet_w48", hrnet_w48, _one_frame, (384, 288)),
        Recipe("simple_baseline_50", partial(simple_baseline, 50), _one_frame, (256, 192)),
        *map(_rtmpose, "tsml"),
        Recipe("dcpose", dcpose, _dcpose, (384, 288), POSETRACK17, (0, -1, 1)),
        Recipe("fami_pose", fami_pose, _fami_pose, (384, 288), POSETRACK17, (0, -2, -1, 1, 2)),
        Recipe("dkd", dkd, _dkd, (256, 256), PENN13, step=_dkd_step),
    )
}


def recipes() -> dict[str, Recipe]:
    """Every recipe by its name."""
    return dict(_RECIPES)


def recipe(name: str) -> Recipe:
    """The recipe of a model.

    Raises:
        ValueError: a name that is not known.
    """
    if name not in _RECIPES:
        raise ValueError(f"model must be one of {', '.join(_RECIPES)}, got {name}")
    return _RECIPES[name]
