"""The loop that all methods share: limits, looks at dev, what is chosen."""

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from tiny import build_model

from integrations.architectures import describe
from integrations.evaluators import make_encoder
from integrations.methods.lora import LayerwiseLora
from integrations.methods.trial import Trial, fit
from integrations.tuning import tune


class Scripted:
    """A learner whose logits favour the right label by so much, step after step."""

    parameters = 1

    def __init__(self, strengths, cost=1.0):
        self.strengths, self.cost = strengths, cost
        self.place, self.evaluations = 0, 0.0

    def step(self):
        self.place += 1
        self.evaluations += self.cost
        return -self.strengths[self.place] if self.place < len(self.strengths) - 1 else None

    def logits(self, examples):
        strength = self.strengths[self.place]
        return np.array([[0, strength] if e.label else [strength, 0] for e in examples], np.float32)

    def state(self):
        return self.place

    def restore(self, state):
        self.place = state


@pytest.fixture
def make_trial(toy_task, word_tokenizer):
    def make(family="llama", budget=None, seconds=None, dev_every=1.0, **settings):
        arch = describe(build_model(family))
        tokenizer = word_tokenizer("masked" if family == "roberta" else "causal")
        encoder = make_encoder(toy_task, arch, tokenizer, None)
        return Trial(arch, encoder, 0, budget, seconds, dev_every, **settings)

    return make


def test_what_did_best_on_dev_is_in_place_at_the_end(make_trial):
    learner, trial = Scripted([-1, 1, 3, 2, -2]), make_trial(budget=100)
    fit(trial, learner)
    assert learner.place == 2
    assert [look.best for look in trial.scores] == [True, True, True, False, False]
    assert [look.score for look in trial.scores] == [0, 1, 1, 1, 0]


def test_a_look_that_is_nan_is_not_chosen_and_hides_no_later_one(make_trial):
    learner, trial = Scripted([-1, np.nan, 1, -2]), make_trial(budget=100)
    fit(trial, learner)
    assert learner.place == 2
    assert [look.score for look in trial.scores] == [0, 1, 1, 0]  # NaN counts as an answer
    assert [look.best for look in trial.scores] == [True, False, True, False]


def test_budget_and_interval_are_kept(make_trial):
    learner, trial = (
        Scripted([0.1 * i for i in range(50)], cost=2.0),
        make_trial(budget=15, dev_every=5),
    )
    fit(trial, learner)
    assert learner.evaluations == 16  # the step that spent it was whole
    assert [look.evaluations for look in trial.scores] == [0, 6, 12, 16]


def test_time_ends_it(make_trial):
    learner, trial = Scripted(list(range(1000))), make_trial(seconds=0.0)
    fit(trial, learner)
    assert learner.evaluations == 0
    assert len(trial.scores) == 1


def test_marks_keep_what_was_chosen_by_then(make_trial):
    learner, trial = Scripted([0, 1, 2, 3, 4, 5]), make_trial(budget=4, marks=(0.25, 0.5))
    assert fit(trial, learner) == [0, 1, 4]
    early = make_trial(budget=100, marks=(0.01, 0.9))
    assert fit(early, Scripted([0, 1, 2])) == [0, 2, 2]  # it ended before the second


def test_scores_are_those_of_scikit_learn(make_trial, toy_task):
    trial = make_trial()
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(len(toy_task.test), 2)).astype(np.float32)
    score = trial.score(toy_task.test, lambda _: logits)
    labels = [example.label for example in toy_task.test]
    assert score.loss == pytest.approx(log_loss(labels, torch.softmax(torch.tensor(logits), 1)))
    assert score.score == np.mean(logits.argmax(1) == labels)


@pytest.mark.parametrize("optimizer", ["lotfwa", "cma-es"])
@pytest.mark.parametrize("family", ["llama", "roberta"])
def test_lora_takes_the_course_of_tune(make_trial, family, optimizer):
    """The same arguments, the same scores and deltas."""
    trial = make_trial(family, budget=40, dev_every=10)
    learner = LayerwiseLora(trial, optimizer=optimizer, dim=40)
    fit(trial, learner)
    result = tune(
        build_model(family),
        trial.encoder.task,
        tokenizer=trial.encoder.tokenizer,
        optimizer=optimizer,
        dim=40,
        budget=40,
        dev_every=10,
    )
    assert [look.evaluations for look in trial.scores] == [
        look.evaluations for look in result.history.scores
    ]
    assert [look.score for look in trial.scores] == [look.score for look in result.history.scores]
    examples = trial.encoder.task.test
    assert trial.score(examples, learner.logits).loss == pytest.approx(
        result.test(examples).loss, abs=1e-5
    )
