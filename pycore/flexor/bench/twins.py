# SPDX-License-Identifier: Apache-2.0
"""The same model with other layers, on the same parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import nn


def twin(model: nn.Module, swap: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    """A copy that shares model's parameters, with `swap(module)` in place of every module for which that is one."""
    copied = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    whole = swap(copied)
    if whole is not None:
        return whole.train(model.training)
    for name, module in list(copied.named_modules()):
        new = swap(module) if name else None
        if new is not None:
            copied.set_submodule(name, new.train(module.training))
    return copied
