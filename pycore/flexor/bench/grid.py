# SPDX-License-Identifier: Apache-2.0
"""Contests of dynamic grid convolution: a layer, a residual block, and the whole lifting network."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from flexor.models.gridconv import GridBlock, GridLifter
from flexor.nn import DGridConv, GridAttention

from .contest import FORWARD, OURS, TRAINING, Call, Contest, directed
from .goals import Goal
from .grid_peers import published
from .twins import twin

PUBLISHED = "published"
FUSED = "flexor, fused"

GRID = (5, 5)
BORDERS = "cr"
CHANNELS = 256
# Of 225 pairs of cell and tap 169 stay on the grid, where both branches read the same cell; 56 cross its border.
PAIRS = 169 + 2 * 56

LAYER = "DGridConv 256->256"
BLOCK = "residual block 256"
LIFTER = "GridLifter 2->256->3"
# (channels in, channels out) of every grid convolution inside
LAYERS = {
    LAYER: [(CHANNELS, CHANNELS)],
    BLOCK: [(CHANNELS, CHANNELS)] * 2,
    LIFTER: [(2, CHANNELS), *[(CHANNELS, CHANNELS)] * 4, (CHANNELS, 3)],
}
GOALS = (
    *(
        Goal("grid_conv", case, FORWARD, batch, limit, PUBLISHED)
        for case in (LAYER, BLOCK)
        for batch, limit in ((1, 2.5), (1024, 3.0))
    ),
    Goal("grid_conv", LIFTER, FORWARD, 1, 0.4, PUBLISHED, at_most=True),
)


class Layer(nn.Module):
    """One dynamic grid convolution with its attention."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = GridAttention(CHANNELS, GRID, temperature=1.0)
        self.conv = DGridConv(CHANNELS, CHANNELS, padding_mode=BORDERS, bias=True)

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.conv(input, self.attention(input))
        return output


MODELS: dict[str, Callable[[], nn.Module]] = {
    LAYER: Layer,
    BLOCK: functools.partial(GridBlock, CHANNELS, True, BORDERS, GRID, 1.0, 0.25),
    LIFTER: functools.partial(GridLifter, channels=CHANNELS, borders=BORDERS, temperature=1.0),
}


@dataclass(frozen=True, kw_only=True)
class GridContest(Contest):
    """A part of the lifting network in evaluation, attention included, against the same part as published."""

    op: ClassVar[str] = "grid_conv"
    tensors: ClassVar[tuple[str, ...]] = (
        "output",
        "grad_input",
        *(f"gradient of parameter {i}" for i in range(40)),
    )

    @property
    def contestants(self) -> tuple[str, ...]:
        fuses = self.case == LIFTER and self.direction == FORWARD
        return (OURS, FUSED, PUBLISHED) if fuses else (OURS, PUBLISHED)

    @property
    def flops(self) -> int:
        """Multiply-adds of the grid convolutions once their branches are merged inside the grid, two operations each.

        Three times as many with the gradients. The published way multiplies 450 pairs of cell and tap, not 281.
        """
        passes = 1 if self.direction == FORWARD else 3
        return passes * 2 * self.batch * PAIRS * sum(ci * co for ci, co in LAYERS[self.case])

    @property
    def bytes(self) -> int:
        """Every layer's input, output and both weights; with the gradients input and weights twice more each."""
        cells = self.batch * GRID[0] * GRID[1]
        layers = LAYERS[self.case]
        read = 4 * sum(cells * ci + 2 * 9 * ci * co for ci, co in layers)
        written = 4 * sum(cells * co for _, co in layers)
        return (read + written) if self.direction == FORWARD else 3 * read + 2 * written

    @property
    def tolerance(self) -> float:
        return 1e-4

    def enter(self) -> Iterator[tuple[str, Call]]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = MODELS[self.case]().eval()
            inputs, outputs = LAYERS[self.case][0][0], LAYERS[self.case][-1][1]
            input = torch.randn(self.batch, inputs, *GRID, requires_grad=True)
            grad_output = torch.randn(self.batch, outputs, *GRID)
        for name in self.contestants:
            contestant = _contestant(name, model)
            wanted = [input, *contestant.parameters()] if self.direction == TRAINING else []
            yield name, directed(functools.partial(contestant, input), wanted, grad_output, self.direction)

    def expected(self, results: dict[str, tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """What the published way computes."""
        return results[PUBLISHED]


def _contestant(name: str, model: nn.Module) -> nn.Module:
    if name == FUSED:
        assert isinstance(model, GridLifter)
        return model.fuse()
    return twin(model, published) if name == PUBLISHED else model


def contests(everything: bool = False) -> list[Contest]:
    """Layer, block and network one pose at a time and many; with everything also all threads."""
    found: list[Contest] = [
        GridContest(case=case, batch=batch) for case in (LAYER, BLOCK, LIFTER) for batch in (1, 200, 1024)
    ]
    # Not the whole network: batch norms in training lose more of float32 than the check of results allows anyone.
    found.append(GridContest(case=LAYER, batch=200, direction=TRAINING))
    threads = torch.get_num_threads()
    if everything and threads > 1:
        found += [GridContest(case=LIFTER, batch=batch, threads=threads) for batch in (1, 1024)]
        found.append(GridContest(case=LAYER, batch=200, direction=TRAINING, threads=threads))
    return found


def extras() -> dict[str, Callable[[], object]]:
    """Nothing beside the contests."""
    return {}
