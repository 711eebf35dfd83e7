# SPDX-License-Identifier: Apache-2.0
"""Motion capture for lifting: files, joints, cameras, what is held out. The motions are made up."""

import json
import sys

import numpy as np
import pytest
from flexor.models import deepmimic, mocap
from flexor.models.bvh import choose_joints, parse_bvh, read_bvh
from flexor.models.lift_data import (
    FOCAL_PX,
    TrainingSet,
    ViewSettings,
    actions_of_clips,
    held_out_clips,
    held_out_samples,
    see,
)
from flexor.models.mocap import JOINTS, PARENTS, MocapError, load_clips
from lift_motions import ENDS, SKELETON, bvh, write_folder
from scipy.spatial.transform import Rotation

EXACT = ViewSettings(noise=0, outliers=0, misses=0)


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "motions")


def arrays(count=40):
    rng = np.random.default_rng(0)
    joints = rng.standard_normal((count, 17, 3)).astype(np.float32) * 0.4
    return {"joints": joints, "start": np.array([0, 10, count]), "name": np.array(["walk_1", "run_2"])}


def refused(tmp_path, **changes):
    made = {key: value for key, value in {**arrays(), **changes}.items() if value is not None}
    np.savez(tmp_path / "x.npz", **made)
    with pytest.raises(MocapError) as error:
        load_clips(str(tmp_path / "x.npz"))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_bvh_kinematics_against_scipy(tmp_path):
    text = bvh(3, frames=5)
    (tmp_path / "a.bvh").write_text(text)
    joints, frame_time, motion = parse_bvh(text)
    assert frame_time == 0.1 and [j.name for j in joints if not j.name.endswith("Site")][:2] == ["Hips", "Spine"]
    column = 6
    rotation = {"Hips": Rotation.from_euler("ZXY", motion[:, 3:6], degrees=True)}
    place = {"Hips": motion[:, :3]}
    for name in [joint.name for joint in joints if joint.channels][1:]:
        _, parent, offset, _ = next(joint for joint in SKELETON if joint[0] == name)
        place[name] = place[parent] + rotation[parent].apply(offset)
        rotation[name] = rotation[parent] * Rotation.from_euler("ZXY", motion[:, column : column + 3], degrees=True)
        column += 3
    place["top"] = place["Head"] + rotation["Head"].apply(ENDS["Head"])
    names = ("Hips", "RightUpLeg", "RightLeg", "RightFoot", "LeftUpLeg", "LeftLeg", "LeftFoot", "Chest", "Neck", "Head")
    names += ("top", "LeftArm", "LeftForeArm", "LeftHand", "RightArm", "RightForeArm", "RightHand")
    expected = np.stack([place[name] for name in names], 1) / 100
    found = read_bvh(tmp_path / "a.bvh", unit=0.01, rate=10)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(read_bvh(tmp_path / "a.bvh", unit=0.01, rate=5), expected[::2], atol=1e-6)


def test_bvh_spellings():
    bandai = "joint_Root Hips Spine Chest Neck Head HeadSite Shoulder_L UpperArm_L LowerArm_L Hand_L Shoulder_R"
    bandai += " UpperArm_R LowerArm_R Hand_R UpperLeg_L LowerLeg_L Foot_L Toes_L UpperLeg_R LowerLeg_R Foot_R"
    assert choose_joints(bandai.split()) == [1, 19, 20, 21, 15, 16, 17, 3, 4, 5, 6, 8, 9, 10, 12, 13, 14]
    mixamo = "Hips Spine Spine1 Spine2 Neck Head HeadTop_End LeftShoulder LeftArm LeftForeArm LeftHand RightShoulder"
    mixamo += " RightArm RightForeArm RightHand LeftUpLeg LeftLeg LeftFoot RightUpLeg RightLeg RightFoot"
    names = ["mixamorig:" + name for name in mixamo.split()]
    assert choose_joints(names) == [0, 18, 19, 20, 15, 16, 17, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14]
    with pytest.raises(ValueError, match="no joint for: right knee, end of the head; the file has Hips, Spine"):
        choose_joints([name for name in mixamo.split() if name not in ("RightLeg", "HeadTop_End")])


