# SPDX-License-Identifier: Apache-2.0
"""Writes second_golden.npz with OpenPCDet's VoxelBackBone8x (at 8caccce). Run where spconv 2.3.8 is installed:

python tests/data/make_second_golden.py OpenPCDet/pcdet/models/backbones_3d/spconv_backbone.py
"""

import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import spconv.pytorch as spconv
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from second_weights import fill

TARGET = Path(__file__).with_name("second_golden.npz")
GRID = (40, 48, 40)  # x, y, z


def backbone(path: str) -> type:
    """The class, without the rest of OpenPCDet, which needs CUDA."""
    utils = types.ModuleType("pcdet.utils.spconv_utils")
    utils.spconv, utils.replace_feature = spconv, lambda tensor, features: tensor.replace_feature(features)
    for name in ("pcdet", "pcdet.utils", "pcdet.models", "pcdet.models.backbones_3d"):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = []
    sys.modules[utils.__name__] = utils
    spec = importlib.util.spec_from_file_location("pcdet.models.backbones_3d.spconv_backbone", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.VoxelBackBone8x


def main(path: str) -> None:
    torch.set_num_threads(1)  # spconv's CPU code races with more
    model = backbone(path)(types.SimpleNamespace(get=lambda _, default: default), 4, np.array(GRID)).eval()
    random = np.random.RandomState(0)
    names = []
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.from_numpy(fill(name, tuple(value.shape), random)))
            names.append(name)
    rng = np.random.default_rng(0)
    z, y, x = (rng.integers(0, size, 900) for size in reversed(GRID))
    coords = np.unique(np.stack([rng.integers(0, 2, 900), np.minimum(z, y // 2), y, x], -1), axis=0).astype(np.int32)
    features = rng.standard_normal((len(coords), 4)).astype(np.float32)
    batch = {"voxel_features": torch.from_numpy(features), "voxel_coords": torch.from_numpy(coords), "batch_size": 2}
    with torch.no_grad():
        dense = model(batch)["encoded_spconv_tensor"].dense()
    output = dense.view(2, -1, *dense.shape[3:]).numpy()
    np.savez_compressed(TARGET, names=np.array(names), coords=coords, features=features, output=output)
    print(f"{TARGET}: {output.shape}, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main(sys.argv[1])
