# SPDX-License-Identifier: Apache-2.0
"""Learned alignment of one video frame onto another: global affine, dense flow, deformable sampling.

The three stages are those FAMI-Pose applies to feature maps, here applied to the pixels themselves. Every stage is
learned for the one pair of frames by gradient descent through flexor's kernels, and every stage only *moves* pixels
of the neighbour: the last one mixes nine of its samples with weights that are positive, sum to one and are the same
for the three colours. docs/deform.md, section "Aligning two frames", explains why it cannot paint the key frame.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import affine_warp2d, deform_conv2d, warp2d

STAGES = ("affine", "flow", "deformable")
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class AlignSettings:
    """How the alignment is learned.

    Args:
        iterations: gradient steps on each pyramid level and in the deformable stage.
        smoothness: weight of the flow's first differences (pixels) against the colour difference (0 to 1).
        spread: farthest that a deformable tap may leave its place in the 3x3 grid, in pixels.
        held_out: share of 8x8 tiles that the learning never sees; they measure whether the motion is real.
        seed: chooses those tiles.
    """

    iterations: int = 80
    smoothness: float = 0.03
    spread: float = 2.0
    held_out: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"align: iterations must be at least 1, got {self.iterations}")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"align: held_out must be in [0, 1), got {self.held_out}")


@dataclass(frozen=True)
class Alignment:
    """What :func:`align` learned.

    Args:
        frames: the neighbour after each stage of STAGES, each (1, C, H, W).
        matrix: (2, 3), the affine motion from neighbour to key pixels.
        flow: (1, 2, H, W), pixels, (x, y): where each key pixel is found in the neighbour, all stages together.
        held_out: (1, 1, H, W) bool, true on the tiles that the learning never saw.
        parameters: count of the numbers learned.
    """

    frames: dict[str, Tensor]
    matrix: Tensor
    flow: Tensor
    held_out: Tensor
    parameters: int


class AffineMotion(nn.Module):
    """Six numbers, each a displacement in pixels at the frame's border, so that one learning rate suits them all."""

    def __init__(self, height: int, width: int):
        super().__init__()
        self.height, self.width = height, width
        self.linear = nn.Parameter(torch.zeros(2, 2))
        self.shift = nn.Parameter(torch.zeros(2))

    def matrix(self, scale: int = 1) -> Tensor:
        """Motion from neighbour to key pixels, (1, 2, 3), for frames reduced `scale` times."""
        half = self.shift.new_tensor([self.width / 2, self.height / 2])
        centre = half / scale - 0.5
        linear = torch.eye(2, device=half.device) + self.linear / half
        shift = self.shift / scale + centre - linear @ centre
        return torch.cat([linear, shift[:, None]], 1)[None]

    def forward(self, neighbour: Tensor, scale: int = 1) -> Tensor:
        return affine_warp2d(neighbour, self.matrix(scale), padding_mode="border")

    def flow(self) -> Tensor:
        """The same motion as a flow, (1, 2, H, W): inverse(matrix) p - p."""
        matrix = self.matrix()[0]
        y, x = torch.meshgrid(
            *(torch.arange(n, device=matrix.device) for n in (self.height, self.width)), indexing="ij"
        )
        key = torch.stack([x, y]).flatten(1).to(matrix.dtype)
        neighbour = torch.linalg.solve(matrix[:, :2], key - matrix[:, 2:])
        return (neighbour - key).view(1, 2, self.height, self.width)


