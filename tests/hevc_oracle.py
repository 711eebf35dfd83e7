# SPDX-License-Identifier: Apache-2.0
"""Pictures to encode, and what other programs make of an HEVC stream."""

import functools
import hashlib
import shutil
import subprocess
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SUBSAMPLING = {"4:0:0": None, "4:2:0": (2, 2), "4:2:2": (2, 1), "4:4:4": (1, 1)}
# (chroma format, bit depth) -> ffmpeg's name
PIXEL_FORMATS = {
    ("4:0:0", 8): "gray", ("4:0:0", 10): "gray10le", ("4:0:0", 12): "gray12le",
    ("4:2:0", 8): "yuv420p", ("4:2:0", 10): "yuv420p10le", ("4:2:0", 12): "yuv420p12le",
    ("4:2:2", 8): "yuv422p", ("4:2:2", 10): "yuv422p10le", ("4:2:2", 12): "yuv422p12le",
    ("4:4:4", 8): "yuv444p", ("4:4:4", 10): "yuv444p10le", ("4:4:4", 12): "yuv444p12le",
}  # fmt: skip


def card(width, height, seed=0):
    """A picture (height, width, 3) in 0..1 that makes encoders use all they have.

    A slow gradient, sharp lines at many angles, small letters, saturated colours, noise, and a flat part.
    """
    noise = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    shift = 0.03 * seed
    picture = np.stack(
        [0.2 + 0.6 * x / width + shift, 0.8 - 0.5 * y / height, 0.3 + 0.4 * (x + y) / (width + height)], -1
    )
    canvas = Image.fromarray((255 * picture.clip(0, 1)).astype(np.uint8))
    draw = ImageDraw.Draw(canvas)
    for i in range(7):
        draw.line((width * i / 7, height * 0.35, width * (6 - i) / 7 + seed, height - 1), (30 * i, 255 - 30 * i, 90), 1)
    for row in range(3):
        draw.text((1 + seed, row * 10 - 2), "Hevc 4:4:4 intra {tools}[0]; ijlk 0123456789"[row * 5 :], (20, 20, 40))
    draw.rectangle((width * 0.6, height * 0.1, width * 0.75, height * 0.45), (230, 20, 30))
    draw.ellipse((width * 0.72, height * 0.3, width * 0.95, height * 0.8), (20, 60, 220))
    picture = np.asarray(canvas) / 255
    textured = (x > 0.45 * width) & (y > 0.6 * height)
    picture = picture + textured[..., None] * noise.normal(0, 0.06, picture.shape)
    picture[int(height * 0.85) :, : width // 3] = (0.9, 0.9, 0.9)
    return picture.clip(0, 1)


def planes_of(picture, chroma, depth, rgb=False):
    """Planes of a picture in 0..1: BT.709 in the limited range, or green, blue, red with `rgb`."""
    if rgb:
        channels = [255 * picture[..., i] for i in (1, 2, 0)]
    else:
        luma = picture @ [0.2126, 0.7152, 0.0722]
        channels = [16 + 219 * luma, *(128 + 224 * (picture[..., i] - luma) / s for i, s in ((2, 1.8556), (0, 1.5748)))]
    if chroma == "4:0:0":
        channels = channels[:1]
    else:
        across, down = SUBSAMPLING[chroma]
        height, width = picture.shape[:2]
        padding = ((0, -height % down), (0, -width % across))
        for i in (1, 2):
            padded = np.pad(channels[i], padding, "edge")
            blocks = padded.reshape(padded.shape[0] // down, down, padded.shape[1] // across, across)
            channels[i] = blocks.mean((1, 3))
    scale, most = 1 << (depth - 8), (1 << depth) - 1
    return [np.rint(c * scale).clip(0, most).astype(np.uint8 if depth == 8 else np.uint16) for c in channels]


def md5(plane):
    """Of a plane's samples in native order, 8 or 16 bits each, row after row."""
    return hashlib.md5(np.ascontiguousarray(plane).tobytes()).hexdigest()


@functools.cache
def missing(program, *needs):
    """Why `program` cannot serve, or None; `needs` are encoders of ffmpeg."""
    if shutil.which(program) is None:
        return f"{program} is not installed"
    if needs:
        listed = run([program, "-hide_banner", "-encoders"]).stdout.decode()
        for encoder in needs:
            if f" {encoder} " not in listed:
                return f"{program} has no {encoder}"
    return None


def encode(planes, chroma, depth, options, frames=1, preset="medium"):
    """HEVC bytes of the same or of several pictures, by ffmpeg's libx265, every picture intra, with MD5 SEI.

    Args:
        planes: of one picture, or of `frames` pictures, flat.
        options: x265's own, "name=value:name=value".
    """
    per_picture = len(planes) // frames
    height, width = planes[0].shape
    raw = b"".join(np.ascontiguousarray(plane).tobytes() for plane in planes)
    assert per_picture == (1 if chroma == "4:0:0" else 3)
    parameters = ":".join(filter(None, ["keyint=1:hash=1:log-level=error:pools=1:frame-threads=1", options]))
    command = ["ffmpeg", "-v", "error", "-f", "rawvideo", "-pix_fmt", PIXEL_FORMATS[chroma, depth]]
    command += ["-s", f"{width}x{height}", "-r", "1", "-i", "-", "-c:v", "libx265", "-preset", preset]
    command += ["-x265-params", parameters, "-f", "hevc", "-"]
    return run(command, raw).stdout


def ffmpeg_planes(stream, width, height, pixel_format):
    """MD5 of every plane of every picture, as ffmpeg decodes it: [[md5, ...], ...]."""
    command = ["ffmpeg", "-v", "error", "-threads", "1", "-flags", "unaligned", "-i", "-"]  # windows as they are
    raw = run([*command, "-fps_mode", "passthrough", "-f", "rawvideo", "-"], stream).stdout
    return split(raw, width, height, pixel_format)


def dec265_planes(stream, path, width, height, pixel_format):
    """The same by libde265's own program, through files beside `path`."""
    Path(path).write_bytes(stream)
    out = Path(path).with_suffix(".yuv")
    run(["libde265-dec265", "-q", "-o", str(out), str(path)])
    return split(out.read_bytes(), width, height, pixel_format)


def split(raw, width, height, pixel_format):
    """MD5 of every plane of raw pictures, one after the other."""
    chroma = next(chroma for (chroma, _), name in PIXEL_FORMATS.items() if name == pixel_format)
    wide = 2 if pixel_format.endswith("le") else 1
    sizes = [width * height * wide]
    if SUBSAMPLING[chroma]:
        across, down = SUBSAMPLING[chroma]
        sizes += 2 * [-(-width // across) * -(-height // down) * wide]
    assert len(raw) % sum(sizes) == 0, f"{len(raw)} bytes are no whole pictures of {sum(sizes)}"
    pictures, at = [], 0
    while at < len(raw):
        pictures.append([])
        for size in sizes:
            pictures[-1].append(hashlib.md5(raw[at : at + size]).hexdigest())
            at += size
    return pictures


def run(command, data=None):
    done = subprocess.run(command, input=data, capture_output=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.decode()[-500:]}"
    return done
