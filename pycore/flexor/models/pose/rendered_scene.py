# SPDX-License-Identifier: Apache-2.0
"""Draws dressed bodies before a background, with OpenGL off screen (Mesa's llvmpipe does, no GPU is needed)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .rendered_body import PARTS, Bodies, Floats
from .rendered_shaders import BACKGROUND_FRAGMENT, BACKGROUND_VERTEX, BODY_FRAGMENT, BODY_VERTEX

Array = NDArray[np.float64]
FACE, TROUSERS, SHIRT, SHOES, HAIR, EYES, SKIRT, LOOSE_HAIR, ARMS, HANDS, LEGS, TRUNK = range(12)
_OPEN = (SKIRT, LOOSE_HAIR)  # whose inside shows
PATCH = 256  # pixels of a cloth's photograph


@dataclass(frozen=True)
class Layer:
    """Something a body wears, or its skin.

    Args:
        kind: SKIN, TROUSERS, ...
        colours: (2, 3) linear, of the cloth and of its pattern.
        pattern: 0 plain, 1 rings, 2 stripes, 3 plaid, 4 dots, 5 patches, 6 a photograph, 7 a print on the chest.
        scale: of the pattern, per metre.
        limits: lower and upper end of the cloth in the canonical body (metres), end along the arm (0 shoulder,
            1 elbow, 2 wrist).
        loose: how far it stands off the body, metres.
        patch: which photograph.
        shine: of the highlight.
    """

    kind: int
    colours: Array
    pattern: int = 0
    scale: float = 10.0
    limits: tuple[float, float, float] = (-9.0, 9.0, 9.0)
    loose: float = 0.0
    patch: int = 0
    shine: float = 0.0
    seed: float = 0.0


@dataclass(frozen=True)
class Person:
    """Vertices and normals (V, 3) in the world, and what is drawn of them."""

    vertices: Floats
    normals: Floats
    layers: Sequence[Layer]


@dataclass(frozen=True)
class Light:
    """Surroundings as nine harmonics (9, 3) of irradiance, and one lamp from `direction` with its colour."""

    harmonics: Array
    direction: Array
    colour: Array


@dataclass(frozen=True)
class Camera:
    """A pinhole camera: x right, y down, z away.

    Args:
        rotation: (3, 3), world to camera.
        position: (3,) in the world, metres.
        focal: pixels.
        size: (H, W).
    """

    rotation: Array
    position: Array
    focal: float
    size: tuple[int, int]

    def project(self, points: NDArray) -> tuple[Array, Array]:
        """Pixels (..., 2), where (0, 0) is the first pixel's centre, and depth (...) of points (..., 3)."""
        seen = (points - self.position) @ self.rotation.T
        centre = np.array([self.size[1], self.size[0]]) / 2 - 0.5
        return self.focal * seen[..., :2] / np.maximum(seen[..., 2:], 1e-3) + centre, seen[..., 2]

    def matrix(self) -> Floats:
        """World to OpenGL's clip space."""
        height, width = self.size
        near, far = 0.05, 60.0
        clip = np.array(
            [
                [2 * self.focal / width, 0, 0, 0],
                [0, -2 * self.focal / height, 0, 0],
                [0, 0, (far + near) / (far - near), -2 * far * near / (far - near)],
                [0, 0, 1, 0],
            ]
        )
        view = np.eye(4)
        view[:3, :3], view[:3, 3] = self.rotation, -self.rotation @ self.position
        return (clip @ view).astype(np.float32)


