# SPDX-License-Identifier: Apache-2.0
"""odconv2d and odconv1d on every backend: values, gradients, layouts, edges, errors."""

from typing import NamedTuple

import flexor
import pytest
import torch
import torch.nn.functional as F
from flexor import ops, reference
from flexor.reference.odconv2d import odconv2d_backward
from flexor.testing import assert_close, error, running, ways
from rounding import assert_rounded, positive

WAYS = ways("odconv2d")
WAY = pytest.mark.parametrize("way", WAYS, ids=str)
NAMES = ("input", "weight", "channel_attention", "filter_attention", "spatial_attention", "kernel_attention")
# Relative to the largest magnitude of the exact result.
LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


class Case(NamedTuple):
    b: int
    ci: int
    co: int
    h: int
    w: int
    n: int = 4
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    attentions: str = "cfsk"  # those that there are: to channels, filters, taps (spatial), kernels

    @property
    def geometry(self):
        return self.stride, self.padding, self.dilation, self.groups

    def tensors(self, dtype=torch.float64, device="cpu"):
        """The six tensors: rounded to dtype, so that every dtype sees the same numbers."""
        per_group, taps = self.ci // self.groups, self.kernel[0] * self.kernel[1]
        made = (
            torch.randn(self.b, self.ci, self.h, self.w),
            torch.randn(self.n, self.co, per_group, *self.kernel) / (per_group * taps) ** 0.5,
            torch.rand(self.b, self.ci) if "c" in self.attentions else None,
            torch.rand(self.b, self.co) if "f" in self.attentions else None,
            torch.randn(self.b, taps) if "s" in self.attentions else None,
            torch.randn(self.b, self.n) if "k" in self.attentions else None,
        )
        return [None if t is None else t.to(device, dtype) for t in made]


CASES = {
    "pixel": Case(1, 1, 1, 1, 1, n=1),
    "one-kernel": Case(2, 16, 24, 9, 8, n=1, attentions="cfs"),
    "one-kernel-mixed": Case(2, 7, 9, 6, 5, n=1),
    "two-kernels": Case(3, 7, 5, 7, 9, n=2),
    "four-kernels": Case(2, 16, 24, 9, 8),
    "one-tap": Case(3, 9, 10, 6, 7, kernel=(1, 1), padding=(0, 0), attentions="cfk"),
    "one-tap-one-kernel": Case(3, 9, 10, 6, 7, n=1, kernel=(1, 1), padding=(0, 0), attentions="cf"),
    "one-tap-strided": Case(2, 8, 12, 7, 9, kernel=(1, 1), padding=(0, 0), stride=(2, 2), attentions="cfk"),
    "kernel-5": Case(2, 6, 8, 9, 7, n=2, kernel=(5, 5), padding=(2, 2)),
    "kernel-7": Case(1, 3, 8, 11, 13, kernel=(7, 7), padding=(3, 3)),
    "kernel-5x2": Case(2, 6, 4, 11, 8, n=2, kernel=(5, 2), padding=(2, 1), dilation=(1, 2)),
    "strided": Case(2, 8, 16, 15, 13, stride=(2, 2)),
    "strided-3x1": Case(2, 6, 7, 13, 12, stride=(3, 1), padding=(0, 2)),
    "dilated": Case(2, 8, 6, 12, 11, padding=(2, 3), dilation=(2, 3)),
    "no-padding": Case(2, 8, 6, 5, 4, padding=(0, 0)),
    "much-padding": Case(1, 3, 4, 2, 3, padding=(4, 5)),
    "grouped": Case(2, 12, 18, 9, 8, groups=3),
    "grouped-one-kernel": Case(2, 12, 6, 9, 8, n=1, groups=2, attentions="cfs"),
    "depthwise": Case(2, 17, 17, 12, 9, groups=17, attentions="csk"),
    "depthwise-one-kernel": Case(2, 32, 32, 9, 7, n=1, stride=(2, 2), groups=32, attentions="cs"),
    "depthwise-multiplied": Case(2, 5, 10, 9, 7, groups=5, kernel=(5, 5), padding=(2, 2)),
    "map-1x1": Case(4, 16, 20, 1, 1),
    "map-2x2": Case(3, 20, 17, 2, 2),
    "map-7x7": Case(4, 64, 63, 7, 7),
    "many-samples": Case(9, 8, 7, 3, 3, n=2),
    "wide": Case(1, 3, 4, 5, 129, n=2),
    "tall": Case(1, 4, 3, 63, 7),
    "larger": Case(2, 16, 33, 33, 29),
    "channels-63": Case(2, 63, 129, 5, 6, n=2),
    "channels-129": Case(1, 129, 63, 6, 5, n=1, attentions="cfs"),
    "channels-300": Case(1, 300, 20, 4, 5, n=2, kernel=(1, 1), padding=(0, 0)),
}
SUBSETS = ["".join(k for i, k in enumerate("cfsk") if mask >> i & 1) for mask in range(16)]
CASE = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
SMALL = Case(2, 6, 4, 5, 7, n=3, kernel=(3, 2), groups=2, stride=(1, 2))


