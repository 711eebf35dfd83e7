# SPDX-License-Identifier: Apache-2.0
"""warp2d and affine_warp2d on every backend, against grid_sample and their twins."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from flexor import ops, reference
from flexor.testing import assert_close, running, ways

LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
WAY = pytest.mark.parametrize("way", ways("warp2d"), ids=str)
AFFINE_WAY = pytest.mark.parametrize("way", ways("affine_warp2d"), ids=str)
MODES = pytest.mark.parametrize(
    "modes", [(m, p) for m in ("bilinear", "nearest") for p in ("zeros", "border")], ids="-".join
)
# batch, channels, height, width, output height, output width
SIZES = {
    "pixel": (1, 1, 1, 1, 1, 1),
    "odd": (2, 3, 7, 9, 7, 9),
    "grows": (1, 5, 6, 7, 9, 63),
    "shrinks": (2, 17, 20, 33, 5, 8),
    "wide": (1, 2, 3, 129, 3, 129),
    "many-channels": (1, 64, 7, 5, 7, 5),
    "row": (1, 3, 1, 9, 4, 9),
}
SIZE = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())


def tensors(size, dtype=torch.float64, device="cpu", spread=3.0):
    b, c, h, w, oh, ow = size
    input, flow = torch.randn(b, c, h, w), spread * torch.randn(b, 2, oh, ow)
    return input.to(device, dtype), flow.to(device, dtype)


def matrices(batch, height, width, dtype=torch.float64):
    """Rotations, scalings and shifts about the middle."""
    angle, scale = torch.randn(batch), 1 + 0.3 * torch.rand(batch)
    linear = (
        torch.stack((angle.cos(), -angle.sin(), angle.sin(), angle.cos()), 1).reshape(-1, 2, 2) * scale[:, None, None]
    )
    middle = torch.tensor([[(width - 1) / 2], [(height - 1) / 2]])
    return torch.cat((linear, middle - linear @ middle + torch.randn(batch, 2, 1)), 2).to(dtype)


def grid_sample(input, y, x, mode, padding_mode):
    """torch's own sampler at pixels y and x [B, oh, ow]."""

    def unit(v, size):
        return v * 2 / (size - 1) - 1

    grid = torch.stack((unit(x, input.shape[3]), unit(y, input.shape[2])), 3)
    return F.grid_sample(input, grid, mode, padding_mode, align_corners=True)


def pixels(oh, ow):
    return torch.meshgrid(torch.arange(oh).double(), torch.arange(ow).double(), indexing="ij")


def gradients(output, inputs, grad_output):
    return torch.autograd.grad(output, inputs, grad_output.to(output.device, output.dtype))


@MODES
@SIZE
def test_twin_is_grid_sample(size, modes):
    if 1 in size[2:4]:
        pytest.skip("grid_sample's coordinates are undefined for a side of one pixel")
    input, flow = (t.requires_grad_() for t in tensors(size))
    y, x = pixels(*size[4:])
    expected = grid_sample(input, y + flow[:, 1], x + flow[:, 0], *modes)
    found = ops.warp2d(input, flow, *modes, backend="reference")
    assert_close(found, expected, 1e-12)
    grad_output = torch.randn_like(expected)
    for a, b in zip(*(gradients(out, (input, flow), grad_output) for out in (found, expected)), strict=True):
        assert_close(a, b, 1e-10)


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@MODES
@SIZE
@WAY
def test_warp2d(way, size, modes, dtype):
    input, flow = (t.requires_grad_() for t in tensors(size, dtype, way.device))
    exact = [t.detach().cpu().double().requires_grad_() for t in (input, flow)]
    expected = ops.warp2d(*exact, *modes, backend="reference")
    grad_output = torch.randn_like(expected).to(dtype)
    with running(way):
        output = ops.warp2d(input, flow, *modes)
        grads = gradients(output, (input, flow), grad_output)
    assert output.dtype == dtype and output.is_contiguous()
    assert_close(output, expected, LIMITS[dtype])
    for what, a, b in zip(("input", "flow"), grads, gradients(expected, exact, grad_output), strict=True):
        assert a.dtype == dtype
        assert_close(a, b, LIMITS[dtype], what=what)


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@MODES
@SIZE
@AFFINE_WAY
def test_affine_warp2d(way, size, modes, dtype):
    input = tensors(size, dtype, way.device)[0].requires_grad_()
    # Its inverse is exact in every dtype: no position falls on the other side of a whole pixel by rounding.
    matrix = torch.tensor([[1, -1, 2.25], [1, 1, -0.75]], dtype=torch.promote_types(dtype, torch.float32))
    matrix = matrix.to(way.device).repeat(size[0], 1, 1).requires_grad_()
    exact = [t.detach().cpu().double().requires_grad_() for t in (input, matrix)]
    expected = ops.affine_warp2d(*exact, size[4:], *modes, backend="reference")
    grad_output = torch.randn_like(expected).to(dtype)
    with running(way):
        output = ops.affine_warp2d(input, matrix, size[4:], *modes)
        grads = gradients(output, (input, matrix), grad_output)
    assert output.dtype == dtype
    assert_close(output, expected, LIMITS[dtype])
    for what, a, b in zip(("input", "matrix"), grads, gradients(expected, exact, grad_output), strict=True):
        assert_close(a, b, 5 * LIMITS[dtype], what=what)


