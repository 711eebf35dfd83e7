# SPDX-License-Identifier: Apache-2.0
"""FAMI-Pose's mutual-information objective: as its released code computes it, and with the divergence corrected.

The paper maximises I(y; z~ | z), the information on the heatmaps y that the joined features z~ add to those of the key
frame z. The released code replaces every term by a divergence between softmaxes over the pixels of maps, at temperature
0.05:

    I(f; y) -> D(head(f), y) for features and heatmaps, with head the backbone's frozen final layer
    I(f; g) -> D(f, g) for two features

and the gradient flows through the second argument only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

__all__ = ["corrected_divergence", "information_loss", "information_terms", "released_divergence"]

Divergence = Literal["as_released", "corrected"]

TEMPERATURE = 0.05
ALPHA, BETA = 0.5, 0.1  # of the loss; the released trainer's


def released_divergence(first: Tensor, second: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """What the released code takes for the divergence of two stacks of maps.

        mean over pixels, channels and samples of t (log t - p),    p = softmax(first / T), t = softmax(second / T)

    It passes probabilities p where torch's `kl_div` expects their logarithms, so that the value is no divergence: it is
    not 0 for equal maps, and mostly negative. The mean is over pixels too, not the sum.

    Args:
        first: (B, C, h, w); a constant: no gradient flows to it.
        second: (B, C, h, w).
        temperature: T; a smaller one makes the softmaxes more peaked.

    Returns:
        A scalar.

    Raises:
        ValueError: maps of different shapes, or a temperature that is not positive.

    Source:
        github.com/Pose-Group/FAMI-Pose, `feat_label_mi_estimation` and `feat_feat_mi_estimation` of Alignment_V15.
    """
    p, t = _flat(first, second, temperature)
    log_t = t.log_softmax(1)  # finite where t itself is rounded to 0: kl_div's gradient would be NaN there
    return (log_t.exp() * (log_t - p.softmax(1))).mean()


def corrected_divergence(first: Tensor, second: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """The Kullback-Leibler divergence between the pixels of two stacks of maps.

        mean over channels and samples of sum over pixels of t (log t - log p),    p, t as in `released_divergence`

    Not published. 0 for equal maps, else positive.

    Args:
        first, second, temperature: as for `released_divergence`; no gradient flows to `first` either.

    Returns:
        A scalar.

    Raises:
        ValueError: maps of different shapes, or a temperature that is not positive.
    """
    p, t = _flat(first, second, temperature)
    return F.kl_div(p.log_softmax(1), t.log_softmax(1), reduction="batchmean", log_target=True)


DIVERGENCES: dict[Divergence, Callable[[Tensor, Tensor], Tensor]] = {
    "as_released": released_divergence,
    "corrected": corrected_divergence,
}


def information_terms(
    head: Callable[[Tensor], Tensor],
    heatmaps: Tensor,
    key: Tensor,
    merged: Tensor,
    joined: Tensor,
    divergence: Divergence = "as_released",
) -> list[Tensor]:
    """The six terms, in the official model's order.

        I(y; z~), I(z; z~), I(y; s), I(s; z~), I(y; z), I(z; z~)

    Args:
        head: the backbone's final layer, features to heatmaps.
        heatmaps: y (B, joints, h, w), predicted.
        key: z (B, C, h, w), the key frame's features.
        merged: s (B, C, h, w), the merged features of the supporting frames.
        joined: z~ (B, C, h, w), the features that the heatmaps were made from.
        divergence: "as_released" or "corrected".

    Returns:
        Six scalars; the second and the sixth are the same.

    Source:
        Liu et al., CVPR 2022, section 3.4; `Alignment_V15.forward` of the released code.
    """
    distance = DIVERGENCES[divergence]
    of_key = distance(key, joined)
    return [
        distance(head(joined.detach()), heatmaps),
        of_key,
        distance(head(merged.detach()), heatmaps),
        distance(merged, joined),
        distance(head(key.detach()), heatmaps),
        of_key,
    ]


def information_loss(terms: Sequence[Tensor], alpha: float = ALPHA, beta: float = BETA) -> Tensor:
    """What training adds to the mean square error of the heatmaps.

        alpha (-beta I(y; z~) + beta I(z; z~) + I(y; s) - I(s; z~) + I(y; z) - I(z; z~))

    I(z; z~) stands there twice: its net coefficient is alpha (beta - 1).

    Args:
        terms: the six of `information_terms`.
        alpha, beta: weights.

    Returns:
        A scalar.

    Raises:
        ValueError: not six terms.

    Source:
        The released trainer, `AlignmentMIFunction_Term6_V1`.
    """
    if len(terms) != 6:
        raise ValueError(f"information_loss: terms must be the 6 of information_terms, got {len(terms)}")
    label_joined, key_joined, label_merged, merged_joined, label_key, key_joined_again = terms
    gained = -beta * label_joined + beta * key_joined
    return alpha * (gained + label_merged - merged_joined + label_key - key_joined_again)


def _flat(first: Tensor, second: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Both as (maps, pixels) over the temperature, the first as a constant."""
    if first.shape != second.shape or first.dim() != 4:
        raise ValueError(
            f"information: first and second must be (B, C, h, w) of the same shape, got {tuple(first.shape)} and "
            f"{tuple(second.shape)}"
        )
    if not temperature > 0:
        raise ValueError(f"information: temperature must be positive, got {temperature}")
    return first.detach().flatten(2).flatten(0, 1) / temperature, second.flatten(2).flatten(0, 1) / temperature
