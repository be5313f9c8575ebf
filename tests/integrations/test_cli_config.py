"""Options from a file, and output for scripts."""

import json

import pytest
import yaml


@pytest.fixture
def config(tmp_path, saved_model, data):
    """write(**changes): a file with the options of a short run, and its path."""

    def write(text=None, **changes):
        options = {"model": str(saved_model), "task": "sst2", "data": str(data), "shots": 4}
        options |= {"dim": 40, "budget": 20, "dev-every": 10} | changes
        path = tmp_path / "options.yaml"
        path.write_text(yaml.safe_dump(options) if text is None else text)
        return path

    return write


def test_the_saved_options_repeat_a_run(dfo_lora, tune_arguments, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    arguments = tune_arguments(out=first, optimizer="cma-es", column="text=text", layers="-1,1")
    assert dfo_lora(*arguments, "--memory-limit", "50MB", "--patience", "none")[0] == 0
    status, _, err = dfo_lora("tune", "--config", first / "config.yaml", "--out", second)
    assert (status, err) == (0, "")
    for name in ("config.yaml", "adapter_model.safetensors", "scores.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    options = yaml.safe_load((second / "config.yaml").read_text())
    assert options["optimizer"] == "cma-es"
    assert options["column"] == ["text=text"]
    assert (options["memory_limit"], options["patience"]) == (50_000_000, 0)
    assert not {"out", "overwrite", "config", "json"} & set(options)
    settings = json.loads((second / "dfo_lora.json").read_text())["settings"]
    assert (settings["memory_limit"], settings["patience"]) == (50_000_000, None)
    command = next(
        line
        for line in (second / "README.md").read_text().splitlines()
        if line.startswith("dfo-lora tune")
    )
    assert "--optimizer cma-es" in command
    assert "--column text=text" in command
    assert "--rank" not in command  # as by default


def test_a_card_tells_switches_as_they_were_given(dfo_lora, tune_arguments, tmp_path):
    assert dfo_lora(*tune_arguments(out=tmp_path), "--search-a", "--best-ever")[0] == 0
    (line,) = [x for x in (tmp_path / "README.md").read_text().splitlines() if "dfo-lora t" in x]
    assert {"--search-a", "--best-ever"} <= {*line.split()}
    assert "False" not in line


def test_explicit_options_come_before_the_file(dfo_lora, config, tmp_path):
    path = config(budget=500, seed=3)
    status, out, _ = dfo_lora(
        "tune", "--config", path, "--budget", 10, "--json", "--out", tmp_path / "run"
    )
    assert status == 0
    settings = json.loads(out)["settings"]
    assert (settings["budget"], settings["seed"]) == (10, 3)


def test_values_may_be_written_as_yaml_has_them(dfo_lora, config, tmp_path):
    path = config(
        dev_every=5, targets=["q", "v", "o"], dim=42, layers=[3, 1], patience=None,
        column={"text": "text"}, init_std=1e-1, popsize=None, memory_limit="50 MB", out=None,
        label_words=["bad", "great"],
    )  # fmt: skip
    status, out, err = dfo_lora("tune", "--config", path, "--json", "--out", tmp_path / "run")
    assert status == 0, err
    settings = json.loads(out)["settings"]
    assert settings["targets"] == ["q", "v", "o"]
    assert settings["layers"] == [3, 1]
    assert settings["patience"] is None
    assert settings["init_std"] == 0.1
    assert settings["memory_limit"] == 50_000_000


BAD = {
    "unknown": ({"buget": 3}, "did you mean 'budget'"),
    "unknown with hyphen": ({"dev-evry": 3}, "did you mean 'dev_every'"),
    "config in a config": ({"config": "x"}, "unknown option 'config'"),
    "no number": ({"budget": "ten"}, "'--budget'"),
    "fraction": ({"budget": 1.5}, "'--budget'"),
    "null": ({"budget": None}, "'--budget'"),
    "size": ({"memory_limit": "2 XB"}, "2GB"),
    "mapping": ({"task": {"name": "sst2"}}, "task takes one value"),
    "flag": ({"overwrite": "perhaps"}, "'--overwrite'"),
    "empty": ({"text": ""}, "got nothing"),
    "list": ({"text": "- 1"}, "got list"),
    "yes in a list": ({"label_words": [True, "No"]}, "put such a word in quotes"),
    "no as a word": ({"task": False}, "put such a word in quotes"),
    "no yaml": ({"text": "a: [1"}, "cannot be read as YAML"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_line_and_exit_status_2(dfo_lora, config, tmp_path, name):
    changes, hint = BAD[name]
    path = config(**changes)
    status, _, err = dfo_lora("tune", "--config", path, "--out", tmp_path / "run")
    assert status == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert hint in err
    assert not (tmp_path / "run").exists()


def test_a_missing_file_is_told(dfo_lora):
    status, _, err = dfo_lora("tune", "--config", "nowhere.yaml")
    assert status == 2
    assert "'nowhere.yaml' does not exist" in err


def test_eval_takes_the_file_of_a_run(dfo_lora, tune_arguments, tmp_path):
    """And prints, for scripts, the very scores that tune found."""
    status, out, err = dfo_lora(*tune_arguments(out=tmp_path, budget=20, json=True))
    assert status == 0
    assert "zero-shot" in err  # the table
    tuned = json.loads(out)
    assert tuned["stopped"] == "budget"
    assert tuned["evaluations"] == 20
    assert tuned["dev"]["tuned"]["score"] >= tuned["dev"]["zero-shot"]["score"]
    status, out, err = dfo_lora(
        "eval", "--config", tmp_path / "config.yaml", "--adapter", tmp_path, "--json"
    )
    assert status == 0
    assert "tuned" in err
    for name, score in json.loads(out)["scores"].items():
        assert score["score"] == tuned["test"][name]["score"]
        assert score["loss"] == pytest.approx(tuned["test"][name]["loss"], abs=1e-5)


def test_without_json_what_is_shown_is_on_standard_output(dfo_lora):
    assert json.loads(dfo_lora("info", "--json")[1])["kernels"]["cpu"] == "available"
    status, out, err = dfo_lora("info")
    assert (status, err) == (0, "")
    assert "lotfwa" in out
