"""Methods side by side: what is kept, what goes on, and what is refused."""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from integrations import UserError
from integrations.comparison import (
    RESULTS,
    SETTINGS,
    Comparison,
    Outcome,
    compare,
    read_outcomes,
    run_trial,
)
from integrations.comparison_plots import plot_comparison
from integrations.comparison_summary import summarize
from integrations.methods.registry import METHODS, choose_methods
from integrations.methods.trial import Trial


@pytest.fixture
def comparison(saved_model, data):
    return Comparison(str(saved_model), "sst2", str(data), shots=4, budget=6)


METHOD_NAMES = tuple(METHODS)


def test_names_and_groups_of_methods():
    assert choose_methods("all") == METHOD_NAMES
    both = {*choose_methods("gradient-free"), *choose_methods("gradient-based")}
    assert both == set(METHODS)
    assert choose_methods(["f-lora", "c-lora"]) == ("c-lora", "f-lora")
    with pytest.raises(UserError, match="c-lora"):
        choose_methods(["clora"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"budget": None}, "limit"),
        ({"budget": 0}, "budget"),
        ({"budget": 6.5}, "budget must be a whole number"),
        ({"test_limit": 0}, "test_limit must be a whole number"),
        ({"seconds": -1.0}, "seconds"),
        ({"marks": (0.5, 0.2)}, "marks"),
        ({"max_length": 0}, "max_length must be a whole number of 1 or more; got 0"),
        ({"shots": 1.5}, "shots must be a whole number"),
    ],
)
def test_limits_that_make_no_sense_are_refused(changes, words):
    with pytest.raises(UserError, match=words):
        Comparison("model", "sst2", **changes)


def test_outcomes_say_what_came_of_each_seed(comparison, tmp_path):
    outcomes = compare(comparison, ["c-lora", "f-lora"], [0, 1], tmp_path, isolate=False)
    assert [(o.seed, o.method) for o in outcomes] == [
        (0, "c-lora"), (0, "f-lora"), (1, "c-lora"), (1, "f-lora"),
    ]  # fmt: skip
    for outcome in outcomes:
        assert outcome.error is None
        assert 0 <= outcome.score <= 1
        assert 6 <= outcome.evaluations <= 12
        assert outcome.parameters == 2 * 500
        assert outcome.memory >= 0
        assert outcome.course[0]["evaluations"] == 0
        assert outcome.dev_score == max(look["score"] for look in outcome.course)
    assert read_outcomes(tmp_path) == [type(o)(**json.loads(json.dumps(vars(o)))) for o in outcomes]
    rows = {row.method: row for row in summarize(outcomes)}
    scores = [o.score for o in outcomes if o.method == "f-lora"]
    assert rows["f-lora"].score == pytest.approx(statistics.mean(scores))
    assert rows["f-lora"].std == pytest.approx(statistics.stdev(scores))
    plot_comparison(outcomes, tmp_path / "plot.png", metric="accuracy")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_paths_and_numpy_s_numbers_are_kept_as_json_has_them(saved_model, data, tmp_path):
    given = Comparison(str(saved_model), "sst2", data, shots=np.int64(4), budget=6)
    (outcome,) = compare(given, ["manual"], np.arange(1), tmp_path, isolate=False)
    assert (outcome.error, read_outcomes(tmp_path)[0].seed) == (None, 0)
    same = Comparison(str(saved_model), "sst2", str(data), shots=4, budget=6)
    (again,) = compare(same, ["manual"], [0], tmp_path, isolate=False)
    assert again.score == outcome.score
    with pytest.raises(UserError, match="seed must be a whole number of 0 or more; got -1"):
        compare(same, ["manual"], [-1], tmp_path, isolate=False)


def test_a_mean_over_fewer_seeds_says_so():
    outcomes = [Outcome("lora", seed, score=0.8) for seed in range(3)]
    outcomes += [Outcome("mezo", 0, score=0.7), Outcome("mezo", 1, error="no memory")]
    outcomes += [Outcome("bbt", 0, error="no luck")]
    titles = {row.method: row.title for row in summarize(outcomes)}
    names = {method: METHODS[method].title for method in titles}
    assert titles == names | {"mezo": f"{names['mezo']} (1 of 3 seeds)"}
    both_failed = [o for o in outcomes if o.method == "mezo"] + [Outcome("lora", 0, score=0.8)]
    assert all("seeds" not in row.title for row in summarize(both_failed))


