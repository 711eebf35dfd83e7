# SPDX-License-Identifier: Apache-2.0
"""What every differentiable op has in common: its way into PyTorch's dispatcher, and the short way past it.

A call whose arguments are plain tensors goes straight to a kernel. Everything that watches calls (compilers,
fake tensors, functorch, forward-mode AD, autocast, tracing, tensor subclasses) sees `torch.ops.flexor.<name>`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch._C import _any_requires_grad, _get_tracing_state, _is_any_autocast_enabled, _len_torch_dispatch_stack
from torch._C._functorch import is_legacy_batchedtensor, peek_interpreter_stack
from torch._functorch.autograd_function import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction  # what Function itself becomes inside functorch
from torch.compiler import is_dynamo_compiling

from .. import _backend

Tensors = Sequence[Tensor | None]
Grads = tuple[Tensor | None, ...]
Needs = Sequence[bool]
Dims = Sequence[int | None]
Ints = Sequence[int]

library = torch.library.Library("flexor", "DEF")

_PLAIN_TYPES = frozenset((Tensor, torch.nn.Parameter, type(None)))


class Operator(ABC):
    """One op: arguments `(*tensors, *params)` and one tensor out, a gradient for every tensor.

    `torch.ops.flexor.<name>` takes `(*tensors, *params, backend)`, and `<name>_backward` takes
    `(grad_output, *tensors, *params, needs, backend)` and returns one gradient a tensor, None where not needed.
    """

    name: ClassVar[str]
    tensors: ClassVar[tuple[str, ...]]  # schema of the tensor arguments
    params: ClassVar[tuple[str, ...]]  # schema of the others

    # The arguments are those of the schema; backward ones come after grad_output.

    @abstractmethod
    def check(self, *args: Any, **_: Any) -> None:
        """Raises ValueError, TypeError or NotImplementedError, with values, when a kernel could not take this."""

    @abstractmethod
    def empty_output(self, *args: Any, **_: Any) -> Tensor: ...

    @abstractmethod
    def cpu_forward(self, *args: Any, **_: Any) -> Tensor:
        """May leave all checking to flexor._C: `check` is called to explain when it raises."""

    @abstractmethod
    def cpu_backward(self, grads: Grads, *args: Any, **_: Any) -> None:
        """Writes into grads, one a tensor argument, None where not needed."""

    @abstractmethod
    def triton_forward(self, *args: Any, **_: Any) -> Tensor: ...

    @abstractmethod
    def triton_backward(self, needs: Needs, deterministic: bool, *args: Any, **_: Any) -> Grads: ...

    @abstractmethod
    def reference_forward(self, *args: Any, **_: Any) -> Tensor: ...

    @abstractmethod
    def reference_backward(self, *args: Any, **_: Any) -> Grads: ...

    @abstractmethod
    def vmap_forward(self, batch: int, in_dims: Dims, *args: Any, **_: Any) -> tuple[Tensor, int]:
        """The op on tensors with a vmapped dimension of this size, and where the result has it."""

    @abstractmethod
    def vmap_backward(self, batch: int, in_dims: Dims, *args: Any, **_: Any) -> tuple[Grads, Dims]: ...

    @abstractmethod
    def autocast(self, dtype: torch.dtype, *args: Any, **_: Any) -> tuple[Any, ...]:
        """The arguments as the op should see them where autocast to this dtype is on."""

    def __init__(self) -> None:
        n = self.n = len(self.tensors)
        self._cpu_is_automatic = False  # known from the first call on
        args = ", ".join(self.tensors + self.params)
        tags = (torch.Tag.pt2_compliant_tag,)
        library.define(f"{self.name}({args}, str? backend) -> Tensor", tags=tags)
        library.define(
            f"{self.name}_backward(Tensor grad_output, {args}, bool[{n}] needs, str? backend)"
            f" -> ({', '.join(['Tensor'] * n) if n > 1 else 'Tensor[]'})",  # (Tensor) would be no tuple
            tags=tags,
        )
        self.op = getattr(torch.ops.flexor, self.name).default
        self.backward_op = getattr(torch.ops.flexor, f"{self.name}_backward").default
        title = "".join(part.capitalize() for part in self.name.split("_"))
        self.function = type(title, (_Forward,), {})  # named, for grad_fn and profiles
        self.backward_function = type(title + "Backward", (_Backward,), {})
        self._register()

    def _register(self) -> None:
        name, backward = self.name, f"{self.name}_backward"
        library.impl(name, self.forward, "CompositeExplicitAutograd")
        library.impl(backward, self.backward, "CompositeExplicitAutograd")
        library.impl(name, self._autograd, "Autograd")
        library.impl(backward, self._autograd_backward, "Autograd")
        torch.library.register_fake(f"flexor::{name}", self._fake, lib=library)
        torch.library.register_fake(f"flexor::{backward}", self._fake_backward, lib=library)
        torch.library.register_vmap(f"flexor::{name}", self._vmap, lib=library)
        torch.library.register_vmap(f"flexor::{backward}", self._vmap_backward, lib=library)
        for device in ("cpu", "cuda"):
            library.impl(name, self._autocast_kernel(device), f"Autocast{device.upper()}")

    def __call__(self, tensors: Tensors, params: tuple[Any, ...], backend: str | None) -> Tensor:
        input = tensors[0]
        if not is_plain(tensors):
            return self.op(*tensors, *params, backend)
        if torch.is_grad_enabled() and _any_requires_grad(*tensors):
            return self.function.apply(self, self.forward, *tensors, *params, backend)
        if (
            backend is None
            and self._cpu_is_automatic
            and _backend._forced is None
            and input is not None
            and input.is_cpu
        ):
            try:
                return self.cpu_forward(*tensors, *params)
            except Exception:
                self.check(*tensors, *params)
                raise
        return self.forward(*tensors, *params, backend)

    def forward(self, *args: Any) -> Tensor:
        """Runs the op, below autograd; args end with the backend's name or None."""
        input, args, backend = args[0], args[:-1], args[-1]
        if input is None:
            self.check(*args)
        name = _backend.choose(self.name, input.device, input.dtype, backend)
        if name == "cpu":
            self._cpu_is_automatic |= backend is None and _backend._forced is None
            try:
                return self.cpu_forward(*args)
            except Exception:
                self.check(*args)  # _C checks all that memory safety needs; this says what is wrong
                raise
        self.check(*args)
        output = self.triton_forward(*_hashable(args)) if name == "triton" else self.reference_forward(*args)
        return _laid_out_like(self.empty_output(*args), output)

    def backward(self, grad_output: Tensor, *args: Any) -> Grads:
        """Gradients for the tensors among args; args end with needs and the backend's name or None."""
        args, needs, backend = args[:-2], args[-2], args[-1]
        tensors = args[: self.n]
        backend = _backend.choose(self.name, tensors[0].device, tensors[0].dtype, backend)
        if backend == "cpu":
            grads = _empty_grads(tensors, needs)
            self.cpu_backward(grads, grad_output, *args)
            return grads
        if backend == "triton":
            deterministic = torch.are_deterministic_algorithms_enabled()
            grads = self.triton_backward(needs, deterministic, grad_output, *_hashable(args))
        else:
            grads = self.reference_backward(grad_output, *args)
        return tuple(
            _laid_out_like(like, grad) if like is not None and grad is not None else None
            for like, grad in zip(_empty_grads(tensors, needs), grads, strict=True)
        )

    def _autograd(self, *args: Any) -> Tensor:
        tensors = args[: self.n]
        if _has_tangent(tensors):
            return self.reference_forward(*args[:-1])
        if torch.is_grad_enabled() and _any_requires_grad(*tensors):
            return _apply(self.function, self, _below_autograd(self.op), *args)
        with torch._C._AutoDispatchBelowAutograd():
            return self.op(*args)

    def _autograd_backward(self, *args: Any) -> Grads:
        tensors = args[: self.n + 1]
        if _has_tangent(tensors):
            needs = args[-2]
            grads = self.reference_backward(*args[:-2])
            return tuple(grad if need else None for grad, need in zip(grads, needs, strict=True))
        if torch.is_grad_enabled() and _any_requires_grad(*tensors):
            return _apply(self.backward_function, self, _below_autograd(self.backward_op), *args)
        with torch._C._AutoDispatchBelowAutograd():
            return self.backward_op(*args)

    def _fake(self, *args: Any) -> Tensor:
        self.check(*args[:-1])
        return self.empty_output(*args[:-1])

    def _fake_backward(self, grad_output: Tensor, *args: Any) -> Grads:
        return _empty_grads(args[: self.n], args[-2])

    def _vmap(self, info: Any, in_dims: Sequence[Any], *args: Any) -> tuple[Tensor, int]:
        return self.vmap_forward(info.batch_size, in_dims[: self.n], *args)

    def _vmap_backward(self, info: Any, in_dims: Sequence[Any], *args: Any) -> tuple[Grads, Dims]:
        return self.vmap_backward(info.batch_size, in_dims[: self.n + 1], *args)

    def _autocast_kernel(self, device: str) -> Callable[..., Tensor]:
        key = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device.upper()}"))

        def kernel(*args: Any) -> Tensor:
            args = self.autocast(torch.get_autocast_dtype(device), *args)
            with torch._C._ExcludeDispatchKeyGuard(key):
                return self.op(*args)

        return kernel


