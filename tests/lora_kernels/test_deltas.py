import pytest
import torch
from torch import nn

from lora_kernels import Delta, Factors, apply_deltas, apply_deltas_grouped, reference

BACKENDS = ("cpu", "reference")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def _factors(candidates, rank, hidden, out_features, dtype=torch.float32):
    a, b = torch.randn(candidates, rank, hidden), torch.randn(candidates, rank, out_features)
    return Factors(a.to(dtype), b.to(dtype))


@pytest.mark.parametrize("backend", BACKENDS)
def test_definition(backend):
    x, base = torch.randn(5, 6, 10), torch.randn(5, 6, 8)
    factors = _factors(5, 3, 10, 8)
    y = apply_deltas(x, base, factors, scale=0.7, backend=backend)
    for p in range(5):
        weight = factors.B[p].T @ factors.A[p]  # (o, h), as in W x + B A x
        torch.testing.assert_close(y[p], base[p] + 0.7 * x[p] @ weight.T)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [1, 4, 16, 33])
@pytest.mark.parametrize("x_shared", [True, False])
@pytest.mark.parametrize("base_shared", [True, False])
@pytest.mark.parametrize("columns", [None, (8, 28)])
def test_cpu_equals_reference(dtype, rank, x_shared, base_shared, columns):
    candidates, tokens, hidden, out_features = 5, 19, 24, 20
    x = torch.randn(*(() if x_shared else (candidates,)), tokens, hidden).to(dtype)
    width = out_features if columns is None else 36
    base = torch.randn(*(() if base_shared else (candidates,)), tokens, width).to(dtype)
    factors = _factors(candidates, rank, hidden, out_features, dtype)
    y = apply_deltas(x, base, factors, 0.1, "cpu", columns=columns)
    x, base, a, b = (t.double() for t in (x, base, factors.A, factors.B))
    start = columns[0] if columns else 0
    (expected,) = reference.apply_deltas(x, [base], [a], [b], [0], [start], 0.1)
    assert y.dtype == dtype
    assert y.is_contiguous()
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(y.double(), expected, rtol=8 * eps, atol=16 * rank**0.5 * eps)


@pytest.mark.parametrize("backend", BACKENDS)
def test_other_columns_are_copied(backend):
    x, base, factors = torch.randn(6, 10), torch.randn(6, 24), _factors(3, 2, 10, 8)
    y = apply_deltas(x, base, factors, columns=slice(8, 16), backend=backend)
    assert torch.equal(y[..., :8], base[:, :8].expand(3, 6, 8))
    assert torch.equal(y[..., 16:], base[:, 16:].expand(3, 6, 8))
    middle = apply_deltas(x, base[:, 8:16], factors, backend=backend)
    torch.testing.assert_close(y[..., 8:16], middle)
    torch.testing.assert_close(apply_deltas(x, base, factors, columns=(8, 16), backend=backend), y)


