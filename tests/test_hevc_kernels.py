# SPDX-License-Identifier: Apache-2.0
"""The decoder's transforms and loop filters: on vectors as the standard words them, on every instruction set.

That their wording is the standard's is seen in test_hevc_matrix.py: streams of other encoders carry hashes.
"""

import itertools

import numpy as np
import pytest
from flexor import _C

ISAS = _C.available_isas()
DEPTHS = (8, 10, 12)
SIZES = (4, 8, 16, 32)


@pytest.fixture(params=ISAS)
def isa(request):
    before = _C.active_isa()
    _C.set_isa(request.param)
    yield request.param
    _C.set_isa(before)


def blocks(rng, count, n, style):
    """Residuals or coefficients: anything, only the extremes, or few and small as in streams."""
    if style == "any":
        return rng.integers(-32768, 32768, (count, n, n)).astype(np.int16)
    if style == "extreme":
        return rng.choice([-32768, 32767], (count, n, n)).astype(np.int16)
    return np.where(rng.random((count, n, n)) < 0.1, rng.integers(-900, 900, (count, n, n)), 0).astype(np.int16)


def both(function, changed, *arguments):
    """What the kernel and the reference make of copies of an array."""
    results = []
    for reference in (False, True):
        copy = changed.copy()
        function(copy, *arguments, reference)
        results.append(copy)
    return results


def assert_same(function, changed, *arguments):
    fast, slow = both(function, changed, *arguments)
    np.testing.assert_array_equal(fast, slow, err_msg=f"{function.__name__} {arguments[-4:]}")
    return slow


@pytest.mark.parametrize("n", SIZES)
def test_dct_is_a_dct(n):
    """Its factors are rounded cosines: of coefficients that need no clipping it makes nearly the exact transform."""
    rng = np.random.default_rng(0)
    coefficients = rng.integers(-300, 300, (50, n, n)).astype(np.int16)
    k, i = np.mgrid[0:n, 0:n]
    basis = np.where(k == 0, np.sqrt(1 / n), np.sqrt(2 / n) * np.cos(np.pi * k * (2 * i + 1) / (2 * n)))
    scale = n * 64 * 64 / 2 ** (7 + 12)  # each factor is 64 sqrt(n) times the basis
    exact = scale * np.einsum("bkl,ky,lx->byx", coefficients, basis, basis)
    _C.hevc_residual(coefficients, "dct", n, n, 8, True)
    assert np.abs(coefficients - exact).max() < 0.02 * np.abs(exact).max() + 1.5


