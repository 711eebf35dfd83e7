# SPDX-License-Identifier: Apache-2.0
"""Crops of people: against released code (data/make_pose_geometry_golden.py), by hand, and there and back."""

from pathlib import Path

import numpy as np
import pose_geometry_cases as cases
import pytest
import torch
from flexor.models.pose import skeleton as skeletons
from flexor.models.pose.geometry import MEAN, STD, box_to_center_extent, crop, crop_affine, to_crop, to_image
from flexor.models.pose.skeleton import COCO17, MPII16, POSETRACK17, POSETRACK_EVALUATION15, Skeleton
from hypothesis import given, settings
from hypothesis import strategies as st

GOLDEN = np.load(Path(__file__).parent / "data" / "pose_geometry_golden.npz")
SKELETONS = [value for value in vars(skeletons).values() if isinstance(value, Skeleton)]
KINDS = {"biased": {}, "udp": {"udp": True}, "udp_box_intervals": {"udp": True, "udp_box_intervals": True}}


@pytest.mark.parametrize("kind", KINDS)
def test_matrices_are_those_of_released_code(kind):
    for index, (box, turn, size) in enumerate(zip(cases.BOXES, cases.ROTATIONS, cases.CROPS, strict=True)):
        found = crop_affine(box, size, rotation=turn, **KINDS[kind])
        corners = torch.tensor(box)[:2] + torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]]) * torch.tensor(box)[2:]
        # released code computes in float32, at positions of up to 1700 pixels
        assert to_crop(corners, found) == pytest.approx(to_crop(corners, GOLDEN[f"affine/{kind}"][index]), abs=1e-3)


def test_a_box_by_hand():
    center, extent = box_to_center_extent([100, 50, 60, 100], (384, 288))
    assert center.tolist() == [130, 100] and extent.tolist() == [93.75, 125]  # 60 < 0.75 x 100, so 75 x 100, times 1.25
    scale = 288 / 93.75
    expected = [[scale, 0, 144 - scale * 130], [0, scale, 192 - scale * 100]]
    assert crop_affine([100, 50, 60, 100], (384, 288)).numpy() == pytest.approx(np.array(expected))
    # UDP: the region's borders fall on the middles of the outermost pixels
    udp = crop_affine([100, 50, 60, 100], (384, 288), udp=True)
    borders = torch.stack([center - extent / 2, center + extent / 2])
    assert to_crop(borders, udp).numpy() == pytest.approx(np.array([[0, 0], [287, 383]]), abs=1e-9)


def test_rotation_turns_the_region_clockwise():
    """What lies above the center at 90 degrees is what was to its right."""
    matrix = crop_affine([0, 0, 100, 100], (100, 100), enlarge=1, rotation=90)
    assert to_crop([[80.0, 50.0]], matrix)[0].tolist() == pytest.approx([50, 20])


def test_boxes_in_batches():
    many = crop_affine(cases.BOXES[:3], (64, 48), rotation=torch.tensor(cases.ROTATIONS[:3]), udp=True)
    for box, turn, matrix in zip(cases.BOXES, cases.ROTATIONS, many, strict=False):
        assert torch.equal(crop_affine(box, (64, 48), rotation=turn, udp=True), matrix)
    assert crop_affine(torch.empty(0, 4), (64, 48)).shape == (0, 2, 3)
    assert to_image(torch.empty(0, 17, 2), torch.empty(0, 2, 3)).shape == (0, 17, 2)


@settings(max_examples=60, deadline=None)
@given(
    box=st.tuples(*[st.floats(-500, 3000)] * 2, *[st.floats(1.5, 2000)] * 2),
    turn=st.floats(-180, 180),
    kind=st.sampled_from(sorted(KINDS)),
    enlarge=st.floats(1, 2),
)
def test_there_and_back(box, turn, kind, enlarge):
    matrix = crop_affine(box, (96, 72), rotation=turn, enlarge=enlarge, **KINDS[kind])
    points = torch.rand(1, 5, 2, dtype=torch.float64) * 1000
    assert to_image(to_crop(points, matrix[None]), matrix[None]).numpy() == pytest.approx(points.numpy(), abs=1e-6)


def test_crop_is_warp_affine_but_for_rounding():
    matrix = torch.from_numpy(released_turn())
    found = 255 * crop(cases.image(), matrix, (32, 24), normalise=False)
    assert np.abs(found.permute(1, 2, 0).numpy() - GOLDEN["crop"]).max() < 0.51


def released_turn():
    """The matrix of the golden crop: a region of 30 x 40 around (36.5, 22), turned by 20 degrees."""
    return crop_affine([36.5 - 15, 22 - 20, 30, 40], (32, 24), enlarge=1, rotation=20).numpy()


def test_crop_normalises_and_is_black_outside():
    image = np.full((20, 30, 3), 255, np.uint8)
    found = crop(image, crop_affine([0, 0, 20, 20], (40, 40), enlarge=2), (40, 40))
    white, black = (1 - torch.tensor(MEAN)) / torch.tensor(STD), -torch.tensor(MEAN) / torch.tensor(STD)
    assert torch.allclose(found[:, 15, 15], white) and torch.allclose(found[:, 15, 5], black)
    assert torch.allclose(found[:, 35, 35], black)


def test_crop_wholly_outside_is_black():
    matrix = crop_affine([5000, -900, 20, 20], (8, 6))
    assert not crop(cases.image(), matrix, (8, 6), normalise=False).any()


