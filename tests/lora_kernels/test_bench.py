import json
import os

import pytest
import torch

from lora_kernels import bench


@pytest.fixture
def tiny(monkeypatch):
    shapes = {"separate": bench.Shape(32, 32, 16), "fused": bench.Shape(32, 32, 32, fused=96)}
    monkeypatch.setattr(bench, "SHAPES", shapes)
    return ["--candidates", "2", "--tokens", "5", "--rank", "2", "--dim", "16", "--repeats", "1"]


@pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="backends differ")
def test_table_and_json(tiny, tmp_path, capsys):
    path = tmp_path / "bench.json"
    arguments = [*tiny, "--device", "cpu", "--backend", "cpu", "reference", "--json", str(path)]
    assert bench.main(arguments) == 0
    printed = capsys.readouterr().out
    record = json.loads(path.read_text())
    assert record["versions"]["torch"] == torch.__version__
    rows = record["rows"]
    assert {row["shape"] for row in rows} == {"separate", "fused"}
    assert {row["backend"] for row in rows} == {"cpu", "reference"}
    assert len(rows) == 2 * 2 * 4
    for row in rows:
        assert row["op"] in printed
        assert row["speedup"] == pytest.approx(row["loop_seconds"] / row["seconds"])
        assert row["roofline"] > 0


@pytest.mark.parametrize("dtype", bench.DTYPES.values())
def test_operations_and_loops_agree(interpreter, dtype):
    """In every type, the launch that projects and applies among them."""
    setting = bench.Setting(candidates=2, tokens=3, rank=2, dim=8, dtype=dtype)
    device, peaks = torch.device("cpu"), bench.cost.DEVICES["H100"]
    shape = bench.Shape(16, 16, 16, fused=48)
    found = list(bench.cases(shape, setting, device, "triton", peaks))
    assert [len(case.launches) for case in found] == [1, 1, 1, 3, 1]
    for case in found:
        bench._assert_equal(case.run(), case.loop())


def test_results_that_differ_are_an_error():
    one = torch.ones(3)
    with pytest.raises(AssertionError, match="differ by 1, allowed"):
        bench._assert_equal([one], [one + 1])
    with pytest.raises(AssertionError):
        bench._assert_equal(one * torch.nan, one)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["llama"], "no such shape: llama; there are separate"),
        (["--tokens", "0"], "at least 1"),
        (["--dim", "6"], "multiple of 4"),
        (["--backend", "cuda"], "invalid choice"),
    ],
)
def test_wrong_arguments_are_named(tiny, arguments, message, capsys):
    with pytest.raises(SystemExit):
        bench.main([*tiny, *arguments])
    assert message in capsys.readouterr().err