@pytest.fixture
def in_place_of_c_lora(monkeypatch):
    """Let a class be what is run as c-lora."""

    def put(learner):
        monkeypatch.setattr("integrations.methods.lora.Own", learner, raising=False)
        own = type(METHODS["c-lora"])("Own", "gradient-free", "lora:Own", 1, "nowhere")
        monkeypatch.setitem(METHODS, "c-lora", own)

    return put


class Growing:
    """Has a number more after each step, and is the better for it."""

    def __init__(self, trial):
        self.evaluations = self.parameters = 0
        self.labels = {id(e): e.label for e in (*trial.encoder.task.dev, *trial.encoder.task.test)}

    def step(self):
        self.evaluations = self.parameters = self.parameters + 1
        return 1 / self.parameters

    def logits(self, examples):
        right = np.eye(2)[[self.labels[id(example)] for example in examples]]
        return self.parameters * right

    def state(self):
        return self.parameters

    def restore(self, state):
        self.parameters = state


def test_tuned_numbers_are_those_of_the_end_whatever_the_marks(comparison, in_place_of_c_lora):
    in_place_of_c_lora(Growing)
    outcome = run_trial(replace(comparison, marks=(0.2, 0.5)), "c-lora", 0)
    assert (outcome.parameters, outcome.score, len(outcome.marked)) == (6, 1.0, 2)


def test_a_frozen_model_whose_losses_are_not_finite_fails(comparison, in_place_of_c_lora, tmp_path):
    class Overflowing(Growing):
        def logits(self, examples):
            return np.full((len(examples), 2), np.nan)

    in_place_of_c_lora(Overflowing)
    (outcome,) = compare(comparison, ["c-lora"], [0], tmp_path, isolate=False)
    assert "the frozen model's development loss is nan" in outcome.error


@pytest.mark.parametrize(
    ("name", "text"),
    [(SETTINGS, "{}"), (SETTINGS, "{"), (RESULTS, '{"score": 1}\n'), (RESULTS, "x\n")],
)
def test_files_of_something_else_are_named(comparison, tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=rf"{name} .*pass another folder"):
        compare(comparison, ["manual"], [0], tmp_path, isolate=False)
    assert (tmp_path / name).read_text() == text


def test_it_goes_on_with_what_is_missing(comparison, tmp_path):
    first = compare(comparison, ["f-lora"], [0], tmp_path, isolate=False)
    path = tmp_path / RESULTS
    path.write_text(path.read_text() + '{"outcome": {"method": "c-l')  # killed while writing
    seen = []
    compare(
        comparison, ["c-lora", "f-lora"], [0], tmp_path, isolate=False,
        watch=lambda outcome, known: seen.append((outcome.method, known)),
    )  # fmt: skip
    assert seen == [("c-lora", False), ("f-lora", True)]
    assert {o.method: o for o in read_outcomes(tmp_path)}["f-lora"].score == first[0].score
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_results_of_another_comparison_are_not_mixed(comparison, saved_model, data, tmp_path):
    compare(comparison, ["f-lora"], [0], tmp_path, isolate=False)
    other = Comparison(str(saved_model), "sst2", str(data), shots=4, budget=7)
    with pytest.raises(UserError, match="budget 6, not 7"):
        compare(other, ["f-lora"], [0], tmp_path, isolate=False)


def test_what_cannot_work_is_told_before_a_folder_is_claimed(
    comparison, saved_model, data, tmp_path
):
    for changes, words in (
        ({"model": "no/such"}, "no/such"),
        ({"dtype": "int3"}, "int3"),
        ({"label_words": ("bad", "bad")}, "begin with the same token"),
    ):
        with pytest.raises(UserError, match=words):
            compare(replace(comparison, **changes), ["f-lora"], [0], tmp_path, isolate=False)
    with pytest.raises(UserError, match="seeds must differ"):
        compare(comparison, ["f-lora"], [0, 0], tmp_path, isolate=False)
    assert not any(tmp_path.iterdir())


