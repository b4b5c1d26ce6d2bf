"""Texts to be given one label out of a fixed set."""

from collections.abc import Sequence

from maft.answers import EQUALITIES, gold
from maft.answers.equality import folded
from maft.answers.labels import read_label
from maft.config import TaskConfig, prompts
from maft.errors import ConfigError, DataError
from maft.records import Problem
from maft.tasks.dataset import REMEDY
from maft.tasks.rows import Row
from maft.tasks.table import Table, has, known_answer, made, text


class Classification(Table):
    """Rows with a question in one column and perhaps its label in another; answers are labels of `task.labels`."""

    own_equality = EQUALITIES["text"]

    def __init__(self, settings: TaskConfig) -> None:
        super().__init__(settings)
        self.labels = checked(settings.labels)
        self.prompts = prompts.brief(f"Answer with one of: {', '.join(self.labels)}.")

    def extract(self, text: str) -> str | None:
        """Read the label out of a reply."""
        return read_label(text, self.labels)

    def show(self, answer: str) -> str:
        """Return a reply that states a label."""
        return f"The answer is {answer}."

    def problem(self, row: Row) -> Problem:
        """Take question and label from the columns that are named; the label may be missing."""
        name = self.settings.gold_field
        known = known_answer(row, name, REMEDY) if name and has(row, name) else None
        label = None if known is None else self.extract(gold.read(known, self.extract))
        if known is not None and label is None:
            raise DataError(
                f"{row.where}: {name!r} must be one of the labels in task.labels ({', '.join(self.labels)}), got "
                f"{known[:80]!r}."
            )
        return made(row, text(row, self.settings.question_field, REMEDY), label)


def checked(labels: Sequence[str]) -> tuple[str, ...]:
    """Return a set of labels.

    Raises:
        ConfigError: there are fewer than two, one is empty, or two are the same without regard to case and spacing.
    """
    known: dict[str, str] = {}
    for label in labels:
        if not folded(label):
            raise ConfigError("task.labels has an empty label. Name each label.")
        if folded(label) in known:
            raise ConfigError(
                f"task.labels has {known[folded(label)]!r} and {label!r}, which are the same: case and spacing do not "
                "count. Keep one of them."
            )
        known[folded(label)] = label
    if len(known) < 2:
        raise ConfigError(f"task.labels must name two labels or more, got {list(labels)}.")
    return tuple(labels)
