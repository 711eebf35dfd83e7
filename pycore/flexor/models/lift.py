# SPDX-License-Identifier: Apache-2.0
"""Training of 2-D to 3-D lifting networks: which ones, how, and how a run goes on after a kill."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import semantic_grid_transform
from . import parallel
from .checkpoint import LIFT, Resumable, read_checkpoint, restore
from .gcn import GraphLifter
from .gridconv import GridLifter
from .lift_data import Floats, Samples, TrainingSet
from .lift_metrics import mpjpe
from .martinez import LinearLifter

WIDTHS = {"dgridconv": 64, "gridconv": 64, "martinez": 1024, "gcn": 128}
TITLES = {"dgridconv": "D-GridConv", "gridconv": "GridConv", "martinez": "Martinez et al.", "gcn": "SemGCN"}
FIRST_TEMPERATURE = 30.0


@dataclass(frozen=True)
class LiftSettings:
    """How a network is trained: Adam on the mean square error, as the official code of GridConv does it.

    Args:
        model: a key of WIDTHS.
        width: channels of the hidden layers.
        borders: of the grid convolutions, see GridLifter.
        epochs: the learning rate is multiplied by `decay` after each.
        poses: poses an epoch.
        seconds: CPU time of the whole training, of all processes and threads; an epoch is then an equal part of it
            instead of a number of poses. The results of such a run vary a little with the machine's speed.
        batch: poses a step, of all processes together.
        rate, decay: learning rate in the first epoch, and its factor.
        anneal: share of the training in which the attention's temperature falls from 30 to 1, linearly.
        seed: of the weights, dropout, order, cameras and noise.
    """

    model: str
    width: int
    borders: str = "cz"
    epochs: int = 50
    poses: int = 20000
    seconds: float | None = None
    batch: int = 200
    rate: float = 1e-3
    decay: float = 0.96
    anneal: float = 0.1
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.model}-{self.width}-seed{self.seed}"


def build(settings: LiftSettings) -> nn.Module:
    """A new network, its weights from torch's random state."""
    if settings.model in ("dgridconv", "gridconv"):
        dynamic = settings.model == "dgridconv"
        return GridLifter(channels=settings.width, dynamic=dynamic, borders=settings.borders)
    return LinearLifter(channels=settings.width) if settings.model == "martinez" else GraphLifter(settings.width)


