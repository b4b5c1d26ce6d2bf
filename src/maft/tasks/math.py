"""MATH: competition problems with worked solutions (Hendrycks et al., 2021), chosen by level and type."""

import re
from collections import Counter
from collections.abc import Sequence

from maft.answers import extract_answer, extract_stated, gold
from maft.errors import ConfigError, DataError
from maft.records import Problem
from maft.tasks.rows import Row
from maft.tasks.table import Source, Table, field, known_answer, made, text

_REMEDY = "MATH has problem, level, type and solution; use task dataset for other columns."


class Math(Table):
    r"""Rows with `problem` and an `answer`, or else a `solution` whose last box is the answer."""

    source = Source("DigitalLearningGmbH/MATH-lighteval", None, "train", "test")

    read = staticmethod(extract_stated)

    def select(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Keep the levels and types asked for."""
        return chosen(chosen(rows, "level", self.settings.levels, "levels"), "type", self.settings.types, "types")

    def problem(self, row: Row) -> Problem:
        """Take `answer`, or the last box of `solution`."""
        question = text(row, "problem", _REMEDY)
        if row.fields.get("unique_id"):
            row = Row(row.where, row.fields | {"id": row.fields["unique_id"]})
        if "answer" in row.fields:
            known = known_answer(row, "answer", _REMEDY)
            return made(row, question, None if known is None else gold.read(known, self.extract))
        solution = known_answer(row, "solution", _REMEDY)
        boxed = None if solution is None else extract_answer(solution)
        if solution is not None and boxed is None:
            raise DataError(f"{row.where}: 'solution' has no answer in a \\boxed{{}}, got {solution[-80:]!r}.")
        return made(row, question, boxed)


def chosen(rows: Sequence[Row], name: str, wanted: Sequence[object], setting: str) -> Sequence[Row]:
    """Keep the rows with one of the values wanted in a field; none wanted keeps all.

    "Level 3", "level 3" and 3 are one level, "Counting & Probability" and counting_and_probability one type.

    Raises:
        ConfigError: a value that no row has; lists those there.
    """
    if not wanted or not rows:
        return rows
    remedy = f"task.{setting} chooses by it; set that to []."
    values = [plain(field(row, name, remedy)) for row in rows]
    there = Counter(values)
    for value in wanted:
        if plain(value) not in there:
            found = ", ".join(f"{key} ({count})" for key, count in sorted(there.items())[:60])
            raise ConfigError(f"task.{setting} has {value!r}, but no question is of it. The questions have: {found}.")
    keep = set(map(plain, wanted))
    return [row for row, value in zip(rows, values, strict=True) if value in keep]


def plain(value: object) -> str:
    """Return a level or type in one spelling.

    >>> plain("Level 3"), plain(3), plain("Counting & Probability"), plain("counting_and_probability")
    ('3', '3', 'counting and probability', 'counting and probability')
    """
    words = re.sub(r"[\s_]+", " ", str(value).casefold().replace("&", "and")).strip()
    return words.removeprefix("level ")
