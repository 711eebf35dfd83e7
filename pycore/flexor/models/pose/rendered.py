# SPDX-License-Identifier: Apache-2.0
"""Rendered people in COCO's format: what the small model is trained on.

Bodies of the package anny take pybullet's humanoid motions and drawn poses, dressed at random, before photographs and
panoramas that packages ship. Joints are projected exactly; a joint is "visible" when nothing is before it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial.transform import Rotation

from ..checkpoint import write_atomically
from .photographs import PHOTOGRAPHS, THINGS, find, read_panoramas, read_photograph, read_thing
from .rendered_body import Bodies, Floats
from .rendered_look import degrade, put_before
from .rendered_outfits import outfit
from .rendered_poses import drawn, mirrored, motions, moved
from .rendered_scene import PATCH, Camera, Light, Person, Stage
from .skeleton import COCO17

Array = NDArray[np.float64]
ANNOTATIONS, IMAGES = "annotations.json", "images"
_DEPTH = np.array([0.06] * 5 + [0.14] * 2 + [0.08] * 4 + [0.2] * 2 + [0.1] * 4)  # of joints under the skin, metres
_UPWARD = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # a level camera that looks along y


@dataclass(frozen=True)
class RenderSettings:
    """One set of rendered pictures.

    Args:
        pictures: how many.
        held_out: of the motions and backgrounds that are kept from training, without drawn poses.
        seed: each picture depends on this and its number alone.
        side: largest side, pixels.
        figures: how many different bodies.
    """

    pictures: int
    held_out: bool = False
    seed: int = 0
    side: int = 288
    figures: int = 160


class Studio:
    """All that pictures are made of, loaded once.

    Args:
        settings: of the set.
        assets: folder that holds unpacked packages, and the archive of @pmndrs/assets.

    Raises:
        MissingPictures, FileNotFoundError, ModuleNotFoundError, RuntimeError: what is not installed, and how to.
    """

    def __init__(self, settings: RenderSettings, assets: Path) -> None:
        self.settings = settings
        rng = np.random.default_rng([settings.seed, int(settings.held_out), 1 << 40])
        self._motions = motions(settings.held_out)
        photographs = [read_photograph(file) for source in PHOTOGRAPHS for file in find(source, assets)]
        panoramas = list(read_panoramas(assets).values())
        self._photographs, self._panoramas = (_kept(x, settings.held_out) for x in (photographs, panoramas))
        things = find(THINGS, assets)
        self._things = [read_thing(things[k]) for k in rng.choice(len(things), min(200, len(things)), replace=False)]
        self._patches = np.stack([_patch(self._photographs, rng) for _ in range(96)])
        self._bodies = Bodies(settings.figures, rng)
        self._stage = Stage(self._bodies, self._patches, (settings.side, settings.side))
        for key, picture in enumerate(self._photographs + self._panoramas):
            self._stage.backdrop(picture, key)
        self._irradiance = [_harmonics(p) for p in self._panoramas]

    def picture(self, number: int) -> tuple[bytes, tuple[int, int], list[dict[str, Any]]]:
        """A picture as JPEG, its (height, width), and its people as COCO annotates them."""
        rng = np.random.default_rng([self.settings.seed, int(self.settings.held_out), number])
        camera = _camera(rng, self.settings.side)
        people = [self._person(rng, k) for k in range(rng.choice([1, 2, 3, 4], p=[0.45, 0.28, 0.17, 0.1]))]
        key, window, light, exposure = self._surroundings(rng)
        pixels = self._stage.draw(camera, people, light, key, window, exposure)
        joints, boxes, seen = self._joints(camera, people)
        if rng.random() < 0.4:
            before = self._things[rng.integers(len(self._things))]
            if rng.random() < 0.4:
                before = np.dstack(
                    [self._patches[rng.integers(len(self._patches))], np.full((PATCH, PATCH), 255, np.uint8)]
                )
            pixels, hidden = put_before(pixels, before, boxes[0], rng)
            seen &= ~hidden(joints)
        annotations = [
            annotation
            for k in range(len(people))
            if (annotation := _annotation(joints[k], seen[k], boxes[k], camera.size)) is not None
        ]
        content = io.BytesIO()
        quality = int(rng.integers(40, 95))
        Image.fromarray(degrade(pixels, rng)).save(content, "JPEG", quality=quality)
        return content.getvalue(), camera.size, annotations

    def _person(self, rng: np.random.Generator, place: int) -> Person:
        if not self.settings.held_out and rng.random() < 0.5:
            pose = drawn(rng)
        else:
            clip = self._motions[rng.integers(len(self._motions))]
            pose = clip[rng.integers(len(clip))]
            pose = mirrored(pose) if rng.random() < 0.5 else pose
            pose = pose if self.settings.held_out else moved(pose, rng, 9.0)
        figure = self._bodies.figures[rng.integers(len(self._bodies.figures))]
        vertices, normals = self._bodies.pose(figure, pose)
        yaw = rng.normal(0, 0.7) if rng.random() < 0.35 else rng.uniform(-np.pi, np.pi)
        turn = Rotation.from_euler("z", yaw).as_matrix().astype(np.float32)
        vertices, normals = vertices @ turn.T, normals @ turn.T
        vertices[:, 2] -= vertices[:13380, 2].min()
        if place:
            aside = [rng.choice([-1, 1]) * rng.uniform(0.15, 1.3), rng.uniform(-0.9, 2.5)]
            vertices[:, :2] += np.array(aside, np.float32)
        return Person(vertices, normals, outfit(rng, len(self._patches)))

    def _surroundings(self, rng: np.random.Generator) -> tuple[int, Any, Light, float]:
        """Key and window of the background, light, exposure."""
        direction = rng.standard_normal(3) + [0, -0.3, 0.8]
        direction /= np.linalg.norm(direction)
        lamp = rng.uniform(0, 1.3) * np.clip(1 + 0.12 * rng.standard_normal(3), 0.5, 1.5)
        if rng.random() < 0.4:
            k = int(rng.integers(len(self._panoramas)))
            harmonics = self._irradiance[k]
            exposure = 0.55 / max(float(harmonics[0].mean()), 1e-3)
            light = Light(harmonics * rng.uniform(0.7, 1.3), direction, lamp * 0.5 / exposure)
            return len(self._photographs) + k, None, light, exposure * float(np.exp(0.3 * rng.standard_normal()))
        k = int(rng.integers(len(self._photographs)))
        share = rng.uniform(0.3, 1.0, 2)
        window = (*(rng.uniform(0, 1, 2) * (1 - share)), *share)
        ambient = self._photographs[k].mean((0, 1)) / 255
        harmonics = np.zeros((9, 3))
        harmonics[0] = rng.uniform(0.25, 0.8) * (0.6 + 0.4 * ambient / max(float(ambient.max()), 0.05))
        harmonics[1:4] = rng.uniform(-0.2, 0.2, (3, 1))
        harmonics[2] += rng.uniform(0, 0.25)
        return k, window, Light(harmonics, direction, lamp), float(rng.uniform(0.8, 1.4))

    def _joints(self, camera: Camera, people: list[Person]) -> tuple[Array, Array, NDArray[np.bool_]]:
        """Joints (P, 17, 2) in pixels, boxes (P, 4) of the bodies, and whether nothing hides a joint (P, 17)."""
        height, width = camera.size
        cell = 4
        depth = np.full((height // cell + 2) * (width // cell + 2), np.inf)
        joints, boxes, away = [], [], []
        for person in people:
            pixels, far = camera.project(person.vertices[:13380])
            boxes.append([*pixels.min(0), *pixels.max(0)])
            cells = np.clip(np.round(pixels / cell), -1, [width // cell, height // cell]).astype(int) + 1
            inside = (cells > 0).all(1) & (far > 0.1)
            np.minimum.at(depth, cells[inside, 1] * (width // cell + 2) + cells[inside, 0], far[inside])
            points, far = camera.project(self._bodies.joints(person.vertices))
            joints.append(points)
            away.append(far)
        points, depths = np.array(joints), np.array(away)
        cells = np.clip(np.round(points / cell), -1, [width // cell, height // cell]).astype(int) + 1
        nearest = depth[cells[..., 1] * (width // cell + 2) + cells[..., 0]]
        return points, np.array(boxes), depths - nearest < _DEPTH


def render(settings: RenderSettings, assets: Path, out: Path, done: Callable[[int], None] = lambda count: None) -> Path:
    """Write a set of pictures with their annotations; where some are there already, only the others are drawn.

    Args:
        settings: of the set.
        assets: as `Studio` has them.
        out: folder for `images/` and `annotations.json`.
        done: told how many pictures are there.

    Returns:
        The annotations' path.
    """
    studio: Studio | None = None
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    (out / IMAGES).mkdir(parents=True, exist_ok=True)
    for number in range(settings.pictures):
        name = f"{number:06}"
        kept = out / IMAGES / f"{name}.json"
        if not kept.exists():
            studio = studio or Studio(settings, assets)
            content, size, people = studio.picture(number)
            write_atomically(out / IMAGES / f"{name}.jpg", content)
            write_atomically(kept, json.dumps({"size": size, "people": people}).encode())
        record = json.loads(kept.read_text())
        height, width = record["size"]
        images.append({"id": number, "file_name": f"{name}.jpg", "height": height, "width": width})
        for person in record["people"]:
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": 1, "iscrowd": 0, **person}
            )
        done(number + 1)
    category = {"id": 1, "name": "person", "keypoints": list(COCO17.joints), "skeleton": []}
    whole = {"images": images, "annotations": annotations, "categories": [category]}
    write_atomically(out / ANNOTATIONS, json.dumps(whole).encode())
    return out / ANNOTATIONS


def _annotation(joints: Array, seen: NDArray[np.bool_], box: Array, size: tuple[int, int]) -> dict[str, Any] | None:
    """COCO's record of a person; None for one that is too small or too much outside."""
    limit = np.array(size[::-1])
    inside = np.all((joints > -0.5) & (joints < limit - 0.5), axis=-1)
    low, high = box[:2].clip(0, limit), box[2:].clip(0, limit)
    width, height = high - low
    if inside.sum() < 5 or (inside & seen).sum() < 4 or height < 40 or width < 12:
        return None
    visibility = np.where(inside, 1 + seen, 0)
    points = np.where(inside[:, None], joints.round(2), 0.0)
    return {
        "bbox": [round(float(v), 2) for v in (*low, width, height)],
        "area": round(0.53 * float(width * height), 1),  # a person's usual share of its box
        "keypoints": np.concatenate([points, visibility[:, None]], 1).ravel().tolist(),
        "num_keypoints": int(inside.sum()),
    }


