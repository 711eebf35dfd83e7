# SPDX-License-Identifier: Apache-2.0
"""Where a command computes."""

from .failure import fail


def prepare(device: str, threads: int | None) -> None:
    """Set the number of threads, and end the command if torch does not have the device."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    if device != "cpu" and not (device.startswith("cuda") and torch.cuda.is_available()):
        fail(f"--device {device}: this torch ({torch.__version__}) has only cpu here")
