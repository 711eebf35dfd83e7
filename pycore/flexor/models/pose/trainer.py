# SPDX-License-Identifier: Apache-2.0
"""Training of pose networks: any recipe of one step, on people in COCO's format; goes on after a kill to the bit."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from .. import parallel
from ..checkpoint import POSE, Resumable
from .coco_keypoints import Annotated, Batch, CocoKeypoints
from .decode import decode_heatmaps, decode_simcc
from .geometry import to_image
from .metrics import box_norm, pck
from .recipe import Recipe
from .skeleton import Skeleton
from .targets import gaussian_targets, joints_mse_loss, simcc_loss, simcc_targets
from .training_settings import PoseSettings
from .weights import load_weights, save_weights

PCK = 0.2  # share of the box's longer side
Progress = Callable[[int, dict[str, float]], None]


class Steps(Dataset[Batch]):
    """The training's batches by the number of the step: each epoch has an order of its own, each person a new draw."""

    def __init__(self, people: CocoKeypoints, settings: PoseSettings) -> None:
        self.people, self.settings = people, settings
        keep = np.random.default_rng([settings.seed, 1 << 40]).random(len(people)) < settings.behind
        away = np.array([seen_from_behind(person, people.recipe.skeleton) for person in people.people])
        self.chosen = np.flatnonzero(keep | ~away)
        self.epoch = len(self.chosen) // settings.batch
        self.rank, self.ranks = parallel.rank(), parallel.size()

    def __len__(self) -> int:
        return self.epoch * self.settings.epochs

    def __getitem__(self, step: int) -> Batch:
        settings = self.settings
        epoch, place = divmod(step, self.epoch)
        order = np.random.default_rng([settings.seed, epoch]).permutation(self.chosen)
        chosen = order[place * settings.batch : (place + 1) * settings.batch]
        mine = np.array_split(chosen, self.ranks)[self.rank].tolist()
        return self.people.batch(mine, settings.augmentation, [[settings.seed, epoch, int(k), 1] for k in mine])


def seen_from_behind(person: Annotated, skeleton: Skeleton) -> bool:
    """Whether a person's left is on the left, as the trunk stands; False where a shoulder or a hip is not annotated."""
    names = ("left_shoulder", "right_shoulder", "left_hip", "right_hip")
    if any(name not in skeleton.joints for name in names):
        return False
    chosen = [skeleton.index(name) for name in names]
    shoulder, other_shoulder, hip, other_hip = person.joints[chosen]
    up, across = shoulder + other_shoulder - hip - other_hip, shoulder - other_shoulder + hip - other_hip
    return bool(person.visible[chosen].all() and up[0] * across[1] - up[1] * across[0] < 0)