def test_crops_in_batches_and_channels():
    image = torch.from_numpy(cases.image())
    matrices = crop_affine([[5, 5, 30, 30], [40, 10, 20, 50]], (32, 24))
    both = crop(image, matrices, (32, 24))
    assert both.shape == (2, 3, 32, 24) and both.dtype == torch.float32
    assert torch.equal(both[1], crop(image.numpy(), matrices[1], (32, 24)))
    assert crop(image, matrices[:0], (32, 24)).shape == (0, 3, 32, 24)
    swapped = crop(image, matrices[0], (32, 24), normalise=False, swap_red_and_blue=True)
    assert torch.equal(swapped, crop(image, matrices[0], (32, 24), normalise=False).flip(0))


def test_whole_pixels():
    matrix = crop_affine([3, 4, 30, 40], (64, 48))
    exact, cut = to_image([[10.0, 20.0]], matrix), to_image([[10.0, 20.0]], matrix, whole_pixels=True)
    assert torch.equal(cut, exact.trunc()) and not torch.equal(cut, exact)


@pytest.mark.parametrize("skeleton", SKELETONS, ids=lambda skeleton: skeleton.name)
def test_skeletons(skeleton):
    assert len(set(skeleton.joints)) == len(skeleton.joints) == len(skeleton.sigmas) == len(skeleton)
    assert [skeleton.mirror[partner] for partner in skeleton.mirror] == list(range(len(skeleton)))
    for joint, partner in zip(skeleton.joints, skeleton.mirror, strict=True):
        swapped = joint.replace("left_", "RIGHT_").replace("right_", "left_").replace("RIGHT_", "right_")
        assert skeleton.joints[partner] == swapped
    linked = {joint for limb in skeleton.limbs for joint in limb}
    assert set(range(len(skeleton))) - linked <= {skeleton.joints.index(j) for j in skeleton.joints if "ear" in j}
    assert all(skeleton.index(joint) == place for place, joint in enumerate(skeleton.joints))


def test_orders():
    """The orders and pairs that released code lists as numbers."""
    assert COCO17.flip_pairs == ((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16))
    assert POSETRACK17.flip_pairs == ((3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16))
    assert MPII16.flip_pairs == ((0, 5), (1, 4), (2, 3), (10, 15), (11, 14), (12, 13))
    assert POSETRACK17.upper_body == COCO17.upper_body == tuple(range(11))
    assert len(SKELETONS) == 6
    # right ankle, knee, hip; left hip, knee, ankle; right wrist, elbow, shoulder; left; neck, nose, head top
    expected = (16, 14, 12, 11, 13, 15, 10, 8, 6, 5, 7, 9, 1, 0, 2)
    assert POSETRACK17.permutation_to(POSETRACK_EVALUATION15) == expected


def test_skeleton_errors():
    with pytest.raises(ValueError, match="MPII16 has no joint 'nose'; it has right_ankle, "):
        MPII16.index("nose")
    with pytest.raises(ValueError, match="COCO17 cannot be reordered to POSETRACK17: it lacks head_bottom, head_top"):
        COCO17.permutation_to(POSETRACK17)


BOX, MATRIX, IMAGE = [0, 0, 10, 10], torch.eye(2, 3), np.zeros((4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: crop_affine([0, 0, 10], (4, 4)), r"box must be \(\.\.\., 4\): left, top, width, height, got \(3,\)"),
        (lambda: crop_affine([0, 0, 0, 0], (4, 4)), "must be finite, its sides not negative and not both 0, got"),
        (lambda: crop_affine([0, 0, 5, -1], (4, 4)), "sides not negative"),
        (lambda: crop_affine([0, np.nan, 5, 5], (4, 4)), "a box must be finite"),
        (lambda: crop_affine(BOX, (0, 4)), r"size must be \(height, width\), integers not below 1, got \(0, 4\)"),
        (lambda: crop(IMAGE, MATRIX, (4.0, 4)), r"crop: size must be \(height, width\), integers .* got \(4.0, 4\)"),
        (lambda: box_to_center_extent(BOX, (4, 4, 3)), r"box_to_center_extent: size must be .* got \(4, 4, 3\)"),
        (lambda: crop_affine(BOX, (4, 4), enlarge=0), "enlarge must be a positive number, got 0"),
        (lambda: crop_affine(BOX, (4, 4), rotation=np.inf), "rotation must be finite, got inf"),
        (lambda: crop_affine(BOX, (4, 4), udp_box_intervals=True), "udp_box_intervals needs udp=True"),
        (
            lambda: crop_affine([0, 0, 0.8, 1], (64, 48), **KINDS["udp_box_intervals"]),
            "udp_box_intervals needs regions wider than a pixel",
        ),
        (lambda: crop_affine(BOX, (1, 4), udp=True), "crop_affine: size must be .* integers not below 2"),
        (lambda: crop(IMAGE, torch.zeros(2, 3), (4, 4)), "crop: matrix must be finite and invertible"),
        (lambda: crop(IMAGE, torch.eye(3), (4, 4)), r"crop: matrix must be \(\.\.\., 2, 3\), got \(3, 3\)"),
        (lambda: crop(IMAGE, torch.eye(2, 3)[None, None], (4, 4)), r"crop: matrix must be \(2, 3\) or \(N, 2, 3\)"),
        (lambda: crop(IMAGE[0], MATRIX, (4, 4)), r"crop: image must be \(H, W, 3\), got \(4, 3\)"),
        (lambda: to_image([1.0, 2.0], MATRIX), r"to_image: points must be \(\.\.\., K, 2\), got \(2,\)"),
        (lambda: to_crop(torch.zeros(2, 5, 2), MATRIX[None]), r"must agree in front, got \(2, 5, 2\) and \(1, 2, 3\)"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_images_are_bytes():
    with pytest.raises(TypeError, match=r"crop: image must be uint8 with values 0\.\.255, got torch.float32"):
        crop(torch.zeros(4, 4, 3), MATRIX, (4, 4))
