# SPDX-License-Identifier: Apache-2.0
"""Voxels for the tests of sparse convolution, and dense convolution of any number of axes as their oracle."""

import itertools

import torch
import torch.nn.functional as F

CONVS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def scene(shape, count, batches=2, low=0, dtype=torch.int32):
    """So many different voxels of a box, in any order, most of them near others: (N, 1 + D)."""
    box = (batches, *shape)
    cells = torch.Size(box).numel()
    centre = torch.randint(cells, (max(1, count // 8),)).repeat(12)
    steps = torch.stack([torch.randint(-1, 2, centre.shape) for _ in shape])
    at = torch.stack(torch.unravel_index(centre, box))
    at[1:] = (at[1:] + steps).clamp(torch.zeros(len(shape), 1), torch.tensor(shape)[:, None] - 1).long()
    near = at.T.unique(dim=0)
    rest = torch.stack(torch.unravel_index(torch.randperm(cells)[:count], box)).T
    found = torch.cat([near[torch.randperm(len(near))[: count * 3 // 4]], rest]).unique(dim=0)
    found = found[torch.randperm(len(found))[:count]]
    found[:, 1:] += low
    return found.to(dtype)


def dense(features, indices, shape, batches):
    """(B, C, *shape), zero where there is no voxel."""
    batch, *at = indices.long().unbind(1)
    grid = features.new_zeros(batches, *shape, features.shape[1])
    return grid.index_put((batch, *at), features).movedim(-1, 1)


def read(grid, indices):
    """Features at voxels: (N, C)."""
    batch, *at = indices.long().unbind(1)
    return grid.movedim(1, -1)[(batch, *at)]


def dense_conv(grid, weight, stride, padding, dilation, groups=1):
    """Weight (Cout, *kernel, Cin / groups), one number an axis for the others."""
    weight = weight.movedim(-1, 1)
    if len(stride) < 4:
        return CONVS[len(stride)](grid, weight, None, stride, padding, dilation, groups)
    padded = F.pad(grid, (0,) * 6 + (padding[0],) * 2)
    size = (padded.shape[2] - dilation[0] * (weight.shape[2] - 1) - 1) // stride[0] + 1
    slices = []
    for at in range(size):
        taps = [
            F.conv3d(
                padded[:, :, at * stride[0] + t * dilation[0]],
                weight[:, :, t],
                None,
                stride[1:],
                padding[1:],
                dilation[1:],
                groups,
            )
            for t in range(weight.shape[2])
        ]
        slices.append(sum(taps))
    return torch.stack(slices, 2)


def dense_conv_transpose(grid, weight, stride, padding, dilation, groups, shape):
    """The transpose of `dense_conv` from a grid of this shape, with weights (Cout, *kernel, Cin / groups)."""
    split = weight.unflatten(0, (groups, -1))  # (g, Cout/g, *kernel, Cin/g)
    turned = split.transpose(1, -1).flatten(0, 1)  # (Cin, *kernel, Cout/g)
    start = grid.new_zeros(grid.shape[0], weight.shape[0], *shape)
    _, pull = torch.func.vjp(lambda x: dense_conv(x, turned, stride, padding, dilation, groups), start)
    return pull(grid)[0]


def triples(out_indices, in_indices, kernel, stride, padding, dilation, transposed):
    """All (tap, out row, in row) of a map, by looking every coordinate up in a dictionary."""
    sides = [out_indices.tolist(), in_indices.tolist()]
    here, there = sides[::-1] if transposed else sides
    row_of = {tuple(at): row for row, at in enumerate(there)}
    found = set()
    for row, (batch, *at) in enumerate(here):
        for tap, t in enumerate(itertools.product(*map(range, kernel))):
            moved = (a * s - p + k * d for a, s, p, k, d in zip(at, stride, padding, t, dilation, strict=True))
            other = row_of.get((batch, *moved))
            if other is not None:
                found.add((tap, other, row) if transposed else (tap, row, other))
    return found
