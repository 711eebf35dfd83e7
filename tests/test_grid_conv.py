# SPDX-License-Identifier: Apache-2.0
"""grid_conv on every backend: values, gradients, layouts, edges."""

import functools
import itertools
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from flexor import ops, reference
from flexor.testing import assert_close, error, running, ways
from rounding import assert_rounded, positive

WAYS = ways("grid_conv")
WAY = pytest.mark.parametrize("way", WAYS, ids=str)
# Relative to the largest magnitude of the exact result.
LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
NAMES = ("input", "weight1", "weight2", "bias1", "bias2", "attention")


class Case(NamedTuple):
    b: int
    ci: int
    co: int
    grid: tuple[int, int] = (5, 5)
    kernel: tuple[int, int] = (3, 3)
    borders: str = "cr"
    attention: bool = True
    bias: bool = True

    def tensors(self, dtype=torch.float64, device="cpu"):
        """Input, weights, biases, attention: rounded to dtype, so that every dtype sees the same numbers."""
        taps = self.kernel[0] * self.kernel[1]
        weights, biases = (
            [scale * torch.randn(shape) if present else None for present in (wanted, wanted and len(self.borders) == 2)]
            for wanted, shape, scale in (
                (True, (self.co, self.ci, *self.kernel), (self.ci * taps) ** -0.5),
                (self.bias, (self.co,), 1.0),
            )
        )
        made = (
            torch.randn(self.b, self.ci, *self.grid),
            *weights,
            *biases,
            torch.randn(self.b, taps, *self.grid) if self.attention else None,
        )
        return [None if t is None else t.to(device, dtype) for t in made]


CASES = {
    "cell": Case(1, 1, 1, (1, 1), (1, 1)),
    "one-cell-many-taps": Case(2, 3, 2, (1, 1), (5, 3)),
    "one-tap": Case(7, 7, 3, kernel=(1, 1)),
    "lifter-in": Case(7, 2, 63),
    "lifter": Case(2, 63, 129),
    "lifter-out": Case(2, 256, 3, bias=False),
    "lifter-batch": Case(64, 7, 63, borders="cz"),
    "large-batch": Case(200, 3, 7),
    "many-channels": Case(1, 256, 256, borders="cz"),
    "batch-and-channels": Case(64, 63, 7, borders="rz"),
    "3x7": Case(7, 7, 7, (3, 7), (5, 3)),
    "3x7-wide": Case(2, 129, 1, (3, 7), borders="zc"),
    "no-attention": Case(7, 63, 7, attention=False),
    "one-tap-no-attention": Case(7, 7, 63, kernel=(1, 1), attention=False),
    "kernel-wider-than-grid": Case(2, 3, 7, (3, 2), (5, 9), borders="cr"),
    "static": Case(64, 7, 7, borders="cz", attention=False),
    "single": Case(7, 7, 129, borders="c"),
    "single-bare": Case(2, 129, 7, borders="z", attention=False, bias=False),
    **{
        f"borders-{''.join(letters)}": Case(2, 7, 3, (4, 5), (5, 3), borders="".join(letters))
        for count in (1, 2)
        for letters in itertools.product("crz", repeat=count)
    },
}
CASE = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
SMALL = Case(2, 4, 6, (5, 6))


def call(tensors, case, **options):
    return ops.grid_conv(*tensors, case.borders, **options)


def exact(tensors, case):
    return reference.grid_conv(*(None if t is None else t.double().cpu() for t in tensors), case.borders)


def gradients(function, tensors, grad_output):
    leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
    output = function(leaves)
    present = [t for t in leaves if t is not None]
    return torch.autograd.grad(output, present, grad_output.to(output.device, output.dtype))


@functools.cache
def solved(case, dtype):
    """Tensors and grad_output in dtype, the exact output and the exact gradients of those tensors."""
    torch.manual_seed(0)
    tensors = case.tensors(dtype)
    output = exact(tensors, case)
    grad_output = torch.randn_like(output).to(dtype)
    doubles = [None if t is None else t.double() for t in tensors]
    return tensors, grad_output, output, gradients(lambda t: exact(t, case), doubles, grad_output)


