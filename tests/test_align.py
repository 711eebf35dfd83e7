# SPDX-License-Identifier: Apache-2.0
"""The alignment on a real photograph moved by a known flow."""

import numpy as np
import pytest
import torch
from flexor.models.align import STAGES, AlignSettings, align
from flexor.ops import warp2d
from skimage import data

SETTINGS = AlignSettings(iterations=30)


def photograph(height=96, width=128):
    return torch.from_numpy(data.astronaut()[:height, 160 : 160 + width].copy()).permute(2, 0, 1)[None] / 255


def known_flow(height=96, width=128):
    """A turn, a shift and a bulge: up to about 6 pixels, (x, y)."""
    y, x = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    y, x = y - height / 2, x - width / 2
    bulge = torch.exp(-(x**2 + y**2) / (2 * 18**2))
    return torch.stack([2.5 - 0.03 * y + 3 * bulge, -1.5 + 0.03 * x - 2 * bulge])[None]


def psnr(a, b, where=None):
    error = (a - b).square().mean(1, keepdim=True)
    return -10 * (error.mean() if where is None else error[where].mean()).log10().item()


@pytest.fixture(scope="module")
def pair():
    neighbour = photograph()
    return warp2d(neighbour, known_flow(), padding_mode="border"), neighbour


@pytest.fixture(scope="module")
def alignment(pair):
    return align(*pair, SETTINGS)


def test_every_stage_comes_closer(pair, alignment):
    key, neighbour = pair
    quality = [psnr(key, frame) for frame in (neighbour, *(alignment.frames[stage] for stage in STAGES))]
    assert quality[0] + 2 < quality[1] < quality[2]
    assert quality[3] > quality[0] + 10


def test_tiles_never_seen_improve_too(pair, alignment):
    key, neighbour = pair
    unseen = alignment.held_out
    assert 0.02 < unseen.float().mean() < 0.1
    assert psnr(key, alignment.frames["deformable"], unseen) > psnr(key, neighbour, unseen) + 5


def test_flow_is_the_one_applied(alignment):
    inside = (..., slice(12, -12), slice(12, -12))
    missed = (alignment.flow - known_flow())[inside].norm(dim=1)
    assert missed.median() < 0.25
    assert missed.mean() < 0.6


def test_it_moves_pixels_and_never_paints(pair):
    """From a neighbour of one colour only that colour can come, however much the key frame differs."""
    key, _ = pair
    colour = torch.tensor([0.9, 0.4, 0.1]).view(1, 3, 1, 1)
    painted = align(key, colour.expand_as(key).contiguous(), AlignSettings(iterations=5))
    for frame in painted.frames.values():
        torch.testing.assert_close(frame, colour.expand_as(frame), rtol=0, atol=1e-5)


def test_colours_stay_inside_the_neighbours_range(pair, alignment):
    _, neighbour = pair
    for frame in alignment.frames.values():
        assert frame.amin() >= neighbour.amin() - 1e-5
        assert frame.amax() <= neighbour.amax() + 1e-5


def test_same_seed_same_bits(pair):
    settings = AlignSettings(iterations=3)
    first, second = align(*pair, settings), align(*pair, settings)
    assert torch.equal(first.frames["deformable"], second.frames["deformable"])
    assert torch.equal(first.flow, second.flow)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 47), (63, 129)])
def test_odd_sizes(height, width):
    key, neighbour = photograph(height, width), photograph(height, width).roll(1, 3)
    found = align(key, neighbour, AlignSettings(iterations=2))
    assert found.flow.shape == (1, 2, height, width)
    assert all(frame.shape == key.shape and frame.isfinite().all() for frame in found.frames.values())


def test_progress_counts_every_step(pair):
    seen = []
    align(*pair, AlignSettings(iterations=2), lambda *step: seen.append(step))
    assert tuple(dict.fromkeys(stage for stage, _, _ in seen)) == STAGES
    for stage in STAGES:
        steps = [(done, total) for name, done, total in seen if name == stage]
        assert [done for done, _ in steps] == list(range(1, steps[0][1] + 1))


def test_errors(pair):
    key, neighbour = pair
    with pytest.raises(ValueError, match=r"one shape, got \(1, 3, 96, 128\) and \(1, 3, 96, 127\)"):
        align(key, neighbour[..., 1:])
    with pytest.raises(ValueError, match=r"H and W at least 32, got \(1, 3, 96, 31\)"):
        align(key[..., :31], neighbour[..., :31])
    with pytest.raises(ValueError, match="iterations must be at least 1, got 0"):
        AlignSettings(iterations=0)
    with pytest.raises(ValueError, match=r"held_out must be in \[0, 1\), got 1"):
        AlignSettings(held_out=1)


def test_nothing_held_out(pair):
    found = align(*pair, AlignSettings(iterations=1, held_out=0))
    assert not np.asarray(found.held_out).any()
