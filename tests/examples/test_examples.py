import importlib
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))


def test_rosenbrock(tmp_path):
    pytest.importorskip("matplotlib")
    best = importlib.import_module("rosenbrock").main(budget=500, plot=tmp_path / "plot.png")
    assert set(best) == {"cma-es", "sep-cma-es", "random"}
    assert (tmp_path / "plot.png").stat().st_size > 0


def test_engineering_design_reaches_the_published_optimum():
    module = importlib.import_module("engineering_design")
    assert module.main() == pytest.approx(module.PUBLISHED, abs=2e-6)


def test_control_policy_balances():
    pytest.importorskip("gymnasium")
    before, after = importlib.import_module("control_policy").main(
        budget=48, episodes=3, test_episodes=5
    )
    assert after > 10 * before


@pytest.mark.slow
def test_sklearn_hyperparameters():
    pytest.importorskip("sklearn")
    default, tuned = importlib.import_module("sklearn_hyperparameters").main(budget=24)
    assert tuned <= default


@pytest.mark.slow
def test_metric_without_gradient_rises():
    before, after = importlib.import_module("metric_without_gradient").main(budget=20)
    assert after > before
