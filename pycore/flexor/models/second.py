# SPDX-License-Identifier: Apache-2.0
"""The sparse middle encoder of SECOND, as OpenPCDet and mmdetection3d build it, with the weights of either."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .. import sparse

CHANNELS = ((16,), (32, 32, 32), (64, 64, 64), (64, 64, 64))
PADDINGS = ((1,), (1, 1, 1), (1, 1, 1), ((0, 1, 1), 1, 1))
PREFIXES = ("backbone_3d.", "middle_encoder.", "pts_middle_encoder.")  # of this encoder within a whole detector


class SecondEncoder(nn.Module):
    """Voxels of a lidar sweep to a dense map seen from above: four stages, each but the first halving the resolution.

        stem: submanifold conv;  stage: [strided conv], submanifold convs;  out: strided conv along z;  (C, D) joined

    Each convolution is 3x3x3 without bias, then batch norm (eps 1e-3, momentum 0.01) and ReLU; the last is 3x1x1 with
    stride 2 along z. Kept are the names of mmdetection3d's SparseEncoder; a state_dict of OpenPCDet's VoxelBackBone8x
    is translated when it is loaded, and a detector's whole state_dict serves where only its encoder is wanted.
    Weights are (Cout, *kernel, Cin), spconv 2's; for older ones use flexor.sparse.load_weights(..., "spconv1").

    Args:
        in_channels: features of a voxel; of KITTI 4.
        sparse_shape: voxels along z, y, x, one more along z than there are: (41, 1600, 1408) for KITTI.
        base_channels: of the stem.
        output_channels: of the last convolution.
        encoder_channels, encoder_paddings: of each convolution of each stage.

    Raises:
        ValueError: channels and paddings that do not match.

    Source:
        Yan et al., SECOND: Sparsely Embedded Convolutional Detection, Sensors 2018; OpenPCDet VoxelBackBone8x;
        mmdetection3d SparseEncoder with block_type "conv_module".
    """

    def __init__(
        self,
        in_channels: int,
        sparse_shape: Sequence[int],
        base_channels: int = 16,
        output_channels: int = 128,
        encoder_channels: Sequence[Sequence[int]] = CHANNELS,
        encoder_paddings: Sequence[Sequence[Any]] = PADDINGS,
    ) -> None:
        super().__init__()
        if [len(stage) for stage in encoder_channels] != [len(stage) for stage in encoder_paddings]:
            raise ValueError(
                "SecondEncoder: encoder_paddings must have one entry for each of encoder_channels = "
                f"{encoder_channels}, got {encoder_paddings}"
            )
        self.sparse_shape = list(sparse_shape)
        self.conv_input = _layer(sparse.SubMConv3d(in_channels, base_channels, 3, indice_key="subm1", bias=False))
        self.encoder_layers = sparse.SparseSequential()
        channels = base_channels
        for number, (widths, paddings) in enumerate(zip(encoder_channels, encoder_paddings, strict=True), start=1):
            layers: list[nn.Module] = []
            for place, (width, padding) in enumerate(zip(widths, paddings, strict=True)):
                if number > 1 and place == 0:
                    key, strided = f"spconv{number}", {"stride": 2, "padding": padding}
                    layers.append(
                        _layer(sparse.SparseConv3d(channels, width, 3, bias=False, indice_key=key, **strided))
                    )
                else:
                    layers.append(_layer(sparse.SubMConv3d(channels, width, 3, bias=False, indice_key=f"subm{number}")))
                channels = width
            self.encoder_layers.add_module(f"encoder_layer{number}", sparse.SparseSequential(*layers))
        last = sparse.SparseConv3d(
            channels, output_channels, (3, 1, 1), stride=(2, 1, 1), bias=False, indice_key="spconv_down2"
        )
        self.conv_out = _layer(last)
        self._register_load_state_dict_pre_hook(_translate)

    def forward(self, voxel_features: Tensor, coors: Tensor, batch_size: int) -> Tensor:
        """A map seen from above.

        Args:
            voxel_features: (N, in_channels).
            coors: (N, 4) int32: the sample, z, y, x.
            batch_size: samples.

        Returns:
            (batch_size, output_channels * depth, height, width); for KITTI (B, 256, 200, 176).
        """
        dense = self.stages(voxel_features, coors, batch_size)[-1].dense()
        return dense.flatten(1, 2)

    def stages(self, voxel_features: Tensor, coors: Tensor, batch_size: int) -> list[sparse.SparseConvTensor]:
        """The sparse result of each stage, and of the last convolution."""
        x = sparse.SparseConvTensor(voxel_features, coors.int(), self.sparse_shape, batch_size)
        x = self.conv_input(x)
        found = []
        for stage in self.encoder_layers.children():
            x = stage(x)
            found.append(x)
        return [*found, self.conv_out(x)]


def _layer(conv: sparse.SparseConvolution) -> sparse.SparseSequential:
    norm = sparse.SparseBatchNorm(conv.out_channels, eps=1e-3, momentum=0.01)
    return sparse.SparseSequential(conv, norm, nn.ReLU())


def _translate(state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """OpenPCDet's names, and those within a detector, become this encoder's."""
    whole = next((p for p in PREFIXES if any(name.startswith(prefix + p) for name in state_dict)), None)
    for name in [name for name in state_dict if name.startswith(prefix)]:
        rest = name.removeprefix(prefix)
        value = state_dict.pop(name)
        if whole is not None:
            if not rest.startswith(whole):
                continue  # of another part of the detector
            rest = rest.removeprefix(whole)
        stage, dot, inner = rest.partition(".")
        if dot and stage.removeprefix("conv").isdecimal():
            rest = f"encoder_layers.encoder_layer{stage.removeprefix('conv')}.{inner}"
        state_dict[prefix + rest] = value
