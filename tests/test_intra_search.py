# SPDX-License-Identifier: Apache-2.0
"""flexor.ops.intra_search: literal prediction and costs, every instruction set, pictures of any size."""

import functools

import intra_standard
import numpy as np
import pytest
import torch
from flexor import _C, ops
from flexor.ops import INTRA_CANDIDATES
from flexor.testing import running, ways

SIZES = (4, 8, 16, 32, 64)
WAYS = [way for way in ways("intra_search") if way.backend == "cpu"]


def picture(batch: int, height: int, width: int, bit_depth: int = 8, seed: int = 0) -> np.ndarray:
    """Noise at the left, steps between the extremes, a slope at the right."""
    random = np.random.default_rng(seed)
    most = (1 << bit_depth) - 1
    shape = batch, height, width
    slope = np.minimum(np.add.outer(np.arange(height), np.arange(width)) // 2 + random.integers(0, 2, shape), most)
    noise, steps = random.integers(0, most, shape, endpoint=True), most * random.integers(0, 2, shape)
    kind = np.arange(width) * 3 // width
    return np.select([kind == 0, kind == 1], [noise, steps], slope).astype(np.uint16)


def coded_before(x, y, at_x, at_y, size, ctb):
    """Both in the order of coding: a list of all blocks, tree by tree, split in four until they are of this size."""

    def blocks(left, top, side):
        if side == size:
            return [(left, top)]
        half = side // 2
        quarters = [(left, top), (left + half, top), (left, top + half), (left + half, top + half)]
        return [block for quarter in quarters for block in blocks(*quarter, half)]

    trees = [(at // ctb * ctb) for at in (x, y, at_x, at_y)]
    if (trees[1], trees[0]) != (trees[3], trees[2]):
        return (trees[1], trees[0]) < (trees[3], trees[2])
    order = blocks(trees[0], trees[1], ctb)
    return order.index((x // size * size, y // size * size)) < order.index((at_x, at_y))


def hadamard(block):
    matrix = np.array([[(-1) ** bin(i & j).count("1") for j in range(len(block))] for i in range(len(block))])
    return matrix @ block @ matrix


def literal_costs(image, x, y, size, metric, bit_depth, ctb):
    height, width = image.shape
    samples, available = [], []
    for dx, dy in intra_standard.places(size):
        at_x, at_y = x + dx, y + dy
        inside = 0 <= at_x < width and 0 <= at_y < height
        available.append(inside and (ctb is None or coded_before(at_x, at_y, x, y, size, ctb)))
        samples.append(image[at_y, at_x] if inside else 0)
    rows, columns = (np.minimum(np.arange(size) + at, end - 1) for at, end in ((y, height), (x, width)))
    block = image[np.ix_(rows, columns)].astype(int)
    costs = []
    for mode, interpolation in INTRA_CANDIDATES:
        nearest = interpolation == "nearest"
        difference = block - intra_standard.predict(samples, available, mode, bit_depth, nearest)
        if metric == "sad":
            costs.append(abs(difference).sum())
        elif size == 4:
            costs.append((abs(hadamard(difference)).sum() + 1) // 2)
        else:
            parts = [difference[i : i + 8, j : j + 8] for i in range(0, size, 8) for j in range(0, size, 8)]
            costs.append(sum((abs(hadamard(part)).sum() + 2) // 4 for part in parts))
    return costs


@pytest.mark.parametrize(
    ("size", "ctb"), [(size, ctb) for size in SIZES for ctb in (None, 16, 64) if ctb is None or ctb >= size]
)
@pytest.mark.parametrize("metric", ["satd", "sad"])
def test_reference_is_the_standard(size, metric, ctb):
    """Some blocks of a picture that no size divides, borders and corners among them."""
    image = picture(1, 75, 101, 10, seed=size)
    found = ops.intra_search(image, size=size, metric=metric, bit_depth=10, ctb_size=ctb, backend="reference")[0]
    rows, columns = found.shape[:2]
    assert (rows, columns) == (-(-75 // size), -(-101 // size))
    places = [(0, 0), (0, columns - 1), (rows - 1, 0), (rows - 1, columns - 1)]
    places += [(row, column) for row in (1, 2, 3) for column in (1, 2, 3)] if size < 32 else []
    for row, column in places[: 5 if size == 16 else None]:
        expected = literal_costs(image[0], column * size, row * size, size, metric, 10, ctb)
        assert found[row, column].tolist() == expected


CASES = [
    ((2, 37, 70), 8, np.uint8),
    ((1, 64, 133), 9, np.int16),
    ((1, 65, 40), 10, np.int32),
    ((1, 66, 129), 12, np.uint16),
    ((1, 1, 1), 8, np.uint8),
]


@functools.cache
def case(number, size, metric, ctb):
    shape, bit_depth, dtype = CASES[number]
    pictures = picture(*shape, bit_depth, seed=number).astype(dtype)
    options = {"size": size, "metric": metric, "bit_depth": bit_depth, "ctb_size": ctb}
    return pictures, options, ops.intra_search(pictures, **options, backend="reference")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_forward(way, size, threads):
    """Every instruction set: the same costs, and the same best ones."""
    for number in range(len(CASES)):
        for metric, ctb in (("satd", 64), ("sad", None)):
            pictures, options, expected = case(number, size, metric, ctb)
            with running(way, threads):
                costs = ops.intra_search(pictures, **options)
                best = ops.intra_search(pictures, **options, best=5)
            assert costs.dtype == np.int32 and (costs == expected).all()
            order = np.argsort(expected, axis=3, kind="stable")[..., :5]
            assert best.candidates.dtype == np.uint8 and (best.candidates == order).all()
            assert (best.costs == np.take_along_axis(expected, order, 3)).all()


@pytest.mark.parametrize("size", SIZES)
def test_plain_kernels_agree(size):
    pictures = torch.from_numpy(picture(1, 66, 130, 12))
    shape = 1, -(-66 // size), -(-130 // size), 63
    for satd in (False, True):
        found = [torch.empty(shape, dtype=torch.int32) for _ in range(2)]
        for costs, reference in zip(found, (False, True), strict=True):
            assert _C.intra_search(costs, None, pictures, size, satd, True, 12, True, 64, reference)
        assert torch.equal(*found)
        kept, which = (torch.empty((*shape[:3], 7), dtype=dtype) for dtype in (torch.int32, torch.uint8))
        assert _C.intra_search(kept, which, pictures, size, satd, True, 12, True, 64, True)
        assert torch.equal(kept, found[0].sort(3).values[..., :7])


def test_candidates():
    assert len(INTRA_CANDIDATES) == 63 and len(set(INTRA_CANDIDATES)) == 63
    assert INTRA_CANDIDATES[:35] == tuple((mode, "bilinear") for mode in range(35))
    pictures = picture(1, 40, 40)
    costs = ops.intra_search(pictures)
    assert (ops.intra_search(pictures, modes="bilinear") == costs[..., :35]).all()
    best = ops.intra_search(pictures, best=63)
    assert (np.sort(best.candidates) == np.arange(63)).all() and (np.diff(best.costs) >= 0).all()
    reference = ops.intra_search(pictures, best=63, backend="reference")
    assert all((a == b).all() for a, b in zip(best, reference, strict=True))


def test_a_direction_is_found():
    """Stripes along an angle cost nothing in its mode; blocks of 4 smooth no borders."""
    y, x = np.mgrid[:64, :64]
    for modes, slope in (((2, 34), -1), ((18,), 1), ((26,), 0)):
        stripes = ((x - slope * y) % 7 * 30).astype(np.uint8)[None]
        best = ops.intra_search(stripes, size=4, best=1, ctb_size=None)
        middle = np.s_[0, 1:-1, 1:-1, 0]
        assert np.isin(best.candidates[middle], modes).all() and not best.costs[middle].any()


def test_flat_pictures_cost_nothing():
    costs = ops.intra_search(np.full((1, 100, 30), 77, np.uint8), size=16)
    assert not costs[:, 1:].any() and costs[0, 0, 0].all()  # the first block has nothing to be predicted from


def test_strides_and_kinds():
    pictures = picture(3, 40, 50).astype(np.uint8)
    expected = ops.intra_search(pictures)
    wide = np.zeros((3, 80, 150), np.uint8)
    wide[:, ::2, ::3] = pictures
    assert (ops.intra_search(wide[:, ::2, ::3]) == expected).all()
    turned = torch.from_numpy(np.ascontiguousarray(pictures.transpose(2, 0, 1))).permute(1, 2, 0)
    found = ops.intra_search(turned)
    assert isinstance(found, torch.Tensor) and (found.numpy() == expected).all()
    assert (ops.intra_search(torch.from_numpy(pictures[:1]).expand(4, -1, -1))[3].numpy() == expected[0]).all()
    assert ops.intra_search(pictures[:0]).shape == (0, 5, 7, 63)


_BAD_CTB = {"size": 16, "ctb_size": 8}


def test_errors():
    pictures = np.zeros((1, 20, 20), np.int32)
    fails = [
        (TypeError, "pictures must be an array of NumPy, CuPy or torch, got list", [[0]], {}),
        (TypeError, "pictures must be uint8, int16, uint16 or int32, got int64", pictures.astype(np.int64), {}),
        (ValueError, r"pictures must be \(B, H, W\), got \(20, 20\)", pictures[0], {}),
        (ValueError, r"1 to 2\*\*30 - 1 rows and columns, got \(1, 0, 20\)", pictures[:, :0], {}),
        (ValueError, "size must be 4, 8, 16, 32 or 64, got 12", pictures, {"size": 12}),
        (ValueError, "ctb_size must be None or a power of 2 from size 16 to 64, got 8", pictures, _BAD_CTB),
        (ValueError, "metric must be 'satd' or 'sad', got 'sse'", pictures, {"metric": "sse"}),
        (ValueError, "modes must be 'all' or 'bilinear', got 'some'", pictures, {"modes": "some"}),
        (ValueError, "best must be None or 1 to 35, got 36", pictures, {"modes": "bilinear", "best": 36}),
        (ValueError, "bit_depth must be 8 to 12, got 16", pictures, {"bit_depth": 16}),
        (ValueError, r"hold 0 to 255 \(bit_depth 8\), got 256 at \(0, 19, 3\)", pictures + 256 * _one(19, 3), {}),
        (ValueError, r"hold 0 to 255 \(bit_depth 8\), got -1 at \(0, 0, 0\)", pictures - _one(0, 0), {}),
        (RuntimeError, "backend 'triton' cannot run", pictures, {"backend": "triton"}),
    ]  # fmt: skip
    for kind, message, value, options in fails:
        with pytest.raises(kind, match=message):
            ops.intra_search(value, **options)
    with pytest.raises(ValueError, match="got 256 at"):
        ops.intra_search(pictures + 256, backend="reference")


def _one(row: int, column: int) -> np.ndarray:
    image = np.zeros((1, 20, 20), np.int32)
    image[0, row, column] = 1
    return image


def test_the_binding_checks_memory():
    pictures, costs = torch.zeros(1, 20, 20, dtype=torch.uint8), torch.zeros(1, 3, 3, 63, dtype=torch.int32)

    def call(costs=costs, candidates=None, pictures=pictures, size=8, depth=8, ctb=64):
        _C.intra_search(costs, candidates, pictures, size, True, True, depth, True, ctb)

    for message, change in [
        ("costs must be \\(B, rows", {"costs": costs[:, :2]}),
        ("costs must be contiguous int32", {"costs": costs.long()}),
        ("costs must be contiguous int32", {"costs": costs.transpose(1, 2)}),
        ("a cost for every candidate", {"costs": costs[..., :62].contiguous()}),
        ("candidates must be shaped like costs", {"candidates": costs[..., :5]}),
        ("candidates must be contiguous uint8", {"candidates": costs}),
        ("pictures must be \\(B, H, W\\)", {"pictures": pictures.float()}),
        ("H and W must be", {"pictures": pictures[:, :0]}),
        ("size must be 4", {"size": 5}),
        ("ctb_size must be 0 or", {"ctb": 4}),
        ("bit_depth must be 8 to 12", {"depth": 13}),
    ]:
        with pytest.raises(ValueError, match=message):
            call(**change)


@pytest.mark.compiles
def test_compiles():
    pictures = torch.from_numpy(picture(1, 20, 30))
    for best in (None, 3):
        args = pictures, 8, "satd", True, best, 8, True, 64, None
        torch.library.opcheck(torch.ops.flexor.intra_search, args)
    compiled = torch.compile(lambda p: ops.intra_search(p, best=2).costs + 1, fullgraph=True, backend="eager")
    assert torch.equal(compiled(pictures), ops.intra_search(pictures, best=2).costs + 1)