def test_bvh_head_without_length(tmp_path):
    (tmp_path / "a.bvh").write_text(bvh(0).replace("OFFSET 0 18 0", "OFFSET 0 0 0"))
    neck, head, top = np.moveaxis(read_bvh(tmp_path / "a.bvh", 0.01, 10)[:, 8:11], 1, 0)
    np.testing.assert_allclose(np.linalg.norm(top - head, axis=-1), 0.12, rtol=1e-4)
    np.testing.assert_allclose(np.cross(top - head, head - neck), 0, atol=1e-6)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("HIERARCHY", "HIERARCH", "not a BVH file"),
        ("MOTION", "MOTIO", "not a BVH file"),
        ("Frames: 60", "Frames: 61", "must hold 61 frames of 60 channels, got 3600 numbers"),
        ("Frames: 60", "Frames: many", "must begin with Frames"),
        ("Frame Time: 0.1", "Frame Time: 0", "0.0 s a frame"),
        ("Zrotation Xrotation", "Zrotation Wrotation", "Hips has channels"),
        ("JOINT Spine", "BONE Spine", "expected ROOT, JOINT, End or }, got BONE"),
        ("OFFSET 0 12 0", "CHANNELS 0 12 0", "expected OFFSET, got CHANNELS"),
        ("}\nMOTION", "\nMOTION", "ends too early"),
        ("JOINT LeftLeg", "JOINT LeftPeg", "no joint for: left knee; the file has Hips"),
        ("30.00000", "thirty", None),
    ],
)
def test_bvh_errors(tmp_path, old, new, message):
    text = bvh(0)
    if message is None:
        head, motion = text.split("Frame Time: 0.1\n")
        text = head + "Frame Time: 0.1\n" + "thirty" + motion[motion.index(" ") :]
        message = "no number"
    else:
        assert old in text
        text = text.replace(old, new, 1)
    (tmp_path / "a.bvh").write_text(text)
    with pytest.raises(MocapError, match=message) as error:
        load_clips(str(tmp_path / "a.bvh"))
    assert str(error.value).startswith(str(tmp_path / "a.bvh"))


