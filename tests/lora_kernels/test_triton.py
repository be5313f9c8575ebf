"""The Triton kernels, in the interpreter and on a GPU, against the reference in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_kernels import (
    Delta,
    Factors,
    SeededProjection,
    StoredProjection,
    apply_deltas,
    apply_deltas_grouped,
    project,
    project_and_apply,
    reference,
)

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
few = settings(derandomize=True, max_examples=80, deadline=None)
fewer = settings(few, max_examples=40)  # of what takes the interpreter long


def _random(shape, dtype, device, strided=False):
    """Standard normal entries; strided: every second of them, so that no stride is 1."""
    if strided:
        return _random((*shape[:-1], 2 * shape[-1]), dtype, device)[..., ::2]
    return torch.randn(shape, device=device).to(dtype)


def _wide(x, bases, deltas, change):
    """Arguments of the reference in float64, each tensor changed."""
    tensors = (bases, [d.factors.A for d in deltas], [d.factors.B for d in deltas])
    into = [delta.base for delta in deltas]
    start = [delta.columns[0] for delta in deltas]
    lists = [[change(t.double()) for t in group] for group in tensors]
    return (change(x.double()), *lists, into, start)


def _assert_deltas(x, bases, deltas, scale):
    """Compare with float64, allowing each product and the result a few roundings."""
    ys = apply_deltas_grouped(x, bases, deltas, scale, "triton")
    expected = reference.apply_deltas(*_wide(x, bases, deltas, torch.clone), scale)
    bounds = reference.apply_deltas(*_wide(x, bases, deltas, torch.abs), abs(scale))
    eps = torch.finfo(x.dtype).eps
    for y, exact, bound in zip(ys, expected, bounds, strict=True):
        assert (y.shape, y.dtype) == (exact.shape, x.dtype)
        assert y.is_contiguous()
        assert ((y.double() - exact).abs() <= 8 * eps * bound).all()


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
    columns = (margins[0], margins[0] + out_features)
    _assert_deltas(x, [base], [Delta(factors, columns=columns)], 0.3)


@st.composite
def modules(draw):
    """Frozen projections that share an input: for each, the (gap before, width) of its deltas."""
    sizes = st.tuples(st.integers(0, 20), st.integers(1, 50))
    return draw(st.lists(st.lists(sizes, min_size=1, max_size=2), min_size=1, max_size=2))


@fewer
@given(
    candidates=st.integers(0, 4),
    tokens=st.integers(0, 34),
    hidden=st.integers(1, 70),
    modules=modules(),
    tail=st.integers(0, 40),
    ranks=st.lists(st.integers(1, 64), min_size=1, max_size=3),
    dtype=st.sampled_from(DTYPES),
    x_shared=st.booleans(),
    shared=st.lists(st.booleans(), min_size=2, max_size=2),
    strided=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_apply_deltas_grouped(
    device, candidates, tokens, hidden, modules, tail, ranks, dtype, x_shared, shared, strided, seed
):
    torch.manual_seed(seed)
    x = _random(((candidates,) * (not x_shared)) + (tokens, hidden), dtype, device, strided)
    bases, deltas = [], []
    for place, sizes in enumerate(modules):
        stop = 0
        for gap, width in sizes:
            start, stop = stop + gap, stop + gap + width
            rank = ranks[len(deltas) % len(ranks)]
            factors = Factors(
                _random((candidates, rank, hidden), dtype, device, strided),
                _random((candidates, rank, width), dtype, device),
            )
            deltas.append(Delta(factors, place, (start, stop)))
        each = (candidates,) * (not shared[place])
        bases.append(_random((*each, tokens, stop + tail), dtype, device, strided))
    _assert_deltas(x, bases, deltas[::-1], 0.3)


@pytest.mark.parametrize("x_shared", [True, False])
def test_outer_strides_may_be_any(device, x_shared):
    x = _random((7, 6, 3, 20), torch.float32, device)[:, 2]
    x = x[:, 0] if x_shared else x.transpose(0, 1)
    base = _random((7, 3, 50), torch.float32, device).transpose(0, 1)[:, :, 10:40]
    factors = Factors(
        _random((2, 3, 20), torch.float32, device).transpose(0, 1),
        _random((3, 4, 30), torch.float32, device)[:, ::2],
    )
    _assert_deltas(x, [base], [Delta(factors, columns=(0, 30))], -1.5)


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
    out_dtype=st.sampled_from(DTYPES),
    strided=st.booleans(),
    seed=st.integers(0, 2**63 - 1),
    stream=st.integers(0, 2**63 - 1),
)
def test_project(
    device, candidates, n, d_part, dtype, weight_dtype, out_dtype, strided, seed, stream
):
    torch.manual_seed(seed)
    z = _random((candidates, d_part), dtype, device, strided)
    seeded = SeededProjection(n, d_part, seed, std=0.5, stream=stream)
    drawn = seeded.materialize(device=device)
    stored = StoredProjection(_random((n, d_part), weight_dtype, device, strided))
    eps = torch.finfo(out_dtype).eps
    for projection, weight in ((seeded, drawn.weight), (stored, stored.weight)):
        factor = project(z, projection, backend="triton", dtype=out_dtype)
        expected = reference.project(z.double(), weight.double(), torch.float64)
        bound = reference.project(z.double().abs(), weight.double().abs() + 0.5, torch.float64)
        assert (factor.shape, factor.dtype) == (expected.shape, out_dtype)
        assert ((factor.double() - expected).abs() <= 8 * eps * bound).all()


@fewer
@given(
    candidates=st.integers(0, 4),
    tokens=st.integers(0, 40),
    hidden=st.integers(1, 40),
    out_features=st.integers(1, 40),
    margins=st.tuples(st.integers(0, 20), st.integers(0, 20)),
    rank=st.sampled_from([1, 2, 3, 4, 9]),
    parts=st.tuples(st.integers(1, 70), st.integers(1, 20)),
    dtype=st.sampled_from(DTYPES),
    z_dtype=st.sampled_from(DTYPES),
    x_shared=st.booleans(),
    base_shared=st.booleans(),
    strided=st.booleans(),
    seed=st.integers(0, 2**63 - 1),
    stream=st.integers(0, 2**63 - 2),
)
def test_project_and_apply_in_one_launch(
    device, candidates, tokens, hidden, out_features, margins, rank, parts, dtype, z_dtype,
    x_shared, base_shared, strided, seed, stream,
):  # fmt: skip
    torch.manual_seed(seed)
    width, start = margins[0] + out_features + margins[1], margins[0]
    x = _random(((candidates,) * (not x_shared)) + (tokens, hidden), dtype, device, strided)
    base = _random(((candidates,) * (not base_shared)) + (tokens, width), dtype, device, strided)
    z = tuple(_random((candidates, part), z_dtype, device, strided) for part in parts)
    columns = (start, start + out_features)
    projections = (
        SeededProjection(rank * hidden, parts[0], seed, 0.1, stream),
        SeededProjection(rank * out_features, parts[1], seed, 0.2, stream + 1),
    )
    options = {"columns": columns, "fused": True}
    y = project_and_apply(x, base, z, projections, rank, 0.3, "triton", **options)
    weights = [p.materialize(device=device).weight.double() for p in projections]
    place = ([0], [start], 0.3)
    a, b = _project(z, weights, rank)
    (exact,) = reference.apply_deltas(x.double(), [base.double()], [a], [b], *place)
    # Drawn entries are right to some roundings of a standard deviation, not of themselves.
    a, b = _project([part.abs() for part in z], [w.abs() + 0.1 for w in weights], rank)
    x, base = x.double().abs(), base.double().abs()
    (bound,) = reference.apply_deltas(x, [base], [a], [b], *place)
    assert (y.shape, y.dtype) == (exact.shape, dtype)
    assert ((y.double() - exact).abs() <= 8 * torch.finfo(dtype).eps * bound).all()


def _project(z, weights, rank):
    for part, weight in zip(z, weights, strict=True):
        yield (part.double() @ weight.T).view(len(part), rank, len(weight) // rank)


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