def _camera(rng: np.random.Generator, side: int) -> Camera:
    """A camera that looks at the person at the origin from any height, seldom so near that part of it is outside."""
    height, width = int(side * rng.uniform(0.75, 1.0)) & ~1, int(side * rng.uniform(0.7, 1.0)) & ~1
    focal = side * rng.uniform(0.8, 2.4)
    near = rng.random() < 0.15
    tall = height * (rng.uniform(1.1, 2.0) if near else rng.uniform(0.5, 0.98))
    distance = max(focal * 1.75 / tall, 0.9)
    lift = np.deg2rad(np.clip(rng.normal(6, 16), -25, 65))
    aim = np.array([rng.normal(0, 0.12), 0.0, rng.uniform(1.0, 1.5) if near else rng.normal(0.85, 0.1)])
    position = aim + distance * np.array([0.0, -np.cos(lift), np.sin(lift)])
    pitch = Rotation.from_euler("x", lift).as_matrix()
    roll = Rotation.from_euler("z", rng.normal(0, 6), degrees=True).as_matrix()
    return Camera(roll @ pitch @ _UPWARD, position, focal, (height, width))


def _kept(pictures: list[NDArray], held_out: bool) -> list[NDArray]:
    """Every sixth picture is held out."""
    return [picture for k, picture in enumerate(pictures) if (k % 6 == 3) == held_out]


