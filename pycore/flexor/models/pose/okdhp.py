# SPDX-License-Identifier: Apache-2.0
"""OKDHP: branches of stacked hourglasses that teach each other; one of them alone is deployed."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._checks import check_images, check_joints
from .targets import joints_mse_loss

_CHANNELS, _DEPTH = 256, 4


class Heatmaps(NamedTuple):
    """What OKDHP returns: every stack's heatmaps in the order of the branches, and the ensemble's."""

    stacks: list[Tensor]
    ensemble: Tensor


class _HourglassStem(nn.Module):
    """The image to features at a quarter of its size, and what every stack of hourglasses does with them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(PreActivationBottleneck(64, 64))
        self.layer2 = nn.Sequential(PreActivationBottleneck(128, 128))
        self.layer3 = nn.Sequential(PreActivationBottleneck(256, 128))

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, 256, H/4, W/4)."""
        check_images(type(self).__name__, images, multiple=4 << _DEPTH)
        hidden = self.layer1(self.bn1(self.conv1(images)).relu())
        return self.layer3(self.layer2(F.max_pool2d(hidden, 2)))

    def _add_stack(self, name: str, joints: int, last: bool) -> None:
        body = Hourglass(), nn.Sequential(PreActivationBottleneck(_CHANNELS, _CHANNELS // 2)), _conv_bn_relu(1)
        self.add_module(f"ind_{name}", nn.Sequential(*body))
        self.add_module(f"score_{name}", nn.Conv2d(_CHANNELS, joints, 1))
        if not last:
            self.add_module(f"_fc_{name}", nn.Conv2d(_CHANNELS, _CHANNELS, 1))
            self.add_module(f"_score_{name}", nn.Conv2d(joints, _CHANNELS, 1))

    def _run_stacks(self, features: Tensor, names: Sequence[str]) -> tuple[list[Tensor], Tensor]:
        """Each stack's heatmaps, and the features for a stack after them."""
        scores = []
        for name in names:
            hidden = self.get_submodule(f"ind_{name}")(features)
            scores.append(self.get_submodule(f"score_{name}")(hidden))
            if hasattr(self, f"_fc_{name}"):
                again = self.get_submodule(f"_score_{name}")(scores[-1])
                features = features + self.get_submodule(f"_fc_{name}")(hidden) + again
        return scores, features


