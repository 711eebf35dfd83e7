# SPDX-License-Identifier: Apache-2.0
"""Writes sparse_unet_golden.npz with SparseConvNet (github.com/facebookresearch/SparseConvNet at cf251d0), whose
`setup.py build_ext --inplace` needs the headers of sparsehash. Run where `import sparseconvnet` works:

python tests/data/make_sparse_unet_golden.py
"""

from pathlib import Path

import numpy as np
import sparseconvnet as scn
import torch
from torch import nn

TARGET = Path(__file__).with_name("sparse_unet_golden.npz")
VARIANTS = {"vgg": (False, 1, False), "residual": (True, 2, True)}
WIDTH, LEVELS, CLASSES = 2, 3, 4


def network(residual: bool, reps: int, final_norm: bool) -> nn.ModuleDict:
    planes = [WIDTH * level for level in range(1, LEVELS + 1)]
    sparse = scn.Sequential()
    sparse.add(scn.InputLayer(3, 64, mode=4)).add(scn.SubmanifoldConvolution(3, 3, WIDTH, 3, False))
    sparse.add(scn.UNet(3, reps, planes, residual_blocks=residual, downsample=[2, 2]))
    if final_norm:
        sparse.add(scn.BatchNormReLU(WIDTH))
    sparse.add(scn.OutputLayer(3))
    return nn.ModuleDict({"sparseModel": sparse, "linear": nn.Linear(WIDTH, CLASSES)})


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    # Two samples on curved sheets, so that levels keep neighbours; some points share a voxel.
    where = torch.rand(2, 130, 2) * 11
    height = (where[..., :1] * 0.4 + (where[..., 1:] * 0.5).sin() * 3 + 8).clamp(0, 30)
    sample = torch.arange(2.0)[:, None, None].expand(2, 130, 1)
    coords = torch.cat([where + 5, height, sample], -1).flatten(0, 1).long()
    features, gradient = torch.randn(len(coords), 3), torch.randn(len(coords), CLASSES)
    arrays = {"coords": coords.numpy().astype(np.uint8), "features": features.numpy(), "gradient": gradient.numpy()}
    for name, variant in VARIANTS.items():
        model = network(*variant)
        for module in model.modules():
            if isinstance(module, scn.BatchNormalization):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.3)
                nn.init.normal_(module.running_mean, 0, 0.3)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
        for key, value in model.state_dict().items():
            arrays[f"{name}/state/{key}"] = value.numpy().copy()
        with torch.no_grad():
            model.eval()
            arrays[f"{name}/eval"] = model["linear"](model["sparseModel"]([coords, features])).numpy()
        model.train()
        output = model["linear"](model["sparseModel"]([coords, features]))
        output.backward(gradient)
        arrays[f"{name}/train"] = output.detach().numpy()
        # One after another in the order of the state: hundreds of small arrays would be mostly names.
        arrays[f"{name}/gradients"] = torch.cat([p.grad.flatten() for p in model.parameters()]).numpy()
        arrays[f"{name}/statistics"] = torch.cat([buffer.flatten() for buffer in model.buffers()]).numpy()
    np.savez_compressed(TARGET, **arrays)
    print(f"{TARGET}: {len(arrays)} arrays, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
