"""EGGROLL, against dense matrices: perturbations added to the weights one after the other."""

import copy

import numpy as np
import pytest
import torch
from tiny import HIDDEN, LAYERS, build_model, columns, projection
from tiny_trial import plain_loss, tiny_trial

from integrations import UserError
from integrations.int8 import quantize_layers
from integrations.methods.eggroll import EGGROLL, fitness
from integrations.methods.trial import fit

N, SIGMA, RATE = 6, 0.02, 0.7


def weight(model, layer, target):
    """A projection's own W (o, h), to be read or changed in place where it is not fused."""
    module = projection(model, layer, target)
    matrix = module.weight.data
    return matrix.T if type(module).__name__ == "Conv1D" else matrix


def perturbations(rng, widths, rank):
    """sigma E of each member by layer and target, in plain words from the paper's formula."""
    found = {}
    for layer in range(LAYERS):
        for target, width in widths.items():
            b = torch.randn(N // 2, rank, HIDDEN, generator=rng)
            a = torch.randn(N // 2, rank, width, generator=rng)
            pairs = [SIGMA / rank**0.5 * x.T @ y for x, y in zip(a, b, strict=True)]
            found[layer, target] = [sign * e for e in pairs for sign in (1, -1)]
    return found


@pytest.mark.parametrize(("family", "rank"), [("llama", 1), ("llama", 3), ("roberta", 1)])
def test_losses_and_step_are_those_of_dense_matrices(family, rank, toy_task, word_tokenizer):
    model = build_model(family)
    plain = copy.deepcopy(model)
    trial = tiny_trial(family, toy_task, word_tokenizer, model=model)
    rng = torch.Generator().manual_seed(trial.seed)
    settings = {"rank": rank, "popsize": N, "sigma": SIGMA, "learning_rate": RATE}
    learner = EGGROLL(trial, **settings, members_a_step=4)
    widths = {target: len(weight(model, 0, target)) for target in "qv"}

    for _ in range(2):
        tried = perturbations(rng, widths, rank)
        losses = []
        for member in range(N):
            perturbed = copy.deepcopy(plain)
            for (layer, target), moves in tried.items():
                weight(perturbed, layer, target)[:] += moves[member]
            losses.append(plain_loss(perturbed, trial.encoder, toy_task.train))
        assert learner.step() == pytest.approx(np.mean(losses[:4]), abs=1e-5)
        assert learner.step() == pytest.approx(np.mean(losses), abs=1e-5)

        good = -np.array(losses)
        good = (good - good.mean()) / np.sqrt(good.var() + 1e-5)
        for (layer, target), moves in tried.items():
            step = sum(f * move for f, move in zip(good, moves, strict=True)) / N
            weight(plain, layer, target)[:] += RATE * N**0.5 * step
            found = weight(model, layer, target)
            torch.testing.assert_close(found, weight(plain, layer, target), atol=1e-4, rtol=0)
        assert np.std(losses) > 1e-3
    assert learner.evaluations == 2 * N


@pytest.mark.parametrize("family", ["gpt2", "falcon", "gpt_neox", "modernbert"])
def test_a_fused_module_changes_in_the_tuned_columns_only(family, toy_task, word_tokenizer):
    model = build_model(family)
    before = copy.deepcopy(model)
    trial = tiny_trial(family, toy_task, word_tokenizer, model=model)
    learner = EGGROLL(trial, popsize=2, members_a_step=2)
    (factors, *_) = learner._members.factors.values()
    weights = fitness(
        trial_losses := learner._on_train.losses(learner._members, learner._adapter())
    )
    assert len(trial_losses) == 2
    expected = {
        name: 2**0.5 * sum(w * b.T @ a for w, a, b in zip(weights, f.A, f.B, strict=True)) / 2
        for name, f in factors.items()
    }
    learner.step()
    moved = weight(model, 0, "q") - weight(before, 0, "q")
    for name in "qv":
        part = moved[columns(model, name)]
        torch.testing.assert_close(part, expected[name].float(), atol=1e-6, rtol=0)
        moved[columns(model, name)] = 0
    assert not moved.any()


@pytest.mark.parametrize("family", ["llama", "roberta"])
def test_the_loss_falls_and_only_the_tuned_matrices_change(family, toy_task, word_tokenizer):
    model = build_model(family)
    before = copy.deepcopy(model.state_dict())
    trial = tiny_trial(family, toy_task, word_tokenizer, model=model, budget=320, dev_every=32)
    learner = EGGROLL(trial, sigma=1e-2)
    first = trial.score(toy_task.train, learner.logits).loss
    fit(trial, learner)
    assert trial.score(toy_task.train, learner.logits).loss < 0.8 * first
    names = {name for name, x in model.state_dict().items() if not torch.equal(x, before[name])}
    tuned = {id(projection(model, layer, t).weight) for layer in range(LAYERS) for t in "qv"}
    assert {id(p) for name, p in model.named_parameters() if name in names} == tuned
    assert learner.parameters == sum(p.numel() for p in model.parameters() if id(p) in tuned)


def test_state_is_the_tuned_matrices_and_comes_back(toy_task, word_tokenizer):
    trial = tiny_trial("llama", toy_task, word_tokenizer)
    learner = EGGROLL(trial, popsize=4)
    learner.step()
    state, logits = learner.state(), learner.logits(toy_task.dev)
    assert sum(matrix.numel() for matrix in state) == learner.parameters
    learner.step()
    assert not np.array_equal(learner.logits(toy_task.dev), logits)
    learner.restore(state)
    np.testing.assert_array_equal(learner.logits(toy_task.dev), logits)


def test_the_same_seed_gives_the_same_numbers(toy_task, word_tokenizer):
    losses = [
        [learner.step() for _ in range(3)]
        for seed in (0, 0, 1)
        for learner in [EGGROLL(tiny_trial("llama", toy_task, word_tokenizer, seed=seed))]
    ]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)  # blocks' sizes make for rounding
    assert np.abs(np.subtract(losses[2], losses[0])).max() > 1e-4


def test_members_without_a_finite_loss_weigh_nothing():
    losses = np.array([1.0, np.nan, 3.0, np.inf])
    np.testing.assert_allclose(fitness(losses), [1, 0, -1, 0], atol=1e-5)
    assert not fitness(np.full(3, np.nan)).any()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"popsize": 3}, "popsize must be even, as members come in pairs; got 3"),
        ({"sigma": -1}, "sigma must be a number above 0; got -1"),
        ({"rank": 1.5}, "rank must be a whole number of 1 or more; got 1.5"),
    ],
)
def test_wrong_arguments_are_told(wrong, message, toy_task, word_tokenizer):
    with pytest.raises(UserError, match=message):
        EGGROLL(tiny_trial("llama", toy_task, word_tokenizer), **wrong)


def test_a_quantized_model_is_refused(toy_task, word_tokenizer):
    model = quantize_layers(build_model("llama"))
    with pytest.raises(UserError, match="q_proj is quantized"):
        EGGROLL(tiny_trial("llama", toy_task, word_tokenizer, model=model))