def test_dst_is_a_dst():
    rng = np.random.default_rng(0)
    coefficients = rng.integers(-300, 300, (50, 4, 4)).astype(np.int16)
    k, i = np.mgrid[0:4, 0:4]
    basis = 2 / 3 * np.sin(np.pi * (2 * k + 1) * (i + 1) / 9)
    exact = np.einsum("bkl,ky,lx->byx", coefficients, basis, basis) * 128 * 128 / 2 ** (7 + 12)
    _C.hevc_residual(coefficients, "dst", 4, 4, 8, True)
    assert np.abs(coefficients - exact).max() < 0.02 * np.abs(exact).max() + 1.5


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("style", ["any", "extreme", "few"])
def test_transforms(isa, n, style):
    rng = np.random.default_rng(n)
    corners = sorted({1, 2, 3, n // 4, n // 2, n // 2 + 1, n})
    for (width, height), depth in itertools.product(itertools.product(corners, corners), DEPTHS):
        coefficients = blocks(rng, 3, n, style)
        coefficients[:, height:] = 0
        coefficients[:, :, width:] = 0
        assert_same(_C.hevc_residual, coefficients, "dct", width, height, depth)
        if n == 4:
            assert_same(_C.hevc_residual, coefficients, "dst", n, n, depth)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("style", ["any", "extreme", "few"])
def test_residuals(isa, n, style):
    rng = np.random.default_rng(n)
    for depth in (8, 9, 12):
        residual = blocks(rng, 4, n, style)
        for kind in ("skip", "rotate", "vertical", "horizontal"):
            assert_same(_C.hevc_residual, residual, kind, n, n, depth)
        for scale, chroma_depth in itertools.product((-8, -1, 0, 4, 8), (8, 12)):
            assert_same(_C.hevc_cross_component, residual, blocks(rng, 4, n, style), scale, depth, chroma_depth)
        samples = rng.integers(0, 1 << depth, (n + 3, 4 * n + 5)).astype(np.uint16)
        assert_same(_C.hevc_add, samples, residual, depth)


def test_residual_formulas():
    rng = np.random.default_rng(0)
    residual = blocks(rng, 2, 8, "few")
    for axis, kind in ((1, "vertical"), (2, "horizontal")):
        _, found = both(_C.hevc_residual, residual, kind, 8, 8, 8)
        np.testing.assert_array_equal(found, np.cumsum(residual, axis))
    _, found = both(_C.hevc_residual, residual, "rotate", 8, 8, 8)
    np.testing.assert_array_equal(found, residual[:, ::-1, ::-1])
    _, found = both(_C.hevc_residual, residual, "skip", 8, 8, 10)
    np.testing.assert_array_equal(found, (residual.astype(int) * 256 + 512) >> 10)


def picture(rng, depth, height, width):
    """Patches of 8x8 that differ a little, or a lot, with little noise or much: every filter finds work."""
    white = (1 << depth) - 1
    steps = rng.integers(0, 60, (height // 8 + 1, width // 8 + 1)) * rng.choice([0, 1, 1, 4])
    noise = rng.integers(0, rng.choice([2, 4, 20, 256]), (height, width))
    patches = np.kron(steps, np.ones((8, 8), int))[:height, :width]
    return ((patches + noise + rng.integers(0, 200)) << (depth - 8)).clip(0, white).astype(np.uint16)


def edges_of(rng, segments, depth, keep):
    edges = np.zeros((segments, 4), np.int16)
    edges[:, 0] = (rng.integers(0, 65, segments) << (depth - 8)) * (rng.random(segments) < 0.8)
    edges[:, 1] = (rng.integers(0, 25, segments) << (depth - 8)) * (rng.random(segments) < 0.8)
    if keep:
        edges[:, 2:] = rng.integers(0, 2, (segments, 2))
    return edges


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("length", [0, 2, 4])
def test_deblocking(isa, depth, length):
    rng = np.random.default_rng(depth + length)
    changed = 0
    for case, segments in enumerate(list(range(1, 20)) * 5):
        lines = segments * (length or 4)
        edges = edges_of(rng, segments, depth, case % 3 == 0)
        samples = picture(rng, depth, 24, lines + 3)
        filtered = assert_same(_C.hevc_deblock, samples, edges, 8, False, length, depth)
        across = assert_same(_C.hevc_deblock, samples.T.copy(), edges, 8, True, length, depth)
        np.testing.assert_array_equal(across.T, filtered)
        changed += (filtered != samples).sum()
        kept = np.repeat(edges[:, 2] != 0, length or 4)
        np.testing.assert_array_equal(filtered[:8, :lines][:, kept], samples[:8, :lines][:, kept])
    assert changed > 1000


@pytest.mark.parametrize("depth", DEPTHS)
def test_sample_adaptive_offset(isa, depth):
    rng = np.random.default_rng(depth)
    for case, width in enumerate([1, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 60, 63, 64, 65, 100]):
        samples = picture(rng, depth, 9, width + 2) if case % 2 else rng.integers(0, 1 << depth, (9, width + 2))
        samples = samples.astype(np.uint16)
        output = np.zeros((7, width), np.uint16)
        for direction in range(4):
            offsets = rng.integers(-124, 125, 5).astype(np.int16)
            assert_same(_C.hevc_sao, output, samples, offsets, direction, depth)
        for first in range(32):
            offsets = np.zeros(32, np.int16)
            offsets[np.arange(first, first + 4) % 32] = rng.integers(-124, 125, 4)
            assert_same(_C.hevc_sao, output, samples, offsets, 0, depth)
        everywhere = rng.integers(-32768, 32768, 32).astype(np.int16)
        found = assert_same(_C.hevc_sao, output, samples, everywhere, 0, depth)
        inside = samples[1:-1, 1:-1].astype(int)
        np.testing.assert_array_equal(found, (inside + everywhere[inside >> (depth - 5)]).clip(0, (1 << depth) - 1))


def test_edge_classes():
    """Valleys, slopes and peaks of each direction get their offsets (table 8-13 and the formula before it)."""
    rng = np.random.default_rng(0)
    samples = rng.integers(0, 4, (20, 30)).astype(np.uint16)
    offsets = np.array([0, 11, 22, 33, 44], np.int16)
    padded = samples.astype(int)
    for direction, (dy, dx) in enumerate([(0, 1), (1, 0), (1, 1), (1, -1)]):
        centre = padded[1:-1, 1:-1]
        one, other = (padded[1 + s * dy : 19 + s * dy, 1 + s * dx : 29 + s * dx] for s in (-1, 1))
        index = np.sign(centre - one) + np.sign(centre - other)
        expected = centre + np.array([11, 22, 0, 33, 44])[index + 2]
        output = np.zeros((18, 28), np.uint16)
        assert_same(_C.hevc_sao, output, samples, offsets, direction, 8)
        np.testing.assert_array_equal(both(_C.hevc_sao, output, samples, offsets, direction, 8)[0], expected)


def test_narrow(isa):
    samples = np.random.default_rng(0).integers(0, 256, 1001).astype(np.uint16)
    for count in (0, 1, 31, 1001):
        output = np.zeros(count, np.uint8)
        np.testing.assert_array_equal(assert_same(_C.hevc_narrow, output, samples[:count]), samples[:count])


def test_errors():
    square = np.zeros((1, 8, 8), np.int16)
    for blocks_, kind, depth, message in [
        (square[0], "dct", 8, "must be \\(count, n, n\\)"),
        (np.zeros((1, 5, 5), np.int16), "dct", 8, "n must be 4, 8, 16 or 32"),
        (square, "dst", 8, "dst has n = 4"),
        (square, "dct", 13, "bit_depth must be 8 to 12"),
        (square, "walsh", 8, "kind must be dct"),
    ]:
        with pytest.raises(ValueError, match=message):
            _C.hevc_residual(blocks_, kind, 1, 1, depth, False)
    with pytest.raises(ValueError, match="place must leave 4 samples"):
        _C.hevc_deblock(np.zeros((16, 16), np.uint16), np.zeros((4, 4), np.int16), 13, False, 0, 8, False)
    with pytest.raises(ValueError, match="one larger than output"):
        _C.hevc_sao(np.zeros((8, 8), np.uint16), np.zeros((9, 9), np.uint16), np.zeros(32, np.int16), 0, 8, False)
    with pytest.raises(TypeError):
        _C.hevc_residual(square.astype(np.int32), "dct", 1, 1, 8, False)
