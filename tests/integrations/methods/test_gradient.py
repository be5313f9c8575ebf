"""What all methods that follow a gradient promise, and the loop that they share."""

import numpy as np
import pytest
import torch
from gradient_trials import make_trial, train_loss, weights

from integrations import UserError
from integrations.int8 import quantize_layers
from integrations.methods import gradient
from integrations.methods.bottleneck import BottleneckAdapter
from integrations.methods.model_weights import BitFit, ModelTuning
from integrations.methods.peft_methods import LoRA, PromptTuning, PTuningV2
from integrations.methods.trial import fit

METHODS = {
    ModelTuning: {"learning_rate": 1e-3},
    BitFit: {"learning_rate": 1e-2},
    BottleneckAdapter: {"size": 4, "learning_rate": 1e-2},
    LoRA: {"learning_rate": 1e-2},
    PromptTuning: {"tokens": 4, "learning_rate": 0.1},
    PTuningV2: {"tokens": 3, "learning_rate": 0.1},
}
all_methods = pytest.mark.parametrize("method", METHODS)


def make(method, trial, **settings):
    return method(trial, **METHODS[method] | settings)


@all_methods
@pytest.mark.parametrize("family", ["llama", "roberta"])
def test_the_loss_falls(method, family, word_tokenizer, toy_task):
    trial = make_trial(family, word_tokenizer, toy_task, budget=15, dev_every=5)
    learner = make(method, trial)
    first = train_loss(learner, trial)
    fit(trial, learner)
    assert learner.evaluations == 15
    assert [score.evaluations for score in trial.scores] == [0, 5, 10, 15]
    assert trial.scores[-1].train_loss < first
    for _ in range(5):
        learner.step()
    assert train_loss(learner, trial) < 0.8 * first


@all_methods
def test_what_is_not_trained_stays(method, word_tokenizer, toy_task):
    trial = make_trial("roberta", word_tokenizer, toy_task)
    model = trial.arch.model
    before = {id(p): p.detach().clone() for p in model.parameters()}
    learner = make(method, trial)
    tuned = set(map(id, learner._tuned))
    for _ in range(2):
        learner.step()
    for p in model.parameters():
        if id(p) in before and id(p) not in tuned:
            assert torch.equal(p, before[id(p)])
    assert learner.parameters == sum(p.numel() for p in learner._tuned)


@all_methods
@pytest.mark.parametrize("family", ["llama", "roberta"])
def test_states_come_back_and_seeds_repeat(method, family, word_tokenizer, toy_task):
    one, two = (
        make(method, make_trial(family, word_tokenizer, toy_task, seed=3), batch_size=4)
        for _ in "ab"
    )
    assert [one.step() for _ in range(3)] == [two.step() for _ in range(3)]
    kept, expected = one.state(), one.logits(toy_task.test)
    assert sum(x.numel() for x in kept) == one.parameters
    one.step()
    assert not np.array_equal(one.logits(toy_task.test), expected)
    one.restore(kept)
    np.testing.assert_array_equal(one.logits(toy_task.test), expected)


def test_the_seed_draws_the_order(word_tokenizer, toy_task):
    def losses(seed):
        learner = BitFit(make_trial("llama", word_tokenizer, toy_task, seed), batch_size=2)
        return [learner.step() for _ in range(3)]

    assert losses(0) == losses(0) != losses(1)


def test_a_pass_is_every_example_once(word_tokenizer, toy_task, monkeypatch):
    trial = make_trial("llama", word_tokenizer, toy_task)
    learner = BitFit(trial, batch_size=3)
    seen = []
    make_batches = gradient.make_batches
    monkeypatch.setattr(
        gradient, "make_batches", lambda p, *a, **k: seen.append(p) or make_batches(p, *a, **k)
    )
    passes = []
    for _ in range(6):
        learner.step()
        passes.append(learner.evaluations)
    assert passes == [3 / 8, 6 / 8, 1, 11 / 8, 14 / 8, 2]
    assert [len(prompts) for prompts in seen] == [3, 3, 2, 3, 3, 2]
    everything = sorted(prompt.ids for prompt in trial.encoder.encode(toy_task.train))
    for one_pass in (seen[:3], seen[3:]):
        assert sorted(prompt.ids for prompts in one_pass for prompt in prompts) == everything


