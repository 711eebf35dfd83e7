# SPDX-License-Identifier: Apache-2.0
"""Decoding and targets: against mmpose and FAMI-Pose (data/make_pose_geometry_golden.py), by hand, and each other."""

import math
from pathlib import Path

import numpy as np
import pose_geometry_cases as cases
import pytest
import torch
from flexor.models.pose.decode import (
    METHODS,
    decode_heatmaps,
    decode_simcc,
    flip_heatmaps,
    flip_simcc,
    heatmap_to_image,
)
from flexor.models.pose.geometry import crop_affine, to_crop
from flexor.models.pose.skeleton import COCO17, PENN13
from flexor.models.pose.targets import gaussian_targets, joints_mse_loss, simcc_loss, simcc_targets
from hypothesis import given, settings
from hypothesis import strategies as st

GOLDEN = np.load(Path(__file__).parent / "data" / "pose_geometry_golden.npz")


@pytest.mark.parametrize("method", METHODS[1:])
@pytest.mark.parametrize("sigma", cases.SIGMAS)
def test_peaks_as_mmpose_decodes_them(method, sigma):
    maps = torch.from_numpy(cases.peaked_maps(sigma))[None]
    points, scores = decode_heatmaps(maps, method, blur=cases.SIGMAS[sigma])
    assert points[0].numpy() == pytest.approx(GOLDEN[f"peaked{sigma}/{method}"], abs=3e-5)
    assert torch.equal(scores[0], maps[0].amax((1, 2)))


@pytest.mark.parametrize("method", METHODS[1:])
def test_faint_peaks_as_mmpose_decodes_them(method):
    points, _ = decode_heatmaps(torch.from_numpy(cases.peaked_maps(2) * cases.FAINT)[None], method)
    assert points[0].numpy() == pytest.approx(GOLDEN[f"faint/{method}"], abs=3e-5)


@pytest.mark.parametrize("method", METHODS[1:])
def test_noise_as_mmpose_decodes_it(method):
    """Where the published step is long, the Hessian is nearly singular and float32 has no digits left to compare."""
    maps, expected = torch.from_numpy(cases.noise_maps())[None], GOLDEN[f"noise/{method}"]
    step = np.linalg.norm(expected - decode_heatmaps(maps, "argmax")[0][0].numpy(), axis=1)
    assert (step < 2).sum() > 30
    points = decode_heatmaps(maps, method)[0][0].numpy()
    assert points[step < 2] == pytest.approx(expected[step < 2], abs=1e-4)


def test_quarter_back_in_the_image_as_released():
    points, _ = decode_heatmaps(torch.from_numpy(cases.peaked_maps(2))[None])
    box = [[100 - 90 / 1.25, 50 - 120 / 1.25, 180 / 1.25, 240 / 1.25]]  # center (100, 50), extent (180, 240)
    assert heatmap_to_image(points, box, (48, 36)).numpy()[0] == pytest.approx(GOLDEN["peaked2/image"], abs=1e-4)


def test_quarter_by_hand():
    maps = torch.zeros(1, 4, 6, 7)
    maps[0, 0, 3, 2], maps[0, 0, 3, 3], maps[0, 0, 2, 2] = 1, 0.5, 0.25  # right of it is higher, above is higher
    maps[0, 1, 3, 3] = 1  # alike on all sides
    maps[0, 2, 3, 1], maps[0, 2, 3, 2] = 1, 0.5  # x = 1 is not inside
    maps[0, 3, 4, 5], maps[0, 3, 4, 6], maps[0, 3, 5, 5] = 1, 0.5, 0.5  # x = w - 2 and y = h - 2 are
    assert decode_heatmaps(maps)[0][0].tolist() == [[2.25, 2.75], [3, 3], [1, 3], [5.25, 4.25]]
    assert decode_heatmaps(maps, "argmax")[0][0].tolist() == [[2, 3], [3, 3], [1, 3], [5, 4]]


@pytest.mark.parametrize("method", ["dark", "udp"])
@settings(max_examples=25, deadline=None)
@given(x=st.floats(8, 27), y=st.floats(8, 39), height=st.floats(0.1, 1))
def test_bells_are_found_between_pixels(method, x, y, height):
    """log of a blurred bell is a paraboloid, whose top one Newton step finds."""
    grid = torch.arange(48.0, dtype=torch.float64)
    maps = height * torch.exp(-((grid - y)[:, None].square() + (grid[:36] - x).square()) / 8)[None, None]
    assert decode_heatmaps(maps, method)[0].flatten().tolist() == pytest.approx([x, y], abs=0.02)


