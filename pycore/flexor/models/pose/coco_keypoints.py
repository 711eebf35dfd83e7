# SPDX-License-Identifier: Apache-2.0
"""People of a data set in COCO's format, cut out for training and measuring: COCO, PoseTrack18, rendered ones."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from .augment import Augmentation, recolour, view
from .geometry import crop, to_crop
from .recipe import Recipe


@dataclass(frozen=True)
class Annotated:
    """One person.

    Args:
        image: its image's number in `CocoKeypoints.images`.
        box: (4,), left, top, width, height, pixels.
        joints: (K, 2), pixels.
        visible: (K,), whether a joint is annotated.
        area: square pixels.
        annotation: its id.
    """

    image: int
    box: NDArray[np.float64]
    joints: NDArray[np.float64]
    visible: NDArray[np.bool_]
    area: float
    annotation: int


@dataclass(frozen=True)
class Batch:
    """People cut out: windows (B, T, 3, H, W), joints (B, K, 2) in crop pixels, visible (B, K), matrices (B, 2, 3)."""

    windows: Tensor
    joints: Tensor
    visible: Tensor
    matrices: Tensor


class CocoKeypoints:
    """The people of an annotation file, in its order.

    Left out are crowds, people without annotated joints, and boxes without extent in the image.

    Args:
        annotations: JSON with images, annotations and categories. Where images have vid_id and frame_id, as in
            PoseTrack18, windows take their neighbours; elsewhere the frame stands in for them.
        images: folder of the files.
        recipe: of the network: size, crop, joints, window. The category's names of joints decide what is read; joints
            that the recipe does not have are dropped, and those that the file lacks are invisible.

    Raises:
        ValueError: a file that is not of this form, or without people.
        FileNotFoundError: an image that is not there.
    """

    def __init__(self, annotations: Path, images: Path, recipe: Recipe) -> None:
        self.path, self.folder, self.recipe = annotations, images, recipe
        try:
            raw = annotations.read_bytes()
            content = json.loads(raw)
            records, people = list(content["images"]), list(content["annotations"])
            names = content["categories"][0]["keypoints"]
        except OSError as error:
            raise ValueError(f"{annotations}: {error.strerror}") from None
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise ValueError(
                f"{annotations}: not COCO keypoint annotations ({type(error).__name__}: {error})"
            ) from None
        self.sha256 = hashlib.sha256(raw).hexdigest()
        self.images: list[dict[str, Any]] = records
        self._order = [names.index(joint) if joint in names else -1 for joint in recipe.skeleton.joints]
        number = {record["id"]: k for k, record in enumerate(records)}
        self._frames = {(r["vid_id"], r["frame_id"]): k for k, r in enumerate(records) if "frame_id" in r}
        self.people = [person for a in people if (person := self._person(a, number)) is not None]
        if not self.people:
            raise ValueError(f"{annotations}: nobody with joints of {recipe.skeleton.name}; it has {', '.join(names)}")

    def __len__(self) -> int:
        return len(self.people)

    def _person(self, annotation: dict[str, Any], number: dict[Any, int]) -> Annotated | None:
        if annotation.get("iscrowd") or "bbox" not in annotation or annotation["image_id"] not in number:
            return None
        points = np.array(annotation["keypoints"], np.float64).reshape(-1, 3)
        points = np.concatenate([points, np.zeros((1, 3))])[self._order]
        visible = points[:, 2] > 0
        box = np.array(annotation["bbox"], np.float64)
        if not visible.any() or not (box[2:] > 0).all():
            return None
        area = float(annotation.get("area") or box[2] * box[3])
        return Annotated(number[annotation["image_id"]], box, points[:, :2], visible, area, annotation["id"])

    def image(self, number: int) -> NDArray[np.uint8]:
        """An image (H, W, 3)."""
        path = self.folder / self.images[number]["file_name"]
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such image, but {self.path} names it")
        with Image.open(path) as file:
            return np.array(file.convert("RGB"))

    def batch(self, chosen: list[int], augmentation: Augmentation | None = None, seeds: Any = None) -> Batch:
        """People cut out, each with a random state of its own.

        Args:
            chosen: their numbers.
            augmentation: None cuts them out as they are.
            seeds: for each, what `numpy.random.default_rng` takes.
        """
        parts = [self._cut(k, augmentation, seeds[i] if seeds is not None else 0) for i, k in enumerate(chosen)]
        return Batch(*(torch.stack(column) for column in zip(*parts, strict=True)))

    def _cut(self, chosen: int, augmentation: Augmentation | None, seed: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        person, recipe, rng = self.people[chosen], self.recipe, np.random.default_rng(seed)
        drawn = view(
            person.box,
            person.joints,
            person.visible,
            recipe.skeleton,
            recipe.input_size,
            augmentation,
            rng,
            enlarge=recipe.enlarge,
            udp=recipe.crop == "udp",
        )
        frames = [crop(self.image(k), drawn.matrix, recipe.input_size) for k in self._window(person.image)]
        joints = to_crop(person.joints, drawn.matrix).float()
        visible = torch.from_numpy(person.visible)
        if drawn.mirrored:
            mirror = list(recipe.skeleton.mirror)
            joints, visible = joints[mirror], visible[mirror]
        return recolour(torch.stack(frames), augmentation, rng), joints, visible, drawn.matrix

    def _window(self, image: int) -> list[int]:
        record = self.images[image]
        if "frame_id" not in record:
            return [image] * len(self.recipe.window)
        return [
            self._frames.get((record["vid_id"], record["frame_id"] + offset), image) for offset in self.recipe.window
        ]
