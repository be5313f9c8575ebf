"""What listens to a run."""

import json
import signal
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from tiny import build_model

from integrations import UserError, tune
from integrations.callbacks import EndOnInterrupt, JSONLines, Progress, TensorBoard
from integrations.history import DevScore
from integrations.visit import Visit


@pytest.fixture
def run(word_tokenizer, toy_task):
    """run(callback): a short run with it."""

    def run(callback, **changes):
        return tune(
            build_model("llama"), toy_task, tokenizer=word_tokenizer("causal"), dim=40,
            dev_every=10, callback=callback, **{"budget": 20} | changes,
        )  # fmt: skip

    return run


def test_all_callbacks_are_called_and_one_may_end_the_run(run):
    seen = []
    ends = [lambda progress: seen.append("first") or True, lambda progress: seen.append("second")]
    assert run(ends).stopped == "callback"
    assert seen == ["first", "second"]
    assert run([]).stopped == "budget"


def test_the_time_left_is_that_of_the_budget_or_of_the_limit():
    visit = Visit(0, 0, evaluations=10, best=1.0, loss=1.0, improved=True, invalid=0)
    look = DevScore(0, 0.0, 1.0, 1.0, 0.5, best=True)
    progress = Progress(visit, look, new_dev=False, best=look, budget=40, seconds=5.0)
    assert progress.seconds_left == 15
    assert replace(progress, most_seconds=12.0).seconds_left == 7
    assert replace(progress, most_seconds=100.0).seconds_left == 15


@pytest.mark.parametrize("callback", [3, ["x"], "x"])
def test_what_cannot_be_called_is_refused(run, callback):
    with pytest.raises(UserError, match="callback must be a function of a Progress"):
        run(callback)


def test_the_first_ctrl_c_ends_the_run_with_its_best_so_far(run):
    told = []

    def press(progress):
        if progress.visit.number in (1, 3):
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with EndOnInterrupt(told.append) as ending:
        result = run([press, ending], budget=600)
    assert (result.stopped, ending.interrupted, len(told)) == ("callback", True, 1)
    assert len(result.history.visits) == 2
    assert result.history.best.evaluations <= result.history.visits[-1].evaluations
    assert signal.getsignal(signal.SIGINT) is before
    with ending:
        assert run(ending).stopped == "budget"
    with pytest.raises(KeyboardInterrupt), EndOnInterrupt(told.append):  # which does not end it
        run(press, budget=600)
    assert signal.getsignal(signal.SIGINT) is before


def test_json_lines_hold_the_history(run, tmp_path):
    path = tmp_path / "new" / "run.jsonl"
    history = run(JSONLines(path)).history
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    visits = history.to_dict()["visits"]
    assert [{name: row[name] for name in visits[0]} for row in rows] == visits
    looks = [row["dev"] for row in rows if "dev" in row]
    assert looks == history.to_dict()["scores"][1:]


def test_tensorboard_gets_losses_and_scores(run, tmp_path, monkeypatch):
    """With a writer of the same methods, as the package is optional."""
    written = {}

    class Writer:
        def __init__(self, folder):
            assert folder == str(tmp_path)

        def add_scalar(self, name, value, step):
            written.setdefault(name, []).append((step, value))

        def flush(self):
            pass

    module = SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    history = run([TensorBoard(tmp_path)]).history
    assert written["train/loss"] == [(visit.evaluations, visit.loss) for visit in history.visits]
    assert written["dev/score"] == [(look.evaluations, look.score) for look in history.scores[1:]]


def test_tensorboard_reads_what_was_written(run, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history = run(TensorBoard(tmp_path)).history
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert found == [
        (visit.evaluations, pytest.approx(visit.loss, rel=1e-6)) for visit in history.visits
    ]


def test_without_tensorboard_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"pip install 'dfo-lora\[tensorboard\]'"):
        TensorBoard(tmp_path)


def test_a_memory_limit_that_is_too_little_is_told(run):
    with pytest.raises(UserError, match="memory_limit of"):
        run(None, memory_limit=100)
    with pytest.raises(UserError, match="memory_limit must be"):
        run(None, memory_limit=0)
