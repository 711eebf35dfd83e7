# SPDX-License-Identifier: Apache-2.0
"""Photographs, panoramas and cut-out things that packages ship: what is behind and before the rendered people."""

from __future__ import annotations

import base64
import importlib.util
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True)
class Source:
    """Pictures of one package.

    Args:
        package: its name, and what installs it.
        places: glob patterns from the root of the file system, or from the Python package.
        without: parts of names that are left out: people, blank or duplicate pictures.
        python: the Python package that holds them.
    """

    package: str
    places: tuple[str, ...]
    without: tuple[str, ...] = ()
    python: str = ""


PHOTOGRAPHS = (
    Source(
        "scikit-image (pip)", ("data/*.jpg", "data/*.png"), ("astronaut", "camera", "phantom", "page", "text", "color",
        "horse", "chess", "logo", "cell", "clock", "moon", "multipage", "blank", "micro"), "skimage",
    ),
    Source("scikit-learn (pip)", ("datasets/images/*.jpg",), (), "sklearn"),
    Source("gnome-backgrounds (apt)", ("usr/share/backgrounds/gnome/*.webp",), ("symbolic", "vnc")),
    Source("mate-backgrounds (apt)", ("usr/share/backgrounds/mate/nature/*",)),
    Source("lomiri-wallpapers-16.04 (apt)", ("usr/share/backgrounds/*_by_*.jpg",), ("friends",)),
    Source("plasma-workspace-wallpapers (apt)", ("usr/share/wallpapers/*/contents/images/2560x1600.*",
        "usr/share/wallpapers/*/contents/images/5120x2880.*")),
)  # fmt: skip
THINGS = Source(
    "tuxpaint-stamps-default (apt)", ("usr/share/tuxpaint/stamps/*/**/*.png",),
    ("/symbols/", "/people/", "/clothes/", "_mirror", "_flip"),
)  # fmt: skip
PANORAMAS = "pmndrs-assets-*.tgz"  # npm pack @pmndrs/assets


class MissingPictures(FileNotFoundError):
    """Packages that a training needs and this machine lacks."""


def find(source: Source, root: Path) -> list[Path]:
    """A source's pictures, in the order of their names.

    Raises:
        MissingPictures: none.
    """
    folder = root
    if source.python:
        spec = importlib.util.find_spec(source.python)
        if spec is None or spec.origin is None:
            raise MissingPictures(f"pictures of {source.package} are missing: install it")
        folder = Path(spec.origin).parent
    files = [f for place in source.places for f in sorted(folder.glob(place))]
    files = [f for f in files if not any(word in str(f.relative_to(folder)) for word in source.without)]
    if not files:
        raise MissingPictures(
            f"pictures of {source.package} are missing under {folder}: install it, or unpack it there with "
            f"apt-get download and dpkg -x"
        )
    return files


def read_photograph(path: Path, side: int = 640) -> NDArray[np.uint8]:
    """A photograph (H, W, 3), its shorter side at most `side` pixels."""
    with Image.open(path) as image:
        image.draft("RGB", (2 * side, 2 * side))
        small = image.convert("RGB")
    scale = side / min(small.size)
    if scale < 1:
        small = small.resize((round(small.width * scale), round(small.height * scale)), Image.Resampling.BOX)
    return np.asarray(small)


def read_thing(path: Path, side: int = 160) -> NDArray[np.uint8]:
    """A cut-out thing (H, W, 4), its longer side at most `side` pixels."""
    with Image.open(path) as image:
        cut = image.convert("RGBA")
    cut.thumbnail((side, side))
    return np.asarray(cut)


def read_panoramas(root: Path) -> dict[str, NDArray[np.float16]]:
    """The panoramas (256, 512, 3) of the npm package @pmndrs/assets by name: linear light, all around.

    Raises:
        MissingPictures: no such package in the folder.
        ModuleNotFoundError: without the package OpenEXR.
    """
    packed = sorted(root.glob(PANORAMAS))
    if not packed:
        raise MissingPictures(f"{root / PANORAMAS} is missing: run `npm pack @pmndrs/assets` in {root}")
    try:
        import OpenEXR
    except ImportError as error:
        raise ModuleNotFoundError("panoramas need the package OpenEXR: pip install OpenEXR") from error
    import tempfile

    found: dict[str, NDArray[np.float16]] = {}
    with tarfile.open(packed[-1]) as archive, tempfile.TemporaryDirectory() as folder:
        for member in archive.getmembers():
            name = re.fullmatch(r"package/hdri/(\w+)\.exr\.js", member.name)
            content = archive.extractfile(member) if name else None
            if name is None or content is None:
                continue
            text = re.search(rb"base64,([A-Za-z0-9+/=]+)", content.read())
            path = Path(folder) / "panorama.exr"
            path.write_bytes(base64.b64decode(text.group(1) if text else b""))
            found[name[1]] = np.clip(next(iter(OpenEXR.File(str(path)).channels().values())).pixels, 0, 6e4)
    return found
