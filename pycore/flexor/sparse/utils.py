# SPDX-License-Identifier: Apache-2.0
"""Points to voxels and back, under spconv's names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_CPU = torch.device("cpu")


class PointToVoxel:
    """Sorts points into voxels of a grid: the first points of each voxel, voxels in the order of their first points.

        cell = floor((point - range[0]) / vsize), kept where 0 <= cell < round((range[1] - range[0]) / vsize)

    It takes O(P log P) time and O(P) memory, none of it for the grid's empty cells.

    Args:
        vsize_xyz: D edge lengths of a voxel, in the unit of the points.
        coors_range_xyz: D least, then D largest coordinates.
        num_point_features: columns of the points, of which the first D are x, y, z.
        max_num_voxels: points that would need a further voxel are left out.
        max_num_points_per_voxel: further points of a voxel are left out, but know their voxel.
        device: where points are.

    Raises:
        ValueError: sizes that do not fit, a grid with no cell or more than 2^63 - 1.

    Source:
        spconv.pytorch.utils.PointToVoxel 2.3.8 on a CPU.
    """

    def __init__(
        self,
        vsize_xyz: Sequence[float],
        coors_range_xyz: Sequence[float],
        num_point_features: int,
        max_num_voxels: int,
        max_num_points_per_voxel: int,
        device: torch.device = _CPU,
    ) -> None:
        self.ndim = len(vsize_xyz)
        if len(coors_range_xyz) != 2 * self.ndim:
            raise ValueError(
                f"PointToVoxel: coors_range_xyz must have 2 * len(vsize_xyz) = {2 * self.ndim} numbers, "
                f"got {list(coors_range_xyz)}"
            )
        if min(max_num_voxels, max_num_points_per_voxel) < 1 or num_point_features < self.ndim:
            raise ValueError(
                f"PointToVoxel: max_num_voxels and max_num_points_per_voxel must be at least 1 and num_point_features "
                f"at least {self.ndim}, got {max_num_voxels}, {max_num_points_per_voxel} and {num_point_features}"
            )
        self.device, self.num_point_features = torch.device(device), num_point_features
        self.max_num_voxels, self.max_num_points_per_voxel = max_num_voxels, max_num_points_per_voxel
        low, high = coors_range_xyz[: self.ndim], coors_range_xyz[self.ndim :]
        self.vsize = _float32(vsize_xyz[::-1])  # all of these are zyx
        self.coors_range = _float32([*low[::-1], *high[::-1]])
        self.grid_size = self._cells()
        self.grid_stride = [math.prod(self.grid_size[axis + 1 :]) for axis in range(self.ndim)]

    def _cells(self) -> list[int]:
        ends = zip(self.coors_range[: self.ndim], self.coors_range[self.ndim :], self.vsize, strict=True)
        exact = [(high - low) / size if size > 0 else 0.0 for low, high, size in ends]
        cells = [math.floor(cell + 0.5) if math.isfinite(cell) else 0 for cell in exact]
        if min(cells) < 1 or math.prod(cells) >= 2**63:
            raise ValueError(
                f"PointToVoxel: the grid must have at least one cell an axis and less than 2**63 in all, got {cells} "
                f"(zyx) from vsize {self.vsize} and range {self.coors_range}"
            )
        return cells

    def __call__(
        self, pc: Tensor, clear_voxels: bool = True, empty_mean: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The first three results of `generate_voxel_with_id`."""
        return self.generate_voxel_with_id(pc, clear_voxels, empty_mean)[:3]

    @torch.no_grad()
    def generate_voxel_with_id(
        self, pc: Tensor, clear_voxels: bool = True, empty_mean: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Voxels, and which one each point is in.

        Args:
            pc: (P, num_point_features); a point with a NaN coordinate is in no voxel.
            clear_voxels: accepted and not used: places without a point are 0.
            empty_mean: fills them with the mean of the voxel's points instead.

        Returns:
            voxels (M, max_num_points_per_voxel, num_point_features) float32; their indices (M, D) int32, zyx; the
            number of points in each (M,) int32; the voxel of each point (P,) int64, or -1.

        Raises:
            ValueError: points of another shape or device.
        """
        if pc.dim() != 2 or pc.shape[1] != self.num_point_features or pc.device.type != self.device.type:
            raise ValueError(
                f"PointToVoxel: pc must be (P, num_point_features) = (P, {self.num_point_features}) on {self.device}, "
                f"got {tuple(pc.shape)} on {pc.device}"
            )
        kept, keys = self._keys(pc)
        keys, order = keys.sort(stable=True)
        points = kept.index_select(0, order)  # sorted by cell, in each cell as they came
        numbers = torch.arange(len(points), device=pc.device)
        change = keys[1:] != keys[:-1]
        starts = torch.cat([numbers[:1], numbers[1:][change]])
        sizes = torch.cat([starts[1:], numbers.new_tensor([len(points)])[: len(starts)]]) - starts
        first = points.index_select(0, starts)
        rank = torch.zeros(len(pc), dtype=torch.int64, device=pc.device).index_fill_(0, first, 1).cumsum_(0)
        voxel = rank.index_select(0, first) - 1  # of each cell, in the order of first points
        count = min(len(starts), self.max_num_voxels)
        cell = torch.empty_like(voxel).scatter_(0, voxel, numbers[: len(starts)])[:count]
        voxel.masked_fill_(voxel >= count, -1)
        of_point = voxel.repeat_interleave(sizes)
        place = numbers - starts.repeat_interleave(sizes)
        ids = torch.full((len(pc),), -1, dtype=torch.int64, device=pc.device).index_copy_(0, points, of_point)
        limit = self.max_num_points_per_voxel
        used = ((of_point >= 0) & (place < limit)).nonzero()[:, 0]
        rows = (of_point * limit + place).index_select(0, used)
        voxels = torch.zeros(count * limit, self.num_point_features, device=pc.device)
        voxels.index_copy_(0, rows, pc.index_select(0, points.index_select(0, used)).float())
        voxels = voxels.view(count, limit, self.num_point_features)
        indices = self._unpacked(keys.index_select(0, starts.index_select(0, cell)))
        number_of_points = sizes.index_select(0, cell).clamp_(max=limit).int()
        if empty_mean:
            _fill_with_mean(voxels, number_of_points)
        return voxels, indices, number_of_points, ids

    def _keys(self, pc: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the points inside, and the number of the cell of each."""
        exact = pc if pc.dtype == torch.float64 else pc.float()
        vsize, low = (torch.tensor(v, device=pc.device) for v in (self.vsize, self.coors_range[: self.ndim]))
        cells = ((exact[:, : self.ndim].flip(1) - low) / vsize).floor_()
        inside = torch.ones(len(pc), dtype=torch.bool, device=pc.device)
        for cell, size in zip(cells.unbind(1), self.grid_size, strict=True):
            inside &= (cell >= 0) & (cell < size)
        kept = inside.nonzero()[:, 0]
        keys = torch.zeros_like(kept)
        for cell, stride in zip(cells.unbind(1), self.grid_stride, strict=True):
            keys += cell.index_select(0, kept).long() * stride
        return kept, keys

    def _unpacked(self, keys: Tensor) -> Tensor:
        sizes = zip(self.grid_stride, self.grid_size, strict=True)
        return torch.stack([keys.div(stride, rounding_mode="floor") % size for stride, size in sizes], 1).int()


class _Point2VoxelCPU:
    """spconv.utils' older interface to `PointToVoxel`; it takes and gives arrays or tensors."""

    def __init__(
        self,
        vsize_xyz: Sequence[float],
        coors_range_xyz: Sequence[float],
        num_point_features: int,
        max_num_voxels: int,
        max_num_points_per_voxel: int,
    ) -> None:
        limits = max_num_voxels, max_num_points_per_voxel
        self._voxels = PointToVoxel(vsize_xyz, coors_range_xyz, num_point_features, *limits)
        self.grid_size = self._voxels.grid_size

    def point_to_voxel(self, pc: Any, clear_voxels: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        return self._voxels(_tensor(pc))

    def point_to_voxel_empty_mean(self, pc: Any, clear_voxels: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        return self._voxels(_tensor(pc), empty_mean=True)


Point2VoxelCPU1d = Point2VoxelCPU2d = Point2VoxelCPU3d = Point2VoxelCPU4d = _Point2VoxelCPU


def gather_features_by_pc_voxel_id(seg_res_features: Tensor, pc_voxel_id: Tensor, invalid_value: float = 0) -> Tensor:
    """Each point's row of what was computed for voxels.

    Args:
        seg_res_features: (M, ...), rows as the voxels are.
        pc_voxel_id: (P,), of `generate_voxel_with_id`.
        invalid_value: of points in no voxel.

    Returns:
        (P, ...) in seg_res_features' dtype; differentiable.
    """
    ids = pc_voxel_id.to(seg_res_features.device)
    found = ids >= 0
    result = seg_res_features.new_full((len(ids), *seg_res_features.shape[1:]), invalid_value)
    return result.index_put((found,), seg_res_features[ids[found]])


def _fill_with_mean(voxels: Tensor, number_of_points: Tensor) -> None:
    mean = voxels.sum(1) / number_of_points[:, None]
    filled = torch.arange(voxels.shape[1], device=voxels.device) < number_of_points[:, None]
    torch.where(filled[..., None], voxels, mean[:, None], out=voxels)


def _float32(values: Sequence[float]) -> list[float]:
    """As spconv holds them, which decides where a cell ends."""
    return torch.tensor([float(v) for v in values], dtype=torch.float32).tolist()


def _tensor(points: Any) -> Tensor:
    if isinstance(points, Tensor):
        return points
    return torch.as_tensor(points if hasattr(points, "__array__") else points.numpy())
