# SPDX-License-Identifier: Apache-2.0
"""Clause 8.4.4.2 of H.265 read word by word: p[x, y] in a dictionary, a loop for every "with x = 0..nTbS - 1"."""

import itertools

ANGLE = [None, None, 32, 26, 21, 17, 13, 9, 5, 2, 0, -2, -5, -9, -13, -17, -21, -26, -32]
ANGLE += [-26, -21, -17, -13, -9, -5, -2, 0, 2, 5, 9, 13, 17, 21, 26, 32]
INVERSE = dict(zip(range(11, 26), (-4096, -1638, -910, -630, -482, -390, -315, -256), strict=False))
INVERSE |= dict(zip(range(19, 26), (-315, -390, -482, -630, -910, -1638, -4096), strict=True))


def places(n):
    """Of a border in the order of the standard's substitution process."""
    return [(-1, y) for y in range(2 * n - 1, -2, -1)] + [(x, -1) for x in range(2 * n)]


def predict(samples, available, mode, bit_depth, nearest, luma=True, chroma444=False, strong=True):
    """A block as a list of rows, from a border and whether each of its samples is available."""
    n = len(samples) // 4
    p = dict(zip(places(n), map(int, samples), strict=True))
    there = dict(zip(places(n), map(bool, available), strict=True))
    substitute(p, there, n, bit_depth)
    if luma or chroma444:
        p = filtered(p, mode, n, bit_depth, luma, strong)
    if mode == 0:
        return planar(p, n)
    if mode == 1:
        return dc(p, n, luma)
    return angular(p, mode, n, bit_depth, nearest, luma)


def substitute(p, there, n, bit_depth):  # 8.4.4.2.2
    order = places(n)
    if not any(there.values()):
        for at in order:
            p[at] = 1 << (bit_depth - 1)
        return
    if not there[-1, 2 * n - 1]:
        p[-1, 2 * n - 1] = next(p[at] for at in order if there[at])
    for before, at in itertools.pairwise(order):
        if not there[at]:
            p[at] = p[before]


def filtered(p, mode, n, bit_depth, luma, strong):  # 8.4.4.2.3
    if mode == 1 or n == 4:
        return p
    threshold = {8: 7, 16: 1, 32: 0, 64: 0}[n]
    if min(abs(mode - 26), abs(mode - 10)) <= threshold:
        return p
    f, end, limit = {}, 2 * n - 1, 1 << (bit_depth - 5)
    straight = (
        strong
        and luma
        and n >= 32
        and abs(p[-1, -1] + p[end, -1] - 2 * p[n - 1, -1]) < limit
        and abs(p[-1, -1] + p[-1, end] - 2 * p[-1, n - 1]) < limit
    )
    f[-1, end], f[end, -1] = p[-1, end], p[end, -1]
    if straight:
        shift = n.bit_length()  # 6 of 32
        f[-1, -1] = p[-1, -1]
        for i in range(end):
            f[-1, i] = ((end - i) * p[-1, -1] + (i + 1) * p[-1, end] + n) >> shift
            f[i, -1] = ((end - i) * p[-1, -1] + (i + 1) * p[end, -1] + n) >> shift
        return f
    f[-1, -1] = (p[-1, 0] + 2 * p[-1, -1] + p[0, -1] + 2) >> 2
    for i in range(end):
        f[-1, i] = (p[-1, i + 1] + 2 * p[-1, i] + p[-1, i - 1] + 2) >> 2
        f[i, -1] = (p[i - 1, -1] + 2 * p[i, -1] + p[i + 1, -1] + 2) >> 2
    return f


def planar(p, n):  # 8.4.4.2.4
    return [
        [
            ((n - 1 - x) * p[-1, y] + (x + 1) * p[n, -1] + (n - 1 - y) * p[x, -1] + (y + 1) * p[-1, n] + n)
            >> n.bit_length()
            for x in range(n)
        ]
        for y in range(n)
    ]


def dc(p, n, luma):  # 8.4.4.2.5
    value = (sum(p[x, -1] for x in range(n)) + sum(p[-1, y] for y in range(n)) + n) >> n.bit_length()
    block = [[value] * n for _ in range(n)]
    if luma and n < 32:
        block[0][0] = (p[-1, 0] + 2 * value + p[0, -1] + 2) >> 2
        for i in range(1, n):
            block[0][i] = (p[i, -1] + 3 * value + 2) >> 2
            block[i][0] = (p[-1, i] + 3 * value + 2) >> 2
    return block


def angular(p, mode, n, bit_depth, nearest, luma):  # 8.4.4.2.6
    angle, vertical = ANGLE[mode], mode >= 18
    side = (lambda i: p[i, -1]) if vertical else (lambda i: p[-1, i])
    other = (lambda i: p[-1, i]) if vertical else (lambda i: p[i, -1])
    ref = {x: side(x - 1) for x in range(n + 1)}
    if angle < 0:
        if (n * angle) >> 5 < -1:
            for x in range((n * angle) >> 5, 0):
                ref[x] = other(-1 + ((x * INVERSE[mode] + 128) >> 8))
    else:
        for x in range(n + 1, 2 * n + 1):
            ref[x] = side(x - 1)
    block = [[0] * n for _ in range(n)]
    for along in range(n):
        for across in range(n):
            i, f = ((across + 1) * angle) >> 5, ((across + 1) * angle) & 31
            if f == 0:
                value = ref[along + i + 1]
            elif nearest:
                value = ref[along + i + 2] if f >= 16 else ref[along + i + 1]
            else:
                value = ((32 - f) * ref[along + i + 1] + f * ref[along + i + 2] + 16) >> 5
            x, y = (along, across) if vertical else (across, along)
            block[y][x] = value
    if mode in (10, 26) and luma and n < 32:
        for i in range(n):
            value = min(max(side(0) + ((other(i) - p[-1, -1]) >> 1), 0), (1 << bit_depth) - 1)
            if vertical:
                block[i][0] = value
            else:
                block[0][i] = value
    return block
