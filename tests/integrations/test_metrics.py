"""Losses and metrics, against values worked out by hand and scikit-learn."""

import math
import warnings

import numpy as np
import pytest
import sklearn.metrics
import torch

from integrations import UserError
from integrations.metrics import LOSS_NAMES, METRICS, make_loss

# Two examples of three classes: a right answer by 1 and a wrong one by 3.
LOGITS = torch.tensor([[2.0, 1.0, -1.0], [0.0, 3.0, 1.0]])
LABELS = torch.tensor([0, 0])
# Four of eight are of class 1. Right: two of class 0, three of class 1.
TRUTH = np.array([0, 0, 0, 0, 1, 1, 1, 1])
ANSWERS = np.array([0, 0, 1, 1, 1, 1, 1, 0])


def loss(name, logits, labels, metric="accuracy"):
    return make_loss(name, metric)(logits, labels)


def logits_of(predictions, classes=2):
    """Label logits (..., N, C) whose best word is the prediction."""
    return 3.0 * torch.nn.functional.one_hot(torch.as_tensor(predictions), classes) - 1


# -- losses ----------------------------------------------------------------------------------------

EXPECTED = {
    "ce": [
        math.log(math.exp(2) + math.exp(1) + math.exp(-1)) - 2,
        math.log(1 + math.exp(3) + math.exp(1)),
    ],
    "hinge": [2.0 + 1 - 2, 2.0 + 3 - 0],
    "error": [0.0, 1.0],
    "metric": [-1.0, 0.0],  # accuracy
}


def test_every_loss_is_tested():
    assert set(EXPECTED) == set(LOSS_NAMES)


@pytest.mark.parametrize("name", EXPECTED)
def test_losses_are_means_over_examples(name):
    one, other = EXPECTED[name]
    assert float(loss(name, LOGITS, LABELS)) == pytest.approx((one + other) / 2)
    assert float(loss(name, LOGITS[:1], LABELS[:1])) == pytest.approx(one)
    candidates = torch.stack([LOGITS[[0, 0]], LOGITS[[1, 1]], LOGITS])
    assert loss(name, candidates, LABELS).tolist() == pytest.approx([one, other, (one + other) / 2])


def test_hinge_is_zero_from_the_margin_on():
    logits = torch.tensor([[[5.0, 3.0]], [[5.0, 2.0]], [[5.0, 3.5]]])
    assert loss("hinge", logits, torch.zeros(1, dtype=torch.long)).tolist() == [0.0, 0.0, 0.5]


@pytest.mark.parametrize("name", ["ce", "hinge"])
def test_large_logits_do_not_overflow(name):
    assert torch.isfinite(loss(name, torch.tensor([[1e4, -1e4]]), torch.tensor([1])))


@pytest.mark.parametrize("name", LOSS_NAMES)
def test_a_candidate_whose_logits_are_nan_has_no_loss(name):
    candidates = torch.stack([LOGITS, LOGITS])
    candidates[0, 1, 2] = torch.nan
    assert loss(name, candidates, LABELS).isnan().tolist() == [True, False]


def test_the_metric_as_a_loss_is_not_a_mean_over_examples():
    """F1 of two halves is not the mean of their F1."""
    candidates = torch.stack([logits_of(ANSWERS), logits_of(TRUTH), logits_of(1 - TRUTH)])
    found = loss("metric", candidates, torch.from_numpy(TRUTH), metric="f1")
    assert found.tolist() == pytest.approx([-2 * 3 / (2 * 3 + 2 + 1), -1, 0])
    halves = [
        float(loss("metric", logits_of(ANSWERS[half]), torch.from_numpy(TRUTH[half]), "f1"))
        for half in (slice(0, 4), slice(4, 8))
    ]
    assert float(found[0]) != pytest.approx(np.mean(halves), abs=0.1)


def test_losses_are_float64_whatever_the_logits():
    for name in LOSS_NAMES:
        assert loss(name, LOGITS, LABELS).dtype == torch.float64


def test_an_unknown_loss():
    with pytest.raises(UserError, match="unknown loss 'metrics'; did you mean 'metric'"):
        make_loss("metrics", "accuracy")


# -- metrics ---------------------------------------------------------------------------------------

# By hand, from 3 true and 2 false positives, 2 true and 1 false negatives.
BY_HAND = {
    "accuracy": 5 / 8,
    "f1": 2 * 3 / (2 * 3 + 2 + 1),
    "macro_f1": (2 * 3 / (2 * 3 + 2 + 1) + 2 * 2 / (2 * 2 + 1 + 2)) / 2,
    "matthews": (3 * 2 - 2 * 1) / math.sqrt(5 * 4 * 4 * 3),
}


def test_every_metric_is_tested():
    assert set(BY_HAND) == set(METRICS)


@pytest.mark.parametrize("name", BY_HAND)
def test_metrics_by_hand(name):
    assert METRICS[name](TRUTH, ANSWERS) == pytest.approx(BY_HAND[name])


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("seed", range(3))
def test_metrics_of_scikit_learn(classes, seed):
    rng = np.random.default_rng(seed)
    truth, answers = rng.integers(classes, size=(2, 50))
    assert METRICS["accuracy"](truth, answers) == np.mean(truth == answers)
    report = sklearn.metrics.classification_report(truth, answers, output_dict=True)
    assert METRICS["macro_f1"](truth, answers) == pytest.approx(report["macro avg"]["f1-score"])
    if classes == 2:
        assert METRICS["f1"](truth, answers) == pytest.approx(report["1"]["f1-score"])
        pearson = np.corrcoef(truth, answers)[0, 1]  # which Matthews' is, for two classes
        assert METRICS["matthews"](truth, answers) == pytest.approx(pearson)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("answer", [0, 1])
def test_answers_of_one_class_only_have_a_score_and_no_warning(name, answer):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score = METRICS[name](TRUTH, np.full(8, answer))
    expected = {"accuracy": 0.5, "f1": answer * 2 / 3, "macro_f1": 1 / 3, "matthews": 0.0}
    assert score == pytest.approx(expected[name])