@MODES
def test_affine_twin_is_grid_sample(modes):
    input, matrix = tensors((3, 4, 8, 11, 8, 11))[0].requires_grad_(), matrices(3, 8, 11).requires_grad_()
    y, x = pixels(6, 9)
    bottom = torch.tensor([[[0.0, 0.0, 1.0]]]).expand(3, 1, 3).double()
    inverse = torch.linalg.inv(torch.cat((matrix, bottom), 1))
    sources = inverse[:, :2] @ torch.stack((x.flatten(), y.flatten(), torch.ones(54).double()))
    expected = grid_sample(input, sources[:, 1].reshape(3, 6, 9), sources[:, 0].reshape(3, 6, 9), *modes)
    found = ops.affine_warp2d(input, matrix, (6, 9), *modes)
    assert_close(found, expected, 1e-10)
    grad_output = torch.randn_like(expected)
    for a, b in zip(*(gradients(out, (input, matrix), grad_output) for out in (found, expected)), strict=True):
        assert_close(a, b, 1e-9)


def test_affine_moves_forward():
    """The matrix goes from source to destination, x first: a shift by (2, 1) moves the image right and down."""
    input = torch.rand(1, 1, 5, 6)
    shift = torch.tensor([[[1.0, 0, 2], [0, 1, 1]]])
    assert torch.equal(ops.affine_warp2d(input, shift)[..., 1:, 2:], input[..., :-1, :-2])
    turn = torch.tensor([[[0.0, -1, 4], [1, 0, 0]]])  # a quarter clockwise, as images are drawn
    assert_close(ops.affine_warp2d(input, turn, (6, 5)), input.rot90(-1, (2, 3)), 1e-6)


def test_flow_reads_at_p_plus_flow():
    input = torch.rand(1, 2, 5, 6)
    flow = torch.zeros(1, 2, 5, 6)
    flow[:, 0] = 2  # x
    assert torch.equal(ops.warp2d(input, flow)[..., :-2], input[..., 2:])


@WAY
def test_nan_and_infinity(way):
    input, flow = (t.requires_grad_() for t in tensors((1, 3, 6, 18, 6, 18), torch.float32, way.device, 0.5))
    with torch.no_grad():
        flow[0, 0, 2, 3], flow[0, 1, 4, 5], flow[0, 0, 5, 17] = torch.nan, torch.inf, -torch.inf
    with running(way):
        output = ops.warp2d(input, flow)
        grads = gradients(output, (input, flow), torch.ones_like(output))
        border = ops.warp2d(input, flow, padding_mode="border")
    assert torch.equal(output.isnan().nonzero().cpu(), torch.tensor([[0, c, 2, 3] for c in range(3)]))
    assert output[0, :, 4, 5].eq(0).all() and output[0, :, 5, 17].eq(0).all()
    assert grads[0].isfinite().all() and grads[1][0, :, 2, 3].isnan().any()
    assert grads[1][0, :, 4, 5].eq(0).all() and grads[1][0, :, 5, 17].eq(0).all()
    clamped = flow.detach().nan_to_num(0, 1e4, -1e4)
    expected = reference.warp2d(input, clamped, padding_mode="border")
    keep = ~flow.isnan().any(1, keepdim=True).expand_as(expected)
    assert_close(border[keep], expected[keep], 1e-5)


