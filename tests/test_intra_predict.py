# SPDX-License-Identifier: Apache-2.0
"""flexor.ops.intra_predict: the standard read literally, every instruction set, and what must hold of any border."""

import functools
import sys
import types

import flexor
import hypothesis.extra.numpy as hnp
import intra_standard
import numpy as np
import pytest
import torch
from flexor import _C, ops
from flexor.reference.intra_predict import FRACTIONAL
from flexor.testing import Way, running, ways
from hypothesis import given, settings
from hypothesis import strategies as st

SIZES = (4, 8, 16, 32, 64)
WHOLE = tuple(mode for mode in range(35) if mode not in FRACTIONAL)
WAYS = [way for way in ways("intra_predict") if way.backend == "cpu"]


def borders(blocks: int, size: int, bit_depth: int = 8, seed: int = 0) -> np.ndarray:
    """Noise, steps between the extremes, and nearly straight lines, in turn."""
    random = np.random.default_rng(seed)
    most = (1 << bit_depth) - 1
    noise = random.integers(0, most, (blocks, 4 * size + 1), endpoint=True)
    steps = most * (random.random(noise.shape) < 0.5)
    slope = random.integers(0, most, (blocks, 1)) + np.arange(4 * size + 1) // 3 + random.integers(0, 2, noise.shape)
    kinds = np.stack([noise, steps, np.minimum(slope, most)])
    return kinds[np.arange(blocks) % 3, np.arange(blocks)].astype(np.uint16)


def literal(border, modes, bit_depth=8, available=None, **options):
    there = np.ones(border.shape, bool) if available is None else available
    nearest = options.pop("nearest", False)
    return np.array(
        [
            intra_standard.predict(b, a, int(m), bit_depth, nearest, **options)
            for b, a, m in zip(border, there, modes, strict=True)
        ]
    )


@pytest.mark.parametrize("size", SIZES)
def test_reference_is_the_standard(size):
    """All modes, both interpolations, holes in the border."""
    modes = np.arange(35 if size > 16 else 105) % 35
    border = borders(len(modes), size, 10, seed=size)
    random = np.random.default_rng(size)
    available = random.random(border.shape) < random.choice([0.02, 0.5, 1], (len(modes), 1))
    for nearest in (False, True):
        interpolation = "nearest" if nearest else "bilinear"
        found = ops.intra_predict(
            border, modes, bit_depth=10, interpolation=interpolation, available=available, backend="reference"
        )
        assert (found == literal(border, modes, 10, available, nearest=nearest)).all()


@pytest.mark.parametrize("component", ["chroma", "chroma444"])
@pytest.mark.parametrize("size", [4, 16, 32])
def test_chroma_is_the_standard(component, size):
    border, modes = borders(70, size), np.arange(70) % 35
    found = ops.intra_predict(border, modes, component=component)
    assert (found == literal(border, modes, luma=False, chroma444=component == "chroma444")).all()


def test_switches():
    border, modes = borders(105, 32), np.arange(105) % 35
    smooth = ops.intra_predict(border, modes, strong_smoothing=False)
    assert (smooth == literal(border, modes, strong=False)).all()
    assert (smooth != ops.intra_predict(border, modes)).any()
    plain = ops.intra_predict(border, modes, component="chroma")
    assert (plain == ops.intra_predict(border, modes, smoothing=False, edge_filter=False)).all()


DEPTHS = ((8, np.uint8), (8, np.int32), (9, np.int16), (10, np.uint16), (12, np.uint16))


@functools.cache
def case(size, bit_depth, dtype, interpolation):
    """Arguments of a call, and what it gives."""
    blocks = 1000 // size + 35
    modes = np.random.default_rng(1).permutation(np.arange(blocks) % 35)
    args = (borders(blocks, size, bit_depth, seed=bit_depth).astype(dtype), modes)
    options = {"bit_depth": bit_depth, "interpolation": interpolation}
    return args, options, ops.intra_predict(*args, **options, backend="reference")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_forward(way, size, threads):
    """Every instruction set, every depth and dtype: the same bits."""
    for bit_depth, dtype in DEPTHS:
        for interpolation in ("bilinear", "nearest"):
            args, options, expected = case(size, bit_depth, dtype, interpolation)
            with running(way, threads):
                found = ops.intra_predict(*args, **options)
            assert found.dtype == dtype and (found == expected).all()


@pytest.mark.parametrize("size", SIZES)
def test_plain_kernels_agree(size):
    border = torch.from_numpy(borders(350, size, 12))
    mode = torch.arange(350) % 35
    for nearest in (False, True):
        outputs = [border.new_empty(350, size, size) for _ in range(2)]
        for output, reference in zip(outputs, (False, True), strict=True):
            assert _C.intra_predict(output, border, mode, None, 12, nearest, True, True, True, reference)
        assert torch.equal(*outputs)


