# SPDX-License-Identifier: Apache-2.0
"""FAMI-Pose's objective: values worked by hand, the coefficients, and where gradients flow."""

import math

import pytest
import torch
from flexor.models.pose.mutual_information import (
    corrected_divergence,
    information_loss,
    information_terms,
    released_divergence,
)
from flexor.testing import assert_close
from torch import nn

# One map of two pixels; at temperature 1 their softmaxes are (3/4, 1/4) and (1/2, 1/2).
FIRST = torch.tensor([math.log(3), 0.0]).view(1, 1, 1, 2)
SECOND = torch.zeros(1, 1, 1, 2)


def test_released_by_hand():
    """t log t - p, and the mean over the pixels: ((-0.5 ln 2 - 0.5 * 0.75) + (-0.5 ln 2 - 0.5 * 0.25)) / 2."""
    assert_close(released_divergence(FIRST, SECOND, 1.0), torch.tensor(-0.5 * math.log(2) - 0.25), 1e-6)


def test_released_is_what_kl_div_makes_of_probabilities():
    first, second = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    p, t = ((m.reshape(6, 20) / 0.05).softmax(1) for m in (first, second))
    with pytest.warns(UserWarning, match="reduction"):
        exact = nn.functional.kl_div(p, t, reduction="mean")
    assert_close(released_divergence(first, second), exact, 1e-5)


def test_corrected_by_hand():
    """0.5 ln(0.5 / 0.75) + 0.5 ln(0.5 / 0.25) = 0.5 ln(4 / 3), summed over the pixels."""
    assert_close(corrected_divergence(FIRST, SECOND, 1.0), torch.tensor(0.5 * math.log(4 / 3)), 1e-6)
    two = torch.cat((FIRST, SECOND), 1)
    assert_close(corrected_divergence(two, two.flip(1) * 0, 1.0), torch.tensor(0.25 * math.log(4 / 3)), 1e-6)


def test_only_the_corrected_one_is_a_divergence():
    maps, others = torch.randn(2, 3, 6, 5), torch.randn(2, 3, 6, 5)
    assert corrected_divergence(maps, maps).abs() < 1e-6 < corrected_divergence(maps, others)
    assert released_divergence(maps, maps) < -1e-4


@pytest.mark.parametrize("divergence", [released_divergence, corrected_divergence])
def test_gradients_reach_the_second_maps_alone(divergence):
    first, second = (torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    divergence(first, second).backward()
    assert first.grad is None and second.grad.abs().max() > 0
    torch.autograd.gradcheck(lambda maps: divergence(first.detach(), maps, 0.5), second)


@pytest.mark.parametrize("divergence", [released_divergence, corrected_divergence])
def test_gradients_are_finite_where_probabilities_vanish(divergence):
    """At a temperature of 0.05 a difference of 10 is e^-200, which float32 rounds to 0."""
    second = torch.tensor([10.0, 0.0, 0.0]).view(1, 1, 1, 3).requires_grad_()
    value = divergence(torch.zeros(1, 1, 1, 3), second)
    value.backward()
    assert value.isfinite() and second.grad.isfinite().all()


def test_terms_in_the_official_order():
    head = nn.Conv2d(3, 2, 1)
    heatmaps = torch.randn(1, 2, 4, 5, requires_grad=True)
    key, merged, joined = (torch.randn(1, 3, 4, 5, requires_grad=True) for _ in range(3))
    for name, divergence in (("as_released", released_divergence), ("corrected", corrected_divergence)):
        terms = information_terms(head, heatmaps, key, merged, joined, name)
        exact = [
            divergence(head(joined), heatmaps), divergence(key, joined), divergence(head(merged), heatmaps),
            divergence(merged, joined), divergence(head(key), heatmaps), divergence(key, joined),
        ]  # fmt: skip
        for a, b in zip(terms, exact, strict=True):
            assert_close(a, b.detach(), 1e-6)
    information_loss(terms).backward()
    assert key.grad is None and merged.grad is None and head.weight.grad is None
    assert heatmaps.grad.abs().max() > 0 and joined.grad.abs().max() > 0


def test_loss_and_its_net_coefficients():
    terms = [torch.tensor(float(10**i)) for i in range(6)]
    assert_close(information_loss(terms), torch.tensor(0.5 * (-0.1 + 1 + 100 - 1000 + 10000 - 100000)), 1e-6)
    y_joined, key_joined, y_merged, merged_joined, y_key = (torch.tensor(v) for v in (1.0, 2.0, 3.0, 4.0, 5.0))
    found = information_loss([y_joined, key_joined, y_merged, merged_joined, y_key, key_joined], alpha=1, beta=0.25)
    assert_close(found, torch.tensor(-0.25 * 1 + (0.25 - 1) * 2 + 3 - 4 + 5), 1e-6)


def test_errors():
    maps = torch.zeros(1, 2, 3, 4)
    with pytest.raises(ValueError, match=r"first and second must be \(B, C, h, w\) of the same shape, got"):
        released_divergence(maps, maps[:, :1])
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        corrected_divergence(maps, maps, 0)
    with pytest.raises(ValueError, match="terms must be the 6 of information_terms, got 5"):
        information_loss([torch.zeros(())] * 5)
