# SPDX-License-Identifier: Apache-2.0
"""What odconv2d and odconv1d refuse, and how they say it."""

import pytest
import torch
from flexor import ops
from flexor.testing import running, ways


def bad(**changes):
    """A call with some arguments changed, for ops.odconv2d."""
    arguments = {
        "input": torch.zeros(2, 6, 5, 5),
        "weight": torch.zeros(3, 4, 6, 3, 3),
        "channel_attention": torch.zeros(2, 6),
        "filter_attention": torch.zeros(2, 4),
        "spatial_attention": torch.zeros(2, 9),
        "kernel_attention": torch.zeros(2, 3),
        "padding": 1,
    }
    return arguments | changes


def zeros(*shape, **options):
    return torch.zeros(shape, **options)


ERRORS = {
    "input-rank": (bad(input=zeros(6, 5, 5)), ValueError, r"input must have 4 dimensions .*got \(6, 5, 5\)"),
    "input-none": (bad(input=None), TypeError, "input must be a tensor, got NoneType"),
    "input-dtype": (bad(input=zeros(2, 6, 5, 5, dtype=torch.int32)), TypeError, "got torch.int32"),
    "input-sparse": (bad(input=zeros(2, 6, 5, 5).to_sparse()), TypeError, "strided tensor, got torch.sparse_coo"),
    "weight-rank": (bad(weight=zeros(4, 6, 3, 3)), ValueError, r"weight must have 5 dimensions \(n, Co, Ci/groups"),
    "weight-dtype": (bad(weight=zeros(3, 4, 6, 3, 3).double()), TypeError, "weight must have input's dtype"),
    "no-kernels": (bad(weight=zeros(0, 4, 6, 3, 3)), ValueError, r"no empty dimension .*got \(0, 4, 6, 3, 3\)"),
    "no-taps": (bad(weight=zeros(3, 4, 6, 0, 3)), ValueError, "no empty dimension"),
    "channels": (
        bad(weight=zeros(3, 4, 5, 3, 3)),
        ValueError,
        r"input.shape\[1\] must be groups\*weight.shape\[2\] = 5, got 6 \(weight \(3, 4, 5, 3, 3\), groups 1\)",
    ),
    "groups-of-filters": (
        bad(weight=zeros(3, 4, 2, 3, 3), groups=3),
        ValueError,
        r"weight.shape\[1\] must be a multiple of groups = 3, got 4",
    ),
    "groups-of-channels": (bad(groups=4), ValueError, r"input.shape\[1\] must be groups.* = 24, got 6"),
    "groups-zero": (bad(groups=0), ValueError, "groups must be a positive integer, got 0"),
    "groups-float": (bad(groups=1.5), ValueError, "groups must be a positive integer, got 1.5"),
    "channel-length": (
        bad(channel_attention=zeros(2, 4)),
        ValueError,
        r"channel_attention.shape must be \(B, Ci\) = \(2, 6\), got \(2, 4\)",
    ),
    "channel-batch": (bad(channel_attention=zeros(1, 6)), ValueError, r"channel_attention.shape must be .* \(2, 6\)"),
    "channel-axis": (
        bad(channel_attention=zeros(2, 1, 6, 1)),
        ValueError,
        r"channel_attention must be \(B, Ci\) or \(B, Ci, 1, 1\), got \(2, 1, 6, 1\)",
    ),
    "channel-number": (bad(channel_attention=1.0), TypeError, "channel_attention must be a tensor or None, got float"),
    "channel-dtype": (bad(channel_attention=zeros(2, 6).double()), TypeError, "channel_attention must have input's"),
    "channel-sparse": (
        bad(channel_attention=zeros(2, 6).to_sparse()),
        TypeError,
        "channel_attention must be a strided",
    ),
    "filter-length": (bad(filter_attention=zeros(2, 6)), ValueError, r"filter_attention.shape must be \(B, Co\)"),
    "filter-axis": (bad(filter_attention=zeros(2, 4, 1)), ValueError, r"filter_attention must be \(B, Co\) or"),
    "spatial-length": (
        bad(spatial_attention=zeros(2, 3)),
        ValueError,
        r"spatial_attention.shape must be \(B, kh\*kw\) = \(2, 9\), got \(2, 3\)",
    ),
    "spatial-axis": (
        bad(spatial_attention=zeros(2, 3, 3, 1, 1, 1)),
        ValueError,
        r"spatial_attention must be .*\(B, 1, 1, 1, kh, kw\), got \(2, 3, 3, 1, 1, 1\)",
    ),
    "spatial-map": (bad(spatial_attention=zeros(2, 3, 3)), ValueError, r"spatial_attention must be \(B, kh\*kw\) or"),
    "spatial-turned": (
        bad(weight=zeros(3, 4, 6, 3, 1), spatial_attention=zeros(2, 1, 1, 1, 1, 3)),
        ValueError,
        r"spatial_attention must be .* got \(2, 1, 1, 1, 1, 3\)",
    ),
    "kernel-length": (
        bad(kernel_attention=zeros(2, 4)),
        ValueError,
        r"kernel_attention.shape must be \(B, n\) = \(2, 3",
    ),
    "kernel-axis": (
        bad(kernel_attention=zeros(2, 1, 3, 1, 1, 1)),
        ValueError,
        r"kernel_attention must be \(B, n\) or \(B, n, 1, 1, 1, 1\), got \(2, 1, 3, 1, 1, 1\)",
    ),
    "kernel-none": (bad(kernel_attention=None), ValueError, "may be None only for one kernel, weight has 3"),
    "kernel-half": (bad(kernel_attention=zeros(2, 3).half()), TypeError, "kernel_attention must have input's dtype"),
    "stride-zero": (bad(stride=0), ValueError, "stride must be a positive integer, one or two of them, got 0"),
    "stride-negative": (bad(stride=(1, -1)), ValueError, r"stride must be a positive .* got \(1, -1\)"),
    "stride-three": (bad(stride=(1, 1, 1)), ValueError, r"got \(1, 1, 1\)"),
    "stride-float": (bad(stride=1.5), ValueError, "got 1.5"),
    "padding-negative": (bad(padding=-1), ValueError, "padding must be an integer not below 0"),
    "dilation-zero": (bad(dilation=0), ValueError, "dilation must be a positive integer"),
    "too-large": (
        bad(padding=0, dilation=3),
        ValueError,
        r"the kernel must not be larger than the padded input, got oh = -1, ow = -1 \(input 5x5, kernel 3x3",
    ),
    "backend": (bad(backend="numpy"), ValueError, "backend must be one of cpu, cuda, reference, triton, got 'numpy'"),
    "backend-cuda": (bad(backend="cuda"), RuntimeError, "backend 'cuda' cannot run: there is no CUDA"),
    "device": (
        bad(filter_attention=zeros(2, 4, device="meta")),
        ValueError,
        "all tensors must be on one device, got input on cpu.* filter_attention on meta",
    ),
}


