# SPDX-License-Identifier: Apache-2.0
"""Draws docs/images/pose_*.svg, the architectures in docs/pose_models.md: python docs/pose_result.py"""

from __future__ import annotations

import itertools
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch, Patch

IMAGES = Path(__file__).resolve().parent / "images"
# Kind of box: fill, edge, what the legend says.
KINDS = {
    "data": ("#ffffff", "#8a8a8a", "images, maps"),
    "net": ("#dbe7f6", "#3b6fb6", "layers"),
    "flexor": ("#fbe3c6", "#d9761a", "deformable, warp and matching kernels"),
    "result": ("#dff0e2", "#4d9660", "result"),
}


class Picture:
    """Boxes on a plane and arrows between them; one unit is about a character wide, y grows downwards."""

    def __init__(self, name: str, width: float, height: float) -> None:
        self.name, self.size, self.kinds, self.boxes = name, (width, height), set(), {}
        self.figure, self.axis = plt.subplots(figsize=(width / 11.5, (height + 2.2) / 11.5))
        self.figure.subplots_adjust(0, 0, 1, 1)
        self.axis.set(xlim=(0, width), ylim=(height + 2.2, 0))
        self.axis.axis("off")

    def box(self, key: str, x: float, y: float, text: str, kind: str = "net", w: float = 15, h: float = 5) -> None:
        """A box whose middle is (x, y)."""
        fill, edge, _ = KINDS[kind]
        shape = "round,pad=0,rounding_size=0.8"
        patch = FancyBboxPatch((x - w / 2, y - h / 2), w, h, shape, facecolor=fill, edgecolor=edge, linewidth=1.1)
        self.axis.add_patch(patch)
        self.axis.text(x, y, text, ha="center", va="center", fontsize=7.6, linespacing=1.25)
        self.boxes[key] = (patch, x, y)
        self.kinds.add(kind)

    def arrow(self, start: str, end: str, text: str = "", bend: float = 0.0, side: float = -1.0) -> None:
        """From box to box, a little text beside its middle."""
        (a, ax, ay), (b, bx, by) = self.boxes[start], self.boxes[end]
        style = {"arrowstyle": "-|>", "mutation_scale": 7, "color": "#444444", "linewidth": 0.9, "shrinkA": 0}
        style |= {"patchA": a, "patchB": b, "shrinkB": 1, "connectionstyle": f"arc3,rad={bend}"}
        self.axis.annotate("", (bx, by), (ax, ay), arrowprops=style, zorder=0.5)
        if text:
            self.note((ax + bx) / 2, (ay + by) / 2 + side, text)

    def chain(self, *keys: str) -> None:
        for start, end in itertools.pairwise(keys):
            self.arrow(start, end)

    def note(self, x: float, y: float, text: str) -> None:
        self.axis.text(x, y, text, ha="center", va="center", fontsize=6.8, color="#555555", linespacing=1.2)

    def save(self) -> None:
        patches = [
            Patch(facecolor=fill, edgecolor=edge, label=label)
            for kind, (fill, edge, label) in KINDS.items()
            if kind in self.kinds
        ]
        self.axis.legend(
            handles=patches, loc="lower center", ncols=len(patches), frameon=False, fontsize=6.8, handlelength=1.2,
            borderaxespad=0.1,
        )  # fmt: skip
        self.figure.savefig(IMAGES / f"pose_{self.name}.svg", metadata={"Date": None})
        plt.close(self.figure)


def hrnet() -> None:
    p = Picture("hrnet", 124, 32)
    p.box("image", 6, 4, "image\nH x W", "data", 10)
    p.box("stem", 20, 4, "two 3x3\nstride 2", w=11)
    p.box("layer1", 35, 4, "layer1\n4 bottlenecks", w=13)
    p.chain("image", "stem", "layer1")
    stages = {2: (52, "1 module"), 3: (71, "4 modules"), 4: (90, "3 modules")}
    for branches, (x, modules) in stages.items():
        for branch in range(branches):
            p.box(f"{branches}{branch}", x, 4 + 7.5 * branch, f"4 blocks\nH/{4 << branch}", w=11)
        p.note(x, 4 + 7.5 * branches - 3.1, f"stage{branches}: {modules}")
    for branch in range(2):
        p.arrow("layer1", f"2{branch}")
    for before, after in ((2, 3), (3, 4)):
        for start in range(before):
            for end in range(after):
                p.arrow(f"{before}{start}", f"{after}{end}")
    p.box("head", 105, 4, "sum at H/4,\n1x1", w=12)
    p.box("maps", 118, 4, "heatmaps\nH/4", "result", 10)
    for branch in range(4):
        p.arrow(f"4{branch}", "head")
    p.chain("head", "maps")
    p.save()