def test_a_folder_of_bvh(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    clips = load_clips(str(folder))
    assert clips.names[:3] == ("walk_0", "walk_10", "walk_2") and clips.start.tolist() == list(range(0, 721, 60))
    assert clips.joints.shape == (720, 17, 3) and clips.clip_of_pose().tolist()[59:61] == [0, 1]
    assert load_clips(str(folder)).digest == clips.digest
    bones = clips.joints[:, 1:] - clips.joints[:, PARENTS[1:]]
    assert np.linalg.norm(bones, axis=-1).std(0).max() < 0.03  # spine and thorax are not neighbours in the file
    with pytest.raises(MocapError, match=r"from pelvis to head it is 72\.6 m; joints must be in metres: give --unit"):
        load_clips(str(folder), unit=1)
    with pytest.raises(MocapError, match=r"no \.bvh file in this folder"):
        load_clips(str(tmp_path / "empty"))


def test_npz(tmp_path):
    np.savez(tmp_path / "x.npz", **arrays())
    clips = load_clips(str(tmp_path / "x.npz"))
    assert clips.names == ("walk_1", "run_2") and clips.joints.dtype == np.float32
    np.testing.assert_array_equal(clips.joints, arrays()["joints"])


def test_npz_errors(tmp_path):
    joints = arrays()["joints"]
    assert "must hold the arrays joints, start and name, holds joints, start" in refused(tmp_path, name=None)
    assert "joints must be floating point (N, 17, 3), got float32 (40, 16, 3)" in refused(
        tmp_path, joints=joints[:, 1:]
    )
    assert "got int64 (40, 17, 3)" in refused(tmp_path, joints=joints.astype(np.int64))
    assert "start must rise from 0 to the 40 poses, got 0 to 39" in refused(tmp_path, start=np.array([0, 10, 39]))
    assert "start must rise" in refused(tmp_path, start=np.array([0, 0, 40]))
    assert "start must be integers (clips + 1,), got float64" in refused(tmp_path, start=np.array([0.0, 10, 40]))
    assert "name must be 2 strings, one a clip, got <U1 (1,)" in refused(tmp_path, name=np.array(["a"]))
    assert "not an npz or BVH file" in refused(tmp_path, name=np.array(["a", None], dtype=object))
    assert "it is 83 m" in refused(tmp_path, joints=joints * 100)
    broken = joints.copy()
    broken[12, 3, 1] = np.nan
    assert f"clip run_2, pose 2: the {JOINTS[3]} is not a finite number" in refused(tmp_path, joints=broken)
    np.save(tmp_path / "y.npy", joints)
    with pytest.raises(MocapError, match="holds one array"):
        load_clips(str(tmp_path / "y.npy"))
    for content in (b"", b"PK\x03\x04 not a zip", b"text"):
        (tmp_path / "z.npz").write_bytes(content)
        with pytest.raises(MocapError, match=r"z\.npz: not an npz or BVH file"):
            load_clips(str(tmp_path / "z.npz"))
    with pytest.raises(MocapError, match="no such file or folder"):
        load_clips(str(tmp_path / "absent.npz"))


def test_pybullet_absent(monkeypatch):
    monkeypatch.setattr(mocap, "motion_files", list)
    with pytest.raises(MocapError, match="pip install pybullet, or give --data FILE"):
        load_clips("pybullet")


def test_deepmimic_skeleton(tmp_path):
    """Standing still, turned, and with a bent elbow: made-up frames in the format of pybullet's motions."""
    still = (
        [0.03, 1, 2, 3] + [1, 0, 0, 0] * 4 + [0] + [1, 0, 0, 0] * 2 + [0] + [1, 0, 0, 0] + [0] + [1, 0, 0, 0] * 2 + [0]
    )
    turned = still[:4] + [np.sqrt(0.5), 0, np.sqrt(0.5), 0] + still[8:]
    bent = still[:29] + [np.pi / 2] + still[30:]
    (tmp_path / "a.txt").write_text(json.dumps({"Frames": [still, turned, bent]}))
    still, turned, bent = deepmimic.read_deepmimic(tmp_path / "a.txt")
    assert still[0].tolist() == [1, 2, 3]
    assert still[16, 2] > still[14, 2] - 1e-6 > still[0, 2] + 0.1  # the right is z
    assert still[10, 1] - still[3, 1] == pytest.approx(0.236151 + 0.223894 + 0.2775 + 0.421546 + 0.40987, rel=1e-6)
    np.testing.assert_allclose(turned[14] - turned[0], (still[14] - still[0])[[2, 1, 0]] * [1, 1, -1], atol=1e-6)
    np.testing.assert_allclose(bent[16] - bent[15], [0.258947, 0, 0], atol=1e-6)
    np.testing.assert_allclose(bent[[13, 3]], still[[13, 3]])
    (tmp_path / "b.txt").write_text('{"Frames": [[1, 2, 3],]}')
    with pytest.raises(ValueError, match=r"have 44 numbers, got \(1, 3\)"):
        deepmimic.read_deepmimic(tmp_path / "b.txt")


def test_pybullet_present(tmp_path, monkeypatch):
    package = tmp_path / "pybullet_data"
    (package / "data" / "motions").mkdir(parents=True)
    (package / "__init__.py").touch()
    frame = (
        [0.03, 0, 0.9, 0]
        + [1, 0, 0, 0] * 4
        + [0]
        + [1, 0, 0, 0] * 2
        + [0]
        + [1, 0, 0, 0]
        + [0]
        + [1, 0, 0, 0] * 2
        + [0]
    )
    for name in ("humanoid3d_walk", "humanoid3d_dance_a", "laikago_walk"):
        (package / "data" / "motions" / f"{name}.txt").write_text(json.dumps({"Frames": [frame] * 3}))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "pybullet_data", raising=False)
    assert load_clips("pybullet").names == ("dance_a", "walk")


def test_cameras(folder):
    joints = load_clips(str(folder)).joints
    inputs, targets = see(joints, EXACT, np.random.default_rng(0))
    assert inputs.dtype == targets.dtype == np.float32
    assert (targets[:, 0] == 0).all()
    lengths = np.linalg.norm(joints[:, :, None] - joints[:, None], axis=-1)
    np.testing.assert_allclose(np.linalg.norm(targets[:, :, None] - targets[:, None], axis=-1), lengths, atol=1e-5)
    up = (targets[:, 10] - targets[:, 3])[:, 1]
    assert (up < -0.5).all()  # y points down
    assert np.abs(inputs).max() < 1
    chirality = np.linalg.det(targets[:, [1, 10, 12]]) * np.linalg.det((joints - joints[:, :1])[:, [1, 10, 12]])
    assert (chirality > 0).all()  # the axes were turned, not mirrored

    # The targets, put at some depth, project onto the inputs.
    rays = inputs * 500 / FOCAL_PX
    for pose, ray in zip(targets[:20], rays[:20], strict=True):
        # x + X = u (z + Z), y + Y = v (z + Z): solved for the pelvis (X, Y, Z)
        rows = np.concatenate(
            [np.stack([np.eye(3)[axis] - ray[j, axis] * np.eye(3)[2] for axis in (0, 1)]) for j in range(17)]
        )
        right = np.concatenate([ray[j] * pose[j, 2] - pose[j, :2] for j in range(17)])
        pelvis, *_ = np.linalg.lstsq(rows, right, rcond=None)
        np.testing.assert_allclose(rows @ pelvis, right, atol=1e-5)
        assert 3.4 < np.linalg.norm(pelvis) < 6.8


