# SPDX-License-Identifier: Apache-2.0
"""Writes gridconv_golden.npz: what the official lifting networks and their gradients really are.

Run with a checkout of github.com/OSVAI/GridConv: python tests/data/make_gridconv_golden.py CHECKOUT

The static network needs PyTorch 1.4, whose circular padding used half of what it was given: its convolutions are made
with the border of one cell that they had there.
"""

import sys
import types
from pathlib import Path
from unittest import mock

import numpy
import torch
from torch import nn

CHANNELS, BLOCKS, BATCH = 6, 2, 3
# network, borders, in training, temperature, arguments of the call
CASES = {
    "dynamic-cr-30": ("dgridconv", "cr", True, 30, {}),
    "dynamic-cr-1": ("dgridconv", "cr", True, 1, {}),
    "dynamic-cz-30": ("dgridconv", "cz", False, 30, {}),
    "dynamic-cz-1": ("dgridconv", "cz", False, 1, {}),
    "learnable-hard": ("dgridconv_autogrids", "cz", False, 1, {}),
    "learnable-straight-through": ("dgridconv_autogrids", "cz", True, 30, {"is_training": True}),
    "learnable-gumbel": ("dgridconv_autogrids", "cr", True, 1, {"is_training": True, "use_gumbel_noise": True}),
    "static": ("gridconv", "cz", True, 1, {}),
    "static-eval": ("gridconv", "cz", False, 1, {}),
}
NAMES = {"gridconv": "Grid", "dgridconv": "DynamicGrid", "dgridconv_autogrids": "AutoDynamicGrid"}


class OneCellBorder(nn.Conv2d):
    def __init__(self, *args, padding, padding_mode, **kwargs):
        super().__init__(*args, padding=1, padding_mode="zeros" if padding_mode == "zero" else padding_mode, **kwargs)


def build(network, borders):
    module = __import__(f"network.{network}", fromlist=["network"])
    kind = getattr(module, f"{NAMES[network]}LiftingNetwork")
    options = {} if network == "gridconv" else {"padding_mode": borders, "grid_shape": [5, 5]}
    with mock.patch.object(nn, "Conv2d", OneCellBorder if network == "gridconv" else nn.Conv2d):
        return kind(CHANNELS, BLOCKS, p_dropout=0.0, **options).double()


def random_state(model):
    """Values that 8 bits hold, in 64ths, for the sorted keys."""
    state = {}
    for key, value in sorted(model.state_dict().items()):
        if key == "sgt_layer.sgt_trans_mat":  # every best joint is the only best, and joint 16 is one
            state[key] = torch.stack([torch.randperm(17) for _ in range(25)]).to(torch.int8)[None]
            state[key][0, 3, 16] = 20
        elif key.endswith("running_var"):
            state[key] = torch.randint(32, 127, value.shape, dtype=torch.int8)
        elif not key.endswith("num_batches_tracked"):
            state[key] = torch.randint(-63, 64, value.shape, dtype=torch.int8)
    return state


def run(case, state, input, grad_output, noise):
    """Output, gradient of the input, and of the parameters, in float64."""
    network, borders, training, temperature, options = case
    model = build(network, borders).train(training)
    model.load_state_dict({key: value / 64 for key, value in state.items()}, strict=False)
    if network != "gridconv":
        model.net_update_temperature(temperature)
    input = input.double().requires_grad_()

    def softmax(logits, tau, hard, dim):
        return ((logits + noise) / tau).softmax(dim)

    double = mock.patch.object(torch.Tensor, "float", torch.Tensor.double)  # of the one-hot assignment
    with double, mock.patch.object(nn.functional, "gumbel_softmax", softmax):
        output = model(input, **options)
    output.backward(grad_output.double())
    grads = [thin(p.grad) for _, p in sorted(model.named_parameters()) if p.grad is not None]
    return output.detach(), input.grad, grads


def main(checkout):
    sys.path.insert(0, str(Path(checkout) / "src"))
    sys.modules["ipdb"] = types.ModuleType("ipdb")  # imported there, not used
    torch.manual_seed(0)
    states = {network: random_state(build(network, "cz")) for network in NAMES}
    noise = torch.randn(25, 17)
    arrays = {f"{network}/state": flat(state.values()).numpy() for network, state in states.items()}
    for name, case in CASES.items():
        joints = case[0] == "dgridconv_autogrids"
        input = torch.randn((BATCH, 17, 2) if joints else (BATCH, 2, 5, 5))
        grad_output = torch.randn((BATCH, 17, 3) if joints else (BATCH, 3, 5, 5))
        output, grad_input, grads = run(case, states[case[0]], input, grad_output, noise)
        values = {"input": input, "output": output, "grad_output": grad_output, "grad_input": grad_input}
        values["grads"] = flat(grads)
        arrays |= {f"{name}/{key}": value.float().numpy() for key, value in values.items()}
    path = Path(__file__).with_name("gridconv_golden.npz")
    numpy.savez_compressed(path, version=torch.__version__, noise=noise.numpy(), **arrays)
    print(f"{path.name}: {len(CASES)} cases, {path.stat().st_size} bytes, torch {torch.__version__}")


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors])


def thin(gradient):
    """Every 17th value of a large gradient: its rows and columns are all met."""
    return gradient.flatten()[::17] if gradient.numel() > 300 else gradient


if __name__ == "__main__":
    main(sys.argv[1])
