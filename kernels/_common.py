# SPDX-License-Identifier: Apache-2.0
"""Device code shared by the sampling kernels: tiles with either axis as the pixel axis, and bilinear cells.

A tile holds pixels along one axis and channels along the other. PIXEL_AXIS is 1 for contiguous (NCHW)
tensors and 0 for channels_last ones, so that neighbouring lanes touch neighbouring addresses in both; the
code in between is the same.
"""

from __future__ import annotations

import contextlib

import torch
import triton
import triton.language as tl

INT32_LIMIT = 2**31
INDEX_MARGIN = 2**16  # masked lanes of the last blocks may point this far past the end


@triton.jit
def on_pixels(vector, PIXEL_AXIS: tl.constexpr):
    """A vector laid along the pixel axis of a tile."""
    return tl.expand_dims(vector, 1 - PIXEL_AXIS)


@triton.jit
def on_channels(vector, PIXEL_AXIS: tl.constexpr):
    """A vector laid along the channel axis of a tile."""
    return tl.expand_dims(vector, PIXEL_AXIS)


@triton.jit
def zeros_tile(PIXELS: tl.constexpr, CHANNELS: tl.constexpr, PIXEL_AXIS: tl.constexpr, DTYPE: tl.constexpr):
    return tl.zeros((PIXELS, CHANNELS), DTYPE) if PIXEL_AXIS == 0 else tl.zeros((CHANNELS, PIXELS), DTYPE)


