"""Deltas of several targets in one launch: what one Triton program does.

``triton_launch.py`` starts it. Tile sizes (BLOCK_*) come from ``tiles.py``. All sums are float32.
Innermost strides are 1.
"""

# Arguments of kernels have no Python types: Triton gives them those of each launch.
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def pick(index, values):
    """The index-th of a tuple's scalars or pointers, in registers."""
    chosen = values[0]
    for i in tl.static_range(1, len(values)):
        chosen = tl.where(index == i, values[i], chosen)
    return chosen


@triton.jit
def add_and_store(
    base_rows,  # of the BLOCK_T tokens, for the first candidate if base is shared, else for p = 0
    base_stride_p,
    y_rows,  # of the tokens, for p = 0
    y_stride_p,
    low,  # (BLOCK_T, LANES): x A^T times the scale
    b_tile,  # (LANES, BLOCK_O), zero outside the delta's columns and the valid lanes
    owner,  # which member of the group each lane belongs to
    first,
    candidates,
    column,
    tile_mask,
    GROUP: tl.constexpr,
    BASE_SHARED: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Store base + low B for one tile of columns of each of the group's candidates.

    Both operands are zero outside the candidate's own lanes, so that an infinity in another
    candidate's factors stays there.
    """
    if BASE_SHARED:
        base_tile = tl.load(base_rows[:, None] + column[None, :], mask=tile_mask, other=0.0)
    for member in tl.static_range(GROUP):
        p = (first + member).to(tl.int64)
        mask = tile_mask & (p < candidates)
        if not BASE_SHARED:
            base_tile = tl.load(
                base_rows[:, None] + p * base_stride_p + column[None, :], mask=mask, other=0.0
            )
        own = owner == member
        own_low = tl.where(own[None, :], low, 0.0).to(OPERAND)
        own_b = tl.where(own[:, None], b_tile, 0.0).to(OPERAND)
        delta = tl.dot(own_low, own_b, input_precision=PRECISION)
        y_tile = base_tile.to(tl.float32) + delta
        where = y_rows[:, None] + p * y_stride_p + column[None, :]
        tl.store(where, y_tile.to(y_rows.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["candidates", "tokens", "groups", "blocks", "splits"])
def apply_deltas_kernel(
    x,  # (T, h) or (P, T, h), strides x_stride_p (0 if shared), x_stride_t
    # What follows up to b_stride_r are tuples with one entry a delta.
    base,  # (T, width) or (P, T, width), strides base_stride_p (0 if shared), base_stride_t
    y,  # (P, T, width), strides y_stride_p, y_stride_t
    a,  # (P, r, h), strides a_stride_p, a_stride_r
    b,  # (P, r, o), strides b_stride_p, b_stride_r
    left,  # its programs write the columns left <= column < right of y
    right,
    start,  # the delta goes to the columns start <= column < stop of these
    stop,
    rank,
    base_stride_p,
    base_stride_t,
    y_stride_p,
    y_stride_t,
    a_stride_p,
    a_stride_r,
    b_stride_p,
    b_stride_r,
    x_stride_p,
    x_stride_t,
    scale: tl.float32,
    candidates,
    tokens,
    hidden,
    groups,  # candidate groups
    blocks,  # token blocks times candidate groups
    splits,  # programs that share the columns of one of these, and of one delta
    GROUP: tl.constexpr,  # candidates a program; above 1 only where they share x
    LANES: tl.constexpr,  # rows of the group's factors, padded to the tensor core's tile
    BASE_SHARED: tl.constexpr,  # whether all candidates share every base
    OPERAND: tl.constexpr,  # type of the products' operands
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """y[p] = base[p] + scale * (x[p] A[p]^T) B[p] for BLOCK_T tokens of GROUP candidates.

    A tensor core multiplies at least 16 rows of A at once, a candidate has only r. So candidates
    that share x fill the 16 together: x is read once for all of them. A program works on one
    delta; which one it is decides what is in its registers, not the code.
    """
    program = tl.program_id(0)
    index = program // (blocks * splits)
    # Programs of one token block are neighbours, so that x comes from the second-level cache.
    split = program % splits
    block = program // splits % blocks
    first = block % groups * GROUP
    token = block // groups * BLOCK_T + tl.arange(0, BLOCK_T)
    token_mask = token < tokens
    lane = tl.arange(0, LANES)
    owner = lane // (LANES // GROUP)
    lane_rank = lane % (LANES // GROUP)
    lane_mask = (lane_rank < pick(index, rank)) & (first + owner < candidates)
    candidate = (first + owner).to(tl.int64)
    a_rows = pick(index, a) + candidate * pick(index, a_stride_p)
    a_rows += lane_rank * pick(index, a_stride_r)
    b_rows = pick(index, b) + candidate * pick(index, b_stride_p)
    b_rows += lane_rank * pick(index, b_stride_r)
    x_rows = x + first.to(tl.int64) * x_stride_p + token.to(tl.int64) * x_stride_t
    base_rows = pick(index, base) + token.to(tl.int64) * pick(index, base_stride_t)
    y_rows = pick(index, y) + token.to(tl.int64) * pick(index, y_stride_t)
    span = tl.cdiv(tl.cdiv(pick(index, right) - pick(index, left), BLOCK_O), splits) * BLOCK_O
    begin = pick(index, left) + split * span
    end = tl.minimum(begin + span, pick(index, right))
    delta_start, delta_stop = pick(index, start), pick(index, stop)

    low = tl.zeros((BLOCK_T, LANES), tl.float32)
    if (begin < delta_stop) & (end > delta_start):
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
        delta_mask = (column >= delta_start) & (column < delta_stop)
        b_tile = tl.load(
            b_rows[:, None] + (column - delta_start)[None, :],
            mask=lane_mask[:, None] & delta_mask[None, :],
            other=0.0,
        )
        add_and_store(
            base_rows,
            pick(index, base_stride_p),
            y_rows,
            pick(index, y_stride_p),
            low,
            b_tile.to(OPERAND),
            owner,
            first,
            candidates,
            column,
            token_mask[:, None] & (column < end)[None, :],
            GROUP,
            BASE_SHARED,
            OPERAND,
            PRECISION,
        )
