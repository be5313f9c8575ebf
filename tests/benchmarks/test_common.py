import json

import numpy as np
import pytest
from common import Done, Observed, run_cells


def sums(x):
    return x.sum(axis=1)


def test_observed_notes_when_each_target_was_reached():
    fun = Observed(sums, budget=10, targets=[5.0, 3.0, 0.0])
    fun(np.array([[9.0], [4.0], [6.0]]))
    fun(np.array([[2.0], [1.0]]))
    assert fun.hits == [2, 4, None]
    assert (fun.nfev, fun.best) == (5, 1.0)


def test_observed_ends_the_run_at_the_last_target():
    fun = Observed(sums, budget=10, targets=[1.0])
    with pytest.raises(Done):
        fun.one([0.5])
    assert fun.hits == [1]


def test_observed_counts_no_evaluation_beyond_the_budget():
    fun = Observed(sums, budget=3, targets=[1.0])
    fun(np.full((2, 1), 7.0))
    with pytest.raises(Done):
        fun(np.array([[6.0], [0.0]]))
    assert (fun.nfev, fun.best, fun.hits) == (3, 6.0, [None])
    with pytest.raises(Done):
        fun.one([0.0])
    assert fun.nfev == 3


def test_cells_are_run_once_and_failed_ones_again(tmp_path):
    path, calls = tmp_path / "cells.jsonl", []

    def run(n):
        calls.append(n)
        if n == 1 and calls.count(1) == 1:
            raise RuntimeError("out of luck")
        return {"square": n * n}

    cells = [{"n": n} for n in range(3)]
    first = run_cells(path, cells, run)
    assert "out of luck" in first[1]["error"]
    with path.open("a") as file:
        file.write('{"cell": {"n": 7}, "squ')  # killed while writing
    rows = run_cells(path, cells, run)
    assert [row["square"] for row in rows] == [0, 1, 4]
    assert calls == [0, 1, 2, 1]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def square(n):
    if n == 1:
        raise RuntimeError("out of luck")
    return {"square": n * n}


def test_cells_measured_side_by_side_are_those_of_one_after_the_other(tmp_path):
    cells = [{"n": n} for n in range(5)]
    alone = run_cells(tmp_path / "alone.jsonl", cells, square)
    together = run_cells(tmp_path / "together.jsonl", cells, square, jobs=3)
    assert together == alone
    assert len((tmp_path / "together.jsonl").read_text().splitlines()) == 5
