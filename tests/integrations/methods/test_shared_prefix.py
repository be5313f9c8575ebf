"""A beginning that is read once changes no logits."""

import numpy as np
import pytest
from gradient_trials import make_trial, plain_logits
from tiny import kind_of

from integrations.methods.shared_prefix import logits_after_shared

FAMILIES = ["llama", "gpt2", "opt", "bloom", "gpt_neo", "gptj", "gemma2", "gemma3", "falcon"]
FAMILIES += ["falcon, all heads, alibi", "mistral", "phi3"]


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_whole_prompts(family, word_tokenizer, toy_task):
    assert kind_of(family) == "causal"
    trial = make_trial(family, word_tokenizer, toy_task)
    prompts = trial.encoder.encode(toy_task.test)
    assert prompts[0].ids[:2] == prompts[-1].ids[:2]
    expected = plain_logits(trial.arch.model, prompts, trial.encoder.label_ids).detach()
    found = logits_after_shared(trial.arch, trial.encoder, toy_task.test)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    alone = logits_after_shared(trial.arch, trial.encoder, toy_task.test[:1])
    np.testing.assert_allclose(alone, expected[:1], atol=1e-4)