def test_the_loss_that_is_told_is_that_of_the_latest_pass(word_tokenizer, toy_task):
    trial = make_trial("llama", word_tokenizer, toy_task)
    learner = BitFit(trial, batch_size=3, learning_rate=0.0)
    told = [learner.step() for _ in range(4)]
    labels = torch.tensor([e.label for e in toy_task.train])
    logits = torch.from_numpy(learner.logits(toy_task.train))
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none").numpy()
    order = np.random.default_rng(0).permutation(8)
    expected = [losses[order[:3]].mean(), losses[order[:6]].mean(), losses.mean()]
    np.testing.assert_allclose(told[:3], expected, atol=1e-5)


@all_methods
def test_a_batch_in_parts_has_the_same_gradient(method, word_tokenizer, toy_task, monkeypatch):
    def after_a_step():
        learner = make(method, make_trial("llama", word_tokenizer, toy_task))
        # AdamW's first step is as long for a gradient that is all rounding as for any other.
        learner._optimizer = torch.optim.SGD(learner._tuned, lr=0.1)
        learner.step()
        return learner.state()

    whole = after_a_step()
    monkeypatch.setattr(gradient, "TRAIN_TOKENS", 20)
    for one, other in zip(whole, after_a_step(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


def test_gradients_are_gone_after_a_step(word_tokenizer, toy_task):
    trial = make_trial("llama", word_tokenizer, toy_task)
    ModelTuning(trial).step()
    assert all(p.grad is None for p in trial.arch.model.parameters())


@all_methods
def test_the_global_random_state_stays(method, word_tokenizer, toy_task):
    trial = make_trial("llama", word_tokenizer, toy_task)
    before = torch.get_rng_state()
    make(method, trial).step()
    assert torch.equal(torch.get_rng_state(), before)


@all_methods
def test_layers_of_int8_are_refused(method, word_tokenizer, toy_task):
    trial = make_trial("llama", word_tokenizer, toy_task)
    quantize_layers(trial.arch.model)
    with pytest.raises(UserError, match="dtype='float32'"):
        make(method, trial)


@pytest.mark.parametrize("method", [ModelTuning, BitFit, LoRA])
def test_encoder_decoders_learn(method, word_tokenizer, toy_task):
    trial = make_trial("t5", word_tokenizer, toy_task)
    learner = make(method, trial)
    first = train_loss(learner, trial)
    for _ in range(15):
        learner.step()
    assert train_loss(learner, trial) < first


@pytest.mark.parametrize("method", [BottleneckAdapter, PromptTuning, PTuningV2])
def test_encoder_decoders_are_refused(method, word_tokenizer, toy_task):
    with pytest.raises(UserError, match="encoder-decoder"):
        make(method, make_trial("t5", word_tokenizer, toy_task))


@pytest.mark.parametrize("method", [ModelTuning, BitFit, BottleneckAdapter, LoRA])
def test_sixteen_bits_are_trained_in_thirty_two(method, word_tokenizer, toy_task):
    trial = make_trial("llama", word_tokenizer, toy_task)
    trial.arch.model.to(torch.bfloat16)
    learner = make(method, trial)
    learner.step()
    assert {x.dtype for x in learner.state()} == {torch.float32}


def test_weights_are_those_of_the_trial(word_tokenizer, toy_task):
    trial = make_trial("llama", word_tokenizer, toy_task)
    before = weights(trial.arch.model)
    ModelTuning(trial).step()
    assert any(not torch.equal(x, before[n]) for n, x in trial.arch.model.state_dict().items())
