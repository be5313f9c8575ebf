"""dfo_core: derivative-free optimizers behind one ask/tell protocol, in numpy and scipy."""

from dfo_core.adapters import as_optimizer
from dfo_core.averaged import Averaged
from dfo_core.bounds import BoundTransform, Box
from dfo_core.cmaes import CMAES
from dfo_core.lmmaes import LMMAES
from dfo_core.lotfwa import LoTFWA
from dfo_core.minimize import minimize
from dfo_core.optimizer import Optimizer
from dfo_core.protocol import Batch, Result
from dfo_core.quasi_random import QuasiRandom
from dfo_core.random_search import RandomSearch
from dfo_core.restarts import BIPOP, IPOP
from dfo_core.serialization import load_state, save_state

__all__ = [
    "BIPOP",
    "CMAES",
    "IPOP",
    "LMMAES",
    "Averaged",
    "Batch",
    "BoundTransform",
    "Box",
    "LoTFWA",
    "Optimizer",
    "QuasiRandom",
    "RandomSearch",
    "Result",
    "as_optimizer",
    "load_state",
    "minimize",
    "save_state",
]
