"""MeZO with LoRA, against the same steps on PEFT's modules."""

import copy

import numpy as np
import peft
import pytest
import torch
from tiny import HIDDEN, LAYERS, build_model, projection, projection_names
from tiny_trial import plain_loss, tiny_trial

from integrations import UserError
from integrations.methods.mezo import MeZO
from integrations.methods.trial import fit

RANK, ALPHA = 8, 16


def lora(model):
    """The model with PEFT's LoRA on queries and values."""
    names = [projection_names(model)[target] for target in "qv"]
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=names)
    return peft.get_peft_model(copy.deepcopy(model), config).eval()


def put(tuned, theta):
    """Give PEFT's modules the factors that lie in theta, layer by layer."""
    theta = theta.clone()
    for layer in range(LAYERS):
        for target in "qv":
            module = projection(tuned.base_model.model, layer, target)
            a, b = module.lora_A["default"].weight.data, module.lora_B["default"].weight.data
            a[:], theta = theta[: a.numel()].view(a.shape), theta[a.numel() :]
            b[:], theta = theta[: b.numel()].view(RANK, -1).T, theta[b.numel() :]
    assert not len(theta)


@pytest.mark.parametrize("family", ["llama", "roberta"])
@pytest.mark.parametrize("samples", [1, 3])
def test_steps_are_those_of_the_formula_on_a_peft_model(family, samples, toy_task, word_tokenizer):
    model = build_model(family)
    tuned, eps, rate, decay = lora(model), 1e-2, 1e-1, 0.1
    trial = tiny_trial(family, toy_task, word_tokenizer, model=model)
    learner = MeZO(trial, learning_rate=rate, eps=eps, samples=samples, weight_decay=decay)
    rng = torch.Generator()

    def loss(point):
        put(tuned, point)
        return plain_loss(tuned, trial.encoder, toy_task.train)

    for _ in range(3):
        rng.set_state(learner.rng.get_state())
        theta = learner.theta.clone()
        found = learner.step()
        gradient, losses = decay * theta, []
        for z in torch.randn(samples, len(theta), generator=rng):
            losses += [loss(theta + eps * z), loss(theta - eps * z)]
            gradient = gradient + (losses[-2] - losses[-1]) / (2 * eps) * z / samples
        assert found == pytest.approx(np.mean(losses), abs=1e-5)
        # A slope's denominator makes much of rounding.
        torch.testing.assert_close(learner.theta, theta - rate * gradient, atol=1e-4, rtol=0)
        assert (rate * gradient).abs().max() > 1e-2
    put(tuned, learner.theta)
    score = trial.score(toy_task.train, learner.logits)
    assert score.loss == pytest.approx(plain_loss(tuned, trial.encoder, toy_task.train), abs=1e-5)


def test_it_begins_as_lora_does(toy_task, word_tokenizer):
    learner = MeZO(tiny_trial("llama", toy_task, word_tokenizer))
    assert learner.parameters == sum(
        p.numel() for p in lora(build_model("llama")).parameters() if p.requires_grad
    )
    (factors, *_), width = learner._adapter().factors, HIDDEN**-0.5
    assert not any(f.B.any() for f in factors.values())
    for f in factors.values():  # kaiming_uniform_ with a = sqrt(5): uniform within 1 / sqrt(h)
        assert 0.9 * width < f.A.abs().max() <= width
        assert f.A.std() == pytest.approx(width / 3**0.5, rel=0.1)


@pytest.mark.parametrize("family", ["llama", "roberta"])
def test_the_loss_falls_and_the_model_stays_as_it_was(family, toy_task, word_tokenizer):
    model = build_model(family)
    before = copy.deepcopy(model.state_dict())
    trial = tiny_trial(family, toy_task, word_tokenizer, model=model, budget=100, dev_every=20)
    learner = MeZO(trial, learning_rate=3e-2)
    first = trial.score(toy_task.train, learner.logits).loss
    fit(trial, learner)
    assert learner.evaluations == 100
    assert trial.score(toy_task.train, learner.logits).loss < 0.8 * first
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_large_training_set_is_dealt_into_batches(toy_task, word_tokenizer):
    trial = tiny_trial("llama", toy_task, word_tokenizer)
    learner = MeZO(trial, batch_size=3, learning_rate=1e-7)
    batches = [learner.step() for _ in range(3)]
    assert learner.evaluations == 2
    whole = plain_loss(trial.arch.model, trial.encoder, toy_task.train)
    # Three, three and two of eight examples; steps and perturbations are tiny.
    assert np.average(batches, weights=[3, 3, 2]) == pytest.approx(whole, abs=1e-4)
    assert np.ptp(batches) > 1e-2


def test_a_step_without_a_finite_loss_changes_nothing(toy_task, word_tokenizer):
    learner = MeZO(tiny_trial("llama", toy_task, word_tokenizer), eps=1e30)
    before = learner.state()
    assert not np.isfinite(learner.step())
    assert torch.equal(learner.theta, before)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rank": 0}, "rank must be a whole number of 1 or more; got 0"),
        ({"eps": 0.0}, "eps must be a number above 0; got 0.0"),
        ({"weight_decay": -1.0}, "weight_decay must be 0 or more; got -1.0"),
        ({"targets": ("q", "x")}, "unknown target 'x'"),
    ],
)
def test_wrong_arguments_are_told(wrong, message, toy_task, word_tokenizer):
    with pytest.raises(UserError, match=message):
        MeZO(tiny_trial("llama", toy_task, word_tokenizer), **wrong)


def test_state_comes_back_and_the_same_seed_gives_the_same_numbers(toy_task, word_tokenizer):
    learner, other = (MeZO(tiny_trial("llama", toy_task, word_tokenizer)) for _ in range(2))
    found, expected = ([each.step() for _ in range(2)] for each in (learner, other))
    np.testing.assert_allclose(found, expected, rtol=1e-5)  # blocks' sizes make for rounding
    state, logits = learner.state(), learner.logits(toy_task.dev)
    learner.step()
    assert not np.array_equal(learner.logits(toy_task.dev), logits)
    learner.restore(state)
    np.testing.assert_array_equal(learner.logits(toy_task.dev), logits)
