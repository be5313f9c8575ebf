"""Tasks: what to answer, from which words, on which examples."""

from integrations.tasks.builtin import HUB_NAMES, TASKS, Recipe
from integrations.tasks.example import Example
from integrations.tasks.loading import AnyTask, load_task
from integrations.tasks.task import Task
from integrations.tasks.text import ContinuationTask, GenerationTask, TextExample

__all__ = [
    "HUB_NAMES",
    "TASKS",
    "AnyTask",
    "ContinuationTask",
    "Example",
    "GenerationTask",
    "Recipe",
    "Task",
    "TextExample",
    "load_task",
]