def test_udp_at_borders_is_mirrored():
    maps = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    maps[0, 0, :, 0] = torch.exp(-(torch.arange(9.0, dtype=torch.float64) - 4.25).square() / 8)
    point = decode_heatmaps(maps, "udp", blur=3)[0][0, 0]
    assert point[0] == 0 and point[1] == pytest.approx(4.25, abs=0.02)
    turned = decode_heatmaps(maps.flip(2, 3), "udp", blur=3)[0][0, 0]
    assert turned.tolist() == pytest.approx((8 - point).tolist(), abs=1e-9)


def test_maps_without_a_peak():
    maps = torch.full((1, 2, 5, 6), -1.0)
    maps[0, 0, 2, 3] = 0
    for method in METHODS:
        assert decode_heatmaps(maps, method)[0][0].tolist() == [[3, 2], [0, 0]]
    assert not decode_heatmaps(maps, "argmax", nothing_found="zero")[0].any()
    assert (decode_heatmaps(maps, "dark", nothing_found="minus_one")[0] == -1).all()
    assert decode_heatmaps(maps)[1].tolist() == [[0, -1]]


@pytest.mark.parametrize("method", METHODS)
def test_maps_with_nan_and_infinity(method):
    maps = torch.from_numpy(cases.peaked_maps(2))[None, :4].clone()
    clean, scores = decode_heatmaps(maps, method)
    maps[0, 1] = torch.nan
    maps[0, 2, 0, 0] = torch.nan
    maps[0, 3, 7, 8] = torch.inf
    points, found = decode_heatmaps(maps, method)
    assert torch.equal(points[0, 0], clean[0, 0]) and torch.equal(found[0, :1], scores[0, :1])
    assert points[0, 1].isnan().all() and found[0, 1] == 0
    assert points[0, 2].tolist() == pytest.approx(clean[0, 2].tolist(), abs=1e-5)
    assert (points[0, 3] - torch.tensor([8.0, 7.0])).abs().max() <= 0.25 and found[0, 3] == torch.inf


@pytest.mark.parametrize("method", METHODS)
def test_batches(method):
    maps = torch.from_numpy(cases.peaked_maps(2)).view(2, 12, 48, 36)
    points, scores = decode_heatmaps(maps, method)
    for item in range(2):
        alone = decode_heatmaps(maps[item : item + 1], method)
        assert points[item].numpy() == pytest.approx(alone[0][0].numpy(), abs=1e-5) and torch.equal(
            scores[item], alone[1][0]
        )
    strided = maps.transpose(2, 3).contiguous().transpose(2, 3)
    assert decode_heatmaps(strided, method)[0].numpy() == pytest.approx(points.numpy(), abs=1e-5)
    for shape in ((0, 17, 8, 6), (2, 0, 8, 6)):
        points, scores = decode_heatmaps(torch.zeros(shape), method)
        assert points.shape == (*shape[:2], 2) and scores.shape == shape[:2]
    assert decode_heatmaps(torch.rand(1, 1, 1, 1), method)[0].tolist() == [[[0, 0]]]
    assert decode_heatmaps(maps.half(), method)[0].dtype == torch.float32
    assert decode_heatmaps(maps.double(), method)[1].dtype == torch.float64


def test_steps_can_be_bounded():
    maps = torch.from_numpy(cases.noise_maps())[None]
    free, bounded = decode_heatmaps(maps, "dark")[0], decode_heatmaps(maps, "dark", max_step=1)[0]
    pixel = decode_heatmaps(maps, "argmax")[0]
    far = (free - pixel).norm(dim=-1) > 1
    assert far.any() and torch.equal(bounded, torch.where(far[..., None], pixel, free))


def test_simcc_as_mmpose_decodes_it():
    x, y = map(torch.from_numpy, cases.simcc_vectors())
    points, scores = decode_simcc(x, y, nothing_found="minus_one")
    assert np.array_equal(points, GOLDEN["simcc/points"]) and np.array_equal(scores, GOLDEN["simcc/scores"])
    kept, zero = decode_simcc(x, y)[0], decode_simcc(x, y, nothing_found="zero")[0]
    assert zero[0, 0].tolist() == [0, 0] and kept[1, 2, 0] == x[1, 2].argmax() / 2
    x[2, 3] = torch.nan
    points, scores = decode_simcc(x, y)
    assert points[2, 3].isnan().all() and scores[2, 3] == 0 and points.isnan().sum() == 2
    assert decode_simcc(x[:0], y[:0])[0].shape == (0, 17, 2)


