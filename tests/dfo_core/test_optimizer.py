"""The base class's promises, on an algorithm that does nothing but draw."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfo_core import CMAES, Batch, LoTFWA, Optimizer


class Recorder(Optimizer):
    """Hands out normal points and keeps what it is told."""

    _state_fields = ("generations",)

    def __init__(self, dim=3, n=6, **kwargs):
        super().__init__(dim, **kwargs)
        self.n = n
        self.generations = []

    def _sample(self):
        return self.rng.standard_normal((self.n, self.dim))

    def _update(self, x, losses):
        self.generations.append(losses.tolist())


@pytest.fixture
def opt():
    return Recorder(seed=0)


def test_batch_indexing_gives_batches():
    batch = Batch(np.arange(8.0).reshape(4, 2), np.arange(10, 14))
    assert len(batch) == 4
    for index in (slice(1, 3), np.array([1, 2]), np.array([False, True, True, False]), [1, 2]):
        part = batch[index]
        assert isinstance(part, Batch)
        assert part.ids.tolist() == [11, 12]
        assert np.array_equal(part.x, [[2, 3], [4, 5]])
    assert batch[-1].x.shape == (1, 2)
    assert batch[-1].ids.tolist() == [13]


def test_a_generation_is_complete_only_with_its_last_loss(opt):
    batch = opt.ask()
    opt.tell(batch.ids[[5, 0]], [5.0, 0.0])
    opt.tell(batch[1:4], [1.0, 2.0, 3.0])
    assert (opt.generations, opt.nit, opt.nfev) == ([], 0, 5)
    opt.tell(batch.ids[4], 4.0)
    assert (opt.generations, opt.nit, opt.nfev) == ([[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]], 1, 6)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.permutations(range(6)), min_size=1, max_size=4), st.integers(1, 5))
def test_any_order_and_any_cut_of_tells_is_the_same(orders, cut):
    opt = Recorder(seed=0)
    for order in orders:
        batch = opt.ask()
        losses = batch.x.sum(axis=1)
        for part in (order[:cut], order[cut:]):
            opt.tell(batch.ids[part], losses[part])
    whole = Recorder(seed=0)
    for _ in orders:
        batch = whole.ask()
        whole.tell(batch, batch.x.sum(axis=1))
    assert opt.generations == whole.generations
    assert opt.result.fun == whole.result.fun


def test_invalid_losses_reach_the_algorithm_as_plus_infinity(opt):
    batch = opt.ask()
    opt.tell(batch, [np.nan, np.inf, -np.inf, 1.0, 2.0, 3.0])
    assert opt.generations == [[np.inf, np.inf, np.inf, 1.0, 2.0, 3.0]]
    assert opt.result.n_invalid == 3
    assert opt.result.fun == 1.0


def test_the_callers_changes_to_a_batch_do_no_harm(opt):
    batch = opt.ask()
    batch.x[:] = 7.0
    again = opt.ask()
    assert not (again.x == 7.0).any()
    result = opt.result
    opt.tell(again, np.arange(6.0))
    assert result.fun == np.inf


def test_errors_say_what_came_and_what_was_expected(opt):
    with pytest.raises(ValueError, match="call ask first"):
        opt.tell([0], [1.0])
    batch = opt.ask()
    with pytest.raises(ValueError, match=r"shape \(6,\); got \(5,\)"):
        opt.tell(batch, np.zeros(5))
    with pytest.raises(ValueError, match="waits for ids 0 to 5"):
        opt.tell([17], [0.0])
    with pytest.raises(ValueError, match="never handed out"):
        opt.tell([-1], [0.0])
    with pytest.raises(ValueError, match="real numbers"):
        opt.tell(batch, ["a"] * 6)
    with pytest.raises(ValueError, match="real numbers"):
        opt.tell(batch, np.zeros(6, dtype=complex))
    opt.tell(batch[:1], [0.0])
    with pytest.raises(ValueError, match="candidate 0 was told before"):
        opt.tell(batch, np.zeros(6))
    opt.tell(batch[1:], np.zeros(5))
    with pytest.raises(ValueError, match="candidate 2 was told before"):
        opt.tell(batch[2], [0.0])
    opt.ask()
    with pytest.raises(ValueError, match="its generation is complete"):
        opt.tell(batch[2], [0.0])
    with pytest.raises(NotImplementedError, match="accepts_foreign"):
        opt.tell_foreign(np.zeros(3), 0.0)
    for kwargs in ({"dim": 0}, {"dim": 2.5}, {"budget": 0}, {"budget": "many"}):
        with pytest.raises(ValueError, match="whole number"):
            Recorder(**kwargs)


def test_the_budget_cuts_the_last_generation_and_can_be_raised(opt):
    opt.budget = 10
    opt.tell(opt.ask(), np.zeros(6))
    batch = opt.ask()
    assert len(batch) == 4
    opt.tell(batch[:1], [0.0])
    assert opt.ask().ids.tolist() == batch.ids[1:].tolist()
    opt.tell(batch[1:], np.zeros(3))
    assert opt.stop() == {"budget": 10}
    with pytest.raises(ValueError, match="budget of 10 evaluations is spent"):
        opt.ask()
    opt.budget = 100
    assert not opt.stop()
    assert len(opt.ask()) == 2  # the rest of the cut generation
    opt.tell(opt.ask(), [0.0, 0.0])
    assert opt.nit == 2


def test_a_budget_is_checked_whenever_it_is_set(opt):
    opt.budget = 1e1
    assert (opt.budget, type(opt.budget)) == (10, int)
    opt.budget = None
    for wrong in (0, 2.5, "many"):
        with pytest.raises(ValueError, match="budget must be a whole number"):
            opt.budget = wrong
    assert opt.budget is None


def test_numbers_beyond_any_float_are_no_losses():
    opt = CMAES(np.zeros(2), seed=0)
    with pytest.raises(ValueError, match="losses must be real numbers"):
        opt.tell(opt.ask()[:1], [10**400])
    with pytest.raises(ValueError, match="sigma0 must be a finite number"):
        CMAES(np.zeros(2), 10**400)


def test_what_the_budget_held_back_was_never_handed_out():
    opt = CMAES(np.zeros(5), popsize=10, budget=3, seed=0)
    assert opt.ask().ids.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match=r"candidate 7 was never handed out; .* ids 0 to 2"):
        opt.tell([7], [-1.0])
    other = CMAES(np.zeros(5), popsize=10, budget=3, seed=1)
    other.load_state_dict(opt.state_dict())
    with pytest.raises(ValueError, match="candidate 3 was never handed out"):
        other.tell([3], [-1.0])
    other.budget = 8
    assert other.ask().ids.tolist() == [*range(8)]
    other.tell([7], [-1.0])
    assert other.nfev == 1


def test_state_refuses_what_does_not_fit(opt):
    state = opt.state_dict()
    with pytest.raises(ValueError, match="dim=3"):
        Recorder(dim=4).load_state_dict(state)
    with pytest.raises(ValueError, match="state is of Recorder"):
        CMAES(np.zeros(3)).load_state_dict(state)
    with pytest.raises(ValueError, match="format"):
        opt.load_state_dict({**state, "format": 99})
    with pytest.raises(ValueError, match="hold"):
        opt.load_state_dict({k: v for k, v in state.items() if k != "own"})
    state["generator"]["bit_generator"] = "default_rng"
    with pytest.raises(ValueError, match="bit generator"):
        opt.load_state_dict(state)


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("shared", "_x", np.zeros((5, 3))),
        ("shared", "_x", np.full((6, 3), np.nan)),
        ("shared", "_x", [[0.0] * 3] * 6),
        ("shared", "_told", np.zeros(6)),
        ("shared", "_losses", np.zeros(5)),
        ("shared", "_best_x", np.zeros(4)),
        ("shared", "_best_fun", None),
        ("shared", "_best_fun", np.nan),
        ("shared", "_nfev", -1),
        ("shared", "_nit", "many"),
        ("shared", "_first_id", 0.5),
        ("generator", "state", {"state": 1}),
        ("generator", "bit_generator", None),
    ],
)
def test_a_damaged_state_is_refused(opt, part, name, value):
    opt.ask()
    state = opt.state_dict()
    state[part][name] = value
    with pytest.raises(ValueError, match="state is damaged"):
        Recorder().load_state_dict(state)
    state = opt.state_dict()
    del state[part][name]
    with pytest.raises(ValueError, match="state is damaged"):
        Recorder().load_state_dict(state)


@pytest.mark.parametrize(
    "build",
    [lambda: CMAES(np.zeros(4), seed=0), lambda: LoTFWA((-1, 1), dim=4), lambda: Recorder(4)],
)
def test_a_state_without_one_of_the_algorithms_own_fields_is_refused(build):
    state = build().state_dict()
    for name in state["own"]:
        own = {key: value for key, value in state["own"].items() if key != name}
        with pytest.raises(ValueError, match="state is damaged"):
            build().load_state_dict({**state, "own": own})


def test_pending_counts_what_has_no_loss(opt):
    assert opt.pending == 0
    batch = opt.ask()
    assert opt.pending == 6
    opt.tell(batch[:2], [0.0, np.nan])
    assert opt.pending == 4
    opt.tell(opt.ask(), np.zeros(4))
    assert opt.pending == 0


def test_a_state_is_a_copy(opt):
    state = opt.state_dict()
    opt.tell(opt.ask(), np.arange(6.0))
    other = Recorder()
    other.load_state_dict(state)
    assert other.nfev == 0
    other.tell(other.ask(), np.zeros(6))
    again = Recorder()
    again.load_state_dict(state)
    assert again.nfev == 0


@pytest.mark.parametrize("bit_generator", [np.random.MT19937, np.random.Philox, np.random.SFC64])
def test_any_of_numpys_generators_is_restored(bit_generator):
    opt = Recorder(seed=np.random.Generator(bit_generator(3)))
    other = Recorder()
    other.load_state_dict(opt.state_dict())
    assert np.array_equal(opt.ask().x, other.ask().x)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
@pytest.mark.parametrize(
    "build", [lambda: CMAES(np.zeros(4), seed=0), lambda: LoTFWA((-1, 1), dim=4, popsize=10)]
)
def test_optimizers_can_be_copied_and_sent_to_other_processes(build, clone):
    opt = build()
    batch = opt.ask()
    twin = clone(opt)
    for o in (opt, twin):
        o.tell(batch, (batch.x**2).sum(axis=1))
    assert np.array_equal(opt.ask().x, twin.ask().x)
