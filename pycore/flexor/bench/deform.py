# SPDX-License-Identifier: Apache-2.0
"""Contests of the deformable convolution: the shapes of DCPose, FAMI-Pose, EDVR and DCNv2's ResNet-50."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from flexor.ops import deform_conv2d

from .contest import (
    FORWARD,
    ONE_THREAD,
    OURS,
    TRAINING,
    Call,
    Contest,
    Unavailable,
    directed,
    latency_ns,
    on_one_thread,
)
from .deform_peers import grid_sample_deform_conv2d, onnxruntime_deform_conv2d, torchvision_deform_conv2d
from .goals import Gain
from .memory import peak_extra_of

KERNEL = 3
TAPS = KERNEL * KERNEL
CONV = "F.conv2d"

LONGEST_CALL = 3.0  # seconds: a peer that would need more is skipped by name
# Nanoseconds that a peer takes for one bilinear sample, rounded up; only to predict what LONGEST_CALL skips.
NANOSECONDS_A_SAMPLE = {("torchvision", FORWARD): 17, ("torchvision", TRAINING): 140,
                        ("grid_sample", FORWARD): 8, ("grid_sample", TRAINING): 30}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A shape: channels in = channels out, 3x3, stride 1, padding = dilation."""

    name: str
    channels: int
    height: int
    width: int
    offset_groups: int = 1
    dilation: int = 1

    @property
    def samples(self) -> int:
        """Bilinear samples of one image."""
        return self.channels * TAPS * self.height * self.width


DCPOSE = {d: Case(f"DCPose 17@96x72 dg17 d{d}", 17, 96, 72, 17, d) for d in (3, 6, 9, 12, 15)}
FAMI = Case("FAMI 48@96x72 dg12", 48, 96, 72, 12, 3)
EDVR = Case("EDVR 64@64x64 dg8", 64, 64, 64, 8)
R50_256 = Case("R50 256@56x56 dg1", 256, 56, 56)
R50_512 = Case("R50 512@28x28 dg1", 512, 28, 28)
TABLE = (DCPOSE[3], FAMI, EDVR, R50_256, R50_512)
OTHERS = (
    *(DCPOSE[d] for d in (6, 9, 12, 15)),
    Case("FAMI 48@96x72 dg1", 48, 96, 72, 1, 3),
    Case("EDVR 64@180x320 dg8", 64, 180, 320, 8),
    Case("R50 128@100x168 dg1", 128, 100, 168),
    Case("R50 256@50x84 dg1", 256, 50, 84),
)
CASES = TABLE + OTHERS


@dataclass(frozen=True)
class Goal:
    """What a case should reach on one thread, float32, contiguous, batch 1."""

    forward: float  # times torchvision
    training: float  # times torchvision, forward and backward
    dense: float | None  # F.conv2d's time over ours, contiguous
    dense_channels_last: float | None = None
    onnxruntime: float = 1.2  # times onnxruntime's forward


GOALS = {
    DCPOSE[3].name: Goal(8.3, 20, None),
    FAMI.name: Goal(10, 20, 0.45),
    EDVR.name: Goal(12, 20, 0.55),
    R50_256.name: Goal(4.5, 10, 0.75, 0.85),
    R50_512.name: Goal(2.2, 6, 0.75),
}
GOAL_MEMORY = 8 << 20  # bytes beyond the tensors, forward and backward
GAINS = (Gain("all threads", ONE_THREAD, CONV, share=0.9),)


@dataclass(frozen=True)
class Inputs:
    input: Tensor
    offset: Tensor
    weight: Tensor
    bias: Tensor
    mask: Tensor
    grad_output: Tensor

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return self.input, self.offset, self.weight, self.bias, self.mask


