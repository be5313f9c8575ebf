import json
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dfo_core import CMAES, load_state, save_state

arrays = hnp.arrays(
    st.sampled_from([np.float64, np.float32, np.int64, np.uint8, np.bool_]),
    hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=4),
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
states = st.dictionaries(
    st.text(max_size=5),
    st.recursive(
        scalars | arrays,
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
        ),
        max_leaves=8,
    ),
    max_size=4,
)


def same(a, b):
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or a != a)


@settings(max_examples=40, deadline=None)
@given(state=states)
def test_round_trip_is_exact(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("state") / "any.name"
    save_state(path, state)
    assert same(state, load_state(path))


def test_a_real_state_through_a_file_is_equal(tmp_path):
    opt = CMAES(np.zeros(30), popsize=6, seed=0)
    for _ in range(5):
        batch = opt.ask()
        opt.tell(batch, (batch.x**2).sum(axis=1))
    opt.ask()
    save_state(tmp_path / "s.npz", opt.state_dict())
    assert same(opt.state_dict(), load_state(tmp_path / "s.npz"))


def test_the_file_is_arrays_and_json_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "s.npz"
    save_state(path, {"a": np.arange(3.0), "b": [1, {"c": 2**100}]})
    assert [p.name for p in tmp_path.iterdir()] == ["s.npz"]
    assert zipfile.ZipFile(path).testzip() is None
    with np.load(path, allow_pickle=False) as file:
        assert json.loads(file["state.json"].tobytes())["b"] == [1, {"c": 2**100}]


@pytest.mark.parametrize(
    "value",
    [object(), {1: 2}, {"__array__": "a"}, np.array([object()]), np.array(["text"]), {1, 2}, 1j],
)
def test_what_would_need_pickle_is_refused_and_the_old_file_stays(tmp_path, value):
    path = tmp_path / "s.npz"
    save_state(path, {"old": 1})
    with pytest.raises(ValueError, match="state/new"):
        save_state(path, {"new": value})
    assert load_state(path) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["s.npz"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "s.npz"
    save_state(path, {"old": 1})

    def full(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="no space"):
        save_state(path, {"new": 2})
    assert load_state(path) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["s.npz"]


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "other"
    path.write_text("hello")
    with pytest.raises(ValueError, match="not a state file"):
        load_state(path)
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(ValueError, match="not a state file"):
        load_state(tmp_path / "other.npz")
    np.save(tmp_path / "other.npy", np.zeros(3))
    with pytest.raises(ValueError, match="not a state file"):
        load_state(tmp_path / "other.npy")
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="not a state file"):
        load_state(path)
    with pytest.raises(FileNotFoundError):
        load_state(tmp_path / "none.npz")
