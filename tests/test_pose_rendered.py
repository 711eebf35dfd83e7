# SPDX-License-Identifier: Apache-2.0
"""Rendered people: poses, cameras, light, pictures from packages; the drawing itself where its packages are."""

import io
import json

import numpy as np
import pytest
from flexor.models.deepmimic import motion_files, read_deepmimic, read_deepmimic_turns
from flexor.models.pose.photographs import MissingPictures, Source, find, read_panoramas, read_photograph, read_thing
from flexor.models.pose.rendered import RenderSettings, Studio, _annotation, _camera, _harmonics
from flexor.models.pose.rendered_body import TURNS
from flexor.models.pose.rendered_look import degrade, put_before
from flexor.models.pose.rendered_outfits import outfit
from flexor.models.pose.rendered_poses import HELD_OUT, drawn, mirrored, motions, moved
from flexor.models.pose.rendered_scene import EYES, FACE, HANDS
from PIL import Image

PHOTOGRAPHS = ("astronaut", "coffee")


def test_a_camera_sees_where_its_matrix_says():
    for seed in range(5):
        camera = _camera(np.random.default_rng(seed), 288)
        assert np.allclose(camera.rotation @ camera.rotation.T, np.eye(3)) and np.linalg.det(camera.rotation) > 0
        points = np.random.default_rng(seed).uniform(-0.5, 0.5, (20, 3)) + [0, 0, 0.9]
        pixels, depth = camera.project(points)
        assert (depth > 0).all()
        clip = np.concatenate([points, np.ones((20, 1))], 1) @ camera.matrix().T.astype(float)
        height, width = camera.size
        centre = (clip[:, :2] / clip[:, 3:] * [1, -1] + 1) / 2 * [width, height] - 0.5
        np.testing.assert_allclose(pixels, centre, atol=1e-2)
        above = camera.project(np.array([[0, 0, 1.0], [0, 0, 1.2]]))[0]
        assert above[1, 1] < above[0, 1], "up is up"


def test_poses_stay_within_a_body():
    rng = np.random.default_rng(0)
    poses = np.stack([drawn(rng) for _ in range(300)])
    assert poses.shape == (300, 13, 3) and np.isfinite(poses).all()
    bend = {name: np.rad2deg(poses[:, TURNS.index(name), 0]) for name in TURNS}
    for side in ("left", "right"):
        assert (bend[f"{side}_knee"] >= 0).all() and (bend[f"{side}_elbow"] <= 0).all(), "neither bends the other way"
        assert bend[f"{side}_knee"].max() > 80 and bend[f"{side}_elbow"].min() < -80
    again = mirrored(mirrored(poses[0]))
    np.testing.assert_array_equal(again, poses[0])
    left, right = TURNS.index("left_elbow"), TURNS.index("right_elbow")
    assert mirrored(poses[0])[left, 0] == poses[0][right, 0]
    assert np.rad2deg(np.abs(moved(poses[0], rng, 9.0) - poses[0]).max()) > 1 and (
        moved(poses[0], rng, 0.0) is not None
    )
    np.testing.assert_allclose(moved(poses[0] * 0.1, rng, 0.0), poses[0] * 0.1, atol=1e-12)


def test_motions_are_pybullets():
    if not motion_files():
        pytest.skip("the package pybullet is not installed")
    train, held_out = motions(False), motions(True)
    assert len(held_out) == len(HELD_OUT) and len(train) + len(held_out) == len(motion_files())
    assert all(clip.shape[1:] == (13, 3) for clip in train + held_out)
    path = motion_files()[0]
    turns = read_deepmimic_turns(path)
    assert set(TURNS) == set(turns) and len(turns["root"]) == len(read_deepmimic(path))


def test_even_light_is_the_same_from_all_sides():
    harmonics = _harmonics(np.full((64, 128, 3), 2.0, np.float16))
    np.testing.assert_allclose(harmonics[0], 2.0, rtol=0.02)
    assert np.abs(harmonics[1:]).max() < 0.03
    sky = np.zeros((64, 128, 3), np.float16)
    sky[:32] = 1
    assert _harmonics(sky)[2].min() > 0.3, "light from above falls on what faces up"


def test_annotations_leave_out_whom_one_does_not_see():
    joints = np.stack([np.linspace(20, 60, 17), np.linspace(10, 150, 17)], 1)
    seen = np.arange(17) % 2 == 0
    found = _annotation(joints, seen, np.array([-10.0, 5, 70, 300]), (200, 100))
    assert found["bbox"] == [0.0, 5.0, 70.0, 195.0] and found["num_keypoints"] == 17
    assert found["keypoints"][2::3] == [2.0 if s else 1.0 for s in seen]
    outside = joints + [60, 0]
    part = _annotation(outside, seen, np.array([80.0, 5, 130, 160]), (200, 100))
    assert part["num_keypoints"] == part["keypoints"][2::3].count(1.0) + part["keypoints"][2::3].count(2.0) < 17
    assert _annotation(joints + [200, 0], seen, np.array([200.0, 5, 280, 160]), (200, 100)) is None
    assert _annotation(joints, seen & False, np.array([10.0, 5, 70, 160]), (200, 100)) is None


def test_what_is_put_before_people_hides_joints():
    pixels = np.zeros((100, 80, 3), np.uint8)
    thing = np.full((40, 40, 4), 255, np.uint8)
    for seed in range(6):
        changed, hidden = put_before(pixels, thing, np.array([20.0, 20, 60, 80]), np.random.default_rng(seed))
        rows, columns = np.nonzero(changed[..., 0] > 200)
        assert len(rows) > 20 and changed.shape == pixels.shape
        inside = np.array([[columns.mean(), rows.mean()], [79.0, 99.0 if rows.max() < 99 else 0.0]])
        assert hidden(inside)[0] and not hidden(inside)[1]


