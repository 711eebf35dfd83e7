# SPDX-License-Identifier: Apache-2.0
"""The CUDA C++ kernels and the code that launches them, run on the CPU: fibers for threads, a stand-in for CuPy.

The same tests run once more in a process of their own under the address and undefined-behaviour sanitizers.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from flexor import _C, reference
from flexor._cuda import launch, neighbours, sparse_index

sys.path.insert(0, str(Path(__file__).parent / "cuda"))
import fake_cupy
from fake_cupy import SANITIZED

ROOT = Path(__file__).parents[2]
TESTED = [str(path) for path in sorted(Path(__file__).parent.glob("test_cuda*.py")) if "compilers" not in path.name]


def voxels(rows, size, low=0, batches=3, dtype=torch.int32, clustered=False):
    """Distinct voxels of a box in random order."""
    cells = torch.arange(batches * int(np.prod(size)))
    cells = cells[: 2 * rows] if clustered else cells
    cells = cells[torch.randperm(len(cells))[:rows]]
    columns = []
    for extent in reversed(size):
        columns.append(cells % extent + low)
        cells = cells // extent
    return torch.stack([cells, *reversed(columns)], 1).to(dtype)


SETS = {
    "3d": (lambda: voxels(150, (13, 14, 15)), (0, 0, 0), (13, 14, 15)),
    "3d-dense": (lambda: voxels(200, (9, 8, 10), clustered=True), None, None),
    "3d-negative": (lambda: voxels(120, (30, 9, 41), low=-17, dtype=torch.int64), None, None),
    "3d-far": (lambda: torch.tensor([[0, 2**30, -5, 7], [5, 0, 3, -(2**29)], [5, 1, 3, -(2**29)]]), None, None),
    "1d": (lambda: voxels(90, (999,), dtype=torch.int64), (0,), (999,)),
    "2d": (lambda: voxels(80, (33, 70)), None, None),
    "4d": (lambda: voxels(100, (5, 6, 7, 8)), (-1, -1, -1, -1), (5, 6, 7, 8)),
    "one": (lambda: torch.tensor([[0, 3, 4, 5]], dtype=torch.int32), None, None),
}
PARTS = ("order", "keys", "masks", "bases", "slots", "frame")


def assert_same_parts(found, expected):
    for name, a, b in zip(PARTS, found, expected, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b), name


def slots_of(keys):
    """One block after another into the hash, each at the first free slot."""
    slots = [-1] * max(2, 1 << (2 * len(keys) - 1).bit_length()) if len(keys) else [-1, -1]
    for block, key in enumerate(keys.tolist()):
        at = (key * 0x9E3779B97F4A7C15 & (2**64 - 1)) >> 32
        while slots[at % len(slots)] >= 0:
            at += 1
        slots[at % len(slots)] = block
    return torch.tensor(slots, dtype=torch.int32)


def expected_index(indices, *args):
    parts = [torch.from_numpy(part) for part in _C.sparse_index(indices, *args)]
    assert torch.equal(parts[4], slots_of(parts[1]))
    return parts


@pytest.mark.parametrize("name", SETS)
def test_index(shim, name):
    make, lower, upper = SETS[name]
    indices = make()
    for batch_size in (-1, 6):
        found = sparse_index.sparse_index(indices, batch_size, lower, upper)
        assert_same_parts(found, expected_index(indices, batch_size, lower, upper))
    suffix = "i64" if indices.dtype == torch.int64 else "i32"
    assert shim.launched[:2] == [f"sparse_voxel_blocks_{suffix}", "sparse_block_codes"]
    assert set(shim.cupy.modules) == {"code"} or "fatbin" in shim.cupy.modules


def test_strided_indices(shim):
    indices = voxels(100, (9, 9, 9)).t().contiguous().t()
    found = sparse_index.sparse_index(indices, -1, None, None)
    assert_same_parts(found, expected_index(indices, -1, None, None))


@pytest.mark.parametrize(
    ("rows", "batch_size", "bounds", "message"),
    [
        ([[0, 1, 1], [0, 2, 2], [0, 1, 1]], -1, (None, None), "rows 0 and 2"),
        ([[0, 1, 1], [0, 5, 2]], -1, ((0, 0), (5, 5)), r"\(0, 5, 2\)"),
        ([[0, 1, 1], [0, -1, 2]], -1, ((0, 0), (5, 5)), r"\(0, -1, 2\)"),
        ([[0, 1, 1], [4, 2, 2]], 4, (None, None), r"\(4, 2, 2\)"),
        ([[0, 1, 1], [-1, 2, 2]], -1, (None, None), r"\(-1, 2, 2\)"),
        ([[0, 0, 0], [0, 2**61, 2**61]], -1, (None, None), "span"),
    ],
)
def test_bad_indices(shim, rows, batch_size, bounds, message):
    with pytest.raises(ValueError, match=message):
        sparse_index.sparse_index(torch.tensor(rows), batch_size, *bounds)


RELATIONS = {
    "k2s2": ("3d", (2, 2, 2), (2, 2, 2), (0, 0, 0), (1, 1, 1), False),
    "k3s2p1": ("3d-negative", (3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1), False),
    "k3s1": ("3d-dense", (3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1), False),
    "uneven": ("3d", (1, 4, 3), (3, 1, 2), (0, 5, 1), (1, 2, 3), False),
    "generative": ("3d-dense", (3, 2, 3), (2, 2, 3), (1, 0, 0), (1, 1, 2), True),
    "far-reaching": ("2d", (3, 3), (1, 1), (90, 90), (90, 90), False),
    "1d": ("1d", (5,), (3,), (2,), (1,), False),
    "1d-generative": ("1d", (40,), (2,), (0,), (3,), True),
    "4d": ("4d", (2, 2, 2, 2), (2, 2, 1, 2), (0, 0, 1, 0), (1, 1, 1, 1), False),
    "one": ("one", (3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1), True),
}


@pytest.mark.parametrize("name", RELATIONS)
def test_outputs_and_maps(shim, name):
    which, *window, transposed = RELATIONS[name]
    indices = SETS[which][0]()
    dims = indices.shape[1] - 1
    parts = sparse_index.sparse_index(indices, -1, None, None)
    for bounds in (((1,) * dims, (9,) * dims), (None, None)):
        args = (dims, *window, transposed, *bounds, indices.dtype == torch.int64)
        found, *out = sparse_index.sparse_output_index(parts, *args)
        expected, *expected_out = (torch.from_numpy(part) for part in _C.sparse_output_index(parts, *args))
        assert found.dtype == expected.dtype and torch.equal(found, expected)
        assert_same_parts(out, expected_out)
    assert_same_map(out, parts, dims, *window, transposed)
    assert_same_map(parts, out, dims, *window, not transposed)


def assert_same_map(out, input, dims, *relation):
    found = sparse_index.sparse_map(out, input, dims, *relation)
    lists = reference.sparse_map(out, input, dims, *relation)
    expected = neighbours.from_lists([out[0], input[0], *lists], int(np.prod(relation[0])))
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


@pytest.mark.parametrize(
    ("which", "kernel", "dilation"),
    [("3d", 3, 1), ("3d-dense", 5, 1), ("3d-far", 3, 2), ("2d", 3, 40), ("1d", 7, 1), ("4d", 3, 1), ("one", 1, 1)],
)
def test_submanifold_maps(shim, which, kernel, dilation):
    indices = SETS[which][0]()
    dims = indices.shape[1] - 1
    parts = sparse_index.sparse_index(indices, -1, None, None)
    window = ((kernel,) * dims, (1,) * dims, (kernel // 2 * dilation,) * dims, (dilation,) * dims)
    assert_same_map(parts, parts, dims, *window, False)
    assert shim.launched[-1] == "sparse_neighbours"


def test_more_blocks_around_than_64_bits_count(shim):
    parts = sparse_index.sparse_index(SETS["3d"][0](), -1, None, None)
    dilation = 4 * (2**22 - 1)  # 2**22 blocks along each axis, 2**66 in all
    assert_same_map(parts, parts, 3, (2, 2, 2), (1, 1, 1), (0, 0, 0), (dilation,) * 3, False)


def test_rows_with_like_masks_are_neighbours():
    masks = torch.tensor([[3, 0], [1, 5], [3, 0], [1, -1], [2, 0], [1, 5]], dtype=torch.int32)
    order = neighbours.mask_order(masks, torch.tensor([5, 4, 3, 2, 1, 0], dtype=torch.int32))
    assert order.tolist() == [3, 4, 2, 0, 5, 1]


def test_without_cupy_it_is_plain_pytorch(monkeypatch):
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: None)
    assert launch.why_not() == "CuPy is not installed (pip install flexor[cuda])"
    indices = SETS["3d"][0]()
    parts = sparse_index.sparse_index(indices, -1, None, None)
    assert not len(parts[4])
    window = ((2, 2, 2), (2, 2, 2), (0, 0, 0), (1, 1, 1))
    _, *out = sparse_index.sparse_output_index(parts, 3, *window, False, None, None, False)
    assert_same_map(out, parts, 3, *window, False)


def test_amd_gpus_take_plain_pytorch(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert "AMD" in launch.why_not()


def test_nothing_to_index(shim):
    parts = sparse_index.sparse_index(torch.zeros(0, 4, dtype=torch.int32), -1, None, None)
    window = ((3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1))
    indices, *out = sparse_index.sparse_output_index(parts, 3, *window, False, None, None, True)
    assert indices.shape == (0, 4) and indices.dtype == torch.int64
    assert [t.shape for t in sparse_index.sparse_map(out, parts, 3, *window, False)] == [(0, 27), (0, 1), (0,)]


def test_an_index_made_in_plain_pytorch_has_a_map(shim):
    parts = reference.sparse_index(SETS["3d"][0](), -1, None, None)
    assert_same_map(parts, parts, 3, (3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1), False)


def test_outputs_that_bounds_leave_nothing_of(shim):
    parts = sparse_index.sparse_index(SETS["3d"][0](), -1, None, None)
    window = ((2, 2, 2), (2, 2, 2), (0, 0, 0), (1, 1, 1))
    indices, *out = sparse_index.sparse_output_index(parts, 3, *window, False, (90, 90, 90), (99, 99, 99), False)
    assert indices.shape == (0, 4) and out[4].tolist() == [-1, -1] and out[3].tolist() == [0]


@pytest.mark.skipif(SANITIZED, reason="runs no kernel")
def test_a_compiler_sees_the_tensors_of_a_gpu():
    parts = reference.sparse_index(SETS["2d"][0](), -1, None, None)
    args = (parts, parts, 2, [3, 11], [1, 1], [1, 5], [1, 1], False, "cuda")
    assert [t.shape for t in torch.ops.flexor.sparse_map(*args)] == [(80, 33), (80, 2), (80,)]
    torch.library.opcheck(torch.ops.flexor.sparse_map.default, args)


def reverse(shim, barriers):
    source, result = torch.arange(24, dtype=torch.int32), torch.empty(24, dtype=torch.int32)
    with shim.cupy.cuda.Stream.from_external(torch.cuda.current_stream(None)):
        kernel = shim.cupy.RawModule(path="any").get_function("shim_reverse")
        pointers = [np.uint64(t.data_ptr()) for t in (source, result)]
        kernel((3,), (8,), (*pointers, np.int32(barriers)))
    return torch.equal(result.view(3, 8), source.view(3, 8).flip(1))


def test_the_shim_runs_barriers(shim):
    assert reverse(shim, 1)


def test_the_shim_catches_a_missing_barrier(shim):
    assert not reverse(shim, 0)


def test_the_shim_catches_barriers_that_differ(shim):
    with pytest.raises(RuntimeError, match="threads of a block wait at different barriers"):
        reverse(shim, 2)


def test_the_shim_catches_a_missing_atomic(shim):
    counts = torch.zeros(2, dtype=torch.int32)
    shim.launch("shim_count", (1,), (16,), (np.uint64(counts.data_ptr()), np.uint64(counts[1:].data_ptr())))
    assert (counts[0] == 16) == (shim.order != "shuffled") and counts[1] == 2**16 - 1


def test_the_shim_poisons_shared_memory(shim):
    values = torch.zeros(4, dtype=torch.int32)
    shim.launch("shim_unset", (1,), (4,), (np.uint64(values.data_ptr()),))
    assert (values == int.from_bytes(b"\xcd" * 4, "little", signed=True)).all()


@pytest.mark.parametrize(
    "args",
    [
        (np.uint64(0), np.uint64(0), np.int64(1)),
        (np.uint64(0), np.uint64(0)),
        (np.int32(0), np.uint64(0), np.uint64(0)),
    ],
)
def test_arguments_of_other_widths_are_caught(shim, args):
    with pytest.raises(AssertionError, match=r"arguments of .* bytes, parameters of"):
        shim.launch("shim_reverse", (1,), (1,), args)


def test_launch_refuses(shim):
    source = launch.Source("sparse3d", "sparse_index")
    values = torch.zeros(4, 4, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"needs contiguous tensors on cpu, got strides \(1, 4\)"):
        launch.launch(source, "shim_unset", 1, 4, values.t())
    with pytest.raises(ValueError, match="the launch needs 2147483648 blocks, at most 2147483647 are possible"):
        launch.launch(source, "shim_unset", 2**31, 4, values)
    with pytest.raises(RuntimeError, match=r"sparse3d/nothing.cu is not installed"):
        launch.launch(launch.Source("sparse3d", "nothing"), "shim_unset", 1, 4, values)


def test_nvrtc_where_the_fatbin_does_not_fit(library, shim, monkeypatch, tmp_path):
    for suffix in (".cu", ".fatbin"):
        path = tmp_path / "_cuda" / "sparse3d" / f"sparse_index{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('extern "C" {}')
    import flexor

    monkeypatch.setattr(flexor, "__path__", [str(tmp_path)])
    for fails, loaded in ((False, ["fatbin"]), (True, ["fatbin", "code"])):
        launch.kernel.cache_clear()
        with fake_cupy.installed(shim, fatbin_fails=fails) as cupy:
            launch.launch(sparse_index.SOURCE, "shim_unset", 1, 4, torch.zeros(4, dtype=torch.int32))
            assert cupy.modules == loaded


BEYOND = """
import ctypes, sys
import numpy as np
import fake_cupy
shim = fake_cupy.Shim(sys.argv[1])
values = np.zeros(3, np.int32)
shim.launch("shim_unset", (1,), (4,), (np.uint64(values.ctypes.data),))
"""


@pytest.mark.skipif(not SANITIZED, reason="needs the sanitizers")
def test_the_sanitizers_catch_a_store_beyond_the_end(library):
    environment = os.environ | {"PYTHONPATH": str(Path(fake_cupy.__file__).parent), "PYTHONMALLOC": "malloc"}
    command = [sys.executable, "-c", BEYOND, library]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "heap-buffer-overflow" in done.stderr and "shim_unset" in done.stderr


@pytest.mark.skipif(SANITIZED, reason="this is that run")
def test_under_sanitizers():
    preloaded = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so", "libstdc++.so")
    ]
    environment = os.environ | {
        "FLEXOR_SHIM": "sanitized",
        "LD_PRELOAD": " ".join(preloaded),
        "ASAN_OPTIONS": "detect_leaks=0",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-x", "-p", "no:cacheprovider", *TESTED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
