# SPDX-License-Identifier: Apache-2.0
"""Triton's interpreter made strict enough to gate kernels without a GPU.

What it adds to triton.runtime.interpreter (needs TRITON_INTERPRET=1 before triton is imported):

  arithmetic  bfloat16 casts round to nearest even, bfloat16 operators and dots compute in float32 and round
              (the interpreter would multiply the bit patterns); whatever else touches bfloat16 raises.
              TF32 dots round their operands.
  memory      every active lane of a load, store or atomic must lie in one of the launch's tensors; two
              programs may not touch one element unless both read it or both use atomics; the active lanes of
              a store may not repeat an address. The interpreter runs programs one after another over raw
              pointers, so none of this would show.
  arguments   lists raise, as in Triton's launcher.
  order       `program_order(seed)` runs the programs of a launch in another order.

It leans on private names of the pinned Triton release; test_interpreter.py shows that every check bites.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import ClassVar

import numpy as np

if os.environ.get("TRITON_INTERPRET") != "1":
    raise RuntimeError("interpreter: set TRITON_INTERPRET=1 before triton is imported")

import torch
import triton.language as tl
from triton._C.libtriton import ir
from triton.runtime import interpreter as base
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

NOBODY, MANY = -1, -2


class MemoryFault(Exception):
    """A lane outside every tensor, a race between programs, or a store that hits an address twice."""


def float32_of(handle: TensorHandle) -> np.ndarray:
    if handle.dtype.scalar == tl.bfloat16:
        return (handle.data.astype(np.uint32) << 16).view(np.float32)
    return handle.data.astype(np.float32)


def bfloat16_bits(values: np.ndarray) -> np.ndarray:
    """Rounds float32 to bfloat16, nearest even, NaN to the quiet NaN."""
    values = np.ascontiguousarray(values, np.float32)
    bits = values.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def tf32(values: np.ndarray) -> np.ndarray:
    """Rounds float32 to 10 mantissa bits, nearest with ties away, as cvt.rna.tf32.f32."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return np.where(np.isfinite(values), ((bits + 0x1000) & 0xFFFFE000).view(np.float32), values)


def is_bfloat16(*handles: TensorHandle) -> bool:
    return any(h.dtype.scalar == tl.bfloat16 for h in handles)


class Shadow:
    """Who touched each element of one tensor of a launch."""

    def __init__(self, tensor: torch.Tensor):
        self.itemsize = tensor.element_size()
        self.begin = tensor.data_ptr()
        span = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1
        span = span if tensor.numel() else 0
        self.end = self.begin + span * self.itemsize
        self.shape, self.dtype = tuple(tensor.shape), tensor.dtype
        self.touched = {kind: np.full(span, NOBODY, np.int64) for kind in ("load", "store", "atomic")}


