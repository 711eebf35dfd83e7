# SPDX-License-Identifier: Apache-2.0
"""sparse_conv on every backend: values, gradients, layouts, edges."""

import functools
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from flexor import ops, reference
from flexor.testing import assert_close, error, running, ways
from hypothesis import given, settings
from hypothesis import strategies as st
from sparse_voxels import dense, dense_conv, dense_conv_transpose, read, scene

WAYS = ways("sparse_conv")
WAY = pytest.mark.parametrize("way", WAYS, ids=str)
# Relative to the largest magnitude of the exact result.
LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
NAMES = ("features", "weight", "bias", "residual")
SHAPES = {1: (600,), 2: (19, 31), 3: (13, 9, 11), 4: (5, 4, 6, 7)}


class Case(NamedTuple):
    """A convolution of one kind: sub(manifold), strided, generative, or the inverse of a strided one."""

    kind: str
    cin: int
    cout: int
    kernel: int | tuple[int, ...] = 3
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    rows: int = 150
    dims: int = 3
    bias: bool = True
    residual: bool = False

    @property
    def sizes(self):
        return (self.kernel,) * self.dims if isinstance(self.kernel, int) else self.kernel

    @property
    def window(self):
        return [(value,) * self.dims for value in self[4:7]]

    def indices(self):
        return scene(SHAPES[self.dims], self.rows)

    def map(self, indices, device="cpu"):
        index = ops.SparseIndex(indices.to(device), spatial_shape=SHAPES[self.dims], batch_size=2)
        window = self.sizes, self.stride, self.padding, self.dilation
        if self.kind == "sub":
            return index.submanifold(self.sizes, self.dilation)
        if self.kind == "generative":
            return index.generative(*window)[1]
        map = index.strided(*window)[1]
        return map.transposed() if self.kind == "inverse" else map

    def tensors(self, indices, dtype=torch.float64):
        """Rounded to dtype, so that every dtype sees the same numbers."""
        with running(WAYS[0]):
            map = self.map(indices)
        taps = torch.Size(self.sizes).numel()
        made = (
            torch.randn(len(map.input), self.cin),
            torch.randn(self.cout, *self.sizes, self.cin // self.groups) * (self.cin * taps / self.groups) ** -0.5,
            torch.randn(self.cout) if self.bias else None,
            torch.randn(len(map.out), self.cout) if self.residual else None,
        )
        return [None if t is None else t.to(dtype) for t in made]


CASES = {
    "one": Case("sub", 1, 1, 1, rows=1),
    "one-row": Case("sub", 3, 5, rows=1),
    "stem": Case("sub", 3, 16, rows=700),
    "stem-4": Case("sub", 4, 32, 5),
    "16": Case("sub", 16, 16, rows=600),
    "32": Case("sub", 32, 32, rows=300, residual=True),
    "32-64": Case("sub", 32, 64, bias=False),
    "64": Case("sub", 64, 64, rows=257),
    "96-48": Case("sub", 96, 48),
    "128": Case("sub", 128, 128, rows=256),
    "odd": Case("sub", 7, 63, rows=513, residual=True),
    "odd-129": Case("sub", 129, 7),
    "1x1": Case("sub", 17, 33, 1),
    "dilated": Case("sub", 8, 9, dilation=2),
    "even": Case("sub", 6, 8, 2),
    "mixed-kernel": Case("sub", 6, 8, (1, 3, 4)),
    "down": Case("strided", 16, 32, 2, 2, rows=600),
    "down-3": Case("strided", 5, 8, 3, 2, 1, residual=True),
    "down-dilated": Case("strided", 5, 8, 3, 2, 1, 2),
    "full": Case("strided", 4, 6, 3, 1, 1),
    "down-kernel-1": Case("strided", 4, 6, 1, 2),
    "inverse": Case("inverse", 32, 16, 2, 2, rows=600),
    "inverse-3": Case("inverse", 5, 8, 3, 2, 1, residual=True),
    "generative": Case("generative", 8, 4, 2, 2),
    "generative-3": Case("generative", 5, 3, 3, 2, 1, 2),
    "groups": Case("sub", 12, 18, groups=3),
    "groups-odd": Case("sub", 15, 10, groups=5, residual=True),
    "depthwise": Case("sub", 33, 33, groups=33, rows=300),
    "depthwise-down": Case("strided", 16, 32, 3, 2, 1, groups=16),
    "1d": Case("sub", 8, 7, 5, dims=1),
    "1d-down": Case("strided", 8, 7, 4, 3, 2, dims=1),
    "2d": Case("sub", 8, 16, dims=2),
    "2d-inverse": Case("inverse", 8, 16, 3, 2, dims=2),
    "4d": Case("sub", 5, 6, dims=4),
    "4d-down": Case("strided", 5, 6, 2, 2, dims=4),
    "4d-generative": Case("generative", 3, 4, 2, 2, rows=60, dims=4),
}
CASE = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
SMALL = Case("strided", 5, 8, 3, 2, 1, residual=True, rows=90)
TINY = Case("sub", 2, 3, (2, 1, 1), rows=4, residual=True)


def call(tensors, map, case, **options):
    features, weight, bias, residual = tensors
    return ops.sparse_conv(features, weight, map, bias, residual, case.groups, **options)


def gradients(function, tensors, grad_output):
    leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
    output = function(leaves)
    present = [t for t in leaves if t is not None]
    return torch.autograd.grad(output, present, grad_output.to(output.device, output.dtype))


def exactly(tensors, map, case):
    doubles = [None if t is None else t.double().cpu() for t in tensors]
    return call(doubles, map, case, backend="reference")


@functools.cache
def solved(case, dtype):
    """Indices, tensors and grad_output in dtype, the exact output and the exact gradients of those tensors."""
    torch.manual_seed(0)
    indices = case.indices()
    tensors = case.tensors(indices, dtype)
    with running(WAYS[0]):
        map = case.map(indices)
        output = exactly(tensors, map, case)
        grad_output = torch.randn_like(output).to(dtype)
        doubles = [None if t is None else t.double() for t in tensors]
        grads = gradients(lambda t: exactly(t, map, case), doubles, grad_output)
    return indices, tensors, grad_output, output, grads


def on(way, tensors):
    return [None if t is None else t.to(way.device) for t in tensors]


def dense_twin(tensors, map, case):
    """PyTorch's dense convolution, read where there are outputs."""
    features, weight, bias, residual = tensors
    shape = SHAPES[case.dims]
    stride, padding, dilation = case.window
    if case.kind == "sub":
        # A kernel's middle on each voxel: padding on the near side, and as much as is missing on the far one.
        near = [k // 2 * d for k, d in zip(case.sizes, dilation, strict=True)]
        grid = dense(features, map.input.indices, shape, 2)
        grid = F.pad(grid, [n for side in reversed(near) for n in (side, side)])
        result = dense_conv(grid, weight, stride, padding, dilation, case.groups)
    elif case.kind == "strided":
        grid = dense(features, map.input.indices, shape, 2)
        result = dense_conv(grid, weight, stride, padding, dilation, case.groups)
    else:
        grid = dense(features, map.input.indices, map.input.spatial_shape, 2)
        target = map.out.spatial_shape
        result = dense_conv_transpose(grid, weight, stride, padding, dilation, case.groups, target)
    output = read(result, map.out.indices)
    return output + (0 if bias is None else bias) + (0 if residual is None else residual)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.cin * case.cout <= 1024])
