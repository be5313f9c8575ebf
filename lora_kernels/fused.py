"""From candidates' vectors to the output of a frozen projection with their deltas, in one call."""

from __future__ import annotations

from torch import Tensor

from lora_kernels import ops
from lora_kernels.deltas import (
    Factors,
    Stretch,
    apply_deltas,
    check_kinds,
    check_precision,
    check_shapes,
    first_column,
)
from lora_kernels.projection import Projection, SeededProjection, check_vectors, project


def project_and_apply(
    x: Tensor,
    base: Tensor,
    z: tuple[Tensor, Tensor],
    projections: tuple[Projection, Projection],
    rank: int,
    scale: float = 1.0,
    backend: str | None = None,
    *,
    columns: Stretch | None = None,
    fused: bool | None = None,
    precision: str = "tf32x3",
    autotune: bool = False,
) -> Tensor:
    """Project vectors to factors and add their deltas to a frozen projection's output.

    The same as `project` twice and `apply_deltas`. With seeded projections the triton backend can
    do it in one launch that writes neither A nor B; as it draws the projections' entries once for
    every block of tokens, that pays for few tokens and small layers only. `lora_kernels.cost` says
    where, and decides unless the caller does.

    Args:
        x: Input of the frozen projection, (T, h) if shared or (P, T, h).
        base: Its output, (T, width) if shared or (P, T, width); float32, float16 or bfloat16.
        z: The candidates' vector parts that become A, (P, d_a), and B, (P, d_b); float32, float16
            or bfloat16. Factors are computed in float32 and rounded to the type of x.
        projections: The maps to A, with r h entries, and to B, with r o.
        rank: Rank r of the deltas.
        scale: Factor of the deltas.
        backend: "triton", "cpu" or "reference"; None chooses by x's device.
        columns: Where the delta goes in a fused projection's output (None: all of it).
        fused: Whether to do it in one launch; None leaves it to the cost model. True needs seeded
            projections and the triton backend.
        precision: How the triton backend multiplies float32, see `apply_deltas`.
        autotune: Let Triton measure tile sizes.

    Returns:
        (P, T, width), contiguous, in the type of x.

    Raises:
        ValueError: If shapes, types or devices don't fit, or the backend can't be used.
    """
    chosen = ops.resolve_backend(x.device, backend)
    to_a, to_b = projections
    if rank < 1 or to_a.n % rank or to_b.n % rank:
        raise ValueError(
            f"rank must divide the projections' entries, {to_a.n} and {to_b.n}; got {rank}"
        )
    for part, projection in zip(z, projections, strict=True):
        check_vectors(part, projection)
    if len(z[0]) != len(z[1]):
        raise ValueError(f"A and B need as many vectors; got {len(z[0])} and {len(z[1])}")
    if {part.device for part in z} != {x.device}:
        raise ValueError(f"z must be on x's device, {x.device}; got {[str(p.device) for p in z]}")
    z_a, z_b = (part.float() for part in z)
    if not (isinstance(to_a, SeededProjection) and isinstance(to_b, SeededProjection)):
        if fused:
            raise ValueError("fused=True needs seeded projections; entries that are kept are read")
        factors = Factors(
            *(
                project(part, to, (rank, to.n // rank), chosen, dtype=x.dtype, autotune=autotune)
                for part, to in ((z_a, to_a), (z_b, to_b))
            )
        )
        return apply_deltas(
            x, base, factors, scale, chosen, columns=columns, precision=precision, autotune=autotune
        )
    if fused and chosen != "triton":
        raise ValueError(f"fused=True applies to the triton backend; the backend is {chosen}")
    check_kinds({"x": x, "base": base})
    check_shapes(x, base, len(z_a), to_a.n // rank)
    out_features = to_b.n // rank
    start = first_column(base.shape[-1], out_features, columns)
    y: Tensor = ops.project_apply(
        x,
        base,
        z_a,
        z_b,
        rank,
        [to_a.seed, to_a.stream, to_b.seed, to_b.stream],
        [to_a.std, to_b.std],
        scale,
        start,
        start + out_features,
        fused,
        chosen,
        check_precision(precision),
        autotune,
    )
    return y
