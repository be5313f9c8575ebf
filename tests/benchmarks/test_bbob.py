import json
import warnings

import pytest

pytest.importorskip("cocoex")
pytest.importorskip("matplotlib")
import bbob


def test_measures_and_reports(tmp_path):
    names = ["dfo_core CMAES", "dfo_core BIPOP", "dfo_core LoTFWA", "dfo_core random", "scipy DE"]
    bbob.main(subset="ci", out=tmp_path, budget=10, only=names)
    report = json.loads((tmp_path / "bbob-ci.json").read_text())
    assert set(report["results"]) == set(names)
    for result in report["results"].values():
        for share in (*result["dims"].values(), *result["groups"].values()):
            assert 0 < share["mean"] < 1
        by_dim = [share["mean"] for share in result["dims"].values()]
        assert result["all"]["mean"] == pytest.approx(sum(by_dim) / len(by_dim))
    assert report["environment"]["packages"]["numpy"]
    assert (tmp_path / "bbob-ci.png").stat().st_size > 0


def test_reports_what_there_is_and_no_share_of_less_than_all_functions(tmp_path):
    bbob.main(subset="ci", out=tmp_path, budget=10, only=["dfo_core random"], dims="2")
    lines = (tmp_path / "bbob.jsonl").read_text().splitlines(keepends=True)
    bbob.main(subset="ci", out=tmp_path, budget=10, only=["dfo_core random"], report_only=True)
    random = json.loads((tmp_path / "bbob-ci.json").read_text())["results"]["dfo_core random"]
    assert random["dims"]["2"]["mean"] > 0
    assert random["dims"]["5"] is random["all"] is None
    (tmp_path / "bbob.jsonl").write_text("".join(lines[1:]))
    bbob.main(subset="ci", out=tmp_path, budget=10, only=["dfo_core random"], report_only=True)
    random = json.loads((tmp_path / "bbob-ci.json").read_text())["results"]["dfo_core random"]
    assert random["dims"]["2"] is None
    assert (tmp_path / "bbob.jsonl").read_text() == "".join(lines[1:])


@pytest.mark.parametrize("name", bbob.OPTIMIZERS)
def test_every_optimizer_runs_to_its_budget_or_the_last_target(name):
    library = name.split()[0]
    if library in ("cmaes", "nevergrad"):
        pytest.importorskip(library)
    with warnings.catch_warnings():  # nevergrad's are switched off for good by its run
        row = bbob.measure(function=1, dim=2, instance=1, budget=100, optimizer=name)
    assert row["nfev"] == 200 or row["hits"][-1] is not None
    reached = [hit for hit in row["hits"] if hit is not None]
    assert reached == sorted(reached)


def test_runs_are_reproducible():
    cell = {"function": 3, "dim": 2, "instance": 1, "budget": 20}
    for name in ("dfo_core CMAES", "dfo_core LoTFWA", "pycma", "scipy DE"):
        first, second = (bbob.measure(**cell, optimizer=name)["hits"] for _ in range(2))
        assert first == second
