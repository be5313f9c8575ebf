"""Trials of tiny models, and what their label logits are when a model is simply called."""

import numpy as np
import torch
from tiny import build_model, kind_of

from integrations.architectures import describe
from integrations.evaluators import make_encoder
from integrations.methods.trial import Trial


def make_trial(family, word_tokenizer, task, seed=0, **settings):
    arch = describe(build_model(family))
    encoder = make_encoder(task, arch, word_tokenizer(kind_of(family)), None)
    settings = {"budget": None, "seconds": None, "dev_every": 1.0} | settings
    return Trial(arch, encoder, seed, **settings)


def plain_logits(model, prompts, label_ids, shift=0):
    """Label logits (N, C) of a model that is called on one prompt after the other."""
    outputs = [
        model(
            input_ids=torch.tensor([prompt.ids]), attention_mask=torch.ones(1, len(prompt.ids))
        ).logits[0, prompt.answer + shift]
        for prompt in prompts
    ]
    return torch.stack(outputs)[:, list(label_ids)]


def train_loss(learner, trial):
    """Cross-entropy over the label words of the training set, from the learner's logits."""
    task = trial.encoder.task
    logits = torch.from_numpy(np.asarray(learner.logits(task.train)))
    labels = torch.tensor([example.label for example in task.train])
    return torch.nn.functional.cross_entropy(logits, labels).item()


def weights(model):
    return {name: x.clone() for name, x in model.state_dict().items()}
