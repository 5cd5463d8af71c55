"""What a GPU does for log_sums: Triton programs that go through tiles of scale · a bᵀ and keep none of them.

A program has BM rows of a and one part of the columns, the rows of b, BN at a time; it alone writes its results, so
that they are the same every time. Arguments are contiguous: a (n, d) and b (m, d), their numbers of groups, and
`factor` (1,), which multiplies every product. Only launch.py imports this, where Triton is installed.
"""

from __future__ import annotations

from modicum.core.errors import need

triton, tl = need("triton", "test-reference"), need("triton.language", "test-reference")


@triton.jit
def rows_of(z, i, k, n, d):
    """A tile of z (n, d) in float32, zero outside."""
    inside = (i < n)[:, None] & (k < d)[None, :]
    return tl.load(z + i.to(tl.int64)[:, None] * d + k[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def products(
    a,
    b,
    factor,
    i,
    j,
    n,
    m,
    d,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """The tile of factor · a bᵀ at rows i and columns j."""
    s = tl.zeros((BM, BN), tl.float32)
    for start in range(0, d, BK):
        k = start + tl.arange(0, BK)
        s = tl.dot(rows_of(a, i, k, n, d), tl.trans(rows_of(b, j, k, m, d)), s, input_precision=PRECISION)
    return s * tl.load(factor)


@triton.jit
def masks(i, j, n, m, group, other, SYMMETRIC: tl.constexpr, RIVALS: tl.constexpr):
    """Which pairs of a tile are summed, and which are pulled: as Blocks.masks, which says what is left out."""
    inside = (i < n)[:, None] & (j < m)[None, :]
    same = group[:, None] == other[None, :]
    apart = i[:, None] != j[None, :]
    pulled = inside & same & apart if SYMMETRIC else inside & same
    kept = inside & apart if RIVALS else inside & ~same
    return kept, pulled


@triton.jit
def sums(
    a,
    b,
    a_groups,
    b_groups,
    factor,
    results,
    n,
    m,
    d,
    part,
    SYMMETRIC: tl.constexpr,
    RIVALS: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """Of every row, for each part of the columns: maximum, sum of exp(s - maximum), and sum of s over the pulled pairs.

    `results` (3, parts, n) in float32.
    """
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    group = tl.load(a_groups + i, mask=i < n, other=0)
    highest = tl.full((BM,), float("-inf"), tl.float32)
    total, pull = tl.zeros((BM,), tl.float32), tl.zeros((BM,), tl.float32)
    first = tl.program_id(1) * part
    for start in range(first, tl.minimum(first + part, m), BN):
        j = start + tl.arange(0, BN)
        other = tl.load(b_groups + j, mask=j < m, other=0)
        s = products(a, b, factor, i, j, n, m, d, PRECISION, BM, BN, BK)
        kept, pulled = masks(i, j, n, m, group, other, SYMMETRIC, RIVALS)
        pull += tl.sum(tl.where(pulled, s, 0.0), 1)
        s = tl.where(kept, s, float("-inf"))
        higher = tl.maximum(highest, tl.max(s, 1))
        # Where nothing was summed yet, -inf less -inf would be no number.
        near = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(highest - near) + tl.sum(tl.exp(s - near[:, None]), 1)
        highest = higher
    at = results + tl.program_id(1).to(tl.int64) * n + i
    size = tl.num_programs(1).to(tl.int64) * n
    tl.store(at, highest, mask=i < n)
    tl.store(at + size, total, mask=i < n)
    tl.store(at + 2 * size, pull, mask=i < n)


@triton.jit
def gradients(
    a,
    b,
    values,
    a_groups,
    b_groups,
    a_stats,
    b_stats,
    factor,
    results,
    n,
    m,
    d,
    part,
    SYMMETRIC: tl.constexpr,
    RIVALS: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
):
    """The gradient to s times values (m, d), for each part of the columns: `results` (parts, n, d) in float32.

    BD is at least d. The stats (3, n) and (3, m): a log-sum-exp, the gradient to it, and that to a pulled pair.
    """
    i, k = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, BD)
    group = tl.load(a_groups + i, mask=i < n, other=0)
    near, weight = tl.load(a_stats + i, mask=i < n, other=0.0), tl.load(a_stats + n + i, mask=i < n, other=0.0)
    pull = tl.load(a_stats + 2 * n + i, mask=i < n, other=0.0)
    found = tl.zeros((BM, BD), tl.float32)
    first = tl.program_id(1) * part
    for start in range(first, tl.minimum(first + part, m), BN):
        j = start + tl.arange(0, BN)
        other = tl.load(b_groups + j, mask=j < m, other=0)
        b_near, b_weight = tl.load(b_stats + j, mask=j < m, other=0.0), tl.load(b_stats + m + j, mask=j < m, other=0.0)
        b_pull = tl.load(b_stats + 2 * m + j, mask=j < m, other=0.0)
        s = products(a, b, factor, i, j, n, m, d, PRECISION, BM, BN, BK)
        kept, pulled = masks(i, j, n, m, group, other, SYMMETRIC, RIVALS)
        s = tl.where(kept, s, float("-inf"))
        w = tl.exp(s - near[:, None]) * weight[:, None] + tl.exp(s - b_near[None, :]) * b_weight[None, :]
        w += tl.where(pulled, pull[:, None] + b_pull[None, :], 0.0)
        found = tl.dot(w, rows_of(values, j, k, m, d), found, input_precision=PRECISION)
    at = results + (tl.program_id(1).to(tl.int64) * n + i)[:, None] * d + k[None, :]
    tl.store(at, found, mask=(i < n)[:, None] & (k < d)[None, :])
