# SPDX-License-Identifier: Apache-2.0
"""Completion of scans: a sparse U-Net learns from a scan alone what stands in the blocks that were taken out of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..nn.sparse_tensor import SparseTensor
from . import parallel
from .checkpoint import VOXELS, Resumable, read_checkpoint, restore
from .completion_data import NEAREST, BlockedScan, BlockSettings, Holes
from .sparse_unet import SparseUNet

WARM_UP = 10  # steps
VALUE_WEIGHT = 5.0
LOGITS = torch.linspace(-8, 8, 161)  # thresholds that are tried


@dataclass(frozen=True)
class CompletionSettings:
    """How the network is built and trained: AdamW, its rate rising for 10 steps and then falling along a cosine.

    Args:
        width, levels, reps: of the U-Net, which has residual blocks; level l has l * width channels.
        epochs, steps: epochs, and steps an epoch.
        batch: scans a step, of all processes together.
        rate: the greatest learning rate.
        seed: of the weights and of the blocks that are taken out in training; not of the held-out ones.
    """

    width: int = 16
    levels: int = 4
    reps: int = 1
    epochs: int = 12
    steps: int = 25
    batch: int = 1
    rate: float = 5e-3
    seed: int = 0


class CompletionNet(nn.Module):
    """Whether a voxel is occupied, and its value, for every voxel of `inputs_of`.

    Args:
        channels: of a voxel's value, 3 for colour.
        width, levels, reps: see CompletionSettings.

    The value is a mean of the eight nearest voxels that were left, whose weights start as the inverse square of their
    distance:

        value = sum over k of softmax(-2 log distance_k + learnt_k) near_k

    Returns:
        (N, 1 + channels): the logit of being occupied; the value.
    """

    def __init__(self, channels: int, width: int = 16, levels: int = 4, reps: int = 1) -> None:
        super().__init__()
        planes = [width * level for level in range(1, levels + 1)]
        self.unet = SparseUNet(3 + channels, planes, reps, residual=True, momentum=0.1, final_norm=True)
        self.occupied = nn.Linear(width, 1)
        self.blend = nn.Sequential(nn.Linear(width + NEAREST, 2 * width), nn.ReLU(), nn.Linear(2 * width, NEAREST))
        with torch.no_grad():
            self.occupied.weight.mul_(0.1)
            self.occupied.bias.fill_(-2.0)
            for parameter in self.blend[2].parameters():
                parameter.zero_()

    def forward(self, input: SparseTensor, near: Tensor, closeness: Tensor) -> Tensor:
        features = self.unet(input).features
        learnt = self.blend(torch.cat([features, closeness], 1))
        value = ((closeness + learnt).softmax(1)[..., None] * near).sum(1)
        return torch.cat([self.occupied(features), value], 1)


def inputs_of(holes: Sequence[Holes], device: str = "cpu") -> tuple[SparseTensor, Tensor, Tensor]:
    """What the network is given: voxels that were left and voxels asked about, a sample for each scan.

    Features are 1 if it was left, 1 if it is asked about, a quarter of the distance to the nearest that was left, and
    the value: of one asked about, interpolated from those that were left. Beside them `near` and `closeness` of Holes.
    """
    indices, features = [], []
    for sample, hole in enumerate(holes):
        indices.append(np.pad(hole.coords, ((0, 0), (1, 0)), constant_values=sample))
        columns = [~hole.asked, hole.asked, hole.distance / 4]
        features.append(np.concatenate([np.stack(columns, -1), hole.interpolated], 1, dtype=np.float32))
    near, closeness = [hole.near for hole in holes], [hole.closeness for hole in holes]
    tensors = [torch.from_numpy(np.concatenate(parts)).to(device) for parts in (features, indices, near, closeness)]
    return SparseTensor(tensors[0], tensors[1], batch_size=len(holes)), tensors[2], tensors[3]


def loss_of(output: Tensor, hole: Holes) -> Tensor:
    """Of one scan: how wrong the network is where it counts.

        BCE(occupied) + 1 - soft Dice(occupied) + 5 mean |value - truth| over occupied voxels

    In the cross entropy occupied voxels weigh the square root of how much rarer they are.
    """
    counted = torch.from_numpy(hole.counted).to(output.device)
    occupied = torch.from_numpy(hole.occupied).to(output.device)[counted]
    output, target = output[counted], occupied.to(output.dtype)
    if not len(target):
        return 0 * output.sum()
    weight = (len(target) / target.sum().clamp(min=1)).sqrt()
    loss = F.binary_cross_entropy_with_logits(output[:, 0], target, pos_weight=weight)
    chance = output[:, 0].sigmoid()
    loss = loss + 1 - (2 * (chance * target).sum() + 1) / (chance.sum() + target.sum() + 1)
    if output.shape[1] > 1 and bool(occupied.any()):
        truth = torch.from_numpy(hole.truth).to(output.device)[counted][occupied]
        loss = loss + VALUE_WEIGHT * F.l1_loss(output[occupied, 1:], truth)
    return loss


@dataclass(frozen=True)
class Score:
    """Answers about the voxels of held-out blocks, counted.

    Args:
        hits: voxels said to be occupied that are.
        claimed: voxels said to be occupied.
        present: voxels of the scan in the held-out blocks, those beyond reach included.
        error: sum over occupied voxels and channels of |value - truth|, of a voxel the mean over channels.
        valued: voxels in that sum.
    """

    hits: int = 0
    claimed: int = 0
    present: int = 0
    error: float = 0.0
    valued: int = 0

    def __add__(self, other: Score) -> Score:
        return Score(**{key: value + getattr(other, key) for key, value in asdict(self).items()})

    @property
    def iou(self) -> float:
        """Intersection over union of the voxels that are occupied and that are said to be."""
        return self.hits / max(self.claimed + self.present - self.hits, 1)

    @property
    def value_error(self) -> float | None:
        """Mean absolute error of the values of occupied voxels; None where there are no values."""
        return self.error / self.valued if self.valued else None


def score(hole: Holes, said: NDArray[np.bool_], values: NDArray[np.float32]) -> Score:
    """Of answers (N,) and (N, C), of which those that count are looked at."""
    occupied = hole.counted & hole.occupied
    said = hole.counted & said
    error = np.abs(values - hole.truth)[occupied].mean(-1) if values.shape[1] else np.zeros(0)
    present = int(occupied.sum()) + hole.beyond
    return Score(int((said & occupied).sum()), int(said.sum()), present, float(error.sum()), len(error))


def baselines(holes: Sequence[Holes]) -> dict[str, Any]:
    """What one can answer without learning: a voxel is as its nearest that was left, if that is within a radius.

    The radius is the one that scores best on the very voxels it is scored on: no other could be better.

    Returns:
        `nearest`, its Score; `radius`, voxels; `interpolated`, the value error of the weighted mean of the
        eight nearest.
    """
    radii = np.unique(np.concatenate([hole.distance[hole.counted] for hole in holes]))
    best, chosen = Score(), 0.0
    for radius in radii.tolist():
        found = sum((score(hole, hole.distance <= radius, hole.nearest) for hole in holes), Score())
        if found.iou >= best.iou:
            best, chosen = found, radius
    mean = sum((score(hole, hole.asked, hole.interpolated) for hole in holes), Score())
    return {"nearest": best, "radius": chosen, "interpolated": mean.value_error}


Progress = Callable[[int, dict[str, float]], None]


class Completion(Resumable):
    """A training on scans, a checkpoint after each epoch.

    The threshold above which a voxel is said to be occupied is the one with the best IoU on what the epoch trained on.

    Args:
        settings: see CompletionSettings.
        scans: of one kind of values.
        checkpoint: written after every epoch; where it exists, the run goes on from there.
        facts: of the data; a checkpoint with other ones is refused. JSON can hold them.
        notes: more that the checkpoint shall say.
        device: "cpu" or one that torch has.

    Raises:
        ValueError: scans of several kinds, a batch that the processes cannot share, a checkpoint of other settings.
        CheckpointError: a checkpoint that cannot be read.
    """

    def __init__(
        self,
        settings: CompletionSettings,
        scans: Sequence[BlockedScan],
        checkpoint: Path,
        facts: dict[str, Any],
        notes: dict[str, Any] | None = None,
        device: str = "cpu",
    ) -> None:
        kinds = {scan.voxels.values.shape[1] for scan in scans}
        if len(kinds) != 1:
            names = ", ".join(f"{scan.voxels.source}: {scan.voxels.values.shape[1]}" for scan in scans)
            raise ValueError(f"scans must all have colour, or intensity, or neither; their channels are {names}")
        if settings.batch % parallel.size():
            raise ValueError(f"a batch of {settings.batch} scans cannot be shared by {parallel.size()} processes")
        self.settings, self.scans, self.device = settings, scans, device
        torch.manual_seed(settings.seed)
        model = build(kinds.pop(), settings).to(device)
        if parallel.size() > 1:
            parallel.synchronise(model)
        optimiser = torch.optim.AdamW(model.parameters(), lr=settings.rate)
        self.tests = [scan.test() for scan in scans]
        facts = {"settings": asdict(settings), "data": facts, "blocks": asdict(scans[0].settings)}
        notes = {**(notes or {}), "channels": scans[0].voxels.values.shape[1]}
        super().__init__(checkpoint, VOXELS, model, optimiser, facts, notes)

    @property
    def finished(self) -> bool:
        return self.epoch == self.settings.epochs

    @property
    def threshold(self) -> float:
        return self.history[-1]["threshold"]

    def run(self, progress: Progress | None = None) -> None:
        """Train until finished; progress(steps of the epoch so far, figures so far) is called after every step."""
        while not self.finished:
            self._run_epoch(progress or (lambda steps, figures: None))

    def _run_epoch(self, progress: Progress) -> None:
        self.model.train()
        clock, summed = time.process_time(), 0.0
        counts = torch.zeros(2, len(LOGITS) + 1)
        for done in range(1, self.settings.steps + 1):
            for group in self.optimiser.param_groups:
                group["lr"] = self._rate()
            summed += self._descend(counts)
            self.step += 1
            progress(done, {"loss": summed / done})
        loss = parallel.total(summed / self.settings.steps) / parallel.size()
        threshold = _best_threshold(parallel.add_up(counts))
        found = sum(
            (score(h, said, values) for h, (said, values) in zip(self.tests, self.answers(threshold), strict=True)),
            Score(),
        )
        self.cpu += parallel.total(time.process_time() - clock)
        entry = {"steps": self.step, "cpu_seconds": self.cpu, "loss": loss, "threshold": threshold, "iou": found.iou}
        self.history.append(entry | ({} if found.value_error is None else {"value_error": found.value_error}))
        if parallel.rank() == 0:
            self.save()
        parallel.wait()

    def _rate(self) -> float:
        total = self.settings.epochs * self.settings.steps
        return self.settings.rate * min(1, (self.step + 1) / WARM_UP) * (1 + math.cos(math.pi * self.step / total)) / 2

    def _descend(self, counts: Tensor) -> float:
        """One step; adds the logits of counted voxels, empty and occupied ones, to the histogram."""
        views = parallel.share(torch.arange(self.settings.batch) + self.step * self.settings.batch).tolist()
        holes = [self.scans[view % len(self.scans)].training(self.settings.seed, view) for view in views]
        output = self.model(*inputs_of(holes, self.device))
        parts = output.split([len(hole.coords) for hole in holes])
        loss = torch.stack([loss_of(part, hole) for part, hole in zip(parts, holes, strict=True)]).mean()
        self.optimiser.zero_grad()
        loss.backward()
        parallel.average_gradients(self.model.parameters())
        self.optimiser.step()
        for part, hole in zip(parts, holes, strict=True):
            places = torch.bucketize(part[:, 0].detach().cpu().contiguous(), LOGITS)
            for kind in (0, 1):
                chosen = torch.from_numpy(hole.counted & (hole.occupied == bool(kind)))
                counts[kind] += torch.bincount(places[chosen], minlength=len(LOGITS) + 1)
        return float(loss.detach())

    def answers(self, threshold: float | None = None) -> list[tuple[NDArray[np.bool_], NDArray[np.float32]]]:
        """For each scan without its held-out blocks: which voxels are said to be occupied, and all values."""
        threshold = self.threshold if threshold is None else threshold
        return [answer(self.model, hole, threshold, self.device) for hole in self.tests]


def build(channels: int, settings: CompletionSettings) -> CompletionNet:
    """A new network, its weights from torch's random state."""
    return CompletionNet(channels, settings.width, settings.levels, settings.reps)


