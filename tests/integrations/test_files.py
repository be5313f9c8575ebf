"""Files of JSON lines hold whole lines, wherever the process that wrote them was killed."""

import json

import pytest

from integrations.files import append_line, read_lines

ROWS = [{"name": "Zoë", "loss": 0.1 + 0.2}, [1, None], {"text": "a\nb\r\u2028c"}]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "rows.jsonl"
    for row in ROWS:
        append_line(path, row)
    return path


def test_lines_are_read_as_written(path, tmp_path):
    assert read_lines(path) == ROWS == [json.loads(line) for line in path.open()]
    assert read_lines(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("kept", range(1, 60))
def test_half_a_line_is_passed_over_and_makes_room_for_the_next(path, kept):
    path.write_bytes(path.read_bytes()[:kept])
    whole = read_lines(path)
    assert whole == ROWS[: len(whole)]
    append_line(path, "next")
    assert read_lines(path) == [*whole, "next"] == [json.loads(line) for line in path.open()]