def heatmap_cross_entropy(prediction: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """How far heatmaps are from targets, both as distributions over pixels.

        L = - mean_bj w_bj sum_p g_bjp log P_bjp,  P and g the heatmaps divided by their sums

    Args:
        prediction, target: (B, K, h, w), not negative.
        weights: (B, K).

    Returns:
        A scalar.
    """
    p, g = (maps.flatten(2) / maps.flatten(2).sum(2, keepdim=True).clamp(min=1e-12) for maps in (prediction, target))
    return ((g * p.clamp(min=1e-30).log()).sum(2) * -weights).mean()


def loss_of(model: nn.Module, recipe: Recipe, batch: Batch, settings: PoseSettings) -> Tensor:
    """The loss of heatmaps as the settings have it, of SimCC's bins as RTMPose has it, for a mean over people.

    Raises:
        NotImplementedError: a recurrent network, which is trained on clips.
    """
    if recipe.step is not None:
        raise NotImplementedError(f"{recipe.name} is recurrent and trained on clips: flexor.models.pose.dkd_training")
    maps = recipe.predict(model, batch.windows)
    visible = batch.visible.float()
    if isinstance(maps, tuple):
        x, y, weights = simcc_targets(batch.joints, visible, recipe.input_size)
        return simcc_loss((maps[0].float(), maps[1].float()), (x, y), weights) / len(batch.joints)
    kind = {"dark": "unbiased", "udp": "udp"}.get(recipe.decode, "biased")
    size = (maps.shape[2], maps.shape[3])
    target, weights = gaussian_targets(batch.joints, visible, recipe.input_size, size, sigma=settings.sigma, kind=kind)
    if settings.loss == "cross_entropy":
        return heatmap_cross_entropy(maps.float(), target, weights)
    return joints_mse_loss(maps.float(), target, weights, half=True)


class PoseTraining(Resumable):
    """One training: owns the network, its moving average, the optimiser, and the file they are kept in.

    Args:
        settings: see PoseSettings.
        recipe: of the model, with a recipe's input size and joints.
        train, held_out: the people.
        checkpoint: written after every epoch and every `save_every` steps; where it exists, the training goes on.
        notes: more that the checkpoint shall say.
        device: "cpu" or one that torch has.
        base: folder that the settings' `start` is relative to.

    Raises:
        WeightsError: a `start` that cannot be read or fits another model.
        ValueError: a checkpoint of other settings or people, a batch that the processes cannot share, or one that is
            larger than the people are many.
        CheckpointError: a checkpoint that cannot be read.
        NotImplementedError: a recurrent network.
    """

    def __init__(
        self,
        settings: PoseSettings,
        recipe: Recipe,
        train: CocoKeypoints,
        held_out: CocoKeypoints,
        checkpoint: Path,
        notes: dict[str, Any] | None = None,
        device: str = "cpu",
        base: Path = Path(),
    ) -> None:
        if settings.batch % parallel.size():
            raise ValueError(f"a batch of {settings.batch} people cannot be shared by {parallel.size()} processes")
        if recipe.step is not None:
            raise NotImplementedError(
                f"{recipe.name} is recurrent and trained on clips: flexor.models.pose.dkd_training"
            )
        self.settings, self.recipe, self.held_out, self.device = settings, recipe, held_out, device
        self.steps = Steps(train, settings)
        people = len(self.steps.chosen)
        if settings.batch > people:
            raise ValueError(f"batch must be at most the number of people, {people}, got {settings.batch}")
        torch.manual_seed(settings.seed)
        self.network = recipe.build().to(device)
        if settings.start:
            load_weights(self.network, base / settings.start, settings.model)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a tenth faster on CPUs
        if parallel.size() > 1:
            parallel.synchronise(self.network)
        self.average = AveragedModel(
            self.network, multi_avg_fn=get_ema_multi_avg_fn(settings.average), use_buffers=True
        )
        trained = [p for p in self.network.parameters() if p.requires_grad]
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimiser]
        optimiser = kind(trained, lr=settings.rate, weight_decay=settings.weight_decay)
        both = nn.ModuleDict({"network": self.network, "average": self.average})
        facts = {
            "settings": asdict(settings),
            "data": {"train": train.sha256, "held_out": held_out.sha256, "people": people},
        }
        super().__init__(checkpoint, POSE, both, optimiser, facts, notes or {})
        for parameter, state in self.optimiser.state.items():  # strides decide how sums are rounded
            for name, value in state.items():
                if value.shape == parameter.shape:
                    state[name] = torch.zeros_like(parameter).copy_(value)

    @property
    def finished(self) -> bool:
        return self.epoch == self.settings.epochs

    def run(self, progress: Progress | None = None) -> None:
        """Train until finished; progress(people so far, figures) is called after every step."""
        progress = progress or (lambda people, figures: None)
        self.network.train()
        clock = time.process_time()
        for batch in self._batches():
            loss = self._descend(batch)
            self.step += 1
            self.part += loss
            done = self.step - self.epoch * self.steps.epoch
            figures = self.history[-1] if self.history else {}
            progress(self.step * self.settings.batch, {**figures, "loss": self.part / done})
            if done == self.steps.epoch or self.step % self.settings.save_every == 0:
                self.cpu, clock = self.cpu + parallel.total(time.process_time() - clock), time.process_time()
                self._keep(done)

    def _batches(self) -> Iterator[Batch]:
        ahead = range(self.step, len(self.steps))
        own = torch.Generator()  # else it would draw from torch's, once more in a resumed run
        return iter(
            DataLoader(self.steps, batch_size=None, sampler=ahead, num_workers=self.settings.workers, generator=own)
        )

    def _descend(self, batch: Batch) -> float:
        batch = Batch(*(getattr(batch, name).to(self.device) for name in ("windows", "joints", "visible", "matrices")))
        for group in self.optimiser.param_groups:
            group["lr"] = self._rate()
        self.optimiser.zero_grad()
        with half_precision(self.device, self.settings.bf16):
            loss = loss_of(self.network, self.recipe, batch, self.settings)
        loss.backward()
        parallel.average_gradients(self.network.parameters())
        self.optimiser.step()
        self.average.update_parameters(self.network)
        return float(loss.detach())

    def _rate(self) -> float:
        settings, step = self.settings, self.step
        rise = min((step + 1) / max(settings.warm_up, 1), 1.0)
        if settings.schedule == "steps":
            return settings.rate * rise * 0.1 ** sum(self.epoch >= drop for drop in settings.drops)
        return settings.rate * rise * 0.5 * (1 + math.cos(math.pi * step / len(self.steps)))

    def _keep(self, done: int) -> None:
        if done == self.steps.epoch:
            loss = parallel.total(self.part / done) / parallel.size()
            found = evaluate(self.average.module, self.recipe, self.held_out, self.device)
            people = self.step * self.settings.batch
            self.history.append({"people": people, "cpu_seconds": self.cpu, "loss": loss, "pck": found.pck})
            self.part = 0.0
        if parallel.rank() == 0:
            self.save()
        parallel.wait()

    def write_weights(self, path: Path, metadata: dict[str, str], dtype: torch.dtype = torch.float32) -> None:
        """Write the averaged weights, as `flexor pose` reads them."""
        network = self.recipe.build()
        network.load_state_dict(self.average.module.state_dict())
        save_weights(path, network.to(dtype), self.settings.model, metadata)


