# SPDX-License-Identifier: Apache-2.0
"""Gradients of one training step of each lifting network, by this process or by several: run by test_lift.py.

python tests/lift_gradients.py OUT.pt
torchrun --nproc_per_node 2 tests/lift_gradients.py OUT.pt
"""

import sys

import torch
from flexor.models import parallel
from flexor.models.lift import LiftSettings, build, loss_of

MODELS = {"dgridconv": 16, "gridconv": 8, "martinez": 64, "gcn": 16}


def main(path: str) -> None:
    torch.set_num_threads(1)
    parallel.start()
    found = {}
    for model_name, width in MODELS.items():
        torch.manual_seed(0)
        model = build(LiftSettings(model_name, width))
        if parallel.size() > 1:
            parallel.synchronise(model)
        inputs, targets = torch.randn(12, 17, 2), torch.randn(12, 17, 3)
        for _ in range(2):  # the second step has running statistics to follow
            model.zero_grad()
            loss_of(model, parallel.share(inputs), parallel.share(targets)).backward()
            parallel.average_gradients(model.parameters())
        found[model_name] = {
            "gradients": {name: parameter.grad for name, parameter in model.named_parameters()},
            "buffers": {name: buffer for name, buffer in model.named_buffers() if "running" in name},
        }
    if parallel.rank() == 0:
        torch.save(found, path)
    parallel.wait()
    parallel.stop()


if __name__ == "__main__":
    main(sys.argv[1])
