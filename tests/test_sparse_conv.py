# SPDX-License-Identifier: Apache-2.0
"""sparse_conv on every backend: values and gradients."""

import pytest
import torch
import torch.nn.functional as F
from flexor.testing import assert_close, error, running
from sparse_conv_cases import CASE, CASES, LIMITS, NAMES, SHAPES, SMALL, TINY, WAY, WAYS, call, gradients, on, solved
from sparse_voxels import dense, dense_conv, dense_conv_transpose, read


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
@pytest.mark.parametrize("name", ["odd", "down-3", "depthwise", "stem", "groups-odd"])
@WAY
def test_activation(way, name, slope):
    """In the kernel without a gradient, after it with one: the same numbers, and the slope in the gradient."""
    case = CASES[name]
    indices, tensors, grad_output, output, _ = solved(case, torch.float32)
    leaves = [None if t is None else t.clone().requires_grad_() for t in on(way, tensors)]
    with running(way):
        map = case.map(indices, way.device)
        fused = call(on(way, tensors), map, case, slope=slope)
        tracked = call(leaves, map, case, slope=slope)
        tracked.backward(grad_output.to(way.device))
    for found in (fused, tracked):
        assert_close(found, F.leaky_relu(output, slope), 1e-5)
    factor = torch.where(output > 0, 1, slope)
    assert_close(leaves[2].grad, (factor * grad_output).sum(0), 1e-5)


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
