import numpy as np
import pytest

pytest.importorskip("transformers")
from rounding import POINTS, roughness


def test_a_smooth_line_is_not_rough():
    t = np.linspace(0, 1, POINTS)
    assert roughness((0.7 - 0.1 * t + np.sin(t)).tolist()) < 1e-6


def test_noise_is_told_from_the_curve_below_it():
    rng = np.random.default_rng(0)
    t = np.linspace(0, 1, POINTS)
    found = [roughness((t**2 + 0.01 * rng.normal(size=POINTS)).tolist()) for _ in range(200)]
    assert np.sqrt(np.mean(np.square(found))) == pytest.approx(0.01, rel=0.05)