def test_oracle(name):
    """Dense convolution and its gradients."""
    case = CASES[name]
    indices, tensors, grad_output, output, grads = solved(case, torch.float64)
    with running(WAYS[0]):
        map = case.map(indices)
    assert_close(output, dense_twin(tensors, map, case), 1e-12)
    expected = gradients(lambda t: dense_twin(t, map, case), tensors, grad_output)
    for what, grad, true in zip(NAMES, grads, expected, strict=False):
        assert_close(grad, true, 1e-12, what=what)


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@CASE
@WAY
def test_forward(way, case, dtype):
    indices, tensors, _, expected, _ = solved(case, dtype)
    with running(way):
        output = call(on(way, tensors), case.map(indices, way.device), case)
    assert output.dtype == dtype and output.is_contiguous()
    baseline = None
    if dtype.itemsize == 2:
        with running(WAYS[0]):
            baseline = call(tensors, case.map(indices), case)
    assert_close(output, expected, 1e-3 if baseline is not None else LIMITS[dtype], baseline)


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@CASE
@WAY
def test_backward(way, case, dtype):
    indices, tensors, grad_output, _, expected = solved(case, dtype)
    with running(way):
        map = case.map(indices, way.device)
        found = gradients(lambda t: call(t, map, case), on(way, tensors), grad_output)
    present = [name for name, t in zip(NAMES, tensors, strict=True) if t is not None]
    for what, grad, true in zip(present, found, expected, strict=True):
        assert grad.dtype == dtype
        assert_close(grad, true, LIMITS[dtype], what=what)


