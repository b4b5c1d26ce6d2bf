"""Tasks whose questions are rows of files or data sets, one subclass for each kind of row."""

import hashlib
import math
from abc import abstractmethod
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from maft.errors import ConfigError, DataError
from maft.records import Problem
from maft.tasks import rows as rows_
from maft.tasks.base import Split, Task, distinct, log, normalised, split_by_key
from maft.tasks.rows import Row


class Source(NamedTuple):
    """The data set that a task reads unless told otherwise."""

    dataset: str
    subset: str | None
    train: str
    eval: str | None


class Table(Task):
    """Questions from the rows of `task.train_file` and `task.eval_file`, or of the splits of `task.dataset`.

    One file or split alone is divided by seed. A question that occurs twice is kept once.
    """

    source: Source | None = None

    @abstractmethod
    def problem(self, row: Row) -> Problem:
        """Turn a row into a question, with `made`.

        Raises:
            DataError: the row lacks something; names it.
        """

    def select(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Return the rows that the settings ask for; all of them, unless a task can choose."""
        return rows

    def questions(self) -> Split:
        """Read both sides, or divide one by seed."""
        settings = self.settings
        if settings.train_file is not None:
            if settings.dataset is not None:
                raise ConfigError("task.train_file and task.dataset are both given. Give one of them.")
            eval_file = settings.eval_file
            return self._split(
                rows_.from_file(settings.train_file), None if eval_file is None else rows_.from_file(eval_file)
            )
        if settings.eval_file is not None or (settings.dataset is None and self.source is None):
            raise ConfigError(
                f"task.train_file is missing: task {settings.name} needs the path of a file with one question per line"
                f"{' beside task.eval_file' if settings.eval_file else ', or the name of a data set in task.dataset'}."
            )
        return self._from_dataset()

    def _from_dataset(self) -> Split:
        settings = self.settings
        source = self.source or Source("", None, "train", None)
        name = settings.dataset or source.dataset
        subset = settings.subset or (source.subset if settings.dataset in (None, source.dataset) else None)
        train, held_out = settings.train_split or source.train, settings.eval_split or source.eval
        if Path(name).suffix and Path(name).is_file():
            raise ConfigError(f"task.dataset = {name} is a file. Give it as task.train_file.")
        # Ids of data sets often count from 0 in each split, so that they say nothing across splits.
        rows = [Row(where, fields | {"id": None}) for where, fields in rows_.from_dataset(name, subset, train)]
        if held_out in (None, train):
            return self._split(rows, None)
        others = [Row(where, fields | {"id": None}) for where, fields in rows_.from_dataset(name, subset, held_out)]
        split = self._split(rows, others)
        # Published splits overlap here and there, and their readers cannot repair them.
        known = {normalised(problem.question) for problem in split.eval}
        apart = [problem for problem in split.train if normalised(problem.question) not in known]
        shared = len(split.train) - len(apart)
        if shared:
            log.warning(
                "%d training questions of %s are left out, since they are also held-out questions.", shared, name
            )
        return Split(apart, split.eval, split.duplicates + shared)

    def _split(self, train: Sequence[Row], held_out: Sequence[Row] | None) -> Split:
        sides = [self._problems(self.select(rows)) for rows in (train, held_out) if rows is not None]
        kept = [distinct(problems) for problems in sides]
        duplicates = sum(map(len, sides)) - sum(map(len, kept))
        split = split_by_key(kept[0], self.settings) if held_out is None else Split(kept[0], kept[1])
        return split._replace(duplicates=duplicates)

    def _problems(self, rows: Sequence[Row]) -> list[Problem]:
        """Turn rows into questions, and make sure that an id stands for one of them only."""
        known: dict[str, tuple[str, str]] = {}
        problems = []
        for row in rows:
            problem = self.problem(row)
            where, question = known.setdefault(problem.id, (row.where, problem.question))
            if question != problem.question and normalised(question) != normalised(problem.question):
                raise DataError(
                    f"{where} and {row.where} are different questions with the same id {problem.id!r}. Give each "
                    "question a unique id, or none."
                )
            problems.append(problem)
        return problems


def made(row: Row, question: str, gold: str | None) -> Problem:
    """Return the problem of a row, under its own id or one that depends on the question alone."""
    own = row.fields.get("id")
    digest = hashlib.blake2b(normalised(question).encode(), digest_size=6).hexdigest()
    return Problem(id=digest if own is None else str(own), question=question, gold=gold)


def text(row: Row, name: str, remedy: str) -> str:
    """Return the text in a field.

    Raises:
        DataError: no such field, or no text in it.
    """
    value = field(row, name, remedy)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise DataError(f"{row.where}: {name!r} is empty. Give this row a text, or remove it.")
    if not isinstance(value, str):
        raise DataError(f"{row.where}: {name!r} must be a text, got {value!r:.80}. {remedy}")
    return value


def known_answer(row: Row, name: str, remedy: str) -> str | None:
    """Return the answer in a field, None where nobody knows it; NaN, as tables have it, is such an answer.

    Raises:
        DataError: no such field, or neither a text nor a number in it.
    """
    value = field(row, name, remedy)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, str) and not value.strip():
        raise DataError(f"{row.where}: {name!r} is empty. Write null where the answer is not known.")
    if value is None or (isinstance(value, float) and math.isnan(value)) or value in _MISSING:
        return None
    if isinstance(value, Decimal) and value.is_finite():
        return f"{value:f}"
    if not isinstance(value, str | int | float) or (isinstance(value, float) and math.isinf(value)):
        raise DataError(f"{row.where}: {name!r} must be a text, a number or a list of one, got {value!r:.80}. {remedy}")
    return str(value)


_MISSING = ("NaN", "nan", "<NA>")


def has(row: Row, name: str) -> bool:
    """Say whether a row has a field, see `field`."""
    return _inside(row.fields, name) is not _NOTHING


def field(row: Row, name: str, remedy: str) -> Any:
    """Return what is in a field; `prompt.0.content` is a field within another.

    Raises:
        DataError: there is no such field; lists those there.
    """
    value = _inside(row.fields, name)
    if value is _NOTHING:
        raise DataError(
            f"{row.where} has no field {name!r}; it has {', '.join(map(repr, row.fields)) or 'none'}. {remedy}"
        )
    return value


_NOTHING = object()


def _inside(value: Any, name: str) -> Any:
    if isinstance(value, dict) and name in value:
        return value[name]
    first, dot, rest = name.partition(".")
    if isinstance(value, dict) and first in value:
        value = value[first]
    elif isinstance(value, list) and first.isdecimal() and int(first) < len(value):
        value = value[int(first)]
    else:
        return _NOTHING
    return _inside(value, rest) if dot else value
