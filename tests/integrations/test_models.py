"""Models from a folder, and what is said where there is none."""

import pytest
import torch
from tiny import build_model, kind_of
from transformers import StableLmConfig, StableLmForCausalLM

from integrations import UserError, load_model

IDS = torch.arange(10, 20)[None]


@pytest.mark.parametrize("family", ["llama", "gpt2", "roberta"])
def test_a_saved_model_and_its_tokenizer(family, word_tokenizer, tmp_path):
    saved = build_model(family)
    saved.train().save_pretrained(tmp_path)
    word_tokenizer(kind_of(family)).save_pretrained(tmp_path)
    model, tokenizer = load_model(str(tmp_path), device="cpu")
    assert not model.training
    assert model.dtype == torch.float32
    with torch.no_grad():
        assert torch.equal(model(input_ids=IDS).logits, saved.eval()(input_ids=IDS).logits)
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
    refused("any", "dtype must be one of float32, float16, bfloat16; got 'float8'", dtype="float8")
    build_model("llama").save_pretrained(tmp_path)
    word_tokenizer("causal").save_pretrained(tmp_path)
    refused(tmp_path, "cannot be loaded on nowhere", device="nowhere")


def test_a_folder_without_weights_or_without_a_tokenizer(tmp_path):
    model = build_model("llama")
    model.config.save_pretrained(tmp_path)
    refused(tmp_path, "cannot be loaded on cpu", device="cpu")
    model.save_pretrained(tmp_path)
    refused(tmp_path, "cannot be loaded on cpu", device="cpu")


def test_a_family_that_is_not_in_the_table_is_refused_before_its_weights_are_read(tmp_path):
    config = StableLmConfig(vocab_size=9, hidden_size=64, num_hidden_layers=1)
    StableLmForCausalLM(config).config.save_pretrained(tmp_path)
    refused(tmp_path, "add a row 'stablelm' to FAMILIES")
