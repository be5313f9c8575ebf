import json
import os
from pathlib import Path

import pytest

pytest.importorskip("cocoex")
import multimodal

CELL = {"suite": "bbob", "function": 15, "dim": 5, "budget": 1_000, "run": 0}


def test_ours_runs_to_its_budget():
    row = multimodal.measure(**CELL, algorithm=multimodal.OURS)
    assert row["nfev"] == 1_000
    assert row["error_of_best"] > 0


def test_verdicts_follow_the_rank_sum_test():
    def rows(name, errors):
        return [
            {"cell": {"function": 6, "algorithm": name, "run": i}, "error_of_best": error}
            for i, error in enumerate(errors)
        ]

    names = [multimodal.OURS, "worse", "better", "alike", "rounding"]
    base = [100.0 + i for i in range(10)]
    found = rows(names[0], base) + rows("worse", [e + 50 for e in base])
    found += rows("better", [e - 50 for e in base]) + rows("alike", base[::-1])
    found += rows("rounding", [e + 1e-12 for e in base])
    summary = multimodal.summarize(found, [6, 7], names)
    assert list(summary) == [6]  # nothing is known of the other function
    verdicts = [summary[6][name].get("verdict") for name in names]
    assert verdicts == [None, "ours better", "ours worse", "no difference", "no difference"]
    assert summary[6]["better"]["rank"] == 1


@pytest.mark.skipif("DFO_PEERS" not in os.environ, reason="DFO_PEERS: the folder with the clones")
def test_peers_run(tmp_path):
    multimodal.main(Path(os.environ["DFO_PEERS"]), tmp_path, functions="6,28", budget=2_000, runs=2)
    report = json.loads((tmp_path / "multimodal-cec2013.json").read_text())
    assert set(report["results"]["6"]) == set(multimodal.ALGORITHMS)
    assert (tmp_path / "multimodal-cec2013.png").stat().st_size > 0
