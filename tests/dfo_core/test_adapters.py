"""Other libraries' optimizers, and objects with ask and tell of every form."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import dfo_core
from dfo_core import CMAES, Batch, LoTFWA, RandomSearch, as_optimizer
from dfo_core.adapters import AskTellOptimizer, NevergradOptimizer, PycmaOptimizer
from dfo_core.testing import CHECKS

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:nevergrad")

# -- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("cma-es", CMAES),
        ("CMA-ES", CMAES),
        ("sep-cma-es", CMAES),
        ("lotfwa", LoTFWA),
        ("random", RandomSearch),
        ("pycma", PycmaOptimizer),
        ("nevergrad:OnePlusOne", NevergradOptimizer),
    ],
)
def test_names(name, kind):
    opt = as_optimizer(name, dim=3, bounds=(-1, 1), popsize=6, budget=50, seed=0, target=0.1)
    assert isinstance(opt, kind)
    assert (opt.dim, opt.budget, opt.target) == (3, 50, 0.1)


def test_defaults_of_start_and_step():
    assert np.array_equal(as_optimizer("cma-es", 2).mean, [0, 0])
    opt = as_optimizer("cma-es", bounds=([0, 0], [2, 20]))
    assert opt.mean == pytest.approx([1, 10])
    assert opt.sigma == pytest.approx(0.6)
    assert as_optimizer("pycma", 2, bounds=(0, 10))._es.sigma == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: as_optimizer("cmaess", 2), ValueError, "known are cma-es, .*mean 'cmaes'"),
        (lambda: as_optimizer("pycma:CMA", 2), ValueError, "unknown optimizer 'pycma:CMA'"),
        (lambda: as_optimizer("adam", 2), ValueError, "unknown optimizer 'adam'; known are"),
        (lambda: as_optimizer("lotfwa:x", 2), ValueError, "unknown optimizer 'lotfwa:x'"),
        (lambda: as_optimizer("nevergrad", 2), ValueError, "nevergrad:NAME"),
        (lambda: as_optimizer("nevergrad:NGOptt", 2), ValueError, "close ones are NGOpt"),
        (lambda: as_optimizer("nevergrad:NGOpt", 2), ValueError, "give budget"),
        (lambda: as_optimizer("lotfwa", 2), ValueError, "needs bounds"),
        (lambda: as_optimizer("lotfwa", 2, bounds=(0, 1), sigma0=1), ValueError, "sigma0 has no"),
        (lambda: as_optimizer("random", 2, bounds=(0, 1), sigma0=1), ValueError, "sigma0 has no"),
        (
            lambda: as_optimizer(Batches(), popsize=20),
            ValueError,
            "popsize has no effect on Batches",
        ),
        (lambda: as_optimizer("cma-es"), ValueError, "dimension is unknown"),
        (lambda: as_optimizer("cma-es", 3, x0=[0.0]), ValueError, r"x0 must have shape \(3,\)"),
        (lambda: as_optimizer(CMAES), TypeError, "CMAES is a class: pass an instance"),
        (lambda: as_optimizer(3, 2), TypeError, "int has no method ask"),
        (lambda: as_optimizer(CMAES(np.zeros(2)), 3), ValueError, "2 coordinates; dim=3"),
        (lambda: as_optimizer(CMAES(np.zeros(2)), seed=3), ValueError, "seed has no effect"),
        (lambda: as_optimizer(lambda d, s: None, 3), TypeError, "NoneType has no method ask"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_missing_library_says_what_to_install(monkeypatch):
    for library, name in (("cma", "pycma"), ("nevergrad", "nevergrad:NGOpt")):
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(ImportError, match=f"pip install {library}"):
            as_optimizer(name, 2)


def test_importing_dfo_core_imports_neither_these_nor_scipy():
    code = (
        "import sys, dfo_core; "
        "heavy = {'torch', 'cma', 'nevergrad', 'scipy', 'transformers'} & sys.modules.keys(); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    root = Path(dfo_core.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_ours_pass_through_and_take_limits():
    opt = CMAES(np.zeros(2))
    assert as_optimizer(opt, budget=7, target=1.0) is opt
    assert (opt.budget, opt.target) == (7, 1.0)


def test_factories():
    opt = as_optimizer(lambda d, seed: CMAES(np.ones(d), seed=seed), dim=3, seed=5, budget=9)
    assert isinstance(opt, CMAES)
    assert opt.budget == 9
    assert np.array_equal(opt.ask().x, CMAES(np.ones(3), seed=5).ask().x[:9])
    assert isinstance(as_optimizer(lambda d, seed: Pairs(d, seed), dim=3, seed=0), AskTellOptimizer)


# -- objects with ask and tell --------------------------------------------------------------------


class Points:
    """ask() -> (n, d); tell(xs, losses)."""

    def __init__(self, d=3, seed=0):
        self.rng, self.d, self.told = np.random.default_rng(seed), d, []

    def draw(self, n):
        return self.rng.standard_normal((n, self.d))

    def ask(self):
        self.last = self.draw(4)
        return self.last

    def tell(self, xs, losses):
        assert xs is self.last
        self.told.append((np.array(xs), list(losses)))


class ListOfPoints(Points):
    def ask(self):
        self.last = list(self.draw(4))
        return self.last


class Batches(Points):
    def ask(self):
        self.last = Batch(self.draw(4), np.arange(4))
        return self.last

    def tell(self, batch, losses, verbose=False):
        assert batch is self.last
        self.told.append((batch.x, list(losses)))


class OnePoint(Points):
    """ask() -> (d,); tell(x, loss)."""

    def ask(self):
        return self.draw(1)[0].tolist()

    def tell(self, x, loss):
        self.told.append((np.array([x]), [loss]))


class Pairs(Points):
    """ask() -> (d,); tell([(x, loss), ...]) once a population, as the package `cmaes` has it."""

    population_size = 4

    def ask(self):
        return self.draw(1)[0]

    def tell(self, solutions):
        assert len(solutions) == self.population_size
        self.told.append((np.array([x for x, _ in solutions]), [f for _, f in solutions]))


class PairsOfPoints(Points):
    def tell(self, solutions):
        self.told.append((np.array([x for x, _ in solutions]), [f for _, f in solutions]))


FORMS = [Points, ListOfPoints, Batches, OnePoint, Pairs, PairsOfPoints]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gets_its_points_and_losses(form):
    obj = form(3, 0)
    opt = as_optimizer(obj)
    assert (opt.dim, isinstance(opt, AskTellOptimizer)) == (3, True)
    asked = []
    for _ in range(4):
        batch = opt.ask()
        asked.append(batch.x)
        opt.tell(batch[::-1], batch.x.sum(axis=1)[::-1])
    asked = np.concatenate(asked)
    assert np.allclose(np.concatenate([x for x, _ in obj.told]), asked)
    assert np.allclose(np.concatenate([f for _, f in obj.told]), asked.sum(axis=1))
    assert np.allclose(asked, np.random.default_rng(0).standard_normal(asked.shape))


@pytest.mark.parametrize("form", FORMS)
def test_an_invalid_loss_before_any_other_ranks_behind_those_that_follow(form):
    obj = form(3, 0)
    opt = as_optimizer(obj)
    for loss in (np.nan, 0.7):
        told = 0
        while told < 4:
            batch = opt.ask()
            opt.tell(batch, [loss] * len(batch))
            told += len(batch)
    losses = [f for _, each in obj.told for f in each]
    assert min(losses[:4]) > max(losses[4:]) == 0.7


@pytest.mark.parametrize("form", FORMS)
def test_losses_reach_other_libraries_finite_and_invalid_ones_rank_worst(form):
    obj = form(3, 0)
    opt = as_optimizer(obj)
    for losses in ([np.nan] * 4, [3.0, np.nan, -np.inf, 5.0], [1.0, np.inf, 2.0, 0.0]):
        told = 0
        while told < 4:
            batch = opt.ask()
            opt.tell(batch, losses[told : told + len(batch)])
            told += len(batch)
    told = [f for _, losses in obj.told for f in losses]
    assert np.isfinite(told).all()
    assert all(type(f) is float for f in told)
    assert told[9] >= max(told[8], *told[10:])
    if form is not OnePoint:
        assert 5.0 < told[5] == told[6] < 5.0 + 1e-9


@pytest.mark.parametrize("precision", [np.float32, np.float64])
def test_losses_of_any_size_stay_finite_in_the_librarys_precision(precision):
    opt = as_optimizer(Points())
    opt._precision = precision
    largest = float(np.finfo(precision).max)
    assert opt._finite(np.array([1e308, np.inf, -1e308])) == [
        min(1e308, largest),
        np.nextafter(precision(1e308), precision(np.inf)) if precision is np.float64 else largest,
        max(-1e308, -largest),
    ]


def test_single_points_in_batches_of_popsize():
    assert len(as_optimizer(OnePoint(), popsize=7).ask()) == 7
    with pytest.raises(ValueError, match="x0 has no effect on an instance of OnePoint"):
        as_optimizer(OnePoint(), x0=np.zeros(3))


@pytest.mark.parametrize("missing", ["ask", "tell"])
def test_objects_without_ask_or_tell(missing):
    obj = Points()
    setattr(obj, missing, None)
    with pytest.raises(TypeError, match=rf"Points has no method {missing}\(\): wrap it"):
        as_optimizer(obj)


def test_an_ask_that_changes_its_mind_is_an_error():
    obj = Points()
    opt = as_optimizer(obj)
    opt.tell(opt.ask(), np.zeros(4))
    obj.d = 2
    with pytest.raises(ValueError, match=r"Points.ask\(\) must have shape \(n, 3\)"):
        opt.ask()


FACTORIES = {
    "points": lambda seed: as_optimizer(lambda d, s: Points(d, s), 3, seed),
    "one-point": lambda seed: as_optimizer(OnePoint(3, seed), popsize=5),
    "pairs": lambda seed: as_optimizer(Pairs(3, seed)),
}


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", FACTORIES)
def test_conformance(check, name):
    check(FACTORIES[name])
