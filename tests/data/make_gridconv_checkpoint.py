# SPDX-License-Identifier: Apache-2.0
"""Writes gridconv_python2.pth.tar: a checkpoint of the official static network, optimizer object and all.

Run with Python 2.7 and PyTorch 1.4, where the official code runs unchanged, and with a checkout of
github.com/OSVAI/GridConv: python2 tests/data/make_gridconv_checkpoint.py CHECKOUT
"""

import os
import sys

import numpy
import torch


def main(checkout):
    sys.path.insert(0, os.path.join(checkout, "src"))
    from network.gridconv import GridLiftingNetwork

    torch.manual_seed(0)
    model = GridLiftingNetwork(hidden_size=4, num_block=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    input = torch.randn(3, 2, 5, 5)
    for _ in range(3):
        optimizer.zero_grad()
        model(input).pow(2).mean().backward()
        optimizer.step()
    output = model.eval()(input)
    checkpoint = {"epoch": 3, "lr": 1e-3, "error": numpy.float64(37.15), "optimizer": optimizer}
    checkpoint.update(state_dict=model.state_dict(), input=input, output=output.detach())
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "gridconv_python2.pth.tar")
    torch.save(checkpoint, path)
    print(" ".join([path, str(os.path.getsize(path)), "bytes, torch", torch.__version__]))


if __name__ == "__main__":
    main(sys.argv[1])