class FlowPyramid(nn.Module):
    """Dense flow as a sum of grids: coarse ones carry whole objects, the finest follows their outlines."""

    def __init__(self, height: int, width: int, spacings: Sequence[int]):
        super().__init__()
        self.height, self.width, self.spacings = height, width, tuple(spacings)
        self.grids = nn.ParameterList(torch.zeros(1, 2, height // s, width // s) for s in self.spacings)

    def forward(self, scale: int = 1) -> Tensor:
        """Flow in pixels of a frame reduced `scale` times, from the grids no finer than that frame."""
        flow = self.grids[0]
        for spacing, grid in zip(self.spacings[1:], self.grids[1:], strict=True):
            if spacing >= scale:
                flow = _resize(flow, grid.shape[-2:]) + grid
        return _resize(flow, (self.height // scale, self.width // scale)) / scale


class DeformableSampler(nn.Module):
    """Nine samples of the neighbour around the flow's target, mixed by a learned convex mask.

    output(p) = sum_k m_k(p) neighbour(p + flow(p) + tap_k + spread tanh(r_k(p))), m_k >= 0, sum_k m_k = 1: a
    modulated deformable convolution whose weights are fixed at one. It starts close to the centre tap alone.
    """

    CENTRE_LOGIT = 4.0

    def __init__(self, height: int, width: int, spacing: int, spread: float):
        super().__init__()
        self.spread = spread
        self.residual = nn.Parameter(torch.zeros(1, 18, height // spacing, width // spacing))
        self.logits = nn.Parameter(torch.zeros(1, 9, height // spacing, width // spacing))
        with torch.no_grad():
            self.logits[:, 4] = self.CENTRE_LOGIT
        tap = torch.tensor([(i, j) for i in (-1.0, 0.0, 1.0) for j in (-1.0, 0.0, 1.0)])
        y, x = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
        grid = torch.stack([y, x])[None] + tap[:, :, None, None]
        self.register_buffer("grid", grid.view(1, 18, height, width), persistent=False)  # (y, x) a tap
        last = torch.tensor([height - 1.0, width - 1.0]).repeat(9).view(1, 18, 1, 1)
        self.register_buffer("last", last, persistent=False)
        self.register_buffer("weight", torch.ones(3, 1, 3, 3), persistent=False)

    grid: Tensor
    last: Tensor
    weight: Tensor

    def forward(self, neighbour: Tensor, flow: Tensor) -> Tensor:
        offset, mask = self.taps(flow)
        return deform_conv2d(neighbour, offset, self.weight, padding=(1, 1), mask=mask)

    def taps(self, flow: Tensor) -> tuple[Tensor, Tensor]:
        """Offsets (1, 18, H, W) and masks (1, 9, H, W); targets outside the frame are held at its border."""
        size = flow.shape[-2:]
        residual = _resize(self.spread * self.residual.tanh(), size)
        target = self.grid + flow.flip(1).repeat(1, 9, 1, 1) + residual
        offset = torch.minimum(target.clamp(min=0), self.last) - self.grid
        return offset, _resize(self.logits.softmax(1), size)

    def centroid(self, flow: Tensor) -> Tensor:
        """Mean displacement of the samples, (1, 2, H, W), (x, y)."""
        offset, mask = self.taps(flow)
        base = self.grid - self.grid[:, 8:10].repeat(1, 9, 1, 1)
        moved = (offset + base).unflatten(1, (9, 2)) * mask[:, :, None]
        return moved.sum(1).flip(1)


def align(
    key: Tensor, neighbour: Tensor, settings: AlignSettings | None = None, progress: Progress | None = None
) -> Alignment:
    """Learn the motion that brings `neighbour` onto `key`, coarse to fine.

    Minimises, over the motion u, mean rho(key(p) - neighbour(p + u(p))) + smoothness * TV(u), rho(d) = sqrt(d^2 + e^2).

    Args:
        key: (1, 3, H, W) float32, 0 to 1, the frame to be matched.
        neighbour: same shape, the frame to be moved.
        settings: see AlignSettings.
        progress: called as progress(stage, steps done, steps in all) after every step.

    Returns:
        The Alignment; its frames are detached and on the device of `key`.

    Raises:
        ValueError: shapes that differ or are not (1, 3, H, W) with H and W at least 32.

    Source: coarse-to-fine affine then deformable alignment as in Liu et al., "Temporal Feature Alignment and Mutual
    Information Maximization for Video-Based Human Pose Estimation" (CVPR 2022).
    """
    settings = settings or AlignSettings()
    progress = progress or (lambda stage, done, total: None)
    if key.shape != neighbour.shape:
        raise ValueError(
            f"align: key and neighbour must have one shape, got {tuple(key.shape)} and {tuple(neighbour.shape)}"
        )
    if key.dim() != 4 or key.shape[:2] != (1, 3) or min(key.shape[2:]) < 32:
        raise ValueError(f"align: frames must be (1, 3, H, W) with H and W at least 32, got {tuple(key.shape)}")
    return _Fit(key, neighbour, settings, progress).run()


class _Fit:
    """The learning procedure: owns the pyramids, the three motion modules and the optimiser of each stage."""

    SPACINGS = (32, 16, 8, 4)  # of the flow's grids, in pixels
    DEFORM_SPACING = 8
    SEARCH_SCALE, SEARCH_RADIUS = 8, 48
    SEARCH_COUPLING = (0.0, 0.001, 0.003, 0.01, 0.03)

    def __init__(self, key: Tensor, neighbour: Tensor, settings: AlignSettings, progress: Progress):
        self.settings, self.progress = settings, progress
        self.size = height, width = key.shape[2:]
        padding = (0, -width % self.SPACINGS[0], 0, -height % self.SPACINGS[0])
        key, neighbour = (F.pad(frame, padding, mode="replicate") for frame in (key, neighbour))
        self.scales = [s for s in (16, 8, 4, 2, 1) if s <= self.SEARCH_SCALE or min(height, width) >= 16 * s]

        self.held_out = _random_tiles(height, width, settings).to(key.device)
        learned = F.pad(1 - self.held_out.to(key.dtype), padding)
        self.keys = {s: F.avg_pool2d(key, s) for s in self.scales}
        self.neighbours = {s: F.avg_pool2d(neighbour, s) for s in self.scales}
        # A reduced pixel counts only if no held-out pixel went into it.
        self.learned = {s: -F.max_pool2d(-learned, s) for s in self.scales}

        rows, columns = key.shape[2:]
        self.affine = AffineMotion(rows, columns).to(key.device)
        self.pyramid = FlowPyramid(rows, columns, self.SPACINGS).to(key.device)
        self.sampler = DeformableSampler(rows, columns, self.DEFORM_SPACING, settings.spread).to(key.device)

    def run(self) -> Alignment:
        frames = {}
        self._fit_affine()
        with torch.no_grad():
            frames["affine"] = self.affine(self.neighbours[1])
            self.global_flow = self.affine.flow()
            self._search()
        self._fit_flow()
        with torch.no_grad():
            frames["flow"] = warp2d(self.neighbours[1], self._flow(1), padding_mode="border")
        self._fit_deformable()
        with torch.no_grad():
            frames["deformable"] = self.sampler(self.neighbours[1], self._flow(1))
            flow = self.sampler.centroid(self._flow(1))
        height, width = self.size
        modules = (self.affine, self.pyramid, self.sampler)
        return Alignment(
            frames={stage: frame[..., :height, :width] for stage, frame in frames.items()},
            matrix=self.affine.matrix()[0].detach(),
            flow=flow[..., :height, :width],
            held_out=self.held_out,
            parameters=sum(p.numel() for module in modules for p in module.parameters()),
        )

    def _fit_affine(self) -> None:
        coarse = [s for s in self.scales if s >= 4]

        def loss(scale: int) -> Tensor:
            return self._difference(self.affine(self.neighbours[scale], scale), scale)

        self._descend("affine", loss, coarse, [(list(self.affine.parameters()), 0.1)])

    def _search(self) -> None:
        """Start the flow at the best of all displacements up to SEARCH_RADIUS, tried on the reduced frames.

        Gradient descent alone cannot carry a small object farther than its own size.
        """
        scale = self.SEARCH_SCALE
        key, neighbour = (frames[scale].sqrt() for frames in (self.keys, self.neighbours))  # dark parts count more
        flow = self._flow(scale)
        steps = range(-(self.SEARCH_RADIUS // scale), self.SEARCH_RADIUS // scale + 1)
        displacements = flow.new_tensor([(x, y) for y in steps for x in steps])
        costs = []
        for displacement in displacements:
            moved = warp2d(neighbour, flow + displacement.view(1, 2, 1, 1), padding_mode="border")
            cost = _rho(moved - key, 0.01).mean(1, keepdim=True) * self.learned[scale]
            costs.append(_blur(cost, 3) + 0.001 * displacement.norm())
        cost = torch.cat(costs, 1)[0]
        start = torch.zeros_like(flow)
        for coupling in self.SEARCH_COUPLING:
            apart = (displacements[:, :, None, None] - start).square().sum(1)
            best = (cost + coupling * apart).argmin(0)
            start = _blur(displacements[best].permute(2, 0, 1)[None], 3)
        self.pyramid.grids[self.SPACINGS.index(scale)].copy_(scale * start)

    def _fit_flow(self) -> None:
        def loss(scale: int) -> Tensor:
            flow = self._flow(scale)
            warped = warp2d(self.neighbours[scale], flow, padding_mode="border")
            return self._difference(warped, scale) + self._roughness(flow, scale)

        self._descend(
            "flow", loss, [s for s in self.scales if s <= self.SEARCH_SCALE], [(list(self.pyramid.parameters()), 0.1)]
        )

    def _fit_deformable(self) -> None:
        def loss(scale: int) -> Tensor:
            flow = self._flow(scale)
            return self._difference(self.sampler(self.neighbours[scale], flow), scale) + self._roughness(flow, scale)

        self._descend(
            "deformable", loss, [1], [(list(self.pyramid.parameters()), 0.02), (list(self.sampler.parameters()), 0.05)]
        )

    def _descend(
        self,
        stage: str,
        loss: Callable[[int], Tensor],
        scales: Sequence[int],
        groups: Sequence[tuple[list[nn.Parameter], float]],
    ) -> None:
        """Adam with a cosine schedule on each scale in turn; rates are in pixels of that scale."""
        steps, done = self.settings.iterations, 0
        for scale in scales:
            optimiser = torch.optim.Adam([{"params": p, "lr": rate * scale} for p, rate in groups], betas=(0.9, 0.99))
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, eta_min=0)
            for _ in range(steps):
                optimiser.zero_grad()
                loss(scale).backward()
                optimiser.step()
                schedule.step()
                done += 1
                self.progress(stage, done, steps * len(scales))

    def _flow(self, scale: int) -> Tensor:
        return F.avg_pool2d(self.global_flow, scale) / scale + self.pyramid(scale)

    def _difference(self, moved: Tensor, scale: int) -> Tensor:
        learned = self.learned[scale]
        return (_rho(moved - self.keys[scale], 0.01) * learned).sum() / (3 * learned.sum().clamp(min=1))

    def _roughness(self, flow: Tensor, scale: int) -> Tensor:
        """Total variation of the flow, less where the key frame itself has an edge."""
        total = flow.new_zeros(())
        for axis in (2, 3):
            edge = self.keys[scale].diff(dim=axis).abs().mean(1, keepdim=True)
            total = total + (_rho(flow.diff(dim=axis), 0.01) * torch.exp(-10 * edge)).mean()
        return self.settings.smoothness * total


def _random_tiles(height: int, width: int, settings: AlignSettings, tile: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(settings.seed)
    tiles = torch.rand(1, 1, -(-height // tile), -(-width // tile), generator=generator) < settings.held_out
    return tiles.repeat_interleave(tile, 2).repeat_interleave(tile, 3)[..., :height, :width]


def _blur(frame: Tensor, size: int) -> Tensor:
    return F.avg_pool2d(frame, size, stride=1, padding=size // 2, count_include_pad=False)


def _resize(field: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(field, size=tuple(size), mode="bilinear", align_corners=False)


def _rho(difference: Tensor, epsilon: float) -> Tensor:
    return (difference.square() + epsilon * epsilon).sqrt()