def test_the_detector(folder):
    joints = np.repeat(load_clips(str(folder)).joints, 5, 0)
    exact, _ = see(joints, EXACT, np.random.default_rng(0))

    def errors(**settings):
        found, _ = see(
            joints, ViewSettings(**{"noise": 0, "outliers": 0, "misses": 0} | settings), np.random.default_rng(0)
        )
        return 500 * (found - exact)

    assert errors(noise=4).std() == pytest.approx(4, rel=0.02)
    # 25 pixels are 0.625 standard deviations of an outlier, which 46.8 % stay below along an axis.
    far = np.abs(errors(noise=4, outliers=0.1)).max(-1) > 25
    assert far.mean() == pytest.approx(0.1 * (1 - 0.468**2), rel=0.1)
    missed = np.abs(errors(misses=0.3)).max(-1) > 1e-3
    assert missed.mean() == pytest.approx(0.3, rel=0.05)


def test_what_is_held_out_depends_on_names_alone(folder):
    clips = load_clips(str(folder))
    held = held_out_clips(clips, 0.4)
    chosen = {name for name, is_held in zip(clips.names, held, strict=True) if is_held}
    for index in (1, 4, 7):
        (folder / f"wave_{index}.bvh").unlink(missing_ok=True)
    fewer = load_clips(str(folder))
    again = {name for name, is_held in zip(fewer.names, held_out_clips(fewer, 0.4), strict=True) if is_held}
    assert again == chosen & set(fewer.names) and 0 < len(chosen) < 12
    for share in (0, 1):
        with pytest.raises(MocapError, match="at least one must be, and one not"):
            held_out_clips(clips, share)


def test_no_held_out_pose_is_trained_on(folder):
    clips = load_clips(str(folder))
    held = held_out_clips(clips, 0.4)
    training = TrainingSet(clips, held, EXACT, seed=0)
    test = held_out_samples(clips, held, EXACT, views=2)
    pose_held = held[clips.clip_of_pose()]
    assert len(training.joints) + len(test.pose) // 2 == len(clips.joints)
    np.testing.assert_array_equal(training.joints, clips.joints[~pose_held])
    assert pose_held[test.pose].all() and len(np.unique(test.pose)) == pose_held.sum()


def test_batches_go_through_all_poses(folder):
    clips = load_clips(str(folder))
    held = held_out_clips(clips, 0.4)
    count = int((~held[clips.clip_of_pose()]).sum())
    training = TrainingSet(clips, held, EXACT, seed=3)
    arms = [np.linalg.norm(t[:, 13], axis=-1) for t in (training.batch(step, count // 4)[1] for step in range(4))]
    expected = np.linalg.norm(training.joints[:, 13] - training.joints[:, 0], axis=-1)
    np.testing.assert_allclose(np.sort(np.concatenate(arms)), np.sort(expected), atol=1e-5)
    fresh = TrainingSet(clips, held, EXACT, seed=3)
    for ours, theirs in zip(training.batch(7, 50), fresh.batch(7, 50), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    other = TrainingSet(clips, held, EXACT, seed=4)
    assert not np.array_equal(other.batch(7, 50)[0], fresh.batch(7, 50)[0])


def test_actions(folder):
    clips = load_clips(str(folder))
    assert set(actions_of_clips(clips, "([a-z]+)")) == {"walk", "wave"}
    with pytest.raises(MocapError, match="not a regular expression with a group"):
        actions_of_clips(clips, "(")
    with pytest.raises(MocapError, match="not a regular expression with a group"):
        actions_of_clips(clips, "[a-z]+")
    with pytest.raises(MocapError, match="finds no action in the clip name walk_0"):
        actions_of_clips(clips, "(run)")
