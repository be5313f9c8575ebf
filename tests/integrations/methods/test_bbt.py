"""BBT is pycma on the loss of a projected soft prompt."""

import cma
import numpy as np
import pytest
import torch
from prompt_trials import FAMILIES, FIRST, SETTINGS, N, few, loss_with, make_trial, matrix_of
from tiny import HIDDEN

from integrations.errors import UserError
from integrations.methods.bbt import BBT
from integrations.methods.soft_prompts import SoftPromptEncoder
from integrations.methods.trial import fit
from integrations.metrics import hinge
from integrations.population import NAIVE


@pytest.fixture(params=FAMILIES)
def trial(request, word_tokenizer, toy_task):
    return make_trial(request.param, word_tokenizer, few(toy_task))


def embeds_loss(trial, offset):
    """Loss of a soft prompt with an offset (n, h), by a call with inputs_embeds."""
    model = trial.arch.model

    def call(ids):
        embeds = model.get_input_embeddings()(ids).clone()
        embeds[0, 1 : 1 + N] += offset  # behind [BOS] or [CLS]
        return model(inputs_embeds=embeds).logits

    return loss_with(trial, call)


def test_generations_are_those_of_pycma_on_inputs_embeds(trial):
    learner = BBT(trial, **SETTINGS, sigma=0.7)
    rng = np.random.default_rng((0, 0))
    options = {"popsize": 4, "verbose": -9, "seed": np.nan}
    options["randn"] = lambda *shape: rng.standard_normal(shape)
    es = cma.CMAEvolutionStrategy(6 * [0], 0.7, options)
    matrix = matrix_of(learner.space)
    for _ in range(4):
        solutions = es.ask()
        offsets = [(matrix @ torch.tensor(z)).view(N, -1).float() for z in solutions]
        losses = [embeds_loss(trial, offset) for offset in offsets]
        es.tell(solutions, losses)
        assert learner.step() == pytest.approx(min(losses), abs=1e-5)
        assert learner.adapter.prompts[0].numpy() == pytest.approx(
            offsets[np.argmin(losses)].numpy(), abs=1e-5
        )
    assert learner.evaluations == 16


def test_without_a_step_the_prompt_is_that_of_its_words(trial):
    learner = BBT(trial, **SETTINGS)
    expected = embeds_loss(trial, torch.zeros(N, HIDDEN))
    assert learner.evaluator.loss_in_place(learner.adapter) == pytest.approx(expected, abs=1e-5)


def test_the_matrix_has_the_spread_of_the_word_embeddings(trial):
    learner = BBT(trial, n_tokens=20, dim=50, popsize=4, first_token=FIRST, sigma=2.0, alpha=3.0)
    table = trial.arch.model.get_input_embeddings().weight.detach().numpy()
    matrix = matrix_of(learner.space)
    assert matrix.shape == (20 * HIDDEN, 50)
    assert matrix.std().item() == pytest.approx(3 * table.std() / (50**0.5 * 2), rel=0.02)
    assert learner.parameters == 50


def test_the_loss_falls_and_the_model_stays(trial):
    before = {name: tensor.clone() for name, tensor in trial.arch.model.state_dict().items()}
    learner = BBT(trial, **SETTINGS)
    first = learner.evaluator.loss_in_place(learner.adapter)
    for _ in range(15):
        last = learner.step()
    assert last < first - 0.05
    after = trial.arch.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_fit_restores_what_did_best_on_the_development_set(trial):
    trial.budget, trial.dev_every = 24, 4
    learner = BBT(trial, **SETTINGS)
    fit(trial, learner)
    assert [score.evaluations for score in trial.scores] == [0, 4, 8, 12, 16, 20, 24]
    best = [score for score in trial.scores if score.best][-1]
    score = trial.score(trial.encoder.task.dev, learner.logits)
    assert (score.score, score.loss) == (best.score, pytest.approx(best.loss, abs=1e-6))


def test_the_last_generation_is_cut_where_the_budget_ends(trial):
    trial.budget = 10
    learner = BBT(trial, **SETTINGS)
    fit(trial, learner)
    assert learner.evaluations == 10


def test_state_is_unaffected_by_later_steps(trial):
    learner = BBT(trial, **SETTINGS)
    learner.step()
    state, logits = learner.state(), learner.logits(trial.encoder.task.test)
    learner.step()
    assert not np.allclose(learner.logits(trial.encoder.task.test), logits)
    learner.restore(state)
    assert learner.logits(trial.encoder.task.test) == pytest.approx(logits, abs=1e-6)


