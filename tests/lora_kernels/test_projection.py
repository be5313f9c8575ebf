import math

import pytest
import torch

from lora_kernels import Projection, SeededProjection, StoredProjection, project


@pytest.fixture
def seeded():
    return SeededProjection(n=60, d_part=13, seed=7, std=0.5, stream=2)


def test_project_is_a_matrix_product_and_a_reshape():
    weight, z = torch.randn(60, 13), torch.randn(3, 13)
    factor = project(z, StoredProjection(weight), shape=(4, 15))
    torch.testing.assert_close(factor, (z @ weight.T).view(3, 4, 15))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_seeded_equals_stored(seeded, backend, dtype):
    z = torch.randn(5, 13).to(dtype)
    stored = project(z, seeded.materialize(), backend="reference")
    assert stored.dtype == dtype
    torch.testing.assert_close(project(z, seeded, backend=backend), stored)


def test_blocks_of_rows_do_not_show(seeded, monkeypatch):
    z = torch.randn(5, 13)
    whole = project(z, seeded)
    monkeypatch.setattr("lora_kernels.cpu.BLOCK_ENTRIES", 100)
    torch.testing.assert_close(project(z, seeded), whole)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_no_candidates(seeded, backend):
    z = torch.empty(0, 13)
    assert project(z, seeded, (4, 15), backend).shape == (0, 4, 15)
    assert project(z, seeded.materialize(), (4, 15), backend).shape == (0, 4, 15)


def test_std(seeded):
    large = SeededProjection(n=1000, d_part=100, seed=0, std=0.3)
    assert large.materialize().std == pytest.approx(0.3, rel=0.02)
    assert seeded.scaled(3).std == 1.5
    assert seeded.materialize().scaled(3).std == pytest.approx(3 * seeded.materialize().std)
    z = torch.randn(2, 13)
    torch.testing.assert_close(project(z, seeded.scaled(3)), 3 * project(z, seeded))


def test_materialize_chooses_type(seeded):
    half = seeded.materialize(dtype=torch.bfloat16)
    assert isinstance(half, Projection)
    assert (half.n, half.d_part, half.weight.dtype) == (60, 13, torch.bfloat16)
    assert half.materialize(torch.float32).weight.dtype == torch.float32


@pytest.mark.parametrize("z_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_stored_in_another_type_than_z(seeded, z_dtype, backend):
    z, stored = torch.randn(3, 13).to(z_dtype), seeded.materialize(torch.float16)
    expected = (z.double() @ stored.weight.double().T).to(z_dtype)
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if z_dtype == torch.bfloat16 else {}
    torch.testing.assert_close(project(z, stored, backend=backend), expected, **tolerance)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_sums_are_in_float32_whatever_the_types(backend):
    z, stored = torch.tensor([[300.0]]).half(), StoredProjection(torch.tensor([[300.0]]))
    found = project(z, stored, backend=backend, dtype=torch.float32)
    assert found.item() == 90_000  # beyond float16


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("stored", [True, False])
def test_factors_of_another_type_than_z(seeded, stored, backend):
    z, projection = torch.randn(3, 13), seeded.materialize() if stored else seeded
    factor = project(z, projection, (4, 15), backend, dtype=torch.bfloat16)
    expected = project(z, projection, (4, 15), backend).to(torch.bfloat16)
    torch.testing.assert_close(factor, expected)


@pytest.mark.parametrize(
    ("z", "options", "message"),
    [
        (torch.zeros(3, 12), {}, r"\(P, 13\); got \(3, 12\)"),
        (torch.zeros(13), {}, r"got \(13,\)"),
        (torch.zeros(3, 13, dtype=torch.float64), {}, "float64"),
        (torch.zeros(3, 13), {"dtype": torch.float64}, "dtype must be .* got torch.float64"),
        (torch.zeros(3, 13), {"shape": (4, 16)}, r"60 entries; got \(4, 16\)"),
        (torch.zeros(3, 13), {"backend": "cuda"}, "triton, cpu, reference; got 'cuda'"),
        (torch.zeros(3, 13), {"autotune": True}, "autotune=True applies to the triton backend"),
        (torch.zeros(3, 13, device="meta"), {"stored": True}, "meta and cpu"),
    ],
)
def test_wrong_arguments_are_named(seeded, z, options, message):
    projection = seeded.materialize() if options.pop("stored", False) else seeded
    with pytest.raises(ValueError, match=message):
        project(z, projection, **options)


@pytest.mark.parametrize(
    "wrong",
    [{"n": 0}, {"d_part": 2**31}, {"seed": -1}, {"seed": 2**63}, {"stream": -1},
     {"std": math.nan}, {"std": -1.0}],
)  # fmt: skip
def test_wrong_seeded_projections(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SeededProjection(**{"n": 6, "d_part": 3, "seed": 0, "std": 1.0, **wrong})


@pytest.mark.parametrize("weight", [torch.zeros(3), torch.zeros(2, 3, dtype=torch.int64)])
def test_wrong_stored_projections(weight):
    with pytest.raises(ValueError, match="weight"):
        StoredProjection(weight)
