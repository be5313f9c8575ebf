"""The search: what is in place never gets worse, and is what it is said to be."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from tiny import LABEL_IDS, PAD, build_model, random_prompts

from integrations import PopulationEvaluator, Speedups
from integrations.architectures import describe
from integrations.metrics import cross_entropy
from integrations.optimizers import make_optimizers
from integrations.schedule import make_schedule
from integrations.search import LayerwiseSearch
from integrations.spaces import make_spaces

DIM, BUDGET = 16, 40


class CoordinateSteps:
    """A user's own: points as lists, losses one by one."""

    def __init__(self, dim=DIM, seed=0):
        self.rng, self.x, self.best, self.step = np.random.default_rng(seed), np.zeros(dim), None, 1

    def ask(self):
        return (self.x + self.step * self.rng.standard_normal(len(self.x))).tolist()

    def tell(self, x, loss):
        if self.best is None or loss < self.best:
            self.x, self.best = np.array(x), loss


OPTIMIZERS = {
    "lotfwa": "lotfwa",
    "cma-es": "cma-es",
    "sep-cma-es": "sep-cma-es",
    "random": "random",
    "pycma": "pycma",
    "nevergrad": "nevergrad:OnePlusOne",
    "nevergrad-cma": "nevergrad:CMA",
    "own object": CoordinateSteps(),
    "own factory": lambda dim, seed: CoordinateSteps(dim, seed),
}


class Watched(PopulationEvaluator):
    """Counts candidates; ``spoil`` may replace their losses."""

    def __init__(self, arch, spoil=lambda losses: losses):
        super().__init__(
            arch,
            random_prompts(arch.kind),
            LABEL_IDS,
            pad_id=PAD,
            loss=cross_entropy,
            speedups=Speedups(blocks=4),
        )
        self.candidates, self.invalid, self.spoil = [], 0, spoil

    def losses(self, candidates, adapter):
        losses = self.spoil(super().losses(candidates, adapter))
        self.candidates.append((candidates.layers, len(losses)))
        self.invalid += np.count_nonzero(~np.isfinite(losses))
        return losses


def search_of(optimizer, evaluator, layers=(1, 0), budget=BUDGET, popsize=None, schedule="block"):
    arch = evaluator.arch
    spaces = make_spaces(arch, evaluator.batches, rank=2, dim=DIM, seed=0, freeze_a=True)
    plan = make_schedule(schedule, layers, len(arch.layers))
    dim = DIM * len(layers) if schedule == "joint" else DIM
    optimizers = make_optimizers(optimizer, plan.stops, dim, 0, budget, popsize)
    return LayerwiseSearch(evaluator, spaces, optimizers, plan, budget)


def visits_of(search):
    found = []
    while search.left > 0:
        found.append(search.visit())
    return found


@pytest.fixture(scope="module")
def arch():
    return describe(build_model("llama", num_hidden_layers=2))