class Memory:
    """Checks the accesses of one launch."""

    # What another program may not have done to an element before.
    CONFLICTS: ClassVar = {
        "load": ("store", "atomic"),
        "store": ("load", "store", "atomic"),
        "atomic": ("load", "store"),
    }

    def __init__(self, kernel: str, tensors: list[torch.Tensor]):
        self.kernel = kernel
        self.shadows = [Shadow(t) for t in {t.data_ptr(): t for t in tensors if t.numel()}.values()]
        self.program = 0

    def access(self, kind: str, pointers: np.ndarray, mask: np.ndarray, element: tl.dtype) -> None:
        mask = mask.astype(bool)  # an int1 and a Python bool make an integer
        pointers = np.broadcast_to(pointers, np.broadcast_shapes(pointers.shape, mask.shape))
        active = pointers[np.broadcast_to(mask, pointers.shape)].astype(np.int64)
        if not active.size:
            return
        size = max(1, element.primitive_bitwidth // 8)
        if kind == "store" and (repeats := active.size - np.unique(active).size):
            self.fault(f"{repeats} lanes of a store repeat an address", element)
        first, last = active.min(), active.max()
        for shadow in self.shadows:
            if shadow.begin <= first and last + size <= shadow.end:  # nearly always: all lanes in one tensor
                self.touch(kind, shadow, (active - shadow.begin) // shadow.itemsize)
                return
        for shadow in self.shadows:
            inside = (active >= shadow.begin) & (active + size <= shadow.end)
            if inside.any():
                self.touch(kind, shadow, (active[inside] - shadow.begin) // shadow.itemsize)
                active = active[~inside]
        if active.size:
            self.fault(f"{active.size} lanes of a {kind} are outside every tensor", element)

    def touch(self, kind: str, shadow: Shadow, elements: np.ndarray) -> None:
        for other in self.CONFLICTS[kind]:
            owner = shadow.touched[other][elements]
            racing = (owner != NOBODY) & (owner != self.program)
            if racing.any():
                self.fault(
                    f"{kind} of {int(racing.sum())} elements of {shadow.dtype} {shadow.shape} races with "
                    f"a {other} by program {owner[racing][0]}"
                )
        touched = shadow.touched[kind]
        owner = touched[elements]
        touched[elements] = np.where((owner == NOBODY) | (owner == self.program), self.program, MANY)

    def fault(self, what: str, element: tl.dtype | None = None) -> None:
        raise MemoryFault(f"{self.kernel}: {what}{f' ({element})' if element else ''}, program {self.program}")


class StrictBuilder:
    """Replacements for methods of InterpreterBuilder, which keep the originals in `original`."""

    original: ClassVar[dict[str, object]] = {}
    memory: Memory | None = None
    order: np.random.Generator | None = None
    permutation: np.ndarray | None = None
    patched: ClassVar[set[int]] = set()  # modules of device functions

    def set_grid_dim(self, nx, ny, nz):
        StrictBuilder.original["set_grid_dim"](self, nx, ny, nz)
        StrictBuilder.permutation = None
        if StrictBuilder.order is not None:
            StrictBuilder.permutation = StrictBuilder.order.permutation(nx)

    def set_grid_idx(self, x, y, z):
        if StrictBuilder.permutation is not None:
            x = int(StrictBuilder.permutation[x])
        StrictBuilder.original["set_grid_idx"](self, x, y, z)
        if StrictBuilder.memory:
            StrictBuilder.memory.program = (z * self.grid_dim[1] + y) * self.grid_dim[0] + x

    def create_masked_load(self, ptrs, mask, other, cache_modifier, eviction_policy, is_volatile):
        if StrictBuilder.memory:
            StrictBuilder.memory.access("load", ptrs.data, mask.data, ptrs.get_element_ty())
        return StrictBuilder.original["create_masked_load"](
            self, ptrs, mask, other, cache_modifier, eviction_policy, is_volatile
        )

    def create_masked_store(self, ptrs, value, mask, cache_modifier, eviction_policy):
        if StrictBuilder.memory:
            StrictBuilder.memory.access("store", ptrs.data, mask.data, ptrs.get_element_ty())
        return StrictBuilder.original["create_masked_store"](self, ptrs, value, mask, cache_modifier, eviction_policy)

    def create_atomic_rmw(self, rmw_op, ptr, val, mask, sem, scope):
        if is_bfloat16(val):
            raise NotImplementedError("bfloat16 atomics are not emulated: accumulate in float32")
        if StrictBuilder.memory:
            StrictBuilder.memory.access("atomic", ptr.data, mask.data, ptr.get_element_ty())
        return StrictBuilder.original["create_atomic_rmw"](self, rmw_op, ptr, val, mask, sem, scope)

    def cast_impl(self, src, dst_type):
        if dst_type.scalar == tl.bfloat16 and src.dtype.scalar != tl.bfloat16:
            return TensorHandle(bfloat16_bits(float32_of(src)), tl.bfloat16)
        if src.dtype.scalar == tl.bfloat16 and dst_type.scalar != tl.bfloat16:
            return TensorHandle(float32_of(src).astype(base._get_np_dtype(dst_type)), dst_type.scalar)
        return StrictBuilder.original["cast_impl"](self, src, dst_type)

    def create_fp_to_fp(self, src, dst_type, rounding_mode):
        if is_bfloat16(src) or dst_type.scalar == tl.bfloat16:
            return StrictBuilder.cast_impl(self, src, dst_type)
        return StrictBuilder.original["create_fp_to_fp"](self, src, dst_type, rounding_mode)

    def binary_op(self, lhs, rhs, op):
        if not is_bfloat16(lhs, rhs):
            return StrictBuilder.original["binary_op"](self, lhs, rhs, op)
        result = op(float32_of(lhs), float32_of(rhs))
        if result.dtype == bool:
            return TensorHandle(result, tl.int1)
        return TensorHandle(bfloat16_bits(result), tl.bfloat16)

    def unary_op(self, arg, op):
        if is_bfloat16(arg):
            raise NotImplementedError(f"bfloat16 {op.__name__} is not emulated: upcast after the load")
        return StrictBuilder.original["unary_op"](self, arg, op)

    def create_fma(self, x, y, z):
        if is_bfloat16(x, y, z):
            raise NotImplementedError("bfloat16 fma is not emulated: upcast after the load")
        return StrictBuilder.original["create_fma"](self, x, y, z)

    def create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        x, y = a.data, b.data
        if is_bfloat16(a, b):
            x, y = float32_of(a), float32_of(b)
        elif a.dtype.scalar == tl.float32 and input_precision == ir.INPUT_PRECISION.TF32:
            x, y = tf32(x), tf32(y)
        return TensorHandle(np.matmul(x, y, dtype=d.data.dtype) + d.data, d.dtype.scalar)


def tensors_in(arguments: object) -> Iterator[torch.Tensor]:
    if isinstance(arguments, torch.Tensor):
        yield arguments
    elif isinstance(arguments, (tuple, list)):
        for argument in arguments:
            yield from tensors_in(argument)


def check_reduction(self, input):
    """Reductions of bfloat16 would add bit patterns."""
    for argument in input:
        if argument.dtype == tl.bfloat16:
            raise NotImplementedError("bfloat16 reductions are not emulated: upcast after the load")
    return StrictBuilder.original["check_tensor"](self, input)


def call_device_function(self, *args, **kwargs):
    """The interpreter patches triton.language at every call, a fifth of its time; once a launch is enough."""
    if id(self.fn.__globals__) not in StrictBuilder.patched:
        StrictBuilder.patched.add(id(self.fn.__globals__))
        base._patch_lang(self.fn)
    return self.rewrite()(*args, **kwargs)


def run_grid(self, *args, **kwargs):
    if any(isinstance(argument, list) for argument in (*args, *kwargs.values())):
        raise TypeError(f"{self.fn.__name__}: failed to specialize argument of type: list")
    StrictBuilder.patched.clear()
    StrictBuilder.memory = Memory(self.fn.__name__, list(tensors_in([*args, *kwargs.values()])))
    try:
        # Masked lanes carry anything; a GPU does not trap on arithmetic.
        with np.errstate(all="ignore"):
            return StrictBuilder.original["__call__"](self, *args, **kwargs)
    finally:
        StrictBuilder.memory = None


def install() -> None:
    """Makes the interpreter of this process strict. Idempotent."""
    if StrictBuilder.original:
        return
    replacements = {k: v for k, v in vars(StrictBuilder).items() if callable(v) and not k.startswith("__")}
    for name, method in replacements.items():
        StrictBuilder.original[name] = getattr(InterpreterBuilder, name)
        setattr(InterpreterBuilder, name, method)
    StrictBuilder.original["__call__"] = base.GridExecutor.__call__
    base.GridExecutor.__call__ = run_grid
    base.InterpretedFunction.__call__ = call_device_function
    StrictBuilder.original["check_tensor"] = base.ReduceScanOpInterface.check_tensor
    base.ReduceScanOpInterface.check_tensor = check_reduction


@contextlib.contextmanager
def program_order(seed: int) -> Iterator[None]:
    """Programs of a launch run in a random order along the first axis of the grid."""
    StrictBuilder.order = np.random.default_rng(seed)
    try:
        yield
    finally:
        StrictBuilder.order = None