class Stage:
    """What draws. One for a process: it holds the OpenGL context, the mesh and the photographs.

    Args:
        bodies: whose mesh is drawn.
        patches: (N, 256, 256, 3) uint8, photographs that cloth may show.
        size: largest (H, W) of a picture.

    Raises:
        ModuleNotFoundError: without the package moderngl.
        RuntimeError: without an OpenGL that draws off screen.
    """

    def __init__(self, bodies: Bodies, patches: NDArray[np.uint8], size: tuple[int, int]) -> None:
        try:
            import moderngl
        except ImportError as error:
            raise ModuleNotFoundError("rendered people need the package moderngl: pip install moderngl") from error
        try:
            gl = moderngl.create_context(standalone=True, backend="egl")
        except Exception as error:
            raise RuntimeError(f"no off-screen OpenGL ({error}); on Debian: apt install libegl-mesa0 libegl1") from None
        self._gl, self._moderngl, self.size = gl, moderngl, size
        self._sharp = gl.framebuffer([gl.renderbuffer(size[::-1], 4)], None)
        self._drawn = gl.framebuffer(
            [gl.renderbuffer(size[::-1], 4, samples=4)], gl.depth_renderbuffer(size[::-1], samples=4)
        )
        gl.cull_face = "back"
        self._noise = gl.texture3d(
            (32, 32, 32), 4, np.random.default_rng(0).integers(0, 256, 4 << 15, np.uint8).tobytes()
        )
        self._backdrop = gl.program(BACKGROUND_VERTEX, BACKGROUND_FRAGMENT)
        self._quad = gl.vertex_array(self._backdrop, [])
        self._patches = gl.texture_array((PATCH, PATCH, len(patches)), 3, np.ascontiguousarray(patches).tobytes())
        self._patches.build_mipmaps()
        self._pictures: dict[int, object] = {}
        self._prepare_mesh(bodies)

    def _prepare_mesh(self, bodies: Bodies) -> None:
        gl = self._gl
        canonical = bodies.canonical.vertices
        triangles = bodies.triangles
        first = triangles[:, 0]
        owner = {part: triangles[(first >= a) & (first < z)] for part, (a, z) in PARTS.items()}
        body = owner["body"]
        height = canonical[body, 2].mean(1)
        head = bodies.bone_share(["head", "neck"])
        arm = bodies.bone_share(["upperarm", "lowerarm", "wrist", "finger", "metacarpal"])
        hand = bodies.bone_share(["wrist", "finger", "metacarpal"])[body].min(1)
        legs = body[(height < 0.3) & (arm[body].max(1) < 0.5)]
        trunk = body[((height > -0.25) | (arm[body].max(1) > 0.2)) & (hand < 0.9)]
        trunk = trunk[bodies.bone_share(["head"])[trunk].max(1) < 0.5]
        hand = hand > 0.4
        reach = arm[body].max(1) > 0.2
        face = head[body].max(1) > 0.1
        parts = {
            FACE: body[face], HANDS: body[hand], ARMS: body[reach & ~hand], LEGS: body[~reach & (height < 0.1)],
            TRUNK: body[~reach & ~face & (height >= 0.1)], TROUSERS: legs, SHIRT: trunk, SHOES: body[height < -0.6],
            HAIR: body[head[body].min(1) > 0.5], EYES: owner["eyes"], SKIRT: owner["skirt"], LOOSE_HAIR: owner["hair"],
        }  # fmt: skip
        constant = np.concatenate([canonical, _features(bodies, arm, head)], 1).astype(np.float32)
        self._constant = gl.buffer(np.ascontiguousarray(constant).tobytes())
        self._moving = gl.buffer(reserve=len(canonical) * 24)
        self._layout = [
            (self._moving, "3f 3f", "position", "normal"),
            (self._constant, "3f 4f", "canonical", "feature"),
        ]
        self._parts = {kind: gl.buffer(part.astype(np.int32).tobytes()) for kind, part in parts.items()}
        self._arrays: dict[tuple[int, int], Any] = {}

    def _array(self, kind: int, pattern: int) -> Any:
        """A layer's program and what it draws; `_array(...).program` takes the uniforms."""
        if (kind, pattern) not in self._arrays:
            fragment = BODY_FRAGMENT.replace("KIND %d", f"KIND {kind}").replace("PATTERN %d", f"PATTERN {pattern}")
            program = self._gl.program(BODY_VERTEX, fragment)
            used = [(buffer, *_present(program, form, names)) for buffer, form, *names in self._layout]
            self._arrays[kind, pattern] = self._gl.vertex_array(program, used, self._parts[kind])
        return self._arrays[kind, pattern]

    def backdrop(self, picture: NDArray, key: int) -> None:
        """Keep a picture (H, W, 3), uint8, or float16 for a panorama, to draw behind people by its key."""
        kind = "f2" if picture.dtype == np.float16 else "f1"
        texture = self._gl.texture(
            picture.shape[1::-1], 3, np.ascontiguousarray(picture).tobytes(), dtype=kind, alignment=1
        )
        texture.build_mipmaps()
        self._pictures[key] = texture

    def draw(
        self,
        camera: Camera,
        people: Sequence[Person],
        light: Light,
        background: int,
        window: tuple[float, float, float, float] | None,
        exposure: float,
    ) -> NDArray[np.uint8]:
        """The picture (H, W, 3).

        Args:
            camera: what sees it.
            people: nearer ones hide farther ones.
            light: on them.
            background: key of the picture behind.
            window: left, top, width, height of what is shown of it, as shares; None for a panorama all around.
            exposure: of the people, and of a panorama.
        """
        height, width = camera.size
        gl = self._gl
        self._drawn.use()
        gl.viewport = (0, 0, width, height)
        gl.clear(depth=1.0)
        gl.disable(self._moderngl.DEPTH_TEST | self._moderngl.CULL_FACE)
        self._pictures[background].use(0)  # type: ignore[attr-defined]
        _set(self._backdrop, panorama=window is None, window=window or (0, 0, 1, 1), exposure=exposure)
        rays = camera.rotation.T @ np.diag([width / 2 / camera.focal, height / 2 / camera.focal, 1.0])
        _set(self._backdrop, rays=rays.T)
        self._quad.render(self._moderngl.TRIANGLES, vertices=3)
        gl.enable(self._moderngl.DEPTH_TEST)
        self._patches.use(1)
        self._noise.use(2)
        common = {"clip": camera.matrix().T, "eye": camera.position, "exposure": exposure, "patches": 1, "cloud": 2}
        common |= {"harmonics": light.harmonics, "lamp": light.direction, "lamp_colour": light.colour}
        for person in people:
            moving = np.concatenate([person.vertices, person.normals], 1)
            self._moving.write(np.ascontiguousarray(moving, dtype=np.float32).tobytes())
            for layer in person.layers:
                array = self._array(layer.kind, layer.pattern)
                own = {"colours": layer.colours, "scale": layer.scale, "limits": layer.limits, "loose": layer.loose}
                own |= {"patch_index": layer.patch, "shine": layer.shine, "seed": layer.seed}
                _set(array.program, **common, **own)
                (gl.disable if layer.kind in _OPEN else gl.enable)(self._moderngl.CULL_FACE)
                array.render(self._moderngl.TRIANGLES)
        gl.copy_framebuffer(self._sharp, self._drawn)
        pixels = np.frombuffer(self._sharp.read(viewport=(0, 0, width, height), components=3, alignment=1), np.uint8)
        return pixels.reshape(height, width, 3)[::-1].copy()


