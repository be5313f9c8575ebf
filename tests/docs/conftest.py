"""What the documentation's examples find: a tiny model under SmolLM2's name, and data."""

import os

# Libraries that look for files on the Hub give up at once. Set before they are imported.
os.environ["HF_HUB_OFFLINE"] = "1"

import csv
import shutil
from functools import wraps
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import integrations
import integrations.models
import integrations.tasks.loading

WORDS = ["[UNK]", "[PAD]", "[EOS]", "bad", "great", "Yes", "No", "sales", "support", "It", "was"]
BUDGET = 30  # evaluations; the examples name budgets that suit a real model
ROWS = 80


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A random model of two layers, as `load_model` takes it."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        initializer_range=0.3,
        eos_token_id=WORDS.index("[EOS]"),
        pad_token_id=WORDS.index("[PAD]"),
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "eos_token": "[EOS]"}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
    return folder


@pytest.fixture
def stand_ins(monkeypatch, tiny_folder):
    """A tiny model in place of the download, a tiny Hub, and short runs."""

    @wraps(integrations.tune)
    def short(*args, budget, **settings):
        return tune(*args, budget=min(budget, BUDGET), **settings)

    def hub(_):
        texts = [f"It was {'great' if row % 2 else 'bad'}" for row in range(ROWS)]
        columns = dict.fromkeys(("text", "sentence1", "sentence2"), texts)
        labels = [row % 2 for row in range(ROWS)]
        return dict.fromkeys(
            ("train", "validation", "test"), Dataset.from_dict(columns | {"label": labels})
        )

    tune = integrations.tune
    monkeypatch.setattr(integrations, "tune", short)
    monkeypatch.setattr(integrations.models, "fetch", lambda: tiny_folder)
    monkeypatch.setattr(integrations.tasks.loading, "load_hub", hub)


@pytest.fixture
def workplace(monkeypatch, tmp_path):
    """A current folder with the files that the examples read."""
    demo_data = Path(integrations.__file__).parent / "demo_data"
    shutil.copytree(demo_data, tmp_path / "my-data")
    tickets = [("It was bad", "support"), ("great", "sales")]
    reviews = [("bad", "It was bad", 0), ("great", "It was great", 1)]
    questions = [("the film was bad. How was it?", "bad"), ("It was great. How was it?", "great")]
    _write(tmp_path / "tickets.csv", ("message", "queue"), tickets)
    _write(tmp_path / "questions.csv", ("question", "answer"), questions)
    _write(tmp_path / "reviews.csv", ("title", "review", "sentiment"), reviews)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _write(path, header, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *(ROWS // 2 * rows)])
