# SPDX-License-Identifier: Apache-2.0
"""The matching heads: keys and numbers of pysot's, DKD's factorisation."""

import pytest
import torch
import torch.nn.functional as F
from flexor.nn import DepthwiseRPN, DepthwiseXCorr, DynamicKernelMatching, MultiRPN, UPChannelRPN, XCorr
from flexor.testing import assert_close
from torch import nn


def many_kernels(search, kernel):
    """The kernels of every sample are so many times the search's channels."""
    each = [F.conv2d(s[None], k.unflatten(0, (-1, len(s)))) for s, k in zip(search, kernel, strict=True)]
    return torch.cat(each)


def depthwise(search, kernel, padding=0):
    flat = search.reshape(1, -1, *search.shape[2:])
    output = F.conv2d(flat, kernel.flatten(0, 1)[:, None], padding=padding, groups=flat.shape[1])
    return output.reshape(*search.shape[:2], *output.shape[2:])


def features(channels=8):
    return torch.randn(2, channels, 7, 7), torch.randn(2, channels, 15, 17)


def assert_trains(layer, *args):
    outputs = layer(*args)
    sum(out.square().sum() for out in (outputs if isinstance(outputs, tuple) else (outputs,))).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


def test_up_channel_head():
    head = UPChannelRPN(anchor_num=5, feature_in=8)
    convs = ("template_cls_conv", "template_loc_conv", "search_cls_conv", "search_loc_conv", "loc_adjust")
    assert list(head.state_dict()) == [f"{name}.{part}" for name in convs for part in ("weight", "bias")]
    assert head.template_cls_conv.weight.shape == (80, 8, 3, 3) and head.loc_adjust.weight.shape == (20, 20, 1, 1)
    z, x = features()
    cls, loc = head(z, x)
    assert_close(cls, many_kernels(head.search_cls_conv(x), head.template_cls_conv(z)), 1e-5)
    expected = head.loc_adjust(many_kernels(head.search_loc_conv(x), head.template_loc_conv(z)))
    assert cls.shape == (2, 10, 9, 11) and loc.shape == (2, 20, 9, 11)
    assert_close(loc, expected, 1e-5)
    assert_trains(head, z, x)


def test_xcorr():
    layer = XCorr(8, 6)
    z, x = features()
    assert_close(layer(z, x), many_kernels(layer.search_conv(x), layer.template_conv(z)), 1e-5)
    assert_trains(layer, z, x)


DEPTHWISE_KEYS = {
    "conv_kernel.0.weight": (12, 8, 3, 3),
    "conv_kernel.1.weight": (12,),
    "conv_search.0.weight": (12, 8, 3, 3),
    "conv_search.1.running_mean": (12,),
    "head.0.weight": (12, 12, 1, 1),
    "head.1.bias": (12,),
    "head.3.weight": (6, 12, 1, 1),
    "head.3.bias": (6,),
}


@pytest.mark.parametrize("training", [False, True])
def test_depthwise_xcorr(training):
    layer = DepthwiseXCorr(8, 12, 6).train(training)
    state = layer.state_dict()
    assert len(state) == 20 and all(state[key].shape == shape for key, shape in DEPTHWISE_KEYS.items())
    z, x = features()
    expected = layer.head(depthwise(layer.conv_search(x), layer.conv_kernel(z)))
    assert_close(layer(z, x), expected, 1e-4)
    assert_trains(layer, z, x)


@pytest.mark.parametrize("weighted", [False, True])
def test_multi_rpn(weighted):
    head = MultiRPN(5, [8, 12], weighted).eval()
    prefixes = {key.split(".")[0] for key in head.state_dict()}
    assert prefixes == {"rpn2", "rpn3"} | ({"cls_weight", "loc_weight"} if weighted else set())
    if weighted:
        nn.init.normal_(head.cls_weight), nn.init.normal_(head.loc_weight)
    (z2, x2), (z3, x3) = features(8), features(12)
    each = [head.rpn2(z2, x2), head.rpn3(z3, x3)]
    for i, (found, name) in enumerate(zip(head([z2, z3], [x2, x3]), ("cls_weight", "loc_weight"), strict=True)):
        weight = getattr(head, name).softmax(0) if weighted else torch.full((2,), 0.5)
        assert_close(found, weight[0] * each[0][i] + weight[1] * each[1][i], 1e-5)
    assert_trains(head, [z2, z3], [x2, x3])
    with pytest.raises(ValueError, match="shorter"):
        head([z2, z3], [x2])


def test_dynamic_kernel_matching():
    layer = DynamicKernelMatching(channels=16, joints=13, kernel_size=7)
    assert [tuple(p.shape) for p in layer.parameters()] == [(16, 16, 1, 1), (16,), (13, 16, 1, 1), (13,)]
    frame, kernel = torch.randn(2, 16, 24, 18), torch.randn(2, 16, 7, 7, requires_grad=True)
    heatmaps = layer(frame, kernel)
    assert heatmaps.shape == (2, 13, 24, 18)
    assert_close(heatmaps, layer.mix(depthwise(layer.project(frame), kernel, 3)), 1e-5)
    assert_trains(layer, frame, kernel)
    assert kernel.grad.abs().max() > 0
    assert "kernel_size=7" in repr(layer)


def test_errors():
    with pytest.raises(ValueError, match="kernel_size must be odd, got 4"):
        DynamicKernelMatching(8, 5, 4)
    layer = DynamicKernelMatching(8, 5, 3)
    with pytest.raises(ValueError, match=r"kernel must be .* = \(2, 8, 3, 3\), got \(2, 8, 5, 5\)"):
        layer(torch.zeros(2, 8, 6, 6), torch.zeros(2, 8, 5, 5))
    with pytest.raises(ValueError, match="xcorr2d: kernel 5x5 must fit into the padded input 3x3"):
        XCorr(4, 2)(torch.zeros(1, 4, 7, 7), torch.zeros(1, 4, 5, 5))


@pytest.mark.compiles
@pytest.mark.parametrize("kind", [UPChannelRPN, DepthwiseRPN])
def test_heads_compile_and_export(kind):
    head, (z, x) = kind(2, 8, *([8] if kind is DepthwiseRPN else [])).eval(), features()
    torch._dynamo.reset()
    compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
    exported = torch.export.export(head, (z, x)).module()
    for run in (compiled, exported):
        for found, expected in zip(run(z, x), head(z, x), strict=True):
            assert_close(found, expected, 1e-5)


def test_half_precision_heads():
    z, x = features()
    for head in (UPChannelRPN(2, 8), DepthwiseRPN(2, 8, 8)):
        with torch.autocast("cpu", torch.bfloat16):
            cls, loc = head(z, x)
        assert cls.dtype == loc.dtype == torch.bfloat16
        assert all(out.dtype == torch.bfloat16 for out in head.bfloat16()(z.bfloat16(), x.bfloat16()))