def test_the_same_seed_gives_the_same_steps(word_tokenizer, toy_task):
    def losses(seed, **settings):
        learner = BBT(make_trial("llama", word_tokenizer, toy_task, seed), **SETTINGS, **settings)
        return [learner.step() for _ in range(3)]

    assert losses(0) == losses(0)
    assert losses(0) != losses(1)
    assert losses(0, speedups=NAIVE) == pytest.approx(losses(0), abs=1e-5)


def test_hinge(trial):
    learner = BBT(trial, **SETTINGS, loss="hinge")
    loss = learner.step()
    logits = torch.from_numpy(learner.logits(trial.encoder.task.train))
    labels = torch.tensor([example.label for example in trial.encoder.task.train])
    assert loss == pytest.approx(hinge(logits, labels).item(), abs=1e-5)


def test_it_ends_when_pycma_does(word_tokenizer, toy_task):
    trial = make_trial("llama", word_tokenizer, toy_task)
    for parameter in trial.arch.model.get_output_embeddings().parameters():
        parameter.data.zero_()  # every candidate has the same loss
    learner = BBT(trial, **SETTINGS)
    steps = [learner.step() for _ in range(200)]
    assert steps[0] == pytest.approx(np.log(2))
    assert steps[-1] is None


def test_embeddings_narrower_than_the_layers(word_tokenizer, toy_task):
    learner = BBT(make_trial("electra", word_tokenizer, toy_task), **SETTINGS)
    assert np.isfinite(learner.step())
    assert learner.adapter.prompts[0].shape == (N, 16)


def test_what_cannot_work_is_said_at_once(word_tokenizer, toy_task):
    trial = make_trial("roberta", word_tokenizer, toy_task)  # which takes 62 tokens
    with pytest.raises(UserError, match=r"n_tokens must be 1 to 31, so that .* got 50"):
        BBT(trial)
    with pytest.raises(UserError, match="lower first_token"):
        BBT(trial, n_tokens=N)
    for name, value in {"sigma": 0.0, "alpha": -1, "dim": 0, "popsize": 1}.items():
        with pytest.raises(UserError, match=name):
            BBT(trial, **SETTINGS | {name: value})
    with pytest.raises(UserError, match="encoder-decoder"):
        BBT(make_trial("t5", word_tokenizer, toy_task), **SETTINGS)


def test_texts_are_cut_to_leave_room(word_tokenizer, toy_task):
    task = few(toy_task)
    long = type(task.train[0])({"text": "the film was dull and " * 30}, 0)
    trial = make_trial("roberta", word_tokenizer, task.with_splits([long], task.dev, task.test))
    learner = BBT(trial, **SETTINGS)
    (prompt,) = learner.encoder.encode([long])
    assert len(prompt.ids) <= 62
    assert prompt.soft == (1, N)
    assert list(prompt.ids[1 : 1 + N]) == list(range(FIRST, FIRST + N))
    assert prompt.ids[prompt.answer] == trial.encoder.tokenizer.mask_token_id


def test_it_stands_first_where_no_token_opens_a_prompt(byte_tokenizer, toy_task):
    trial = make_trial("gpt2", byte_tokenizer, toy_task)
    encoder = SoftPromptEncoder(trial.encoder, trial.arch, N, 200)
    plain = trial.encoder.encode(toy_task.train)
    for prompt, without in zip(encoder.encode(toy_task.train), plain, strict=True):
        assert prompt.soft == (0, N)
        assert prompt.ids[N:] == without.ids
        assert prompt.answer == without.answer + N


def test_behind_the_norm_as_the_authors_code_for_roberta(word_tokenizer, toy_task):
    trial = make_trial("roberta", word_tokenizer, few(toy_task))
    learner = BBT(trial, **SETTINGS, words=False)
    loss, (offset, *_) = learner.step(), learner.adapter.prompts

    def add(_, args, output):
        output[0, 1 : 1 + N] += offset
        return output

    with trial.arch.model.roberta.embeddings.register_forward_hook(add):
        expected = loss_with(trial, lambda ids: trial.arch.model(ids).logits)
    assert loss == pytest.approx(expected, abs=1e-5)
