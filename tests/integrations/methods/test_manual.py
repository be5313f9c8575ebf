"""The manual prompt is the frozen model's answer, and takes no step."""

import numpy as np
import pytest
from gradient_trials import make_trial, plain_logits

from integrations.methods.manual import ManualPrompt
from integrations.methods.trial import fit


@pytest.mark.parametrize("family", ["llama", "roberta", "t5"])
def test_logits_are_the_frozen_models(family, word_tokenizer, toy_task):
    trial = make_trial(family, word_tokenizer, toy_task)
    prompts = trial.encoder.encode(toy_task.test)
    found = ManualPrompt(trial).logits(toy_task.test)
    if family == "t5":
        assert found.shape == (8, 2)
        return
    expected = plain_logits(trial.arch.model, prompts, trial.encoder.label_ids)
    np.testing.assert_allclose(found, expected.detach(), atol=1e-5)


def test_there_is_one_look_and_nothing_to_tune(word_tokenizer, toy_task):
    trial = make_trial("llama", word_tokenizer, toy_task)
    learner = ManualPrompt(trial)
    fit(trial, learner)
    assert learner.parameters == 0
    assert learner.evaluations == 0
    assert [score.evaluations for score in trial.scores] == [0]
