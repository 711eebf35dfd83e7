# SPDX-License-Identifier: Apache-2.0
"""Made-up motions for the tests of lifting: a BVH skeleton whose joints swing. Not motion capture."""

import numpy as np

# name, parent, offset in centimetres, largest angles around z, x and y in degrees
SKELETON = (
    ("Hips", "", (0, 0, 0), (8, 15, 180)),
    ("Spine", "Hips", (0, 12, 0), (8, 15, 10)),
    ("Chest", "Spine", (0, 13, 0), (5, 10, 10)),
    ("Neck", "Chest", (0, 22, 0), (10, 15, 20)),
    ("Head", "Neck", (0, 8, 1), (10, 15, 20)),
    ("LeftShoulder", "Chest", (5, 18, 0), (0, 0, 0)),
    ("LeftArm", "LeftShoulder", (11, 0, 0), (80, 40, 60)),
    ("LeftForeArm", "LeftArm", (27, 0, 0), (0, 0, 90)),
    ("LeftHand", "LeftForeArm", (25, 0, 0), (0, 0, 0)),
    ("RightShoulder", "Chest", (-5, 18, 0), (0, 0, 0)),
    ("RightArm", "RightShoulder", (-11, 0, 0), (80, 40, 60)),
    ("RightForeArm", "RightArm", (-27, 0, 0), (0, 0, 90)),
    ("RightHand", "RightForeArm", (-25, 0, 0), (0, 0, 0)),
    ("LeftUpLeg", "Hips", (9, -5, 0), (10, 45, 10)),
    ("LeftLeg", "LeftUpLeg", (0, -42, 0), (0, 40, 0)),
    ("LeftFoot", "LeftLeg", (0, -40, 0), (0, 0, 0)),
    ("RightUpLeg", "Hips", (-9, -5, 0), (10, 45, 10)),
    ("RightLeg", "RightUpLeg", (0, -42, 0), (0, 40, 0)),
    ("RightFoot", "RightLeg", (0, -40, 0), (0, 0, 0)),
)
ENDS = {"Head": (0, 18, 0), "LeftHand": (8, 0, 0), "RightHand": (-8, 0, 0), "LeftFoot": (0, 0, 15)}


def bvh(seed, frames=60, frame_time=0.1, skeleton=SKELETON):
    """The text of a BVH file."""
    lines = ["HIERARCHY"]

    def write(name, depth):
        _, _, offset, _ = next(joint for joint in skeleton if joint[0] == name)
        channels = "6 Xposition Yposition Zposition" if depth == 0 else "3"
        lines.append(f"{'JOINT' if depth else 'ROOT'} {name}\n{{")
        lines.append(f"OFFSET {' '.join(map(str, offset))}\nCHANNELS {channels} Zrotation Xrotation Yrotation")
        for child in skeleton:
            if child[1] == name:
                write(child[0], depth + 1)
        if name in ENDS:
            lines.append(f"End Site\n{{\nOFFSET {' '.join(map(str, ENDS[name]))}\n}}")
        lines.append("}")

    write(skeleton[0][0], 0)
    order = [line.split()[1] for text in lines for line in text.split("\n") if line.startswith(("ROOT", "JOINT"))]
    rng, time = np.random.default_rng(seed), np.arange(frames) * 0.1
    columns = [30 * np.sin(time), np.full(frames, 92.0), 10 * time]
    for name in order:
        for largest in next(joint[3] for joint in skeleton if joint[0] == name):
            speed, phase, middle = rng.uniform(0.5, 3), rng.uniform(0, 2 * np.pi), rng.uniform(-0.5, 0.5)
            columns.append(largest * (middle + 0.5 * np.sin(speed * time + phase)))
    lines.append(f"MOTION\nFrames: {frames}\nFrame Time: {frame_time}")
    return "\n".join(lines + [" ".join(f"{value:.5f}" for value in row) for row in np.stack(columns, 1)]) + "\n"


def write_folder(folder, clips=12, frames=60):
    """A folder of BVH files named walk_0.bvh, wave_1.bvh, walk_2.bvh and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(clips):
        (folder / f"{('walk', 'wave')[index % 2]}_{index}.bvh").write_text(bvh(index, frames))
    return folder
