"""Models from a folder, and what is said where there is none."""

import json

import pytest
import torch
from tiny import SEQ2SEQ, build_model, kind_of
from transformers import StableLmConfig, StableLmForCausalLM

from integrations import UserError, load_model
from integrations.architectures import FAMILIES
from integrations.models import own_device

IDS = torch.arange(10, 20)[None]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_has_its_language_head(family, word_tokenizer, tmp_path):
    saved = build_model(family)
    saved.train().save_pretrained(tmp_path)
    word_tokenizer(kind_of(family)).save_pretrained(tmp_path)
    model, _ = load_model(str(tmp_path), device="cpu")
    assert type(model) is type(saved)
    assert not model.training
    assert model.dtype == torch.float32
    inputs = {"input_ids": IDS} | ({"decoder_input_ids": IDS} if family in SEQ2SEQ else {})
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, saved.eval()(**inputs).logits)


@pytest.mark.parametrize("family", ["llama", "gpt2", "roberta", "bart"])
def test_a_model_comes_with_its_tokenizer(family, word_tokenizer, tmp_path):
    build_model(family).save_pretrained(tmp_path)
    word_tokenizer(kind_of(family)).save_pretrained(tmp_path)
    _, tokenizer = load_model(str(tmp_path), device="cpu")
    assert (
        tokenizer("the film")["input_ids"] == word_tokenizer(kind_of(family))("the film").input_ids
    )


def test_a_type(word_tokenizer, tmp_path):
    build_model("llama").save_pretrained(tmp_path)
    word_tokenizer("causal").save_pretrained(tmp_path)
    model, _ = load_model(str(tmp_path), dtype="bfloat16", device="cpu")
    assert model.dtype == torch.bfloat16


def refused(name, message, **settings):
    with pytest.raises(UserError, match=message) as error:
        load_model(str(name), **settings)
    assert "\n" not in str(error.value)


def test_a_name_that_is_nowhere(tmp_path):
    refused("no/such/model", "'no/such/model' cannot be loaded .*pass a folder .* Hub name")
    refused(tmp_path, "folder holds no config.json")


def test_a_type_or_device_that_there_is_not(word_tokenizer, tmp_path):
    refused("any", "dtype must be one of .*, int8; got 'float8'", dtype="float8")
    build_model("llama").save_pretrained(tmp_path)
    word_tokenizer("causal").save_pretrained(tmp_path)
    refused(tmp_path, "cannot be loaded on nowhere", device="nowhere")
    refused(tmp_path, r"on a CPU \(cpu\) or an NVIDIA or AMD GPU .* got 'mps'", device="mps")


def test_a_folder_without_weights_or_without_a_tokenizer(tmp_path):
    model = build_model("llama")
    model.config.save_pretrained(tmp_path)
    refused(tmp_path, "cannot be loaded on cpu", device="cpu")
    model.save_pretrained(tmp_path)
    refused(tmp_path, "cannot be loaded on cpu", device="cpu")


@pytest.mark.parametrize("family", ["bert", "deberta-v2"])
def test_weights_without_a_language_head(family, word_tokenizer, tmp_path):
    """transformers would draw the head at random."""
    build_model(family).base_model.save_pretrained(tmp_path)
    word_tokenizer("masked").save_pretrained(tmp_path)
    refused(tmp_path, r"saved without some weights of \w+ForMaskedLM, such as '\w+", device="cpu")


def test_deberta_gets_the_head_that_is_published(word_tokenizer, tmp_path):
    """Published configurations leave out which one it is, and the default is the other."""
    saved = build_model("deberta-v2")
    saved.save_pretrained(tmp_path)
    word_tokenizer("masked").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("legacy")
    (tmp_path / "config.json").write_text(json.dumps(config))
    model, _ = load_model(str(tmp_path), device="cpu")
    with torch.no_grad():
        assert torch.equal(model(input_ids=IDS).logits, saved(input_ids=IDS).logits)


def test_a_family_that_is_not_in_the_table_is_refused_before_its_weights_are_read(tmp_path):
    config = StableLmConfig(vocab_size=9, hidden_size=64, num_hidden_layers=1)
    StableLmForCausalLM(config).config.save_pretrained(tmp_path)
    refused(tmp_path, "add a row 'stablelm' to FAMILIES")


@pytest.mark.parametrize(
    ("gpus", "rank", "expected"),
    [(0, "1", "cpu"), (2, None, "cuda"), (2, "0", "cuda:0"), (2, "3", "cuda:1")],
)
def test_each_process_of_torchrun_has_a_gpu_of_its_own(gpus, rank, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert own_device() == expected