def test_udp_there_and_back():
    """An image point, its UDP crop's bell, and back: by (w - 1) / extent, nothing is lost but the decoding's error."""
    box, points = [[40, 30, 60, 90]], torch.tensor([[[66.0, 70.0], [71.3, 55.8]]])
    small = to_crop(points, crop_affine(box, (64, 48), udp=True))
    by_hand = (points - torch.tensor([70, 75])) / (torch.tensor([67.5, 90]) * 1.25) * torch.tensor([47, 63])
    assert small.numpy() == pytest.approx((by_hand + torch.tensor([23.5, 31.5])).numpy(), abs=1e-5)
    joints = to_crop(points, crop_affine(box, (256, 192), udp=True))
    maps, _ = gaussian_targets(joints, torch.ones(1, 2), (256, 192), (64, 48), kind="udp")
    back = heatmap_to_image(decode_heatmaps(maps, "udp")[0], box, (64, 48), udp=True)
    assert back.numpy() == pytest.approx(points.numpy(), abs=0.05)


def test_flip_test():
    maps = torch.rand(2, 17, 6, 5)
    flipped = maps.flip(3)[:, list(COCO17.mirror)]
    assert torch.equal(flip_heatmaps(flipped, COCO17, shift=False), maps)
    shifted = flip_heatmaps(flipped, COCO17, shift=True)
    assert torch.equal(shifted[..., 1:], maps[..., :-1]) and torch.equal(shifted[..., 0], maps[..., 0])
    x, y = torch.rand(2, 17, 12), torch.rand(2, 17, 16)
    back_x, back_y = flip_simcc(x.flip(2)[:, list(COCO17.mirror)], y[:, list(COCO17.mirror)], COCO17)
    assert torch.equal(back_x, x) and torch.equal(back_y, y)


def test_why_the_shift():
    """The bell of a mirrored joint, mirrored back, is 3/4 pixel left of the joint's with biased crops, and on it with
    UDP: stride 4 and stride 255/63."""
    joints, seen = torch.tensor([[[100.0, 120.0]]]), torch.ones(1, 1)
    mirrored = joints.clone()
    mirrored[..., 0] = 255 - joints[..., 0]
    for kind, apart in (("unbiased", 0.75), ("udp", 0)):
        size = ((256, 256), (64, 64))
        maps, other = (gaussian_targets(j, seen, *size, kind=kind)[0] for j in (joints, mirrored))
        places = [decode_heatmaps(m, "udp")[0][0, 0, 0] for m in (maps, other.flip(3))]
        assert places[0] - places[1] == pytest.approx(apart, abs=0.02)


@pytest.mark.parametrize("kind", ["biased", "unbiased", "udp"])
def test_targets_as_mmpose_draws_them(kind):
    joints, visible = map(torch.from_numpy, cases.joints())
    maps, weights = gaussian_targets(joints, visible, (256, 192), (64, 48), kind=kind)
    assert maps[0, ::3, ::4, ::4].numpy() == pytest.approx(GOLDEN[f"target/{kind}"], abs=5e-6)
    assert maps[0].sum((1, 2)).numpy() == pytest.approx(GOLDEN[f"target/{kind}/sum"], rel=1e-5)
    assert np.array_equal(weights[0], GOLDEN["target/weights"])


def test_targets_by_hand():
    joints = torch.tensor([[[41.9, 42.0], [-0.1, 10.0], [48.0, 64.0], [20.0, 64.1], [torch.nan, 3.0], [8.0, 8.0]]])
    visible = torch.tensor([[1.0, 1, 1, 1, 1, 0]])
    maps, weights = gaussian_targets(joints, visible, (64, 48), (16, 12), sigma=1)
    assert weights.tolist() == [[1, 0, 1, 0, 0, 0]]  # [0, 48] x [0, 64] is inside
    assert maps[0, 0, 11, 10] == 1  # int(41.9 / 4 + 0.5) = 10, int(42 / 4 + 0.5) = 11
    assert maps[0, 0, 11, 9] == pytest.approx(math.exp(-0.5)) and maps[0, 0, 11, 6] == 0 and maps[0, 0, 11, 7] > 0
    assert maps[0, 2, 15, 11] == pytest.approx(math.exp(-1))  # the bell stands at (12, 16), outside
    assert not maps[0, weights[0] == 0].any()


@pytest.mark.parametrize("normalise", [False, True])
def test_simcc_targets_as_mmpose_draws_them(normalise):
    joints, visible = map(torch.from_numpy, cases.joints())
    x, y, weights = simcc_targets(joints * 1.2 - 20, visible, (256, 192), normalise=normalise)
    assert x[0, :, ::5].numpy() == pytest.approx(GOLDEN[f"keypoint_x_labels/{int(normalise)}"], abs=1e-6)
    assert y[0, :, ::5].numpy() == pytest.approx(GOLDEN[f"keypoint_y_labels/{int(normalise)}"], abs=1e-6)
    assert np.array_equal(weights[0], GOLDEN[f"keypoint_weights/{int(normalise)}"])
    assert 0 < weights.sum() < visible.sum()


