"""The operations on a GPU, in Triton: what one program does. ``triton_launch.py`` starts them.

Tile sizes (BLOCK_*) come from ``tiles.py``. All sums are float32. Innermost strides are 1.
"""

# Arguments of kernels have no Python types: Triton gives them those of each launch.
# ruff: noqa: ANN001, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from lora_kernels import philox

UNIFORM_SHIFT = tl.constexpr(philox.UNIFORM_SHIFT)
UNIFORM_STEP = tl.constexpr(philox.UNIFORM_STEP)


@triton.jit
def _sin_quarters(f):
    """The sine of f quarter turns, -1 <= f <= 1, with a relative error of 2e-7.

    tl.sin would bring along its reduction of huge arguments, with a stack frame and registers for
    it. The polynomial is the minimax one of degree 9 (Remez).
    """
    u = f * f
    p = 0.00015148513045077584
    p = p * u - 0.004673766612047606
    p = p * u + 0.07968967894781238
    p = p * u - 0.6459637105999346
    p = p * u + 1.5707963184477058
    return p * f


@triton.jit
def _box_muller(radius_word, angle_word):
    """Two normal numbers of two words, as in philox.py."""
    radius_uniform = ((radius_word >> UNIFORM_SHIFT).to(tl.float32) + 1.0) * UNIFORM_STEP
    radius = tl.sqrt(-2.0 * tl.log(radius_uniform))
    # Sine and cosine of t turns, 0 <= t < 1, folded to a quarter turn; all of it is exact.
    t = (angle_word >> UNIFORM_SHIFT).to(tl.float32) * UNIFORM_STEP
    v = 2.0 * tl.abs(2.0 * t - 1.0) - 1.0
    cos, sin = _sin_quarters(v), _sin_quarters(1.0 - tl.abs(v))
    return radius * cos, radius * tl.where(t < 0.5, sin, -sin)


@triton.jit
def _normals(seed, stream, row, group):
    """Entries 4 * group to 4 * group + 3 of a row of the seeded matrix (see philox.py)."""
    stream = stream.to(tl.uint64)
    low, high = (stream & 0xFFFFFFFF).to(tl.uint32), (stream >> 32).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(seed, group.to(tl.uint32), row.to(tl.uint32), low, high)
    n0, n1 = _box_muller(w0, w1)
    n2, n3 = _box_muller(w2, w3)
    return n0, n1, n2, n3


@triton.jit
def _load_z(z, stride, candidate, column, candidates, d_part):
    mask = (candidate < candidates)[:, None] & (column < d_part)[None, :]
    tile = tl.load(z + candidate[:, None] * stride + column[None, :], mask=mask, other=0.0)
    return tile.to(tl.float32)


