# SPDX-License-Identifier: Apache-2.0
"""Contests of the warps: features of FAMI-Pose and EDVR, and a 720p image, against grid_sample."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from flexor.ops import affine_warp2d, warp2d

from .contest import FORWARD, OURS, TRAINING, Call, Contest, directed

PEER = "grid_sample"
FLOPS_A_SAMPLE = 8  # four multiply-adds a channel


@dataclass(frozen=True)
class Case:
    name: str
    channels: int
    height: int
    width: int


CASES = (
    Case("FAMI 48@96x72", 48, 96, 72),
    Case("EDVR 64@180x320", 64, 180, 320),
    Case("image 3@720x1280", 3, 720, 1280),
)


@dataclass(frozen=True, kw_only=True)
class _WarpContest(Contest):
    shape: Case
    padding_mode: str = "zeros"

    @property
    def contestants(self) -> tuple[str, ...]:
        return OURS, PEER

    @property
    def flops(self) -> int:
        passes = 1 if self.direction == FORWARD else 3
        return passes * FLOPS_A_SAMPLE * self.batch * self.shape.channels * self.shape.height * self.shape.width

    @property
    def bytes(self) -> int:
        image = 4 * self.batch * self.shape.channels * self.shape.height * self.shape.width
        forward = 2 * image + self._motion_bytes()
        return forward if self.direction == FORWARD else forward + 3 * image + 2 * self._motion_bytes()

    @property
    def tolerance(self) -> float:
        return 1e-3

    @property
    def peer_tolerance(self) -> float:
        return 1e-2  # grid_sample's normalised coordinates lose this much at a width of 1280

    def expected(self, results: dict[str, tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """What the peer computes in float64."""
        return _prepare(self._peer, *(t.double() for t in self._inputs()), self.direction)()

    def enter(self) -> Iterator[tuple[str, Call]]:
        inputs = self._inputs()
        for name, warp in ((OURS, self._ours), (PEER, self._peer)):
            yield name, _prepare(warp, *inputs, self.direction)

    def _inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Input, motion and grad_output."""
        generator = torch.Generator().manual_seed(0)
        size = (self.batch, self.shape.channels, self.shape.height, self.shape.width)
        # Smooth as images are: in noise the slope jumps at every pixel's edge, and the matrix's gradient with it.
        coarse = torch.randn((*size[:2], size[2] // 8, size[3] // 8), generator=generator)
        input = F.interpolate(coarse, size[2:], mode="bicubic", align_corners=True)
        grad_output = torch.rand(size, generator=generator)
        return input, self._motion(generator), grad_output

    @abstractmethod
    def _motion_bytes(self) -> int:
        """Size of the flow or of the matrices."""

    @abstractmethod
    def _motion(self, generator: torch.Generator) -> Tensor:
        """The flow or the matrices."""

    @abstractmethod
    def _ours(self, input: Tensor, motion: Tensor) -> Tensor: ...

    @abstractmethod
    def _peer(self, input: Tensor, motion: Tensor) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class FlowContest(_WarpContest):
    """warp2d by a flow of N(0, 2) pixels, in odd multiples of 1/128 so that no sample lies on a pixel's edge."""

    op: ClassVar[str] = "warp2d"
    tensors: ClassVar[tuple[str, ...]] = ("output", "grad_input", "grad_flow")

    def _motion_bytes(self) -> int:
        return 4 * 2 * self.batch * self.shape.height * self.shape.width

    def _motion(self, generator: torch.Generator) -> Tensor:
        flow = torch.randn((self.batch, 2, self.shape.height, self.shape.width), generator=generator)
        return (2 * flow * 64).floor_().add_(0.5).div_(64)

    def _ours(self, input: Tensor, motion: Tensor) -> Tensor:
        return warp2d(input, motion, padding_mode=self.padding_mode)

    def _peer(self, input: Tensor, motion: Tensor) -> Tensor:
        height, width = input.shape[2:]
        x = (torch.arange(width) + motion[:, 0]) * (2 / (width - 1)) - 1
        y = (torch.arange(height)[:, None] + motion[:, 1]) * (2 / (height - 1)) - 1
        grid = torch.stack((x, y), dim=-1)
        return F.grid_sample(input, grid, padding_mode=self.padding_mode, align_corners=True)


@dataclass(frozen=True, kw_only=True)
class AffineContest(_WarpContest):
    """affine_warp2d by a turn of 5 degrees and a shift; the peer adds what it takes to feed affine_grid."""

    op: ClassVar[str] = "affine_warp2d"
    tensors: ClassVar[tuple[str, ...]] = ("output", "grad_input", "grad_matrix")

    def _motion_bytes(self) -> int:
        return 4 * 6 * self.batch

    def _motion(self, generator: torch.Generator) -> Tensor:
        return torch.tensor([[0.9962, -0.0872, 3.3], [0.0872, 0.9962, -1.7]]).expand(self.batch, 2, 3).contiguous()

    def _ours(self, input: Tensor, motion: Tensor) -> Tensor:
        return affine_warp2d(input, motion, padding_mode=self.padding_mode)

    def _peer(self, input: Tensor, motion: Tensor) -> Tensor:
        height, width = input.shape[2:]
        to_pixels = torch.tensor(
            [[(width - 1) / 2, 0, (width - 1) / 2], [0, (height - 1) / 2, (height - 1) / 2], [0, 0, 1.0]],
            dtype=motion.dtype,
        )
        bottom = motion.new_tensor([[[0, 0, 1.0]]]).expand(self.batch, 1, 3)
        inverse = torch.linalg.inv(torch.cat((motion, bottom), dim=1))
        theta = torch.linalg.inv(to_pixels) @ inverse @ to_pixels
        grid = F.affine_grid(theta[:, :2], list(input.shape), align_corners=True)
        return F.grid_sample(input, grid, padding_mode=self.padding_mode, align_corners=True)


def _prepare(
    warp: Callable[[Tensor, Tensor], Tensor], input: Tensor, motion: Tensor, grad_output: Tensor, direction: str
) -> Call:
    leaves = [input.detach().requires_grad_(), motion.detach().requires_grad_()]
    return directed(lambda: warp(*leaves), leaves, grad_output, direction)


def contests(everything: bool = False) -> list[Contest]:
    """Both warps of every case on one thread; with everything also batch 8 on all threads."""
    sizes = [(1, 1), (8, torch.get_num_threads())] if everything else [(1, 1)]
    return [
        kind(case=case.name, shape=case, direction=direction, batch=batch, threads=threads)
        for batch, threads in sizes
        for kind in (FlowContest, AffineContest)
        for case in CASES
        for direction in (FORWARD, TRAINING)
    ]


def extras() -> dict[str, Callable[[], object]]:
    """Nothing beside the contests."""
    return {}
