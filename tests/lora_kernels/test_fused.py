import pytest
import torch

from lora_kernels import (
    Factors,
    SeededProjection,
    apply_deltas,
    cost,
    ops,
    project,
    project_and_apply,
)

TO_A = SeededProjection(20, 7, seed=3, std=0.5)
TO_B = SeededProjection(16, 5, seed=3, std=0.5, stream=1)


def _arguments(x_dtype=torch.float32, z_dtype=torch.float32):
    z = torch.randn(3, 7).to(z_dtype), torch.randn(3, 5).to(z_dtype)
    return torch.randn(6, 10).to(x_dtype), torch.randn(3, 6, 12).to(x_dtype), z


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
def test_equals_project_and_apply_deltas(backend, stored, x_dtype):
    x, base, z = _arguments(x_dtype, torch.float16)
    projections = (TO_A.materialize(), TO_B.materialize()) if stored else (TO_A, TO_B)
    y = project_and_apply(x, base, z, projections, 2, 0.7, backend, columns=(4, 12))
    a, b = (
        project(part.float(), to, shape, backend).to(x_dtype)
        for part, to, shape in zip(z, (TO_A, TO_B), ((2, 10), (2, 8)), strict=True)
    )
    expected = apply_deltas(x, base, Factors(a, b), 0.7, backend, columns=(4, 12))
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("pays", [True, False])
def test_the_cost_model_decides(interpreter, monkeypatch, pays):
    """Unless the caller does."""
    launched = []
    module = ops._implementation("triton", torch.device("cpu"))
    in_one = module.project_apply

    def watched(*args, **options):
        launched.append(options)
        return in_one(*args, **options)

    monkeypatch.setattr(module, "project_apply", watched)
    monkeypatch.setattr(cost, "fusing_pays", lambda sizes, device: pays)
    x, base, z = _arguments()
    expected = project_and_apply(x, base, z, (TO_A, TO_B), 2, columns=(4, 12), backend="cpu")
    for fused, count in ((None, pays), (True, pays + 1), (False, pays + 1)):
        options = {"columns": (4, 12), "backend": "triton", "fused": fused}
        y = project_and_apply(x, base, z, (TO_A, TO_B), 2, **options)
        torch.testing.assert_close(y, expected)
        assert len(launched) == count


def test_the_cost_model_is_told_the_sizes(interpreter, monkeypatch):
    told = []
    monkeypatch.setattr(cost, "fusing_pays", lambda sizes, device: told.append(sizes))
    x, base, z = _arguments()
    project_and_apply(x, base, z, (TO_A, TO_B), 2, columns=(4, 12), backend="triton")
    assert told == [
        cost.Sizes(3, 6, 10, 8, 2, 7, 5, torch.float32, 12, x_shared=True, base_shared=False)
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 3}, "divide the projections' entries, 20 and 16; got 3"),
        ({"rank": 0}, "got 0"),
        ({"z": (torch.zeros(3, 7), torch.zeros(3, 6))}, r"\(P, 5\); got \(3, 6\)"),
        ({"z": (torch.zeros(3, 7), torch.zeros(2, 5))}, "got 3 and 2"),
        ({"z": (torch.zeros(3, 7), torch.zeros(3, 5).double())}, "float64"),
        (
            {"z": 2 * (torch.zeros(3, 7, device="meta"),), "projections": (TO_A, TO_A)},
            "device, cpu",
        ),
        ({"x": torch.zeros(6, 11)}, r"\(T, 10\)"),
        ({"base": torch.zeros(6, 12).half()}, "float16"),
        ({"base": torch.zeros(6, 10)}, "8 wide"),
        ({"fused": True}, "applies to the triton backend; the backend is cpu"),
        ({"fused": True, "projections": (TO_A, TO_B.materialize())}, "seeded"),
        ({"precision": "fp8"}, "got 'fp8'"),
    ],
)
def test_wrong_arguments_are_named(changes, message):
    x, base, z = _arguments()
    arguments = {"x": x, "base": base, "z": z, "projections": (TO_A, TO_B), "rank": 2}
    with pytest.raises(ValueError, match=message):
        project_and_apply(**{**arguments, "columns": (4, 12), **changes})
