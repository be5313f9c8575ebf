"""Tune low-rank modules of frozen language models without gradients: ``tune(model, task)``."""

from integrations.comparison import Comparison, compare
from integrations.errors import UserError
from integrations.models import load_model
from integrations.peft_format import load_adapter
from integrations.population import NAIVE, PopulationEvaluator, Speedups
from integrations.ray_workers import RayWorkers
from integrations.result import TuneResult
from integrations.tasks import (
    ContinuationTask,
    Example,
    GenerationTask,
    Recipe,
    Task,
    TextExample,
    load_task,
)
from integrations.tuning import tune
from integrations.workers import ProcessWorkers

__all__ = [
    "NAIVE",
    "Comparison",
    "ContinuationTask",
    "Example",
    "GenerationTask",
    "PopulationEvaluator",
    "ProcessWorkers",
    "RayWorkers",
    "Recipe",
    "Speedups",
    "Task",
    "TextExample",
    "TuneResult",
    "UserError",
    "compare",
    "load_adapter",
    "load_model",
    "load_task",
    "tune",
]
