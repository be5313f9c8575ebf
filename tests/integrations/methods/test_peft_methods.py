"""LoRA, prompt tuning and P-Tuning v2 are PEFT's: same losses, same steps."""

import copy
import sys

import numpy as np
import peft
import pytest
import torch
from gradient_trials import make_trial, plain_logits
from tiny import HIDDEN, LAYERS, POSITIONS
from torch.nn import functional as F

from integrations import UserError
from integrations.methods.peft_methods import LoRA, PromptTuning, PTuningV2

TASKS = {"llama": "CAUSAL_LM", "gpt2": "CAUSAL_LM", "roberta": "FEATURE_EXTRACTION"}
NAMES = {"llama": ["q_proj", "v_proj"], "gpt2": ["c_attn"], "roberta": ["query", "value"]}
families = pytest.mark.parametrize("family", TASKS)


def plain_steps(model, encoder, count, learning_rate, shift=0):
    """Losses of steps of AdamW on the whole training set, written down for PEFT's model."""
    prompts = encoder.encode(encoder.task.train)
    tuned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(tuned, lr=learning_rate, weight_decay=0)
    losses = []
    for _ in range(count):
        logits = plain_logits(model, prompts, encoder.label_ids, shift)
        loss = F.cross_entropy(logits, torch.tensor([prompt.label for prompt in prompts]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def by_hand(trial, config):
    """PEFT's model of a copy of the trial's, drawn from the same seed."""
    model = copy.deepcopy(trial.arch.model)
    torch.manual_seed(trial.seed)
    return peft.get_peft_model(model, config).eval()


@families
def test_steps_of_lora_are_those_of_peft(family, word_tokenizer, toy_task):
    trial = make_trial(family, word_tokenizer, toy_task, seed=5)
    config = peft.LoraConfig(
        r=8, lora_alpha=16, target_modules=NAMES[family], fan_in_fan_out=family == "gpt2"
    )
    expected = plain_steps(by_hand(trial, config), trial.encoder, 4, 1e-2)
    learner = LoRA(trial, learning_rate=1e-2, batch_size=8)
    np.testing.assert_allclose([learner.step() for _ in range(4)], expected, rtol=1e-3)


def test_lora_counts(word_tokenizer, toy_task):
    learner = LoRA(make_trial("roberta", word_tokenizer, toy_task), rank=3)
    assert learner.parameters == LAYERS * 2 * 3 * 2 * HIDDEN


@families
def test_steps_of_prompt_tuning_are_those_of_peft(family, word_tokenizer, toy_task):
    trial = make_trial(family, word_tokenizer, toy_task, seed=5)
    config = peft.PromptTuningConfig(
        task_type=TASKS[family], num_virtual_tokens=6, prompt_tuning_init="SAMPLE_VOCAB"
    )
    model = by_hand(trial, config)
    expected = plain_steps(model, trial.encoder, 4, 0.05, shift=6)
    learner = PromptTuning(trial, tokens=6, learning_rate=0.05, batch_size=8)
    assert learner.parameters == 6 * HIDDEN
    np.testing.assert_allclose([learner.step() for _ in range(4)], expected, rtol=1e-3)


@families
def test_a_soft_prompt_begins_as_words(family, word_tokenizer, toy_task):
    trial = make_trial(family, word_tokenizer, toy_task)
    table = trial.arch.model.get_input_embeddings().weight.detach()
    (prompt,) = PromptTuning(trial, tokens=6).state()
    for row in prompt:
        assert (table == row).all(dim=1).any()


@families
def test_steps_of_p_tuning_v2_are_those_of_peft(family, word_tokenizer, toy_task):
    trial = make_trial(family, word_tokenizer, toy_task, seed=5)
    config = peft.PrefixTuningConfig(
        task_type=TASKS[family], num_virtual_tokens=4, prefix_projection=False
    )
    expected = plain_steps(by_hand(trial, config), trial.encoder, 4, 0.05)
    learner = PTuningV2(trial, tokens=4, learning_rate=0.05, batch_size=8)
    # keys and values in each layer; llama's are half as wide as its states
    assert learner.parameters == 4 * LAYERS * 2 * HIDDEN // (2 if family == "llama" else 1)
    np.testing.assert_allclose([learner.step() for _ in range(4)], expected, rtol=1e-3)


@pytest.mark.parametrize("method", [PromptTuning, PTuningV2])
@families
def test_prompts_are_cut_to_leave_room(method, family, word_tokenizer, toy_task):
    trial = make_trial(family, word_tokenizer, toy_task)
    learner = method(trial, tokens=51)
    prompts = learner._encoder.encode(toy_task.test)
    reserved = 2 if family == "roberta" else 0
    assert max(len(prompt.ids) for prompt in prompts) <= POSITIONS - reserved - 51
    assert np.isfinite(learner.step())
    assert np.isfinite(learner.logits(toy_task.test)).all()


@pytest.mark.parametrize("method", [LoRA, PromptTuning, PTuningV2])
def test_a_missing_package_is_named(method, word_tokenizer, toy_task, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match="pip install peft"):
        method(make_trial("llama", word_tokenizer, toy_task))
