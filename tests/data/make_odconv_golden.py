# SPDX-License-Identifier: Apache-2.0
"""Writes odconv_golden.npz: what the published ODConv2d and its gradients really are.

Run with a checkout of https://github.com/OSVAI/ODConv: python tests/data/make_odconv_golden.py CHECKOUT
"""

import sys
from pathlib import Path

import numpy
import torch

# in_planes, out_planes, kernel_size, stride, padding, dilation, groups; kernel_num; image
CASES = {
    "3x3": ((4, 6, 3, 1, 1, 1, 1), 4, (3, 5, 6)),
    "3x3-one": ((6, 4, 3, 1, 1, 1, 1), 1, (3, 5, 6)),
    "1x1": ((6, 8, 1, 1, 0, 1, 1), 4, (3, 4, 5)),
    "1x1-one": ((6, 8, 1, 1, 0, 1, 1), 1, (3, 4, 5)),
    "depthwise": ((8, 8, 3, 1, 1, 1, 8), 4, (3, 5, 6)),
    "depthwise-one": ((8, 8, 3, 2, 1, 1, 8), 1, (3, 5, 6)),
    "grouped": ((6, 4, 3, 1, 1, 1, 2), 4, (3, 5, 6)),
    "strided": ((3, 4, 3, 2, 1, 1, 1), 4, (3, 7, 6)),
    "dilated": ((4, 3, 3, 1, 2, 2, 1), 2, (3, 5, 6)),
    "5x5": ((2, 3, 5, 2, 2, 1, 1), 4, (3, 7, 7)),
}
MODES = {"eval": 1.0, "train": 30.0}  # and the temperature


def flat(tensors):
    return numpy.concatenate([tensor.detach().numpy().ravel() for tensor in tensors])


def main():
    sys.path.insert(0, sys.argv[1])
    from modules.odconv import ODConv2d

    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    arrays = {}
    for name, (arguments, kernel_num, (batch, *size)) in CASES.items():
        layer = ODConv2d(*arguments, kernel_num=kernel_num)
        with torch.no_grad():
            for value in layer.state_dict().values():
                if value.is_floating_point():
                    value.copy_((value + torch.randn_like(value) / 2).half())
            layer.attention.bn.running_var.abs_()
        input = torch.randn(batch, arguments[0], *size).half().double().requires_grad_()
        arrays[f"{name}/arguments"] = numpy.array([*arguments, kernel_num])
        arrays[f"{name}/input"] = input.detach().numpy().astype(numpy.float16)
        state = layer.state_dict()
        arrays[f"{name}/keys"] = numpy.array([f"{key} {list(value.shape)}" for key, value in state.items()])
        arrays[f"{name}/state"] = flat(state.values()).astype(numpy.float16)
        for mode, temperature in MODES.items():
            layer.train(mode == "train").update_temperature(temperature)
            output = layer(input)
            grad_output = torch.randn_like(output).half().double()
            grads = torch.autograd.grad(output, [input, *layer.parameters()], grad_output)
            arrays[f"{name}/{mode}/temperature"] = numpy.array(temperature)
            arrays[f"{name}/{mode}/output"] = output.detach().numpy().astype(numpy.float32)
            arrays[f"{name}/{mode}/grad_output"] = grad_output.numpy().astype(numpy.float16)
            arrays[f"{name}/{mode}/grads"] = flat(grads).astype(numpy.float32)
    path = Path(__file__).with_name("odconv_golden.npz")
    numpy.savez_compressed(path, **arrays)
    print(f"{path.name}: {len(CASES)} cases, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