@WAY
def test_strides(way):
    input, flow = tensors((2, 4, 6, 7, 6, 7), torch.float32, way.device)
    expected = reference.warp2d(input, flow)
    last = [t.contiguous(memory_format=torch.channels_last) for t in (input, flow)]
    sliced = [F.pad(t, (1, 2))[..., 1:-2] for t in (input, flow)]
    with running(way):
        for changed in (last, sliced, (input[:1].expand(2, 4, 6, 7), flow)):
            output = ops.warp2d(*changed)
            assert_close(output, reference.warp2d(*changed), 1e-5)
        assert_close(ops.warp2d(*last), expected, 1e-5)
        assert ops.warp2d(*last).is_contiguous(memory_format=torch.channels_last)
        leaf = last[0].clone(memory_format=torch.preserve_format).requires_grad_()
        ops.warp2d(leaf, flow).sum().backward()
        assert ops.warp2d(input[:0], flow[:0]).shape == (0, 4, 6, 7)
    plain = input.clone().requires_grad_()
    reference.warp2d(plain, flow).sum().backward()
    assert_close(leaf.grad, plain.grad, 1e-5)


@pytest.mark.parametrize("op", ["warp2d", "affine_warp2d"])
def test_threads_do_not_change_bits(op):
    input, flow = tensors((2, 8, 40, 50, 40, 50), torch.float32)
    where = flow if op == "warp2d" else matrices(2, 40, 50, torch.float32)
    for way in ways(op):
        if way.backend != "cpu":
            continue
        results = []
        for threads in (1, 2):
            leaves = [input.clone().requires_grad_(), where.clone().requires_grad_()]
            with running(way, threads):
                output = getattr(ops, op)(*leaves)
                results.append([output, *gradients(output, leaves, torch.cos(output))])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@MODES
@WAY
def test_gradcheck(way, modes):
    input, flow = (t.to(way.device).requires_grad_() for t in tensors((1, 2, 3, 4, 3, 2)))
    matrix = matrices(1, 3, 4).to(way.device).requires_grad_()
    gradcheck = partial(torch.autograd.gradcheck, nondet_tol=1e-12)  # atomics add in any order
    with running(way):
        assert gradcheck(
            lambda a, b: ops.warp2d(a, b, *modes), (input, flow), check_forward_ad=True, check_batched_grad=True
        )
        assert torch.autograd.gradgradcheck(lambda a, b: ops.warp2d(a, b, *modes), (input, flow), fast_mode=True)
        assert gradcheck(lambda a, b: ops.affine_warp2d(a, b, (2, 3), *modes), (input, matrix))
        assert torch.autograd.gradgradcheck(
            lambda a, b: ops.affine_warp2d(a, b, (2, 3), *modes), (input, matrix), fast_mode=True
        )


def test_functorch():
    inputs, flows = torch.randn(3, 2, 4, 5, 6), torch.randn(3, 2, 2, 5, 6)
    affine = torch.stack([matrices(2, 5, 6, torch.float32) for _ in range(3)])
    for op, twin, where in (
        (ops.warp2d, reference.warp2d, flows),
        (ops.affine_warp2d, reference.affine_warp2d, affine),
    ):
        for in_dims in ((0, 0), (0, None), (None, 0)):
            args = [t if d == 0 else t[0] for t, d in zip((inputs, where), in_dims, strict=True)]

            def per_sample(f, args=args, in_dims=in_dims):
                grad = torch.func.grad(lambda *both: f(*both).square().sum(), argnums=(0, 1))
                return torch.vmap(f, in_dims)(*args), *torch.vmap(grad, in_dims)(*args)

            for a, b in zip(per_sample(op), per_sample(twin), strict=True):
                assert_close(a, b, 1e-5)
        tangents = torch.randn_like(inputs[0]), torch.randn_like(where[0])
        found, expected = (torch.func.jvp(f, (inputs[0], where[0]), tangents) for f in (op, twin))
        assert_close(found[1], expected[1], 1e-5)


def test_autocast():
    input, flow = tensors((1, 3, 6, 7, 6, 7), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ops.warp2d(input, flow), ops.warp2d(input, flow))
        assert ops.warp2d(input, flow).dtype == torch.float32
        assert ops.warp2d(input, flow.bfloat16()).dtype == torch.float32
        assert ops.warp2d(input.bfloat16(), flow).dtype == torch.bfloat16
        inside = ops.affine_warp2d(input, matrix := matrices(1, 6, 7, torch.float32))
    assert torch.equal(inside, ops.affine_warp2d(input, matrix))


