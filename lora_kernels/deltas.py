"""Low-rank deltas of many candidates, added to the output of one frozen projection."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lora_kernels import ops
from lora_kernels.projection import DTYPES


@dataclass(frozen=True, eq=False)
class Factors:
    """The factors of P candidates for one target: candidate p's delta of the weight is B[p]^T A[p].

    Attributes:
        A: (P, r, h), h being the width of the target's input.
        B: (P, r, o), o being the width of its output (or of the slice of it that is the target).
    """

    A: Tensor
    B: Tensor

    def __post_init__(self) -> None:
        if self.A.dim() != 3 or self.B.dim() != 3 or self.A.shape[:2] != self.B.shape[:2]:
            raise ValueError(
                "A and B must have shapes (P, r, h) and (P, r, o); got"
                f" {tuple(self.A.shape)} and {tuple(self.B.shape)}"
            )
        if self.A.dtype != self.B.dtype or self.A.device != self.B.device:
            raise ValueError(
                "A and B must have one type and one device; got"
                f" {self.A.dtype} on {self.A.device} and {self.B.dtype} on {self.B.device}"
            )

    def __len__(self) -> int:
        return self.A.shape[0]

    def __getitem__(self, block: slice) -> Factors:
        """A block of candidates, sharing memory."""
        if not isinstance(block, slice):
            raise TypeError(f"Factors are indexed by a slice; got {type(block).__name__}")
        return Factors(self.A[block], self.B[block])

    @property
    def rank(self) -> int:
        """Rank r of the deltas."""
        return self.A.shape[1]

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Factors:
        """The factors on a device and in a type (None: as they are)."""
        return Factors(self.A.to(device=device, dtype=dtype), self.B.to(device=device, dtype=dtype))


def apply_deltas(
    x: Tensor,
    base: Tensor,
    factors: Factors,
    scale: float = 1.0,
    backend: str | None = None,
    *,
    columns: slice | tuple[int, int] | Tensor | None = None,
    precision: str = "tf32x3",
    autotune: bool = False,
) -> Tensor:
    """Add every candidate's delta to the output of a frozen projection.

    y[p] = base[p] + scale * (x[p] A[p]^T) B[p], where x and base are each either shared by all
    candidates or given for each. All tensors have one type and one device; the products accumulate
    in float32, and x A^T is rounded to the tensors' type in between.

    Args:
        x: Input of the frozen projection, (T, h) if shared or (P, T, h).
        base: Its output, (T, width) if shared or (P, T, width); float32, float16 or bfloat16.
        factors: P candidates.
        scale: Factor of the deltas.
        backend: "triton", "cpu" or "reference"; None chooses by x's device.
        columns: Where the delta goes in a fused projection's output, as a slice, as (start, stop)
            or, where it is not one stretch, as (o,) integers; the other columns are base's. None:
            the delta is as wide as base.
        precision: How the triton backend multiplies float32 on NVIDIA tensor cores: "tf32x3" to
            nearly float32's accuracy in three products, "tf32" in one with ten-bit mantissas.
            Other backends and types know one way only.
        autotune: Let Triton measure tile sizes instead of taking them from the table.

    Returns:
        (P, T, width), contiguous. P or T may be 0.

    Raises:
        ValueError: If shapes, types or devices don't fit, or the backend can't be used.
    """
    if isinstance(columns, Tensor):
        factors, columns = _spread(factors, columns, base.shape[-1]), None
    start = _check(x, base, factors, columns)
    if precision not in ops.PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(ops.PRECISIONS)}; got {precision!r}")
    chosen = ops.resolve_backend(x.device, backend)
    y: Tensor = ops.apply_deltas(
        x, base, factors.A, factors.B, scale, start, chosen, precision, autotune
    )
    return y


def _check(
    x: Tensor, base: Tensor, factors: Factors, columns: slice | tuple[int, int] | None
) -> int:
    """Hold the arguments of `apply_deltas` against each other; returns the delta's first column."""
    candidates, _, hidden = factors.A.shape
    out_features = factors.B.shape[2]
    shared_or_each = ((), (candidates,))
    if x.dim() not in (2, 3) or x.shape[-1] != hidden or x.shape[:-2] not in shared_or_each:
        raise ValueError(
            f"x must have shape (T, {hidden}) or ({candidates}, T, {hidden}) to fit A"
            f" {tuple(factors.A.shape)}; got {tuple(x.shape)}"
        )
    tokens = x.shape[-2]
    if (
        base.dim() not in (2, 3)
        or base.shape[-2] != tokens
        or base.shape[:-2] not in shared_or_each
    ):
        raise ValueError(
            f"base must have shape ({tokens}, width) or ({candidates}, {tokens}, width) to fit x"
            f" {tuple(x.shape)}; got {tuple(base.shape)}"
        )
    if base.dtype not in DTYPES:
        raise ValueError(f"base must be one of {DTYPES}; got {base.dtype}")
    kinds = [(t.dtype, t.device) for t in (x, base, factors.A)]
    if len(set(kinds)) > 1:
        raise ValueError(
            "x, base and the factors must have one type and one device; got "
            + ", ".join(f"{dtype} on {device}" for dtype, device in kinds)
        )
    return _first_column(base.shape[-1], out_features, columns)


def _spread(factors: Factors, columns: Tensor, width: int) -> Factors:
    """The same deltas as wide as the module's output, zero outside their columns."""
    if columns.shape != factors.B.shape[2:] or columns.is_floating_point():
        raise ValueError(
            f"B gives deltas {factors.B.shape[2]} wide, so columns must be as many integers; got"
            f" shape {tuple(columns.shape)} of {columns.dtype}"
        )
    b = factors.B.new_zeros(*factors.B.shape[:2], width)
    return Factors(factors.A, b.index_copy(2, columns.to(b.device), factors.B))


def _first_column(width: int, out_features: int, columns: slice | tuple[int, int] | None) -> int:
    if columns is None:
        start, stop, step = 0, width, 1
    elif isinstance(columns, slice):
        start, stop, step = columns.indices(width)
    else:
        start, stop, step = *columns, 1
    if step != 1 or not 0 <= start <= stop <= width or stop - start != out_features:
        wanted = "base's width" if columns is None else f"columns {columns} of base's {width}"
        raise ValueError(
            f"B gives deltas {out_features} wide, which must fill {wanted}; that is"
            f" {stop - start} columns"
        )
    return start
