# SPDX-License-Identifier: Apache-2.0
"""Reading the two frames of `flexor align` from image files or from a clip."""

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

Frame = NDArray[np.uint8]  # (H, W, 3), RGB


class FrameError(Exception):
    """A frame that cannot be used; the message is one line meant for the user."""


def read_image(path: Path) -> Frame:
    """Read an 8-bit image file as RGB, turned as its EXIF orientation says."""
    try:
        with Image.open(path) as image:
            if image.mode[0] in "IF":
                raise FrameError(f"{path}: {image.mode} images are not supported, convert it to 8 bits a channel")
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except FileNotFoundError:
        raise FrameError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise FrameError(f"{path}: not an image that Pillow can read") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise FrameError(f"{path}: {_first_line(error)}") from None


def read_video(path: Path, indices: Sequence[int]) -> list[Frame]:
    """Read the frames of a clip with these indices, counted from 0 in display order."""
    if not path.exists():
        raise FrameError(f"{path}: no such file")
    found: dict[int, Frame] = {}
    count = 0
    try:
        with av.open(str(path)) as clip:
            if not clip.streams.video:
                raise FrameError(f"{path}: holds no video")
            for count, frame in enumerate(clip.decode(video=0), start=1):
                if count - 1 in indices:
                    found[count - 1] = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
                if len(found) == len(set(indices)):
                    break
    except av.FFmpegError as error:
        raise FrameError(f"{path}: {error.strerror}") from None
    for index in indices:
        if index not in found:
            raise FrameError(f"{path}: has no frame {index}, it holds {count}")
    return [found[index] for index in indices]


def parse_frames(text: str) -> tuple[int, int]:
    """Parse "KEY,NEIGHBOUR", two different frame numbers."""
    try:
        key, neighbour = (int(part) for part in text.split(","))
    except ValueError:
        raise FrameError(f"--frames must be two numbers such as 0,3, got {text!r}") from None
    if min(key, neighbour) < 0 or key == neighbour:
        raise FrameError(f"--frames must be two different numbers from 0 on, got {text!r}")
    return key, neighbour


def fit(frame: Frame, longest: int) -> Frame:
    """Shrink a frame so that its longer side is at most `longest` pixels; smaller frames are left alone."""
    height, width = frame.shape[:2]
    if max(height, width) <= longest:
        return frame
    ratio = longest / max(height, width)
    size = max(1, round(width * ratio)), max(1, round(height * ratio))
    return np.array(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
