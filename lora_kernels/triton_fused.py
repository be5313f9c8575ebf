"""Projection and application in one launch: what one Triton program does.

``triton_launch.py`` starts it, where the cost model (``cost.py``) says that it pays. Tile sizes
(BLOCK_*) come from ``tiles.py``. All sums are float32. Innermost strides are 1.
"""

# Arguments of kernels have no Python types: Triton gives them those of each launch.
# ruff: noqa: ANN001, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from lora_kernels.triton_apply import add_and_store
from lora_kernels.triton_random import normals


@triton.jit
def _draw_factor(
    z,
    z_stride,
    d_part,
    candidate,  # of each lane
    lane_rank,
    lane_mask,
    rank,
    seed,
    stream,
    std,
    width,  # of a factor's rows
    column,
    LANES: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Columns of the group's factors, (LANES, BLOCK_C), as the seeded projection makes them.

    Row r of all the group's factors comes from the same rows of the projection's weight. They are
    drawn once and multiplied with every lane's z, those of the other rows being zero. As in
    project_seeded_kernel each of a Philox call's four numbers has a product of its own.
    """
    tile = tl.zeros((LANES, BLOCK_C), tl.float32)
    for r in range(rank):
        mine = lane_mask & (lane_rank == r)
        row = r * width + column
        for start in range(0, d_part, BLOCK_D):
            group = start // 4 + tl.arange(0, BLOCK_D // 4)
            w0, w1, w2, w3 = normals(seed, stream, row[None, :], group[:, None])
            # Entries past d_part are drawn as well and meet zeros in z.
            z0 = _load_z(z, z_stride, candidate, mine, 4 * group, d_part)
            z1 = _load_z(z, z_stride, candidate, mine, 4 * group + 1, d_part)
            z2 = _load_z(z, z_stride, candidate, mine, 4 * group + 2, d_part)
            z3 = _load_z(z, z_stride, candidate, mine, 4 * group + 3, d_part)
            tile = tl.dot(z0, w0, tile, input_precision=PRECISION)
            tile = tl.dot(z1, w1, tile, input_precision=PRECISION)
            tile = tl.dot(z2, w2, tile, input_precision=PRECISION)
            tile = tl.dot(z3, w3, tile, input_precision=PRECISION)
    return std * tile


@triton.jit
def _load_z(z, z_stride, candidate, lane_mask, column, d_part):
    mask = lane_mask[:, None] & (column < d_part)[None, :]
    tile = tl.load(z + candidate[:, None] * z_stride + column[None, :], mask=mask, other=0.0)
    return tile.to(tl.float32)


UNSPECIALIZED = ("candidates", "tokens", "groups", "splits", "rank", "z_a_stride", "z_b_stride")
SEEDS = ("seed_a", "seed_b", "stream_a", "stream_b")


@triton.jit(do_not_specialize=[*UNSPECIALIZED, *SEEDS])
def project_apply_kernel(
    x,  # (T, h) or (P, T, h), strides x_stride_p (0 if shared), x_stride_t
    base,  # (T, width) or (P, T, width), strides base_stride_p (0 if shared), base_stride_t
    y,  # (P, T, width), contiguous
    z_a,  # (P, d_a), row stride z_a_stride
    z_b,  # (P, d_b), row stride z_b_stride
    seed_a: tl.int64,
    stream_a: tl.int64,
    std_a: tl.float32,
    seed_b: tl.int64,
    stream_b: tl.int64,
    std_b: tl.float32,
    scale: tl.float32,
    candidates,
    tokens,
    hidden,
    width,
    rank,
    start,  # the delta goes to columns start <= column < stop
    stop,
    d_a,
    d_b,
    groups,  # candidate groups
    splits,  # programs that share the columns of one token block and group
    span,  # columns of one of them, a multiple of BLOCK_O
    x_stride_p,
    x_stride_t,
    base_stride_p,
    base_stride_t,
    z_a_stride,
    z_b_stride,
    GROUP: tl.constexpr,  # candidates a program; above 1 only where they share x
    LANES: tl.constexpr,  # rows of the group's factors, padded to the tensor core's tile
    BASE_SHARED: tl.constexpr,
    OPERAND: tl.constexpr,  # type of the products' operands
    PRECISION: tl.constexpr,  # of the products with x A^T and B
    DRAW_PRECISION: tl.constexpr,  # of the products that make A and B
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """apply_deltas_kernel with A and B drawn and projected where that one loads them.

    Every program draws what it needs, so the draws grow with the number of token blocks.
    """
    program = tl.program_id(0)
    split = program % splits
    first = program // splits % groups * GROUP
    token = program // (splits * groups) * BLOCK_T + tl.arange(0, BLOCK_T)
    token_mask = token < tokens
    lane = tl.arange(0, LANES)
    owner = lane // (LANES // GROUP)
    lane_rank = lane % (LANES // GROUP)
    lane_mask = (lane_rank < rank) & (first + owner < candidates)
    candidate = (first + owner).to(tl.int64)
    x_rows = x + first.to(tl.int64) * x_stride_p + token.to(tl.int64) * x_stride_t
    base_rows = base + token.to(tl.int64) * base_stride_t
    y_rows = y + token.to(tl.int64) * width
    begin = split * span
    end = tl.minimum(begin + span, width)

    low = tl.zeros((BLOCK_T, LANES), tl.float32)
    if (begin < stop) & (end > start):
        for h in range(0, hidden, BLOCK_H):
            column = h + tl.arange(0, BLOCK_H)
            x_tile = tl.load(
                x_rows[:, None] + column[None, :],
                mask=token_mask[:, None] & (column < hidden)[None, :],
                other=0.0,
            )
            # Columns past hidden are drawn from the next row and meet zeros in x.
            a_tile = _draw_factor(
                z_a,
                z_a_stride,
                d_a,
                candidate,
                lane_rank,
                lane_mask,
                rank,
                seed_a,
                stream_a,
                std_a,
                hidden,
                column,
                LANES,
                BLOCK_H,
                BLOCK_D,
                DRAW_PRECISION,
            )
            a_tile = a_tile.to(x.dtype.element_ty).to(OPERAND)
            low = tl.dot(x_tile.to(OPERAND), tl.trans(a_tile), low, input_precision=PRECISION)
    low = (low * scale).to(x.dtype.element_ty).to(OPERAND)

    for o in range(begin, end, BLOCK_O):
        column = o + tl.arange(0, BLOCK_O)
        b_tile = tl.zeros((LANES, BLOCK_O), tl.float32)
        if (o < stop) & (o + BLOCK_O > start):
            b_tile = _draw_factor(
                z_b,
                z_b_stride,
                d_b,
                candidate,
                lane_rank,
                lane_mask,
                rank,
                seed_b,
                stream_b,
                std_b,
                stop - start,
                column - start,
                LANES,
                BLOCK_O,
                BLOCK_D,
                DRAW_PRECISION,
            )
            b_tile = tl.where(((column >= start) & (column < stop))[None, :], b_tile, 0.0)
        add_and_store(
            base_rows,
            base_stride_p,
            y_rows,
            tokens.to(tl.int64) * width,
            low,
            b_tile.to(x.dtype.element_ty).to(OPERAND),
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