@pytest.mark.parametrize("backend", BACKENDS)
def test_columns_that_are_not_one_stretch(backend):
    x, base, factors = torch.randn(6, 10), torch.randn(3, 6, 24), _factors(3, 2, 10, 8)
    columns = torch.randperm(24)[:8]
    y = apply_deltas(x, base, factors, 0.7, columns=columns, backend=backend)
    expected = base.clone()
    expected[..., columns] = apply_deltas(x, base[..., columns], factors, 0.7, backend=backend)
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_results_are_contiguous_whatever_the_bases_strides(backend):
    """As the ops' fake implementations say, for torch.compile."""
    x, base = torch.randn(5, 12), torch.randn(5, 3, 8).transpose(0, 1)
    factors = _factors(3, 2, 12, 8)
    y = apply_deltas(x, base, factors, backend=backend)
    assert y.is_contiguous()
    torch.testing.assert_close(y, apply_deltas(x, base.contiguous(), factors, backend=backend))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_scattered_columns_of_several_deltas(backend):
    """Two targets whose heads take turns in one output, beside a base with a plain delta."""
    torch.manual_seed(0)
    x, base, other = torch.randn(5, 12), torch.randn(5, 24), torch.randn(5, 8)
    of_q, of_v, of_o = (Factors(torch.randn(3, r, 12), torch.randn(3, r, 8)) for r in (2, 4, 1))
    q, v = torch.arange(24).view(2, 3, 4)[:, [0, 2]].transpose(0, 1).flatten(1)
    deltas = (Delta(of_q, 0, q), Delta(of_o, 1), Delta(of_v, 0, v))
    y, z = apply_deltas_grouped(x, (base, other), deltas, 0.7, backend)
    expected = apply_deltas(x, base, of_q, 0.7, columns=q, backend=backend)
    expected = apply_deltas(x, expected, of_v, 0.7, columns=v, backend=backend)
    torch.testing.assert_close(y, expected)
    short = (Delta(of_q, 0, q.int()), Delta(of_o, 1), Delta(of_v, 0, v.int()))
    torch.testing.assert_close(apply_deltas_grouped(x, (base, other), short, 0.7, backend)[0], y)
    torch.testing.assert_close(z, apply_deltas(x, other, of_o, 0.7, backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("candidates", "tokens"), [(0, 4), (3, 0), (0, 0)])
@pytest.mark.parametrize("x_shared", [True, False])
def test_empty(backend, candidates, tokens, x_shared):
    x = torch.randn(*(() if x_shared else (candidates,)), tokens, 10)
    y = apply_deltas(x, torch.randn(tokens, 8), _factors(candidates, 2, 10, 8), backend=backend)
    assert y.shape == (candidates, tokens, 8)


@pytest.mark.parametrize("backend", BACKENDS)
def test_arguments_are_not_changed_and_need_not_be_contiguous(backend):
    x, base = torch.randn(10, 6).T, torch.randn(4, 6, 16)[..., ::2]
    factors = Factors(torch.randn(2, 10, 4).permute(2, 0, 1), torch.randn(4, 4, 8)[:, ::2])
    before = [t.clone() for t in (x, base, factors.A, factors.B)]
    y = apply_deltas(x, base, factors, backend=backend)
    for tensor, copy in zip((x, base, factors.A, factors.B), before, strict=True):
        assert torch.equal(tensor, copy)
    dense = Factors(factors.A.contiguous(), factors.B.contiguous())
    expected = apply_deltas(x.contiguous(), base.contiguous(), dense, backend=backend)
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("x_shared", [True, False])
@pytest.mark.parametrize("base_shared", [True, False])
def test_groups_equal_the_targets_one_by_one(dtype, x_shared, base_shared):
    """Separate outputs of different widths, a fused one with gaps, ranks that differ, any order."""
    candidates, tokens, hidden = 3, 9, 24
    x = torch.randn(*(() if x_shared else (candidates,)), tokens, hidden).to(dtype)
    q, kv = (
        torch.randn(*(() if base_shared else (candidates,)), tokens, width).to(dtype)
        for width in (20, 40)
    )
    of_q, of_k, of_v = (
        _factors(candidates, rank, hidden, width, dtype)
        for rank, width in ((4, 20), (2, 8), (33, 16))
    )
    deltas = (Delta(of_v, 1, slice(20, 36)), Delta(of_q), Delta(of_k, base=1, columns=(4, 12)))
    new_q, new_kv = apply_deltas_grouped(x, (q, kv), deltas, 0.1, "cpu")
    torch.testing.assert_close(new_q, apply_deltas(x, q, of_q, 0.1, "cpu"))
    alone = apply_deltas(x, kv, of_k, 0.1, "cpu", columns=(4, 12))
    alone = apply_deltas(x, alone, of_v, 0.1, "cpu", columns=(20, 36))
    torch.testing.assert_close(new_kv, alone)
    reference_q, reference_kv = apply_deltas_grouped(x, (q, kv), deltas, 0.1, "reference")
    for y, expected in ((new_q, reference_q), (new_kv, reference_kv)):
        assert y.is_contiguous()
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(y, expected, rtol=8 * eps, atol=16 * 33**0.5 * eps)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("candidates", "tokens"), [(0, 4), (3, 0)])
@pytest.mark.parametrize("x_shared", [True, False])
def test_empty_groups(backend, candidates, tokens, x_shared):
    x = torch.randn(*(() if x_shared else (candidates,)), tokens, 10)
    deltas = [Delta(_factors(candidates, 2, 10, width), i) for i, width in enumerate((8, 3))]
    bases = [torch.randn(tokens, width) for width in (8, 3)]
    ys = apply_deltas_grouped(x, bases, deltas, backend=backend)
    assert [y.shape for y in ys] == [(candidates, tokens, 8), (candidates, tokens, 3)]


@pytest.mark.parametrize(
    ("deltas", "message"),
    [
        ([], r"every base needs a delta; there is none for \[0, 1\]"),
        ([(0, None, 3)], r"none for \[1\]"),
        ([(0, None, 3), (2, None, 3)], "goes to base 2, but there are 2"),
        ([(0, None, 3), (-1, None, 3)], "goes to base -1"),
        ([(0, None, 3), (2, torch.arange(8), 3)], "goes to base 2, but there are 2"),
        ([(0, None, 3), (1, (0, 8), 3), (1, (7, 15), 3)], "base 1 columns 0 to 8 and those from 7"),
        ([(0, None, 3), (1, (0, 8), 2)], r"as many candidates; got \[2, 3\]"),
        ([(0, None, 3), (1, (20, 28), 3)], "base's 24"),
        ([(0, None, 3), (1, None, 3)], "base's width; that is 24"),
    ],
)
def test_wrong_groups_are_named(deltas, message):
    x, bases = torch.zeros(6, 10), (torch.zeros(6, 8), torch.zeros(6, 24))
    deltas = [Delta(_factors(count, 2, 10, 8), base, cols) for base, cols, count in deltas]
    with pytest.raises(ValueError, match=message):
        apply_deltas_grouped(x, bases, deltas)