def test_failures_alone_do_not_hold_a_folder(comparison, tmp_path, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError

    monkeypatch.setattr("integrations.comparison.fit", fail)
    assert compare(comparison, ["f-lora"], [0], tmp_path, isolate=False)[0].error is not None
    monkeypatch.undo()
    nowhere = replace(comparison, model="no/such")
    with pytest.raises(UserError, match="no/such"):
        compare(nowhere, ["f-lora"], [0], tmp_path, isolate=False)
    other = replace(comparison, budget=7)
    assert compare(other, ["f-lora"], [0], tmp_path, isolate=False)[0].error is None
    assert json.loads((tmp_path / SETTINGS).read_text())["comparison"]["budget"] == 7
    assert len((tmp_path / RESULTS).read_text().splitlines()) == 1  # the others' failures are gone


@pytest.mark.slow
def test_a_comparison_in_which_all_failed_fails(dfo_lora, saved_model, data, tmp_path):
    arguments = ["compare", "--model", saved_model, "--task", "sst2", "--data", data]
    arguments += ["--shots", 4, "--budget", 6, "--methods", "in-context", "--seeds", "0"]
    status, out, _ = dfo_lora(*arguments, "--max-length", 1, "--out", tmp_path)
    assert status == 1
    assert "failed:" in out


def test_a_method_that_fails_does_not_stop_the_others(comparison, tmp_path, monkeypatch):
    class Failing:
        def __init__(self, trial: Trial) -> None:
            raise ZeroDivisionError("no luck")

    monkeypatch.setattr("integrations.methods.lora.Failing", Failing, raising=False)
    broken = type(METHODS["c-lora"])("Broken", "gradient-free", "lora:Failing", 1, "nowhere")
    monkeypatch.setitem(METHODS, "c-lora", broken)
    outcomes = compare(comparison, ["c-lora", "f-lora"], [0], tmp_path, isolate=False)
    assert outcomes[0].error == "ZeroDivisionError: no luck"
    assert outcomes[1].error is None
    (row, _) = summarize(outcomes)
    assert (row.score, row.errors) == (None, ("ZeroDivisionError: no luck",))
    monkeypatch.undo()
    again = compare(comparison, ["c-lora"], [0], tmp_path, isolate=False)  # it is tried again
    assert again[0].error is None
    assert all(o.error is None for o in read_outcomes(tmp_path))


@pytest.mark.slow
def test_the_command_compares_in_processes_of_their_own(dfo_lora, saved_model, data, tmp_path):
    arguments = ["compare", "--model", saved_model, "--task", "sst2", "--data", data]
    arguments += ["--shots", 4, "--budget", 6, "--methods", "f-lora,c-lora", "--seeds", "0"]
    status, out, err = dfo_lora(*arguments, "--out", tmp_path)
    assert (status, err) == (0, "")
    for word in ("C-LoRA", "F-LoRA", "accuracy, %", "left", "comparison.png"):
        assert word in out
    status, out, _ = dfo_lora(*arguments, "--out", tmp_path, "--json")
    assert status == 0
    assert [row["method"] for row in json.loads(out)["methods"]] == ["c-lora", "f-lora"]
    status, _, err = dfo_lora(*arguments, "--out", tmp_path, "--methods", "bbtv3")
    assert (status, err.count("\n")) == (2, 1)
    assert "bbtv3" in err


def test_seeds_are_whole_numbers(dfo_lora, saved_model, data, tmp_path):
    arguments = ["compare", "--model", saved_model, "--task", "sst2", "--data", data]
    status, _, err = dfo_lora(*arguments, "--seeds", "0,1.5", "--out", tmp_path)
    assert (status, err) == (
        2, "error: --seeds takes whole numbers separated by commas; got '0,1.5'.\n",
    )  # fmt: skip


@pytest.mark.slow
def test_a_killed_comparison_goes_on(saved_model, data, tmp_path):
    """What was finished before SIGKILL is kept as it was; the rest is run."""
    start = "from integrations.cli import main; main()"
    command = [sys.executable, "-c", start, "compare", "--model", str(saved_model)]
    command += ["--task", "sst2", "--data", str(data), "--shots", "4", "--budget", "6"]
    command += ["--methods", "f-lora,c-lora", "--seeds", "0", "--out", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    while not read_outcomes(tmp_path):
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (before,) = (tmp_path / RESULTS).read_text().splitlines()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    first, second = (tmp_path / RESULTS).read_text().splitlines()
    assert first == before
    assert json.loads(second)["outcome"]["method"] == "f-lora"


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_from_a_causal_and_a_masked_model(long_model, data, method):
    """What did best on dev is what is tested, and the same seed gives the same."""
    comparison = Comparison(str(long_model), "sst2", str(data), shots=4, budget=12)
    outcome, again = (run_trial(comparison, method, 0) for _ in range(2))
    assert 0 <= outcome.score <= 1
    # GAP3 looks for words, which are no numbers.
    assert (outcome.parameters == 0) == (method in ("manual", "in-context", "gap3"))
    assert (outcome.evaluations > 0) == (method not in ("manual", "in-context"))
    best = max(outcome.course, key=lambda look: (look["score"], -look["loss"]))
    assert outcome.dev_score == best["score"]
    assert (outcome.score, outcome.loss) == (again.score, again.loss)