def test_strides_and_kinds():
    border = borders(40, 8).astype(np.uint8)
    expected = ops.intra_predict(border, 20)
    wide = np.zeros((80, 99), np.uint8)
    wide[::2, ::3] = border
    assert (ops.intra_predict(wide[::2, ::3], 20) == expected).all()
    assert (ops.intra_predict(border[::-1, ::1], 20) == expected[::-1]).all()
    frozen = border.copy()
    frozen.flags.writeable = False
    assert (ops.intra_predict(frozen, 20) == expected).all()
    transposed = torch.from_numpy(border).T.contiguous().T
    found = ops.intra_predict(transposed, torch.full((40,), 20, dtype=torch.uint8))
    assert isinstance(found, torch.Tensor) and (found.numpy() == expected).all()
    spread = torch.from_numpy(border[:1]).expand(40, -1)
    there = torch.ones(1, 1, dtype=torch.bool).expand(40, 33)
    assert (ops.intra_predict(spread, 20, available=there).numpy() == expected[:1]).all()


def test_cupy_arrays(monkeypatch):
    class Ndarray:
        def __init__(self, tensor):
            self.tensor = tensor

        def __dlpack__(self, **options):
            return self.tensor.__dlpack__(**options)

        def __dlpack_device__(self):
            return self.tensor.__dlpack_device__()

    Ndarray.__module__ = "cupy"
    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(from_dlpack=Ndarray))
    border = torch.from_numpy(borders(10, 8))
    found = ops.intra_predict(Ndarray(border), 3)
    assert type(found) is Ndarray and torch.equal(found.tensor, ops.intra_predict(border, 3))


@pytest.mark.parametrize("size", SIZES)
def test_no_blocks(size):
    assert ops.intra_predict(np.empty((0, 4 * size + 1), np.uint8), 0).shape == (0, size, size)


def test_many_blocks():
    """More than a thread takes at once, sorted and unsorted, one by one the same."""
    border, modes = borders(30000, 4).astype(np.uint8), np.random.default_rng(0).integers(0, 35, 30000)
    found = ops.intra_predict(border, modes)
    order = np.argsort(modes, kind="stable")
    assert (found[order] == ops.intra_predict(border[order], modes[order])).all()
    assert (found[-7:] == ops.intra_predict(border[-7:], modes[-7:])).all()


BORDERS = st.sampled_from(SIZES[:4]).flatmap(
    lambda n: st.integers(8, 12).flatmap(
        lambda depth: st.tuples(
            hnp.arrays(np.uint16, (1, 4 * n + 1), elements=st.integers(0, (1 << depth) - 1)), st.just(depth)
        )
    )
)
LIMITS = settings(max_examples=25, deadline=None, derandomize=True, database=None)


@LIMITS
@given(BORDERS, st.integers(0, 34), st.booleans())
def test_any_border(drawn, mode, nearest):
    """What the standard says, whatever the samples."""
    border, depth = drawn
    found = ops.intra_predict(border, mode, bit_depth=depth, interpolation="nearest" if nearest else "bilinear")
    assert (found == literal(border, [mode], depth, nearest=nearest)).all()


@LIMITS
@given(st.sampled_from(SIZES), st.integers(0, 255), st.integers(0, 34), st.sampled_from(["bilinear", "nearest"]))
def test_a_flat_border_gives_a_flat_block(size, value, mode, interpolation):
    border = np.full((1, 4 * size + 1), value, np.uint8)
    assert (ops.intra_predict(border, mode, interpolation=interpolation) == value).all()


@LIMITS
@given(BORDERS)
def test_nearest_changes_fractional_modes_only(drawn):
    border, depth = drawn
    border = border.repeat(35, 0)
    a = ops.intra_predict(border, np.arange(35), bit_depth=depth)
    b = ops.intra_predict(border, np.arange(35), bit_depth=depth, interpolation="nearest")
    assert (a[list(WHOLE)] == b[list(WHOLE)]).all()
    raw = ops.intra_predict(border, np.arange(35), bit_depth=depth, interpolation="nearest", component="chroma")
    fractional = raw[list(FRACTIONAL)]
    assert np.isin(fractional, border[0]).all()  # a sample of the border, never one between two


@LIMITS
@given(BORDERS, st.integers(2, 34), st.booleans())
def test_horizontal_modes_are_vertical_ones_transposed(drawn, mode, nearest):
    border, depth = drawn
    args = {"bit_depth": depth, "interpolation": "nearest" if nearest else "bilinear"}
    a = ops.intra_predict(border, mode, **args)
    b = ops.intra_predict(np.ascontiguousarray(border[:, ::-1]), 36 - mode, **args)
    assert (a == b.swapaxes(1, 2)).all()


