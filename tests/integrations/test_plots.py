"""The convergence plot."""

import sys
from xml.etree import ElementTree

import pytest

from integrations import UserError
from integrations.history import DevScore, History
from integrations.plots import plot_history
from integrations.visit import Visit


@pytest.fixture
def history():
    """Two visits, the second without a finite loss, and two looks at the development set."""
    visits = [
        Visit(0, 3, 5, best=0.6, loss=0.6, improved=True, invalid=0),
        Visit(1, 2, 10, best=float("inf"), loss=0.6, improved=False, invalid=5),
    ]
    scores = [
        DevScore(0, 0.0, train_loss=0.7, loss=0.8, score=0.5, best=True),
        DevScore(10, 1.0, train_loss=0.6, loss=0.7, score=0.75, best=True),
    ]
    return History(visits, scores)


def test_png(history, tmp_path):
    path = tmp_path / "curve.png"
    plot_history(history, path, title="a run", metric="accuracy", test={"tuned": 0.7})
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert path.stat().st_size > 10_000


def test_svg(history, tmp_path):
    plot_history(history, str(tmp_path / "curve.svg"), title="a run", metric="accuracy")
    root = ElementTree.parse(tmp_path / "curve.svg").getroot()
    assert root.tag.endswith("svg")


def test_before_the_first_visit(history, tmp_path):
    plot_history(History([], history.scores[:1]), tmp_path / "a.png", title="", metric="accuracy")
    assert (tmp_path / "a.png").exists()


def test_an_unknown_suffix_lists_those_that_are_known(history, tmp_path):
    with pytest.raises(UserError, match=r"cannot be saved as '.*curve\.docx': .*png"):
        plot_history(history, tmp_path / "curve.docx", title="a", metric="accuracy")
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_the_message_says_what_to_install(history, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"pip install 'dfo-lora\[demo\]'"):
        plot_history(history, tmp_path / "curve.png", title="a", metric="accuracy")


def test_no_figure_is_left_open(history, tmp_path):
    """A run in a notebook does not show the plot twice."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    before = pyplot.get_fignums()
    plot_history(history, tmp_path / "curve.png", title="a", metric="accuracy")
    assert pyplot.get_fignums() == before


def test_what_a_history_says_of_itself(history):
    assert history.best == history.scores[1]
    assert history.invalid == 5
    assert History.from_dict(history.to_dict()) == history
