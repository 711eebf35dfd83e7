# SPDX-License-Identifier: Apache-2.0
"""Writes sparse_golden.npz: what spconv's own layers and their gradients really are, on a CPU.

Run where spconv is installed (pip install spconv, the CPU wheel): python tests/data/make_sparse_golden.py

On one thread, because with two spconv's CPU code gives other numbers at every run. Its backward asks for a CUDA stream
that it does not use on a CPU, and is given one.
"""

import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy
import spconv
import spconv.pytorch
import torch
from spconv.pytorch.utils import PointToVoxel

sys.path.insert(0, str(Path(__file__).parents[1]))
from sparse_cases import NETWORKS, VOXELIZERS, points, results


def main():
    torch.set_num_threads(1)
    arrays = {}
    stream = mock.patch.object(torch.cuda, "current_stream", return_value=SimpleNamespace(cuda_stream=0))
    for name in NETWORKS:
        with stream:
            values = results(spconv.pytorch, name)
        for key, value in values.items():
            arrays[f"{name}/{key}"] = value.float() if value.is_floating_point() else value.short()
    for name, arguments in VOXELIZERS.items():
        voxels, indices, counts, ids = PointToVoxel(*arguments).generate_voxel_with_id(points())
        arrays |= {
            f"{name}/voxels": voxels,
            f"{name}/indices": indices.short(),
            f"{name}/counts": counts.to(torch.uint8),
        }
        arrays[f"{name}/ids"] = ids.short()
    path = Path(__file__).with_name("sparse_golden.npz")
    arrays = {key: value.numpy() for key, value in arrays.items()}
    versions = {"spconv": spconv.__version__, "torch": torch.__version__}
    numpy.savez_compressed(path, versions=str(versions), **arrays)
    print(f"{path.name}: {len(arrays)} arrays, {path.stat().st_size} bytes, {versions}")


if __name__ == "__main__":
    main()