def simple_baseline() -> None:
    p = Picture("simple_baseline", 106, 6)
    p.box("image", 6, 3, "image\nH x W", "data", 10)
    p.box("resnet", 22, 3, "ResNet\nH/32", w=14)
    for number, size in enumerate((16, 8, 4)):
        p.box(f"up{number}", 40 + 17 * number, 3, f"4x4 transposed,\n256, H/{size}", w=14.5)
    p.box("head", 89, 3, "1x1", w=7)
    p.box("maps", 100, 3, "heatmaps\nH/4", "result", 10)
    p.chain("image", "resnet", "up0", "up1", "up2", "head", "maps")
    p.save()


def rtmpose() -> None:
    p = Picture("rtmpose", 124, 13)
    p.box("image", 6, 6.5, "image\nH x W", "data", 10)
    p.box("csp", 21, 6.5, "CSPNeXt\nH/32", w=13)
    p.box("conv", 37, 6.5, "7x7 to one\nmap a joint", w=13)
    p.box("token", 54, 6.5, "a token a joint:\nnorm, linear", w=15)
    p.box("gau", 73, 6.5, "gated attention\namong joints", w=16)
    p.box("x", 91, 3, "linear: 2W classes", w=15)
    p.box("y", 91, 10, "linear: 2H classes", w=15)
    p.box("joints", 112, 6.5, "x and y of every joint,\nhalf a pixel fine", "result", 19)
    p.chain("image", "csp", "conv", "token", "gau", "x", "joints")
    p.chain("gau", "y", "joints")
    p.save()


def dcpose() -> None:
    p = Picture("dcpose", 124, 27)
    for row, name in enumerate(("previous", "current", "next")):
        p.box(f"i{row}", 6.5, 5 + 8.5 * row, name, "data", 11)
        p.box(f"h{row}", 23, 5 + 8.5 * row, "HRNet-W48", w=13)
        p.arrow(f"i{row}", f"h{row}")
    p.note(23, 9.3, "the same weights")
    p.box("prf", 46, 6.5, "residual fusion (PRF)\ndifferences to current", w=20, h=5.5)
    p.box("ptm", 46, 20.5, "temporal merger (PTM)\nweighted by distance", w=20, h=5.5)
    for row in range(3):
        p.arrow(f"h{row}", "prf")
        p.arrow(f"h{row}", "ptm")
    p.box("combine", 69, 6.5, "combine:\n64 channels", w=13, h=5.5)
    p.arrow("prf", "combine")
    p.arrow("ptm", "combine")
    p.box("offsets", 88, 6.5, "offsets and masks,\ndilation 3 6 9 12 15", w=18, h=5.5)
    p.arrow("combine", "offsets")
    p.box("deform", 88, 20.5, "5 deformable\nconvolutions, mean", "flexor", 18, 5.5)
    p.arrow("offsets", "deform")
    p.arrow("ptm", "deform", "support heatmaps", side=-1.2)
    p.box("maps", 113, 20.5, "heatmaps of the\ncurrent frame", "result", 16, 5.5)
    p.arrow("deform", "maps")
    p.save()


def fami_pose() -> None:
    p = Picture("fami_pose", 124, 27)
    p.box("key", 7, 5, "key frame", "data", 12)
    p.box("four", 7, 20, "4 others:\n-2 -1 +1 +2", "data", 12)
    p.box("hkey", 23.5, 5, "HRNet-W48\nfeatures", w=13)
    p.box("hfour", 23.5, 20, "HRNet-W48\nfeatures", w=13)
    p.chain("key", "hkey")
    p.chain("four", "hfour")
    p.box("shift", 41, 12.5, "a shift from\nthe difference", w=14)
    p.arrow("hkey", "shift")
    p.arrow("hfour", "shift")
    p.box("warp", 58, 20, "move each\nby its shift", "flexor", 13)
    p.arrow("shift", "warp")
    p.arrow("hfour", "warp")
    p.box("merge", 74, 20, "merge four\nto one", w=12)
    p.arrow("warp", "merge")
    p.box("steer", 74, 9, "steering features:\n2 deformable", "flexor", 17, 5.5)
    p.arrow("hkey", "steer")
    p.arrow("merge", "steer")
    p.box("align", 94, 20, "2 deformable:\naligned features", "flexor", 17, 5.5)
    p.arrow("merge", "align")
    p.arrow("steer", "align")
    p.note(88.2, 11.6, "offsets, masks")
    p.box("join", 97, 5, "join\n3x3", w=11)
    p.arrow("align", "join")
    p.arrow("hkey", "join")
    p.box("maps", 115, 5, "heatmaps of\nthe key frame", "result", 14)
    p.arrow("join", "maps")
    p.save()


