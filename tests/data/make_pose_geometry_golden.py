# SPDX-License-Identifier: Apache-2.0
"""Writes pose_geometry_golden.npz: what released code gives for the inputs of pose_geometry_cases.py.

Run where mmpose 1.3.2 and opencv-python-headless 5.0 are installed, with checkouts of github.com/Pose-Group/FAMI-Pose,
github.com/zhengli97/OKDHP and github.com/leonid-pishchulin/poseval (with click, tqdm and shapely):

python tests/data/make_pose_geometry_golden.py FAMI-POSE OKDHP POSEVAL
"""

import os
import sys
import tempfile
import textwrap
import types
from collections import OrderedDict
from pathlib import Path

import cv2
import numpy as np
from mmpose.codecs import MSRAHeatmap, SimCCLabel, UDPHeatmap
from mmpose.structures.bbox import get_udp_warp_matrix

sys.path.insert(0, str(Path(__file__).parents[1]))
import pose_geometry_cases as cases

TARGET = Path(__file__).with_name("pose_geometry_golden.npz")


def load(path: Path, **names: object) -> types.ModuleType:
    """A module from its source without the relative imports; names stand in for what they would bring."""
    made = types.ModuleType(path.stem)
    made.__dict__.update(names)
    source = "\n".join(line for line in path.read_text().splitlines() if not line.startswith("from ."))
    exec(compile(source, str(path), "exec"), made.__dict__)
    return made


def geometry(affine: types.ModuleType, golden: dict) -> None:
    kinds = {
        "biased": affine.get_affine_transform,
        "udp_box_intervals": affine.dark_get_affine_transform,
        "udp": lambda center, scale, turn, size: get_udp_warp_matrix(center, scale * 200, -turn, size),
    }
    for kind, matrix in kinds.items():
        found = []
        for (x, y, w, h), turn, (height, width) in zip(cases.BOXES, cases.ROTATIONS, cases.CROPS, strict=True):
            w, h = max(w, h * width / height), max(h, w * height / width)
            center = np.array([x, y]) + np.array(cases.BOXES[len(found)][2:]) / 2
            found.append(matrix(center, np.array([w, h]) * 1.25 / 200, turn, (width, height)))
        golden[f"affine/{kind}"] = np.stack(found)
    turned = affine.get_affine_transform(np.array([36.5, 22.0]), np.array([0.15, 0.2]), 20, (24, 32))
    golden["crop"] = cv2.warpAffine(cases.image(), turned, (24, 32), flags=cv2.INTER_LINEAR)


def decoding(heatmaps: types.ModuleType, golden: dict) -> None:
    sets = {f"peaked{sigma}": (cases.peaked_maps(sigma), sigma) for sigma in cases.SIGMAS}
    sets |= {"noise": (cases.noise_maps(), 2), "faint": (cases.peaked_maps(2) * cases.FAINT, 2)}
    for name, (maps, sigma) in sets.items():
        height, width = maps.shape[1:]
        size, blur = ((width * 4, height * 4), (width, height)), cases.SIGMAS[sigma]
        golden[f"{name}/quarter"] = MSRAHeatmap(*size, sigma).decode(maps)[0][0] / 4
        golden[f"{name}/dark"] = MSRAHeatmap(*size, sigma, unbiased=True, blur_kernel_size=blur).decode(maps)[0][0] / 4
        udp = UDPHeatmap(*size, sigma=sigma, blur_kernel_size=blur).decode(maps)[0][0]
        golden[f"{name}/udp"] = udp / size[0] * (np.array(size[1]) - 1)
    center, scale = np.array([100.0, 50.0]), np.array([0.9, 1.2])
    golden["peaked2/image"] = heatmaps.get_final_preds(cases.peaked_maps(2)[None], [center], [scale])[0][0]
    golden["simcc/points"], golden["simcc/scores"] = SimCCLabel((48, 64)).decode(*cases.simcc_vectors())