@pytest.mark.parametrize("slope", [0.0, 0.1, -0.5, 1.5])
@pytest.mark.parametrize("case", [CASES["odd"], CASES["down-3"], CASES["depthwise"]], ids=lambda c: c.kind)
@WAY
def test_activation(way, case, slope):
    """In the kernel without a gradient, after it with one: the same numbers."""
    indices, tensors, grad_output, output, _ = solved(case, torch.float32)
    with running(way):
        map = case.map(indices, way.device)
        fused = call(on(way, tensors), map, case, slope=slope)
        tracked = (
            call(
                [t.requires_grad_() for t in on(way, [t.clone() for t in tensors if t is not None])],
                map,
                case,
                slope=slope,
            )
            if case.residual
            else None
        )
    expected = F.leaky_relu(output, slope)
    assert_close(fused, expected, 1e-5)
    if tracked is not None:
        assert_close(tracked, expected, 1e-5)
        tracked.backward(grad_output.to(way.device))


@pytest.mark.parametrize("wanted", range(4), ids=NAMES.__getitem__)
@WAY
def test_backward_of_one(way, wanted):
    """Only the gradient that is asked for is computed, and it does not depend on the others."""
    indices, tensors, grad_output, _, expected = solved(SMALL, torch.float32)
    leaves = [t.clone().requires_grad_(i == wanted) for i, t in enumerate(on(way, tensors))]
    with running(way):
        call(leaves, SMALL.map(indices, way.device), SMALL).backward(grad_output.to(way.device))
    assert [leaf.grad is not None for leaf in leaves] == [i == wanted for i in range(4)]
    assert_close(leaves[wanted].grad, expected[wanted], 1e-5)


THREADED = ("stem", "16", "odd", "down", "inverse", "depthwise", "128", "generative-3")


@pytest.mark.parametrize("case", THREADED)
@WAY
def test_threads_do_not_change_bits(way, case):
    if way.device != "cpu":
        pytest.skip("threads are the CPU's")
    case = CASES[case]
    indices, tensors, grad_output, _, _ = solved(case, torch.float32)
    results = []
    for threads in (1, 2, 2):
        with running(way, threads):
            map = case.map(indices)
            results.append(
                [call(tensors, map, case), *gradients(lambda t, m=map: call(t, m, case), tensors, grad_output)]
            )
    for again in results[1:]:
        if way.backend == "cpu":
            assert all(torch.equal(a, b) for a, b in zip(results[0], again, strict=True))
        else:
            assert all(error(a, b) < 1e-5 for a, b in zip(results[0], again, strict=True))


