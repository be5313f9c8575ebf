"""Tasks: what to answer, from which words, on which examples."""

from integrations.tasks.builtin import HUB_NAMES, TASKS, Recipe
from integrations.tasks.example import Example
from integrations.tasks.loading import load_task
from integrations.tasks.task import Task

__all__ = ["HUB_NAMES", "TASKS", "Example", "Recipe", "Task", "load_task"]