def _patch(photographs: list[NDArray], rng: np.random.Generator) -> NDArray[np.uint8]:
    picture = photographs[rng.integers(len(photographs))]
    side = int(rng.uniform(0.25, 0.9) * min(picture.shape[:2]))
    top, left = (int(rng.integers(n - side + 1)) for n in picture.shape[:2])
    part = Image.fromarray(picture[top : top + side, left : left + side])
    return np.asarray(part.resize((PATCH, PATCH), Image.Resampling.BILINEAR))


def _harmonics(panorama: NDArray) -> Array:
    """(9, 3), irradiance over pi from a panorama, in the terms that the shader adds up."""
    bright = np.minimum(panorama[2::4, 2::4].astype(np.float64), 30.0)
    rows, columns = bright.shape[:2]
    polar = (np.arange(rows) + 0.5) / rows * np.pi
    around = ((np.arange(columns) + 0.5) / columns - 0.5) * 2 * np.pi
    z, level = np.cos(polar)[:, None], np.sin(polar)[:, None]
    towards = np.stack(np.broadcast_arrays(level * np.sin(around), level * np.cos(around), z), -1).reshape(-1, 3)
    solid = np.broadcast_to(level * (np.pi / rows) * (2 * np.pi / columns), (rows, columns)).reshape(-1, 1)
    normals = np.random.default_rng(0).standard_normal((200, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    received = np.maximum(normals @ towards.T, 0) @ (bright.reshape(-1, 3) * solid) / np.pi
    x, y, z = normals.T
    terms = np.stack([np.ones(200), y, z, x, x * y, y * z, 3 * z * z - 1, x * z, x * x - y * y], 1)
    return np.linalg.lstsq(terms, received, rcond=None)[0]


__all__ = ["ANNOTATIONS", "IMAGES", "Floats", "RenderSettings", "Studio", "render"]