@pytest.mark.parametrize(
    "case", [TINY, TINY._replace(kind="strided"), TINY._replace(groups=2, cout=4)], ids=lambda c: f"{c.kind}{c.groups}"
)
@WAY
def test_gradcheck(way, case):
    indices = case.indices()
    leaves = [t.to(way.device).requires_grad_() for t in case.tensors(indices)]
    with running(way):
        map = case.map(indices, way.device)
        assert torch.autograd.gradcheck(lambda *t: call(t, map, case), leaves, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(lambda *t: call(t, map, case), leaves, fast_mode=True)


@WAY
def test_strides(way):
    """Slices, expanded and overlapping tensors: the same numbers."""
    indices, tensors, grad_output, expected, true_grads = solved(SMALL, torch.float32)
    tensors, grad_output = on(way, tensors), grad_output.to(way.device)
    one_value = torch.ones((), device=way.device).expand_as(grad_output)  # a gradient without strides, as sum() gives
    with running(WAYS[0]):
        reference_map = SMALL.map(indices)
        doubles = [t.double().cpu() for t in tensors]
        true_sums = gradients(lambda t: exactly(t, reference_map, SMALL), doubles, torch.ones_like(expected))
    sliced = [F.pad(t, (1, 2))[..., 1:-2] for t in tensors]
    turned = [t.movedim(-1, 0).contiguous().movedim(0, -1) for t in tensors]
    apart = [t.repeat_interleave(2, 0)[::2] for t in tensors]
    with running(way):
        map = SMALL.map(indices, way.device)
        for changed in (sliced, turned, apart):
            assert_close(call(changed, map, SMALL), expected, 1e-5)
            grad_layouts = grad_output, grad_output.T.contiguous().T, one_value
            for given, wanted in zip(grad_layouts, (true_grads, true_grads, true_sums), strict=True):
                for grad, true in zip(gradients(lambda t: call(t, map, SMALL), changed, given), wanted, strict=True):
                    assert_close(grad, true, 1e-5)
        for changed in (
            [tensors[0][:1].expand_as(tensors[0]), *tensors[1:]],
            [
                tensors[0],
                tensors[1][:1].expand_as(tensors[1]),
                tensors[2][:1].expand(8),
                tensors[3][:1].expand_as(tensors[3]),
            ],
            [tensors[0].flatten().as_strided(tensors[0].shape, (3, 1)), *tensors[1:]],
        ):
            assert_close(call(changed, map, SMALL), exactly(changed, reference_map, SMALL), 1e-5)


@pytest.mark.parametrize("kind", ["sub", "strided", "generative", "inverse"])
@WAY
def test_no_voxels(way, kind):
    case = SMALL._replace(kind=kind, rows=0)
    leaves = [t.to(way.device).requires_grad_() for t in case.tensors(case.indices(), torch.float32)]
    with running(way):
        output = call(leaves, case.map(case.indices(), way.device), case)
        output.sum().backward()
    assert output.shape == (0, 8)
    assert all(leaf.grad.eq(0).all() for leaf in leaves[1:3]) and leaves[0].grad.shape == leaves[0].shape


@WAY
def test_no_outputs(way):
    with running(way):
        index = ops.SparseIndex(torch.tensor([[0, 1], [0, 3]], device=way.device), spatial_shape=(5,))
        map = index.strided(1, 2, 0)[1]
        features, weight, bias = (
            torch.randn(s, device=way.device, requires_grad=True) for s in ((2, 3), (4, 1, 3), (4,))
        )
        output = ops.sparse_conv(features, weight, map, bias)
        output.sum().backward()
        back = ops.sparse_conv(output, torch.randn(3, 1, 4, device=way.device), map.transposed(), bias[:3])
    assert output.shape == (0, 4) and features.grad.eq(0).all() and weight.grad.eq(0).all() and bias.grad.eq(0).all()
    assert torch.equal(back, bias[:3].expand(2, 3)), "an output without inputs is the bias"


@pytest.mark.parametrize("channels", [3, 16, 65])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@WAY
def test_nan_stays_where_it_is_read(way, channels, value):
    case = Case("strided", channels, 5, 3, 2, 1, rows=200)
    indices, clean, _, clean_output, _ = solved(case, torch.float32)
    features = clean[0].clone()
    features[17, channels // 2] = value
    tensors = on(way, [features, *clean[1:]])
    with running(way):
        map = case.map(indices, way.device)
        output = call(tensors, map, case)
        touched = ops.sparse_conv(
            F.one_hot(torch.tensor(17), 200)[:, None].float().to(way.device),
            torch.ones(1, 3, 3, 3, 1).to(way.device),
            map,
        )
        grads = gradients(lambda t: call(t, map, case), tensors, torch.ones_like(output))
    assert torch.equal(~output.isfinite(), (touched > 0).expand(-1, 5))
    rest = touched[:, 0].cpu() == 0
    assert_close(output[rest], clean_output[rest], 1e-5)
    assert (
        grads[0].isfinite().all() and (~grads[1].isfinite()).any((0, 1, 2, 3)).sum() == 1 and grads[2].isfinite().all()
    )


@WAY
def test_infinite_weight_stays_in_its_channel(way):
    indices, tensors, _, expected, _ = solved(SMALL, torch.float32)
    tensors = [t.clone() for t in on(way, tensors)]
    tensors[1][2, 1, 1, 1, 0] = torch.nan
    with running(way):
        output = call(tensors, SMALL.map(indices, way.device), SMALL)
    assert output[:, 2].isnan().any()
    rest = [0, 1, 3, 4, 5, 6, 7]
    assert_close(output[:, rest], expected[:, rest], 1e-5)


@WAY
def test_rows_follow_the_user(way):
    """Features and indices shuffled together give the same numbers."""
    indices, tensors, _, expected, _ = solved(CASES["16"], torch.float32)
    order = torch.randperm(len(indices))
    with running(way):
        map = CASES["16"].map(indices[order], way.device)
        output = call(on(way, [tensors[0][order], *tensors[1:]]), map, CASES["16"])
    assert_close(output, expected[order], 1e-5)


@WAY
def test_a_map_made_elsewhere(way):
    """Maps of the reference and of the kernels are interchangeable."""
    if way.device != "cpu":
        pytest.skip("a GPU has maps of its own")
    case = CASES["down-3"]
    indices, tensors, grad_output, expected, true_grads = solved(case, torch.float32)
    for maker in WAYS[:2]:
        with running(maker):
            map = case.map(indices)
            assert map.tensors and map.transposed().tensors
        with running(way):
            assert_close(call(tensors, map, case), expected, 1e-5)
            for grad, true in zip(
                gradients(lambda t, m=map: call(t, m, case), tensors, grad_output), true_grads, strict=True
            ):
                assert_close(grad, true, 1e-5)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_fuzzed(data):
    """Any voxels, kernel, stride, groups and channels, forward and backward, on every instruction set."""
    dims = data.draw(st.integers(1, 4))
    groups = data.draw(st.sampled_from([1, 1, 2, 3]))

    def numbers(low, high):
        return tuple(data.draw(st.integers(low, high)) for _ in range(dims))

    cin, cout = (groups * data.draw(st.integers(1, 13)) for _ in range(2))
    indices = scene(
        SHAPES[dims], data.draw(st.integers(0, 300)), low=data.draw(st.integers(-70, 70)), dtype=torch.int64
    )
    indices[:, 1:] += data.draw(st.sampled_from([0, 0, 2**45]))
    kernel, stride, padding, dilation = numbers(1, 3), numbers(1, 3), numbers(0, 2), numbers(1, 2)
    kind = data.draw(st.sampled_from(["sub", "strided", "generative", "inverse"]))

    def map_of():
        index = ops.SparseIndex(indices)
        if kind == "sub":
            return index.submanifold(kernel, dilation)
        method = index.generative if kind == "generative" else index.strided
        map = method(kernel, stride, padding, dilation)[1]
        return map.transposed() if kind == "inverse" else map

    results = []
    for way in (w for w in WAYS if w.device == "cpu"):
        torch.manual_seed(0)
        with running(way):
            map = map_of()
            tensors = torch.randn(len(map.input), cin), torch.randn(cout, *kernel, cin // groups), torch.randn(cout)
            leaves = [t.requires_grad_() for t in tensors]
            output = ops.sparse_conv(*leaves[:2], map, leaves[2], groups=groups)
            results.append([output, *torch.autograd.grad(output, leaves, torch.randn_like(output))])
    for found in results[1:]:
        for a, b in zip(found, results[0], strict=True):
            assert_close(a, b, 1e-5)


def test_reference_in_low_precision_sums_in_float32():
    features, weight = torch.ones(1, 4096, dtype=torch.bfloat16), torch.full((1, 1, 4096), 0.01, dtype=torch.bfloat16)
    map = ops.SparseIndex(torch.zeros(1, 2, dtype=torch.int32)).submanifold(1)
    output = reference.sparse_conv(features, weight, None, None, map.tensors)
    assert_close(output, 4096 * weight[0, 0, :1][None].double(), 4e-3)