def loss_of(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Mean square error as each network's authors have it.

    On the 25 cells of the grid for a GridLifter, on standardised coordinates for a LinearLifter, else on the joints.
    """
    if isinstance(model, GridLifter):
        return F.mse_loss(model(semantic_grid_transform(inputs)), semantic_grid_transform(targets))
    if isinstance(model, LinearLifter):
        return ((model(inputs) - targets) / model.target_std).square().mean()
    return F.mse_loss(model(inputs), targets)


def lift(model: nn.Module, inputs: Floats, device: str = "cpu", batch: int = 1000) -> Floats:
    """3-D poses (N, 17, 3) for detected joints (N, 17, 2), in evaluation mode."""
    training = model.training
    model.eval()
    with torch.no_grad():
        parts = [model(part.to(device)).cpu() for part in torch.from_numpy(inputs).split(batch)]
    model.train(training)
    return torch.cat(parts).numpy()


Progress = Callable[[int, dict[str, float]], None]


class Training(Resumable):
    """One run: owns the network, its optimiser and the file they are kept in.

    Args:
        settings: see LiftSettings.
        data: where the poses come from; its seed must be the settings'.
        watched: held-out samples whose error is noted after every epoch, for the curve; nothing is chosen by it.
        checkpoint: written after every epoch; where it exists, the run goes on from there.
        facts: of the data; a checkpoint with other ones is refused. JSON can hold them.
        notes: more that the checkpoint shall say.
        device: "cpu" or one that torch has.

    Raises:
        ValueError: a checkpoint of other settings, or a batch that the processes cannot share.
        CheckpointError: a checkpoint that cannot be read.
    """

    def __init__(
        self,
        settings: LiftSettings,
        data: TrainingSet,
        watched: Samples,
        checkpoint: Path,
        facts: dict[str, Any],
        notes: dict[str, Any] | None = None,
        device: str = "cpu",
    ) -> None:
        if settings.batch % parallel.size():
            raise ValueError(f"a batch of {settings.batch} poses cannot be shared by {parallel.size()} processes")
        self.settings, self.data, self.watched, self.device = settings, data, watched, device
        torch.manual_seed(settings.seed)
        model = build(settings)
        if isinstance(model, LinearLifter):
            model.standardise(*map(torch.from_numpy, data.sample()))
        model.to(device)
        if parallel.size() > 1:
            parallel.synchronise(model)
        optimiser = torch.optim.Adam(model.parameters(), lr=settings.rate)
        facts = {"settings": asdict(settings), "data": facts}
        super().__init__(checkpoint, LIFT, model, optimiser, facts, notes or {})
        self._set_temperature(float(self.epoch))

    @property
    def finished(self) -> bool:
        return self.epoch == self.settings.epochs

    def run(self, progress: Progress | None = None) -> None:
        """Train until finished; progress(poses of the epoch so far, figures so far) is called after every step."""
        while not self.finished:
            self._run_epoch(progress or (lambda poses, figures: None))

    def _run_epoch(self, progress: Progress) -> None:
        settings = self.settings
        for group in self.optimiser.param_groups:
            group["lr"] = settings.rate * settings.decay**self.epoch
        self.model.train()
        first, cpu_before, summed = self.step, self.cpu, 0.0
        clock = time.process_time()
        part = 0.0
        while part < 1:
            self._set_temperature(self.epoch + part)
            summed += self._descend()
            self.step += 1
            steps = self.step - first
            if settings.seconds is None:
                part = steps * settings.batch / settings.poses
            else:
                self.cpu = cpu_before + parallel.total(time.process_time() - clock)
                part = (self.cpu / settings.seconds) * settings.epochs - self.epoch
            progress(steps * settings.batch, {"loss": summed / steps})
        self.cpu = cpu_before + parallel.total(time.process_time() - clock)
        self._set_temperature(self.epoch + 1.0)
        loss = parallel.total(summed / steps) / parallel.size()
        error = 1000 * float(mpjpe(lift(self.model, self.watched.inputs, self.device), self.watched.targets).mean())
        poses = self.step * settings.batch
        self.history.append({"poses": poses, "cpu_seconds": self.cpu, "loss": loss, "held_out_mm": error})
        if parallel.rank() == 0:
            self.save()
        parallel.wait()

    def _descend(self) -> float:
        inputs, targets = (
            parallel.share(torch.from_numpy(array)).to(self.device)
            for array in self.data.batch(self.step, self.settings.batch)
        )
        self.optimiser.zero_grad()
        loss = loss_of(self.model, inputs, targets)
        loss.backward()
        parallel.average_gradients(self.model.parameters())
        self.optimiser.step()
        return float(loss.detach())

    def _set_temperature(self, epoch: float) -> None:
        if isinstance(self.model, GridLifter):
            done = epoch / (self.settings.epochs * self.settings.anneal) if self.settings.anneal else 1.0
            self.model.net_update_temperature(FIRST_TEMPERATURE + (1 - FIRST_TEMPERATURE) * min(done, 1.0))


def load(path: Path) -> tuple[nn.Module, LiftSettings, dict[str, Any]]:
    """The network of a checkpoint, ready for evaluation, its settings, and all else that the checkpoint says.

    Raises:
        CheckpointError: a checkpoint that cannot be read.
    """
    tensors, state = read_checkpoint(path)
    settings = LiftSettings(**state["settings"])
    model = build(settings)
    restore(tensors, model)
    if isinstance(model, GridLifter):
        done = len(state["history"]) / max(settings.epochs * settings.anneal, 1e-9)
        model.net_update_temperature(FIRST_TEMPERATURE + (1 - FIRST_TEMPERATURE) * min(done, 1.0))
    return model.eval(), settings, state


def subset(samples: Samples, count: int) -> Samples:
    """Evenly spaced samples, at most `count`."""
    chosen = np.unique(np.linspace(0, len(samples.pose) - 1, min(count, len(samples.pose))).astype(int))
    return Samples(samples.inputs[chosen], samples.targets[chosen], samples.pose[chosen])
