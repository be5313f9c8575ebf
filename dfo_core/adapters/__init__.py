"""Optimizers of other libraries behind the protocol; each library is imported only when used."""

from dfo_core.adapters.build import as_optimizer, is_factory
from dfo_core.adapters.cmaes import CmaesOptimizer
from dfo_core.adapters.evosax import EvosaxOptimizer
from dfo_core.adapters.evotorch import EvotorchOptimizer
from dfo_core.adapters.generic import AskTellOptimizer
from dfo_core.adapters.nevergrad import NevergradOptimizer
from dfo_core.adapters.optuna import OptunaOptimizer
from dfo_core.adapters.pycma import PycmaOptimizer

__all__ = [
    "AskTellOptimizer",
    "CmaesOptimizer",
    "EvosaxOptimizer",
    "EvotorchOptimizer",
    "NevergradOptimizer",
    "OptunaOptimizer",
    "PycmaOptimizer",
    "as_optimizer",
    "is_factory",
]
