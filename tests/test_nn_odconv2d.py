# SPDX-License-Identifier: Apache-2.0
"""ODConv's modules: the published layer's numbers, state_dict and initialisation, and what training needs of them."""

import copy
import math
from pathlib import Path

import flexor
import numpy
import pytest
import torch
from flexor import reference
from flexor.nn import ODConv1d, ODConv2d, annealed_temperature, fuse_odconv_bn_eval, update_temperature
from flexor.testing import assert_close, running, ways
from torch import nn

GOLDEN = numpy.load(Path(__file__).parent / "data" / "odconv_golden.npz")
WAY = pytest.mark.parametrize("way", ways("odconv2d"), ids=str)


def golden_layer(name, dtype=torch.float64, device="cpu"):
    *geometry, kernel_num = GOLDEN[f"{name}/arguments"].tolist()
    layer = ODConv2d(*geometry, kernel_num=kernel_num)
    state = layer.state_dict()
    assert [f"{key} {list(value.shape)}" for key, value in state.items()] == GOLDEN[f"{name}/keys"].tolist()
    return load_flat(layer, GOLDEN[f"{name}/state"]).to(device, dtype)


def load_flat(layer, numbers):
    state = layer.state_dict()
    parts = torch.tensor(numbers.astype("float64")).split([value.numel() for value in state.values()])
    layer.load_state_dict({k: part.reshape(v.shape) for (k, v), part in zip(state.items(), parts, strict=True)})
    return layer


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", sorted({key.split("/")[0] for key in GOLDEN}))
@WAY
def test_the_published_layers_numbers(way, name, mode, dtype):
    """Output and every gradient, of input and parameters; see data/make_odconv_golden.py."""
    layer = golden_layer(name, dtype, way.device).train(mode == "train")
    layer.update_temperature(GOLDEN[f"{name}/{mode}/temperature"].item())
    input = torch.tensor(GOLDEN[f"{name}/input"], dtype=dtype, device=way.device).requires_grad_()
    with running(way):
        output = layer(input)
        grad_output = torch.tensor(GOLDEN[f"{name}/{mode}/grad_output"]).to(output)
        grads = torch.autograd.grad(output, [input, *layer.parameters()], grad_output)
    assert_close(output, torch.tensor(GOLDEN[f"{name}/{mode}/output"]), 1e-5)
    expected = torch.tensor(GOLDEN[f"{name}/{mode}/grads"]).split([g.numel() for g in grads])
    for key, grad, true in zip(["input", *dict(layer.named_parameters())], grads, expected, strict=True):
        assert_close(grad.flatten(), true, 1e-5, what=key)
