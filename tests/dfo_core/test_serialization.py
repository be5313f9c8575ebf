import json
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dfo_core import CMAES, load_state, save_state
from dfo_core.serialization import state_digest

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


NAMES = ["any.name", "state.json", "state.safetensors"]


def same(a, b):
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or a != a)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("state")


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(state=states)
def test_round_trip_is_exact(state, name, folder):
    save_state(folder / name, state)
    assert same(state, load_state(folder / name))


@pytest.mark.parametrize("name", NAMES)
def test_a_real_state_through_a_file_is_equal(tmp_path, name):
    opt = CMAES(np.zeros(30), popsize=6, seed=0)
    for _ in range(5):
        batch = opt.ask()
        opt.tell(batch, (batch.x**2).sum(axis=1))
    opt.ask()
    save_state(tmp_path / name, opt.state_dict())
    assert same(opt.state_dict(), load_state(tmp_path / name))


@pytest.mark.parametrize("name", NAMES)
def test_every_altered_or_missing_byte_is_noticed(tmp_path, name):
    path = tmp_path / name
    state = {"x": np.arange(3.0), "told": np.array([True, False]), "nfev": 12, "kind": "CMAES"}
    save_state(path, state)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(200):
        altered = bytearray(content)
        altered[rng.integers(len(content))] ^= 1 << rng.integers(8)
        path.write_bytes(altered)
        with suppress(ValueError):  # else it was a byte that means nothing, such as a zip's dates
            assert same(load_state(path), state)
    for length in range(0, len(content) - 1, 7):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="is not a state file of dfo_core, or is damaged"):
            load_state(path)


def test_an_edited_state_is_refused(tmp_path):
    path = tmp_path / "s.json"
    save_state(path, {"nfev": 12, "x": np.arange(3.0)})
    path.write_text(path.read_text().replace('"nfev": 12', '"nfev": 13'))
    with pytest.raises(ValueError, match=r"s.json' .*its SHA-256 is another: it was altered"):
        load_state(path)
    with np.load(_saved(tmp_path / "s.npz"), allow_pickle=False) as file:
        members = dict(file)
    members["array0"] = members["array0"] + 1
    np.savez(tmp_path / "s.npz", **members)
    with pytest.raises(ValueError, match="its SHA-256 is another"):
        load_state(tmp_path / "s.npz")


def _saved(path):
    save_state(path, {"x": np.arange(3.0)})
    return path


def test_safetensors_is_imported_only_for_its_files(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.delitem(sys.modules, "safetensors.numpy", raising=False)
    save_state(tmp_path / "s.npz", {"a": 1})
    for call in (lambda path: save_state(path, {"a": 1}), load_state):
        (tmp_path / "s.safetensors").touch()
        with pytest.raises(ImportError, match="pip install safetensors"):
            call(tmp_path / "s.safetensors")


def test_threads_that_save_to_one_file_leave_a_whole_one(tmp_path):
    path = tmp_path / "s.npz"
    with ThreadPoolExecutor(4) as pool:
        states = [{"i": i, "x": np.full(1000, i)} for i in range(40)]
        list(pool.map(partial(save_state, path), states))
    state = load_state(path)
    assert (state["x"] == state["i"]).all()
    assert [p.name for p in tmp_path.iterdir()] == ["s.npz"]


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


def test_a_digest_tells_states_apart_and_survives_a_file(tmp_path):
    opt = CMAES(np.zeros(4), 1.0, seed=0)
    before = state_digest(opt.state_dict())
    save_state(tmp_path / "state.safetensors", opt.state_dict())
    assert state_digest(load_state(tmp_path / "state.safetensors")) == before
    opt.ask()
    assert state_digest(opt.state_dict()) != before
    assert state_digest({"x": np.zeros(2)}) != state_digest({"x": np.zeros(2, np.float32)})


@pytest.mark.parametrize("suffix", ["npz", "json", "safetensors"])
def test_numbers_of_another_byte_order(tmp_path, suffix):
    path = tmp_path / f"state.{suffix}"
    save_state(path, {"x": np.arange(3.0).astype(">f8")})
    assert load_state(path)["x"].tolist() == [0.0, 1.0, 2.0]
