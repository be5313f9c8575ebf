"""The card of a saved adapter, and its way to the Hub."""

from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi, ModelCard
from tiny import build_model

from integrations import UserError, tune
from integrations.model_names import hub_name, portable_name
from integrations.smollm2 import HUB_NAME


@pytest.fixture(scope="module")
def result(word_tokenizer, toy_task):
    model = build_model("llama")
    model.name_or_path = model.config._name_or_path = "someone/tiny-llama"
    return tune(
        model, toy_task, tokenizer=word_tokenizer("causal"), dim=40, budget=10, dev_every=5, seed=7
    )


def test_the_card_has_a_header_that_the_hub_reads(result, tmp_path):
    card = ModelCard.load(result.save(tmp_path) / "README.md")
    assert card.data.library_name == "peft"
    assert card.data.base_model == "someone/tiny-llama"
    assert "dfo-lora" in card.data.tags
    assert card.data.license is None
    for words in ("toy", "seed 7", "8 train", "optimizer: lotfwa", "PeftModel.from_pretrained"):
        assert words in card.text
    best = result.history.best
    assert f"| dev | tuned | {best.score:.4f} | {best.loss:.4f} |" in card.text


def test_test_scores_are_in_the_card_once_they_are_known(result, tmp_path):
    assert "| test |" not in (result.save(tmp_path) / "README.md").read_text()
    score = result.test()
    text = (result.save(tmp_path, command="dfo-lora tune --seed 7") / "README.md").read_text()
    assert f"| test | tuned | {score.score:.4f} | {score.loss:.4f} |" in text
    assert "dfo-lora tune --seed 7" in text


def test_a_model_from_a_folder_is_not_in_the_header(tmp_path):
    assert hub_name(str(tmp_path)) is None
    assert hub_name("/no/such/folder/model") is None
    assert hub_name("") is None
    assert hub_name("gpt2") == "gpt2"
    assert hub_name("smollm2-135m") == HUB_NAME
    assert hub_name("/cache/smollm2-135m-bcc81830d10c") == HUB_NAME
    assert hub_name("/my/smollm2-135m-tuned") is None
    assert portable_name("/cache/smollm2-135m-bcc81830d10c") == "smollm2-135m"
    assert portable_name("/my/model") == "/my/model"


def test_an_upload_holds_what_save_writes(result, monkeypatch, tmp_path):
    calls = []

    def upload(self, *, repo_id, folder_path, commit_message):
        names = {path.name for path in type(tmp_path)(folder_path).iterdir()}
        calls.append((repo_id, names, commit_message))
        return SimpleNamespace(commit_url="https://hub/commit/1")

    monkeypatch.setattr(HfApi, "create_repo", lambda self, *a, **k: calls.append((a, k)))
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    assert result.push_to_hub("me/sst2", private=True, message="First") == "https://hub/commit/1"
    created, uploaded = calls
    assert created == (("me/sst2",), {"private": True, "exist_ok": True})
    files = {"adapter_config.json", "adapter_model.safetensors", "dfo_lora.json", "README.md"}
    assert uploaded == ("me/sst2", files, "First")


def test_offline_it_is_one_line(result):
    """The tests' environment is offline."""
    with pytest.raises(UserError, match=r"cannot be uploaded to 'me/sst2'.*hf auth login") as error:
        result.push_to_hub("me/sst2")
    assert "\n" not in str(error.value)
