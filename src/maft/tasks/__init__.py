"""Where questions come from: the tasks by name, and the one that a config asks for."""

from collections.abc import Mapping

from maft.config import TaskConfig
from maft.extensions import find
from maft.tasks.arithmetic import Arithmetic
from maft.tasks.base import Grade, Split, Task, check_disjoint, prepare, train_set
from maft.tasks.classification import Classification
from maft.tasks.code import Code
from maft.tasks.dataset import Dataset
from maft.tasks.extraction import Extraction
from maft.tasks.gsm8k import Gsm8k
from maft.tasks.math import Math
from maft.tasks.mmlu import Mmlu
from maft.tasks.reasoning_gym import ReasoningGym
from maft.tasks.text import Text

TASKS: Mapping[str, type[Task]] = {
    "arithmetic": Arithmetic,
    "gsm8k": Gsm8k,
    "math": Math,
    "mmlu": Mmlu,
    "dataset": Dataset,
    "jsonl": Dataset,
    "code": Code,
    "classification": Classification,
    "extraction": Extraction,
    "text": Text,
    "reasoning_gym": ReasoningGym,
}


def make(settings: TaskConfig) -> Task:
    """Return the task that the settings name; nothing is read before its questions are asked for."""
    kind = TASKS.get(settings.name.partition(":")[0]) or find("task", settings.name, Task)
    return kind(settings)


__all__ = ["TASKS", "Grade", "Split", "Task", "check_disjoint", "make", "prepare", "train_set"]
