"""The operations as torch.library ops, and the choice of an implementation.

A caller uses the functions of this package; they check their arguments and call these ops, which
torch.compile, torch.export and meta tensors treat like PyTorch's own.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lora_kernels import cost

MODULES = {
    "triton": "lora_kernels.triton_launch",
    "cpu": "lora_kernels.cpu",
    "reference": "lora_kernels.reference",
}
PRECISIONS = ("tf32x3", "tf32")


class Availability(NamedTuple):
    """Whether a backend can be used here, and if not, why."""

    available: bool
    reason: str

    def __bool__(self) -> bool:
        return self.available


def backends() -> dict[str, Availability]:
    """Which backends can be used on this machine, by name."""
    return {
        "triton": _triton_availability(),
        "cpu": Availability(True, ""),
        "reference": Availability(True, ""),
    }


def resolve_backend(device: torch.device, backend: str | None) -> str:
    """The backend to use for tensors on a device.

    It looks at nothing but its arguments, so that torch.compile can trace it; whether the backend
    can be used is checked where it runs.

    Args:
        device: Where the tensors are.
        backend: The caller's choice, or None for the device's own: triton on a GPU, cpu on a CPU.

    Raises:
        ValueError: If the backend is unknown, or the device has none of its own.
    """
    if backend is None:
        own = {"cuda": "triton", "cpu": "cpu", "meta": "reference"}
        if device.type not in own:
            raise ValueError(
                f"there is no backend for {device.type} tensors; pass backend='reference', which is"
                " plain PyTorch"
            )
        return own[device.type]
    if backend not in MODULES:
        raise ValueError(f"backend must be one of {', '.join(MODULES)}; got {backend!r}")
    return backend


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")


def _triton_availability() -> Availability:
    if importlib.util.find_spec("triton") is None:
        return Availability(False, "the package triton is not installed")
    if not torch.cuda.is_available() and not _interpreting():
        return Availability(False, "PyTorch finds no GPU, and TRITON_INTERPRET=1 is not set")
    return Availability(True, "")


def _implementation(backend: str, device: torch.device) -> ModuleType:
    """The module that implements a backend; Triton is imported here at the earliest."""
    if backend == "triton":
        if not (status := _triton_availability()):
            raise ValueError(f"the triton backend is not available: {status.reason}")
        if device.type != "cuda" and not _interpreting():
            raise ValueError(
                f"the triton backend needs tensors on a GPU; got {device.type} tensors (they work"
                " in Triton's interpreter, with TRITON_INTERPRET=1 in the environment)"
            )
    return importlib.import_module(MODULES[backend])


def _options(backend: str, **options: Any) -> dict[str, Any]:
    """What only the Triton kernels can be told."""
    if backend == "triton":
        return options
    if options["autotune"]:
        raise ValueError(f"autotune=True applies to the triton backend; the backend is {backend}")
    return {}


@torch.library.custom_op("lora_kernels::project", mutates_args=())
def project(z: Tensor, weight: Tensor, dtype: torch.dtype, backend: str, autotune: bool) -> Tensor:
    """Map z (P, d_part) through weight (n, d_part) to (P, n) of a type."""
    options = _options(backend, autotune=autotune)
    out: Tensor = _implementation(backend, z.device).project(z, weight, dtype, **options)
    return out


@project.register_fake
def _(z: Tensor, weight: Tensor, dtype: torch.dtype, backend: str, autotune: bool) -> Tensor:
    return z.new_empty(z.shape[0], weight.shape[0], dtype=dtype)


@torch.library.custom_op("lora_kernels::project_seeded", mutates_args=())
def project_seeded(
    z: Tensor,
    n: int,
    seed: int,
    stream: int,
    std: float,
    dtype: torch.dtype,
    backend: str,
    autotune: bool,
) -> Tensor:
    """Map z (P, d_part) through a Philox stream's (n, d_part) normal numbers to (P, n)."""
    options = _options(backend, autotune=autotune)
    out: Tensor = _implementation(backend, z.device).project_seeded(
        z, n, seed, stream, std, dtype, **options
    )
    return out