def make_inputs(case: Case, batch: int = 1, dtype: torch.dtype = torch.float32, layout: str = "contiguous") -> Inputs:
    """Seeded tensors: offsets from N(0, 2) pixels, a mask in [0, 1); both stay float32 beside a bfloat16 input.

    Offsets are odd multiples of 1/128 pixel: no sample lies so near a pixel's edge, where the gradient
    jumps, that two correct kernels could land on different sides.
    """
    generator = torch.Generator().manual_seed(0)
    c, h, w = case.channels, case.height, case.width
    taps = case.offset_groups * TAPS

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    offset = (2 * normal(batch, 2 * taps, h, w) * 64).floor_().add_(0.5).div_(64)
    mask = torch.rand((batch, taps, h, w), generator=generator)
    tensors = Inputs(
        input=normal(batch, c, h, w).to(dtype),
        offset=offset,
        weight=(normal(c, c, KERNEL, KERNEL) / (c * TAPS) ** 0.5).to(dtype),
        bias=normal(c).to(dtype),
        mask=mask,
        grad_output=normal(batch, c, h, w).to(dtype),
    )
    if layout == "channels_last":
        as_layout = {
            name: value.contiguous(memory_format=torch.channels_last)
            for name, value in vars(tensors).items()
            if value.ndim == 4
        }
        tensors = replace(tensors, **as_layout)
    return tensors


