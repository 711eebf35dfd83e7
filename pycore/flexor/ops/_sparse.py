# SPDX-License-Identifier: Apache-2.0
"""The dispatcher's side of sparse indices and maps: `torch.ops.flexor.sparse_{index,output_index,map}`.

They build what convolution and pooling run on, take no gradient, and give tensors whose sizes only the data decide,
which a compiler sees as new unbacked sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor, peek_interpreter_stack
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.compiler import is_dynamo_compiling

from .. import _C, _backend, reference
from ..reference.sparse_index import AXES, SHIFTS, TILE
from ._operator import is_plain, library

Ints = Sequence[int]

_FARTHEST = 2**62  # coordinates are multiplied by strides; a product that leaves 64 bits is refused

_RELATION = "SymInt[] kernel, SymInt[] stride, SymInt[] padding, SymInt[] dilation, bool transposed"
_SCHEMAS = {
    "sparse_index": "Tensor indices, SymInt batch_size, SymInt[]? lower, SymInt[]? upper",
    "sparse_output_index": f"Tensor[] parts, int dims, {_RELATION}, SymInt[]? lower, SymInt[]? upper, bool wide",
    "sparse_map": f"Tensor[] out_parts, Tensor[] in_parts, int dims, {_RELATION}",
}


def sparse_index(
    indices: Tensor, batch_size: int, lower: Ints | None, upper: Ints | None, backend: str | None
) -> list[Tensor]:
    """The six parts of an index; see `flexor.reference.sparse_index`."""
    return _call("sparse_index", indices, batch_size, lower, upper, backend)


def sparse_output_index(parts: Sequence[Tensor], *args: Any) -> list[Tensor]:
    """Coordinates that a convolution reaches, in the order of their ranks, and the six parts of their index."""
    return _call("sparse_output_index", parts, *args)


def sparse_map(out_parts: Sequence[Tensor], in_parts: Sequence[Tensor], *args: Any) -> list[Tensor]:
    """The pairs of two indices at every tap, three tensors."""
    return _call("sparse_map", out_parts, in_parts, *args)


def _call(name: str, *args: Any) -> list[Tensor]:
    first = args[0] if isinstance(args[0], Tensor) else args[0][5]
    if is_plain((first,)):
        return _run(name, *args)
    op = getattr(torch.ops.flexor, name)
    if is_dynamo_compiling() or peek_interpreter_stack() is None or is_functorch_wrapped_tensor(first):
        return op(*args)
    with temporarily_clear_interpreter_stack():  # what is kept must not belong to a level of functorch
        return op(*args)


def _run(name: str, *args: Any) -> list[Tensor]:
    *args, backend = args
    first = args[0] if isinstance(args[0], Tensor) else args[0][1]
    made = [] if name == "sparse_index" else [args[0]] if name == "sparse_output_index" else args[:2]
    build = _builder(name, first, backend, made)
    with torch.inference_mode(False):  # training may use them later
        built = build(*args)
        if name == "sparse_index":
            _check_ends(built[5], first.shape[1] - 1)
        elif name == "sparse_output_index":
            low, high = _check_ends(built[6], args[1])
            if not args[-1] and (low < -(2**31) or high > 2**31):  # the blocks do, the voxels may not
                built = _narrowed(build(*args[:-1], True))
    return built


def _check_ends(frame: Tensor, dims: int) -> tuple[int, int]:
    """The least and the largest coordinate of a frame's blocks, far enough from overflow."""
    first, bits = frame[:AXES].tolist(), frame[AXES : 2 * AXES].tolist()
    ends = [(a << s, (a + (1 << b)) << s) for a, b, s in zip(first, bits, SHIFTS[dims], strict=True)]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    if low <= -_FARTHEST or high >= _FARTHEST:
        raise ValueError(f"sparse_index: blocks of voxels must lie within 2**62 of 0, got {low} to {high}")
    return low, high


def _narrowed(built: list[Tensor]) -> list[Tensor]:
    indices = built[0].int()
    if not torch.equal(indices, built[0]):
        raise ValueError("sparse_output_index: outputs lie beyond int32 coordinates; give the indices as int64")
    return [indices, *built[1:]]


def _runs_on_gpu(like: Tensor, backend: str | None) -> bool:
    return like.is_cuda or (backend or _backend.forced()) in ("cuda", "triton")


def _builder(name: str, like: Tensor, backend: str | None, made: Sequence[Sequence[Tensor]]) -> Callable[..., Any]:
    if _runs_on_gpu(like, backend):
        from .._cuda import sparse_index as tables  # of neighbours, as the GPU kernels read maps, whoever makes them

        return getattr(tables, name, None) or getattr(reference, name)
    chosen = _backend.choose(name, like.device, like.dtype, backend)
    if chosen == "reference" or not all(parts[4].shape[0] for parts in made):  # without slots: made by the reference
        return getattr(reference, name)
    build = getattr(_C, name)
    return lambda *args: [torch.from_numpy(array) for array in build(*args)]


def _fake_index(indices: Tensor, *_: Any) -> list[Tensor]:
    return [indices.new_empty(indices.shape[0], dtype=torch.int32), *_fake_blocks(indices)]


def _fake_blocks(like: Tensor) -> list[Tensor]:
    """All parts but the order."""
    new = torch.library.get_ctx().new_dynamic_size
    blocks, slots = new(), new()
    sizes = ((blocks, torch.int64), (blocks, torch.int64), (blocks + 1, torch.int32), (slots, torch.int32))
    return [*(like.new_empty(size, dtype=dtype) for size, dtype in sizes), like.new_empty(12, dtype=torch.int64)]


def _fake_output_index(parts: Sequence[Tensor], dims: int, *args: Any) -> list[Tensor]:
    *_, wide, _ = args
    rows = torch.library.get_ctx().new_dynamic_size()
    like = parts[0]
    indices = like.new_empty(rows, 1 + dims, dtype=torch.int64 if wide else torch.int32)
    return [indices, like.new_empty(rows, dtype=torch.int32), *_fake_blocks(like)]


def _fake_map(
    out_parts: Sequence[Tensor], in_parts: Sequence[Tensor], dims: int, kernel: Ints, *args: Any
) -> list[Tensor]:
    like = out_parts[0]
    rows, taps = like.shape[0], 1
    for size in kernel:
        taps *= size
    if _runs_on_gpu(like, args[-1]):
        sizes = ((rows, taps), (rows, (taps + 31) // 32), (rows,))
        return [like.new_empty(size, dtype=torch.int32) for size in sizes]
    pairs, tiles = torch.library.get_ctx().new_dynamic_size(), (rows + TILE - 1) // TILE
    lists = ((pairs, torch.int32), (pairs, torch.uint8), (tiles * taps + 1, torch.int64))
    return [like.new_empty(size, dtype=dtype) for size, dtype in lists]


def _register(name: str, fake: Callable[..., list[Tensor]]) -> None:
    library.define(f"{name}({_SCHEMAS[name]}, str? backend) -> Tensor[]", tags=(torch.Tag.pt2_compliant_tag,))
    library.impl(name, lambda *args: _run(name, *args), "CompositeExplicitAutograd")
    torch.library.register_fake(f"flexor::{name}", fake, lib=library)


_register("sparse_index", _fake_index)
_register("sparse_output_index", _fake_output_index)
_register("sparse_map", _fake_map)