def answer(
    model: nn.Module, hole: Holes, threshold: float, device: str = "cpu"
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Which voxels asked about are said to be occupied (N,), and the values (N, C), in evaluation mode."""
    training = model.training
    model.eval()
    with torch.no_grad():
        output = model(*inputs_of([hole], device)).cpu().numpy()
    model.train(training)
    return hole.asked & (output[:, 0] > threshold), output[:, 1:].clip(0, 1)


def load(path: Path) -> tuple[CompletionNet, CompletionSettings, BlockSettings, dict[str, Any]]:
    """The network of a checkpoint, ready for evaluation, its settings, its blocks', and all else that it says.

    Raises:
        CheckpointError: a checkpoint that cannot be read.
    """
    tensors, state = read_checkpoint(path, VOXELS)
    settings, blocks = CompletionSettings(**state["settings"]), BlockSettings(**state["blocks"])
    model = build(state["notes"]["channels"], settings)
    restore(tensors, model)
    return model.eval(), settings, blocks, state


def _best_threshold(counts: Tensor) -> float:
    """The logit above which IoU is best, of a histogram of the logits of empty and of occupied voxels."""
    empty, occupied = counts.double().flip(1).cumsum(1).flip(1)[:, 1:]  # above each of LOGITS
    iou = occupied / (counts[1].sum() + empty).clamp(min=1)
    return float(LOGITS[int(iou.argmax())])
