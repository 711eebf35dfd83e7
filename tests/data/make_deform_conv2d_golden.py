# SPDX-License-Identifier: Apache-2.0
"""Writes deform_conv2d_golden.npz: what torchvision's deform_conv2d and its gradients really are.

Run where torchvision is installed: python tests/data/make_deform_conv2d_golden.py
"""

from pathlib import Path

import numpy
import torch
import torchvision

# n, c, o, h, w, kernel, stride, padding, dilation, groups, offset groups, mask, bias
CASES = {
    "plain": (2, 3, 4, 5, 6, (3, 3), (1, 1), (1, 1), (1, 1), 1, 1, False, True),
    "modulated": (1, 4, 5, 6, 5, (3, 3), (1, 1), (1, 1), (1, 1), 1, 1, True, True),
    "offset-groups": (2, 4, 4, 5, 5, (3, 3), (1, 1), (1, 1), (1, 1), 1, 4, True, False),
    "groups": (1, 6, 4, 5, 5, (3, 3), (1, 1), (1, 1), (1, 1), 2, 3, True, True),
    "strided": (1, 2, 3, 9, 8, (3, 3), (2, 3), (1, 2), (1, 1), 1, 1, True, True),
    "dilated": (1, 2, 2, 7, 8, (3, 2), (1, 1), (2, 3), (2, 3), 1, 2, False, False),
    "one-tap": (3, 2, 2, 4, 3, (1, 1), (1, 1), (0, 0), (1, 1), 2, 1, True, True),
    "one-pixel": (1, 3, 2, 1, 1, (3, 3), (1, 1), (1, 1), (1, 1), 1, 3, True, True),
}
NAMES = ("input", "offset", "weight", "bias", "mask")


def tensors(n, c, o, h, w, kernel, stride, padding, dilation, groups, dg, mask, bias):
    size = [
        (s + 2 * p - d * (k - 1) - 1) // t + 1
        for s, p, d, k, t in zip((h, w), padding, dilation, kernel, stride, strict=True)
    ]
    taps = kernel[0] * kernel[1]
    offset = 2 * torch.randn(n, 2 * dg * taps, *size)
    offset[:, ::3] = offset[:, ::3].round()  # whole coordinates: right-sided gradients, the edge at -1 among them
    return (
        torch.randn(n, c, h, w),
        offset,
        torch.randn(o, c // groups, *kernel),
        torch.randn(o) if bias else None,
        torch.randn(n, dg * taps, *size) if mask else None,
    )


def main():
    torch.manual_seed(0)
    arrays = {}
    for name, case in CASES.items():
        made = dict(zip(NAMES, tensors(*case), strict=True))
        made = {key: None if value is None else value.double().requires_grad_() for key, value in made.items()}
        present = {key: value for key, value in made.items() if value is not None}
        stride, padding, dilation = case[6:9]
        output = torchvision.ops.deform_conv2d(
            made["input"], made["offset"], made["weight"], made["bias"], stride, padding, dilation, made["mask"]
        )
        grad_output = torch.randn(output.shape).double()
        grads = torch.autograd.grad(output, list(present.values()), grad_output)
        arrays[f"{name}/geometry"] = numpy.array([stride, padding, dilation])
        arrays[f"{name}/output"], arrays[f"{name}/grad_output"] = output.detach().numpy(), grad_output.float().numpy()
        for key, value, grad in zip(present, present.values(), grads, strict=True):
            arrays[f"{name}/{key}"], arrays[f"{name}/grad_{key}"] = value.detach().float().numpy(), grad.numpy()
    path = Path(__file__).with_name("deform_conv2d_golden.npz")
    numpy.savez_compressed(path, version=torchvision.__version__, **arrays)
    print(f"{path.name}: {len(CASES)} cases, {path.stat().st_size} bytes, torchvision {torchvision.__version__}")


if __name__ == "__main__":
    main()
