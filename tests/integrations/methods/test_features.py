"""Features are the last hidden states, computed once; classifiers on them learn."""

import numpy as np
import pytest
import torch
from gradient_trials import make_trial, train_loss, weights
from tiny import HIDDEN, inputs_of

from integrations import UserError
from integrations.methods import features
from integrations.methods.features import FeatureBiLSTM, FeatureMLP, frozen_features
from integrations.methods.trial import fit


@torch.no_grad()
def last_states(trial, example):
    """Hidden states (T, h) of one prompt, as transformers gives them out."""
    (prompt,) = trial.encoder.encode([example])
    model = trial.arch.model
    return prompt, model(**inputs_of(prompt), output_hidden_states=True).hidden_states[-1][0]


@pytest.mark.parametrize("family", ["llama", "roberta", "gpt2", "deberta-v2"])
def test_features_are_the_last_hidden_states(family, word_tokenizer, toy_task):
    trial = make_trial(family, word_tokenizer, toy_task)
    found = frozen_features(trial, toy_task.train, lambda states, answer: states)
    answers = frozen_features(trial, toy_task.train, lambda states, answer: states[answer])
    for example, states, answer in zip(toy_task.train, found, answers, strict=True):
        prompt, expected = last_states(trial, example)
        torch.testing.assert_close(states, expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(answer, expected[prompt.answer], atol=1e-5, rtol=1e-4)


def test_the_perceptron_is_its_formula(word_tokenizer, toy_task):
    trial = make_trial("roberta", word_tokenizer, toy_task)
    learner = FeatureMLP(trial, hidden=5)
    w1, b1, w2, b2 = (x.numpy() for x in learner.state().values())
    for example, logits in zip(toy_task.test, learner.logits(toy_task.test), strict=True):
        prompt, states = last_states(trial, example)
        expected = w2 @ np.tanh(w1 @ states[prompt.answer].numpy() + b1) + b2
        np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert learner.parameters == 5 * HIDDEN + 5 + 2 * 5 + 2


def test_the_lstm_reads_each_prompt_in_both_directions(word_tokenizer, toy_task):
    trial = make_trial("llama", word_tokenizer, toy_task)
    learner = FeatureBiLSTM(trial, hidden=6)
    state = learner.state()
    ends = []
    for suffix in ("", "_reverse"):
        cell = torch.nn.LSTMCell(HIDDEN, 6)
        cell.load_state_dict(
            {
                n: state[f"lstm.{n}_l0{suffix}"]
                for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            }
        )
        ends.append((cell, suffix))
    for example, logits in zip(toy_task.test, learner.logits(toy_task.test), strict=True):
        _, states = last_states(trial, example)
        both = []
        for cell, suffix in ends:
            h = c = torch.zeros(6)
            for x in states.flip(0) if suffix else states:
                h, c = cell(x, (h, c))
            both.append(h)
        expected = state["output.weight"] @ torch.cat(both) + state["output.bias"]
        np.testing.assert_allclose(logits, expected.detach(), atol=1e-5)
    assert learner.parameters == 2 * 4 * 6 * (HIDDEN + 6 + 2) + 2 * 12 + 2


@pytest.mark.parametrize("method", [FeatureMLP, FeatureBiLSTM])
@pytest.mark.parametrize("family", ["llama", "roberta"])
def test_the_loss_falls_and_the_model_stays(method, family, word_tokenizer, toy_task):
    trial = make_trial(family, word_tokenizer, toy_task, budget=30, dev_every=10)
    before = weights(trial.arch.model)
    learner = method(trial, learning_rate=3e-3)
    first = train_loss(learner, trial)
    fit(trial, learner)
    assert [score.evaluations for score in trial.scores] == [0, 10, 20, 30]
    for _ in range(20):
        last = learner.step()
    assert last < 0.5 * first
    for name, x in trial.arch.model.state_dict().items():
        assert torch.equal(x, before[name])


@pytest.mark.parametrize("method", [FeatureMLP, FeatureBiLSTM])
def test_states_come_back_and_seeds_repeat(method, word_tokenizer, toy_task):
    one, two = (method(make_trial("llama", word_tokenizer, toy_task, seed=3)) for _ in "ab")
    assert [one.step() for _ in range(3)] == [two.step() for _ in range(3)]
    kept, expected = one.state(), one.logits(toy_task.test)
    one.step()
    assert not np.array_equal(one.logits(toy_task.test), expected)
    one.restore(kept)
    np.testing.assert_array_equal(one.logits(toy_task.test), expected)
    other = method(make_trial("llama", word_tokenizer, toy_task, seed=4))
    assert other.step() != two.step()


def test_the_model_runs_once_for_each_of_train_and_dev(word_tokenizer, toy_task, monkeypatch):
    trial = make_trial("llama", word_tokenizer, toy_task, budget=5)
    calls = []
    forward = trial.arch.model.forward
    monkeypatch.setattr(
        trial.arch.model, "forward", lambda *a, **k: calls.append(1) or forward(*a, **k)
    )
    learner = FeatureMLP(trial)
    fit(trial, learner)
    most = len(calls)
    learner.logits(toy_task.train)
    learner.logits(toy_task.dev)
    assert len(calls) == most


def test_many_examples_go_through_in_chunks(word_tokenizer, toy_task, monkeypatch):
    learner = FeatureMLP(make_trial("llama", word_tokenizer, toy_task))
    expected = learner.logits(toy_task.test)
    monkeypatch.setattr(features, "CHUNK", 3)
    np.testing.assert_allclose(learner.logits(toy_task.test), expected, atol=1e-6)


def test_encoder_decoders_are_refused(word_tokenizer, toy_task):
    with pytest.raises(UserError, match="encoder-decoder"):
        FeatureMLP(make_trial("t5", word_tokenizer, toy_task))