def call(tensors, case):
    return ops.odconv2d(*tensors, *case.geometry)


def exact(tensors, case):
    return reference.odconv2d(*(None if t is None else t.double().cpu() for t in tensors), *case.geometry)


def grouped_convolution(tensors, case):
    """The published way: every sample's kernels in full, and one convolution with a group for each sample."""
    input, weight, channel, filter, spatial, kernel = tensors
    kernels = weight.expand(case.b, *weight.shape)
    if spatial is not None:
        kernels = kernels * spatial.reshape(case.b, 1, 1, 1, *case.kernel)
    if kernel is not None:
        kernels = kernels * kernel.reshape(*kernel.shape, 1, 1, 1, 1)
    if channel is not None:
        input = input * channel[:, :, None, None]
    output = F.conv2d(
        input.reshape(1, -1, case.h, case.w),
        kernels.sum(1).flatten(0, 1),
        None,
        *case.geometry[:3],
        case.groups * case.b,
    )
    output = output.reshape(case.b, case.co, *output.shape[2:])
    return output if filter is None else output * filter[:, :, None, None]


def gradients(function, tensors, grad_output):
    leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
    output = function(leaves)
    present = [t for t in leaves if t is not None]
    return torch.autograd.grad(output, present, grad_output.to(output.device, output.dtype))


def present(tensors):
    return [name for name, tensor in zip(NAMES, tensors, strict=True) if tensor is not None]


@CASE
def test_reference(case):
    """Against a grouped convolution of PyTorch's, and its gradients."""
    tensors = case.tensors()
    assert_close(exact(tensors, case), grouped_convolution(tensors, case), 1e-12)
    grad_output = torch.randn_like(exact(tensors, case))
    written = odconv2d_backward(grad_output, *tensors, *case.geometry)
    true = gradients(lambda t: grouped_convolution(t, case), tensors, grad_output)
    for what, a, b in zip(present(tensors), [g for g in written if g is not None], true, strict=True):
        assert_close(a, b, 1e-12, what=what)


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@CASE
@WAY
def test_forward(way, case, dtype):
    tensors = case.tensors(dtype, way.device)
    with running(way):
        output = call(tensors, case)
    assert output.dtype == dtype and output.is_contiguous()
    if dtype.itemsize == 2 and way.device == "cuda":
        assert_rounded(output, exact(tensors, case), exact(positive(tensors), case))
        return
    baseline = reference.odconv2d(*tensors, *case.geometry) if dtype.itemsize == 2 else None
    assert_close(output, exact(tensors, case), 1e-3 if baseline is not None else LIMITS[dtype], baseline)


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@CASE
@WAY
def test_backward(way, case, dtype):
    tensors = case.tensors(dtype, way.device)
    grad_output = torch.randn_like(exact(tensors, case)).to(dtype)
    with running(way):
        found = gradients(lambda t: call(t, case), tensors, grad_output)
    expected = gradients(lambda t: exact(t, case), [None if t is None else t.double() for t in tensors], grad_output)
    if dtype.itemsize == 2 and way.device == "cuda":
        sizes = gradients(lambda t: exact(t, case), positive(tensors), grad_output.abs())
        for each in zip(found, (t.cpu() for t in expected), sizes, present(tensors), strict=True):
            assert_rounded(*each)
        return
    baselines = gradients(lambda t: reference.odconv2d(*t, *case.geometry), tensors, grad_output)
    for what, grad, true, baseline in zip(present(tensors), found, expected, baselines, strict=True):
        assert grad.dtype == dtype
        half = dtype.itemsize == 2
        assert_close(grad, true, 1e-3 if half else LIMITS[dtype], baseline if half else None, what)


@pytest.mark.parametrize("kinds", SUBSETS)
@WAY
def test_subsets_of_attentions(way, kinds):
    case = Case(2, 6, 8, 7, 6, n=3 if "k" in kinds else 1, attentions=kinds)
    tensors = case.tensors(torch.float32, way.device)
    grad_output = torch.randn(2, 8, 7, 6)
    with running(way):
        output = call(tensors, case)
        grads = gradients(lambda t: call(t, case), tensors, grad_output)
    doubles = [None if t is None else t.double().cpu() for t in tensors]
    assert_close(output, grouped_convolution(doubles, case), 1e-5)
    expected = gradients(lambda t: grouped_convolution(t, case), doubles, grad_output)
    for what, grad, true in zip(present(tensors), grads, expected, strict=True):
        assert_close(grad, true, 1e-5, what=what)