class OKDHP(_HourglassStem):
    """Branches of stacked hourglasses, and their ensemble, weighted for every joint, that teaches them.

        ensemble_j = sum over b of a[b, j] * H[b, j],
        a = softmax over b of W_b z, z = W mean over pixels of sum over b of ReLU(BN(conv_b(features)))

    where H[b] are the heatmaps of branch b's last stack, and conv_b has a kernel of 3 + 2 b: the feature aggregation
    unit. In training every stack is compared with the truth and with the ensemble (`okdhp_loss`); for use take
    `deploy()`, one branch without the unit.

    Args:
        stacks: hourglasses from the stem to the end of a branch.
        branches: that end differently.
        joints: heatmaps.
        shared: stacks, of those, that all branches have in common; 0 for the network of the main results, 2 of 4 for
            the official file `hourglass_okd_share_less`.
        published_ensemble: combines the heatmaps that the released code takes in place of each branch's last ones:
            with 4 stacks and nothing shared stack 3 of branch 0 and stacks 1 and 3 of branch 1; with shared stacks
            the last three maps. Off: each branch's last stack. They agree for 2 stacks.

    Raises:
        ValueError: no stacks, fewer than 2 branches, all stacks shared, or a published ensemble that takes maps which
            this network lacks; at the call images of other shapes.

    Notes:
        Parameters: 43.49 M for 4 stacks, 30.92 M with 2 of them shared, 24.63 M for 2 stacks; 5.46 M of each are the
        aggregation unit's, and are not deployed.

    Source:
        Li et al., Online Knowledge Distillation for Efficient Pose Estimation, ICCV 2021; the state_dicts of
        github.com/zhengli97/OKDHP.
    """

    def __init__(
        self, stacks: int = 4, branches: int = 3, joints: int = 16, shared: int = 0, published_ensemble: bool = False
    ) -> None:
        super().__init__()
        check_joints("OKDHP", joints)
        if stacks < 1 or branches < 2 or not 0 <= shared < stacks:
            raise ValueError(
                "OKDHP: stacks must be at least 1, branches at least 2 and shared from 0 to stacks - 1, "
                f"got stacks {stacks}, branches {branches}, shared {shared}"
            )
        self.stacks, self.branches, self.shared = stacks, branches, shared
        self.ensemble_of = self._ensemble_of(published_ensemble)
        self.convs = nn.ModuleList(_conv_bn_relu(3 + 2 * branch) for branch in range(branches))
        self.fc = nn.Linear(_CHANNELS, 64)
        self.fcs = nn.ModuleList(nn.Linear(64, joints) for _ in range(branches))
        for stack in range(shared):
            self._add_stack(f"s_{stack}", joints, last=False)
        for branch in range(branches):
            for stack in range(stacks - shared):
                self._add_stack(f"b_{branch}_s_{stack}", joints, last=stack == stacks - shared - 1)

    def forward(self, images: Tensor) -> Heatmaps:
        """Images (B, 3, H, W), H and W multiples of 64, to heatmaps (B, joints, H/4, W/4)."""
        features = self.features(images)
        weights = self._branch_weights(features)
        stacks, features = self._run_stacks(features, self._names())
        for branch in range(self.branches):
            stacks += self._run_stacks(features, self._names(branch))[0]
        last = torch.stack([stacks[place] for place in self.ensemble_of], 1)
        return Heatmaps(stacks, (last * weights[..., None, None]).sum(1))

    def deploy(self, branch: int = 0) -> HourglassBranch:
        """One branch alone, with copies of its weights: images to heatmaps, at about a third of the cost."""
        if not 0 <= branch < self.branches:
            raise ValueError(f"OKDHP.deploy: branch must be from 0 to {self.branches - 1}, got {branch}")
        return HourglassBranch(self, [*self._names(), *self._names(branch)])

    def _names(self, branch: int | None = None) -> list[str]:
        """Of the shared stacks, or of a branch's own."""
        if branch is None:
            return [f"s_{stack}" for stack in range(self.shared)]
        return [f"b_{branch}_s_{stack}" for stack in range(self.stacks - self.shared)]

    def _ensemble_of(self, published: bool) -> list[int]:
        """Which of all stacks' heatmaps the ensemble weighs."""
        own = self.stacks - self.shared
        last = [self.shared + own - 1 + branch * own for branch in range(self.branches)]
        if not published:
            return last
        count = last[-1] + 1
        if self.shared:
            return list(range(count - self.branches, count))
        taken = [self.stacks - 1 + branch * (self.branches - 1) for branch in range(self.branches)]
        if taken[-1] >= count:
            raise ValueError(
                f"OKDHP: published_ensemble takes heatmaps {taken}, of which {self.branches} branches of {self.stacks} "
                f"stacks have only {count}; use published_ensemble=False"
            )
        return taken

    def _branch_weights(self, features: Tensor) -> Tensor:
        """(B, branches, joints), which sum to 1 over the branches."""
        pooled = torch.stack([conv(features) for conv in self.convs]).sum(0).mean((2, 3))
        hidden = self.fc(pooled)
        return torch.stack([fc(hidden) for fc in self.fcs], 1).softmax(1)


