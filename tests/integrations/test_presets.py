"""The paper's setting, and what a caller asks for beside it."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from tiny import build_model

from dfo_core import CMAES
from integrations import UserError, tune
from integrations.presets import PRESETS


def run(toy_task, word_tokenizer, **arguments):
    return tune(
        build_model("llama"), toy_task, tokenizer=word_tokenizer("causal"), dim=40, **arguments
    )


def test_the_paper_s_setting(toy_task, word_tokenizer):
    result = run(toy_task, word_tokenizer, preset="paper", optimizer="cma-es", budget=100)
    expected = {**PRESETS["paper"], "layers": [0, 1, 2, 3], "targets": ["q", "k"], "popsize": 20}
    assert {name: result.settings[name] for name in expected} == expected
    assert [visit.layer for visit in result.history.visits[:4]] == [0, 1, 2, 3]


def test_arguments_other_than_defaults_come_before_it(toy_task, word_tokenizer):
    result = run(toy_task, word_tokenizer, preset="paper", budget=20, layers=[3], dev_every=7)
    assert result.settings["layers"] == [3]
    assert result.settings["dev_every"] == 7
    assert result.settings["init"] == "paper"
    assert result.settings["popsize"] is None  # LoTFWA's own, the paper's five


def test_an_optimizer_of_ones_own_keeps_its_population(toy_task, word_tokenizer):
    result = run(
        toy_task,
        word_tokenizer,
        preset="paper",
        optimizer=lambda dim, seed: CMAES(np.zeros(dim), 0.3, popsize=7, seed=seed),
        budget=14,
    )
    assert result.settings["init"] == "paper"
    assert [visit.evaluations for visit in result.history.visits] == [7, 14]


def test_an_unknown_preset_is_refused(toy_task, word_tokenizer):
    with pytest.raises(UserError, match="paper"):
        run(toy_task, word_tokenizer, preset="papr")


@pytest.mark.parametrize("optimizer", ["lotfwa", "cma-es", "random"])
def test_best_ever_is_in_place_whatever_it_costs(toy_task, word_tokenizer, optimizer):
    """The loss that is noted is that of what is in place, and may rise."""
    last = []

    def watch(progress):
        last.append(progress.visit)

    result = run(
        toy_task, word_tokenizer, optimizer=optimizer, incumbent=False, init_std=3.0,
        budget=200, dev_every=10**6, callback=watch,
    )  # fmt: skip
    losses = [visit.loss for visit in last]
    assert any(after > before for before, after in pairwise(losses))
    assert all(torch.isfinite(torch.tensor(losses)))
    # The last look is at what was in place after the last visit.
    assert result.history.scores[-1].train_loss == losses[-1]


def test_a_visit_that_changes_nothing_costs_its_generation_only(toy_task, word_tokenizer):
    """The loss of what is in place is known from the visit before."""
    visits = []
    run(
        toy_task, word_tokenizer, optimizer="random", popsize=4, incumbent=False, init_std=3.0,
        budget=200, dev_every=10**6, layers=[3], callback=lambda p: visits.append(p.visit),
    )  # fmt: skip
    assert not all(visit.improved for visit in visits)
    assert [visit.evaluations for visit in visits] == [*range(4, 201, 4)]
    losses = [visit.loss for visit in visits]
    assert losses == [min(visit.best for visit in visits[: i + 1]) for i in range(len(visits))]
