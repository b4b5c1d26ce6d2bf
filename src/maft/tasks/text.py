"""Free text: short answers, lists, summaries, whatever a reply says."""

import re

from maft.answers import EQUALITIES, extract_stated, thinking
from maft.config import TaskConfig, prompts
from maft.records import Problem
from maft.tasks.dataset import REMEDY
from maft.tasks.rows import Row
from maft.tasks.table import Table, has, known_answer, made, text

MAX_CHARS = 8_000
"""A longer answer is none."""
_MARK = re.compile(r"^[\s*_#]{0,6}(?:final\s+)?answer[\s*_]{0,4}:[\s*_]{0,4}", re.IGNORECASE | re.MULTILINE)


class Text(Table):
    """Rows with a question in one column and perhaps its answer in another; the answer is what a reply says.

    With `equality: tokens`, answers are short: the answer that a reply states, else all of it. Otherwise it is what
    comes after the last line that begins with "Answer:", else all of it.
    """

    own_equality = EQUALITIES["tokens"]

    def __init__(self, settings: TaskConfig) -> None:
        super().__init__(settings)
        self.prompts = prompts.brief("")

    def extract(self, text: str) -> str | None:
        """Read the answer, without what the model thought before it."""
        if self.equality.name == "tokens" and (stated := extract_stated(text)):
            return stated
        rest = thinking.strip(text).rest
        marks = list(_MARK.finditer(rest))
        answer = rest[marks[-1].end() :].strip() if marks else rest.strip()
        return answer if 0 < len(answer) <= MAX_CHARS else None

    def show(self, answer: str) -> str:
        """Return the answer: a reply is nothing more."""
        return answer

    def problem(self, row: Row) -> Problem:
        """Take question and answer from the columns that are named; the answer may be missing."""
        name = self.settings.gold_field
        known = known_answer(row, name, REMEDY) if name and has(row, name) else None
        return made(row, text(row, self.settings.question_field, REMEDY), known and known.strip())