def _set(program: object, **values: object) -> None:
    """Set uniforms; one that the compiler removed is nobody's loss."""
    for name, value in values.items():
        if name in program:  # type: ignore[operator]
            uniform = program[name]  # type: ignore[index]
            if isinstance(value, np.ndarray):
                whole = np.ascontiguousarray(value, dtype=np.float32)
                uniform.write(whole.tobytes()[: 4 * uniform.dimension * uniform.array_length])
            else:
                uniform.value = value


def _present(program: Any, form: str, names: list[str]) -> tuple[str, ...]:
    """A buffer's layout, where what the compiler removed is skipped."""
    kinds = form.split()
    used = [kind if name in program else f"{4 * int(kind[0])}x" for kind, name in zip(kinds, names, strict=True)]
    return " ".join(used), *(name for name in names if name in program)


def _features(bodies: Bodies, arm: Floats, head: Floats) -> Floats:
    """(V, 4): place along the arm (0 shoulder, 1 elbow, 2 wrist), share of the head, eyebrow or lip, iris."""
    canonical = bodies.canonical
    at = {name: canonical.heads[b] for b, name in enumerate(bodies.bones)}
    points = canonical.vertices.astype(np.float64)
    along = np.full(len(points), -0.2)
    for side in (".L", ".R"):
        start, elbow, wrist = (at[b + side] for b in ("upperarm01", "lowerarm01", "wrist"))
        mine = (points[:, 0] > 0) == (side == ".L")
        upper = (points - start) @ (elbow - start) / ((elbow - start) ** 2).sum()
        lower = (points - elbow) @ (wrist - elbow) / ((wrist - elbow) ** 2).sum()
        place = np.where((upper > 0.9) & (lower > 0), 1 + lower, np.clip(upper, -0.2, 1))
        along = np.where(mine & (arm > 0.2), place, along)
    eyes = np.stack([at["eye.L"], at["eye.R"]])
    away = points[:, None] - eyes
    brow = np.exp(-(((away - [0, -0.02, 0.022]) / [0.018, 0.03, 0.006]) ** 2).sum(-1)).max(1)
    mouth = np.array([0, eyes[0, 1] - 0.02, eyes[0, 2] - 0.068])
    lips = np.exp(-(((points - mouth) / [0.02, 0.03, 0.008]) ** 2).sum(-1))
    iris = (np.hypot(away[..., 0], away[..., 2]).min(1) < 0.0085) & (points[:, 1] < eyes[0, 1])
    return np.stack([along, head, brow - lips, iris.astype(float)], 1).astype(np.float32)
