# SPDX-License-Identifier: Apache-2.0
"""Errors of lifted poses: against naive loops, and against what they must be by construction."""

import numpy as np
import pytest
from flexor.models.lift_metrics import by_action, mpjpe, procrustes_mpjpe, report
from scipy.spatial.transform import Rotation


def poses(count=50, joints=17):
    rng = np.random.default_rng(0)
    return rng.standard_normal((count, joints, 3)), rng.standard_normal((count, joints, 3))


def naive_procrustes(prediction, target):
    """One pose: scipy's best rotation, then the best scale for it."""
    p, t = prediction - prediction.mean(0), target - target.mean(0)
    rotated = Rotation.align_vectors(t, p)[0].apply(p)
    scale = (rotated * t).sum() / (p**2).sum()
    return np.mean([np.sqrt(((scale * a - b) ** 2).sum()) for a, b in zip(rotated, t, strict=True)])


def test_mpjpe_is_the_naive_mean():
    prediction, target = poses()
    for found, p, t in zip(mpjpe(prediction, target), prediction, target, strict=True):
        naive = sum(np.sqrt((((p[j] - p[0]) - (t[j] - t[0])) ** 2).sum()) for j in range(17)) / 17
        assert found == pytest.approx(naive, rel=1e-12)
    assert mpjpe(prediction, target, root=3) == pytest.approx(
        mpjpe(prediction + 7, target - prediction[:, 3:4], root=3), rel=1e-9
    )


@pytest.mark.parametrize("joints", [3, 4, 17])
def test_procrustes_is_the_naive_one(joints):
    prediction, target = poses(joints=joints)
    with np.errstate(all="raise"):
        found = procrustes_mpjpe(prediction, target)
    if joints == 3:
        return  # in a plane there are two best rotations, and scipy warns
    assert found == pytest.approx([naive_procrustes(p, t) for p, t in zip(prediction, target, strict=True)], rel=1e-8)


def test_procrustes_undoes_similarities_but_not_reflections():
    prediction, target = poses()
    turned = 2.5 * target @ Rotation.random(50, rng=np.random.default_rng(1)).as_matrix() + 3.0
    assert procrustes_mpjpe(turned, target).max() < 1e-12
    assert procrustes_mpjpe(target * [1, 1, -1], target).min() > 0.1
    assert (procrustes_mpjpe(prediction, target) <= 1.05 * mpjpe(prediction, target)).all()


def test_procrustes_of_one_point():
    _, target = poses()
    error = procrustes_mpjpe(np.ones_like(target), target)
    assert error == pytest.approx(np.linalg.norm(target - target.mean(1, keepdims=True), axis=-1).mean(-1))


def test_actions_count_alike():
    prediction, target = poses(4)
    actions = ["walk", "bow", "walk", "walk"]
    errors = mpjpe(prediction, target)
    assert by_action(errors, actions) == pytest.approx({"bow": errors[1], "walk": errors[[0, 2, 3]].mean()})
    found = report(prediction, target, actions)["p1"]
    assert found["mean_over_actions_mm"] == pytest.approx(1000 * (errors[1] + errors[[0, 2, 3]].mean()) / 2)
    assert found["mean_over_poses_mm"] == pytest.approx(1000 * errors.mean())


def test_errors():
    with pytest.raises(ValueError, match=r"mpjpe: .* one shape \(N, J, 3\), got \(2, 17, 3\) and \(2, 16, 3\)"):
        mpjpe(np.zeros((2, 17, 3)), np.zeros((2, 16, 3)))
    with pytest.raises(ValueError, match=r"procrustes_mpjpe: .* got \(17, 3\) and \(17, 3\)"):
        procrustes_mpjpe(np.zeros((17, 3)), np.zeros((17, 3)))