@contextlib.contextmanager
def half_precision(device: str, wanted: bool) -> Iterator[None]:
    """bfloat16 where torch's autocast has it, if wanted."""
    with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=wanted):
        yield


@dataclass(frozen=True)
class Found:
    """Poses of annotated people, their boxes given, and the share of joints within 0.2 of the box's longer side.

    Args:
        poses: (N, K, 3), x, y in pixels, score.
        pck: of all joints together.
        rates: of each joint, NaN where none is annotated.
    """

    poses: Tensor
    pck: float
    rates: list[float]


@torch.inference_mode()
def evaluate(network: nn.Module, recipe: Recipe, people: CocoKeypoints, device: str = "cpu", batch: int = 32) -> Found:
    """Estimate everybody in their annotated box, in evaluation mode."""
    training = network.training
    network.eval()
    poses = []
    for start in range(0, len(people), batch):
        part = people.batch(list(range(start, min(start + batch, len(people)))))
        maps = recipe.predict(network, part.windows.to(device))
        if isinstance(maps, tuple):
            points, scores = decode_simcc(*maps)
        else:
            points, scores = decode_heatmaps(maps, recipe.decode)
            points = _to_input(points, (maps.shape[2], maps.shape[3]), recipe)
        points = to_image(points.cpu(), part.matrices)
        poses.append(torch.cat([points, scores.cpu().double()[..., None]], 2))
    network.train(training)
    found = torch.cat(poses)
    joints = torch.from_numpy(np.stack([p.joints for p in people.people]))
    visible = torch.from_numpy(np.stack([p.visible for p in people.people]))
    boxes = torch.from_numpy(np.stack([p.box for p in people.people]))
    accuracy = pck(found[..., :2], joints, visible, box_norm(boxes), PCK)
    return Found(found, accuracy.pooled(), accuracy.rates.tolist())


def _to_input(points: Tensor, heatmap: tuple[int, int], recipe: Recipe) -> Tensor:
    """Heatmap pixels as pixels of the network's input."""
    sides = (torch.tensor(size[::-1], dtype=torch.float64) for size in (recipe.input_size, heatmap))
    image, map_ = (side - int(recipe.crop == "udp") for side in sides)
    return points.cpu() * image / map_
