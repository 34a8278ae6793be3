"""The programs that the GPU runs, in Triton: what one of them computes, and in which order. Their memory and launches,
and why no candidate is missed, are `triton_gpu`'s. Importing this module imports Triton.

Every answer that leaves (`dot_slab`, `weighted_sum`, `total`) is summed in an order fixed by constants, never by
what else is in the batch. There are no atomics.
"""

from __future__ import annotations

from typing import no_type_check  # annotations in here are Triton's, not types to be checked

import triton
import triton.language as tl

# ruff: noqa: PLR0917  a launch passes its arguments by position

TINY = tl.constexpr(2.0**-110)
"""Added to norms: more than the products of numbers below 2^-126 can come to, which tensor cores may take for zero."""
UP = tl.constexpr(1 + 2.0**-20)
"""Makes a bound of what comes out of a few float32 roundings."""


@triton.jit
@no_type_check
def measure(rows, low, norm, lost, D, K, BLOCK: tl.constexpr):
    """One row: bounds from above on ‖row‖ as well as ‖low‖, and on ‖row − low‖. In float64, where squares of float32
    neither overflow nor vanish."""
    row = tl.program_id(0).to(tl.int64)
    exact = tl.zeros([BLOCK], tl.float64)
    apart = tl.zeros([BLOCK], tl.float64)
    for first in range(0, D, BLOCK):
        column = first + tl.arange(0, BLOCK)
        inside = column < D
        v = tl.load(rows + row * D + column, mask=inside, other=0.0).to(tl.float64)
        v_low = tl.load(low + row * K + column, mask=inside, other=0.0).to(tl.float32).to(tl.float64)
        exact += v * v
        apart += (v - v_low) * (v - v_low)
    gap = tl.sqrt(tl.sum(apart, 0)) * UP + TINY
    tl.store(lost + row, gap.to(tl.float32))
    tl.store(norm + row, (tl.sqrt(tl.sum(exact, 0)) * UP + gap).to(tl.float32))


