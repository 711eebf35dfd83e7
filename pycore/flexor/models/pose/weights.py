# SPDX-License-Identifier: Apache-2.0
"""Weights of the pose networks: safetensors with what they are for, and official checkpoints made into that."""

from __future__ import annotations

import _codecs
import hashlib
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ..checkpoint import write_atomically

FORMAT = "flexor pose 1"
SHOWN = 4  # of the differences that a message lists
# Where checkpoints keep the weights, averaged ones first. mmengine's `ema_state_dict` is left alone: its `state_dict`
# already holds the averages.
WRAPPERS = ("state_dict_ema", "model_ema", "ema", "state_dict", "model_state_dict", "model", "net")
# What tools put in front of names: DataParallel, and mmpose's parts of a model.
PREFIXES = ("module.", "backbone.", "keypoint_head.", "head.", "model.")
OPTIONAL = "num_batches_tracked"  # older than torch 0.4.1, and needed by no network
# Arrays of NumPy are data too, by the names that either of its versions gives what rebuilds them.
_REBUILD: tuple[Any, ...] = (np.array(0).__reduce__()[0], np.float64(0).__reduce__()[0])
SAFE: list[Any] = [
    *((made, f"numpy.{core}.multiarray.{made.__name__}") for made in _REBUILD for core in ("core", "_core")),
    *(np.ndarray, np.dtype, _codecs.encode),
    *{type(np.dtype(letter)) for letter in "?bBhHiIlLqQefdU"},
]


class WeightsError(ValueError):
    """Weights that cannot be used, and why; the message is one line meant for the user."""


def load_weights(model: nn.Module, path: Path, name: str) -> dict[str, str]:
    """Put the weights of a .safetensors or an official checkpoint into a model.

    Args:
        model: gets them.
        path: the file.
        name: of the model, for messages.

    Returns:
        The file's metadata, empty for a checkpoint.

    Raises:
        WeightsError: a file that cannot be read safely, or fits another model; the message lists what differs.
    """
    tensors, metadata = read_weights(path)
    fitting = fit(tensors, model)
    found = differences(fitting, model)
    if found:
        made_for = metadata.get("model")
        other = f" (it says that it is for {made_for})" if made_for and made_for != name else ""
        raise WeightsError(f"{path}: does not fit {name}{other}: {found}")
    model.load_state_dict(fitting, strict=False)
    return metadata


def save_weights(path: Path, model: nn.Module, name: str, metadata: Mapping[str, str]) -> None:
    """Write a model's weights, whole or not at all, with its name and more metadata."""
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in model.state_dict().items()}
    write_atomically(path, save(tensors, {"format": FORMAT, "model": name, **metadata}))


def convert(source: Path, out: Path, model: nn.Module, name: str) -> dict[str, str]:
    """Make an official checkpoint into safetensors that says what it is for and where it came from.

    Returns:
        The metadata: format, model, source and source_sha256.

    Raises:
        WeightsError: as `load_weights`.
    """
    load_weights(model, source, name)
    metadata = {"source": source.name, "source_sha256": hashlib.sha256(source.read_bytes()).hexdigest()}
    save_weights(out, model, name, metadata)
    return {"format": FORMAT, "model": name, **metadata}


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file under the names they have there, without wrappers, and its metadata.

    Raises:
        WeightsError: no such file, not a checkpoint, or one that asks for code to be run.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
        with torch.serialization.safe_globals(SAFE):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise WeightsError(f"{path}: {reason}") from None
    except pickle.UnpicklingError as error:
        raise WeightsError(f"{path}: {_unsafe(error)}") from None
    except (RuntimeError, EOFError, KeyError, ValueError) as error:
        raise WeightsError(f"{path}: is not a checkpoint that torch can read ({_first_line(error)})") from None
    tensors = dict(_tensors(content))
    if not tensors:
        raise WeightsError(f"{path}: holds no weights, but {_described(content)}")
    return tensors, {}


def fit(tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The tensors under the model's names: prefixes are dropped from names that the model does not have."""
    wanted = model.state_dict().keys()
    return {_known(key, wanted): tensor for key, tensor in tensors.items()}


def differences(tensors: Mapping[str, Tensor], model: nn.Module) -> str:
    """What is missing, unexpected, or of another shape, the first few of each; empty where all fits."""
    wanted = model.state_dict()
    missing = [key for key in wanted if key not in tensors and not key.endswith(OPTIONAL)]
    unexpected = [key for key in tensors if key not in wanted]
    shapes = [
        f"{key} {tuple(tensors[key].shape)} instead of {tuple(tensor.shape)}"
        for key, tensor in wanted.items()
        if key in tensors and tensors[key].shape != tensor.shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "other shape": shapes}
    return "; ".join(f"{len(found)} {kind}: {_shortened(found)}" for kind, found in kinds.items() if found)


def _tensors(content: Any) -> Iterator[tuple[str, Tensor]]:
    """The innermost dictionary of weights."""
    while isinstance(content, Mapping):
        inner = next((key for key in WRAPPERS if isinstance(content.get(key), Mapping) and content[key]), None)
        if inner is None:
            yield from ((key, value) for key, value in content.items() if isinstance(value, Tensor))
            return
        content = content[inner]


def _known(key: str, wanted: Any) -> str:
    """The key as it is if it is wanted, or with prefixes dropped until it is, or at least without `module.`."""
    bare = key
    while bare not in wanted:
        prefix = next((prefix for prefix in PREFIXES if bare.startswith(prefix)), None)
        if prefix is None:
            return key.removeprefix("module.")
        bare = bare.removeprefix(prefix)
    return bare


def _unsafe(error: Exception) -> str:
    text = str(error)
    for mark in ("GLOBAL ", "class "):
        if mark in text:
            name = text.partition(mark)[2].split()[0].strip("'`,.")
            break
    else:
        return f"is not a checkpoint that torch can read safely ({_first_line(error)})"
    return (
        f"refused: reading it would run {name}, and may run anything; save its state_dict alone, "
        "where it comes from and is trusted"
    )


def _described(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"a dictionary of {_shortened([str(key) for key in content])}" if content else "an empty dictionary"
    return f"one {type(content).__name__}"


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
