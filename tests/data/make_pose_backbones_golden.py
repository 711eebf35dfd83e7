# SPDX-License-Identifier: Apache-2.0
"""Writes pose_backbones_golden.npz: what the official HRNet, SimpleBaseline and RTMPose really give.

Run where mmengine 0.10.7, mmcv-lite 2.2.0 and mmpose 1.3.2 are installed, with lib/models/pose_hrnet.py of
github.com/leoxiaobin/deep-high-resolution-net.pytorch (at 6f69e46) and lib/models/pose_resnet.py of
github.com/microsoft/human-pose-estimation.pytorch (at 49f3f44):

python tests/data/make_pose_backbones_golden.py pose_hrnet.py pose_resnet.py
"""

import sys
import types
from pathlib import Path

import mmpose
import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from pose_weights import drawn, drawn_state

TARGET = Path(__file__).with_name("pose_backbones_golden.npz")
GAIN = {"hrnet": 0.6, "simple": 1.0, "rtmpose": 2.0}  # with which neither the images' influence nor the sums explode


def module(path: str) -> types.ModuleType:
    made = types.ModuleType(Path(path).stem)
    exec(compile(Path(path).read_text(), path, "exec"), made.__dict__)
    return made


def hrnet(path: str, width: int) -> nn.Module:
    extra = {"FINAL_CONV_KERNEL": 1, "PRETRAINED_LAYERS": ["*"]}
    for branches, modules in ((2, 1), (3, 4), (4, 3)):
        extra[f"STAGE{branches}"] = {
            "NUM_MODULES": modules,
            "NUM_BRANCHES": branches,
            "BLOCK": "BASIC",
            "NUM_BLOCKS": [4] * branches,
            "NUM_CHANNELS": [width * 2**branch for branch in range(branches)],
            "FUSE_METHOD": "SUM",
        }
    config = {"MODEL": {"NUM_JOINTS": 17, "EXTRA": extra, "INIT_WEIGHTS": False}}
    return module(path).get_pose_net(config, False)


def simple_baseline(path: str, depth: int) -> nn.Module:
    layers = {"NUM_DECONV_LAYERS": 3, "NUM_DECONV_FILTERS": [256] * 3, "NUM_DECONV_KERNELS": [4] * 3}
    extra = types.SimpleNamespace(NUM_LAYERS=depth, DECONV_WITH_BIAS=False, FINAL_CONV_KERNEL=1, **layers)
    model = types.SimpleNamespace(EXTRA=extra, STYLE="pytorch", NUM_JOINTS=17, INIT_WEIGHTS=False)
    return module(path).get_pose_net(types.SimpleNamespace(MODEL=model), False)


def import_mmpose() -> tuple[type, type]:
    """The two classes, without the rest of mmpose.models, which needs the compiled mmcv."""
    for name in ("models", "models.utils", "models.backbones", "models.heads", "models.heads.coord_cls_heads"):
        package = types.ModuleType(f"mmpose.{name}")
        package.__path__ = [str(Path(mmpose.__path__[0], *name.split(".")))]
        sys.modules[package.__name__] = package
    sys.modules["mmpose.evaluation"] = types.ModuleType("mmpose.evaluation")
    metrics = sys.modules["mmpose.evaluation.functional"] = types.ModuleType("mmpose.evaluation.functional")
    metrics.simcc_pck_accuracy = metrics.keypoint_pck_accuracy = None
    from mmpose.models.utils.csp_layer import CSPLayer

    sys.modules["mmpose.models.utils"].CSPLayer = CSPLayer
    from mmpose.models.backbones.cspnext import CSPNeXt
    from mmpose.models.heads.coord_cls_heads import rtmcc_head

    rtmcc_head.MODELS.build = lambda _: None  # the loss
    return CSPNeXt, rtmcc_head.RTMCCHead


class RTMPose(nn.Module):
    """Backbone and head as configs/body_2d_keypoint/rtmpose has them; SyncBN is BN where there is one process."""

    def __init__(self, depth: float, width: float, joints: int, size: tuple[int, int]) -> None:
        super().__init__()
        backbone, head = import_mmpose()
        self.backbone = backbone(
            deepen_factor=depth, widen_factor=width, out_indices=(4,), norm_cfg={"type": "BN"}, channel_attention=True
        )
        gau = {"hidden_dims": 256, "s": 128, "expansion_factor": 2, "dropout_rate": 0.0, "drop_path": 0.0}
        gau |= {"act_fn": "SiLU", "use_rel_bias": False, "pos_enc": False}
        last, reduced = size[::-1], (size[1] // 32, size[0] // 32)
        self.head = head(int(1024 * width), joints, last, reduced, final_layer_kernel_size=7, gau_cfg=gau)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.head(self.backbone(images))


def main(hrnet_file: str, resnet_file: str) -> None:
    torch.set_num_threads(1)
    # name: the official network, the images' (H, W)
    cases = {
        "hrnet_w32": (hrnet(hrnet_file, 32), (64, 96)),
        "hrnet_w48": (hrnet(hrnet_file, 48), (64, 64)),
        "simple_baseline_18": (simple_baseline(resnet_file, 18), (64, 96)),
        "simple_baseline_50": (simple_baseline(resnet_file, 50), (96, 64)),
        "rtmpose_t": (RTMPose(0.167, 0.375, 17, (256, 192)), (256, 192)),
        "rtmpose_s": (RTMPose(0.33, 0.5, 17, (96, 64)), (96, 64)),
        "rtmpose_m": (RTMPose(0.67, 0.75, 17, (96, 64)), (96, 64)),
        "rtmpose_l": (RTMPose(1.0, 1.0, 133, (64, 64)), (64, 64)),
    }
    golden = {}
    for name, (model, size) in cases.items():
        state = model.state_dict()
        keys = "\n".join(f"{key} {','.join(map(str, value.shape))}" for key, value in state.items())
        golden[f"{name}/keys"] = np.frombuffer(keys.encode(), np.uint8)
        model.load_state_dict(drawn_state(state, GAIN[name.split("_")[0]]))
        model.double().eval()
        images = drawn("images", (2, 3, *size), gain=10 * 3 * size[0] * size[1]).double().requires_grad_()
        outputs = model(images)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        loss = sum((output * drawn(f"grad{i}", output.shape)).sum() for i, output in enumerate(outputs))
        loss.backward()
        for what, value in {**{f"output{i}": output for i, output in enumerate(outputs)}, "grad": images.grad}.items():
            value = value.detach().numpy()
            differ = np.linalg.norm(value[0] - value[1]) / np.linalg.norm(value)
            print(f"{name} {what} {value.shape}: {value.std():.3g}, from image to image {differ:.3g}")
            golden[f"{name}/{what}"] = np.random.default_rng(0).choice(value.ravel(), 600).astype(np.float32)
    np.savez_compressed(TARGET, **golden)
    print(f"{TARGET}: {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