@triton.jit(do_not_specialize=["T"])
@no_type_check
def search(
    x,
    x_norm,
    x_lost,
    token_floor,
    w,
    w_norm,
    w_lost,
    needed,
    b,
    words,
    T,
    F,
    K,
    n_words,
    TOKEN_FLOORS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
):
    """One tile of tokens × features: their low-precision products, and one bit for each that may exceed its floor.

    `x` [T, K] and `w` [F, K] are padded with zeros to whole blocks of BK; `words` [T, n_words] to whole tiles. Tiles
    follow each other down GROUP rows of tiles before they go across, so that both operands stay in the L2 cache.
    """
    tile = tl.program_id(0)
    down, across = tl.cdiv(T, BM), tl.cdiv(F, BN)
    first_down = tile // (GROUP * across) * GROUP
    height = tl.minimum(down - first_down, GROUP)
    m = first_down + tile % (GROUP * across) % height
    n = tile % (GROUP * across) // height

    token = m * BM + tl.arange(0, BM)
    feature = n * BN + tl.arange(0, BN)
    # Beyond the last row the last row is read again; those answers are not stored, or their bits cleared.
    t = tl.minimum(token, T - 1)
    k = tl.arange(0, BK)
    left = x + t.to(tl.int64)[:, None] * K + k[None, :]
    right = w + tl.minimum(feature, F - 1).to(tl.int64)[None, :] * K + k[:, None]
    acc = tl.zeros([BM, BN], tl.float32)
    for _ in range(0, K, BK):
        acc = tl.dot(tl.load(left), tl.load(right), acc, input_precision="ieee")
        left += BK
        right += BK

    # Half of the columns after the other: what is read for them has to find registers beside the sums.
    HALF: tl.constexpr = BN // 2
    first, second = tl.split(tl.permute(tl.reshape(acc, (BM, 2, HALF)), (0, 2, 1)))
    at = words + token.to(tl.int64) * n_words + n * (BN // 32)
    f = n * BN + tl.arange(0, HALF)
    x_norm, x_lost, token_floor = x_norm + t, x_lost + t, token_floor + t
    _mark(first, x_norm, x_lost, token_floor, w_norm, w_lost, needed, b, f, F, at, token < T, TOKEN_FLOORS)
    tl.debug_barrier()
    f, at = f + HALF, at + HALF // 32
    _mark(second, x_norm, x_lost, token_floor, w_norm, w_lost, needed, b, f, F, at, token < T, TOKEN_FLOORS)


@triton.jit
@no_type_check
def _mark(acc, x_norm, x_lost, token_floor, w_norm, w_lost, needed, b, f, F, at, real, TOKEN_FLOORS: tl.constexpr):
    """The bits of some columns of a tile."""
    inside = f < F
    bound = tl.load(needed + f, mask=inside, other=0.0)[None, :]
    if TOKEN_FLOORS:
        bound = tl.maximum(bound, tl.load(token_floor)[:, None] - tl.load(b + f, mask=inside, other=0.0)[None, :])
    bound -= tl.load(x_lost)[:, None] * tl.load(w_norm + f, mask=inside, other=0.0)[None, :]
    bound -= tl.load(x_norm)[:, None] * tl.load(w_lost + f, mask=inside, other=0.0)[None, :]
    below = acc < bound  # False for NaN, on either side: what cannot be excluded is a candidate
    bits = tl.where(below | (f >= F)[None, :], 0, 1) << (f % 32)[None, :]
    word = tl.sum(tl.reshape(bits, (acc.shape[0], acc.shape[1] // 32, 32)), 2)
    tl.store(at[:, None] + tl.arange(0, acc.shape[1] // 32)[None, :], word, mask=real[:, None])


@triton.jit
@no_type_check
def _ones(word):
    """How many bits are set, for uint32: in pairs, in fours, in bytes, and the bytes summed."""
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F
    return ((word * 0x01010101) >> 24).to(tl.int32)


@triton.jit
@no_type_check
def count(words, counts, n_words, BLOCK: tl.constexpr):
    """One token: how many bits are set in its words."""
    row = tl.program_id(0).to(tl.int64)
    total = tl.zeros([BLOCK], tl.int32)
    for first in range(0, n_words, BLOCK):
        at = first + tl.arange(0, BLOCK)
        word = tl.load(words + row * n_words + at, mask=at < n_words, other=0).to(tl.uint32, bitcast=True)
        total += _ones(word)
    tl.store(counts + row, tl.sum(total, 0))


@triton.jit
@no_type_check
def spread(words, offsets, ids, n_words, BLOCK: tl.constexpr):
    """One token: the places of its set bits, ascending, from `offsets[token]` on."""
    row = tl.program_id(0).to(tl.int64)
    start = tl.load(offsets + row)
    bit = tl.arange(0, 32).to(tl.uint32)
    one = tl.full([32], 1, tl.uint32)
    for first in range(0, n_words, BLOCK):
        at = first + tl.arange(0, BLOCK)
        word = tl.load(words + row * n_words + at, mask=at < n_words, other=0).to(tl.uint32, bitcast=True)
        here = _ones(word)
        earlier = tl.cumsum(here, 0) - here
        earlier = earlier[:, None] + _ones(word[:, None] & ((one << bit) - one)[None, :])
        is_set = (word[:, None] >> bit[None, :]) & 1
        tl.store(ids + start + earlier, at[:, None] * 32 + bit[None, :].to(tl.int32), mask=is_set != 0)
        start += tl.sum(here, 0)


@triton.jit
@no_type_check
def dot_slab(
    offsets,
    ids,
    left,
    right,
    out,
    D,
    first_column,
    SHARES: tl.constexpr,
    ENTRIES: tl.constexpr,
    SLAB: tl.constexpr,
):
    """One of the SHARES of one row's entries: `out[entry]` grows by left[row] · right[id] over the columns of one slab.

    The row's own slab stays in registers; the slab of all of `right` is small enough for the L2 cache.
    """
    row = (tl.program_id(0) // SHARES).to(tl.int64)
    share = tl.program_id(0) % SHARES
    column = first_column + tl.arange(0, SLAB)
    inside = column < D
    own = tl.load(left + row * D + column, mask=inside, other=0.0).to(tl.float32)
    end = tl.load(offsets + row + 1)
    for first in range(tl.load(offsets + row) + share * ENTRIES, end, SHARES * ENTRIES):
        entry = first + tl.arange(0, ENTRIES)
        real = entry < end
        row_of = tl.load(ids + entry, mask=real, other=0).to(tl.int64)
        theirs = tl.load(right + row_of[:, None] * D + column[None, :], mask=real[:, None] & inside[None, :], other=0.0)
        before = tl.load(out + entry, mask=real & (first_column > 0), other=0.0)
        tl.store(out + entry, before + tl.sum(theirs.to(tl.float32) * own[None, :], 1), mask=real)


@triton.jit(do_not_specialize=["R"])
@no_type_check
def weighted_sum(
    offsets,
    ids,
    values,
    rows,
    out,
    R,
    D,
    AHEAD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of columns of one row: Σ value · rows[id], entry after entry. All rows of a block of columns before the
    next block: its part of `rows` is small enough for the L2 cache."""
    row = (tl.program_id(0) % R).to(tl.int64)
    column = tl.program_id(0) // R * BLOCK + tl.arange(0, BLOCK)
    inside = column < D
    end = tl.load(offsets + row + 1)
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(tl.load(offsets + row), end, AHEAD):
        for k in tl.static_range(AHEAD):  # their loads do not wait for each other, their additions do
            entry = first + k
            real = entry < end
            row_of = tl.load(ids + entry, mask=real, other=0).to(tl.int64)
            value = tl.load(values + entry, mask=real, other=0.0)
            total += value * tl.load(rows + row_of * D + column, mask=inside & real, other=0.0).to(tl.float32)
    tl.store(out + row * D + column, total, mask=inside)


@triton.jit
@no_type_check
def total(starts, order, values, out, BLOCK: tl.constexpr):
    """One column: Σ value over its entries, which `order` lists next to each other."""
    column = tl.program_id(0).to(tl.int64)
    end = tl.load(starts + column + 1)
    sums = tl.zeros([BLOCK], tl.float32)
    for first in range(tl.load(starts + column), end, BLOCK):
        place = first + tl.arange(0, BLOCK)
        entry = tl.load(order + place, mask=place < end, other=0)
        sums += tl.load(values + entry, mask=place < end, other=0.0)
    tl.store(out + column, tl.sum(sums, 0))