@triton.jit
def pixel_block(block, pixels, width, INDEX: tl.constexpr, BLOCK_M: tl.constexpr):
    """Row, column and validity of the pixels of one block; pixels past the end become pixel 0."""
    pixel = tl.cast(block, INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
    valid = pixel < pixels
    pixel = tl.where(valid, pixel, 0)
    return pixel // width, pixel % width, valid


@triton.jit
def bilinear_cell(y, x, height, width, INDEX: tl.constexpr, INCLUSIVE: tl.constexpr):
    """Top left corner and fractions of the cell that holds (y, x), and the scale of its sample.

    The cell of a point in (-1, height) x (-1, width) is (floor(y), floor(x)). Elsewhere the sample is 0, and
    NaN where y or x is: the fractions are then 0, the corner is (0, 0), `inside` is false and the scale is 0
    or NaN. The backward counts exactly -1 as inside (INCLUSIVE): the sample is 0 either way, its gradient is
    that of the cell to the right.
    """
    nan = (y != y) | (x != x)
    if INCLUSIVE:
        inside = (y >= -1) & (y < height) & (x >= -1) & (x < width)
    else:
        inside = (y > -1) & (y < height) & (x > -1) & (x < width)
    y = tl.where(inside, y, 0.0)
    x = tl.where(inside, x, 0.0)
    top = tl.floor(y)
    left = tl.floor(x)
    scale = tl.where(inside, 1.0, tl.where(nan, float("nan"), 0.0)).to(y.dtype)
    return top.to(INDEX), left.to(INDEX), y - top, x - left, inside, scale


@triton.jit
def cell_weights(ly, lx, scale):
    """Weights of the four corners (row major) of a cell."""
    low = ly * scale
    high = scale - low
    return high - high * lx, high * lx, low - low * lx, low * lx


@triton.jit
def cell_corners(top, left, inside, height, width, stride_y, stride_x):
    """Element offsets of the four corners, and which of them lie in the image."""
    at = top * stride_y + left * stride_x
    above = inside & (top >= 0)
    below = inside & (top + 1 < height)
    before = left >= 0
    after = left + 1 < width
    return (
        (at, at + stride_x, at + stride_y, at + stride_y + stride_x),
        (above & before, above & after, below & before, below & after),
    )


@triton.jit
def load_corners(plane, corners, exists, channel_offset, channel_valid, COMPUTE: tl.constexpr):
    """The four corner values of every pixel and channel of a tile, 0 where there is none."""
    return (
        tl.load(plane + corners[0] + channel_offset, mask=exists[0] & channel_valid, other=0.0).to(COMPUTE),
        tl.load(plane + corners[1] + channel_offset, mask=exists[1] & channel_valid, other=0.0).to(COMPUTE),
        tl.load(plane + corners[2] + channel_offset, mask=exists[2] & channel_valid, other=0.0).to(COMPUTE),
        tl.load(plane + corners[3] + channel_offset, mask=exists[3] & channel_valid, other=0.0).to(COMPUTE),
    )


# Fixed-point sums stay within +-2^60; a sum that met a value without a fixed point ends above 2^61.
FIXED_POINT_BITS = 60
NOT_FINITE = tl.constexpr(2**62)


@triton.jit
def scatter_add(accumulator, at, valid, value, scale):
    """Adds values into the gradient of an image, by atomics.

    With a scale (deterministic mode) the sum runs in fixed point, round(value * scale) as int64, so that
    its bits do not depend on the order. A value that has no fixed point (inf, NaN) lifts the sum to 2^62 by
    a maximum; whatever is added before or after, it ends above 2^61, which reads as NaN.
    """
    if scale is None:
        tl.atomic_add(accumulator + at, value, mask=valid, sem="relaxed")
    else:
        finite = tl.abs(value) < float("inf")
        fixed = tl.floor(tl.where(finite, value, 0.0).to(tl.float64) * scale + 0.5).to(tl.int64)
        tl.atomic_add(accumulator + at, fixed, mask=valid & finite, sem="relaxed")
        tl.atomic_max(accumulator + at, NOT_FINITE, mask=valid & (finite == 0), sem="relaxed")


class ImageGradient:
    """The buffer that kernels scatter the gradient of an image into.

    Plain: one float32 (float64) sum per element, in no fixed order. Deterministic: 64-bit fixed point. With n
    terms bounded by b the scale is 2^(60 - exponent(n b)), so that no sum overflows and the absolute error of
    a term is at most n b 2^-60, far below float32's for any realistic n.
    """

    def __init__(self, image: torch.Tensor, term_bound: torch.Tensor | None, terms: int):
        self.dtype = image.dtype
        self.scale = None
        compute = torch.float64 if image.dtype == torch.float64 else torch.float32
        if term_bound is not None:
            _, exponent = torch.frexp(term_bound.double() * terms)
            self.scale = torch.exp2((FIXED_POINT_BITS - exponent.clamp(min=-900)).double())
            compute = torch.int64
        self.sum = torch.empty(image.shape, dtype=compute, device=image.device, memory_format=memory_format(image))
        self.sum.zero_()

    def result(self) -> torch.Tensor:
        if self.scale is None:
            return self.sum.to(self.dtype)
        gradient = self.sum.double().div_(self.scale)
        return gradient.masked_fill_(self.sum > 2 ** (FIXED_POINT_BITS + 1), float("nan")).to(self.dtype)


def largest_finite(tensor: torch.Tensor) -> torch.Tensor:
    """max |t| over the finite elements, as a float64 scalar on the tensor's device."""
    finite = torch.nan_to_num(tensor.detach().abs(), nan=0.0, posinf=0.0)
    return (finite.amax() if finite.numel() else finite.sum()).double()


def memory_format(tensor: torch.Tensor) -> torch.memory_format:
    """channels_last where the tensor is so and not plainly contiguous too."""
    if tensor.is_contiguous() or not tensor.is_contiguous(memory_format=torch.channels_last):
        return torch.contiguous_format
    return torch.channels_last


def pixel_axis(tensor: torch.Tensor) -> int:
    """The axis of a tile that pixels run along (see the module's docstring)."""
    return 0 if memory_format(tensor) == torch.channels_last else 1


def compute_type(tensor: torch.Tensor) -> tl.dtype:
    return tl.float64 if tensor.dtype == torch.float64 else tl.float32


def index_type(*tensors: torch.Tensor | None) -> tl.dtype:
    """int32 if it reaches every element of one image of each tensor, else int64."""
    for t in tensors:
        if t is None:
            continue
        span = sum((n - 1) * s for n, s in zip(t.shape[1:], t.stride()[1:], strict=True))
        if span >= INT32_LIMIT - INDEX_MARGIN:
            return tl.int64
    return tl.int32


def strides(tensor: torch.Tensor | None) -> tuple[int, ...]:
    return (0, 0, 0, 0) if tensor is None else tensor.stride()


def on_device(tensor: torch.Tensor) -> contextlib.AbstractContextManager[object]:
    """Launches go to the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def check_supported(name: str, input: torch.Tensor) -> None:
    if input.dtype == torch.float64 and torch.version.hip is not None:
        raise NotImplementedError(
            f"{name}: float64 has no Triton kernel on AMD GPUs; use backend='reference' or float32"
        )


def checked_grid(name: str, programs: int) -> tuple[int]:
    if programs >= INT32_LIMIT:
        raise ValueError(f"{name}: the launch needs {programs} programs, at most {INT32_LIMIT - 1} are possible")
    return (programs,)
