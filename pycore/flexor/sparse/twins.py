# SPDX-License-Identifier: Apache-2.0
"""spconv's layers by their names there, and those here that take their place in a live model."""

from __future__ import annotations

from torch import nn

from . import conv, modules, pool, tables

_ELSEWHERE = {"ToDense": "", "RemoveGrid": "", "Identity": ".identity"}  # not in the file that they have here

TWINS: dict[str, type[nn.Module]] = {
    f"spconv.pytorch{_ELSEWHERE.get(name, '.' + file.__name__.rpartition('.')[2])}.{name}": layer
    for file in (conv, modules, pool, tables)
    for name, layer in vars(file).items()
    if isinstance(layer, type) and layer.__module__ == file.__name__ and not name.startswith("_")
}
del TWINS["spconv.pytorch.modules.SparseModule"], TWINS["spconv.pytorch.modules.CountsVoxels"]  # bases of others


def adopt(module: nn.Module) -> None:
    """Has a layer of spconv's load weights as those here do: its own way permutes them twice."""
    hooks = module._load_state_dict_pre_hooks
    for key, hook in list(hooks.items()):
        if getattr(getattr(hook, "hook", hook), "__name__", "") == "_load_weight_different_layout":
            del hooks[key]
