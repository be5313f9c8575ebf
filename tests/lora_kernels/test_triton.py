"""The Triton kernels, in the interpreter and on a GPU, against the reference in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_kernels import (
    Factors,
    SeededProjection,
    StoredProjection,
    apply_deltas,
    project,
    reference,
)

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
few = settings(derandomize=True, max_examples=80, deadline=None)


def _random(shape, dtype, device, strided=False):
    """Standard normal entries; strided: every second of them, so that no stride is 1."""
    if strided:
        return _random((*shape[:-1], 2 * shape[-1]), dtype, device)[..., ::2]
    return torch.randn(shape, device=device).to(dtype)


def _assert_deltas(x, base, factors, scale, start):
    """Compare with float64, allowing each product and the result a few roundings."""
    columns = (start, start + factors.B.shape[2])
    y = apply_deltas(x, base, factors, scale, "triton", columns=columns)
    exact = [t.double() for t in (x, base, factors.A, factors.B)]
    expected = reference.apply_deltas(*exact, scale, start)
    bound = reference.apply_deltas(*(t.abs() for t in exact), abs(scale), start)
    assert (y.shape, y.dtype) == (expected.shape, base.dtype)
    error = (y.double() - expected).abs()
    assert (error <= 8 * torch.finfo(base.dtype).eps * bound).all()


@few
@given(
    candidates=st.integers(0, 6),
    tokens=st.integers(0, 70),
    hidden=st.integers(1, 80),
    out_features=st.integers(1, 80),
    margins=st.tuples(st.integers(0, 40), st.integers(0, 70)),
    rank=st.one_of(st.integers(1, 16), st.sampled_from([32, 33, 64])),
    dtype=st.sampled_from(DTYPES),
    x_shared=st.booleans(),
    base_shared=st.booleans(),
    strided=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_apply_deltas(
    device, candidates, tokens, hidden, out_features, margins, rank, dtype, x_shared, base_shared,
    strided, seed,
):  # fmt: skip
    torch.manual_seed(seed)
    width = margins[0] + out_features + margins[1]
    x = _random(((candidates,) * (not x_shared)) + (tokens, hidden), dtype, device, strided)
    base = _random(((candidates,) * (not base_shared)) + (tokens, width), dtype, device, strided)
    factors = Factors(
        _random((candidates, rank, hidden), dtype, device, strided),
        _random((candidates, rank, out_features), dtype, device),
    )
    _assert_deltas(x, base, factors, 0.3, margins[0])


@pytest.mark.parametrize("x_shared", [True, False])
def test_outer_strides_may_be_any(device, x_shared):
    x = _random((7, 6, 3, 20), torch.float32, device)[:, 2]
    x = x[:, 0] if x_shared else x.transpose(0, 1)
    base = _random((7, 3, 50), torch.float32, device).transpose(0, 1)[:, :, 10:40]
    factors = Factors(
        _random((2, 3, 20), torch.float32, device).transpose(0, 1),
        _random((3, 4, 30), torch.float32, device)[:, ::2],
    )
    _assert_deltas(x, base, factors, -1.5, 0)


@pytest.mark.parametrize("x_shared", [True, False])
def test_a_candidate_with_infinities_does_not_touch_the_others(device, x_shared):
    x = _random((5,) * (not x_shared) + (9, 20), torch.float32, device)
    base = _random((9, 30), torch.float32, device)
    a, b = _random((5, 4, 20), torch.float32, device), _random((5, 4, 30), torch.float32, device)
    expected = apply_deltas(x, base, Factors(a, b), backend="triton")
    a, b = a.clone(), b.clone()
    a[1], b[2] = torch.inf, torch.nan
    y = apply_deltas(x, base, Factors(a, b), backend="triton")
    assert torch.equal(y[[0, 3, 4]], expected[[0, 3, 4]])
    assert not y[1:3].isfinite().any()


def test_rank_has_a_limit(device):
    x, factors = torch.zeros(4, 8, device=device), Factors(*torch.zeros(2, 1, 65, 8, device=device))
    with pytest.raises(ValueError, match="ranks up to 64; got 65"):
        apply_deltas(x, x, factors, backend="triton")


@few
@given(
    candidates=st.integers(0, 70),
    n=st.integers(1, 100),
    d_part=st.integers(1, 140),
    dtype=st.sampled_from(DTYPES),
    weight_dtype=st.sampled_from(DTYPES),
    strided=st.booleans(),
    seed=st.integers(0, 2**63 - 1),
    stream=st.integers(0, 2**63 - 1),
)
def test_project(device, candidates, n, d_part, dtype, weight_dtype, strided, seed, stream):
    torch.manual_seed(seed)
    z = _random((candidates, d_part), dtype, device, strided)
    seeded = SeededProjection(n, d_part, seed, std=0.5, stream=stream)
    drawn = seeded.materialize(device=device)
    stored = StoredProjection(_random((n, d_part), weight_dtype, device, strided))
    eps = torch.finfo(dtype).eps
    for projection, weight in ((seeded, drawn.weight), (stored, stored.weight)):
        factor = project(z, projection, backend="triton")
        expected = reference.project(z.double(), weight.double())
        bound = reference.project(z.double().abs(), weight.double().abs() + 0.5)
        assert (factor.shape, factor.dtype) == (expected.shape, dtype)
        assert ((factor.double() - expected).abs() <= 8 * eps * bound).all()


def test_autotune(device):
    z, projection = torch.randn(5, 13, device=device), SeededProjection(60, 13, seed=7, std=0.5)
    x, base = torch.randn(9, 20, device=device), torch.randn(9, 30, device=device)
    factors = Factors(torch.randn(5, 4, 20, device=device), torch.randn(5, 4, 30, device=device))

    def run(autotune):
        yield project(z, projection, backend="triton", autotune=autotune)
        yield project(z, projection.materialize(device=device), autotune=autotune, backend="triton")
        yield apply_deltas(x, base, factors, backend="triton", autotune=autotune)

    if device.type == "cpu":
        for call in range(3):
            with pytest.raises(ValueError, match="measures on a GPU"):
                list(run(True))[call]
        return
    for tuned, plain in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(tuned, plain)
