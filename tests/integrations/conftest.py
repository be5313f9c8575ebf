"""Tokenizers that know a few words, and a task in those words."""

import json
import os
import sys

# Libraries that look for files on the Hub give up at once. Set before they are imported.
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import torch
from tiny import SPECIAL, VOCABULARY, build_model, kind_of
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from integrations import Example, Task, cli

WORDS = ["bad", "great", "the", "a", "film", "story", "plot", "cast", "was", "is", "It", ".", ","]
WORDS += ["and", "very", "lovely", "good", "dull", "poor"]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def word_tokenizer():
    """make(kind): whole words; [BOS] ... for causal models, [CLS] ... [SEP] for others."""
    words = SPECIAL + WORDS
    words += [f"w{i}" for i in range(VOCABULARY - len(words))]
    vocabulary = {word: i for i, word in enumerate(words)}

    def make(kind, closing=""):
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"[BOS] $A {closing}".strip() if kind == "causal" else "[CLS] $A [SEP]",
            special_tokens=list(vocabulary.items())[: len(SPECIAL)],
        )
        names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
        if kind == "causal":
            names = {"bos_token": "[BOS]", "eos_token": "[EOS]"}
        elif kind == "seq2seq":  # as BART's
            names |= {"eos_token": "[SEP]"}
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", **names
        )

    return make


@pytest.fixture(scope="session")
def byte_tokenizer():
    """make(kind): byte-level BPE, in which a word after a space is another token than without."""

    def make(kind):
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=1000,
            # As RoBERTa's, the mask takes the space before it along.
            special_tokens=[AddedToken(word, lstrip=word == "[MASK]") for word in SPECIAL],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator([f"{word} {word}" for word in WORDS for _ in "abc"], trainer)
        mask = AddedToken("[MASK]", lstrip=True)
        names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": mask}
        if kind != "causal":
            tokenizer.post_processor = processors.TemplateProcessing(
                single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
            )
        if kind == "causal":
            names = {"bos_token": "[BOS]", "eos_token": "[EOS]"}
        elif kind == "seq2seq":  # as BART's
            names |= {"eos_token": "[SEP]"}
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", **names)

    return make


@pytest.fixture(scope="session")
def toy_task():
    """Eight examples a split; "lovely" and "good" are great, "dull" and "poor" are bad."""

    def examples(seed):
        rng = np.random.default_rng(seed)
        return [
            Example(
                {"text": f"the {rng.choice(WORDS[4:8])} was {word}{rng.integers(3) * ' and very'}"},
                label,
            )
            for label, words in enumerate((("dull", "poor"), ("lovely", "good")))
            for word in 2 * words
        ]

    patterns = {"masked": "{text} . It was {mask} .", "causal": "{text} . It was"}
    patterns["seq2seq"] = patterns["masked"]
    return Task("toy", patterns, ("bad", "great")).with_splits(*(examples(i) for i in range(3)))


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory, word_tokenizer):
    """Folder with a random model and its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    build_model("llama").save_pretrained(folder)
    word_tokenizer("causal").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session", params=["llama", "roberta"])
def long_model(request, tmp_path_factory, word_tokenizer):
    """Folder with a random model that has words and room for soft prompts of fifty tokens."""
    folder = tmp_path_factory.mktemp("long")
    tokenizer = word_tokenizer(kind_of(request.param))
    tokenizer.add_tokens([f"x{i}" for i in range(1000)])
    size = {"vocab_size": len(tokenizer), "max_position_embeddings": 256}
    build_model(request.param, **size).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory, toy_task):
    """Folder with the toy task as JSON lines."""
    folder = tmp_path_factory.mktemp("data")
    for split in ("train", "dev", "test"):
        rows = [{**e.fields, "label": e.label} for e in getattr(toy_task, split)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def dfo_lora(monkeypatch, capsys):
    """run(*arguments): exit status, standard output and standard error of the command."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["dfo-lora", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        output = capsys.readouterr()
        return end.value.code or 0, output.out, output.err

    return run


@pytest.fixture
def tune_arguments(saved_model, data):
    """make(**changes): arguments of a short run that works, with some of them replaced."""

    def make(**changes):
        options = {"model": saved_model, "task": "sst2", "data": data, "shots": 4, "dim": 40}
        options |= {"budget": 40, "dev_every": 10} | changes
        flat = []
        for name, value in options.items():
            flat += [f"--{name.replace('_', '-')}", *([] if value is True else [value])]
        return ["tune", *flat]

    return make
