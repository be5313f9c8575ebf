"""Trials of tiny models, and what a soft prompt makes of them by plain calls of transformers."""

import numpy as np
import torch
from tiny import build_model
from torch.nn import functional as F

from integrations.architectures import describe
from integrations.methods.trial import Trial
from integrations.prompts import Encoder, longest_prompt

FAMILIES = ["llama", "roberta"]
FIRST, N = 100, 5  # the soft prompt's first word and length
SETTINGS = {"n_tokens": N, "dim": 6, "popsize": 4, "first_token": FIRST}


def make_trial(family, tokenizers, task, seed=0, **limits):
    """A trial of a tiny model; ``tokenizers(kind)`` makes its tokenizer."""
    arch = describe(build_model(family))
    encoder = Encoder(task, tokenizers(arch.kind), arch.kind, longest_prompt(arch.model))
    limits = {"budget": None, "seconds": None, "dev_every": 1} | limits
    return Trial(arch, encoder, seed=seed, **limits)


def few(task):
    """The task with every other example for training."""
    return task.with_splits(task.train[::2], task.dev, task.test)


def soft_ids(trial, example):
    """Token ids of an example's prompt behind the soft prompt's words, and where it answers."""
    tokenizer, kind = trial.encoder.tokenizer, trial.arch.kind
    words = " ".join(f"w{i}" for i in _word_numbers(tokenizer))
    text = f"{words} {example.fields['text']} . It was"
    if kind == "masked":
        ids = tokenizer(f"{text} [MASK] .")["input_ids"]
        return ids, ids.index(tokenizer.mask_token_id)
    ids = tokenizer(text)["input_ids"]
    return ids, len(ids) - 1


def _word_numbers(tokenizer):
    names = tokenizer.convert_ids_to_tokens(list(range(FIRST, FIRST + N)))
    return [int(name.removeprefix("w")) for name in names]


@torch.no_grad()
def loss_with(trial, call):
    """Mean cross-entropy over the label words of ``call(ids)``, the logits (T, V), on train."""
    bad_great = trial.encoder.tokenizer.convert_tokens_to_ids(["bad", "great"])
    losses = []
    for example in trial.encoder.task.train:
        ids, answer = soft_ids(trial, example)
        logits = call(torch.tensor([ids]))[0, answer, bad_great]
        losses.append(-F.log_softmax(logits.double(), dim=0)[example.label].item())
    return np.mean(losses)


def matrix_of(space):
    """A subspace's random matrix (n * h, d) as float64 numbers."""
    return space.projection.materialize().weight.double()