# -- every optimizer -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_loss_in_place_never_rises_and_is_that_of_the_deltas_in_place(arch, name):
    search = search_of(OPTIMIZERS[name], Watched(arch))
    fresh, loss = Watched(arch), search.loss
    while search.left > 0:
        visit = search.visit()
        assert visit.loss == search.loss <= loss
        assert visit.improved == (search.loss < loss)
        assert visit.improved == (visit.best < loss)
        loss = search.loss
        assert fresh.loss_in_place(search.adapter) == pytest.approx(loss, abs=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_budget_counts_every_candidate_and_is_kept(arch, name):
    search = search_of(OPTIMIZERS[name], Watched(arch), budget=47)
    visits = visits_of(search)
    counted = sum(count for _, count in search.evaluator.candidates)
    assert (search.evaluations, counted, search.left) == (47, 47, 0)
    assert [visit.number for visit in visits] == list(range(len(visits)))
    assert [visit.layer for visit in visits] == [(1, 0)[i // 3 % 2] for i in range(len(visits))]
    assert visits[-1].evaluations == 47
    assert all(a.evaluations <= b.evaluations for a, b in pairwise(visits))


@pytest.mark.parametrize(
    ("name", "popsize"), [*((name, None) for name in OPTIMIZERS), ("lotfwa", 15)]
)
def test_invalid_losses_are_counted_and_survived(arch, name, popsize):
    def spoil(losses):
        values = rng.choice([np.nan, np.inf, -np.inf], size=len(losses))
        return np.where(rng.random(len(losses)) < 0.3, values, losses)

    rng = np.random.default_rng(0)
    search = search_of(
        OPTIMIZERS[name],
        Watched(arch, spoil),
        budget=100 if popsize else BUDGET,
        popsize=popsize,
        schedule="generation-major",
    )
    before = search.loss
    visits = visits_of(search)
    assert search.evaluator.invalid > 5
    assert sum(visit.invalid for visit in visits) == search.evaluator.invalid
    assert np.isfinite([visit.loss for visit in visits]).all()
    assert search.loss <= before
    assert Watched(arch).loss_in_place(search.adapter) == pytest.approx(search.loss, abs=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_if_no_candidate_can_be_evaluated_nothing_is_placed(arch, name):
    search = search_of(OPTIMIZERS[name], Watched(arch, lambda losses: losses + np.nan))
    before = search.loss
    visits = visits_of(search)
    assert {visit.best for visit in visits} == {np.inf}
    assert not any(visit.improved for visit in visits)
    assert search.loss == before
    assert search.adapter.factors == [None, None]


@pytest.mark.parametrize("schedule", ["joint", "cost-aware"])
@pytest.mark.parametrize("name", ["lotfwa", "cma-es", "pycma", "nevergrad", "own factory"])
def test_the_incumbent_is_safe_under_every_schedule(arch, name, schedule):
    search = search_of(OPTIMIZERS[name], Watched(arch), schedule=schedule)
    fresh, loss = Watched(arch), search.loss
    visits = []
    while search.left > 0:
        visits.append(search.visit())
        assert search.loss == visits[-1].loss <= loss
        loss = search.loss
        assert fresh.loss_in_place(search.adapter) == pytest.approx(loss, abs=1e-5)
    assert search.evaluations == BUDGET
    assert search.visits == visits
    together = {layers for layers, _ in search.evaluator.candidates}
    assert together == ({(0, 1)} if schedule == "joint" else {(0,), (1,)})


def test_joint_candidates_are_the_layers_parts_of_z_side_by_side(arch):
    search = search_of("random", Watched(arch), schedule="joint")
    while search.loss == search.start_loss:
        search.visit()
    for layer in (0, 1):
        z = search.points[layer]
        expected = search.spaces[layer].factors(z[None], torch.device("cpu"), torch.float32)
        for name, factors in search.adapter.factors[layer].items():
            assert torch.equal(factors.A, expected[name].A)
            assert torch.equal(factors.B, expected[name].B)
    assert not np.array_equal(*search.points.values())


# -- what a layer's optimizer is told --------------------------------------------------------------


@pytest.mark.parametrize("name", ["lotfwa", "cma-es", "random", "pycma"])
@pytest.mark.parametrize("schedule", ["block", "joint", "cost-aware"])
def test_searching_lowers_the_loss(arch, name, schedule):
    search = search_of(name, Watched(arch), budget=200, schedule=schedule)
    before = search.loss
    visits_of(search)
    assert search.loss < 0.9 * before


def test_several_fireworks_defend_losses_that_hold_now(arch):
    """Each firework's loss is that of its place with the other layer as it is now."""
    search = search_of("lotfwa", Watched(arch), budget=400, popsize=15, schedule="generation-major")
    for _ in range(6):
        layer = search.schedule.next(search.visits, search.start_loss)
        search.visit()
        optimizer = search.optimizers[layer]
        places, fitness = optimizer.places, optimizer.fitness
        evaluated = ~np.isnan(fitness)
        places = places[evaluated]
        factors = search.spaces[layer].factors(places, torch.device("cpu"), torch.float32)
        # What the visit itself placed replaced this layer's deltas only.
        losses = Watched(arch).evaluate(layer, factors, search.adapter)
        assert losses == pytest.approx(fitness[evaluated], abs=1e-5)


def test_a_popsize_is_that_of_each_generation(arch):
    search = search_of("random", Watched(arch), popsize=8)
    visits_of(search)
    assert search.evaluator.candidates == [((1,), 8)] * 3 + [((0,), 8)] * 2


def test_layers_that_are_not_tuned_stay_without_deltas():
    arch = describe(build_model("llama"))
    search = search_of("cma-es", Watched(arch), layers=(2, 1))
    visits_of(search)
    assert [bool(factors) for factors in search.adapter.factors] == [False, True, True, False]
    assert {layers for layers, _ in search.evaluator.candidates} == {(1,), (2,)}