def test_targets_decode_to_their_joints():
    joints = torch.rand(2, 13, 2) * torch.tensor([150.0, 210]) + 20
    x, y, _ = simcc_targets(joints, torch.ones(2, 13), (256, 192))
    assert (decode_simcc(x, y)[0] - joints).abs().max() <= 0.25
    maps, _ = gaussian_targets(joints, torch.ones(2, 13), (256, 192), (64, 48))
    assert (decode_heatmaps(maps)[0] * 4 - joints).abs().max() <= 2.01


def test_losses_by_hand():
    prediction, target = torch.zeros(2, 2, 1, 2), torch.ones(2, 2, 1, 2)
    weights = torch.tensor([[1.0, 0.5], [0, 1]])
    full = joints_mse_loss(prediction, target, weights)
    # joint 0: mean of 1 and 0; joint 1: mean of 1/4 and 1; then the mean of the two
    assert full == pytest.approx((0.5 + 0.625) / 2)
    assert joints_mse_loss(prediction, target, weights, half=True) == full / 2
    x, y = torch.tensor([[[0.0, 0.1]]]), torch.zeros(1, 1, 3)
    p, t = 1 / (1 + math.e), 0.5
    by_hand = (t * math.log(t / p) + t * math.log(t / (1 - p))) / 2
    found = simcc_loss((x, y), (torch.zeros(1, 1, 2), y), torch.full((1, 1), 3.0))
    assert found == pytest.approx(3 * by_hand)


MAPS = torch.zeros(1, 13, 4, 4)
JOINTS, SEEN = torch.zeros(1, 13, 2), torch.ones(1, 13)
SIZES = (16, 16), (4, 4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: decode_heatmaps(MAPS[0]), ValueError, r"heatmaps must have 4 dimensions \(B, K, h, w\), got"),
        (lambda: decode_heatmaps(MAPS.int()), TypeError, "heatmaps must be float64, float32, .* got torch.int32"),
        (lambda: decode_heatmaps(MAPS.numpy()), TypeError, "heatmaps must be a tensor, got ndarray"),
        (lambda: decode_heatmaps(MAPS[..., :0]), ValueError, r"at least one pixel, got \(1, 13, 4, 0\)"),
        (lambda: decode_heatmaps(MAPS, "DARK"), ValueError, "method must be 'argmax' or .* got 'DARK'"),
        (lambda: decode_heatmaps(MAPS, blur=10), ValueError, "blur must be an odd number of taps, got 10"),
        (lambda: decode_heatmaps(MAPS, max_step=0), ValueError, "max_step must be a positive number of pixels, got 0"),
        (lambda: decode_heatmaps(MAPS, nothing_found="no"), ValueError, "nothing_found must be 'keep' or .* got 'no'"),
        (lambda: decode_simcc(MAPS[0], MAPS[0, :5]), ValueError, r"same B and K .* \(13, 4, 4\) and \(5, 4, 4\)"),
        (lambda: decode_simcc(MAPS[0], MAPS[0], 0), ValueError, "split must be a positive number .* got 0"),
        (
            lambda: flip_heatmaps(MAPS, COCO17, shift=True),
            ValueError,
            r"must have 17 joints \(COCO17\) .* \(1, 13, 4, 4\)",
        ),
        (lambda: flip_simcc(MAPS, MAPS, PENN13), ValueError, r"simcc_x must have 3 dimensions \(B, K, bins\)"),
        (
            lambda: gaussian_targets(JOINTS, SEEN[:, :2], *SIZES),
            ValueError,
            r"visible.shape must be \(B, K\) = \(1, 13\)",
        ),
        (lambda: gaussian_targets(JOINTS.int(), SEEN, *SIZES), TypeError, "joints must be float64"),
        (lambda: gaussian_targets(JOINTS, SEEN, *SIZES, sigma=0), ValueError, "sigma must be positive, got 0"),
        (lambda: gaussian_targets(JOINTS, SEEN, *SIZES, kind="x"), ValueError, "kind must be 'biased' or .* got 'x'"),
        (lambda: gaussian_targets(JOINTS, SEEN, (16, 16), (1, 4), kind="udp"), ValueError, "heatmap_size must be .* 2"),
        (lambda: simcc_targets(JOINTS, SEEN, (16, 16), split=-1), ValueError, "split must be a positive number"),
        (lambda: joints_mse_loss(MAPS, MAPS[..., 1:], SEEN), ValueError, "target.shape must be prediction's"),
        (lambda: joints_mse_loss(MAPS, MAPS, JOINTS), ValueError, r"weights.shape must be \(B, K\) = \(1, 13\)"),
        (
            lambda: simcc_loss((MAPS[0],) * 2, (MAPS[0],) * 2, SEEN),
            ValueError,
            r"weights.shape .* \(13, 4\), got \(1, 13\)",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
