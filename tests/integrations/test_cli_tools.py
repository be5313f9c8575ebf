"""export, plot, bench, info, and what goes wrong before any command runs."""

import json
import shutil
import signal
import sys

import numpy as np
import pytest
import torch
import typer
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from integrations import cli
from integrations.environment import OPTIMIZER_LIBRARIES


@pytest.fixture(scope="module")
def run(saved_model, data, tmp_path_factory):
    """The folder of a short run."""
    folder = tmp_path_factory.mktemp("run")
    options = {"model": saved_model, "task": "sst2", "data": data, "shots": 4, "dim": 40}
    options |= {"budget": 20, "dev-every": 10, "out": folder}
    arguments = [f"--{name}={value}" for name, value in options.items()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["dfo-lora", "tune", *arguments])
        with pytest.raises(SystemExit):
            cli.main()
    assert (folder / "dfo_lora.json").is_file()
    return folder


def test_a_merged_model_answers_like_the_model_with_its_adapter(
    dfo_lora, run, tmp_path, saved_model
):
    folder, merged, adapter = run, tmp_path / "merged", tmp_path / "adapter"
    status, _, err = dfo_lora("export", folder, "--merged", merged, "--adapter", adapter)
    assert (status, err) == (0, "")
    base = AutoModelForCausalLM.from_pretrained(saved_model)
    ids = AutoTokenizer.from_pretrained(merged)("the film was lovely", return_tensors="pt")
    with torch.no_grad():
        frozen = base(**ids).logits
        tuned = PeftModel.from_pretrained(base, adapter)(**ids).logits
        found = AutoModelForCausalLM.from_pretrained(merged)(**ids).logits
    assert (tuned - frozen).abs().max() > 1e-2
    torch.testing.assert_close(found, tuned, atol=1e-4, rtol=0)
    names = {path.name for path in adapter.iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "README.md"}


def test_an_adapter_tuned_in_int8_is_merged_into_float32(dfo_lora, tune_arguments, tmp_path):
    folder, merged = tmp_path / "run", tmp_path / "merged"
    assert dfo_lora(*tune_arguments(out=folder, budget=5, dtype="int8", device="cpu"))[0] == 0
    assert dfo_lora("export", folder, "--merged", merged)[0] == 0
    weight = AutoModelForCausalLM.from_pretrained(merged).model.layers[3].self_attn.q_proj.weight
    assert weight.dtype == torch.float32


def test_plot_compares_runs(dfo_lora, run, tmp_path):
    other = shutil.copytree(run, tmp_path / run.name)
    status, _, err = dfo_lora("plot", run, other, "--out", tmp_path / "new" / "both.png")
    assert (status, err) == (0, "")
    assert (tmp_path / "new" / "both.png").read_bytes().startswith(b"\x89PNG")
    assert dfo_lora("plot", run, "--out", tmp_path / "one.svg")[0] == 0


def test_bench_finds_equal_losses_every_way(dfo_lora, saved_model, data, tmp_path):
    arguments = ["--model", saved_model, "--task", "sst2", "--data", data, "--examples", 8]
    arguments += ["--population", 3, "--layers", 2, "--repeats", 1]
    path = tmp_path / "new" / "bench.json"
    status, out, err = dfo_lora("bench", *arguments, "--json", "--out", path)
    assert status == 0
    assert "without prefix cache" in err
    report = json.loads(out)
    assert report == json.loads(path.read_text())
    assert report["settings"]["examples"] == 8
    timings = {timing["way"]: timing for timing in report["timings"]}
    assert len(timings) == 8
    assert timings["naive"]["speedup"] == 1
    assert all(timing["difference"] <= 1e-4 for timing in timings.values())
    assert np.isfinite([timing["seconds"] for timing in timings.values()]).all()