def is_plain(tensors: Tensors) -> bool:
    """Whether nothing watches this call, so that it may go past the dispatcher."""
    return (
        not is_dynamo_compiling()
        and _PLAIN_TYPES.issuperset(map(type, tensors))
        and peek_interpreter_stack() is None
        and not _len_torch_dispatch_stack()
        and not _is_any_autocast_enabled()
        and _get_tracing_state() is None
        and forward_ad._current_level < 0
    )


def may_be_differentiated(tensors: Tensors) -> bool:
    """Whether this call could meet a backward or a tangent."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return True
    return not is_dynamo_compiling() and (peek_interpreter_stack() is not None or forward_ad._current_level >= 0)


def empty_image(input: Tensor, n: int, c: int, h: int, w: int) -> Tensor:
    """A tensor for an output, channels_last where input is."""
    if input.is_contiguous() or not input.is_contiguous(memory_format=torch.channels_last):
        return input.new_empty(n, c, h, w)
    return torch.empty((n, c, h, w), dtype=input.dtype, device=input.device, memory_format=torch.channels_last)


class _Forward(_SingleLevelFunction):
    """apply(operator, run, *tensors, *params, backend), where run computes the op from the last three."""

    @staticmethod
    def forward(ctx: Any, operator: Operator, run: Callable[..., Tensor], *args: Any) -> Tensor:
        ctx.operator, ctx.params = operator, args[operator.n :]
        ctx.save_for_backward(*args[: operator.n])
        return run(*args)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        operator, tensors = ctx.operator, ctx.saved_tensors
        needs = ctx.needs_input_grad[2 : 2 + operator.n]
        batched = is_legacy_batchedtensor(grad_output)  # by autograd's own vmap, for is_grads_batched
        if batched and any("Tensor[]" in param for param in operator.params):  # which it cannot run in a loop
            grads = operator.reference_backward(grad_output, *tensors, *ctx.params[:-1])
            return (
                None,
                None,
                *(g if need else None for g, need in zip(grads, needs, strict=True)),
                *(None for _ in ctx.params),
            )
        direct = not batched and not torch.is_grad_enabled() and is_plain((grad_output, *tensors))
        run = operator.backward if direct else operator.backward_op
        grads = run(grad_output, *tensors, *ctx.params[:-1], needs, ctx.params[-1])
        return None, None, *grads, *(None for _ in ctx.params)


class _Backward(_SingleLevelFunction):
    """apply(operator, run, grad_output, *tensors, *params, needs, backend): a backward that differentiates."""

    @staticmethod
    def forward(ctx: Any, operator: Operator, run: Callable[..., Grads], *args: Any) -> Grads:
        ctx.operator, ctx.params = operator, args[1 + operator.n : -2]
        ctx.needs = args[-2]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*args[: 1 + operator.n])
        return tuple(run(*args))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        operator, tensors = ctx.operator, ctx.saved_tensors
        wanted = [i for i, need in enumerate(ctx.needs_input_grad[2 : 3 + operator.n]) if need]
        given = [i for i, grad in enumerate(grads) if grad is not None]

        def first_order(*inputs: Tensor) -> tuple[Tensor, ...]:
            args = list(tensors)
            for i, input in zip(wanted, inputs, strict=True):
                args[i] = input
            outputs = operator.reference_backward(*args, *ctx.params)
            return tuple(outputs[i] for i in given)

        result: list[Any] = [None] * (5 + operator.n + len(ctx.params))
        if given:
            _, pull = torch.func.vjp(first_order, *(tensors[i] for i in wanted))
            for i, grad in zip(wanted, pull(tuple(grads[i] for i in given)), strict=True):
                result[2 + i] = grad
        return tuple(result)


def _apply(function: type[_SingleLevelFunction], *args: Any) -> Any:
    """Function.apply inside an Autograd kernel, where functorch has already chosen the level."""
    with enable_single_level_autograd_function():
        return function.apply(*args)


def _below_autograd(op: Callable[..., Any]) -> Callable[..., Any]:
    """Calls op with this level's autograd off, but the modes on that an outer functorch level needs."""

    def run(*args: Any) -> Any:
        with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True), torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    return run


def _has_tangent(tensors: Tensors) -> bool:
    return forward_ad._current_level >= 0 and any(
        t is not None and forward_ad.unpack_dual(t, level=0).tangent is not None for t in tensors
    )


def _empty_grads(tensors: Tensors, needs: Sequence[bool]) -> Grads:
    return tuple(
        torch.empty_like(t) if need and t is not None else None for t, need in zip(tensors, needs, strict=True)
    )


def _hashable(args: Sequence[Any]) -> tuple[Any, ...]:
    """Integers come out of the dispatcher in lists, which Triton does not take."""
    return tuple(tuple(a) if type(a) is list and not (a and isinstance(a[0], Tensor)) else a for a in args)


def _laid_out_like(like: Tensor, tensor: Tensor) -> Tensor:
    return tensor if tensor.stride() == like.stride() else like.copy_(tensor)
