# SPDX-License-Identifier: Apache-2.0
"""Fixed seeds, and new tensors full of NaN, so that an output nobody wrote cannot look right."""

import functools

import pytest
import torch


def poisoned(make):
    @functools.wraps(make)
    def made(*args, **kwargs):
        tensor = make(*args, **kwargs)
        if type(tensor) is torch.Tensor and tensor.is_floating_point() and tensor.device.type in ("cpu", "cuda"):
            with torch.no_grad():
                tensor.fill_(torch.nan)
        return tensor

    return made


@pytest.fixture(autouse=True)
def poison(monkeypatch, request):
    if request.node.get_closest_marker("compiles"):
        return  # a compiler would trace the poison too
    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty), raising=False)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def one_thread():
    """For networks so small that they gain nothing from a second one: `pytestmark = usefixtures("one_thread")`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
