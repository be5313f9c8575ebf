"""Errors that mean "the input was wrong"."""

import pytest

from integrations import UserError
from integrations.errors import unknown


def test_unknown_names_get_the_closest_known_one():
    error = unknown("task", "sst-2", ["sst2", "agnews"])
    assert str(error) == "unknown task 'sst-2'; did you mean 'sst2'? Known: agnews, sst2."


def test_unknown_names_like_nothing_known_get_the_list():
    error = unknown("loss", "xyz", iter(["hinge", "ce"]))
    assert str(error) == "unknown loss 'xyz'. Known: ce, hinge."


def test_user_errors_are_value_errors():
    """So a caller need not know of this package's own class."""
    with pytest.raises(ValueError, match="unknown"):
        raise unknown("task", "a", ["b"])
    assert isinstance(unknown("task", "a", ["b"]), UserError)
