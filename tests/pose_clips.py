# SPDX-License-Identifier: Apache-2.0
"""Clips of people made of coloured discs, and networks of a few numbers that find them; `python -m` runs the command.

A joint is where its colour is, so that every pose that the pipeline gives can be checked.
"""

import json
import os
import signal
import sys
from fractions import Fraction
from itertools import product

import av
import numpy as np
import torch
import torch.nn.functional as F
from flexor.models.pose import recipe as recipes
from flexor.models.pose.boxes import FromFile
from flexor.models.pose.geometry import MEAN, STD
from flexor.models.pose.recipe import Recipe
from flexor.models.pose.skeleton import COCO17
from flexor.models.pose.video import Clip, Frame
from torch import nn

LEVELS = (20, 130, 240)
COLOURS = np.array([c for c in product(LEVELS, repeat=3) if len(set(c)) > 1][:17], np.uint8)
GREY = 90
# A body in a box of 1x1; joints do not touch.
BODY = np.array(
    [(0.5, 0.08), (0.4, 0.03), (0.6, 0.03), (0.28, 0.08), (0.72, 0.08), (0.25, 0.25), (0.75, 0.25), (0.12, 0.4)]
    + [(0.88, 0.4), (0.05, 0.55), (0.95, 0.55), (0.35, 0.55), (0.65, 0.55), (0.3, 0.75), (0.7, 0.75)]
    + [(0.28, 0.95), (0.72, 0.95)]
)  # fmt: skip
KILL_AT = "POSE_TEST_KILL_AT"  # the call of the network at which the process kills itself


def joints(left, top, width, height):
    """(17, 2), pixels."""
    return BODY * (width, height) + (left, top)


def picture(bodies, size=(96, 128), background=GREY):
    """(H, W, 3) with people in boxes, xywh."""
    image = np.full((*size, 3), background, np.uint8)
    y, x = np.mgrid[: size[0], : size[1]]
    for body in bodies:
        for (px, py), colour in zip(joints(*body), COLOURS, strict=True):
            image[(x - px) ** 2 + (y - py) ** 2 <= (body[3] / 24) ** 2] = colour
    return image


def walk(frames=10, size=(96, 192)):
    """Boxes, frame by frame, of two people who walk towards each other, and the pictures of them."""
    bodies = [[(8 + 2 * t, 12, 40, 72), (140 - 2 * t, 16, 36, 66)] for t in range(frames)]
    return bodies, [picture(body, size) for body in bodies]


def write_video(path, pictures, codec="ffv1", pixels="bgr0", rate=Fraction(12)):
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=rate)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pixels
        for image in pictures:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pixels)))
        file.mux(stream.encode(None))
    return path


def frames_of(pictures, shot=0):
    return [Frame(index, image, shot, "clip") for index, image in enumerate(pictures)]


def boxes_file(tmp_path, content, clip, name="boxes.json", **options):
    (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return FromFile(tmp_path / name, clip, **options)


def video(frames=3, size=(128, 96)):
    return Clip("clip", iter(()), True, size, None, frames)


class Colours(nn.Module):
    """Heatmaps of where each joint's colour is, a quarter of the image's size."""

    def __init__(self) -> None:
        super().__init__()
        self.colours = nn.Parameter(torch.from_numpy(COLOURS.astype(np.float32) / 255))
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        if str(self.calls) == os.environ.get(KILL_AT):
            os.kill(os.getpid(), signal.SIGKILL)
        rgb = images * images.new_tensor(STD).view(3, 1, 1) + images.new_tensor(MEAN).view(3, 1, 1)
        apart = (rgb[:, None] - self.colours[:, :, None, None]).abs().amax(2)
        return F.avg_pool2d((1 - apart / 0.2).clamp(min=0), 4)

    def step(self, images, state):
        """Recurrent: half of it is what was there before."""
        maps = self(images)
        maps = maps if state is None else (maps + state[0]) / 2
        return maps, (maps,)


def _recipe(name, **options):
    return Recipe(name, Colours, lambda model, windows: model(windows[:, 0]), (96, 72), COCO17, **options)


RECIPES = {
    "colours": _recipe("colours"),
    "colours_udp": _recipe("colours_udp", crop="udp", decode="udp"),
    "memory": _recipe("memory", step=lambda model, windows, state: model.step(windows[:, 0], state)),
    "before": Recipe(
        "before", Colours, lambda model, windows: model(windows[:, 1]), (96, 72), COCO17, window=(0, -1, 1)
    ),
}


def register(patch=None):
    """Make them known to the command."""
    for name, one in RECIPES.items():
        patch.setitem(recipes._RECIPES, name, one) if patch else recipes._RECIPES.update({name: one})


if __name__ == "__main__":
    register()
    from flexor.cli.app import app

    app(["pose", *sys.argv[1:]])
