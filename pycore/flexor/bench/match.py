# SPDX-License-Identifier: Apache-2.0
"""Contests of matching: the shapes of DKD's, SiamRPN's and SiamRPN++'s heads, full and depth-wise."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from flexor.ops import xcorr2d, xcorr2d_depthwise

from .contest import BACKWARD, FORWARD, OURS, Call, Contest, directed
from .goals import Goal

GROUPED = "grouped conv2d"
LOOP = "conv2d a sample"


@dataclass(frozen=True)
class Case:
    """outputs: kernels of every sample, 0 for one kernel a channel (depth-wise). Kernels are square."""

    name: str
    channels: int
    height: int
    width: int
    outputs: int
    kernel: int
    padding: int = 0

    @property
    def output_pixels(self) -> int:
        extra = 2 * self.padding - self.kernel + 1
        return (self.height + extra) * (self.width + extra)

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Of one sample."""
        first = (self.outputs,) if self.outputs else ()
        return (*first, self.channels, self.kernel, self.kernel)


DKD_FULL = Case("DKD 256@64x64 K17 k7", 256, 64, 64, 17, 7, 3)
HEADS_FULL = Case("heads 48@96x72 K17 k3", 48, 96, 72, 17, 3, 1)
SIAM_FULL = Case("SiamRPN 256@20x20 K10 k4", 256, 20, 20, 10, 4)
SIAM_K5 = Case("SiamRPN++ 256@31x31 k5", 256, 31, 31, 0, 5)
SIAM_K7 = Case("SiamRPN++ 256@31x31 k7", 256, 31, 31, 0, 7)
DKD = Case("DKD 256@64x64 k7", 256, 64, 64, 0, 7, 3)
HEADS = Case("heads 17@96x72 k7", 17, 96, 72, 0, 7, 3)
FULL = ((DKD_FULL, 8), (HEADS_FULL, 8), (SIAM_FULL, 8), (SIAM_FULL, 1))
DEPTHWISE = ((SIAM_K5, 8), (SIAM_K7, 8), (DKD, 8), (HEADS, 8), (SIAM_K5, 1), (SIAM_K7, 1))
GOALS = (
    Goal("xcorr2d", DKD_FULL.name, FORWARD, 8, 0.7),
    *(Goal("xcorr2d", case.name, FORWARD, batch, 1.0, LOOP) for case, batch in FULL),
    *(Goal("xcorr2d_depthwise", case.name, FORWARD, batch, 2.5, GROUPED) for case, batch in DEPTHWISE),
    *(Goal("xcorr2d_depthwise", case.name, BACKWARD, batch, 10, GROUPED) for case, batch in DEPTHWISE),
)


@dataclass(frozen=True, kw_only=True)
class MatchContest(Contest):
    """A correlation with kernels of every sample's own; a subclass says over which channels it sums."""

    shape: Case

    @property
    def flops(self) -> int:
        """Multiply-adds of the correlation, two operations each; as many for each of the two gradients."""
        correlations = 1 if self.direction == FORWARD else 2
        one = (self.shape.outputs or 1) * self.shape.channels * self.shape.kernel**2
        return correlations * 2 * self.batch * one * self.shape.output_pixels

    @property
    def bytes(self) -> int:
        """Operands are read; the output or, backward, a gradient of each operand is written."""
        shape, images = self.shape, 4 * self.batch
        operands = images * shape.channels * (shape.height * shape.width + (shape.outputs or 1) * shape.kernel**2)
        output = images * (shape.outputs or shape.channels) * shape.output_pixels
        return output + operands * (1 if self.direction == FORWARD else 2)

    @property
    def tolerance(self) -> float:
        return 1e-4

    def enter(self) -> Iterator[tuple[str, Call]]:
        generator = torch.Generator().manual_seed(0)
        shape, batch = self.shape, self.batch
        extra = 2 * shape.padding - shape.kernel + 1
        output_shape = (batch, shape.outputs or shape.channels, shape.height + extra, shape.width + extra)
        input = torch.randn((batch, shape.channels, shape.height, shape.width), generator=generator)
        kernel = torch.randn((batch, *shape.kernel_shape), generator=generator)
        grad_output = torch.randn(output_shape, generator=generator)
        leaves = [input.requires_grad_(), kernel.requires_grad_()]
        for name in self.contestants:
            forward = _bound(self._operators[name], leaves, shape.padding)
            yield name, directed(forward, leaves, grad_output, self.direction)

    def expected(self, results: dict[str, tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """What a convolution of each sample computes; for one kernel a channel, what the grouped one does."""
        return results[LOOP if LOOP in results else GROUPED]

    @property
    @abstractmethod
    def _operators(self) -> dict[str, Callable[..., Tensor]]:
        """(input, kernel, padding) -> output, ours first."""

    @property
    def contestants(self) -> tuple[str, ...]:
        return tuple(self._operators)


@dataclass(frozen=True, kw_only=True)
class FullContest(MatchContest):
    """xcorr2d against a convolution of every sample on its own, and one with a group for each."""

    op: ClassVar[str] = "xcorr2d"
    tensors: ClassVar[tuple[str, ...]] = ("output or grad_input", "grad_kernel")

    @property
    def _operators(self) -> dict[str, Callable[..., Tensor]]:
        return {OURS: xcorr2d, LOOP: sample_by_sample, GROUPED: grouped}


@dataclass(frozen=True, kw_only=True)
class DepthwiseContest(MatchContest):
    """xcorr2d_depthwise against a convolution with a group for every channel of every sample."""

    op: ClassVar[str] = "xcorr2d_depthwise"
    tensors: ClassVar[tuple[str, ...]] = ("output or grad_input", "grad_kernel")

    @property
    def _operators(self) -> dict[str, Callable[..., Tensor]]:
        return {OURS: xcorr2d_depthwise, GROUPED: grouped_depthwise}


def sample_by_sample(input: Tensor, kernel: Tensor, padding: int) -> Tensor:
    return torch.cat([F.conv2d(i[None], k, padding=padding) for i, k in zip(input, kernel, strict=True)])


def grouped(input: Tensor, kernel: Tensor, padding: int) -> Tensor:
    batch, outputs = kernel.shape[:2]
    output = F.conv2d(input.flatten(0, 1)[None], kernel.flatten(0, 1), padding=padding, groups=batch)
    return output[0].unflatten(0, (batch, outputs))


def grouped_depthwise(input: Tensor, kernel: Tensor, padding: int) -> Tensor:
    planes = input.flatten(0, 1)
    output = F.conv2d(planes[None], kernel.flatten(0, 1)[:, None], padding=padding, groups=planes.shape[0])
    return output[0].unflatten(0, kernel.shape[:2])


def _bound(operator: Callable[..., Tensor], leaves: list[Tensor], padding: int) -> Callable[[], Tensor]:
    return lambda: operator(*leaves, padding)


def contests(everything: bool = False) -> list[Contest]:
    """Both operators, forward and backward; with everything also all threads."""

    def both(batches: Callable[[int], bool], **kind: int) -> list[Contest]:
        return [
            contest(case=case.name, shape=case, batch=batch, direction=direction, **kind)
            for contest, cases in ((FullContest, FULL), (DepthwiseContest, DEPTHWISE))
            for direction in (FORWARD, BACKWARD)
            for case, batch in cases
            if batches(batch)
        ]

    found = both(lambda batch: True)
    threads = torch.get_num_threads()
    if everything and threads > 1:
        found += both(lambda batch: batch > 1, threads=threads)
    return found


def extras() -> dict[str, Callable[[], object]]:
    """Nothing beside the contests."""
    return {}
