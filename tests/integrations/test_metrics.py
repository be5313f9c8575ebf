"""Losses and metrics, against values worked out by hand."""

import math

import numpy as np
import pytest
import torch

from integrations.metrics import LOSSES, accuracy

# Two examples of three classes: a right answer by 1 and a wrong one by 3.
LOGITS = torch.tensor([[2.0, 1.0, -1.0], [0.0, 3.0, 1.0]])
LABELS = torch.tensor([0, 0])

EXPECTED = {
    "ce": [
        math.log(math.exp(2) + math.exp(1) + math.exp(-1)) - 2,
        math.log(1 + math.exp(3) + math.exp(1)),
    ],
    "hinge": [2.0 + 1 - 2, 2.0 + 3 - 0],
    "error": [0.0, 1.0],
}


def test_every_loss_is_tested():
    assert set(EXPECTED) == set(LOSSES)


@pytest.mark.parametrize("name", EXPECTED)
def test_losses_of_one_model_and_of_candidates(name):
    expected = torch.tensor(EXPECTED[name])
    assert torch.allclose(LOSSES[name](LOGITS, LABELS), expected)
    candidates = torch.stack([LOGITS, LOGITS.flip(0)])
    losses = LOSSES[name](candidates, LABELS)
    assert torch.allclose(losses, torch.stack([expected, expected.flip(0)]))


def test_hinge_is_zero_from_the_margin_on():
    logits = torch.tensor([[5.0, 3.0], [5.0, 2.0], [5.0, 3.5]])
    assert LOSSES["hinge"](logits, torch.zeros(3, dtype=torch.long)).tolist() == [0.0, 0.0, 0.5]


@pytest.mark.parametrize("name", ["ce", "hinge"])
def test_large_logits_do_not_overflow(name):
    losses = LOSSES[name](torch.tensor([[1e4, -1e4]]), torch.tensor([1]))
    assert torch.isfinite(losses).all()


def test_accuracy():
    assert accuracy(np.array([0, 1, 1, 0]), np.array([0, 1, 0, 0])) == 0.75
