import json

import overhead
import pytest

pytest.importorskip("matplotlib")


def test_measures_reports_and_shows_what_failed(tmp_path, monkeypatch):
    def broken(dim):
        raise RuntimeError("does not work")

    ours = {name: build for name, build in overhead.LIBRARIES.items() if "dfo_core" in name}
    baseline = {overhead.BASELINE: overhead.LIBRARIES[overhead.BASELINE]}
    monkeypatch.setattr(overhead, "LIBRARIES", baseline | ours | {"broken": broken})
    overhead.main(dims="5,12", rounds=2, out=tmp_path)
    results = json.loads((tmp_path / "overhead.json").read_text())["results"]
    for cells in results.values():
        assert all(cells[name]["median_ms"] > 0 for name in ours)
        assert cells["broken"] == {"error": "RuntimeError: does not work"}
    assert (tmp_path / "overhead.png").stat().st_size > 0


@pytest.mark.parametrize("name", overhead.LIBRARIES)
def test_every_library_takes_a_step(name):
    library = name.split()[0]
    if library in ("cmaes", "nevergrad", "evotorch"):
        pytest.importorskip(library)
    step = overhead.LIBRARIES[name](10)
    assert step() > 0


def test_a_slow_library_shows_the_limit():
    cells = overhead.measure(5, rounds=1, limit=0.0)
    assert cells[overhead.BASELINE]["error"] == "> 0 s"


def test_blocks_hold_a_whole_number_of_decompositions():
    for dim in (10, 100, 400, 800, 1600):
        assert overhead.block(dim) % overhead.lag(dim) == 0
        assert overhead.block(dim) >= overhead.MIN_BLOCK
