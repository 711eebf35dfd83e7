# SPDX-License-Identifier: Apache-2.0
"""Networks written for spconv: `spconv` is its own package for the golden numbers, flexor.sparse in the tests.

Everything is deterministic by formula: only results need to be stored.
"""

import math

import torch
from torch import nn

SHAPES = {1: [40], 2: [9, 11], 3: [7, 6, 5], 4: [4, 5, 4, 3]}
BATCH = 2


def wave(*shape, step=0.7):
    """Numbers in (-1, 1) without a pattern that a layer could notice."""
    return torch.arange(math.prod(shape), dtype=torch.float64).mul(step).sin().reshape(shape)


def voxels(ndim, keep=0.22):
    """About that share of all cells, in an order without a pattern, int32."""
    cells = torch.cartesian_prod(torch.arange(BATCH), *map(torch.arange, SHAPES[ndim]))
    score = wave(len(cells), step=12.9898).mul(43758.5453).remainder(1)
    kept = (score < keep).nonzero()[:, 0]
    return cells[kept[score[kept].mul(7919).remainder(1).argsort()]].int()


def network(spconv, name):
    ndim, build = NETWORKS[name]
    net = build(spconv).double()
    with torch.no_grad():
        for i, (_, value) in enumerate(sorted(net.named_parameters())):
            value.copy_(wave(*value.shape, step=0.31 + 0.17 * i))
            if value.dim() == 1:
                value.mul_(0.5).add_(0.25)
    return ndim, net.train()


def tensor(spconv, ndim, channels=3):
    indices = voxels(ndim)
    features = wave(len(indices), channels, step=1.3).requires_grad_()
    return spconv.SparseConvTensor(features, indices, SHAPES[ndim], BATCH)


def by_voxel(output):
    """Indices and features in lexicographic order: that of rows is free where a layer makes new voxels."""
    keys = torch.zeros(len(output.indices), dtype=torch.int64)
    for column in output.indices.unbind(1):
        keys = keys * 64 + column
    order = keys.argsort()
    return output.indices[order], output.features[order]


def results(spconv, name):
    """What there is to compare, by name, float64; the gradients are of features times a wave, in voxel order."""
    ndim, net = network(spconv, name)
    input = tensor(spconv, ndim)
    output = net(input)
    indices, features = by_voxel(output)
    (features * wave(*features.shape, step=0.9)).sum().backward()
    grads = [p.grad.flatten() for _, p in sorted(net.named_parameters())]
    return {
        "indices": indices,
        "spatial_shape": torch.tensor(output.spatial_shape),
        "features": features.detach(),
        "grad_input": input.features.grad,
        "grads": torch.cat(grads) if grads else torch.zeros(0),
    }


class UNet(nn.Module):
    """Every kind of layer and table that a segmentation network has."""

    def __init__(self, s):
        super().__init__()
        self.stem = s.SparseSequential(s.SubMConv3d(3, 4, 3, padding=1, bias=False, indice_key="subm1"), nn.ReLU())
        self.down = s.SparseSequential(s.SparseConv3d(4, 6, 3, 2, 1, indice_key="down"), nn.BatchNorm1d(6), nn.ReLU())
        self.deep = s.SparseSequential(
            s.SubMConv3d(6, 6, 3, indice_key="subm2"), s.SparseBatchNorm(6), s.SubMConv3d(6, 6, 3, indice_key="subm2")
        )
        self.up = s.SparseInverseConv3d(6, 4, 3, "down")
        self.narrow = s.SubMConv3d(8, 5, 1, bias=False)
        self.join, self.add = s.JoinTable(), s.AddTable()

    def forward(self, x):
        x = self.stem(x)
        y = self.down(x)
        y = self.add([self.deep(y), y])
        return self.narrow(self.join([self.up(y), x]))


def shared_key(s):
    return s.SparseSequential(s.SubMConv3d(3, 4, 3, indice_key="a"), s.SubMConv3d(4, 5, 3, indice_key="a"))


