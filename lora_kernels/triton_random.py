"""Normal numbers drawn in registers: the words and numbers of ``philox.py``, in Triton."""

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
def normals(seed, stream, row, group):
    """Entries 4 * group to 4 * group + 3 of a row of the seeded matrix (see philox.py)."""
    stream = stream.to(tl.uint64)
    low, high = (stream & 0xFFFFFFFF).to(tl.uint32), (stream >> 32).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(seed, group.to(tl.uint32), row.to(tl.uint32), low, high)
    n0, n1 = _box_muller(w0, w1)
    n2, n3 = _box_muller(w2, w3)
    return n0, n1, n2, n3
