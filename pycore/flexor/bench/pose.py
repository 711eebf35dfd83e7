# SPDX-License-Identifier: Apache-2.0
"""Contests of video pose estimators: what is behind the backbone, whole networks, and where their time goes."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from flexor.models.pose.dcpose import dcpose
from flexor.models.pose.dkd import dkd, dkd_cost
from flexor.models.pose.fami_pose import fami_pose
from flexor.models.pose.hrnet import hrnet_w48
from flexor.models.pose.inference import for_inference
from flexor.models.pose.okdhp import okdhp
from flexor.models.pose.predicted_deform import mean_of_predicted, predicted_deform_conv2d
from flexor.models.pose.rtmpose import rtmpose
from flexor.models.pose.simple_baseline import simple_baseline

from . import pose_peers
from .contest import FORWARD, OURS, TRAINING, Call, Contest, Unavailable, directed, entered
from .goals import Goal
from .memory import peak_extra_of

TORCHVISION = "torchvision"  # the published steps, see pose_peers
DENSE = "its convolutions alone"
NOTHING_KEPT = "flexor, offsets predicted twice"
PUBLISHED = "published"
EVERY_FRAME = "SimpleBaseline a frame"
DCPOSE, FAMI = "DCPose head", "FAMI-Pose head"
HEAD, NETWORK, STREAM = "pose_head", "pose_network", "pose_stream"
HEIGHT, WIDTH = 384, 288
MEMORY = "a step of each head at 96x72"
YARDSTICKS: dict[str, int] = {}
GOALS = (
    Goal(HEAD, DCPOSE, FORWARD, 1, 1.15, DENSE, at_most=True),
    Goal(HEAD, DCPOSE, FORWARD, 1, 1.3, TORCHVISION),
    Goal(HEAD, DCPOSE, TRAINING, 1, 3, TORCHVISION),
    Goal(HEAD, FAMI, FORWARD, 1, 2.3, TORCHVISION),
    Goal(HEAD, FAMI, TRAINING, 1, 5, TORCHVISION),
    Goal(STREAM, "DKD R50 256x256", FORWARD, 1, 1.0, EVERY_FRAME, at_most=True),
)


def seeded(make: Callable[[], nn.Module]) -> Any:
    """A network whose every weight matters: the published ones start with masks of 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make()
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                gain = 0.4 if name.startswith(("rough", "hrnet")) else 1.0
                nn.init.normal_(parameter, std=(gain / parameter[0].numel()) ** 0.5)
    return model.eval()


@functools.cache
def network(name: str) -> Any:
    """One of each, shared by the contests."""
    return seeded({DCPOSE: dcpose, FAMI: fami_pose}[name])