def test_info_says_what_is_installed(dfo_lora, monkeypatch):
    monkeypatch.setitem(OPTIMIZER_LIBRARIES, "optuna", "no_such_module")
    found = json.loads(dfo_lora("info", "--json")[1])
    # A package from the index does not say which CUDA it was built for.
    assert found["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["optimizers"]["lotfwa"] == "built in"
    assert found["optimizers"]["pycma"] == "installed"
    assert found["optimizers"]["optuna"] == "not installed"
    assert "llama" in found["families"]
    assert "sst2" in found["tasks"]
    assert "cpu" in found["devices"]


BAD = {
    "no command": (["frobnicate"], "frobnicate"),
    "no option": (["info", "--frob"], "--frob"),
    "no number": (["tune", "--model", "x", "--task", "sst2", "--budget", "ten"], "'--budget'"),
    "left out": (["tune", "--task", "sst2"], "'--model'"),
    "size": (["tune", "--model", "x", "--task", "sst2", "--memory-limit", "2XB"], "2GB"),
    "patience": (["tune", "--model", "x", "--task", "sst2", "--patience", "x"], "or none"),
    "split": (["eval", "--model", "x", "--task", "sst2", "--split", "tset"], "'test'"),
    "no run": (["plot", "nowhere"], "holds no run"),
    "no adapter": (["export", "nowhere", "--merged", "out"], "holds no adapter"),
    "nothing to export": (["export", "nowhere"], "--merged"),
    "int8": (["export", "nowhere", "--merged", "out", "--dtype", "int8"], "float32"),
    "bench task": (["bench", "--task", "sst3"], "did you mean 'sst2'"),
    "bench data": (["bench", "--data", "x"], "--data goes with --task"),
    "bench column": (["bench", "--column", "text=x"], "--column goes with --task"),
    "bench words": (["bench", "--label-words", "a,b"], "--label-words goes with --task"),
    "bench examples": (["bench", "--examples", "0"], "'--examples'"),
    "out": (["demo", "--out", "/dev/null/run"], "is a file"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_exit_status_2(dfo_lora, tmp_path, monkeypatch, name):
    arguments, hint = BAD[name]
    monkeypatch.chdir(tmp_path)
    status, out, err = dfo_lora(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert hint in err
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_taken_is_not_written_to(dfo_lora, run):
    for option in ("--merged", "--adapter"):
        status, _, err = dfo_lora("export", run, option, run)
        assert status == 2
        assert "not empty" in err


def test_runs_that_cannot_be_drawn_together_are_told(dfo_lora, run, tmp_path):
    assert "given twice" in dfo_lora("plot", run, run)[2]
    other = tmp_path / "other"
    other.mkdir()
    record = json.loads((run / "dfo_lora.json").read_text())
    (other / "dfo_lora.json").write_text(json.dumps(record | {"metric": "f1"}))
    assert "different scores (accuracy, f1)" in dfo_lora("plot", run, other)[2]
    (other / "dfo_lora.json").write_text("{}")
    status, _, err = dfo_lora("plot", other)
    assert status == 2
    assert "cannot be read" in err


COMMANDS = typer.main.get_command(cli.app).commands


@pytest.mark.parametrize("command", COMMANDS)
def test_each_option_has_help_and_says_its_default(command):
    for option in COMMANDS[command].params:
        if option.name == "help" or option.param_type_name == "argument":
            continue
        assert option.help, option.opts
        said = option.show_default and option.default is not None
        assert option.required or option.is_flag or said or "default" in option.help, option.opts


def test_without_a_command_the_help_is_shown(dfo_lora):
    status, out, err = dfo_lora()
    assert (status, err) == (2, "")
    assert "export" in out


def test_ctrl_c_is_one_word(dfo_lora, monkeypatch):
    monkeypatch.setattr(cli.tools, "environment", lambda: signal.raise_signal(signal.SIGINT))
    # Libraries that other tests import put handlers of their own in place.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert dfo_lora("info") == (130, "", "interrupted\n")
    finally:
        signal.signal(signal.SIGINT, before)