def there_and_back(s):
    return s.SparseSequential(s.SparseConv3d(3, 4, 3, 2, 1, indice_key="a"), s.SparseInverseConv3d(4, 5, 3, "a"))


def there_and_back_2d(s):
    return s.SparseSequential(s.SparseConv2d(3, 4, 2, 2, indice_key="a"), s.SparseInverseConv2d(4, 5, 2, "a"))


def pooled_and_back(s):
    return s.SparseSequential(
        s.SparseMaxPool3d(3, 2, 1, indice_key="pool"), s.SparseInverseConv3d(3, 5, 3, "pool", bias=False)
    )


NETWORKS = {
    "subm": (3, lambda s: s.SubMConv3d(3, 4, 3)),
    "subm-dilated": (3, lambda s: s.SubMConv3d(3, 4, 3, dilation=2)),
    "subm-flat": (3, lambda s: s.SubMConv3d(3, 4, [1, 3, 5], stride=2, padding=4)),
    "subm-1d": (1, lambda s: s.SubMConv1d(3, 4, 5)),
    "subm-2d": (2, lambda s: s.SubMConv2d(3, 4, 3)),
    "subm-4d": (4, lambda s: s.SubMConv4d(3, 4, 3)),
    "subm-1x1": (3, lambda s: s.SubMConv3d(3, 4, 1)),
    "subm-twice": (3, shared_key),
    "conv-k3s2": (3, lambda s: s.SparseConv3d(3, 4, 3, 2, 1)),
    "conv-k2s2": (3, lambda s: s.SparseConv3d(3, 4, 2, 2)),
    "conv-k3s1": (3, lambda s: s.SparseConv3d(3, 4, 3, 1, 1)),
    "conv-dilated": (3, lambda s: s.SparseConv3d(3, 4, 3, 1, 2, 2)),
    "conv-second": (3, lambda s: s.SparseConv3d(3, 4, (3, 1, 1), (2, 1, 1), bias=False)),
    "conv-k1s2": (3, lambda s: s.SparseConv3d(3, 4, 1, 2)),
    "conv-1x1": (3, lambda s: s.SparseConv3d(3, 4, 1)),
    "conv-1d": (1, lambda s: s.SparseConv1d(3, 4, 3, 2, 1)),
    "conv-2d": (2, lambda s: s.SparseConv2d(3, 4, 3, 2, 1)),
    "conv-4d": (4, lambda s: s.SparseConv4d(3, 4, 2, 2)),
    "transpose-k3s2": (3, lambda s: s.SparseConvTranspose3d(3, 4, 3, 2, 1)),
    "transpose-k2s2": (3, lambda s: s.SparseConvTranspose3d(3, 4, 2, 2)),
    "transpose-dilated": (3, lambda s: s.SparseConvTranspose3d(3, 4, 3, 1, 1, 2)),
    "transpose-2d": (2, lambda s: s.SparseConvTranspose2d(3, 4, 3, 2, 1)),
    "inverse": (3, there_and_back),
    "inverse-2d": (2, there_and_back_2d),
    "maxpool": (3, lambda s: s.SparseMaxPool3d(3, 2, 1)),
    "maxpool-2d": (2, lambda s: s.SparseMaxPool2d(2)),
    "maxpool-inverse": (3, pooled_and_back),
    "unet": (3, UNet),
}


def points(count=900):
    """x, y, z, intensity, float32; some outside of RANGE."""
    place = wave(count, 3, step=12.9898).mul(43758.5453).remainder(1).mul(1.1).sub(0.05)
    return torch.cat([place * torch.tensor([4.0, 3.0, 2.0]), wave(count, 1)], 1).float()


RANGE = [0.0, 0.0, 0.0, 4.0, 3.0, 2.0]
VOXELIZERS = {
    "points": ([0.4, 0.5, 0.25], RANGE, 4, 2000, 5),
    "points-few-voxels": ([0.3, 0.3, 0.3], RANGE, 4, 40, 2),
    "points-xy": ([0.15, 0.25], [0.0, 0.5, 4.0, 3.0], 4, 500, 3),
}
