# SPDX-License-Identifier: Apache-2.0
"""Stick figures in COCO's format for tests of the pose training, and its gradients by one process or by several.

python tests/pose_people.py OUT.pt
torchrun --nproc_per_node 2 tests/pose_people.py OUT.pt
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from flexor.models import parallel
from flexor.models.pose.coco_keypoints import CocoKeypoints
from flexor.models.pose.recipe import recipe
from flexor.models.pose.skeleton import COCO17
from flexor.models.pose.trainer import Steps, loss_of
from flexor.models.pose.training_settings import DataSettings, PoseSettings
from PIL import Image, ImageDraw

# Joints of a person of height 1 that stands: x, y.
STANDING = np.array(
    [[0, 0.08], [0.03, 0.05], [-0.03, 0.05], [0.06, 0.07], [-0.06, 0.07], [0.12, 0.2], [-0.12, 0.2], [0.17, 0.35]]
    + [[-0.17, 0.35], [0.19, 0.5], [-0.19, 0.5], [0.08, 0.52], [-0.08, 0.52], [0.09, 0.75], [-0.09, 0.75]]
    + [[0.1, 0.97], [-0.1, 0.97]]
)


def write_people(folder: Path, pictures: int, seed: int = 0) -> Path:
    """Pictures of one figure each, limbs of their own colours, joints moved at random; the annotations' path."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for number in range(pictures):
        joints = STANDING + 0.04 * rng.standard_normal(STANDING.shape)
        joints = joints * rng.uniform(60, 85) + [48 + rng.uniform(-8, 8), rng.uniform(4, 10)]
        picture = Image.fromarray(rng.integers(0, 90, (96, 96, 3), np.uint8))
        draw = ImageDraw.Draw(picture)
        for k, (a, b) in enumerate(COCO17.limbs):
            colour = (255 - 13 * k, 40 + 11 * k, 120 + 60 * (k % 3))
            draw.line([tuple(joints[a]), tuple(joints[b])], colour, 3)
        picture.save(folder / "images" / f"{number}.png")
        low, high = joints.min(0), joints.max(0)
        points = np.concatenate([joints, np.full((17, 1), 2)], 1)
        images.append({"id": number, "file_name": f"{number}.png", "height": 96, "width": 96})
        annotations.append(
            {
                "id": number + 1,
                "image_id": number,
                "category_id": 1,
                "iscrowd": 0,
                "bbox": [*low, *(high - low)],
                "area": float((high - low).prod()),
                "keypoints": points.ravel().tolist(),
                "num_keypoints": 17,
            }
        )
    category = {"id": 1, "name": "person", "keypoints": list(COCO17.joints), "skeleton": []}
    path = folder / "annotations.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": [category]}))
    return path


def main(out: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    parallel.start()
    found = {}
    for loss in ("squares", "cross_entropy"):
        settings = PoseSettings(DataSettings(), DataSettings(), batch=8, loss=loss)
        torch.manual_seed(0)
        how = recipe("small")
        model = how.build()
        if parallel.size() > 1:
            parallel.synchronise(model)
        steps = Steps(CocoKeypoints(folder / "annotations.json", folder / "images", how), settings)
        for step in range(2):  # the second has running statistics to follow
            model.zero_grad()
            loss_of(model, how, steps[step], settings).backward()
            parallel.average_gradients(model.parameters())
        found[loss] = {
            "gradients": {name: parameter.grad for name, parameter in model.named_parameters()},
            "buffers": {name: buffer for name, buffer in model.named_buffers() if "running" in name},
        }
    if parallel.rank() == 0:
        torch.save(found, out)
    parallel.wait()
    parallel.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
