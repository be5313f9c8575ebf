"""The order in which layers are visited."""

import json

import numpy as np
import pytest

from integrations import UserError
from integrations.schedule import Sweep, choose_layers, make_schedule


def order(schedule, visits):
    return [schedule.layer(visit) for visit in range(visits)]


def test_generation_major_gives_each_layer_one_generation_in_turn():
    schedule = make_schedule("generation-major", [2, 0, 1])
    assert order(schedule, 7) == [2, 0, 1, 2, 0, 1, 2]


def test_block_gives_each_layer_three_generations_in_a_row():
    schedule = make_schedule("block", [5, 3])
    assert order(schedule, 8) == [5, 5, 5, 3, 3, 3, 5, 5]


def test_a_sweep_with_another_number_of_generations():
    assert order(Sweep([0, 1], generations=2), 6) == [0, 0, 1, 1, 0, 0]


def test_an_unknown_schedule_gets_a_suggestion():
    with pytest.raises(UserError, match="unknown schedule 'blocks'; did you mean 'block'"):
        make_schedule("blocks", [0])


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
