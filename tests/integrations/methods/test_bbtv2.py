"""BBTv2 is one pycma a layer, in turn, on the loss of what forward pre-hooks add."""

import cma
import numpy as np
import pytest
import torch
from prompt_trials import (
    FAMILIES,
    FIRST,
    SETTINGS,
    N,
    few,
    loss_with,
    make_trial,
    matrix_of,
    soft_ids,
)
from tiny import HIDDEN, LAYERS

from integrations.errors import UserError
from integrations.methods.bbtv2 import BBTv2
from integrations.methods.trial import fit
from integrations.population import NAIVE


@pytest.fixture(params=FAMILIES)
def trial(request, word_tokenizer, toy_task):
    return make_trial(request.param, word_tokenizer, few(toy_task))


def layers_of(model):
    family = model.config.model_type
    return model.model.layers if family == "llama" else model.roberta.encoder.layer


def hooked_loss(trial, offsets):
    """Loss with offsets (layers, n, h) added to what enters each layer, behind the first token."""
    handles = []
    for layer, offset in zip(layers_of(trial.arch.model), offsets, strict=True):

        def add(_, args, offset=offset):
            x = args[0]
            padding = x.new_zeros(1, x.shape[1] - N - 1, HIDDEN)
            added = torch.cat([x.new_zeros(1, 1, HIDDEN), offset[None], padding], dim=1)
            return (x + added, *args[1:])

        handles.append(layer.register_forward_pre_hook(add))
    try:
        return loss_with(trial, lambda ids: trial.arch.model(ids).logits)
    finally:
        for handle in handles:
            handle.remove()


def test_steps_are_those_of_one_pycma_a_layer_with_hooks(trial):
    learner = BBTv2(trial, **SETTINGS)
    strategies = []
    for layer in range(LAYERS):
        rng = np.random.default_rng((0, layer))
        options = {"popsize": 4, "verbose": -9, "seed": np.nan}
        options["randn"] = lambda *shape, rng=rng: rng.standard_normal(shape)
        strategies.append(cma.CMAEvolutionStrategy(6 * [0], 0.2, options))
    best = torch.zeros(LAYERS, N, HIDDEN)
    for _ in range(3):
        for layer, es in enumerate(strategies):
            matrix = matrix_of(learner.spaces[layer])
            solutions, losses = es.ask(), []
            for z in solutions:
                offsets = best.clone()
                offsets[layer] = (matrix @ torch.tensor(z)).view(N, HIDDEN).float()
                losses.append(hooked_loss(trial, offsets))
            es.tell(solutions, losses)
            best[layer] = (matrix @ torch.tensor(es.result.xbest)).view(N, HIDDEN).float()
            assert learner.step() == pytest.approx(hooked_loss(trial, best), abs=1e-5)
    assert learner.evaluations == 3 * LAYERS * 4
    assert learner.parameters == LAYERS * 6
    found = torch.stack(learner.adapter.prompts)
    assert found.numpy() == pytest.approx(best.numpy(), abs=1e-5)


@torch.no_grad()
def test_each_matrix_has_the_clipped_spread_of_its_layers_input(trial):
    model = trial.arch.model
    learner = BBTv2(trial, **SETTINGS, sigma=0.5, alpha=0.3)
    table = model.get_input_embeddings().weight.numpy()
    factor = 0.3 / (6**0.5 * 0.5)
    assert learner.spaces[0].projection.std == pytest.approx(factor * table.std(), rel=1e-3)
    outputs = [
        model(torch.tensor([soft_ids(trial, example)[0]]), output_hidden_states=True).hidden_states
        for example in trial.encoder.task.train
    ]
    for layer in range(1, LAYERS):
        hidden = np.concatenate([states[layer].numpy().ravel() for states in outputs])
        for _ in range(5):
            mean, std = hidden.mean(), hidden.std()
            hidden = hidden.clip(mean - 3 * std, mean + 3 * std)
        std = learner.spaces[layer].projection.std
        assert std == pytest.approx(factor * hidden.std(), rel=1e-3)


def test_the_loss_falls_and_the_model_stays(trial):
    before = {name: tensor.clone() for name, tensor in trial.arch.model.state_dict().items()}
    learner = BBTv2(trial, **SETTINGS)
    first = learner.evaluator.loss_in_place(learner.adapter)
    for _ in range(5 * LAYERS):
        last = learner.step()
    assert last < first - 0.05
    after = trial.arch.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_fit_restores_what_did_best_on_the_development_set(trial):
    trial.budget, trial.dev_every = 32, 8
    learner = BBTv2(trial, **SETTINGS)
    fit(trial, learner)
    assert [score.evaluations for score in trial.scores] == [0, 8, 16, 24, 32]
    best = [score for score in trial.scores if score.best][-1]
    score = trial.score(trial.encoder.task.dev, learner.logits)
    assert (score.score, score.loss) == (best.score, pytest.approx(best.loss, abs=1e-6))


def test_state_is_unaffected_by_later_steps(trial):
    learner = BBTv2(trial, **SETTINGS)
    learner.step()
    state, logits = learner.state(), learner.logits(trial.encoder.task.test)
    for _ in range(LAYERS):
        learner.step()
    assert not np.allclose(learner.logits(trial.encoder.task.test), logits)
    learner.restore(state)
    assert learner.logits(trial.encoder.task.test) == pytest.approx(logits, abs=1e-6)


def test_the_same_seed_gives_the_same_steps(word_tokenizer, toy_task):
    def losses(seed, **settings):
        learner = BBTv2(make_trial("llama", word_tokenizer, toy_task, seed), **SETTINGS, **settings)
        return [learner.step() for _ in range(6)]

    assert losses(0) == losses(0)
    assert losses(0) != losses(1)
    assert losses(0, speedups=NAIVE) == pytest.approx(losses(0), abs=1e-5)


def test_what_cannot_work_is_said_at_once(word_tokenizer, toy_task):
    with pytest.raises(UserError, match="n_tokens must be 1 to 32"):
        BBTv2(make_trial("llama", word_tokenizer, toy_task), first_token=FIRST)
    with pytest.raises(UserError, match="encoder-decoder"):
        BBTv2(make_trial("bart", word_tokenizer, toy_task), **SETTINGS)
