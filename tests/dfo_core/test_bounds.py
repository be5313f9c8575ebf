import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import Bounds

from dfo_core import BoundTransform, Box
from dfo_core.bounds import infer_dim

BOXES = [(-1, 1), (0, 1e-6), (-1e6, 3), (0, None), (None, 5), (None, None), ([0, -np.inf], [1, 2])]


def test_parse_takes_the_usual_forms():
    for bounds in ((-1, 2), ([-1, -1, -1], 2), (np.full(3, -1), [2] * 3), Bounds([-1] * 3, 2)):
        box = Box.parse(bounds, 3)
        assert np.array_equal(box.lower, [-1, -1, -1])
        assert np.array_equal(box.upper, [2, 2, 2])
    assert Box.parse((None, 1), 2).lower.tolist() == [-np.inf, -np.inf]


def test_errors():
    with pytest.raises(ValueError, match="not a pair per coordinate"):
        Box.parse((0, [1, 1, 1]), 2)
    with pytest.raises(ValueError, match="pair"):
        Box.parse([(0, 1)] * 3, 3)
    with pytest.raises(ValueError, match=r"coordinate 1 has 1.0 and 1.0"):
        Box.parse(([0, 1], 1), 2)
    with pytest.raises(ValueError, match="NaN"):
        Box.parse((np.nan, 1), 2)
    with pytest.raises(ValueError, match="finite lower and upper"):
        Box.parse((0, None), 2).require_finite("LoTFWA")
    with pytest.raises(ValueError, match=r"coordinate 1 is 3.0"):
        Box.parse((0, 1), 2).require_inside("x0", np.array([0.5, 3.0]))
    with pytest.raises(ValueError, match="dimension is unknown"):
        infer_dim(None, None, (0, 1))


def test_infer_dim():
    assert infer_dim(4, None, None) == 4
    assert infer_dim(None, [1, 2], (0, 5)) == 2
    assert infer_dim(None, None, (0, [1, 2, 3])) == 3
    assert infer_dim(None, None, ([0.0], [1, 2, 3])) == 3


@pytest.mark.parametrize("bounds", BOXES)
@given(u=st.lists(st.floats(-1e7, 1e7), min_size=2, max_size=2))
def test_forward_is_always_feasible(bounds, u):
    box = Box.parse(bounds, 2)
    x = BoundTransform(box).forward(np.array(u))
    assert (x >= box.lower).all()
    assert (x <= box.upper).all()


@pytest.mark.parametrize("bounds", BOXES)
def test_inverse_undoes_forward_up_to_the_border(bounds):
    box = Box.parse(bounds, 2)
    lower = np.where(np.isfinite(box.lower), box.lower, -10.0)
    upper = np.where(np.isfinite(box.upper), box.upper, 10.0)
    transform = BoundTransform(box)
    for t in np.linspace(0, 1, 201):
        x = np.clip(lower + t * (upper - lower), box.lower, box.upper)
        back = transform.forward(transform.inverse(x))
        assert np.allclose(back, x, rtol=1e-12, atol=1e-12 * (upper - lower).max())


@pytest.mark.parametrize("bounds", BOXES)
@given(u=st.floats(-50, 50), v=st.floats(-3, 3))
def test_the_image_nearest_to_a_point_is_taken(bounds, u, v):
    """Of all that repeated mirroring at both borders gives."""
    box = Box.parse(bounds, 2)
    transform = BoundTransform(box)
    unit = np.where(np.isfinite(box.width), box.width, 1.0)
    start = np.where(np.isfinite(box.lower), box.lower, 0.0)
    near, x = start + u * unit, transform.forward(start + v * unit)
    found = transform.inverse(x, near=near)
    np.testing.assert_allclose(transform.forward(found), x, rtol=1e-9, atol=1e-9 * unit.max())
    plain = transform.inverse(x)
    for i in range(2):
        mirrors = [box.lower[i] - transform.margin[i], box.upper[i] + transform.margin[i]]
        mirrors = [mirror for mirror in mirrors if np.isfinite(mirror)]
        images, last = [plain[i]], [plain[i]] * 2
        for step in range(60 * len(mirrors)):
            # Two chains of reflections, which begin at one border and at the other.
            last = [2 * mirrors[(step + k) % len(mirrors)] - w for k, w in enumerate(last)]
            images += last
        best = min(abs(image - near[i]) for image in images)
        assert abs(found[i] - near[i]) == pytest.approx(best, abs=1e-7 * unit[i])


@pytest.mark.parametrize("bounds", BOXES)
def test_identity_inside_and_smooth_everywhere(bounds):
    box = Box.parse(bounds, 2)
    transform = BoundTransform(box)
    low = np.where(np.isfinite(box.lower), box.lower, -10.0)
    high = np.where(np.isfinite(box.upper), box.upper, 10.0)
    width = high - low
    inside = low + np.linspace(0.051, 0.949, 50)[:, None] * width
    inside = inside[((inside - low > transform.margin) & (high - inside > transform.margin)).all(1)]
    assert len(inside) > 40
    assert np.array_equal(transform.forward(inside), inside)
    # Continuously differentiable: slopes of neighbouring secants differ little, and are at most 1.
    u = low + np.linspace(-1.5, 2.5, 40_001)[:, None] * width
    slope = np.diff(transform.forward(u), axis=0) / np.diff(u, axis=0)
    assert (abs(slope) <= 1 + 1e-6).all()
    step = np.diff(u, axis=0)[0]
    # The second derivative is 1 / (2 margin) at most.
    limit = np.where(transform.margin > 0, step / np.maximum(transform.margin, 1e-300), 0) + 1e-6
    assert (abs(np.diff(slope, axis=0)) <= limit).all()
