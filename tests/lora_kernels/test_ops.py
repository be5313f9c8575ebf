import shutil
import subprocess
import sys

import pytest
import torch

from lora_kernels import (
    Delta,
    Factors,
    SeededProjection,
    StoredProjection,
    apply_deltas,
    apply_deltas_grouped,
    backends,
    ops,
    project,
    project_and_apply,
)

SHAPES = ((6, 10), (3, 6, 12), (3, 2, 10), (3, 2, 8), (20, 7), (3, 7))
GENERATOR = torch.Generator().manual_seed(0)
X, BASE, A, B, WEIGHT, Z = (torch.randn(shape, generator=GENERATOR) for shape in SHAPES)
STD = 0.15  # of projections: deltas about as large as what they are added to
WEIGHT *= STD


def _check(backend, fused=None):
    last = (backend, "tf32x3", False)
    torch.library.opcheck(ops.apply_deltas, (X, [BASE], [A], [B], [0], [4], 0.5, *last))
    several = ([BASE, BASE[0]], [A, A, A], [B[..., :4], B, B], [0, 0, 1], [0, 4, 2], 0.5)
    torch.library.opcheck(ops.apply_deltas, (X, *several, *last))
    torch.library.opcheck(ops.project, (Z, WEIGHT, torch.bfloat16, backend, False))
    torch.library.opcheck(ops.project_seeded, (Z, 20, 3, 1, 0.5, torch.float32, backend, False))
    seeds, stds = [3, 1, 3, 2], [0.5, 0.5]
    sizes = (2, seeds, stds, 0.5, 4, 12, fused)
    torch.library.opcheck(ops.project_apply, (X, BASE, Z, Z, *sizes, *last))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_opcheck(backend):
    _check(backend)


def test_opcheck_triton(interpreter):
    _check("triton", fused=False)
    _check("triton", fused=True)


def _layer(z, x, base, backend):
    """Every op once, between others."""
    seeded, stored = SeededProjection(20, 7, seed=3, std=STD), StoredProjection(WEIGHT[:16])
    factors = Factors(project(z, seeded, (2, 10), backend), project(z, stored, (2, 8), backend))
    first = torch.relu(apply_deltas(x, base, factors, 0.5, backend, columns=(4, 12)))
    scattered = torch.arange(11, 3, -1)
    deltas = (Delta(factors, 0, (4, 12)), Delta(factors, 1), Delta(factors, 2, scattered))
    q, v, _ = apply_deltas_grouped(x, (first, base[..., :8], base), deltas, 0.5, backend)
    vectors, projections = (z, z), (seeded, SeededProjection(24, 7, seed=3, std=STD, stream=1))
    return v, project_and_apply(x, q, vectors, projections, 2, 0.5, backend)


@pytest.mark.slow
@pytest.mark.parametrize("backend", [None, "reference"])
def test_compile(backend):
    """One graph without breaks, and the same numbers."""
    compiler = "inductor" if shutil.which("g++") or shutil.which("clang++") else "aot_eager"
    compiled = torch.compile(_layer, backend=compiler, fullgraph=True)
    torch.testing.assert_close(compiled(Z, X, BASE, backend), _layer(Z, X, BASE, backend))


def test_compile_around_triton(interpreter):
    compiled = torch.compile(_layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(Z, X, BASE, "triton"), _layer(Z, X, BASE, "cpu"))


def test_meta_tensors():
    meta = [t.to("meta") for t in (X, BASE, A, B)]
    y = apply_deltas(meta[0], meta[1], Factors(*meta[2:]), columns=(4, 12))
    assert (y.shape, y.device.type) == (BASE.shape, "meta")
    z = Z.to("meta")
    assert project(z, SeededProjection(20, 7, seed=0, std=1.0), (2, 10)).shape == (3, 2, 10)
    assert project(z, StoredProjection(WEIGHT.to("meta"))).shape == (3, 20)


def test_backends_say_what_is_missing(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    available = backends()
    assert list(available) == ["triton", "cpu", "reference"]
    assert available["cpu"]
    assert available["reference"]
    assert not available["triton"]
    assert available["triton"].reason
    with pytest.raises(ValueError, match="not available"):
        project(Z, StoredProjection(WEIGHT), backend="triton")


def test_triton_needs_a_gpu_or_the_interpreter(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match="needs tensors on a GPU; got cpu tensors"):
        project(Z, StoredProjection(WEIGHT), backend="triton")


def test_unknown_devices_are_an_error():
    with pytest.raises(ValueError, match="no backend for xla tensors"):
        ops.resolve_backend(torch.device("xla"), None)


@pytest.mark.parametrize("missing", [True, False])
def test_triton_is_optional(missing):
    """It is neither needed nor imported by anything but its kernels."""
    code = f"""import sys
if {missing}: sys.modules["triton"] = None
import torch, lora_kernels
assert not sys.modules.get("triton")
projection = lora_kernels.SeededProjection(4, 3, seed=0, std=1.0)
lora_kernels.project(torch.zeros(1, 3), projection)
assert not [name for name in sys.modules if name.startswith("lora_kernels.triton_")]
assert {missing} == ("not installed" in lora_kernels.backends()["triton"].reason)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