def on(way, tensors):
    return [None if t is None else t.to(way.device) for t in tensors]


def padded(input, border, y, x):
    """The grid with a border, by PyTorch's own padding: at most a grid at a time."""
    mode = {"c": "circular", "r": "replicate", "z": "constant"}[border]
    while y or x:
        step = min(y, input.shape[2]), min(x, input.shape[3])
        input = F.pad(input, (step[1], step[1], step[0], step[0]), mode)
        y, x = y - step[0], x - step[1]
    return input


@CASE
def test_oracle(case):
    """PyTorch's padding and unfolding, one branch after the other."""
    input, *branches, attention = case.tensors()
    b, (h, w), (kh, kw) = case.b, case.grid, case.kernel
    if any(c == "c" and (k // 2 > n > 1) for c in case.borders for k, n in zip(case.kernel, case.grid, strict=True)):
        input_of = {"c": input.repeat(1, 1, 9, 9)[:, :, 4 * h - kh // 2 :, 4 * w - kw // 2 :]}
        input_of["c"] = input_of["c"][:, :, : h + kh - 1, : w + kw - 1]
    else:
        input_of = {}
    expected = 0
    for border, weight, bias in zip(case.borders, branches[:2], branches[2:], strict=False):
        image = input_of.get(border)
        image = padded(input, border, kh // 2, kw // 2) if image is None else image
        columns = F.unfold(image, case.kernel).reshape(b, case.ci, kh * kw, h * w)
        columns = columns if attention is None else columns * attention.flatten(2)[:, None]
        product = torch.einsum("ok,bkp->bop", weight.flatten(1), columns.flatten(1, 2))
        expected = expected + product + (0 if bias is None else bias[:, None])
    assert_close(reference.grid_conv(input, *branches, attention, case.borders), expected.view(b, -1, h, w), 1e-12)


def test_ones_are_a_convolution():
    input, weight1, weight2, bias1, bias2, attention = SMALL.tensors()
    expected = F.conv2d(F.pad(input, (1,) * 4, "circular"), weight1, bias1) + F.conv2d(
        F.pad(input, (1,) * 4, "replicate"), weight2, bias2
    )
    for ones in (None, torch.ones_like(attention)):
        output = reference.grid_conv(input, weight1, weight2, bias1, bias2, ones, "cr")
        assert_close(output, expected, 1e-12)


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@CASE
@WAY
def test_forward(way, case, dtype):
    tensors, _, expected, _ = solved(case, dtype)
    with running(way):
        output = call(on(way, tensors), case)
    assert output.dtype == dtype and output.is_contiguous()
    if dtype.itemsize == 2 and way.device == "cuda":
        assert_rounded(output, expected, exact(positive(tensors), case))
        return
    baseline = reference.grid_conv(*tensors, case.borders) if dtype.itemsize == 2 else None
    assert_close(output, expected, 1e-3 if baseline is not None else LIMITS[dtype], baseline)


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@CASE
@WAY
def test_backward(way, case, dtype):
    tensors, grad_output, _, expected = solved(case, dtype)
    with running(way):
        found = gradients(lambda t: call(t, case), on(way, tensors), grad_output)
    present = [name for name, t in zip(NAMES, tensors, strict=True) if t is not None]
    for what, grad, true in zip(present, found, expected, strict=True):
        assert grad.dtype == dtype
        assert_close(grad, true, LIMITS[dtype], what=what)


@pytest.mark.parametrize("wanted", range(6), ids=NAMES.__getitem__)
@WAY
def test_backward_of_one(way, wanted):
    """Only the gradient that is asked for is computed, and it does not depend on the others."""
    tensors = SMALL.tensors(torch.float32, way.device)
    leaves = [t.clone().requires_grad_(i == wanted) for i, t in enumerate(tensors)]
    with running(way):
        call(leaves, SMALL).square().sum().backward()
        grads = gradients(lambda t: call(t, SMALL).square().sum(), tensors, torch.tensor(1.0))
    assert [leaf.grad is not None for leaf in leaves] == [i == wanted for i in range(6)]
    assert_close(leaves[wanted].grad, grads[wanted], 1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@WAY
def test_mixed_precision(way, dtype):
    """The attention may stay float32 beside half-precision input."""
    tensors = [t.to(dtype) for t in SMALL.tensors(torch.float32, way.device)]
    tensors[5] = tensors[5].float() + 0.013
    with running(way):
        output = call(tensors, SMALL)
        grads = gradients(lambda t: call(t, SMALL), tensors, torch.ones_like(output))
    assert_close(output, exact(tensors, SMALL), LIMITS[dtype])
    doubles = [t.double().cpu() for t in tensors]
    for grad, true in zip(grads, gradients(lambda t: exact(t, SMALL), doubles, torch.ones_like(output)), strict=True):
        assert_close(grad, true, LIMITS[dtype])
    assert [g.dtype for g in grads] == [t.dtype for t in tensors]


@pytest.mark.parametrize("attention", ["plain", "official"])
@WAY
def test_both_shapes_of_attention(way, attention):
    tensors = SMALL.tensors(torch.float32, way.device)
    expected = exact(tensors, SMALL)
    if attention == "official":
        tensors[5] = tensors[5].reshape(2, 1, 9, 30)
    tensors[5].requires_grad_()
    with running(way):
        output = call(tensors, SMALL)
        output.sum().backward()
    assert_close(output, expected, 1e-5)
    assert tensors[5].grad.shape == tensors[5].shape


@pytest.mark.parametrize("case", ["lifter", "lifter-batch", "large-batch", "3x7", "lifter-out", "no-attention"])
@WAY
def test_threads_do_not_change_bits(way, case):
    if way.device != "cpu":
        pytest.skip("threads are the CPU's")
    case = CASES[case]
    tensors, grad_output, _, _ = solved(case, torch.float32)
    results = []
    for threads in (1, 2):
        with running(way, threads):
            results.append([call(tensors, case), *gradients(lambda t: call(t, case), tensors, grad_output)])
    if way.backend == "cpu":
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    else:
        assert all(error(a, b) < 1e-5 for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("borders", ["cr", "z"])
@WAY
def test_gradcheck(way, borders):
    case = Case(1, 1, 2, (2, 2), (3, 1), borders)
    leaves = [None if t is None else t.requires_grad_() for t in case.tensors(device=way.device)]
    present = [t for t in leaves if t is not None]

    def function(*given):
        given = iter(given)
        return call([None if t is None else next(given) for t in leaves], case)

    with running(way):
        assert torch.autograd.gradcheck(function, present, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(function, present, fast_mode=True)


@WAY
def test_strides(way):
    """Slices, expanded and overlapping tensors, channels_last: the same numbers, the layout kept."""
    tensors = SMALL.tensors(torch.float32, way.device)
    expected = exact(tensors, SMALL)
    grad_output = torch.randn_like(expected).float()
    doubles = [t.double().cpu() for t in tensors]
    true_grads = gradients(lambda t: exact(t, SMALL), doubles, grad_output)
    one_value = torch.ones(()).expand_as(expected)  # a gradient without strides, as sum() gives
    true_sums = gradients(lambda t: exact(t, SMALL), doubles, one_value)
    sliced = [F.pad(t, (1, 2))[..., 1:-2] for t in tensors]
    turned = [t.movedim(-1, 0).contiguous().movedim(0, -1) for t in tensors]
    last = [t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in tensors]
    with running(way):
        for changed in (sliced, turned, last):
            output = call(changed, SMALL)
            assert_close(output, expected, 1e-5)
            layouts = grad_output, grad_output.contiguous(memory_format=torch.channels_last), one_value
            for given, wanted in zip(layouts, (true_grads, true_grads, true_sums), strict=True):
                grads = gradients(lambda t: call(t, SMALL), changed, given)
                for grad, true in zip(grads, wanted, strict=True):
                    assert_close(grad, true, 1e-5)
        assert call(last, SMALL).is_contiguous(memory_format=torch.channels_last)
        one_pose = [t[:1].expand(3, *t.shape[1:]) if i in (0, 5) else t for i, t in enumerate(tensors)]
        one_pose[5] = one_pose[5][:, :1].expand(3, 9, 5, 6)
        assert_close(call(one_pose, SMALL), exact(one_pose, SMALL), 1e-5)
        one_weight = [t[:1].expand_as(t) if i in (1, 2, 3, 4) else t for i, t in enumerate(tensors)]
        assert_close(call(one_weight, SMALL), exact(one_weight, SMALL), 1e-5)
        overlapping = tensors[0].flatten().as_strided(tensors[0].shape, (7, 3, 2, 1))
        assert_close(call([overlapping, *tensors[1:]], SMALL), exact([overlapping, *tensors[1:]], SMALL), 1e-5)


@WAY
def test_empty_batch(way):
    leaves = SMALL.tensors(torch.float32, way.device)
    leaves = [(t[:0] if i in (0, 5) else t).requires_grad_() for i, t in enumerate(leaves)]
    with running(way):
        output = call(leaves, SMALL)
        output.sum().backward()
    assert output.shape == (0, 6, 5, 6)
    assert all(leaf.grad.eq(0).all() for leaf in leaves[1:5]) and leaves[0].grad.shape == leaves[0].shape


def cells_that_read(cell, case):
    """The cells whose taps read one cell, as a mask of the grid."""
    grid = torch.zeros(1, 1, *case.grid, dtype=torch.float64)
    grid[0, 0][cell] = 1
    ones = [torch.ones(1, 1, *case.kernel, dtype=torch.float64) for _ in case.borders]
    return reference.grid_conv(grid, *(ones + [None])[:2], borders=case.borders)[0, 0] > 0


@pytest.mark.parametrize("borders", ["cr", "cz", "z", "rz"])
@pytest.mark.parametrize("channels", [3, 16, 65])
@WAY
def test_nan_stays_where_it_is_read(way, channels, borders):
    case = Case(3, channels, 5, (5, 6), borders=borders)
    clean = case.tensors(torch.float32, way.device)
    tensors = [None if t is None else t.clone() for t in clean]
    tensors[0][1, channels // 2, 4, 2] = torch.nan
    tensors[5][2, 4, 1, 3] = torch.nan
    with running(way):
        output = call(tensors, case)
        grads = gradients(lambda t: call(t, case), tensors, torch.ones_like(output))
        clean_output = call(clean, case)
    nan = torch.zeros_like(output, dtype=torch.bool)
    nan[1, :, cells_that_read((4, 2), case)] = True
    nan[2, :, 1, 3] = True
    assert torch.equal(output.isnan(), nan)
    assert_close(output[~nan], clean_output[~nan], 1e-6)
    assert torch.equal(grads[0].isnan().nonzero()[:, [0, 2, 3]].unique(dim=0).cpu(), torch.tensor([[2, 1, 3]]))
    assert grads[-1].isnan().any((1, 2, 3)).tolist() == [False, True, False], "of the sample with a NaN in it"


@WAY
def test_attention_beyond_zeros_is_not_read(way):
    """A tap that would multiply a zero outside the grid multiplies nothing, also where the attention is NaN."""
    case = Case(2, 4, 3, borders="z")
    tensors = case.tensors(torch.float32, way.device)
    expected = exact(tensors, case)
    tensors[5][:, 0, 0] = torch.nan  # the tap above and to the left, in the first row
    tensors[5][:, 5, :, 4] = -torch.inf
    with running(way):
        output = call(tensors, case)
        grads = gradients(lambda t: call(t, case), tensors, torch.ones_like(output))
    assert_close(output, expected, 1e-5)
    assert all(g.isfinite().all() for g in grads) and grads[-1][:, 0, 0].eq(0).all()


@WAY
def test_infinite_weight_stays_in_its_channel(way):
    tensors = SMALL.tensors(torch.float32, way.device)
    clean = call(tensors, SMALL)
    tensors[1][2, 1, 1, 1] = torch.nan
    with running(way):
        output = call(tensors, SMALL)
    assert output[:, 2].isnan().all()
    rest = [0, 1, 3, 4, 5]
    assert_close(output[:, rest], clean[:, rest], 1e-5)
