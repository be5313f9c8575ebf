"""Tasks and losses of one's own, named on the command line as module:name."""

import json
import sys
from pathlib import Path

import pytest

from integrations import Recipe, Task, UserError, load_model, load_task, tune
from integrations.imported import is_import

MODULE = """
from integrations import ContinuationTask, Example, GenerationTask, Task, TextExample

tickets = Task(
    name="tickets",
    patterns={"causal": "{text} . It was"},
    label_words=("bad", "great"),
    metric="macro_f1",
)
texts = {"lovely": 1, "good": 1, "dull": 0, "poor": 0}
examples = [Example({"text": f"the film was {word}"}, label) for word, label in texts.items()]
whole = tickets.with_splits(examples, examples[::-1], examples)
said = GenerationTask(
    name="said",
    pattern="the film was {text} . It was",
    train=[TextExample({"text": "dull"}, "bad")],
    dev=[TextExample({"text": "poor"}, "bad")],
    test=[TextExample({"text": "good"}, "great"), TextExample({"text": "dull"}, "bad")],
    max_new_tokens=2,
)
number = 3
no_dev = tickets.with_splits(examples, (), examples)


def made():
    return tickets


def made_of(seed):
    return tickets


def heard():
    examples = [TextExample({"text": "dull"}, "bad . It")]
    return ContinuationTask(
        name="heard", pattern="the film was {text} . It was", train=examples, dev=examples
    )


def first_is_right(logits, labels):
    return logits[..., 0].mean(-1)
"""


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    """A module in the current folder."""
    (tmp_path / "own_things.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    sys.modules.pop("own_things", None)


@pytest.mark.parametrize("name", ["tickets", "made"])
def test_a_task_of_ones_own_is_tuned_and_scored(name, dfo_lora, tune_arguments, saved_model, data):
    task = f"own_things:{name}"
    status, out, err = dfo_lora(*tune_arguments(task=task, out="run", json=True))
    assert status == 0, err
    tuned = json.loads(out)
    assert tuned["metric"] == "macro_f1"
    about = ["--model", saved_model, "--task", task, "--data", data, "--shots", 4]
    status, out, err = dfo_lora("eval", *about, "--adapter", "run", "--json")
    assert status == 0, err
    assert json.loads(out)["scores"]["tuned"]["score"] == tuned["test"]["tuned"]["score"]


def test_a_task_of_ones_own_is_compared_in_processes(dfo_lora, saved_model, data):
    about = ["--model", saved_model, "--task", "own_things:tickets", "--data", data, "--shots", 4]
    limits = ["--methods", "manual", "--seeds", 0, "--budget", 10]
    status, out, err = dfo_lora("compare", *about, *limits, "--json")
    assert status == 0, err
    assert json.loads(out)["metric"] == "macro_f1"


def test_a_task_that_has_its_examples_needs_no_data(dfo_lora, saved_model):
    about = ["--model", saved_model, "--task", "own_things:whole"]
    settings = ["--budget", 10, "--dim", 40, "--out", "run", "--json"]
    status, out, err = dfo_lora("tune", *about, *settings, "--test-limit", 3)
    assert status == 0, err
    assert json.loads(out)["test"]["tuned"]["examples"] == 3


def test_a_text_task_is_tuned_and_scored(dfo_lora, saved_model):
    about = ["--model", saved_model, "--task", "own_things:said"]
    settings = ["--budget", 10, "--dim", 40, "--out", "run", "--json"]
    status, out, err = dfo_lora("tune", *about, *settings)
    assert status == 0, err
    tuned = json.loads(out)
    assert tuned["metric"] == "exact"
    status, out, err = dfo_lora("eval", *about, "--adapter", "run", "--json")
    assert status == 0, err
    assert json.loads(out)["scores"] == tuned["test"]
    for limit, examples in ((1, 1), (5, 2)):
        status, out, err = dfo_lora("eval", *about, "--test-limit", limit, "--json")
        assert json.loads(out)["scores"]["zero-shot"]["examples"] == examples
    status, _, err = dfo_lora("eval", *about, "--test-limit", 0)
    assert (status, "at least 1" in err) == (2, True)


def test_a_text_task_takes_its_examples_from_a_file(dfo_lora, saved_model):
    rows = [json.dumps({"how": ("dull", "good")[i % 2], "said": "bad"}) for i in range(12)]
    Path("said.jsonl").write_text("\n".join(rows))
    about = ["--model", saved_model, "--task", "own_things:said", "--data", "said.jsonl"]
    about += ["--column", "text=how", "--column", "reference=said", "--shots", 3, "--json"]
    settings = ["--budget", 10, "--dim", 40, "--out", "run"]
    status, out, err = dfo_lora("tune", *about, *settings)
    assert status == 0, err
    tuned = json.loads(out)
    assert tuned["test"]["tuned"]["examples"] == 6
    status, out, err = dfo_lora("eval", *about, "--adapter", "run", "--split", "test")
    assert status == 0, err
    assert json.loads(out)["scores"] == tuned["test"]


def test_what_cannot_be_compared_is_told_once(dfo_lora, saved_model):
    about = ["--model", saved_model, "--methods", "manual", "--seeds", 0, "--budget", 10]
    for name in ("no_dev", "said"):
        status, _, err = dfo_lora("compare", *about, "--task", f"own_things:{name}")
        assert status == 2
        assert err.count("error:") == 1


def test_a_loss_of_ones_own_is_what_is_lowered(dfo_lora, tune_arguments, saved_model, data):
    arguments = tune_arguments(loss="own_things:first_is_right", out="run", json=True)
    status, out, err = dfo_lora(*arguments)
    assert status == 0, err
    tuned = json.loads(out)
    assert tuned["settings"]["loss"] == "first_is_right"
    record = json.loads(Path("run/dfo_lora.json").read_text())
    looks = [look["train_loss"] for look in record["history"]["scores"]]
    assert looks[-1] < looks[0]
    about = ["--model", saved_model, "--task", "sst2", "--data", data, "--shots", 4]
    found = {}
    for loss in ("own_things:first_is_right", "ce"):
        status, out, err = dfo_lora("eval", *about, "--loss", loss, "--json")
        assert status == 0, err
        found[loss] = json.loads(out)["scores"]["zero-shot"]["loss"]
    assert found["own_things:first_is_right"] == pytest.approx(tuned["test"]["zero-shot"]["loss"])
    assert found["ce"] != pytest.approx(tuned["test"]["zero-shot"]["loss"])


def test_workers_find_the_module_too(dfo_lora, tune_arguments):
    arguments = tune_arguments(loss="own_things:first_is_right", budget=10, workers=2, json=True)
    status, out, err = dfo_lora(*arguments)
    assert status == 0, err
    assert json.loads(out)["evaluations"] == 10


def test_tasks_are_found_in_python_too(data):
    task = load_task("own_things:tickets", data, shots=4)
    assert (task.name, len(task.train)) == ("tickets", 8)
    assert isinstance(load_task("own_things:whole"), Task)
    with pytest.raises(
        UserError, match=r"'own_things:said' is answered by text .* tune and eval take it"
    ):
        load_task("own_things:said")
    elsewhere = Recipe(load_task("own_things:whole"), hub=("no/such-data",))
    with pytest.raises(UserError, match="no/such-data"):
        load_task(elsewhere)


def test_tune_takes_any_of_them_by_name(saved_model):
    model, tokenizer = load_model(saved_model)
    for name in ("whole", "said", "heard"):
        result = tune(model, f"own_things:{name}", tokenizer=tokenizer, budget=5, dim=20)
        assert result.settings["task"] == ("tickets" if name == "whole" else name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "own_things:nothing"}, "has no attribute 'nothing'; expected a known name, or"),
        ({"task": "no_such_module:task"}, "No module named 'no_such_module'"),
        ({"task": "own_things:number"}, "is a int; expected a task, a Recipe, or a function"),
        ({"task": "own_things:said"}, "no column 'reference'"),
        (
            {"task": "own_things:said", "label_words": "bad,great"},
            "leave label_words (--label-words) out",
        ),
        ({"loss": "own_things:nothing"}, "of a function of label logits and labels"),
        ({"task": "own_things:made_of"}, "cannot be called without arguments (missing a required"),
        ({"loss": "own_things:number"}, "is a int; expected a function of label logits"),
        ({"loss": "f1"}, "loss"),
    ],
)
def test_what_cannot_be_had_is_told_before_the_model_is_loaded(
    options, message, dfo_lora, tune_arguments
):
    status, _, err = dfo_lora(*tune_arguments(out="run", model="no-such-folder", **options))
    assert status == 2
    assert "no-such-folder" not in err
    assert message in err


def test_names_on_the_hub_are_no_imports():
    assert is_import("tasks:tickets")
    assert is_import("my.tasks:tickets")
    assert not any(map(is_import, ("sst2", "nyu-mll/glue:mrpc", ":x", "x:", "host:80")))