@pytest.mark.parametrize("wanted", range(6))
@pytest.mark.parametrize("case", [SMALL, CASES["depthwise"], CASES["one-tap"], CASES["one-kernel"]], ids=lambda c: c.ci)
@WAY
def test_backward_of_one(way, wanted, case):
    """Only the gradient that is asked for is computed, and it does not depend on the others."""
    tensors = case.tensors(torch.float32, way.device)
    if tensors[wanted] is None:
        return
    leaves = [None if t is None else t.clone().requires_grad_(i == wanted) for i, t in enumerate(tensors)]
    with running(way):
        call(leaves, case).square().sum().backward()
        grads = gradients(lambda t: call(t, case).square().sum(), tensors, torch.tensor(1.0))
    assert [t is not None and t.grad is not None for t in leaves] == [i == wanted for i in range(6)]
    assert_close(leaves[wanted].grad, dict(zip(present(tensors), grads, strict=True))[NAMES[wanted]], 1e-6)


@pytest.mark.parametrize("case", [SMALL, CASES["depthwise"], CASES["map-7x7"]], ids=lambda c: c.ci)
@WAY
def test_mixed_precision(way, case):
    """Attentions may stay float32 beside half-precision input."""
    tensors = [None if t is None else t.to(torch.bfloat16) for t in case.tensors(torch.float32, way.device)]
    tensors[2:] = [None if t is None else t.float() + 0.0013 for t in tensors[2:]]
    with running(way):
        output = call(tensors, case)
        grads = gradients(lambda t: call(t, case), tensors, torch.ones_like(output))
    assert_close(output, exact(tensors, case), LIMITS[torch.bfloat16])
    assert [g.dtype for g in grads] == [t.dtype for t in tensors if t is not None]
    expected = gradients(
        lambda t: exact(t, case), [None if t is None else t.double() for t in tensors], torch.ones_like(output)
    )
    for what, grad, true in zip(present(tensors), grads, expected, strict=True):
        assert_close(grad, true, LIMITS[grad.dtype], what=what)


