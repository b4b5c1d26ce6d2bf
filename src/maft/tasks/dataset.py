"""Your own questions, by the names of two columns; known answers are optional."""

from collections.abc import Sequence

from maft.answers import extract_stated, gold
from maft.errors import DataError
from maft.records import Problem
from maft.tasks.base import Split, log
from maft.tasks.rows import Row
from maft.tasks.table import Table, has, known_answer, made, text

REMEDY = (
    "Set task.question_field and task.gold_field (null where no answers are known); a field within another is named "
    "with dots, such as prompt.0.content."
)


class Dataset(Table):
    """Any data set or file with a question in one column and perhaps its answer in another."""

    read = staticmethod(extract_stated)

    def _split(self, train: Sequence[Row], held_out: Sequence[Row] | None) -> Split:
        name = self.settings.gold_field
        for side, rows in (("training", train), ("held-out", train if held_out is None else held_out)):
            if not rows or name is None or any(has(row, name) for row in rows):
                continue
            fields = ", ".join(map(repr, rows[0].fields))
            told = f"no {side} question has the field {name!r}; {rows[0].where} has {fields}. {REMEDY}"
            if side == "held-out" and name != type(self.settings).model_fields["gold_field"].default:
                raise DataError(told)
            if side == "held-out":
                log.warning("Accuracy will not be known: %s", told)
        return super()._split(train, held_out)

    def problem(self, row: Row) -> Problem:
        """Take question and answer from the columns that are named; the answer may be missing, or in a solution."""
        question, answer = self.settings.question_field, self.settings.gold_field
        known = known_answer(row, answer, REMEDY) if answer and has(row, answer) else None
        return made(row, text(row, question, REMEDY), None if known is None else gold.read(known, self.extract))
