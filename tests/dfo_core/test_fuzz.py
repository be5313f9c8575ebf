"""Long random sequences of everything the protocol allows, over every optimizer of ours."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from test_conformance import FACTORIES, Broken, Careless, Extravagant, Forgetful

from dfo_core.fuzzing import ACTIONS, Model, fuzz_optimizer

N_FAST = 5
N_SLOW = -(-10_000 // len(FACTORIES))  # for each optimizer, ten thousand in all


@pytest.mark.parametrize("name", FACTORIES)
def test_a_few_sequences(name):
    for seed in range(N_FAST):
        fuzz_optimizer(FACTORIES[name], seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", FACTORIES)
def test_many_sequences(name):
    for seed in range(N_FAST, N_FAST + N_SLOW):
        fuzz_optimizer(FACTORIES[name], seed)


class Protocol(RuleBasedStateMachine):
    """The same steps in an order that hypothesis chooses and, where one fails, shortens."""

    @initialize(name=st.sampled_from(sorted(FACTORIES)), seed=st.integers(0, 1000))
    def build(self, name, seed):
        self.model = Model(FACTORIES[name], np.random.default_rng(seed))

    @rule(action=st.sampled_from(sorted(ACTIONS)), seed=st.integers(0, 1000))
    def act(self, action, seed):
        self.model.rng = np.random.default_rng(seed)
        getattr(self.model, action)()


TestProtocol = Protocol.TestCase
TestProtocol.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, derandomize=True
)


class Redraws(Broken):
    """Hands out new candidates while others wait."""

    def ask(self):
        self._told[:] = True
        return super().ask()


class Loses(Broken):
    """Leaves a candidate out when asked again."""

    def ask(self):
        batch = super().ask()
        return batch[1:] if 1 < len(batch) < 4 else batch


class CountsTwice(Broken):
    def tell(self, batch, losses):
        self._nfev += 1
        super().tell(batch, losses)


@pytest.mark.parametrize("kind", [Redraws, Loses, CountsTwice, Forgetful, Careless, Extravagant])
def test_broken_optimizers_are_found(kind):
    def fuzz(factory):
        for seed in range(20):
            fuzz_optimizer(factory, seed)

    fuzz(Broken)
    with pytest.raises(AssertionError, match="promise not kept"):
        fuzz(kind)