@pytest.mark.compiles
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
def test_opcheck_compile_export():
    input, flow = (t.requires_grad_() for t in tensors((2, 3, 6, 7, 5, 4), torch.float32))
    matrix = matrices(2, 6, 7, torch.float32).requires_grad_()
    torch.library.opcheck(torch.ops.flexor.warp2d.default, (input, flow, "bilinear", "zeros", None))
    torch.library.opcheck(torch.ops.flexor.affine_warp2d.default, (input, matrix, (5, 4), "nearest", "border", None))

    def both(input, flow, matrix):
        size = input.shape[2:]
        return ops.affine_warp2d(
            ops.warp2d(input, flow), matrix, (size[0] - 1, size[1] + 1), padding_mode="border"
        ).sin()

    torch._dynamo.reset()
    compiled = torch.compile(both, fullgraph=True, dynamic=True, backend="aot_eager")
    for a, b in zip(
        *(torch.autograd.grad(f(input, flow, matrix).sum(), (input, flow, matrix)) for f in (compiled, both)),
        strict=True,
    ):
        assert_close(a, b, 1e-5)

    class Both(torch.nn.Module):
        def forward(self, input, flow, matrix):
            return both(input, flow, matrix)

    program = torch.export.export(Both(), (input, flow, matrix))
    assert_close(program.module()(input, flow, matrix), both(input, flow, matrix), 1e-6)


ERRORS = [
    (lambda: ops.warp2d(torch.zeros(3, 4, 4), torch.zeros(1, 2, 4, 4)), ValueError, r"input must have 4 dimensions"),
    (
        lambda: ops.warp2d(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)),
        ValueError,
        r"flow.shape must be \(B, 2, oh",
    ),
    (lambda: ops.warp2d(torch.zeros(2, 3, 4, 4), torch.zeros(1, 2, 4, 4)), ValueError, r"= \(2, 2, 4, 4\), got \(1, 2"),
    (lambda: ops.warp2d(torch.zeros(1, 3, 4, 4).int(), torch.zeros(1, 2, 4, 4)), TypeError, "got torch.int32"),
    (
        lambda: ops.warp2d(torch.zeros(1, 3, 4, 4), torch.zeros(1, 2, 4, 4).double()),
        TypeError,
        "flow must have input's",
    ),
    (lambda: ops.warp2d(torch.zeros(1, 3, 4, 4), torch.zeros(1, 2, 4, 4, device="meta")), ValueError, "on one device"),
    (
        lambda: ops.warp2d(torch.zeros(1, 3, 4, 4), torch.zeros(1, 2, 4, 4), "cubic"),
        ValueError,
        "mode must be 'bilinear'",
    ),
    (
        lambda: ops.warp2d(torch.zeros(1, 3, 4, 4), torch.zeros(1, 2, 4, 4), padding_mode="reflection"),
        ValueError,
        "padding_mode must be 'zeros' or 'border', got 'reflection'",
    ),
    (lambda: ops.affine_warp2d(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 3)), ValueError, r"matrix.shape must be"),
    (lambda: ops.affine_warp2d(torch.zeros(1, 3, 4, 4), torch.eye(2, 3)), ValueError, "matrix must have 3 dimensions"),
    (
        lambda: ops.affine_warp2d(torch.zeros(1, 3, 4, 4), torch.zeros(1, 2, 3).int()),
        TypeError,
        "matrix must be float64",
    ),
    (lambda: ops.affine_warp2d(torch.zeros(1, 3, 4, 4), torch.eye(2, 3)[None], (-1, 4)), ValueError, "size must be"),
    (
        lambda: ops.affine_warp2d(torch.zeros(1, 3, 4, 4), torch.eye(2, 3)[None], mode="area"),
        ValueError,
        "affine_warp2d: mode",
    ),
]


@pytest.mark.parametrize("error", ERRORS, ids=[message for *_, message in ERRORS])
def test_errors(error):
    call, kind, message = error
    for way in ways("warp2d"):
        if way.device == "cpu":
            with running(way), pytest.raises(kind, match=message):
                call()


def test_a_singular_matrix_is_no_error():
    output = ops.affine_warp2d(torch.ones(1, 1, 3, 3), torch.zeros(1, 2, 3))
    assert all(math.isnan(v) or v == 0 for v in output.flatten().tolist())