def test_a_group_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="no bases"):
        apply_deltas_grouped(torch.zeros(6, 10), (), ())


def test_equals_peft():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["0"])
    model = peft.inject_adapter_in_model(config, nn.Sequential(nn.Linear(10, 8)))
    layer, x = model[0], torch.randn(6, 10)
    factors = _factors(1, 4, 10, 8)
    with torch.no_grad():
        layer.lora_A["default"].weight.copy_(factors.A[0])
        layer.lora_B["default"].weight.copy_(factors.B[0].T)
        y = apply_deltas(x, layer.base_layer(x), factors, scale=6 / 4)
        torch.testing.assert_close(y[0], layer(x))


def test_factors():
    factors = _factors(5, 3, 10, 8)
    assert (len(factors), factors.rank) == (5, 3)
    block = factors[1:3]
    assert len(block) == 2
    assert torch.equal(block.A, factors.A[1:3])
    assert block.B.data_ptr() == factors.B[1].data_ptr()
    assert factors.to(dtype=torch.float16).B.dtype == torch.float16
    assert factors.to("meta").A.device.type == "meta"
    with pytest.raises(TypeError, match="slice"):
        factors[0]


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.zeros(2, 3, 4), torch.zeros(2, 4, 4), r"\(2, 3, 4\) and \(2, 4, 4\)"),
        (torch.zeros(3, 4), torch.zeros(3, 4), r"\(3, 4\)"),
        (torch.zeros(2, 3, 4), torch.zeros(2, 3, 4, dtype=torch.float16), "float16"),
        (torch.zeros(2, 3, 4), torch.zeros(2, 3, 4, device="meta"), "meta"),
    ],
)
def test_wrong_factors(a, b, message):
    with pytest.raises(ValueError, match=message):
        Factors(a, b)


@pytest.mark.parametrize(
    ("x", "base", "options", "message"),
    [
        ((6, 11), (6, 8), {}, r"\(T, 10\) or \(3, T, 10\).*got \(6, 11\)"),
        ((2, 6, 10), (6, 8), {}, r"got \(2, 6, 10\)"),
        ((10,), (6, 8), {}, r"got \(10,\)"),
        ((6, 10), (5, 8), {}, r"\(6, width\) or \(3, 6, width\).*got \(5, 8\)"),
        ((6, 10), (4, 6, 8), {}, r"got \(4, 6, 8\)"),
        ((6, 10), (6, 9), {}, "8 wide, .* base's width; that is 9"),
        ((6, 10), (6, 24), {"columns": (8, 15)}, "that is 7"),
        ((6, 10), (6, 24), {"columns": (20, 28)}, "base's 24"),
        ((6, 10), (6, 24), {"columns": slice(0, 16, 2)}, "columns"),
        ((6, 10), (6, 24), {"columns": torch.arange(7)}, r"8 wide.*got shape \(7,\)"),
        ((6, 10), (6, 24), {"columns": torch.ones(24, dtype=torch.bool)}, "as many integers"),
        ((6, 10), (6, 24), {"columns": torch.ones(8)}, "float32"),
        ((6, 10), (6, 8), {"precision": "ieee"}, "tf32x3, tf32; got 'ieee'"),
        ((6, 10), (6, 8), {"backend": "gpu"}, "got 'gpu'"),
        ((6, 10), (6, 8), {"autotune": True}, "the backend is cpu"),
    ],
)
def test_wrong_arguments_are_named(x, base, options, message):
    with pytest.raises(ValueError, match=message):
        apply_deltas(torch.zeros(x), torch.zeros(base), _factors(3, 2, 10, 8), **options)


def test_types_and_devices_must_agree():
    x, base, factors = torch.zeros(6, 10), torch.zeros(6, 8), _factors(3, 2, 10, 8)
    with pytest.raises(ValueError, match="float16 on cpu"):
        apply_deltas(x.half(), base, factors)
    with pytest.raises(ValueError, match="on meta"):
        apply_deltas(x, base.to("meta"), factors)
    with pytest.raises(ValueError, match="float64"):
        apply_deltas(x.double(), base.double(), factors.to(dtype=torch.float64))
