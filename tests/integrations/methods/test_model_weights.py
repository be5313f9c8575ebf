"""Model tuning and BitFit take the step that PyTorch takes, on what they say they train."""

import copy

import numpy as np
import pytest
import torch
from gradient_trials import make_trial, plain_logits
from tiny import HIDDEN, LAYERS, VOCABULARY
from torch.nn import functional as F

from integrations.methods.manual import ManualPrompt
from integrations.methods.model_weights import BitFit, ModelTuning


def plain_step(model, trial, parameters, learning_rate):
    """One step of AdamW on the whole training set, written down for a plain model."""
    encoder = trial.encoder
    prompts = encoder.encode(encoder.task.train)
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.01)
    logits = plain_logits(model, prompts, encoder.label_ids)
    loss = F.cross_entropy(logits, torch.tensor([prompt.label for prompt in prompts]))
    loss.backward()
    optimizer.step()
    return loss.item()


@pytest.mark.parametrize("family", ["llama", "roberta", "gpt2", "deberta-v2", "modernbert"])
def test_a_step_of_model_tuning_is_pytorchs(family, word_tokenizer, toy_task):
    trial = make_trial(family, word_tokenizer, toy_task)
    model = copy.deepcopy(trial.arch.model)
    expected = plain_step(model, trial, model.parameters(), 1e-3)
    learner = ModelTuning(trial, learning_rate=1e-3, batch_size=8, weight_decay=0.01)
    assert learner.parameters == sum(p.numel() for p in model.parameters())
    assert learner.step() == pytest.approx(expected, rel=1e-5)
    prompts = trial.encoder.encode(toy_task.test)
    logits = plain_logits(model, prompts, trial.encoder.label_ids).detach()
    np.testing.assert_allclose(learner.logits(toy_task.test), logits, atol=2e-3)


def test_a_step_of_bitfit_is_pytorchs_on_the_biases(word_tokenizer, toy_task):
    trial = make_trial("roberta", word_tokenizer, toy_task)
    model = copy.deepcopy(trial.arch.model)
    biases = [p for n, p in model.named_parameters() if n.endswith("bias") and len(p) != VOCABULARY]
    expected = plain_step(model, trial, biases, 1e-2)
    learner = BitFit(trial, learning_rate=1e-2, batch_size=8, weight_decay=0.01)
    assert learner.step() == pytest.approx(expected, rel=1e-5)
    prompts = trial.encoder.encode(toy_task.test)
    logits = plain_logits(model, prompts, trial.encoder.label_ids).detach()
    np.testing.assert_allclose(learner.logits(toy_task.test), logits, atol=2e-3)


def test_bitfit_counts_roberta_biases(word_tokenizer, toy_task):
    learner = BitFit(make_trial("roberta", word_tokenizer, toy_task))
    # q, k, v, o, the norm after them; the feed-forward part of width 64 and its norm
    layer = 5 * HIDDEN + 64 + 2 * HIDDEN
    assert learner.parameters == LAYERS * layer + HIDDEN + 2 * HIDDEN  # embeddings, head


def test_bitfit_gives_models_without_biases_some(word_tokenizer, toy_task):
    trial = make_trial("llama", word_tokenizer, toy_task)
    before = ManualPrompt(trial).logits(toy_task.test)
    learner = BitFit(trial)
    # q and o are as wide as the states, k and v half; gate, up and down of the feed-forward part
    assert learner.parameters == LAYERS * (3 * HIDDEN + 64 + 64 + HIDDEN)
    np.testing.assert_allclose(learner.logits(toy_task.test), before, atol=1e-4)


def test_bitfit_trains_the_biases_that_there_are(word_tokenizer, toy_task):
    learner = BitFit(make_trial("qwen2", word_tokenizer, toy_task))
    assert learner.parameters == LAYERS * 2 * HIDDEN  # q, k and v
