# SPDX-License-Identifier: Apache-2.0
"""Contests of dynamic convolution: the 3x3 layers of ResNet-18's stages, and the whole network."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flexor.models.odconv import Count, count, od_resnet18
from flexor.nn import ODConv2d

from .contest import FORWARD, OURS, TRAINING, Call, Contest, directed
from .dynamic_peers import mixed_by_matmul, published, static
from .goals import Goal
from .memory import peak_extra_of
from .twins import twin

CONV = "F.conv2d"
PUBLISHED = "published"
MATMUL = "matmul"
SWAPS: dict[str, Callable[[nn.Module], nn.Module | None]] = {
    PUBLISHED: published,
    MATMUL: mixed_by_matmul,
    CONV: static,
}
STEP = "training step"
KERNEL = 3
IMAGE = 224
CLASSES = 1000


@dataclass(frozen=True)
class Case:
    """A layer: channels in = channels out, 3x3, stride 1, padding 1, square images."""

    channels: int
    size: int
    kernels: int

    @property
    def name(self) -> str:
        return f"R18 {self.channels}@{self.size}x{self.size} n{self.kernels}"

    @property
    def weights(self) -> int:
        """Of one kernel."""
        return self.channels**2 * KERNEL**2


STAGES = ((64, 56), (128, 28), (256, 14), (512, 7))
CASES = tuple(Case(channels, size, kernels) for kernels in (1, 4) for channels, size in STAGES)
NETWORKS = {1: "ResNet-18 n1", 4: "ResNet-18 n4"}
_LIMITS = {1: (1.2, 1.2, 1.3, 1.3), 4: (1.25, 1.25, 1.6, 2.0)}  # of the stages: time over the plain convolution's
GOALS = (
    *(
        Goal("ODConv2d", Case(*stage, kernels).name, FORWARD, 8, limit, CONV, at_most=True)
        for kernels, limits in _LIMITS.items()
        for stage, limit in zip(STAGES, limits, strict=True)
    ),
    Goal("od_resnet18", NETWORKS[1], FORWARD, 1, 1.2, CONV, at_most=True),
    Goal("od_resnet18", NETWORKS[4], FORWARD, 1, 1.8, CONV, at_most=True),
    Goal("od_resnet18", NETWORKS[1], STEP, 8, 1.6, CONV, at_most=True),
    Goal("od_resnet18", NETWORKS[4], STEP, 8, 2.3, CONV, at_most=True),
)


@dataclass(frozen=True, kw_only=True)
class LayerContest(Contest):
    """One `flexor.nn.ODConv2d` in evaluation, its attention branch included, beside the plain convolution."""

    op: ClassVar[str] = "ODConv2d"
    tensors: ClassVar[tuple[str, ...]] = (
        "output", "grad_input", "grad_weight", "grad_fc", "grad_bn_weight", "grad_bn_bias",
        "grad_channel_fc", "grad_channel_fc_bias", "grad_filter_fc", "grad_filter_fc_bias",
        "grad_spatial_fc", "grad_spatial_fc_bias", "grad_kernel_fc", "grad_kernel_fc_bias")  # fmt: skip
    other_work: ClassVar[tuple[str, ...]] = (CONV,)

    shape: Case

    @property
    def contestants(self) -> tuple[str, ...]:
        mixes = self.shape.kernels > 1 and self.direction == FORWARD
        return (OURS, CONV, PUBLISHED, MATMUL) if mixes else (OURS, CONV, PUBLISHED)

    @property
    def flops(self) -> int:
        """Multiply-adds of the convolution and of mixing n kernels for every sample; twice as many more backward."""
        products = 1 if self.direction == FORWARD else 3
        mixed = self.shape.kernels if self.shape.kernels > 1 else 0
        return products * 2 * self.batch * self.shape.weights * (self.shape.size**2 + mixed)

    @property
    def bytes(self) -> int:
        images = 4 * self.batch * self.shape.channels * self.shape.size**2
        weights = 4 * self.shape.kernels * self.shape.weights
        forward = 2 * images + weights
        # Backward reads the input, grad_output and the weights again, and writes two gradients.
        return forward if self.direction == FORWARD else forward + 3 * images + 2 * weights

    @property
    def tolerance(self) -> float:
        return 1e-4

    def enter(self) -> Iterator[tuple[str, Call]]:
        input, layers, grad_output = _layers(self.shape, self.batch)
        for name in self.contestants:
            yield name, _layer_call(layers[name], input, grad_output, self.direction)

    def expected(self, results: dict[str, tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """What the published way computes."""
        return results[PUBLISHED]


def _layers(case: Case, batch: int) -> tuple[Tensor, dict[str, nn.Module], Tensor]:
    """Input, every contestant's layer on the same parameters, and grad_output."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = ODConv2d(case.channels, case.channels, KERNEL, padding=1, kernel_num=case.kernels).eval()
        shape = (batch, case.channels, case.size, case.size)
        input, grad_output = torch.randn(shape).add_(0.5).requires_grad_(), torch.randn(shape)
    return input, {OURS: layer} | {name: twin(layer, swap) for name, swap in SWAPS.items()}, grad_output


