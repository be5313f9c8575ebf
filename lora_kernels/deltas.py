"""Low-rank deltas of many candidates, added to the outputs of frozen projections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor

from lora_kernels import ops
from lora_kernels.projection import DTYPES

Stretch: TypeAlias = slice | tuple[int, int]
"""Neighbouring columns of a fused projection's output, as a slice or as (start, stop)."""

Columns: TypeAlias = Stretch | Tensor
"""The same, or (o,) integers where the columns are not one stretch."""


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


@dataclass(frozen=True, eq=False)
class Delta:
    """The deltas of one target, and where they go.

    Attributes:
        factors: P candidates.
        base: Which of the bases (default the first).
        columns: Which of its columns, if the base is the output of a fused projection; None: the
            delta is as wide as the base.
    """

    factors: Factors
    base: int = 0
    columns: Columns | None = None


def apply_deltas(
    x: Tensor,
    base: Tensor,
    factors: Factors,
    scale: float = 1.0,
    backend: str | None = None,
    *,
    columns: Columns | None = None,
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
        ValueError: If shapes, types or devices don't fit, or the backend can't be used; the triton
            backend takes ranks up to 64.
    """
    delta = Delta(factors, columns=columns)
    (y,) = apply_deltas_grouped(
        x, (base,), (delta,), scale, backend, precision=precision, autotune=autotune
    )
    return y


def apply_deltas_grouped(
    x: Tensor,
    bases: Sequence[Tensor],
    deltas: Sequence[Delta],
    scale: float = 1.0,
    backend: str | None = None,
    *,
    precision: str = "tf32x3",
    autotune: bool = False,
) -> tuple[Tensor, ...]:
    """The deltas of several targets that share an input, in one pass.

    The targets may be projections with outputs of their own, of any widths, parts of one fused
    projection, or both::

        q, v = apply_deltas_grouped(x, (q, v), (Delta(of_q, base=0), Delta(of_v, base=1)))
        (qkv,) = apply_deltas_grouped(
            x, (qkv,), (Delta(of_q, columns=(0, h)), Delta(of_v, columns=(2 * h, 3 * h)))
        )

    On a GPU it is one launch; on a CPU the products with x are one. Each output is written once.

    Args:
        x: Input of the frozen projections, (T, h) if shared by all candidates or (P, T, h).
        bases: Their outputs, each (T, width) if shared or (P, T, width).
        deltas: P candidates for each target, of any ranks. Every base has at least one delta, and
            those of one base don't overlap. If the columns of one are not one stretch, all of its
            base are applied as one delta, whose rank is the sum of theirs.
        scale: See `apply_deltas`, as for all that follow.
        backend: "triton", "cpu" or "reference"; None chooses by x's device.
        precision: How the triton backend multiplies float32.
        autotune: Let Triton measure tile sizes.

    Returns:
        (P, T, width) for each base, contiguous.

    Raises:
        ValueError: If shapes, types or devices don't fit, or the backend can't be used; the triton
            backend takes ranks up to 64.
    """
    placed = _place(x, bases, _in_stretches(bases, deltas))
    y = ops.apply_deltas(
        x,
        list(bases),
        [delta.factors.A for _, _, delta in placed],
        [delta.factors.B for _, _, delta in placed],
        [base for base, _, _ in placed],
        [start for _, start, _ in placed],
        scale,
        ops.resolve_backend(x.device, backend),
        check_precision(precision),
        autotune,
    )
    return tuple(y)


def _in_stretches(bases: Sequence[Tensor], deltas: Sequence[Delta]) -> list[Delta]:
    """The same deltas, those of a base whose columns lie scattered as one of all its columns."""
    scattered = {delta.base for delta in deltas if isinstance(delta.columns, Tensor)}
    for base in scattered:
        _require_base(base, bases)
    found = [delta for delta in deltas if delta.base not in scattered]
    for base in sorted(scattered):
        width = bases[base].shape[-1]
        parts = [_spread(delta, width) for delta in deltas if delta.base == base]
        stacked = (torch.cat(factors, dim=1) for factors in zip(*parts, strict=True))
        found.append(Delta(Factors(*stacked), base))
    return found


def _require_base(base: int, bases: Sequence[Tensor]) -> None:
    if not 0 <= base < len(bases):
        raise ValueError(f"a delta goes to base {base}, but there are {len(bases)}, counted from 0")


def _spread(delta: Delta, width: int) -> tuple[Tensor, Tensor]:
    """A and B of the same delta as wide as its base, zero outside its columns."""
    a, b = delta.factors.A, delta.factors.B
    columns = delta.columns
    if not isinstance(columns, Tensor):
        start = first_column(width, b.shape[2], columns)
        columns = torch.arange(start, start + b.shape[2])
    if columns.shape != b.shape[2:] or columns.is_floating_point():
        raise ValueError(
            f"B gives deltas {b.shape[2]} wide, so columns must be as many integers; got"
            f" shape {tuple(columns.shape)} of {columns.dtype}"
        )
    wide = b.new_zeros(*b.shape[:2], width)
    return a, wide.index_copy(2, columns.to(b.device, torch.long), b)


def _place(
    x: Tensor, bases: Sequence[Tensor], deltas: Sequence[Delta]
) -> list[tuple[int, int, Delta]]:
    """Check the arguments; returns (base, first column, delta) in order of bases and columns."""
    placed = []
    for delta in deltas:
        _require_base(delta.base, bases)
        a, b = delta.factors.A, delta.factors.B
        base = bases[delta.base]
        check_shapes(x, base, len(delta.factors), a.shape[2])
        check_kinds({"x": x, "base": base, "the factors": a})
        assert not isinstance(delta.columns, Tensor)
        start = first_column(base.shape[-1], b.shape[2], delta.columns)
        placed.append((delta.base, start, delta))
    placed.sort(key=lambda place: place[:2])
    if missing := set(range(len(bases))) - {delta.base for delta in deltas}:
        raise ValueError(f"every base needs a delta; there is none for {sorted(missing)}")
    if not placed:
        raise ValueError("there are no bases and no deltas")
    for (into, start, delta), (next_into, next_start, _) in pairwise(placed):
        stop = start + delta.factors.B.shape[2]
        if into == next_into and next_start < stop:
            raise ValueError(
                f"deltas of one base must not overlap; in base {into} columns {start} to {stop} and"
                f" those from {next_start} on do"
            )
    sizes = {len(delta.factors) for delta in deltas}
    if len(sizes) > 1:
        raise ValueError(f"all targets must have as many candidates; got {sorted(sizes)}")
    return placed


def check_precision(precision: str) -> str:
    """The precision, if there is such a one."""
    if precision not in ops.PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(ops.PRECISIONS)}; got {precision!r}")
    return precision


def check_shapes(x: Tensor, base: Tensor, candidates: int, hidden: int) -> None:
    """Hold x and base against the number of candidates and the width of their A."""
    shared_or_each = ((), (candidates,))
    if x.dim() not in (2, 3) or x.shape[-1] != hidden or x.shape[:-2] not in shared_or_each:
        raise ValueError(
            f"x must have shape (T, {hidden}) or ({candidates}, T, {hidden}) to fit"
            f" {candidates} candidates whose A are {hidden} wide; got {tuple(x.shape)}"
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


def check_kinds(tensors: Mapping[str, Tensor]) -> None:
    """Hold tensors, by what an error calls them, to one device and one type that ops take."""
    kinds = [(tensor.dtype, tensor.device) for tensor in tensors.values()]
    if kinds[0][0] not in DTYPES or len(set(kinds)) > 1:
        *names, last = tensors
        raise ValueError(
            f"{', '.join(names)} and {last} must have one device and one type of {DTYPES}; got "
            + ", ".join(f"{dtype} on {device}" for dtype, device in kinds)
        )


def first_column(width: int, out_features: int, columns: Stretch | None) -> int:
    """First of the columns of a base that a delta goes to, if it fits there."""
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
