"""Questions of one's own, by the names of two columns; known answers are optional."""

from maft.answers import extract_stated
from maft.records import Problem
from maft.tasks.rows import Row
from maft.tasks.table import Table, known_answer, made, text

_REMEDY = "Set task.question_field and task.gold_field (null where no answers are known)."


class Dataset(Table):
    """Any data set or file with a question in one column and perhaps its answer in another."""

    def extract(self, text: str) -> str | None:
        """Take the boxed answer, or else what the reply says its answer is."""
        return extract_stated(text)

    def problem(self, row: Row) -> Problem:
        """Take question and answer from the columns that the settings name."""
        names = self.settings.question_field, self.settings.gold_field
        question = text(row, names[0], _REMEDY)
        return made(row, question, known_answer(row, names[1], _REMEDY) if names[1] else None)
