# SPDX-License-Identifier: Apache-2.0
"""sparse_conv on every backend: layouts, no voxels, NaN, anyone's maps, anything at all."""

import pytest
import torch
import torch.nn.functional as F
from flexor import ops, reference
from flexor.testing import assert_close, running
from hypothesis import given, settings
from hypothesis import strategies as st
from sparse_conv_cases import CASES, SHAPES, SMALL, WAY, WAYS, Case, call, exactly, gradients, on, solved
from sparse_voxels import scene


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
