"""Counter-based normal numbers: Philox-4x32-10 and the Box-Muller transform.

Philox (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011) turns a
128-bit counter and a 64-bit key into four 32-bit words. Any entry of a random matrix can therefore
be drawn by itself, in any order, on any device: entry (i, j) of the matrix with a given seed and
stream is a pure function of (seed, stream, i, j), with

    counter = (j // 4, i, stream mod 2^32, stream div 2^32),  key = seed,  word = j % 4.

The Triton kernels draw the same entries from the same words (``triton_random.py``).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
WORD_MASK = 0xFFFFFFFF

# A word becomes a uniform number through its upper 24 bits, which float32 holds exactly.
UNIFORM_SHIFT = 8
UNIFORM_STEP = 2.0**-24
ANGLE_STEP = 2 * math.pi * UNIFORM_STEP

# Counters a chunk: the words of one chunk stay in a second-level cache.
CHUNK = 1 << 16


def philox_4x32(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten rounds of Philox-4x32.

    The four words broadcast against each other, and words that differ along one dimension only are
    kept that small for as long as the rounds allow, which saves a quarter of the work on a matrix.

    Args:
        counter: Four int64 tensors with values in [0, 2^32), broadcastable.
        seed: The 64-bit key, its lower word first.

    Returns:
        Four int64 tensors with values in [0, 2^32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = seed & WORD_MASK, seed >> 32
    for _ in range(ROUNDS):
        # int64 products wrap modulo 2^64, which leaves both 32-bit halves of the unsigned product
        # in place. Only the factors of the next round must be clean words, so that masking waits
        # until then.
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0 = ((p1 >> 32) ^ c1 ^ k0) & WORD_MASK
        c2 = ((p0 >> 32) ^ c3 ^ k1) & WORD_MASK
        c1, c3 = p1, p0
        k0, k1 = (k0 + KEY_STEPS[0]) & WORD_MASK, (k1 + KEY_STEPS[1]) & WORD_MASK
    return c0, c1 & WORD_MASK, c2, c3 & WORD_MASK


def normal_rows(seed: int, stream: int, start: int, stop: int, columns: int) -> Tensor:
    """Rows start to stop of a matrix of standard normal numbers.

    Args:
        seed: Key of the generator, 0 <= seed < 2^64.
        stream: Which of the seed's matrices, 0 <= stream < 2^64.
        start: First row.
        stop: Row after the last.
        columns: Number of columns.

    Returns:
        (stop - start, columns) float32 on the CPU.
    """
    groups = -(-columns // 4)
    rows = torch.arange(start, stop)
    normals = torch.empty(stop - start, groups, 4)
    column = torch.arange(groups)
    high, low = torch.tensor(stream >> 32), torch.tensor(stream & WORD_MASK)
    step = max(1, CHUNK // max(1, groups))
    for first in range(0, stop - start, step):
        row = rows[first : first + step, None]
        _box_muller(philox_4x32((column, row, low, high), seed), normals[first : first + step])
    return normals.view(stop - start, 4 * groups)[:, :columns]


def _box_muller(words: tuple[Tensor, Tensor, Tensor, Tensor], out: Tensor) -> None:
    """Turn each pair of words into two normal numbers, out[..., :2] and out[..., 2:].

    The first word gives the radius, from (0, 1] as its logarithm must be finite, the second the
    angle.
    """
    for pair in (0, 2):
        radius = ((words[pair] >> UNIFORM_SHIFT) + 1).to(torch.float32)
        radius.mul_(UNIFORM_STEP).log_().mul_(-2).sqrt_()
        angle = (words[pair + 1] >> UNIFORM_SHIFT).to(torch.float32).mul_(ANGLE_STEP)
        torch.mul(radius, angle.cos(), out=out[..., pair])
        torch.mul(radius, angle.sin(), out=out[..., pair + 1])
