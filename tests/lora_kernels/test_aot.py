"""What the compilers make of the kernels, on a machine without a GPU."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest

from lora_kernels.tiles import TILES, Tile

pytest.importorskip("triton")

# The newest matrix instruction of each architecture, which the half-precision kernels must use.
NEWEST = {
    "sm_80": "mma.sync",
    "sm_86": "mma.sync",
    "sm_90": "wgmma.mma_async",
    "sm_100": "tcgen05.mma",
    "gfx942": "v_mfma",
}


def _compiling():
    return {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


def _inspect(*arguments):
    """The reports of python -m lora_kernels.inspect, none of which may name a problem."""
    command = [sys.executable, "-m", "lora_kernels.inspect", "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=_compiling())
    assert done.stdout, done.stderr
    reports = json.loads(done.stdout)
    assert [report for report in reports if report["problems"]] == []
    assert done.returncode == 0
    return reports


def _assert_kernels(arch, reports):
    assert {report["kernel"] for report in reports} == set(TILES[arch])
    for report in reports:
        if report["kernel"].endswith("_half"):
            assert NEWEST[arch] in report["matrix_instructions"]


@pytest.mark.parametrize("arch", ["sm_90"])
def test_every_kernel_compiles_well(arch):
    """Tensor cores in use, no register spilled, shared memory within the card's limit."""
    _assert_kernels(arch, _inspect("--quick", arch))


@pytest.mark.slow
@pytest.mark.parametrize("arch", TILES)
def test_every_kind_of_call_compiles_well(arch):
    reports = _inspect("--jobs", "2", arch)
    _assert_kernels(arch, reports)
    targets = {report["label"].split(", ")[-1] for report in reports}
    assert {"1 target", "2 targets", "3 targets"} <= targets


@pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="kernels are interpreted")
def test_problems_are_found():
    """The gate is worth something only if it can fail."""
    from lora_kernels import aot, variants
    from lora_kernels.triton_launch import apply_constants

    tile = Tile(64, 32, 64, 4, 2)
    variant = next(v for v in variants.variants("sm_80") if v.kernel == "apply_float32")
    constants = apply_constants(tile, 64, 1, False, variants.TYPES["fp32"], "tf32x3")
    report = aot.compile_variant(
        dataclasses.replace(variant, tile=tile, constants=constants), "sm_80"
    )
    assert report.spills > 0
    worse = dataclasses.replace(report, matrix_instructions={}, shared=report.shared_limit + 1)
    problems = "; ".join(worse.problems)
    for word in ("tensor-core", "spills", "stack", "shared"):
        assert word in problems


def test_inspect_prints_a_table(capsys, monkeypatch):
    from lora_kernels import inspect
    from lora_kernels.aot import Report

    good = Report("sm_80", "project", "5 candidates", "tile", {"mma.sync": 3}, 90, 0, 0, 1024, 2048)
    bad = dataclasses.replace(good, kernel="apply_half", spills=16)
    monkeypatch.setattr(inspect, "reports", lambda *_: [good, bad])
    assert inspect.main(["sm_80"]) == 1
    printed = capsys.readouterr().out
    assert "3 mma.sync" in printed
    assert "register spills (16)" in printed
    monkeypatch.setattr(inspect, "reports", lambda *_: [good])
    assert inspect.main([]) == 0
    with pytest.raises(SystemExit):
        inspect.main(["sm_1"])