def targets(heatmaps: types.ModuleType, golden: dict) -> None:
    joints, visible = cases.joints()
    size, small = (192, 256), (48, 64)
    codecs = {
        "biased": MSRAHeatmap(size, small, 2),
        "unbiased": MSRAHeatmap(size, small, 2, unbiased=True),
        "udp": UDPHeatmap(size, small, sigma=2),
    }
    for kind, codec in codecs.items():
        encoded = codec.encode(joints.copy(), visible.copy())
        golden[f"target/{kind}"] = encoded["heatmaps"][::3, ::4, ::4]
        golden[f"target/{kind}/sum"] = encoded["heatmaps"].sum((1, 2))
    official, weights = heatmaps.generate_heatmaps(
        joints[0], visible[0, :, None], 2, np.array(size), np.array(small), 40
    )
    assert np.abs(official - codecs["biased"].encode(joints.copy(), visible.copy())["heatmaps"]).max() < 1e-6
    golden["target/weights"] = weights[:, 0]
    for normalise in (False, True):
        encoded = SimCCLabel(size, sigma=(4.9, 5.66), normalize=normalise).encode(joints * 1.2 - 20, visible.copy())
        for name in ("keypoint_x_labels", "keypoint_y_labels", "keypoint_weights"):
            golden[f"{name}/{int(normalise)}"] = encoded[name][0][..., ::5] if "labels" in name else encoded[name][0]


def metrics(fami: Path, okdhp: Path, golden: dict) -> None:
    poses, scores, areas = cases.crowd()
    people = [
        {"score": s, "keypoints": np.concatenate([p, np.ones((17, 1))], 1), "area": a}
        for p, s, a in zip(poses, scores, areas, strict=True)
    ]
    nms = load(fami / "datasets/process/nms.py")
    for threshold in (0.5, 0.9):
        golden[f"oks_nms/{threshold}"] = nms.oks_nms(people, threshold)
    target, prediction, visible, head = cases.mpii()
    order = "rank rkne rhip lhip lkne lank pelvis thorax neck head rwri relb rsho lsho lelb lwri"
    truth = {
        "dataset_joints": np.array([order.split()], dtype=object),
        "jnt_missing": 1 - visible.T,
        "pos_gt_src": target.transpose(1, 2, 0),
        "headboxes_src": np.stack([head[:, :2].T, head[:, 2:].T]),
    }
    source = (okdhp / "lib/dataset/mpii.py").read_text()
    names = {"np": np, "os": os, "OrderedDict": OrderedDict, "loadmat": lambda _: truth}
    exec(textwrap.dedent(source[source.index("    def evaluate(") :]), names)
    config = types.SimpleNamespace(DATASET=types.SimpleNamespace(TEST_SET="valid", ROOT=""))
    with_score = np.concatenate([prediction, np.ones((len(prediction), 16, 1))], 2)
    columns, _ = names["evaluate"](None, config, with_score, "")
    golden["pckh"] = np.array(list(columns.values())[:8], float)


def posetrack(checkout: Path, golden: dict) -> None:
    sys.path.insert(0, str(checkout))
    from poseval import convert, eval_helpers
    from poseval.evaluateAP import evaluateAP

    convert.LOGGER.disabled = True
    with tempfile.TemporaryDirectory() as folder:
        cases.posetrack_videos(Path(folder))
        eval_helpers.get_data_dir = lambda: ""
        frames = eval_helpers.load_data_dir(["", f"{folder}/truth/", f"{folder}/predictions/"])
        every = evaluateAP(*frames, folder, False, False)
    for name, values in zip(("average_precision", "precision", "recall"), every, strict=True):
        golden[f"posetrack/{name}"] = values[:, 0]
    golden["posetrack/columns"] = np.array(eval_helpers.getCum(every[0]))


def main(fami: Path, okdhp: Path, poseval: Path) -> None:
    affine = load(fami / "datasets/process/affine_transform.py")
    names = {name: getattr(affine, name) for name in ("get_affine_transform", "exec_affine_transform")}
    heatmaps = load(fami / "datasets/process/heatmaps_process.py", **names)
    golden: dict[str, np.ndarray] = {}
    geometry(affine, golden)
    decoding(heatmaps, golden)
    targets(heatmaps, golden)
    metrics(fami, okdhp, golden)
    posetrack(poseval, golden)
    np.savez_compressed(TARGET, **{name: np.asarray(value) for name, value in golden.items()})
    print(f"{TARGET}: {TARGET.stat().st_size} bytes, {len(golden)} arrays")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
