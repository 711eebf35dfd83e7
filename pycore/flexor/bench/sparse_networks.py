# SPDX-License-Identifier: Apache-2.0
"""The U-Net for ScanNet as written for spconv and for SparseConvNet, on the parameters of `flexor.models`' own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flexor.models.sparse_unet import ScanNetUNet

from .sparse_peers import SCN_EXTENT, import_scn, import_spconv, scn_weight

Network = Callable[[Tensor, Tensor], Tensor]  # (features (N, Cin), indices (N, 4)) -> logits (N, classes)


class SpconvLevel(nn.Module):
    """A level of the U-Net, its maps under one indice_key each, as spconv's users write it."""

    def __init__(self, level: Any, depth: int, spconv: Any) -> None:
        super().__init__()
        self.deepest = level.deepest

        def blocks(found: Any) -> nn.ModuleList:
            pairs = ([block.norm, _adopted(spconv.SubMConv3d, block.conv, f"level{depth}")] for block in found)
            return nn.ModuleList(spconv.SparseSequential(*pair) for pair in pairs)

        self.before = blocks(level.before)
        if not self.deepest:
            key = f"down{depth}"
            down = _adopted(spconv.SparseConv3d, level.down, key, stride=2)
            self.down = spconv.SparseSequential(level.down_norm, down)
            self.deeper = SpconvLevel(level.deeper, depth + 1, spconv)
            self.up = spconv.SparseSequential(level.up_norm, _adopted(spconv.SparseInverseConv3d, level.up, key))
            self.after = blocks(level.after)

    def forward(self, input: Any) -> Any:
        for block in self.before:
            input = block(input)
        if self.deepest:
            return input
        output = self.up(self.deeper(self.down(input)))
        output = output.replace_feature(torch.cat([input.features, output.features], 1))
        for block in self.after:
            output = block(output)
        return output


def _adopted(kind: Any, conv: Any, key: str, **arguments: Any) -> nn.Module:
    """A layer of spconv on the weights of ours."""
    outputs, size, *_, inputs = conv.weight.shape
    layer = kind(inputs, outputs, size, indice_key=key, bias=False, **arguments).eval()
    layer.weight = conv.weight
    return layer


def spconv_unet(model: ScanNetUNet, bounds: Sequence[int], samples: int) -> Network:
    """With spconv's layers; VGG-style blocks. Unavailable without spconv."""
    spconv = import_spconv()
    stem = _adopted(spconv.SubMConv3d, model.unet.stem, "level0")
    levels = SpconvLevel(model.unet.levels, 0, spconv).eval()

    def run(features: Tensor, indices: Tensor) -> Tensor:
        output = levels(stem(spconv.SparseConvTensor(features, indices, list(bounds), samples)))
        return model.linear(output.features)

    return run


def scn_unet(model: ScanNetUNet) -> Network:
    """SparseConvNet's own, with its input layer; VGG-style blocks. Unavailable without SparseConvNet."""
    scn = import_scn()
    level: Any = model.unet.levels
    planes = [level.before[0].conv.out_channels]
    while not level.deepest:
        level = level.deeper
        planes.append(level.before[0].conv.out_channels)
    sequence = scn.Sequential().add(scn.InputLayer(3, SCN_EXTENT, mode=4))
    sequence.add(scn.SubmanifoldConvolution(3, model.unet.stem.in_channels, planes[0], 3, False))
    sequence.add(scn.UNet(3, len(model.unet.levels.before), planes, residual_blocks=False, downsample=[2, 2]))
    sequence.add(scn.OutputLayer(3))
    ours = model.unet.state_dict()
    names = {name.removeprefix("unet."): theirs for name, theirs in model.unet.scn_names("unet", "")}
    values = {}
    for name, value in ours.items():
        module, _, parameter = name.rpartition(".")
        if parameter != "num_batches_tracked":  # of which it has none
            weight = scn_weight(value) if value.dim() == 5 else value
            values[f"{names[module].removeprefix('.')}.{parameter}"] = weight
    sequence.load_state_dict(values)
    sequence.eval()
    return lambda features, indices: model.linear(sequence([indices[:, [1, 2, 3, 0]].long(), features]))