def given(name: str, batch: int, height: int = HEIGHT // 4, width: int = WIDTH // 4) -> tuple[Tensor, ...]:
    """What the backbone gives to a head: heatmaps and margin, or features."""
    generator = torch.Generator().manual_seed(0)
    if name == DCPOSE:
        return torch.rand(3 * batch, 17, height, width, generator=generator) / 2, torch.ones(batch, 2)
    return (torch.rand(5 * batch, 48, height, width, generator=generator) / 2,)


def head_of(name: str, model: Any) -> Callable[..., Tensor]:
    return model.correct if name == DCPOSE else lambda features: model.align(features)[0]


@dataclass(frozen=True, kw_only=True)
class HeadContest(Contest):
    """Everything behind HRNet, from its heatmaps or features at 96x72, made by `for_inference` for the forward alone.

    In training the backbone is frozen, as published: the gradients are those of the head's parameters.
    """

    op: ClassVar[str] = HEAD
    other_work: ClassVar[tuple[str, ...]] = (DENSE,)
    tensors: ClassVar[tuple[str, ...]] = ("output", "norms of two gradients")

    height: int = HEIGHT // 4
    width: int = WIDTH // 4

    @property
    def contestants(self) -> tuple[str, ...]:
        if self.direction == FORWARD:
            return OURS, TORCHVISION, DENSE
        return (OURS, NOTHING_KEPT, TORCHVISION) if self.case == DCPOSE else (OURS, TORCHVISION)

    @property
    def flops(self) -> int:
        """Multiply-adds of the convolutions as published, interpolation not counted; three times with the backward."""
        products = 1 if self.direction == FORWARD else 3
        return 2 * products * _head_macs(self.case, self.batch, self.height, self.width)

    @property
    def bytes(self) -> int:
        parameters = sum(p.numel() for p in _head_parameters(network(self.case)))
        inputs = sum(t.numel() for t in given(self.case, self.batch, self.height, self.width))
        return 4 * (parameters + inputs) * (1 if self.direction == FORWARD else 3)

    @property
    def tolerance(self) -> float:
        return 1e-4 if self.direction == FORWARD else 1e-2

    def enter(self) -> Iterator[tuple[str, Call | Unavailable]]:
        return entered(self.contestants, self.call)

    def call(self, contestant: str) -> Call:
        """A contestant's. Raises: Unavailable."""
        inputs = given(self.case, self.batch, self.height, self.width)
        model = network(self.case)
        if contestant in (OURS, NOTHING_KEPT):
            model = for_inference(model) if self.direction == FORWARD else pose_peers.twin(model, lambda _: None)
            if contestant == NOTHING_KEPT:
                model.kept_bytes = 0
            head = head_of(self.case, model)
        else:
            model = pose_peers.plain(model)
            peer = pose_peers.dcpose_head if self.case == DCPOSE else pose_peers.fami_head
            head = functools.partial(peer, model)
        if contestant == DENSE:
            recorded = pose_peers.recorded_convolutions(model, lambda: head(*inputs))
            return torch.no_grad()(lambda: tuple(conv(input) for conv, input in recorded)[-1:])
        if self.direction == FORWARD:
            return directed(lambda: head(*inputs), (), inputs[0], FORWARD)
        return _training_step(model.train(), lambda: head(*inputs), self.case)

    def expected(self, results: dict[str, tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """What the published steps compute; without torchvision what ours do."""
        return results.get(TORCHVISION, results[OURS])


def _head_parameters(model: Any) -> list[Tensor]:
    backbone = {id(parameter) for parameter in model.backbone.parameters()}
    return [parameter for parameter in model.parameters() if id(parameter) not in backbone]


def _training_step(model: Any, head: Callable[[], Tensor], case: str) -> Call:
    """Gradients of all parameters of the head; the norms of two are shown.

    Single entries jump where rounding moves a sample across a pixel, and those of biases before a batch norm are noise.
    """
    branch = model.branches()[0] if case == DCPOSE else model.branch(4)
    wanted = _head_parameters(model)
    shown = [branch.deform.weight, branch.offset.weight]

    def step() -> tuple[Tensor, ...]:
        output = head()
        grads = torch.autograd.grad(output, wanted, torch.ones_like(output))
        found = {id(parameter): grad for parameter, grad in zip(wanted, grads, strict=True)}
        return output.detach(), torch.stack([found[id(parameter)].norm() for parameter in shown])

    return step


@functools.cache
def _head_macs(case: str, batch: int, height: int, width: int) -> int:
    inputs = given(case, batch, height, width)
    try:
        model = pose_peers.plain(network(case))
    except Unavailable:
        return 0
    peer = pose_peers.dcpose_head if case == DCPOSE else pose_peers.fami_head
    return pose_peers.multiply_adds(model, lambda: peer(model, *inputs))


def first_of(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


@dataclass(frozen=True)
class Whole:
    """A network: how it is made, the shapes it is called with, what a peer calls in its place, a part of its output."""

    make: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    peer: Callable[..., Tensor] | None = None
    pick: Callable[[Any], Tensor] = first_of


WHOLE = {
    f"HRNet-W48 {HEIGHT}x{WIDTH}": Whole(hrnet_w48, ((3, HEIGHT, WIDTH),)),
    f"DCPose {HEIGHT}x{WIDTH}": Whole(
        functools.partial(network, DCPOSE), ((9, HEIGHT, WIDTH), (2,)), pose_peers.dcpose
    ),
    f"FAMI-Pose {HEIGHT}x{WIDTH}": Whole(
        functools.partial(network, FAMI), ((3, HEIGHT, WIDTH), (12, HEIGHT, WIDTH)), pose_peers.fami_pose
    ),
    "SimpleBaseline R50 256x192": Whole(simple_baseline, ((3, 256, 192),)),
    "RTMPose-m 256x192": Whole(rtmpose, ((3, 256, 192),)),
    "OKDHP 4 stacks 256x256": Whole(lambda: okdhp().deploy(), ((3, 256, 256),)),
}


@dataclass(frozen=True, kw_only=True)
class NetworkContest(Contest):
    """A whole network, one person: as `for_inference` makes it, or as published."""

    op: ClassVar[str] = NETWORK
    tensors: ClassVar[tuple[str, ...]] = ("output",)

    @property
    def contestants(self) -> tuple[str, ...]:
        return OURS, PUBLISHED

    @property
    def flops(self) -> int:
        """Multiply-adds of the convolutions and matrix products as published."""
        return 2 * _whole_macs(self.case, self.batch)

    @property
    def bytes(self) -> int:
        shapes = WHOLE[self.case].shapes
        return 4 * sum(p.numel() for p in _whole(self.case).parameters()) + 4 * self.batch * sum(
            torch.Size(shape).numel() for shape in shapes
        )

    @property
    def tolerance(self) -> float:
        return 1e-3

    def enter(self) -> Iterator[tuple[str, Call | Unavailable]]:
        inputs, pick = _whole_inputs(self.case, self.batch), WHOLE[self.case].pick
        fused = for_inference(_whole(self.case))
        yield OURS, directed(lambda: pick(fused(*inputs)), (), inputs[0], FORWARD)
        try:
            published = _published(self.case)
            yield PUBLISHED, directed(lambda: pick(published(*inputs)), (), inputs[0], FORWARD)
        except Unavailable as absent:
            yield PUBLISHED, absent

    def expected(self, results: dict[str, tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        return results.get(PUBLISHED, results[OURS])


@functools.cache
def _whole(case: str) -> Any:
    make = WHOLE[case].make
    return make() if isinstance(make, functools.partial) else seeded(make)


def _published(case: str) -> Callable[..., Any]:
    model, peer = pose_peers.plain(_whole(case)), WHOLE[case].peer
    return model if peer is None else functools.partial(peer, model)


def _whole_inputs(case: str, batch: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.ones(batch, *shape) if len(shape) == 1 else torch.randn(batch, *shape, generator=generator)
        for shape in WHOLE[case].shapes
    ]


@functools.cache
def _whole_macs(case: str, batch: int) -> int:
    try:
        run = _published(case)
    except Unavailable:
        return 0
    model = run.args[0] if isinstance(run, functools.partial) else run
    return pose_peers.multiply_adds(model, lambda: run(*_whole_inputs(case, batch)))


@dataclass(frozen=True, kw_only=True)
class StreamContest(Contest):
    """A later frame of a stream by DKD, beside SimpleBaseline on ResNet-50 for every frame; both as flexor has them."""

    op: ClassVar[str] = STREAM
    other_work: ClassVar[tuple[str, ...]] = (EVERY_FRAME,)
    tensors: ClassVar[tuple[str, ...]] = ("output",)
    size: int = 256

    @property
    def contestants(self) -> tuple[str, ...]:
        return OURS, EVERY_FRAME

    @property
    def flops(self) -> int:
        return 2 * self.batch * dkd_cost(input_size=(self.size, self.size)).later_frame

    @property
    def bytes(self) -> int:
        return 4 * self.batch * 3 * self.size**2

    @property
    def tolerance(self) -> float:
        return 1e-4

    def enter(self) -> Iterator[tuple[str, Call]]:
        frame, state = self._stream()
        model = for_inference(_dkd())
        yield OURS, directed(lambda: model.step(frame, state)[0], (), frame, FORWARD)
        yield EVERY_FRAME, directed(functools.partial(model.initialiser, frame), (), frame, FORWARD)

    def _stream(self) -> tuple[Tensor, Any]:
        frame = torch.randn(self.batch, 3, self.size, self.size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            return frame, _dkd().step(frame)[1]

    def expected(self, results: dict[str, tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """What the network computes with its batch norms apart."""
        with torch.no_grad():
            return (_dkd().step(*self._stream())[0],)


@functools.cache
def _dkd() -> Any:
    return seeded(dkd)


def contests(everything: bool = False) -> list[Contest]:
    """Both heads, the stream and HRNet; or also every network, and the heads at a batch of 4 and on all threads."""
    heads: list[Contest] = [
        HeadContest(case=case, direction=way) for case in (DCPOSE, FAMI) for way in (FORWARD, TRAINING)
    ]
    whole = list(WHOLE) if everything else list(WHOLE)[:1]
    found = [*heads, *(NetworkContest(case=case) for case in whole), StreamContest(case="DKD R50 256x256")]
    if everything:
        found += [HeadContest(case=case, batch=4) for case in (DCPOSE, FAMI)]
    return found


def extras() -> dict[str, Callable[[], object]]:
    """What is measured beside the contests: memory of the heads, and the parts of both networks."""
    return {"memory_bytes": peak_memory, "parts_ms": parts}


def peak_memory() -> dict[str, dict[str, int | None]]:
    """Peak bytes of a head beyond its tensors."""
    task = f"{__name__}:memory_call"
    names = {FORWARD: (OURS, TORCHVISION), TRAINING: (OURS, NOTHING_KEPT, TORCHVISION)}
    return {
        f"{case}, {way}, batch {batch}": {
            name: peak_extra_of(task, case, way, str(batch), name)
            if name in names[way] and (case == DCPOSE or name != NOTHING_KEPT)
            else None
            for name in names[TRAINING]
        }
        for case in (DCPOSE, FAMI)
        for way in (FORWARD, TRAINING)
        for batch in (1, 4)
    }


def memory_call(case: str, way: str, batch: str, contestant: str) -> Call:
    """What `peak_memory` measures, with libraries already loaded by a call on small maps."""
    side = 24 if case == DCPOSE else 66
    HeadContest(case=case, direction=way, height=side, width=side).call(contestant)()
    return HeadContest(case=case, direction=way, batch=int(batch)).call(contestant)


def parts() -> dict[str, dict[str, float]]:
    """Milliseconds of CPU time of each part of DCPose and FAMI-Pose at 384x288, one thread, by `for_inference`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            found = {"DCPose": _dcpose_parts(), "FAMI-Pose": _fami_parts()}
            return {name: {part: _least_ms(call) for part, call in calls.items()} for name, calls in found.items()}
    finally:
        torch.set_num_threads(threads)


def _dcpose_parts() -> dict[str, Callable[[], object]]:
    model = for_inference(network(DCPOSE))
    frames, (rough, margin) = torch.randn(3, 3, HEIGHT, WIDTH), given(DCPOSE, 1)
    support, features = model.merge(rough, margin)
    return {
        "HRNet-W48 of 3 frames": lambda: model.backbone(frames),
        "fusion and merger": lambda: model.merge(rough, margin),
        "five correction branches": lambda: mean_of_predicted(support, features, model.branches()),
    }


def _fami_parts() -> dict[str, Callable[[], object]]:
    model = for_inference(network(FAMI))
    frames, (features,) = torch.randn(5, 3, HEIGHT, WIDTH), given(FAMI, 1)
    key, *supporting = features.chunk(5)
    four, two = torch.cat(supporting, 1), torch.cat((key, key), 1)

    def local() -> None:
        for number in range(1, 5):
            predicted_deform_conv2d(key, key, model.branch(number))

    return {
        "HRNet-W48 of 5 frames": lambda: model.backbone.features(frames),
        "global alignment of 4": lambda: [model.move(each, key) for each in supporting],
        "merging the supports": lambda: model.sup_agg_block(four),
        "joining with the key frame": lambda: model.combined_feat_layers(two),
        "four deformable alignments": local,
        "joined features and head": lambda: model.agg_final_layer(model.init_feature_agg_block(two)),
    }


def _least_ms(call: Callable[[], object], repeats: int = 3) -> float:
    call()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(1e3 * (time.process_time() - start))
    return float(f"{min(times):.4g}")
