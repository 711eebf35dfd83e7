# SPDX-License-Identifier: Apache-2.0
"""Writes pose_video_golden.npz: what the official DCPose and FAMI-Pose really give, in float64.

Run where torchvision 0.29 and kornia 0.9 are installed, with checkouts of github.com/Pose-Group/DCPose (at 8d90d88)
and github.com/Pose-Group/FAMI-Pose (at ab07b82):

python tests/data/make_pose_video_golden.py DCPOSE FAMI_POSE

DCPose's deformable convolution, which is CUDA only, is replaced by torchvision's, and what the model files import of
the trainers by empty modules. The models themselves run unchanged.
"""

import hashlib
import importlib
import sys
import types
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from pose_weights import drawn, video_state

TARGET = Path(__file__).with_name("pose_video_golden.npz")


class ModulatedDeformConv(nn.Module):
    """The official layer's parameters and call, on torchvision."""

    def __init__(self, inputs, outputs, kernel, stride=1, padding=0, dilation=1, deformable_groups=1):
        super().__init__()
        self.place = stride, padding, dilation
        self.weight = nn.Parameter(torch.zeros(outputs, inputs, *kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x, offsets, mask):
        return torchvision.ops.deform_conv2d(x, offsets, self.weight, self.bias, *self.place, mask=mask)


class Config(dict):
    def __getattr__(self, name):
        return self[name]


def config(**model) -> Config:
    extra = Config(PRETRAINED_LAYERS=["*"], FINAL_CONV_KERNEL=1)
    for branches, modules in ((2, 1), (3, 4), (4, 3)):
        extra[f"STAGE{branches}"] = {
            "NUM_MODULES": modules,
            "NUM_BRANCHES": branches,
            "BLOCK": "BASIC",
            "NUM_BLOCKS": [4] * branches,
            "NUM_CHANNELS": [48 * 2**branch for branch in range(branches)],
            "FUSE_METHOD": "SUM",
        }
    unused = ("USE_WARPING_TRAIN", "USE_WARPING_TEST", "FREEZE_WEIGHTS", "USE_GT_INPUT_TRAIN", "USE_GT_INPUT_TEST",
              "WARPING_REVERSE", "CYCLE_CONSISTENCY_FINETUNE")  # fmt: skip
    model |= {
        "EXTRA": extra,
        "NUM_JOINTS": 17,
        "PRETRAINED": "",
        "BACKBONE_PRETRAINED": "",
        "FREEZE_HRNET_WEIGHTS": False,
    }
    return Config(MODEL=Config(model | dict.fromkeys(unused, False)))


def module(name: str, path: Path | None = None, **content) -> None:
    made = sys.modules[name] = types.ModuleType(name)
    made.__dict__.update(content)
    if path is not None:
        made.__path__ = [str(path)]


def load(root: Path, name: str) -> types.ModuleType:
    """A model file, with its packages' own `__init__` left out."""
    for loaded in [key for key in sys.modules if key.split(".")[0] == "posetimation"]:
        del sys.modules[loaded]  # the other model's
    sys.path[:0] = [str(root)]
    parts = name.split(".")
    for depth in range(1, len(parts)):
        module(".".join(parts[:depth]), root.joinpath(*parts[:depth]))
    module("posetimation.backbones", root / "posetimation/backbones")
    module("posetimation.zoo.backbones", root / "posetimation/zoo/backbones")
    return importlib.import_module(name)


def dcpose(root: Path) -> nn.Module:
    nn.Module.cuda = lambda self: self  # the constructor and forward call it
    torch.Tensor.cuda = lambda self: self
    registry = types.SimpleNamespace(register=lambda: lambda made: made)
    module("thirdparty")
    module("thirdparty.deform_conv", ModulatedDeformConv=ModulatedDeformConv, DeformConv=type("DeformConv", (), {}))
    module("utils")
    module("utils.common", TRAIN_PHASE="train")
    module("utils.utils_registry", MODEL_REGISTRY=registry)
    chosen = {"USE_PRF": True, "USE_PTM": True, "USE_PCN": True, "USE_RECTIFIER": True, "USE_MARGIN": True,
              "USE_GROUP": True, "PRF_INNER_CH": 34, "PRF_BASICBLOCK_NUM": 2, "PTM_INNER_CH": 17,
              "PTM_BASICBLOCK_NUM": 1, "PRF_PTM_COMBINE_INNER_CH": 64, "PRF_PTM_COMBINE_BASICBLOCK_NUM": 2}  # fmt: skip
    correction = Config(DILATION=[3, 6, 9, 12, 15], AGGREGATION_TYPE="weighted_sum")
    made = load(root, "posetimation.zoo.DcPose.dcpose_rsn")
    return made.DcPose_RSN(config(**chosen, DEFORMABLE_CONV=correction), "train")


def fami_pose(root: Path) -> nn.Module:
    module("engine")
    module("engine.defaults", TRAIN_PHASE="train")
    module("engine.defaults.constant", MODEL_REGISTRY=types.SimpleNamespace(register=lambda: lambda made: made))
    return load(root, "posetimation.zoo.Alignment.Alignment_V15").Alignment_V15(config(), "train")


class Given(nn.Module):
    """In the backbone's place: what it would give."""

    def __init__(self, given, final_layer=None):
        super().__init__()
        self.given, self.final_layer = given, final_layer

    def forward(self, _):
        return self.given


def main(dcpose_root: str, fami_root: str) -> None:
    torch.set_num_threads(1)
    golden = {}

    def keep(name: str, value: torch.Tensor) -> None:
        values = value.detach().numpy().ravel()
        print(f"{name} {tuple(value.shape)}: {values.std():.3g}, at most {np.abs(values).max():.3g}")
        golden[name] = np.random.default_rng(0).choice(values, 600).astype(np.float32) if values.size > 600 else values

    def prepared(name: str, model: nn.Module) -> nn.Module:
        state = model.state_dict()
        lines = [f"{key} {','.join(map(str, value.shape))}" for key, value in state.items()]
        golden[f"{name}/keys"] = np.array(hashlib.sha256("\n".join(lines).encode()).hexdigest())
        golden[f"{name}/parameters"] = np.array(sum(p.numel() for p in model.parameters()))
        model.load_state_dict(video_state(state))
        return model.double().eval()

    model = prepared("dcpose", dcpose(Path(dcpose_root)))
    margin = torch.tensor([[1, 3]])
    frames = drawn("frames", (1, 9, 64, 64), gain=10 * 9 * 64 * 64).double().requires_grad_()
    rough, heatmaps = model(frames, margin=margin)
    keep("dcpose/rough", rough), keep("dcpose/heatmaps", heatmaps)
    keep("dcpose/grad", torch.autograd.grad((heatmaps * drawn("grad", heatmaps.shape)).sum(), frames)[0])
    rough = drawn("rough", (6, 17, 24, 20), gain=17 * 24 * 20).double().requires_grad_()
    model.rough_pose_estimation_net = Given(rough)
    heatmaps = model(frames, margin=torch.tensor([[1, 3], [1, 1]]))[1]
    keep("dcpose/head/heatmaps", heatmaps)
    keep("dcpose/head/grad", torch.autograd.grad((heatmaps * drawn("grad", heatmaps.shape)).sum(), rough)[0])

    model = prepared("fami", fami_pose(Path(fami_root)))
    key = drawn("key", (1, 3, 288, 288), gain=10 * 3 * 288 * 288).double()
    supporting = drawn("supporting", (1, 12, 288, 288), gain=10 * 12 * 288 * 288).double()
    with torch.no_grad():
        heatmaps, rough, _ = model(key, supporting)
    keep("fami/heatmaps", heatmaps), keep("fami/rough", rough)
    features = drawn("features", (5, 48, 66, 65), gain=0.1 * 48 * 66 * 65).double().requires_grad_()
    model.hrnet = Given((features[:, :17], [features]), model.hrnet.final_layer)
    heatmaps, _, terms = model(key, supporting)
    keep("fami/head/heatmaps", heatmaps), keep("fami/head/terms", torch.stack(terms))
    loss = (heatmaps * drawn("grad", heatmaps.shape)).sum()
    keep("fami/head/grad", torch.autograd.grad(loss, features, retain_graph=True)[0])
    loss = sum(weight * term for weight, term in zip((-0.1, 0.1, 1, -1, 1, -1), terms, strict=True)) / 2
    keep("fami/head/information_grad", torch.autograd.grad(loss, features)[0])
    np.savez_compressed(TARGET, **golden)
    print(f"{TARGET}: {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
