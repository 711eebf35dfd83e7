# SPDX-License-Identifier: Apache-2.0
"""DCPose and FAMI-Pose as published, in plain PyTorch and torchvision, on the parameters of `flexor.models.pose`' own.

The official modules are no packages and cannot be shipped. These do the same steps in the same order: offsets and masks
by convolutions of their own, `torchvision.ops.deform_conv2d`, a warp by grid_sample as kornia's, batch norms apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from flexor.models.pose.dcpose import DCPose
from flexor.models.pose.fami_pose import FAMIPose
from flexor.models.pose.predicted_deform import Branch
from flexor.nn import Conv3x3, DeformConv2d, ModulatedDeformConv2d

from .contest import Unavailable
from .twins import twin


class TorchvisionDeform(nn.Module):
    """torchvision's deformable convolution with a layer's parameters."""

    def __init__(self, layer: DeformConv2d | ModulatedDeformConv2d) -> None:
        super().__init__()
        try:
            from torchvision.ops import deform_conv2d
        except ImportError as absent:
            raise Unavailable(f"torchvision is not installed ({absent})") from absent
        self.weight, self.bias = layer.weight, layer.bias
        self.place = layer.stride, layer.padding, layer.dilation
        self.call = deform_conv2d

    def forward(self, input: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        return self.call(input, offset, self.weight, self.bias, *self.place, mask=mask)


def plain(model: nn.Module) -> nn.Module:
    """The same model with PyTorch's convolutions and torchvision's deformable ones. Raises: Unavailable."""
    return twin(model, _plain_layer)


def _plain_layer(module: nn.Module) -> nn.Module | None:
    if isinstance(module, (DeformConv2d, ModulatedDeformConv2d)):
        return TorchvisionDeform(module)
    if not isinstance(module, Conv3x3):
        return None
    conv = nn.Conv2d(
        module.in_channels,
        module.out_channels,
        3,
        padding=module.padding,
        dilation=module.dilation,
        bias=module.bias is not None,
    )
    conv.weight, conv.bias = module.weight, module.bias
    return conv


def dcpose_head(model: DCPose, rough: Tensor, margin: Tensor) -> Tensor:
    """Everything behind the backbone; `model` is `plain`."""
    support, features = model.merge(rough, margin)
    each = [_steered(support, features, branch) for branch in model.branches()]
    output = each[0] * 0.2
    for further in each[1:]:
        output = output + further * 0.2
    return output


def fami_head(model: FAMIPose, features: Tensor) -> Tensor:
    """Everything behind the backbone; `model` is `plain`."""
    key, *supporting = features.chunk(5)
    shifts = [model.feat_global_offset_layers(each - key) for each in supporting]
    merged = model.sup_agg_block(torch.cat([_shifted(each, t) for each, t in zip(supporting, shifts, strict=True)], 1))
    steering = model.combined_feat_layers(torch.cat((merged, key), 1))
    for number in (1, 2):
        steering = _steered(steering, steering, model.branch(number))
    aligned = _steered(merged, steering, model.branch(3))
    aligned = _steered(aligned, aligned, model.branch(4))
    return model.agg_final_layer(model.init_feature_agg_block(torch.cat((key, aligned), 1)))


def dcpose(model: DCPose, frames: Tensor, margin: Tensor) -> Tensor:
    return dcpose_head(model, model.backbone(torch.cat(frames.split(3, 1))), margin)


def fami_pose(model: FAMIPose, key: Tensor, supporting: Tensor) -> Tensor:
    return fami_head(model, model.backbone.features(torch.cat((key, *supporting.split(3, 1)))))


def _steered(input: Tensor, features: Tensor, branch: Branch) -> Tensor:
    return branch.deform(input, branch.offset(features), branch.mask(features))


def _shifted(features: Tensor, shift: Tensor) -> Tensor:
    """Of normalised coordinates, as grid_sample wants them; kornia's warp_affine comes to the same."""
    height, width = features.shape[2:]
    size = torch.tensor([width - 1, height - 1]) / 2
    still = torch.eye(2).expand(len(shift), 2, 2)
    theta = torch.cat((still, -(shift / size)[..., None]), 2)
    grid = F.affine_grid(theta, list(features.shape), align_corners=True)
    return F.grid_sample(features, grid, align_corners=True)


def recorded_convolutions(model: nn.Module, run: Callable[[], object]) -> list[tuple[nn.Conv2d, Tensor]]:
    """Every `nn.Conv2d` that `run` calls in the model, with its input."""
    found: list[tuple[nn.Conv2d, Tensor]] = []
    hooks = [
        module.register_forward_pre_hook(lambda conv, inputs: found.append((conv, inputs[0].detach().clone())))
        for module in model.modules()
        if isinstance(module, nn.Conv2d)
    ]
    _run_hooked(run, hooks)
    return found


def multiply_adds(model: nn.Module, run: Callable[[], object]) -> int:
    """Of the convolutions, deformable ones and matrix products that `run` calls in the model."""
    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        size = inputs[0] if isinstance(module, nn.ConvTranspose2d) else output
        total += module.weight.numel() * size.shape[0] * size[0, 0].numel()

    layers = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, TorchvisionDeform)
    hooks = [module.register_forward_hook(count) for module in model.modules() if isinstance(module, layers)]
    _run_hooked(run, hooks)
    return total


def _run_hooked(run: Callable[[], object], hooks: Sequence[RemovableHandle]) -> None:
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
