"""Fixed random maps from a low-dimensional vector to the factors of a low-rank delta.

A layer's vector z is cut into parts, one for each factor, and a factor is W z_part reshaped, with
W (n, d_part) fixed and Gaussian (Jin, Liu, Tan, arXiv 2403.01754, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from lora_kernels import ops
from lora_kernels.philox import normal_rows

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, eq=False)
class StoredProjection:
    """A projection whose entries are kept.

    Attributes:
        weight: (n, d_part), float32, float16 or bfloat16.
    """

    weight: Tensor

    def __post_init__(self) -> None:
        if self.weight.dim() != 2:
            raise ValueError(f"weight must have shape (n, d_part); got {tuple(self.weight.shape)}")
        if self.weight.dtype not in DTYPES:
            raise ValueError(f"weight must be one of {DTYPES}; got {self.weight.dtype}")

    @property
    def n(self) -> int:
        """Entries of the factor."""
        return self.weight.shape[0]

    @property
    def d_part(self) -> int:
        """Length of the vector part."""
        return self.weight.shape[1]

    @property
    def std(self) -> float:
        """Root mean square of the entries, whose mean is taken to be zero."""
        return float(self.weight.float().square().mean().sqrt())

    def scaled(self, factor: float) -> StoredProjection:
        """The same projection with its std multiplied by a factor."""
        return StoredProjection(self.weight * factor)

    def materialize(
        self, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
    ) -> StoredProjection:
        """The projection in another type or on another device (None: where it is)."""
        return StoredProjection(self.weight.to(device=device, dtype=dtype))


@dataclass(frozen=True)
class SeededProjection:
    """A projection whose entries are drawn when they are needed; it holds a few numbers only.

    Entry (i, j) is std times a standard normal number that depends on (seed, stream, i, j) alone,
    see `lora_kernels.philox`. It is the same on every backend, to rounding.

    Attributes:
        n: Entries of the factor.
        d_part: Length of the vector part.
        seed: Key of the generator, 0 <= seed < 2^63.
        std: Standard deviation of the entries.
        stream: Which of the seed's matrices, 0 <= stream < 2^63; give each projection its own.
    """

    n: int
    d_part: int
    seed: int
    std: float
    stream: int = 0

    def __post_init__(self) -> None:
        # Row and column group are one counter word each; op arguments are signed 64-bit integers.
        for name, bound in (("n", 2**31), ("d_part", 2**31)):
            if not 1 <= getattr(self, name) < bound:
                raise ValueError(f"{name} must be in [1, {bound}); got {getattr(self, name)}")
        for name in ("seed", "stream"):
            if not 0 <= getattr(self, name) < 2**63:
                raise ValueError(f"{name} must be in [0, 2^63); got {getattr(self, name)}")
        if not (math.isfinite(self.std) and self.std >= 0):
            raise ValueError(f"std must be finite and not negative; got {self.std}")

    def scaled(self, factor: float) -> SeededProjection:
        """The same projection with its std multiplied by a factor."""
        return replace(self, std=self.std * factor)

    def materialize(
        self, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
    ) -> StoredProjection:
        """Draw all entries and keep them.

        Args:
            dtype: Type of the entries; they are drawn in float32 and rounded to it.
            device: Where they go (None: the CPU).
        """
        weight = self.std * normal_rows(self.seed, self.stream, 0, self.n, self.d_part)
        return StoredProjection(weight.to(device=device, dtype=dtype))


Projection: TypeAlias = StoredProjection | SeededProjection


def project(
    z: Tensor,
    projection: Projection,
    shape: Sequence[int] | None = None,
    backend: str | None = None,
    *,
    dtype: torch.dtype | None = None,
    autotune: bool = False,
) -> Tensor:
    """Project the candidates' vectors to one of their factors.

    Args:
        z: (P, d_part) float32, float16 or bfloat16.
        projection: The map to n entries; a stored one is on z's device.
        shape: Shape of one factor, with n entries in all.
        backend: "triton", "cpu" or "reference"; None chooses by z's device.
        dtype: Type of the factor, float32, float16 or bfloat16; None: that of z.
        autotune: Let Triton measure tile sizes instead of taking them from the table.

    Returns:
        (P, n), or (P, *shape) if a shape is given. Sums are taken in float32.

    Raises:
        ValueError: If shapes, types or devices don't fit, or the backend can't be used.
    """
    check_vectors(z, projection)
    if shape is not None and math.prod(shape) != projection.n:
        raise ValueError(f"shape must have {projection.n} entries; got {tuple(shape)}")
    dtype = z.dtype if dtype is None else dtype
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {DTYPES}; got {dtype}")
    chosen = ops.resolve_backend(z.device, backend)
    if isinstance(projection, SeededProjection):
        out = ops.project_seeded(
            z,
            projection.n,
            projection.seed,
            projection.stream,
            projection.std,
            dtype,
            chosen,
            autotune,
        )
    else:
        if projection.weight.device != z.device:
            raise ValueError(
                f"z and the projection must be on one device; got {z.device} and"
                f" {projection.weight.device}"
            )
        out = ops.project(z, projection.weight, dtype, chosen, autotune)
    result: Tensor = out if shape is None else out.view(z.shape[0], *shape)
    return result


def check_vectors(z: Tensor, projection: Projection) -> None:
    """Hold candidates' vectors against the projection that is to map them."""
    if z.dim() != 2 or z.shape[1] != projection.d_part:
        raise ValueError(f"z must have shape (P, {projection.d_part}); got {tuple(z.shape)}")
    if z.dtype not in DTYPES:
        raise ValueError(f"z must be one of {DTYPES}; got {z.dtype}")
