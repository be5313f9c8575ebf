"""The command: what it writes, what it prints, and how it says no."""

import json
import signal
import sys

import numpy as np
import pytest
import torch
from peft import PeftModel
from tiny import build_model
from transformers import AutoConfig, AutoModelForCausalLM

from dfo_core import LoTFWA
from integrations import UserError
from integrations.demo import demo_task
from integrations.replica import WorkerError
from integrations.report import duration


def test_tune_saves_an_adapter_a_plot_and_scores(dfo_lora, tune_arguments, tmp_path):
    status, out, err = dfo_lora(*tune_arguments(out=tmp_path / "run"))
    assert (status, err) == (0, "")
    for word in ("zero-shot", "tuned", "test accuracy", "left", "40 evaluations in", "loss"):
        assert word in out
    assert (tmp_path / "run" / "curve.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((tmp_path / "run" / "dfo_lora.json").read_text())
    assert record["settings"]["optimizer"] == "lotfwa"
    assert record["history"]["visits"][-1]["evaluations"] == 40
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert set(scores) == {"zero-shot", "tuned"}
    tuned = PeftModel.from_pretrained(build_model("llama"), tmp_path / "run")
    assert any(p.abs().sum() > 0 for name, p in tuned.named_parameters() if "lora_B" in name)


def test_eval_finds_the_scores_that_tune_printed(
    dfo_lora, tune_arguments, saved_model, data, tmp_path
):
    dfo_lora(*tune_arguments(out=tmp_path))
    scores = json.loads((tmp_path / "scores.json").read_text())
    task = ["--model", saved_model, "--task", "sst2", "--data", data, "--shots", 4]
    status, out, _ = dfo_lora("eval", *task, "--adapter", tmp_path)
    assert status == 0
    for score in scores.values():
        assert f"{score['score']:.3f}" in out
        assert f"{score['loss']:.4f}" in out


def test_an_earlier_run_is_replaced_only_when_asked_to(dfo_lora, tune_arguments, tmp_path):
    assert dfo_lora(*tune_arguments(out=tmp_path, budget=5))[0] == 0
    before = (tmp_path / "dfo_lora.json").read_text()
    status, _, err = dfo_lora(*tune_arguments(out=tmp_path, seed=1))
    assert status == 2
    assert "--overwrite" in err
    assert (tmp_path / "dfo_lora.json").read_text() == before
    assert dfo_lora(*tune_arguments(out=tmp_path, seed=1, overwrite=True))[0] == 0
    assert json.loads((tmp_path / "dfo_lora.json").read_text())["settings"]["seed"] == 1


def test_a_run_ended_by_ctrl_c_goes_on_with_the_same_command(
    dfo_lora, tune_arguments, tmp_path, monkeypatch
):
    """And ends with the very files of a run that was left alone."""
    tell, tells = LoTFWA.tell, []

    def tell_and_interrupt(self, batch, losses):
        tells.append(tell(self, batch, losses))
        if len(tells) == 5:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(LoTFWA, "tell", tell_and_interrupt)
    status, out, err = dfo_lora(*tune_arguments(out=tmp_path / "run"))
    assert (status, err) == (0, "")
    assert "The same command goes on from here." in out
    assert "ended by: callback" in out
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()
    status, out, err = dfo_lora(*tune_arguments(out=tmp_path / "run"))
    assert (status, err) == (0, "")
    assert "Continuing an earlier run after" in out
    assert "ended by: budget" in out
    assert dfo_lora(*tune_arguments(out=tmp_path / "alone"))[0] == 0
    for name in ("adapter_model.safetensors", "adapter_config.json", "scores.json"):
        alone, run = (tmp_path / folder / name for folder in ("alone", "run"))
        assert alone.read_bytes() == run.read_bytes()


def test_what_was_found_is_on_disk_before_the_test_set_is_scored(
    dfo_lora, tune_arguments, tmp_path, monkeypatch
):
    def fail(result):
        raise UserError("a text is too long")

    monkeypatch.setattr("integrations.cli.tuning.score_test", fail)
    assert dfo_lora(*tune_arguments(out=tmp_path))[::2] == (2, "error: a text is too long\n")
    assert (tmp_path / "adapter_model.safetensors").is_file()
    assert json.loads((tmp_path / "dfo_lora.json").read_text())["stopped"] == "budget"


def test_without_matplotlib_all_but_the_plot_is_there(
    dfo_lora, tune_arguments, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    status, out, err = dfo_lora(*tune_arguments(out=tmp_path), "--json")
    assert status == 0
    assert "no plot: plots need matplotlib; pip install 'dfo-lora[demo]'." in err
    assert set(json.loads(out)["test"]) == {"zero-shot", "tuned"}
    assert (tmp_path / "scores.json").is_file()
    assert not (tmp_path / "curve.png").exists()


def test_after_overwrite_the_run_goes_on_without_it(dfo_lora, tune_arguments, tmp_path):
    arguments = tune_arguments(out=tmp_path, budget=600)
    status, out, _ = dfo_lora(*arguments, "--overwrite", "--seconds", 0.2)
    assert status == 0
    assert "The same command, without --overwrite, with more --seconds goes on from here." in out
    status, out, _ = dfo_lora(*arguments, "--seconds", 0.2)
    assert status == 0
    assert "This run's --seconds were up already; with more it goes on." in out


def test_files_of_somebody_elses_are_not_replaced(dfo_lora, tune_arguments, tmp_path):
    (tmp_path / "README.md").write_text("# My project, which uses dfo-lora\n")
    status, out, err = dfo_lora(*tune_arguments(out=tmp_path, budget=5))
    assert (status, err) == (0, "")
    assert out.count("is no model card of dfo-lora and stays as it is") == 1
    assert (tmp_path / "README.md").read_text().startswith("# My project")
    own = tmp_path / "own"
    own.mkdir()
    (own / "config.yaml").write_text("# mine\nbudget: 5\n")
    status, _, err = dfo_lora(*tune_arguments(out=own))
    assert (status, err.count("\n")) == (2, 1)
    assert "config.yaml is no run's" in err
    assert (own / "config.yaml").read_text() == "# mine\nbudget: 5\n"
    status, _, err = dfo_lora("demo", "--out", tmp_path)
    assert (status, err.count("\n")) == (2, 1)
    assert "something else than a demo" in err


def test_what_a_killed_run_left_is_its_own(dfo_lora, tune_arguments, own_module):
    """Options, but no adapter and, of an optimizer that cannot be saved, no checkpoint."""
    folder = own_module() / "run"
    own = tune_arguments(out=folder, optimizer="own_optimizer:make", budget=5)
    assert dfo_lora(*own)[0] == 0
    for path in folder.iterdir():
        if path.name != "config.yaml":
            path.unlink()
    assert dfo_lora(*own)[0] == 0


def test_a_finished_run_is_shown_again(dfo_lora, tune_arguments, tmp_path, monkeypatch):
    dfo_lora(*tune_arguments(out=tmp_path))
    weights = (tmp_path / "adapter_model.safetensors").read_bytes()
    monkeypatch.setattr(LoTFWA, "ask", lambda self: pytest.fail("it went on"))
    status, out, err = dfo_lora(*tune_arguments(out=tmp_path))
    assert (status, err) == (0, "")
    assert "had ended already; --overwrite starts anew" in out
    assert "ended by: budget" in out
    assert (tmp_path / "adapter_model.safetensors").read_bytes() == weights


def test_a_damaged_checkpoint_is_told(dfo_lora, tune_arguments, tmp_path):
    dfo_lora(*tune_arguments(out=tmp_path))
    newest = max((tmp_path / "checkpoint").glob("state-*"))
    newest.write_text("{}")
    status, out, err = dfo_lora(*tune_arguments(out=tmp_path))
    assert (status, err) == (0, "")
    assert f"note: {newest} cannot be read" in out
    for state in (tmp_path / "checkpoint").glob("state-*"):
        state.write_text("{}")
    status, _, err = dfo_lora(*tune_arguments(out=tmp_path))
    assert status == 2
    assert f"{newest} cannot be read" in err
    assert "--overwrite" in err
    assert err.count("\n") == 1
    assert dfo_lora(*tune_arguments(out=tmp_path, overwrite=True))[0] == 0


OWN = """
import signal
import numpy as np


class Gaussian:
    def __init__(self, dim, seed):
        self.dim, self.rng, self.asked = dim, np.random.default_rng(seed), 0

    def ask(self):
        self.asked += 1
        if self.asked == INTERRUPT_AT:
            signal.raise_signal(signal.SIGINT)
        return self.rng.normal(size=(3, self.dim))

    def tell(self, points, losses):
        assert len(points) == len(losses) == 3


def make(dim, seed):
    return Gaussian(dim, seed)


nothing = object()
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """write(text): put a module ``own_optimizer`` into the current folder."""

    def write(interrupt_at=-1):
        (tmp_path / "own_optimizer.py").write_text(OWN + f"INTERRUPT_AT = {interrupt_at}\n")
        monkeypatch.chdir(tmp_path)
        monkeypatch.delitem(sys.modules, "own_optimizer", raising=False)
        return tmp_path

    yield write
    sys.modules.pop("own_optimizer", None)


def test_an_optimizer_of_the_users_own_is_named_by_its_module(dfo_lora, tune_arguments, own_module):
    folder = own_module()
    status, out, err = dfo_lora(*tune_arguments(optimizer="own_optimizer:make", budget=30))
    assert (status, err) == (0, "")
    assert "own_optimizer:make cannot be saved" in out
    (run,) = (folder / "runs").iterdir()
    assert (run / "adapter_model.safetensors").is_file()


def test_an_optimizer_that_cannot_be_saved_replaces_no_earlier_run(
    dfo_lora, tune_arguments, own_module
):
    folder = own_module()
    dfo_lora(*tune_arguments(out=folder / "run", budget=5))
    weights = (folder / "run" / "adapter_model.safetensors").read_bytes()
    own = tune_arguments(out=folder / "run", optimizer="own_optimizer:make", budget=5)
    status, _, err = dfo_lora(*own)
    assert status == 2
    assert "--overwrite" in err
    assert (folder / "run" / "adapter_model.safetensors").read_bytes() == weights
    assert dfo_lora(*own, "--overwrite")[0] == 0


def test_a_run_without_checkpoint_replaces_one_with(dfo_lora, tune_arguments, own_module):
    """Else the first command, given again, would bring the replaced run back."""
    folder = own_module()
    first = tune_arguments(out=folder / "run", budget=10)
    assert dfo_lora(*first)[0] == 0
    own = tune_arguments(out=folder / "run", budget=5, optimizer="own_optimizer:make")
    assert dfo_lora(*own, "--overwrite")[0] == 0
    status, _, err = dfo_lora(*first)
    assert status == 2
    assert "--overwrite" in err


def test_a_comparison_s_folder_is_not_taken(dfo_lora, tune_arguments, tmp_path):
    (tmp_path / "config.yaml").write_text("# dfo-lora compare --config config.yaml\n")
    status, _, err = dfo_lora(*tune_arguments(out=tmp_path))
    assert (status, "holds what dfo-lora compare wrote" in err) == (2, True)


def test_ctrl_c_ends_the_run_with_what_it_has(dfo_lora, tune_arguments, own_module):
    folder = own_module(interrupt_at=2)
    handler = signal.getsignal(signal.SIGINT)
    arguments = tune_arguments(optimizer="own_optimizer:make", budget=600, out=folder / "run")
    status, out, _ = dfo_lora(*arguments)
    assert status == 0
    assert "ended by: callback" in out
    assert (folder / "run" / "adapter_model.safetensors").is_file()
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_run_without_a_config_of_the_table_names_the_row_to_add(
    dfo_lora, tune_arguments, tmp_path, word_tokenizer
):
    config = AutoConfig.for_model(
        "stablelm", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=300
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    word_tokenizer("causal").save_pretrained(tmp_path)
    status, _, err = dfo_lora(*tune_arguments(model=tmp_path))
    assert status == 2
    assert "'stablelm'" in err
    assert "FAMILIES" in err


BAD = {
    "task": ({"task": "sst3"}, "did you mean 'sst2'"),
    "label word missing": ({"label_words": "bad"}, "a label word for each"),
    "label word empty": ({"label_words": "bad,"}, "label word for each"),
    "label word unknown": ({"label_words": "bad,sesquipedalian"}, "'sesquipedalian'"),
    "folder": ({"data": "nowhere"}, "'nowhere'"),
    "shots": ({"shots": 9}, "lower the shots to 4"),
    "optimizer": ({"optimizer": "lotfva"}, "did you mean 'lotfwa'"),
    "module": ({"optimizer": "no_such_module:f"}, "no_such_module"),
    "no ask or tell": ({"optimizer": "own_optimizer:nothing"}, "no method ask()"),
    "budget": ({"budget": 0}, "budget must be"),
    "dim": ({"dim": 41}, "try 40"),
    "rank": ({"rank": 0}, "rank must be"),
    "targets": ({"targets": "q,x"}, "'x'"),
    "layers": ({"layers": "0,9"}, "layers 0 to 3"),
    "layers text": ({"layers": "top"}, "numbers separated by commas"),
    "schedule": ({"schedule": "random"}, "schedule"),
    "loss": ({"loss": "f1"}, "loss"),
    "init": ({"init": "xavier"}, "init"),
    "init_std": ({"init_std": -1}, "init_std must be"),
    "popsize": ({"popsize": 1}, "popsize"),
    "test_limit": ({"test_limit": 0}, "test_limit must be at least 1; got 0"),
    "max_length": ({"max_length": 0}, "max_length must be a whole number of 1"),
    "column": ({"column": "text"}, "FIELD=COLUMN"),
    "dtype": ({"dtype": "int3"}, "float32"),
    "model": ({"model": "no/such"}, "'no/such'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_exit_status_2(dfo_lora, tune_arguments, own_module, name):
    changes, hint = BAD[name]
    folder = own_module()
    status, _, err = dfo_lora(*tune_arguments(**changes))
    assert status == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert hint.lower() in err.lower()
    assert not (folder / "runs").exists()


def test_an_empty_data_file_is_one_line_and_exit_status_2(dfo_lora, tune_arguments, tmp_path, data):
    (tmp_path / "train.jsonl").write_text("")
    (tmp_path / "test.jsonl").write_bytes((data / "test.jsonl").read_bytes())
    status, _, err = dfo_lora(*tune_arguments(data=tmp_path))
    assert status == 2
    assert "train.jsonl holds no examples" in err
    assert err.count("\n") == 1


def test_the_demo_task_is_what_its_readme_says():
    task = demo_task(seed=3)
    for split, least in (("train", 32), ("dev", 32), ("test", 100)):
        labels = np.bincount([example.label for example in getattr(task, split)], minlength=2)
        assert (labels >= least).all()
    texts = [e.fields["text"] for s in (task.train, task.dev, task.test) for e in s]
    assert len(set(texts)) == len(texts)
    assert demo_task(seed=3) == task
    assert demo_task(seed=4).train != task.train


def test_the_demo_runs_from_start_to_end(dfo_lora, monkeypatch, word_tokenizer, tmp_path):
    """With a random model in place of the downloaded one."""
    model = build_model("llama", max_position_embeddings=512)
    loaded = model, word_tokenizer("causal")
    monkeypatch.setattr("integrations.cli.tuning.load_model", lambda name: loaded)
    before = model(torch.tensor([[5, 6, 7]])).logits
    status, out, err = dfo_lora("demo", "--budget", 10, "--out", tmp_path)
    assert (status, err) == (0, "")
    assert "demo sentiment" in out
    assert (tmp_path / "adapter_model.safetensors").is_file()
    assert (tmp_path / "curve.png").is_file()
    assert torch.equal(model(torch.tensor([[5, 6, 7]])).logits, before)
    head = (tmp_path / "config.yaml").read_text().splitlines()[0]
    assert head == "# dfo-lora demo --budget 10 --out ... repeats this run."
    assert dfo_lora("demo", "--budget", 5, "--out", tmp_path)[0] == 0  # its own it replaces


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.2, "0 s"), (59.6, "1 min"), (192, "3 min 12 s"), (7265, "2 h 1 min")]
)
def test_durations_read_well(seconds, shown):
    assert duration(seconds) == shown


@pytest.mark.slow
def test_workers_give_what_one_process_gives(dfo_lora, tune_arguments, tmp_path):
    scores = []
    for name, more in {"alone": {}, "together": {"workers": 2}}.items():
        status, _, err = dfo_lora(*tune_arguments(out=tmp_path / name, **more))
        assert (status, err) == (0, "")
        scores.append(json.loads((tmp_path / name / "scores.json").read_text()))
    assert scores[0]["tuned"]["loss"] == pytest.approx(scores[1]["tuned"]["loss"], abs=1e-5)


def test_a_failing_worker_is_shown_with_its_traceback(dfo_lora, tune_arguments, monkeypatch):
    def fail(*_, **__):
        raise WorkerError("worker 1 failed:\nTraceback ...")

    monkeypatch.setattr("integrations.cli.tuning.tune_model", fail)
    status, _, err = dfo_lora(*tune_arguments(workers=2))
    assert status == 1
    assert err == "error: worker 1 failed:\nTraceback ...\n"


def test_workers_that_are_none_are_refused(dfo_lora, tune_arguments):
    status, _, err = dfo_lora(*tune_arguments(workers="four"))
    assert (status, err.count("\n")) == (2, 1)
    assert "ray://" in err
