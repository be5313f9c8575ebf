"""Trials on tiny random models."""

import torch
from tiny import build_model, kind_of, label_logits
from torch.nn import functional as F

from integrations.architectures import describe
from integrations.methods.trial import Trial
from integrations.prompts import Encoder


def tiny_trial(family, task, word_tokenizer, *, model=None, seed=0, budget=None, dev_every=1):
    """A trial on a random model of a family, the same each time."""
    arch = describe(build_model(family) if model is None else model)
    encoder = Encoder(task, word_tokenizer(kind_of(family)), kind_of(family), 32)
    return Trial(arch, encoder, seed, budget, None, dev_every)


def plain_loss(model, encoder, examples):
    """Mean cross-entropy over the label words, one prompt after the other."""
    prompts = encoder.encode(examples)
    labels = torch.tensor([prompt.label for prompt in prompts])
    return F.cross_entropy(label_logits(model, prompts, encoder.label_ids).double(), labels).item()