@LIMITS
@given(BORDERS, st.integers(0, 34), st.integers(0, 30))
def test_brighter_borders_give_brighter_blocks(drawn, mode, offset):
    """Without the rule for straight borders and where nothing is clipped, a constant passes through."""
    border, _ = drawn
    border = border >> 1
    args = {"bit_depth": 12, "strong_smoothing": False, "edge_filter": False}
    assert (ops.intra_predict(border + offset, mode, **args) == ops.intra_predict(border, mode, **args) + offset).all()


def test_errors():
    border = np.zeros((3, 33), np.uint8)
    fails = [
        (TypeError, "border must be an array of NumPy, CuPy or torch, got list", [[0]], 0, {}),
        (TypeError, "border must be uint8, int16, uint16 or int32, got float64", border * 1.0, 0, {}),
        (TypeError, "border has a dtype that no kernel takes, >u2", border.astype(">u2"), 0, {}),
        (TypeError, "must be a strided tensor", torch.zeros(3, 33, dtype=torch.int32).to_sparse(), 0, {}),
        (ValueError, r"border must be \(N, 4\*n\+1\), got \(33,\)", border[0], 0, {}),
        (ValueError, r"4 \* n \+ 1 = 17, 33, 65, 129 or 257 samples a block, got \(3, 32\)", border[:, 1:], 0, {}),
        (ValueError, "mode must be 0 to 34, got 35", border, 35, {}),
        (ValueError, "mode must be 0 to 34, got -1 at 1", border, np.array([0, -1, 99]), {}),
        (ValueError, r"mode must be one a block = \(3,\), got \(2,\)", border, np.array([0, 1]), {}),
        (TypeError, "mode must be an int or integers, got torch.float64", border, np.zeros(3), {}),
        (TypeError, "mode must be an array of NumPy, CuPy or torch, got str", border, "dc", {}),
        (ValueError, "bit_depth must be 8 to 12, got 7", border, 0, {"bit_depth": 7}),
        (
            ValueError,
            "interpolation must be 'bilinear' or 'nearest', got 'cubic'",
            border,
            0,
            {"interpolation": "cubic"},
        ),
        (ValueError, "component must be 'luma' or 'chroma' or 'chroma444', got 'cb'", border, 0, {"component": "cb"}),
        (TypeError, "available must be bool, got torch.uint8", border, 0, {"available": border}),
        (ValueError, r"available must be shaped like border = \(3, 33\)", border, 0, {"available": border[:2] > 0}),
        (RuntimeError, "backend 'triton' cannot run", border, 0, {"backend": "triton"}),
    ]
    for kind, message, *args, options in fails:
        with pytest.raises(kind, match=message):
            ops.intra_predict(*args, **options)
    high = np.zeros((3, 33), np.int32)
    high[2, 32] = 1024
    for backend in ("cpu", "reference"):
        with pytest.raises(ValueError, match=r"hold 0 to 1023 \(bit_depth 10\), got 1024 at \(2, 32\)"):
            ops.intra_predict(high, 0, bit_depth=10, backend=backend)
        with pytest.raises(ValueError, match=r"hold 0 to 1023 \(bit_depth 10\), got -1 at \(2, 32\)"):
            ops.intra_predict(np.minimum(high, 1) * -1, 0, bit_depth=10, backend=backend)


def test_the_binding_checks_memory():
    border, mode = torch.zeros(3, 33, dtype=torch.int16), torch.zeros(3, dtype=torch.int64)
    output = torch.zeros(3, 8, 8, dtype=torch.int16)

    def call(output=output, border=border, mode=mode, available=None, depth=8):
        _C.intra_predict(output, border, mode, available, depth, False, True, True, True)

    for message, change in [
        ("output must be \\(N, n, n\\)", {"output": output[:, :4]}),
        ("output must be contiguous", {"output": output.mT}),
        ("output must be contiguous", {"output": output.int()}),
        ("4 \\* n \\+ 1", {"border": border[:, :18]}),
        ("border must be \\(N, 4", {"border": border.float()}),
        ("mode must be int64", {"mode": mode.int()}),
        ("mode must be \\(N\\)", {"mode": mode[:2]}),
        ("available must be bool", {"available": border}),
        ("bit_depth must be 8 to 12", {"depth": 16}),
    ]:
        with pytest.raises(ValueError, match=message):
            call(**change)


@pytest.mark.compiles
def test_compiles():
    border, mode = torch.from_numpy(borders(5, 8).astype(np.uint8)), torch.tensor([0, 1, 10, 20, 34])
    args = border, mode, None, 8, False, "luma", True, True, True, None
    torch.library.opcheck(torch.ops.flexor.intra_predict, args)
    compiled = torch.compile(lambda b, m: ops.intra_predict(b, m) + 1, fullgraph=True, backend="eager")
    assert torch.equal(compiled(border, mode), ops.intra_predict(border, mode) + 1)


def test_explained():
    text = flexor.explain("intra_predict", torch.zeros(1, 17, dtype=torch.uint8))
    assert "cpu (the first that can)" in text


def test_ways():
    assert Way("cpu", _C.active_isa(), "cpu") in WAYS