def _layer_call(layer: nn.Module, input: Tensor, grad_output: Tensor, direction: str) -> Call:
    return directed(lambda: layer(input), [input, *layer.parameters()], grad_output, direction)


@dataclass(frozen=True, kw_only=True)
class NetworkContest(Contest):
    """ResNet-18 on images of 224x224: its inference, or a step of SGD with momentum in training.

    The learning rate of the step is 0: it does all of its work, and every step computes the same.
    """

    op: ClassVar[str] = "od_resnet18"
    other_work: ClassVar[tuple[str, ...]] = (CONV,)
    tensors: ClassVar[tuple[str, ...]] = (
        "output or loss",
        "grad of the first layer",
        "of the classifier",
        "of a layer",
    )

    kernels: int

    @property
    def contestants(self) -> tuple[str, ...]:
        return OURS, CONV, PUBLISHED

    @property
    def flops(self) -> int:
        """Multiply-adds of all layers and of mixing; twice as many more for the gradients."""
        return (1 if self.direction == FORWARD else 3) * 2 * self.batch * _count(self.kernels).macs

    @property
    def bytes(self) -> int:
        """Parameters, images and outputs; for a step parameters and momenta are also written, gradients both."""
        passes = 1 if self.direction == FORWARD else 6
        return 4 * (passes * _count(self.kernels).parameters + self.batch * (3 * IMAGE**2 + CLASSES))

    @property
    def tolerance(self) -> float:
        return 1e-3 if self.direction == FORWARD else 2e-2

    def enter(self) -> Iterator[tuple[str, Call]]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = od_resnet18(kernel_num=self.kernels, dropout=0.0).train(self.direction == STEP)
            # Smooth, so that images differ in their means: of equal ones the attention's normalisation makes noise.
            images = F.interpolate(torch.randn(self.batch, 3, 7, 7), size=IMAGE, mode="bilinear")
        for name in self.contestants:
            model = network if name == OURS else twin(network, SWAPS[name])
            if self.direction == FORWARD:
                yield name, directed(functools.partial(model, images), (), images, FORWARD)
            else:
                yield name, _training_step(model, images, torch.arange(self.batch))

    def expected(self, results: dict[str, tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """What the published way computes."""
        return results[PUBLISHED]


def _training_step(model: nn.Module, images: Tensor, labels: Tensor) -> Call:
    """Gives the loss and the norms of some layers' gradients: single entries jump where a ReLU's argument is near 0."""
    parameters = list(model.parameters())
    kernels = [p for p in parameters if p.dim() == 5]
    shown = [parameters[0], parameters[-2], *kernels[:1], *kernels[-1:]]
    optimizer = torch.optim.SGD(parameters, lr=0.0, momentum=0.9)

    def step() -> tuple[Tensor, ...]:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss.detach(), torch.stack([p.grad.norm() for p in shown if p.grad is not None])

    return step


@functools.cache
def _count(kernels: int) -> Count:
    with torch.device("meta"):
        return count(od_resnet18(kernel_num=kernels), (3, IMAGE, IMAGE))


def contests(everything: bool = False) -> list[Contest]:
    """Every layer at batch 8 and the inference of both networks; or also batch 1, all threads and training steps."""

    def layers(direction: str, **kind: int) -> list[Contest]:
        return [LayerContest(case=case.name, shape=case, direction=direction, **kind) for case in CASES]

    def networks(direction: str, batch: int) -> list[Contest]:
        return [NetworkContest(case=NETWORKS[n], kernels=n, direction=direction, batch=batch) for n in NETWORKS]

    found = [*layers(FORWARD, batch=8), *layers(TRAINING, batch=8), *networks(FORWARD, 1)]
    if everything:
        found += [*layers(FORWARD, batch=1), *layers(TRAINING, batch=1), *networks(STEP, 8)]
        threads = torch.get_num_threads()
        if threads > 1:
            found += layers(FORWARD, batch=8, threads=threads)
    return found


def extras() -> dict[str, Callable[[], object]]:
    """What is measured beside the contests: peak memory of training a layer."""
    return {"memory_bytes": peak_memory}


def peak_memory() -> dict[str, dict[str, int | None]]:
    """Peak bytes of forward and backward beyond the tensors, by case with its batch, and contestant."""
    task = f"{__name__}:memory_call"
    return {
        f"{case.name}, batch {batch}": {
            name: peak_extra_of(task, case.name, str(batch), name) for name in (OURS, PUBLISHED, CONV)
        }
        for case in CASES
        if case.kernels > 1 and case.channels in (64, 512)
        for batch in (1, 8)
    }


def memory_call(case_name: str, batch: str, contestant: str) -> Call:
    """What `peak_memory` measures, with libraries and threads already loaded by a call on a tiny layer."""
    case = next(case for case in CASES if case.name == case_name)
    tiny = Case(8, 8, case.kernels)
    for shape, images in ((tiny, 2), (case, int(batch))):
        input, layers, grad_output = _layers(shape, images)
        call = _layer_call(layers[contestant], input, grad_output, TRAINING)
        if shape is tiny:
            call()
    return call
