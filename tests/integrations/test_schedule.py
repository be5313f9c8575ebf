"""The order in which layers are visited."""

import json
import math
from collections import Counter

import numpy as np
import pytest

from integrations import UserError
from integrations.schedule import CostAware, Sweep, choose_layers, make_schedule
from integrations.visit import Visit

START = 10.0


def course(schedule, visits, gain=lambda layer: 0.0, candidates=lambda layer: 5, before=()):
    """Visits of a search in which a visit of a layer lowers the loss by so much."""
    found = [*before]
    loss, evaluations = (found[-1].loss, found[-1].evaluations) if found else (START, 0)
    for number in range(len(found), visits):
        layer = schedule.next(found, START)
        lower, evaluations = loss - gain(layer), evaluations + candidates(layer)
        found.append(Visit(number, layer, evaluations, lower, lower, lower < loss, 0))
        loss = lower
    return found


def order(schedule, visits, *settings):
    return [visit.layer for visit in course(schedule, visits, *settings)]


def test_generation_major_gives_each_layer_one_generation_in_turn():
    schedule = make_schedule("generation-major", [2, 0, 1], 3)
    assert order(schedule, 7) == [2, 0, 1, 2, 0, 1, 2]


def test_block_gives_each_layer_three_generations_in_a_row():
    schedule = make_schedule("block", [5, 3], 6)
    assert order(schedule, 8) == [5, 5, 5, 3, 3, 3, 5, 5]


def test_a_sweep_with_another_number_of_generations():
    assert order(Sweep([0, 1], generations=2), 6) == [0, 0, 1, 1, 0, 0]


def test_joint_visits_all_layers_at_once():
    schedule = make_schedule("joint", [2, 0, 1], 4)
    assert order(schedule, 3) == [None] * 3
    assert list(schedule.stops) == [None]
    assert list(schedule.layers) == [2, 0, 1]


# -- cost-aware ------------------------------------------------------------------------------------

LAYERS = (2, 3, 4, 5)


def cost_aware():
    return make_schedule("cost-aware", LAYERS, 6)


def preferences_of(visits, costs):
    """The update of arXiv 1401.3737 with progress by cost, step by step: p and r at the end."""
    n, p, mean, before, done = len(costs), dict.fromkeys(costs, 1.0), 0.0, START, 0
    for visit in visits:
        progress = (before - visit.loss) / (costs[visit.layer] * (visit.evaluations - done))
        before, done = visit.loss, visit.evaluations
        if visit.number < n:
            mean += progress / n
            continue
        p[visit.layer] = min(max(p[visit.layer] * math.exp(0.2 * (progress / mean - 1)), 0.2), 5)
        mean = (1 - 1 / n) * mean + progress / n
    return p, mean


def test_cost_aware_tries_each_layer_once_in_order():
    assert order(cost_aware(), 4, lambda layer: layer == 3) == [*LAYERS]


def test_without_any_gain_cost_aware_stays_a_plain_sweep():
    assert order(cost_aware(), 20) == 5 * [*LAYERS]


def test_of_equal_gains_the_cheaper_layers_come_more_often():
    counts = Counter(order(cost_aware(), 200, lambda layer: 0.01))
    assert counts[5] > 100
    assert counts[4] >= counts[3] >= counts[2] > 5


def test_where_gain_outweighs_cost_the_dearer_layer_comes_more_often():
    counts = Counter(order(cost_aware(), 200, lambda layer: 0.05 if layer == 2 else 0.001))
    assert max(counts, key=counts.get) == 2


def test_a_visit_of_more_candidates_costs_more():
    schedule = CostAware((0, 1), {0: 1.0, 1: 1.0})
    counts = Counter(order(schedule, 100, lambda layer: 0.01, lambda layer: (4, 12)[layer]))
    assert counts[0] > 1.5 * counts[1]


def test_a_layer_that_pays_no_more_is_left_for_others_and_never_for_ever():
    before = course(cost_aware(), 200, lambda layer: 0.02 * (layer == 5))
    visits = course(cost_aware(), 600, lambda layer: 0.02 * (layer != 5), before=before)
    early, late = (Counter(visit.layer for visit in part) for part in (visits[:200], visits[400:]))
    assert early[5] > 100 > 50 > late[5]
    assert min(*(early[layer] for layer in LAYERS), late[5]) > 2


def test_layers_are_visited_as_often_as_the_paper_prefers_them():
    rng = np.random.default_rng(0)
    costs = dict(zip(LAYERS, (4.0, 3.0, 2.0, 1.0), strict=True))
    schedule = CostAware(LAYERS, costs)
    before = course(schedule, 150, lambda layer: float(rng.exponential(0.01 * (7 - layer))))
    p, mean = preferences_of(before, costs)
    assert len({round(value, 6) for value in p.values()}) == len(LAYERS)
    # From here on each visit brings just the usual progress, which changes no preference.
    visits = course(schedule, 650, lambda layer: mean * 5 * costs[layer], before=before)
    counts = Counter(visit.layer for visit in visits[150:])
    for layer in LAYERS:
        assert counts[layer] == pytest.approx(500 * p[layer] / sum(p.values()), abs=5)


def test_what_comes_next_follows_from_the_visits_alone():
    """As a run that goes on has a new schedule."""
    rng = np.random.default_rng(0)
    visits = course(cost_aware(), 100, lambda layer: float(rng.random() < 0.3) / 50)
    for number in (0, 3, 4, 50, 99):
        assert cost_aware().next(visits[:number], START) == visits[number].layer


def test_losses_below_zero_and_gains_of_any_size():
    """Losses that are minus a score; a first gain long after a sweep without any."""
    gains = iter([0.0] * 8 + [1e-9] + [0.0] * 6 + [1e6] * 8 + [0.0] * 200)
    found = order(cost_aware(), 200, lambda layer: next(gains))
    assert set(found) == set(found[100:]) == set(LAYERS)


# -- choices ---------------------------------------------------------------------------------------


def test_an_unknown_schedule_gets_a_suggestion():
    with pytest.raises(UserError, match="unknown schedule 'blocks'; did you mean 'block'"):
        make_schedule("blocks", [0], 1)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [("all", (0, 1, 2, 3)), ([3, 0], (3, 0)), ([-1, -4], (3, 0)), (range(2, 4), (2, 3))],
)
def test_layers_are_indices_in_the_order_of_a_sweep(layers, expected):
    assert choose_layers(layers, 4) == expected


@pytest.mark.parametrize(("count", "expected"), [(4, (2, 3)), (5, (2, 3, 4)), (1, (0,))])
def test_unless_told_the_upper_half_is_tuned(count, expected):
    assert choose_layers(None, count) == expected


def test_layers_may_be_numpy_integers_and_still_go_into_a_file():
    assert json.dumps(choose_layers(np.arange(2), 4)) == "[0, 1]"


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([0, 4], "layers has 4, but the model has layers 0 to 3"),
        ([-5], "layers has -5"),
        ("upper", "layers must be indices or 'all'; got 'upper'"),
        ([], "one or more layers once each; got"),
        ([1, 1], r"once each; got \[1, 1\]"),
        ([3, -1], r"once each; got \[3, -1\]"),
    ],
)
def test_layers_the_model_does_not_have_or_named_twice(layers, message):
    with pytest.raises(UserError, match=message):
        choose_layers(layers, 4)