@triton.jit(do_not_specialize=["candidates"])
def project_kernel(
    z,  # (P, d_part), row stride z_stride
    weight,  # (n, d_part), row stride weight_stride
    out,  # (P, n), contiguous
    candidates,
    n,
    d_part,
    z_stride,
    weight_stride,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One tile of z weight^T: BLOCK_N entries of BLOCK_P candidates' factors."""
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    candidate = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    row_start = row.to(tl.int64) * weight_stride
    acc = tl.zeros((BLOCK_P, BLOCK_N), tl.float32)
    for start in range(0, d_part, BLOCK_D):
        column = start + tl.arange(0, BLOCK_D)
        mask = (row < n)[:, None] & (column < d_part)[None, :]
        w = tl.load(weight + row_start[:, None] + column[None, :], mask=mask, other=0.0)
        z_tile = _load_z(z, z_stride, candidate, column, candidates, d_part)
        acc = tl.dot(z_tile, tl.trans(w.to(tl.float32)), acc, input_precision=PRECISION)
    mask = (candidate < candidates)[:, None] & (row < n)[None, :]
    where = candidate.to(tl.int64)[:, None] * n + row[None, :]
    tl.store(out + where, acc.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["candidates", "seed", "stream"])
def project_seeded_kernel(
    z,  # (P, d_part), row stride z_stride
    out,  # (P, n), contiguous
    seed: tl.int64,
    stream: tl.int64,
    std: tl.float32,
    candidates,
    n,
    d_part,
    z_stride,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The same, drawing the weight's entries where project_kernel loads them.

    A Philox call gives four neighbouring entries of a row. Rather than interleave them into one
    tile, each of the four is multiplied with every fourth column of z.
    """
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    candidate = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    acc = tl.zeros((BLOCK_P, BLOCK_N), tl.float32)
    for start in range(0, d_part, BLOCK_D):
        group = start // 4 + tl.arange(0, BLOCK_D // 4)
        w0, w1, w2, w3 = _normals(seed, stream, row[None, :], group[:, None])
        # Entries past d_part are drawn as well and meet zeros in z.
        z0 = _load_z(z, z_stride, candidate, 4 * group, candidates, d_part)
        z1 = _load_z(z, z_stride, candidate, 4 * group + 1, candidates, d_part)
        z2 = _load_z(z, z_stride, candidate, 4 * group + 2, candidates, d_part)
        z3 = _load_z(z, z_stride, candidate, 4 * group + 3, candidates, d_part)
        acc = tl.dot(z0, w0, acc, input_precision=PRECISION)
        acc = tl.dot(z1, w1, acc, input_precision=PRECISION)
        acc = tl.dot(z2, w2, acc, input_precision=PRECISION)
        acc = tl.dot(z3, w3, acc, input_precision=PRECISION)
    mask = (candidate < candidates)[:, None] & (row < n)[None, :]
    where = candidate.to(tl.int64)[:, None] * n + row[None, :]
    tl.store(out + where, (std * acc).to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["candidates", "tokens", "groups", "splits"])
def apply_deltas_kernel(
    x,  # (T, h) or (P, T, h), strides x_stride_p (0 if shared), x_stride_t
    base,  # (T, width) or (P, T, width), strides base_stride_p (0 if shared), base_stride_t
    a,  # (P, r, h), strides a_stride_p, a_stride_r
    b,  # (P, r, o), strides b_stride_p, b_stride_r
    y,  # (P, T, width), contiguous
    scale: tl.float32,
    candidates,
    tokens,
    hidden,
    width,
    start,  # the delta goes to columns start <= column < stop
    stop,
    groups,  # candidate groups
    splits,  # programs that share the columns of one token block and group
    span,  # columns of one of them, a multiple of BLOCK_O
    x_stride_p,
    x_stride_t,
    base_stride_p,
    base_stride_t,
    a_stride_p,
    a_stride_r,
    b_stride_p,
    b_stride_r,
    RANK: tl.constexpr,
    GROUP: tl.constexpr,  # candidates a program; above 1 only where they share x
    LANES: tl.constexpr,  # rows of the group's factors, padded to the tensor core's tile
    BASE_SHARED: tl.constexpr,
    OPERAND: tl.constexpr,  # type of the products' operands
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """y[p] = base[p] + scale * (x[p] A[p]^T) B[p] for BLOCK_T tokens of GROUP candidates.

    A tensor core multiplies at least 16 rows of A at once, a candidate has only r. So candidates
    that share x fill the 16 together: x is read once for all of them.
    """
    # Programs of one token block are neighbours, so that x comes from the second-level cache.
    program = tl.program_id(0)
    split = program % splits
    first = program // splits % groups * GROUP
    token = program // (splits * groups) * BLOCK_T + tl.arange(0, BLOCK_T)
    token_mask = token < tokens
    lane = tl.arange(0, LANES)
    owner = lane // (LANES // GROUP)
    rank = lane % (LANES // GROUP)
    lane_mask = (rank < RANK) & (first + owner < candidates)
    candidate = (first + owner).to(tl.int64)
    a_rows = a + candidate * a_stride_p + rank * a_stride_r
    b_rows = b + candidate * b_stride_p + rank * b_stride_r
    x_rows = x + first.to(tl.int64) * x_stride_p + token.to(tl.int64) * x_stride_t
    base_rows = base + token.to(tl.int64) * base_stride_t

    low = tl.zeros((BLOCK_T, LANES), tl.float32)
    begin = split * span
    end = tl.minimum(begin + span, width)
    if (begin < stop) & (end > start):
        for h in range(0, hidden, BLOCK_H):
            column = h + tl.arange(0, BLOCK_H)
            column_mask = column < hidden
            x_tile = tl.load(
                x_rows[:, None] + column[None, :],
                mask=token_mask[:, None] & column_mask[None, :],
                other=0.0,
            )
            a_tile = tl.load(
                a_rows[:, None] + column[None, :],
                mask=lane_mask[:, None] & column_mask[None, :],
                other=0.0,
            )
            low = tl.dot(
                x_tile.to(OPERAND),
                tl.trans(a_tile.to(OPERAND)),
                low,
                input_precision=PRECISION,
            )
    low = (low * scale).to(x.dtype.element_ty).to(OPERAND)

    for o in range(begin, end, BLOCK_O):
        column = o + tl.arange(0, BLOCK_O)
        tile_mask = token_mask[:, None] & (column < end)[None, :]
        delta_mask = (column >= start) & (column < stop)
        if BASE_SHARED:
            base_tile = tl.load(base_rows[:, None] + column[None, :], mask=tile_mask, other=0.0)
        for member in tl.static_range(GROUP):
            p = (first + member).to(tl.int64)
            mask = tile_mask & (p < candidates)
            if not BASE_SHARED:
                base_tile = tl.load(
                    base_rows[:, None] + p * base_stride_p + column[None, :], mask=mask, other=0.0
                )
            # Both operands are zero outside the candidate's own lanes, so that an infinity in
            # another candidate's factors stays there.
            own = (owner == member) & lane_mask
            b_tile = tl.load(
                b_rows[:, None] + (column - start)[None, :],
                mask=own[:, None] & delta_mask[None, :],
                other=0.0,
            )
            own_low = tl.where(own[None, :], low, 0.0).to(OPERAND)
            delta = tl.dot(own_low, b_tile.to(OPERAND), input_precision=PRECISION)
            y_tile = (base_tile.to(tl.float32) + delta).to(y.dtype.element_ty)
            y_rows = y + (p * tokens + token) * width
            tl.store(y_rows[:, None] + column[None, :], y_tile, mask=mask)
