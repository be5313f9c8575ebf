"""Demonstrations: which, how many, and that the model sees them as text before the example."""

from collections import Counter

import numpy as np
import pytest
import torch
from gradient_trials import make_trial
from tiny import MASK

from integrations import Example, UserError
from integrations.methods.in_context import InContext
from integrations.methods.manual import ManualPrompt

WORDS = ("bad", "great")


def texts(learner):
    return [example.fields["text"] for example in learner.demonstrations]


@pytest.mark.parametrize("family", ["llama", "roberta"])
def test_the_model_sees_demonstrations_before_the_example(family, word_tokenizer, toy_task):
    trial = make_trial(family, word_tokenizer, toy_task)
    learner = InContext(trial)
    assert len(learner.demonstrations) >= 4
    end = " ." if family == "roberta" else ""
    shown = " ".join(
        f"{e.fields['text']} . It was {WORDS[e.label]}{end}" for e in learner.demonstrations
    )
    answer = "[MASK] ." if family == "roberta" else ""
    expected = []
    for example in toy_task.test:
        text = f"{shown} {example.fields['text']} . It was {answer}"
        ids = torch.tensor([trial.encoder.tokenizer(text)["input_ids"]])
        place = ids[0].tolist().index(MASK) if family == "roberta" else -1
        with torch.no_grad():
            logits = trial.arch.model(ids).logits[0, place]
        expected.append(logits[list(trial.encoder.label_ids)].numpy())
    np.testing.assert_allclose(learner.logits(toy_task.test), np.stack(expected), atol=1e-4)


def test_classes_are_balanced_and_the_seed_draws_the_order(word_tokenizer, toy_task):
    def shown(seed, **settings):
        return InContext(make_trial("llama", word_tokenizer, toy_task, seed), **settings)

    learner = shown(0)
    counts = Counter(example.label for example in learner.demonstrations)
    assert max(counts.values()) - min(counts.values()) <= 1
    assert texts(learner) == texts(shown(0))
    assert any(texts(learner) != texts(shown(seed)) for seed in (1, 2, 3))
    assert len(shown(0, most=3).demonstrations) == 3
    assert len(set(map(id, learner.demonstrations))) == len(learner.demonstrations)


def test_as_many_are_shown_as_fit(word_tokenizer, toy_task):
    trial = make_trial("llama", word_tokenizer, toy_task)
    numbers = []
    for length in (12, 30, 45, 63):
        learner = InContext(trial, max_length=length)
        prompts = learner._encoder.encode([*toy_task.dev, *toy_task.test])
        whole = trial.encoder.encode([*toy_task.dev, *toy_task.test])
        assert max(len(prompt.ids) for prompt in prompts) <= length
        if (
            length > 20
        ):  # an example gets what it takes: both prompts begin with a token of their own
            shown = learner._length(learner.demonstrations) - 1
            assert [len(p.ids) - shown for p in prompts] == [len(p.ids) for p in whole]
        numbers.append(len(learner.demonstrations))
    assert numbers == sorted(numbers)
    assert numbers[0] == 0
    assert 4 <= numbers[-1] <= 8


def test_without_room_it_is_the_manual_prompt(word_tokenizer, toy_task):
    trial = make_trial("roberta", word_tokenizer, toy_task)
    manual, shown = ManualPrompt(trial), InContext(trial, most=0)
    np.testing.assert_array_equal(shown.logits(toy_task.test), manual.logits(toy_task.test))
    assert shown.step() is None


def test_braces_and_masks_in_texts_are_text(word_tokenizer, toy_task):
    odd = [Example({"text": "a {film} [MASK] was {}"}, label) for label in (0, 1)]
    task = toy_task.with_splits(odd, toy_task.dev, toy_task.test)
    trial = make_trial("roberta", word_tokenizer, task)
    learner = InContext(trial)
    assert len(learner.demonstrations) == 2
    for prompt in learner._encoder.encode(task.test):
        assert prompt.ids.count(MASK) == 1
        assert prompt.ids[prompt.answer] == MASK


def test_encoder_decoders_are_refused(word_tokenizer, toy_task):
    with pytest.raises(UserError, match="encoder-decoder"):
        InContext(make_trial("t5", word_tokenizer, toy_task))


def test_more_tokens_than_positions_are_refused(word_tokenizer, toy_task):
    with pytest.raises(UserError, match="62 tokens"):
        InContext(make_trial("roberta", word_tokenizer, toy_task), max_length=63)
