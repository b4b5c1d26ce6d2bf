"""Where questions come from: the `Task` protocol and the tasks by name."""

from collections.abc import Mapping

from maft.tasks.arithmetic import Arithmetic
from maft.tasks.base import Split, Task, check_disjoint, prepare
from maft.tasks.jsonl import Jsonl

TASKS: Mapping[str, Task] = {"arithmetic": Arithmetic(), "jsonl": Jsonl()}

__all__ = ["TASKS", "Arithmetic", "Jsonl", "Split", "Task", "check_disjoint", "prepare"]