def test_degraded_pictures_are_pictures():
    pixels = np.random.default_rng(0).integers(0, 256, (60, 50, 3), np.uint8)
    several = [degrade(pixels, np.random.default_rng(seed)) for seed in range(12)]
    assert all(p.shape == pixels.shape and p.dtype == np.uint8 for p in several)
    assert len({p.tobytes() for p in several}) == 12
    np.testing.assert_array_equal(several[0], degrade(pixels, np.random.default_rng(0)))


def test_outfits_show_face_and_hands():
    rng = np.random.default_rng(0)
    worn = [[layer.kind for layer in outfit(rng, 5)] for _ in range(200)]
    assert all({FACE, EYES, HANDS} <= set(kinds) for kinds in worn)
    assert len({tuple(kinds) for kinds in worn}) > 15
    assert all(layer.patch < 5 and (layer.colours >= 0).all() for _ in range(50) for layer in outfit(rng, 5))


def test_pictures_of_packages(tmp_path):
    source = Source("scikit-image (pip)", ("data/*.png",), ("coffee",), "skimage")
    names = {path.stem for path in find(source, tmp_path)}
    assert "astronaut" in names and "coffee" not in names
    (astronaut,) = [path for path in find(source, tmp_path) if path.stem == "astronaut"]
    assert read_photograph(astronaut, 100).shape == (100, 100, 3)
    Image.new("RGBA", (300, 150), (1, 2, 3, 4)).save(tmp_path / "thing.png")
    assert read_thing(tmp_path / "thing.png").shape == (80, 160, 4)
    with pytest.raises(MissingPictures, match=r"pictures of x \(apt\) are missing under .*: install it, or unpack"):
        find(Source("x (apt)", ("usr/share/nothing/*",)), tmp_path)
    with pytest.raises(MissingPictures, match="pictures of y are missing: install it"):
        find(Source("y", ("*",), python="no_such_package"), tmp_path)
    with pytest.raises(MissingPictures, match=r"pmndrs-assets-\*.tgz is missing: run `npm pack @pmndrs/assets` in"):
        read_panoramas(tmp_path)


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    """A studio whose photographs are scikit-image's and whose panorama is grey."""
    for package in ("anny", "moderngl"):
        pytest.importorskip(package, reason=f"the package {package} is not installed")
    if not motion_files():
        pytest.skip("the package pybullet is not installed")
    from flexor.models.pose import rendered

    folder = tmp_path_factory.mktemp("assets")
    Image.new("RGBA", (60, 60), (200, 0, 0, 255)).save(folder / "thing.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rendered, "PHOTOGRAPHS", (Source("scikit-image", ("data/[ac]*.png",), (), "skimage"),))
        patch.setattr(rendered, "THINGS", Source("thing", ("*.png",)))
        grey = {str(k): np.full((64, 128, 3), 0.5, np.float16) for k in range(4)}
        patch.setattr(rendered, "read_panoramas", lambda root: grey)
        try:
            yield Studio(RenderSettings(2, figures=2), folder)
        except RuntimeError as error:
            pytest.skip(str(error))


def test_a_picture_is_the_same_again(studio):
    first, again = studio.picture(3), studio.picture(3)
    assert first == again
    assert studio.picture(4)[0] != first[0]
    image = Image.open(io.BytesIO(first[0]))
    assert image.size == first[1][::-1]


def test_people_are_where_their_joints_are(studio):
    """A joint that nothing hides lies on a person: without people, the picture is another one there."""
    from flexor.models.pose.rendered_scene import Camera, Light, Person

    camera = Camera(np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]), np.array([0.0, -3.5, 0.9]), 300.0, (288, 288))
    light = Light(np.concatenate([np.full((1, 3), 0.8), np.zeros((8, 3))]), np.array([0.0, -1, 0]), np.ones(3))
    rng = np.random.default_rng(0)
    for pose in (np.zeros((13, 3)), drawn(rng)):
        vertices, normals = studio._bodies.pose(studio._bodies.figures[0], pose)
        vertices[:, 2] -= vertices[:13380, 2].min()
        person = Person(vertices, normals, outfit(rng, 5))
        empty, full = (studio._stage.draw(camera, some, light, 0, (0, 0, 1, 1), 1.0) for some in ([], [person]))
        changed = (empty.astype(int) - full).any(-1)
        joints, boxes, _ = studio._joints(camera, [person])
        at = joints[0].round().astype(int)
        assert changed[at[:, 1].clip(0, 287), at[:, 0].clip(0, 287)].mean() > 0.9
        rows, columns = np.nonzero(changed)
        drawn_box = [columns.min(), rows.min(), columns.max(), rows.max()]
        np.testing.assert_allclose(boxes[0].clip(0, 287), drawn_box, atol=12)


def test_rendering_goes_on(studio, tmp_path, monkeypatch):
    from flexor.models.pose import rendered

    made = []

    def stand_in(settings, assets):
        made.append(settings)
        return studio

    monkeypatch.setattr(rendered, "Studio", stand_in)
    rendered.render(RenderSettings(1, figures=2), tmp_path, tmp_path / "out")
    path = rendered.render(RenderSettings(2, figures=2), tmp_path, tmp_path / "out")
    assert rendered.render(RenderSettings(2, figures=2), tmp_path, tmp_path / "out") == path
    assert len(made) == 2, "the third time nothing was left to draw"
    content = json.loads(path.read_text())
    assert [image["file_name"] for image in content["images"]] == ["000000.jpg", "000001.jpg"]
    assert all(len(person["keypoints"]) == 51 for person in content["annotations"])