@dataclass(frozen=True, kw_only=True)
class DeformContest(Contest):
    """deform_conv2d of one case against the peers, and against the dense convolution of the same shape."""

    op: ClassVar[str] = "deform_conv2d"
    tensors: ClassVar[tuple[str, ...]] = (
        "output", "grad_input", "grad_offset", "grad_weight", "grad_bias", "grad_mask")  # fmt: skip
    other_work: ClassVar[tuple[str, ...]] = (CONV, CONV + ONE_THREAD)

    shape: Case

    @property
    def contestants(self) -> tuple[str, ...]:
        if self.threads > 1:
            return OURS, OURS + ONE_THREAD, CONV, CONV + ONE_THREAD, "torchvision", "onnxruntime"
        peers = ("torchvision", "onnxruntime", "grid_sample") if self.batch == 1 else ("torchvision", "onnxruntime")
        return OURS, *peers, CONV

    @property
    def flops(self) -> int:
        """Multiply-adds of the matrix products, two operations each: one product forward, two more backward."""
        products = 1 if self.direction == FORWARD else 3
        return products * 2 * self.batch * self.shape.channels * self.shape.samples

    @property
    def bytes(self) -> int:
        c, pixels = self.shape.channels, self.batch * self.shape.height * self.shape.width
        item = self.dtype.itemsize
        images = item * c * pixels
        coordinates = 4 * 3 * self.shape.offset_groups * TAPS * pixels
        weights = item * c * (c * TAPS + 1)
        forward = 2 * images + coordinates + weights
        # Backward reads grad_output and all inputs again, and writes a gradient of each input.
        return forward if self.direction == FORWARD else forward + 3 * images + 2 * coordinates + 2 * weights

    @property
    def tolerance(self) -> float:
        return 3e-2 if self.dtype == torch.bfloat16 else 1e-4

    def enter(self) -> Iterator[tuple[str, Call | Unavailable]]:
        inputs = make_inputs(self.shape, self.batch, self.dtype, self.layout)
        for name in self.contestants:
            try:
                yield name, self._call(name, inputs)
            except Unavailable as absent:
                yield name, absent

    def expected(self, results: dict[str, tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """torchvision's result, or the same inputs in float32 through grid_sample."""
        for peer in ("torchvision", "grid_sample"):
            if peer in results:
                return results[peer]
        inputs = make_inputs(self.shape, self.batch, self.dtype, self.layout)
        inputs = replace(inputs, **{name: value.float().contiguous() for name, value in vars(inputs).items()})
        return _prepare("grid_sample", inputs, self.shape.dilation, self.direction)()

    def _call(self, name: str, inputs: Inputs) -> Call:
        if name.endswith(ONE_THREAD):
            return on_one_thread(self._call(name.removesuffix(ONE_THREAD), inputs), self.threads)
        if name not in (OURS, CONV):
            self._refuse(name)
        if name == "onnxruntime":
            return onnxruntime_deform_conv2d(*inputs.leaves, self.shape.dilation, self.threads)
        return _prepare(name, inputs, self.shape.dilation, self.direction)

    def _refuse(self, peer: str) -> None:
        """Raises Unavailable with the reason why a peer cannot or should not take part."""
        if self.dtype == torch.bfloat16:
            reason = {
                "torchvision": "torchvision has no bfloat16 on the CPU",
                "onnxruntime": "onnxruntime has no bfloat16 DeformConv on the CPU",
                "grid_sample": "grid_sample takes coordinates in the input's dtype: 8 bits are too few",
            }
            raise Unavailable(reason[peer])
        if self.layout == "channels_last":
            raise Unavailable(f"{peer} has no channels_last kernel: it copies to contiguous, see there")
        if peer == "onnxruntime" and self.direction == TRAINING:
            raise Unavailable("onnxruntime has no backward")
        nanoseconds = NANOSECONDS_A_SAMPLE.get((peer, self.direction), 0)
        predicted = 1e-9 * nanoseconds * self.batch * self.shape.samples
        if predicted > LONGEST_CALL:
            raise Unavailable(f"one call of {peer} takes about {predicted:.0f} s")


def _prepare(contestant: str, inputs: Inputs, dilation: int, direction: str) -> Call:
    """The forward alone without gradients, or the forward and every gradient."""
    operator = _operator(contestant, dilation)
    leaves = [t.detach().requires_grad_() for t in inputs.leaves]
    wanted = [leaves[0], leaves[2], leaves[3]] if contestant == CONV else leaves
    return directed(lambda: operator(*leaves), wanted, inputs.grad_output, direction)


def _operator(contestant: str, d: int) -> Callable[..., Tensor]:
    """(input, offset, weight, bias, mask) -> output."""
    if contestant == CONV:
        return lambda input, offset, weight, bias, mask: F.conv2d(input, weight, bias, padding=d, dilation=d)
    if contestant == "grid_sample":
        return lambda *tensors: grid_sample_deform_conv2d(*tensors, d)
    op = deform_conv2d if contestant == OURS else torchvision_deform_conv2d()
    return lambda input, offset, weight, bias, mask: op(
        input, offset, weight, bias, padding=(d, d), dilation=(d, d), mask=mask
    )


def contests(everything: bool = False) -> list[DeformContest]:
    """The five shapes of the table; or all shapes, and those five also with batch 8, other layouts, dtypes, threads."""

    def both(case: Case, **kind) -> list[DeformContest]:
        return [DeformContest(case=case.name, shape=case, direction=d, **kind) for d in (FORWARD, TRAINING)]

    if not everything:
        return [contest for case in TABLE for contest in both(case)]
    threads = torch.get_num_threads()
    found = [contest for case in CASES for contest in both(case)]
    for case in TABLE:
        found += both(case, layout="channels_last")
        found += both(case, dtype=torch.bfloat16)
        found += both(case, dtype=torch.bfloat16, layout="channels_last")
        found += both(case, batch=8)
        if threads > 1:
            found += both(case, batch=8, threads=threads)
    return found


def extras() -> dict[str, Callable[[], object]]:
    """What is measured beside the contests: peak memory and the latency of a small call."""
    return {"memory_bytes": peak_memory, "latency_ns": small_call_latency}


def peak_memory() -> dict[str, dict[str, int | None]]:
    """Peak bytes of forward and backward beyond the tensors, by case and contestant; None for an absent peer."""
    task = f"{__name__}:memory_call"
    return {case.name: {name: peak_extra_of(task, case.name, name) for name in (OURS, "torchvision")} for case in TABLE}


def memory_call(case_name: str, contestant: str) -> Call:
    """What `peak_memory` measures, with libraries and threads already loaded by a call on a tiny image."""
    case = next(case for case in CASES if case.name == case_name)
    tiny = replace(case, height=8, width=8)
    _prepare(contestant, make_inputs(tiny), case.dilation, TRAINING)()
    return _prepare(contestant, make_inputs(case), case.dilation, TRAINING)


def small_call_latency() -> dict[str, float]:
    """Nanoseconds of one call on a 1x8x5x5 input without gradients, ours and F.conv2d's."""
    inputs = make_inputs(Case("8@5x5 dg1", 8, 5, 5))
    x, offset, weight, bias, mask = inputs.leaves
    return latency_ns(
        {
            OURS: lambda: deform_conv2d(x, offset, weight, bias, padding=(1, 1), mask=mask),
            CONV: lambda: F.conv2d(x, weight, bias, padding=1),
        }
    )
