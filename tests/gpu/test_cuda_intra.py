# SPDX-License-Identifier: Apache-2.0
"""The intra kernels of a GPU as test_cuda.py runs them, against the reference; the ops as they take that way."""

import pytest
import torch
from fake_cupy import SANITIZED
from flexor import _backend, ops, reference
from flexor._cuda import intra
from flexor.ops import INTRA_CANDIDATES

SAMPLES = (torch.uint8, torch.int16, torch.uint16, torch.int32)


def picture(batch, height, width, bit_depth=8, dtype=torch.uint8):
    """Noise beside a slope, which strong smoothing is for."""
    noise = torch.randint(0, 1 << bit_depth, (batch, height, width))
    slope = torch.arange(height)[:, None] + torch.arange(width) // 2 + noise % 2
    middle = width // 2
    return torch.cat([noise[..., :middle], slope[..., middle:]], 2).to(dtype)


# size, picture, bit depth, coding tree block, metric, nearest, strong smoothing, dtype
SEARCHES = {
    "4": (4, (2, 18, 23), 8, 16, "satd", True, True, torch.uint8),
    "8": (8, (1, 40, 70), 10, 32, "satd", True, True, torch.uint16),
    "8-one": (8, (1, 1, 1), 8, 64, "satd", True, True, torch.uint8),
    "16-sad": (16, (1, 33, 50), 12, None, "sad", True, False, torch.int16),
    "32": (32, (1, 70, 65), 8, 64, "satd", False, True, torch.int32),
    "64": (64, (1, 90, 130), 8, 64, "satd", False, True, torch.uint8),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_search(shim, name):
    size, shape, bit_depth, ctb_size, metric, nearest, strong, dtype = SEARCHES[name]
    pictures = picture(*shape, bit_depth, dtype)
    expected = reference.intra_search(pictures, size, metric, nearest, bit_depth, strong, ctb_size)
    costs = torch.full_like(expected, -1)
    assert intra.intra_search(costs, pictures, size, metric == "satd", bit_depth, strong, ctb_size)
    assert torch.equal(costs, expected)
    assert shim.launched == ["intra_search"]


def test_search_of_nothing(shim):
    costs = torch.empty(0, 1, 1, 63, dtype=torch.int32)
    assert intra.intra_search(costs, torch.empty(0, 8, 8, dtype=torch.uint8), 8, True, 8, True, 64)


@pytest.mark.parametrize("size", [4, 8, 16, 32, 64])
@pytest.mark.parametrize("nearest", [False, True])
def test_predict(shim, size, nearest):
    """Every mode of small blocks, samples of every kind missing."""
    blocks = 35 if size < 16 else 256 // size
    dtype = SAMPLES[size.bit_length() % 4]
    bit_depth = 8 if dtype == torch.uint8 else 11
    border = torch.randint(0, 1 << bit_depth, (blocks, 4 * size + 1)).to(dtype)
    border[::3] = (torch.arange(4 * size + 1) // 4).to(dtype)
    mode = torch.randperm(35)[:blocks]
    holes = torch.rand(blocks, 4 * size + 1).round().bool()
    holes[0], holes[1, size:], holes[2, :size] = False, False, False
    for available in (None, holes):
        for smoothing, strong, edges in ((True, True, True), (True, False, False), (False, False, True)):
            flags = bit_depth, nearest, "luma", smoothing, strong, edges
            expected = reference.intra_predict(border, mode, available, *flags)
            output = torch.zeros_like(expected)
            assert intra.intra_predict(output, border, mode, available, bit_depth, nearest, smoothing, strong, edges)
            assert torch.equal(output.int(), expected.int())


@pytest.fixture
def on_gpu(shim, monkeypatch):
    """The ops take a CPU tensor for a GPU's."""
    monkeypatch.setattr(_backend, "choose", lambda *_: "cuda")
    return shim


@pytest.mark.parametrize("dtype", SAMPLES)
def test_ops(on_gpu, dtype):
    pictures = picture(1, 20, 17, 8, dtype)
    costs = ops.intra_search(pictures, size=8)
    assert torch.equal(costs, reference.intra_search(pictures)) and costs.shape[3] == len(INTRA_CANDIDATES)
    best = ops.intra_search(pictures, size=8, best=3)
    assert torch.equal(best.costs, costs.sort(3).values[..., :3])
    border = pictures[0, :, :17]
    predicted = ops.intra_predict(border, 30, interpolation="nearest")
    expected = reference.intra_predict(border, torch.full((20,), 30), nearest=True)
    assert predicted.dtype == dtype and torch.equal(predicted.int(), expected.int())
    assert {name[:9] for name in on_gpu.launched} == {"intra_sea", "intra_pre"}


@pytest.mark.parametrize(("dtype", "value"), [(torch.int16, -1), (torch.uint16, 1024), (torch.int32, 65536)])
def test_samples_out_of_range(on_gpu, dtype, value):
    pictures = torch.zeros(1, 9, 17).to(dtype)
    pictures[0, 8, 16] = value
    with pytest.raises(
        ValueError, match=rf"pictures must hold 0 to 1023 \(bit_depth 10\), got {value} at \(0, 8, 16\)"
    ):
        ops.intra_search(pictures, bit_depth=10)
    with pytest.raises(ValueError, match=rf"border must hold 0 to 1023 \(bit_depth 10\), got {value} at \(8, 16\)"):
        ops.intra_predict(pictures[0], 10, bit_depth=10)


@pytest.mark.parametrize("mode", [-1, 35, 2**40])
def test_modes_out_of_range(on_gpu, mode):
    with pytest.raises(ValueError, match=f"mode must be 0 to 34, got {mode} at 1"):
        ops.intra_predict(torch.zeros(2, 17, dtype=torch.uint8), torch.tensor([0, mode]))


@pytest.mark.skipif(SANITIZED, reason="runs no kernel")
def test_why_not():
    device, gpu = torch.device("cpu"), torch.device("cuda", 0)
    assert "it needs a GPU" in _backend._why_not_cuda("intra_search", device, torch.uint8)
    assert "no CUDA C++ kernel" in _backend._why_not_cuda("deform_conv2d", gpu, torch.float32)