@pytest.mark.parametrize(("arguments", "kind", "message"), ERRORS.values(), ids=ERRORS.keys())
@pytest.mark.parametrize("way", [w for w in ways("odconv2d") if w.device == "cpu"], ids=str)
def test_errors(way, arguments, kind, message):
    with running(way), pytest.raises(kind, match=f"odconv2d: .*{message}|^{message}"):
        ops.odconv2d(**arguments)


def test_errors_of_the_one_dimensional_op():
    with pytest.raises(ValueError, match=r"odconv1d: input must have 3 dimensions \(B, Ci, L\), got \(2, 6, 5, 5\)"):
        ops.odconv1d(zeros(2, 6, 5, 5), zeros(1, 4, 6, 3))
    with pytest.raises(ValueError, match=r"odconv1d: weight must have 4 dimensions \(n, Co, Ci/groups, k\)"):
        ops.odconv1d(zeros(2, 6, 5), zeros(4, 6, 3))
    with pytest.raises(ValueError, match="larger than the padded input, got oh = 1, ow = -1"):
        ops.odconv1d(zeros(2, 6, 5), zeros(1, 4, 6, 7))


def test_sizes_that_no_machine_has():
    """Checked arithmetic on meta tensors: nothing is allocated."""

    def meta(*shape):
        return torch.empty(1, device="meta").expand(shape)

    assert ops.odconv2d(meta(2, 1, 2**16, 2**15), meta(1, 1, 1, 1, 1)).shape == (2, 1, 2**16, 2**15)
    with pytest.raises(ValueError, match=r"output .* would have .* bytes, more than a 64-bit size can hold"):
        ops.odconv2d(meta(2**10, 1, 2**24, 2**24), meta(1, 2**6, 1, 1, 1))
