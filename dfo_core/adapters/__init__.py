"""Optimizers of other libraries behind the protocol; each library is imported only when used."""

from dfo_core.adapters.build import as_optimizer
from dfo_core.adapters.generic import AskTellOptimizer
from dfo_core.adapters.nevergrad import NevergradOptimizer
from dfo_core.adapters.pycma import PycmaOptimizer

__all__ = ["AskTellOptimizer", "NevergradOptimizer", "PycmaOptimizer", "as_optimizer"]
