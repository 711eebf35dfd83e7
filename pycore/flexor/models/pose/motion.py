# SPDX-License-Identifier: Apache-2.0
"""Boxes around what moves before a still camera: a detector that needs no weights."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from .video import Frame, Picture

Small = NDArray[np.int16]  # (h, w, 3), a frame reduced

ROWS = 144  # of the reduced frames, about
SAMPLES = 64  # frames of a shot that its background is made of, at most twice as many
LEAST_DIFFERENCE = 28  # grey levels of any channel
LEAST_HEIGHT = 0.08  # of the frame's
WIDEST = 1.2  # a box's width by its height
LEAST_FILLED = 0.3  # of a box


class Backgrounds:
    """What stays in each shot, and boxes around what does not.

    Frames are reduced to about 144 rows. The background is the median of 64 to 128 frames spread over the shot. What
    differs from it by more than 28 levels of a channel is closed over small gaps and cut into pieces; a piece gives a
    box if it is at least 8 % as tall as the frame, not wider than 1.2 times its height, and fills 30 % of it.

    Args:
        frames: of the whole clip, with shots.
    """

    def __init__(self, frames: Iterable[Frame]) -> None:
        kept: dict[int, list[tuple[int, Small]]] = {}
        every: dict[int, int] = {}
        for frame in frames:
            if frame.image is None or frame.index % every.setdefault(frame.shot, 1):
                continue
            shot = kept.setdefault(frame.shot, [])
            shot.append((frame.index, _reduced(frame.image)))
            if len(shot) > 2 * SAMPLES:
                every[frame.shot] *= 2
                kept[frame.shot] = [entry for entry in shot if entry[0] % every[frame.shot] == 0]
        self._of_shot = {
            shot: np.median([small for _, small in entries], axis=0).astype(np.int16) for shot, entries in kept.items()
        }

    def moving(self, frame: Frame) -> NDArray[np.float64]:
        """Boxes (N, 4) in a frame that has an image: left, top, width, height, pixels; from left to right."""
        assert frame.image is not None
        small = _reduced(frame.image)
        mask = np.abs(small - self._of_shot[frame.shot]).max(2) > LEAST_DIFFERENCE
        mask = ndimage.binary_closing(ndimage.binary_opening(mask), np.ones((7, 3)), iterations=2)
        pieces, _ = ndimage.label(mask, np.ones((3, 3)))
        found = []
        for number, (rows, columns) in enumerate(ndimage.find_objects(pieces), start=1):
            height, width = rows.stop - rows.start, columns.stop - columns.start
            filled = (pieces[rows, columns] == number).mean()
            if height >= LEAST_HEIGHT * len(small) and width <= WIDEST * height and filled >= LEAST_FILLED:
                found.append((columns.start, rows.start, width, height))
        scale = np.array(frame.image.shape[1::-1]) / np.array(small.shape[1::-1])
        return np.array(sorted(found), np.float64).reshape(-1, 4) * np.tile(scale, 2)


def _reduced(image: Picture) -> Small:
    factor = max(1, image.shape[0] // ROWS)
    return np.asarray(Image.fromarray(image).reduce(factor)).astype(np.int16)