class HourglassBranch(_HourglassStem):
    """Stacked hourglasses from the image to one set of heatmaps: what `OKDHP.deploy` returns.

    Parameters keep the names they have in the whole network, so that its state_dict loads with strict=False.

    Args:
        network: whose weights are copied.
        names: of its stacks, in their order.
    """

    def __init__(self, network: OKDHP, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        for name, module in network.named_children():
            if name in self._modules or name.removeprefix("_").partition("_")[2] in names:
                self.add_module(name, copy.deepcopy(module))
        self.train(network.training)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W), H and W multiples of 64, to heatmaps (B, joints, H/4, W/4)."""
        return self._run_stacks(self.features(images), self.names)[0][-1]


class PreActivationBottleneck(nn.Module):
    """x + conv1x1(conv3x3(conv1x1(x))), batch norm and ReLU before each; x through a 1x1 convolution to fit.

    Source:
        He et al., Identity Mappings in Deep Residual Networks, ECCV 2016.
    """

    def __init__(self, in_channels: int, planes: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(in_channels), nn.Conv2d(in_channels, planes, 1)
        self.bn2, self.conv2 = nn.BatchNorm2d(planes), nn.Conv2d(planes, planes, 3, padding=1)
        self.bn3, self.conv3 = nn.BatchNorm2d(planes), nn.Conv2d(planes, 2 * planes, 1)
        fits = in_channels == 2 * planes
        self.downsample = None if fits else nn.Sequential(nn.Conv2d(in_channels, 2 * planes, 1))

    def forward(self, input: Tensor) -> Tensor:
        hidden = self.conv1(self.bn1(input).relu())
        hidden = self.conv2(self.bn2(hidden).relu())
        hidden = self.conv3(self.bn3(hidden).relu())
        hidden += input if self.downsample is None else self.downsample(input)
        return hidden


class Hourglass(nn.Module):
    """Halves the features `_DEPTH` times and adds up what was seen at every size on the way back.

    Source:
        Newell et al., Stacked Hourglass Networks for Human Pose Estimation, ECCV 2016.
    """

    def __init__(self) -> None:
        super().__init__()
        # Of each size: beside, before and after the smaller one; of the smallest also in its place.
        self.hg = nn.ModuleList(
            nn.ModuleList(
                nn.Sequential(PreActivationBottleneck(_CHANNELS, _CHANNELS // 2)) for _ in range(3 + (size == 0))
            )
            for size in range(_DEPTH)
        )

    def forward(self, input: Tensor, size: int = _DEPTH - 1) -> Tensor:
        stages: nn.ModuleList = self.hg[size]  # type: ignore[assignment]
        low = stages[1](F.max_pool2d(input, 2))
        low = self.forward(low, size - 1) if size else stages[3](low)
        return stages[0](input) + F.interpolate(stages[2](low), scale_factor=2.0, mode="nearest")


class OKDHPLoss(NamedTuple):
    """The three parts of the objective; `total` is what is minimised."""

    stacks: Tensor
    ensemble: Tensor
    distillation: Tensor

    @property
    def total(self) -> Tensor:
        return self.stacks + self.ensemble + self.distillation


def okdhp_loss(
    heatmaps: Heatmaps,
    target: Tensor,
    weight: Tensor,
    epoch: float,
    ensemble_weight: float = 6.0,
    distillation_weight: float = 5.0,
    ramp: float = 60.0,
) -> OKDHPLoss:
    """Every stack against the truth and against the ensemble, the ensemble against the truth.

        sum over s of mse(H_s, G) + ensemble_weight * mse(E, G)
        + distillation_weight * exp(-5 (1 - epoch / ramp)^2) * sum over s of kl(E || H_s)

    with mse half the mean squared error over all pixels, and kl the divergence of two joints' maps, each made a
    distribution by a softmax over its pixels, summed over joints, divided by B times the pixels. Maps are multiplied
    by the joint's weight first. The teacher E gets the gradient of kl, too.

    Args:
        heatmaps: of OKDHP.
        target: (B, joints, h, w).
        weight: (B, joints), 1 where the joint is annotated, else 0.
        epoch: from 0.
        ensemble_weight, distillation_weight: factors; the released configuration's.
        ramp: epochs until the distillation has its full weight; 0 for at once.

    Returns:
        The parts, each already times its factors.

    Raises:
        ValueError: target or weight of other shapes.

    Source:
        Li et al., Online Knowledge Distillation for Efficient Pose Estimation, ICCV 2021; the ramp is that of Laine
        and Aila, Temporal Ensembling, ICLR 2017; factors and normalisation are those of the released code.
    """
    shape = tuple(heatmaps.ensemble.shape)
    if tuple(target.shape) != shape or tuple(weight.shape) != shape[:2]:
        raise ValueError(
            f"okdhp_loss: target must be (B, joints, h, w) = {shape} and weight (B, joints) = {shape[:2]}, "
            f"got {tuple(target.shape)} and {tuple(weight.shape)}"
        )
    scale = weight[:, :, None, None]
    hard = torch.stack([joints_mse_loss(stack, target, weight, half=True) for stack in heatmaps.stacks]).sum()
    of_ensemble = joints_mse_loss(heatmaps.ensemble, target, weight, half=True)
    teacher = (heatmaps.ensemble * scale).flatten(2).log_softmax(2)
    students = torch.stack([(stack * scale).flatten(2).log_softmax(2) for stack in heatmaps.stacks])
    soft = F.kl_div(students, teacher.expand_as(students), reduction="sum", log_target=True)
    soft = soft / (shape[0] * shape[2] * shape[3])
    ramped = math.exp(-5 * (1 - min(max(epoch / ramp, 0.0), 1.0)) ** 2) if ramp else 1.0
    return OKDHPLoss(hard, ensemble_weight * of_ensemble, distillation_weight * ramped * soft)


def okdhp(
    stacks: int = 4, branches: int = 3, joints: int = 16, shared: int = 0, published_ensemble: bool = False
) -> OKDHP:
    """OKDHP of hourglasses with random weights; arguments as the class has them."""
    return OKDHP(stacks, branches, joints, shared, published_ensemble)


def _conv_bn_relu(kernel_size: int) -> nn.Sequential:
    conv = nn.Conv2d(_CHANNELS, _CHANNELS, kernel_size, padding=kernel_size // 2)
    return nn.Sequential(conv, nn.BatchNorm2d(_CHANNELS), nn.ReLU())