@pytest.mark.parametrize(
    "name", ["map-7x7", "four-kernels", "channels-129", "depthwise", "grouped", "one-tap", "larger"]
)
@WAY
def test_threads_do_not_change_bits(way, name):
    if way.device != "cpu":
        pytest.skip("threads are the CPU's")
    case = CASES[name]
    tensors = case.tensors(torch.float32)
    grad_output = torch.randn_like(exact(tensors, case)).float()
    results = []
    for threads in (1, 2):
        with running(way, threads):
            results.append([call(tensors, case), *gradients(lambda t: call(t, case), tensors, grad_output)])
    if way.backend == "cpu":
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    else:
        assert all(error(a, b) < 1e-5 for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(
    "case",
    [
        Case(2, 2, 2, 2, 2, n=2, kernel=(2, 1), padding=(0, 1), groups=2),
        Case(1, 2, 3, 2, 3, n=1, kernel=(1, 3), attentions="cfs"),
    ],
    ids=lambda c: f"n{c.n}",
)
@WAY
def test_gradcheck(way, case):
    leaves = [None if t is None else t.requires_grad_() for t in case.tensors(device=way.device)]
    with running(way):
        assert torch.autograd.gradcheck(lambda *t: call(t, case), leaves, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(lambda *t: call(t, case), leaves, fast_mode=True)


def turned(tensor):
    return tensor.movedim(-1, 0).contiguous().movedim(0, -1)


def sliced(tensor):
    return F.pad(tensor, (1, 2))[..., 1:-2]


def last(tensor):
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


@pytest.mark.parametrize("change", [turned, sliced, last])
@pytest.mark.parametrize(
    "case",
    [SMALL, CASES["depthwise"], CASES["four-kernels"], CASES["one-kernel"], CASES["one-tap"]],
    ids=lambda c: c.ci,
)
@WAY
def test_strides(way, case, change):
    """The same numbers for other layouts, of the gradient too, and channels_last kept."""
    tensors = case.tensors(torch.float32, way.device)
    changed = [None if t is None else change(t) for t in tensors]
    with running(way):
        output = call(changed, case)
        assert_close(output, exact(tensors, case), 1e-5)
        grad_output = torch.randn_like(call(tensors, case))
        for gradient in (change(grad_output), torch.ones(()).expand_as(output)):
            grads = gradients(lambda t: call(t, case), changed, gradient)
            plain = gradients(lambda t: call(t, case), tensors, gradient.clone())
            for grad, true in zip(grads, plain, strict=True):
                assert_close(grad, true, 1e-5)
    if change is last:
        assert output.is_contiguous(memory_format=torch.channels_last)


@WAY
def test_expanded_and_overlapping(way):
    tensors = SMALL.tensors(torch.float32, way.device)
    one_sample = [t[:1].expand(5, *t.shape[1:]) if i != 1 else t for i, t in enumerate(tensors)]
    overlapping = [tensors[0].flatten().as_strided(tensors[0].shape, (11, 3, 2, 1)), *tensors[1:]]
    one_kernel = [tensors[0], tensors[1][:1].expand_as(tensors[1]), *tensors[2:]]
    with running(way):
        for changed in (one_sample, overlapping, one_kernel):
            assert_close(call(changed, SMALL), exact(changed, SMALL), 1e-5)


@pytest.mark.parametrize("n", [1, 3])
@WAY
def test_empty_batch(way, n):
    case = SMALL._replace(n=n)
    leaves = [(t if i == 1 else t[:0]).requires_grad_() for i, t in enumerate(case.tensors(torch.float32, way.device))]
    with running(way):
        output = call(leaves, case)
        output.sum().backward()
    assert output.shape == (0, 4, 5, 4)
    assert leaves[1].grad.eq(0).all()
    assert all(leaf.grad.shape == leaf.shape for leaf in leaves)


@pytest.mark.parametrize("name", ["four-kernels", "one-kernel", "depthwise", "one-tap", "map-2x2", "map-7x7"])
@WAY
def test_nan_and_infinity_stay_with_their_sample(way, name):
    """In the input they reach the outputs that read them; in an attention all of that sample or filter."""
    case = CASES[name]
    for value in (torch.nan, torch.inf):
        tensors = case.tensors(torch.float32, way.device)
        tensors[0][1, 2, 1, 0] = value
        with running(way):
            output = call(tensors, case)
        assert output[0].isfinite().all() and output[2:].isfinite().all()
        reads = exact([t if t is None or i != 1 else t.abs() + 1 for i, t in enumerate(tensors)], case).isfinite()
        assert torch.equal(output.isfinite().cpu(), reads), "not those outputs that read the pixel"
        for index in (2, 3, 4, 5):
            tensors = case.tensors(torch.float32, way.device)
            if tensors[index] is None:
                continue
            tensors[index][1, 0] = torch.nan
            with running(way):
                output = call(tensors, case)
                grads = gradients(lambda t: call(t, case), tensors, torch.ones_like(output))
            assert output[0].isfinite().all() and output[2:].isfinite().all()
            assert output[1, 0].isnan().any()
            assert grads[0][0].isfinite().all() and grads[0][2:].isfinite().all()


@WAY
def test_official_views(way):
    """Attentions as the published layer makes them, 4-D and 6-D."""
    tensors = SMALL.tensors(torch.float32, way.device)
    views = [
        *tensors[:2],
        tensors[2][:, :, None, None],
        tensors[3][:, :, None, None],
        tensors[4].reshape(2, 1, 1, 1, 3, 2),
        tensors[5].reshape(2, 3, 1, 1, 1, 1),
    ]
    with running(way):
        assert torch.equal(call(views, SMALL), call(tensors, SMALL))
        grads = gradients(lambda t: call(t, SMALL), views, torch.ones(2, 4, 5, 4))
    assert [g.shape for g in grads] == [t.shape for t in views]


@pytest.mark.parametrize("n", [1, 4])
@WAY
def test_one_dimension(way, n):
    input, weight = torch.randn(3, 6, 19), torch.randn(n, 8, 3, 5)
    attentions = torch.rand(3, 6), torch.rand(3, 8), torch.rand(3, 5), torch.rand(3, n)
    tensors = [t.to(way.device) for t in (input, weight, *attentions)]
    with running(way):
        found = ops.odconv1d(*tensors, stride=2, padding=3, dilation=2, groups=2)
    case = Case(3, 6, 8, 1, 19, n, (1, 5), (1, 2), (0, 3), (1, 2), 2)
    as_images = [tensors[0].unsqueeze(2), tensors[1].unsqueeze(3), *tensors[2:]]
    expected = grouped_convolution([t.double().cpu() for t in as_images], case).squeeze(2)
    assert_close(found, expected, 1e-5)
    assert_close(reference.odconv1d(*tensors, stride=2, padding=3, dilation=2, groups=2), expected, 1e-5)


def test_explain():
    text = flexor.explain(ops.odconv1d, torch.zeros(2, 6, 5), torch.zeros(1, 4, 6, 3), padding=1)
    assert text.startswith("odconv2d on cpu torch.float32")