def dkd() -> None:
    p = Picture("dkd", 124, 33)
    for row, (name, y) in enumerate((("frame 1", 5), ("frame 2", 17), ("frame 3", 29))):
        p.box(f"i{row}", 6, y, name, "data", 10)
        p.box(f"f{row}", 24, y, "encoder\nResNet, 3 x up to 128", w=19)
        p.arrow(f"i{row}", f"f{row}")
    p.box("init", 57, 1.8 + 3.2, "initialiser\nSimpleBaseline", w=16)
    p.arrow("i0", "init", bend=-0.16)
    p.box("m1", 57, 17, "V, match, U", "flexor", 16)
    p.box("m2", 57, 29, "V, match, U", "flexor", 16)
    p.arrow("f1", "m1")
    p.arrow("f2", "m2")
    for row, start in enumerate(("init", "m1", "m2")):
        p.box(f"h{row}", 82, (5, 17, 29)[row], f"heatmaps {row + 1}", "result", 14)
        p.arrow(start, f"h{row}")
    for row in range(2):
        y = (11, 23)[row]
        p.box(f"k{row}", 82, y, "distillator", w=14, h=4)
        p.arrow(f"h{row}", f"k{row}")
        p.arrow(f"f{row}", f"k{row}", bend=-0.05)
        p.arrow(f"k{row}", f"m{row + 1}")
        p.note(65.5, y + 1.6, "128 kernels, 7x7")
    p.note(108, 5, "a SimpleBaseline does for every\nframe what is done here once")
    p.note(108, 17, "state of a stream: features and\nheatmaps of the last frame")
    p.note(108, 29, "matching: each channel is\ncorrelated with its own kernel")
    p.save()


def okdhp() -> None:
    p = Picture("okdhp", 124, 33)
    p.box("image", 6, 20.5, "image\nH x W", "data", 10)
    p.box("stem", 21, 20.5, "stem\nH/4, 256", w=12)
    p.arrow("image", "stem")
    p.box("unit", 31, 4, "aggregation unit: 3x3, 5x5, 7x7;\nmean; softmax over branches", w=33, h=5.5)
    p.arrow("stem", "unit")
    p.box("ensemble", 111, 4, "ensemble: weighted sum\nof the last heatmaps", "result", 25, 5.5)
    p.arrow("unit", "ensemble", "a weight for every branch and joint", side=-1.2)
    for branch in range(3):
        y = 13 + 7.5 * branch
        for stack in range(4):
            p.box(f"{branch}{stack}", 38 + 13 * stack, y, "hourglass", w=11)
        p.chain("stem", *(f"{branch}{stack}" for stack in range(4)))
        p.box(f"h{branch}", 92 + 5 * branch, y, f"heatmaps {branch}", "data", 13)
        p.arrow(f"{branch}3", f"h{branch}")
        p.arrow(f"h{branch}", "ensemble")
    p.note(113, 24, "deploy(b): the\nstem and row b")
    p.note(60, 32, "every hourglass gives heatmaps; in training each learns from the truth and from the ensemble")
    p.save()


def flowing_convnet() -> None:
    p = Picture("flowing_convnet", 124, 33)
    rows = (("frame t - n", 5), ("frame t", 16), ("frame t + n", 27))
    for row, (name, y) in enumerate(rows):
        p.box(f"i{row}", 7.5, y, name, "data", 13)
        p.box(f"c{row}", 29, y, "conv1 .. conv3", w=16)
        p.box(f"d{row}", 50, y - 2.2, "conv4 .. conv7", w=16, h=4)
        p.box(f"s{row}", 71, y, "fusion: 7x7, 13x13,\n13x13, 1x1, 1x1", w=18)
        p.chain(f"i{row}", f"c{row}", f"d{row}", f"s{row}")
        p.arrow(f"c{row}", f"s{row}", bend=0.28)
    p.box("w0", 92, 5, "warp by flow\nt to t - n", "flexor", 14)
    p.box("w2", 92, 27, "warp by flow\nt to t + n", "flexor", 14)
    p.chain("s0", "w0")
    p.chain("s2", "w2")
    p.box("pool", 103, 16, "pooling: a weight\na joint and frame", w=16)
    p.arrow("s1", "pool")
    p.arrow("w0", "pool")
    p.arrow("w2", "pool")
    p.box("maps", 118.5, 16, "heatmaps\nof t", "result", 10)
    p.arrow("pool", "maps")
    p.save()


def main() -> None:
    with matplotlib.rc_context({"svg.hashsalt": "flexor", "svg.fonttype": "none"}):
        for draw in (hrnet, simple_baseline, rtmpose, dcpose, fami_pose, dkd, okdhp, flowing_convnet):
            draw()


if __name__ == "__main__":
    main()
