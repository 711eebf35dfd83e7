# SPDX-License-Identifier: Apache-2.0
"""Writes okdhp_golden.npz: what the official OKDHP networks and losses really give.

Run with a checkout of github.com/zhengli97/OKDHP: python tests/data/make_okdhp_golden.py CHECKOUT

"4" is the network of 4 stacks with its stack index corrected: each branch's last heatmaps are combined. In all of them
unsqueeze_ is made unsqueeze, because a newer torch refuses to go back through a ReLU whose output was changed in place.
"""

import sys
import types
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from pose_weights import drawn, drawn_state

# file, stacks, whether the index is corrected
CASES = {
    "2": ("hourglass_okd", 2, False),
    "4-published": ("hourglass_okd", 4, False),
    "4": ("hourglass_okd", 4, True),
    "shared-published": ("hourglass_okd_share_less", 4, False),
}
PUBLISHED, CORRECTED = "branch_idx * (self.num_branches-1)", "branch_idx * self.num_stacks"
TARGET = Path(__file__).with_name("okdhp_golden.npz")


def module(path: Path, corrected: bool = False) -> types.ModuleType:
    made, source = types.ModuleType(path.stem), path.read_text().replace("unsqueeze_(", "unsqueeze(")
    if corrected:
        assert PUBLISHED in source
        source = source.replace(PUBLISHED, CORRECTED)
    exec(compile(source, str(path), "exec"), made.__dict__)
    return made


def main(checkout: Path) -> None:
    torch.set_num_threads(1)
    golden = {"losses": losses(module(checkout / "lib/core/loss.py"))}
    for name, (file, stacks, corrected) in CASES.items():
        config = types.SimpleNamespace(MODEL=types.SimpleNamespace(EXTRA=types.SimpleNamespace(NUM_STACKS=stacks)))
        model = module(checkout / f"lib/models/{file}.py", corrected).get_pose_net(config, True)
        model.load_state_dict(drawn_state(model.state_dict(), gain=0.2))
        model.double().eval()
        images = drawn("images", (1, 3, 64, 64), gain=100).double().requires_grad_()
        outputs, ensemble = model(images)
        ((sum(outputs) + ensemble) * drawn("grad", tuple(ensemble.shape))).sum().backward()
        golden[f"{name}/stacks"] = torch.stack(outputs)[:, :, ::3, ::5, ::5].detach().float().numpy()
        golden[f"{name}/ensemble"] = ensemble[:, ::3, ::3, ::3].detach().float().numpy()
        golden[f"{name}/grad_images"] = images.grad[:, :, ::5, ::5].float().numpy()
        print(name, [f"{float(output.detach().abs().max()):.3g}" for output in outputs])
    np.savez_compressed(TARGET, **golden)
    print(f"{TARGET}: {TARGET.stat().st_size} bytes")


def losses(official: types.ModuleType) -> np.ndarray:
    """Of the stacks against the truth, the ensemble against the truth, the stacks against the ensemble."""
    *outputs, ensemble, target = (drawn(f"maps{index}", (2, 16, 8, 8), gain=64) for index in range(5))
    weight = (drawn("visible", (2, 16)) > 0).float()[:, :, None]
    mse, kld = official.JointsMSELoss(True), official.JointsKLDLoss()
    hard = sum(mse(output, target, weight) for output in outputs)
    soft = sum(kld(output, ensemble, weight) for output in outputs)
    return np.array([float(hard), float(mse(ensemble, target, weight)), float(soft)])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
