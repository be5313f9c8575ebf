"""Tasks: what to answer, from which words, on which examples."""

from integrations.tasks.builtin import TASKS, Recipe, load_task
from integrations.tasks.task import Example, Task

__all__ = ["TASKS", "Example", "Recipe", "Task", "load_task"]
