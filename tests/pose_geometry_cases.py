# SPDX-License-Identifier: Apache-2.0
"""Inputs that the tests of pose geometry, decoding and metrics share with data/make_pose_geometry_golden.py."""

import json
from pathlib import Path

import numpy as np

BOXES = [[10, 20, 30, 40], [-15.5, 3.25, 200, 90], [300, 150, 12, 480.5], [1200.75, 640, 333, 444], [5, 6, 0, 70]]
ROTATIONS = [0.0, 30.0, -77.5, 180.0, 12.25]
CROPS = [(384, 288), (256, 192), (256, 256), (64, 48), (96, 72)]
SIGMAS = {2: 11, 3: 17}  # of the heatmaps, and the taps of the blur that goes with it
FAINT = np.float32(0.003)  # so much lower, peaked maps are cut off by UDP's limit of 0.001


def peaked_maps(sigma, count=24, height=48, width=36):
    """(count, height, width) float32: a bell, its middle at least 4 pixels inside, under noise."""
    rng = np.random.default_rng(sigma)
    center = 4 + rng.random((count, 2)) * [width - 9, height - 9]
    x, y = np.arange(width) - center[:, :1, None], np.arange(height)[:, None] - center[:, 1:, None]
    bells = np.exp(-(x**2 + y**2) / (2 * sigma**2)) * rng.uniform(0.2, 1, (count, 1, 1))
    return (bells + 0.02 * rng.random(bells.shape)).astype(np.float32)


def noise_maps(count=60, height=16, width=12):
    """(count, height, width) float32: noise, the highest pixels at least 3 inside."""
    maps = np.random.default_rng(5).random((count, height, width)).astype(np.float32)
    maps[:, 3:-3, 3:-3] += 0.05
    y, x = np.unravel_index(maps.reshape(count, -1).argmax(1), (height, width))
    return maps[(x > 2) & (x < width - 3) & (y > 2) & (y < height - 3)]


def simcc_vectors():
    rng = np.random.default_rng(6)
    x, y = (rng.standard_normal((3, 17, bins)).astype(np.float32) for bins in (96, 128))
    x[0, 0], y[1, 2] = -1, -2  # nothing found
    return x, y


def joints():
    """Joints (1, 40, 2) in a 256 x 192 input, and which are visible (1, 40)."""
    rng = np.random.default_rng(7)
    return (rng.random((1, 40, 2)) * [192, 256]).astype(np.float32), (rng.random((1, 40)) < 0.8).astype(np.float32)


def image(height=60, width=80):
    """(height, width, 3) uint8, smooth, with a sharp edge."""
    y, x = np.mgrid[:height, :width]
    waves = [127 + 100 * np.sin(x / 17 + y / 9), 127 + 100 * np.cos(x / 5), 127 + 100 * np.sin(y / 3)]
    picture = np.stack(waves, -1).round().astype(np.uint8)
    picture[: height // 3, : width // 2] = (255, 0, 128)
    return picture


def mpii():
    """Targets and predictions (50, 16, 2), visible (50, 16), head boxes (50, 4)."""
    rng = np.random.default_rng(8)
    target = rng.uniform(50, 300, (50, 16, 2))
    prediction = target - 1 + rng.normal(0, 15, target.shape)
    head = np.concatenate([rng.uniform(0, 50, (50, 2)), rng.uniform(80, 120, (50, 2))], 1)
    return target, prediction, (rng.random((50, 16)) > 0.15).astype(float), head


def crowd():
    """Poses (12, 17, 2), half of them near another, scores (12,), areas (12,)."""
    rng = np.random.default_rng(9)
    poses = rng.uniform(0, 100, (12, 17, 2))
    poses[6:] = poses[:6] + rng.normal(0, 1, (6, 17, 2)) * np.arange(6)[:, None, None]
    return poses, rng.random(12), rng.uniform(500, 4000, 12)


def posetrack_videos(folder: Path, videos=3, frames=8):
    """Writes truth/ and predictions/ of PoseTrack17's form: ignored regions, empty frames, people without joints."""
    rng = np.random.default_rng(10)
    for name in ("truth", "predictions"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for video in range(videos):
        truth, predictions = [], []
        for number in range(frames):
            image = {"image": [{"name": f"images/val/000342_mpii_test/{number:06d}.jpg"}]}
            people, found = _people(rng)
            regions = [_polygon(rng) for _ in range(rng.choice([0, 0, 1, 2]))]
            truth.append({**image, "annorect": people, **({"ignore_regions": regions} if regions else {})})
            predictions.append({**image, "annorect": found})
        for name, content in (("truth", truth), ("predictions", predictions)):
            (folder / name / f"{video}.json").write_text(json.dumps({"annolist": content}))


def _people(rng):
    people, found = [], []
    for track in range(rng.integers(0, 5)):
        corner, head = rng.uniform(0, 600, 2), rng.uniform(20, 60)
        body = corner + rng.normal(0, 60, (15, 2))
        box = dict(zip(("x1", "y1", "x2", "y2"), [[float(v)] for v in (*corner, *(corner + head))], strict=True))
        annotated = _points(body, rng, scored=False) if rng.random() > 0.1 else []
        people.append({"track_id": [track], **box, "annopoints": [{"point": annotated}] if annotated else []})
        for _ in range(rng.choice([0, 1, 1, 2])):
            found.append(body + rng.normal(0, rng.choice([4, 8, 20]), (15, 2)))
    found += [rng.uniform(0, 600, 2) + rng.normal(0, 60, (15, 2)) for _ in range(rng.choice([0, 0, 1]))]
    poses = [
        {"track_id": [n], "annopoints": [{"point": _points(pose, rng, scored=True)}]} for n, pose in enumerate(found)
    ]
    return people, poses


def _points(pose, rng, scored):
    points = [{"id": [n], "x": [float(x)], "y": [float(y)]} for n, (x, y) in enumerate(pose) if rng.random() < 0.85]
    return [{**point, "score": [float(rng.random())]} for point in points] if scored else points


def _polygon(rng):
    corners = rng.uniform(0, 600, (rng.integers(3, 7), 2))
    around = np.arctan2(*(corners - corners.mean(0)).T)
    return {"point": [{"x": [float(x)], "y": [float(y)]} for x, y in corners[np.argsort(around)]]}
