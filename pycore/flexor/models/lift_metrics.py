# SPDX-License-Identifier: Apache-2.0
"""Errors of 3-D poses: protocols 1 and 2 of Human3.6M, by action."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Doubles = NDArray[np.float64]


def mpjpe(prediction: ArrayLike, target: ArrayLike, root: int = 0) -> Doubles:
    """Protocol 1: mean distance of the joints after the root joints were moved onto each other.

        e_n = 1/J sum_j || (p_nj - p_n,root) - (t_nj - t_n,root) ||

    Args:
        prediction, target: (N, J, 3), in one unit.
        root: the joint that is aligned.

    Returns:
        (N,) float64, in that unit.

    Raises:
        ValueError: shapes that differ or are not (N, J, 3).
    """
    p, t = _pair("mpjpe", prediction, target)
    return np.linalg.norm(p - p[:, root, None] - t + t[:, root, None], axis=-1).mean(-1)


def procrustes_mpjpe(prediction: ArrayLike, target: ArrayLike) -> Doubles:
    """Protocol 2: mean distance of the joints after the best rotation, scale and translation of each prediction.

        e_n = 1/J sum_j || s R (p_nj - mean p_n) + mean t_n - t_nj ||,  s, R minimising the sum of squares, det R = 1

    Args:
        prediction, target: (N, J, 3), in one unit.

    Returns:
        (N,) float64, in the target's unit.

    Raises:
        ValueError: shapes that differ or are not (N, J, 3).

    Source:
        Umeyama, Least-squares estimation of transformation parameters between two point patterns, PAMI 1991.
    """
    p, t = _pair("procrustes_mpjpe", prediction, target)
    p, t = p - p.mean(1, keepdims=True), t - t.mean(1, keepdims=True)
    u, singular, vt = np.linalg.svd(np.einsum("nji,njk->nik", p, t))
    singular[:, -1] *= np.sign(np.linalg.det(u @ vt))
    vt[:, -1] *= np.sign(np.linalg.det(u @ vt))[:, None]
    spread = np.square(p).sum((1, 2))
    scale = np.divide(singular.sum(-1), spread, out=np.zeros_like(spread), where=spread > 0)
    return np.linalg.norm(scale[:, None, None] * (p @ (u @ vt)) - t, axis=-1).mean(-1)


def by_action(errors: Doubles, actions: Sequence[str]) -> dict[str, float]:
    """The mean error of each action's poses, in the actions' alphabetical order."""
    names, index = np.unique(np.asarray(actions), return_inverse=True)
    sums = np.bincount(index, weights=errors) / np.bincount(index)
    return dict(zip(names.tolist(), sums.tolist(), strict=True))


def report(prediction: ArrayLike, target: ArrayLike, actions: Sequence[str]) -> dict[str, dict]:
    """Both protocols for poses in metres, in millimetres: by action, their mean over actions, and over poses."""
    found = {}
    for name, errors in (("p1", mpjpe(prediction, target)), ("p2", procrustes_mpjpe(prediction, target))):
        actionwise = by_action(1000 * errors, actions)
        found[name] = {
            "mean_over_actions_mm": float(np.mean(list(actionwise.values()))),
            "mean_over_poses_mm": float(1000 * errors.mean()),
            "by_action_mm": actionwise,
        }
    return found


def _pair(name: str, prediction: ArrayLike, target: ArrayLike) -> tuple[Doubles, Doubles]:
    p, t = np.asarray(prediction, np.float64), np.asarray(target, np.float64)
    if p.shape != t.shape or p.ndim != 3 or p.shape[2] != 3:
        raise ValueError(f"{name}: prediction and target must be of one shape (N, J, 3), got {p.shape} and {t.shape}")
    return p, t