@project_seeded.register_fake
def _(
    z: Tensor,
    n: int,
    seed: int,
    stream: int,
    std: float,
    dtype: torch.dtype,
    backend: str,
    autotune: bool,
) -> Tensor:
    return z.new_empty(z.shape[0], n, dtype=dtype)


@torch.library.custom_op("lora_kernels::apply_deltas", mutates_args=())
def apply_deltas(
    x: Tensor,
    bases: Sequence[Tensor],
    A: Sequence[Tensor],
    B: Sequence[Tensor],
    into: Sequence[int],
    start: Sequence[int],
    scale: float,
    backend: str,
    precision: str,
    autotune: bool,
) -> list[Tensor]:
    """Each base plus every candidate's deltas of x that go into it, (P, T, width).

    Delta i goes into base into[i], its columns begin at start[i]; deltas are in the order of their
    bases and columns and don't overlap.
    """
    options = _options(backend, precision=precision, autotune=autotune)
    ys: list[Tensor] = _implementation(backend, x.device).apply_deltas(
        x, bases, A, B, into, start, scale, **options
    )
    return ys


@apply_deltas.register_fake
def _(
    x: Tensor,
    bases: Sequence[Tensor],
    A: Sequence[Tensor],
    B: Sequence[Tensor],
    into: Sequence[int],
    start: Sequence[int],
    scale: float,
    backend: str,
    precision: str,
    autotune: bool,
) -> list[Tensor]:
    return [base.new_empty(A[0].shape[0], base.shape[-2], base.shape[-1]) for base in bases]


@torch.library.custom_op("lora_kernels::project_apply", mutates_args=())
def project_apply(
    x: Tensor,
    base: Tensor,
    z_a: Tensor,
    z_b: Tensor,
    rank: int,
    seeds: Sequence[int],
    stds: Sequence[float],
    scale: float,
    start: int,
    stop: int,
    fused: bool | None,
    backend: str,
    precision: str,
    autotune: bool,
) -> Tensor:
    """Base plus every candidate's delta of x, its factors projected from z_a and z_b.

    Seeds are the seed and stream of A's projection and those of B's. Whether it takes one launch
    is up to the caller, or, if fused is None, to the cost model; only Triton can do it in one.
    """
    module, candidates, hidden = _implementation(backend, x.device), z_a.shape[0], x.shape[-1]
    options = _options(backend, precision=precision, autotune=autotune)
    if backend == "triton" and fused is None:
        fused = cost.fusing_pays(
            cost.Sizes(
                candidates,
                tokens=base.shape[-2],
                hidden=hidden,
                out_features=stop - start,
                rank=rank,
                d_a=z_a.shape[1],
                d_b=z_b.shape[1],
                dtype=x.dtype,
                width=base.shape[-1],
                x_shared=x.dim() == 2,
                base_shared=base.dim() == 2,
            ),
            cost.device_for(x.device),
        )
    if fused:
        y: Tensor = module.project_apply(
            x, base, z_a, z_b, rank, seeds, stds, scale, start, stop, **options
        )
        return y
    tuning = {"autotune": autotune} if options else {}
    a = module.project_seeded(z_a, rank * hidden, *seeds[:2], stds[0], x.dtype, **tuning)
    b = module.project_seeded(z_b, rank * (stop - start), *seeds[2:], stds[1], x.dtype, **tuning)
    a, b = a.view(candidates, rank, hidden), b.view(candidates, rank, stop - start)
    (y,) = module.apply_deltas(x, [base], [a], [b], [0], [start], scale, **options)
    return y


@project_apply.register_fake
def _(
    x: Tensor,
    base: Tensor,
    z_a: Tensor,
    z_b: Tensor,
    rank: int,
    seeds: Sequence[int],
    stds: Sequence[float],
    scale: float,
    start: int,
    stop: int,
    fused: bool | None,
    backend: str,
    precision: str,
    autotune: bool,
) -> Tensor:
    return base.new_empty(z_a.shape[0], base.shape[-2], base.shape[-1])
