"""MMLU: questions with four options, one of them right (Hendrycks et al., 2021)."""

import re
from collections.abc import Mapping, Sequence

from maft.answers import EQUALITIES, extract_choice
from maft.config import prompts
from maft.errors import DataError
from maft.records import Problem
from maft.tasks.math import chosen
from maft.tasks.rows import Row
from maft.tasks.table import Source, Table, field, made, text

_REMEDY = "MMLU has question, choices (or A, B, C, D), answer and subject; use task dataset for other columns."
LETTERS = "ABCDEFGHIJ"


class Mmlu(Table):
    """Rows with `question`, `choices` (a list, or columns A to D) and `answer`, an index from 0 or a letter.

    Or as other sets have them: `options` (MMLU-Pro, AQuA), texts with labels and `answerKey` (ARC, CommonsenseQA).
    """

    source = Source("cais/mmlu", "all", "validation", "test")
    prompts: Mapping[str, str] = prompts.asking(
        "final answer, the letter of the right option, written as \\boxed{answer}"
    )

    own_equality = EQUALITIES["text"]

    read = staticmethod(extract_choice)

    def select(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Keep the subjects asked for in `task.types`."""
        return chosen([_standard(row) for row in rows], "subject", self.settings.types, "types")

    def problem(self, row: Row) -> Problem:
        """List the options under the question."""
        row = _standard(row)
        options = _options(row)
        listed = "\n".join(f"{letter}) {option}" for letter, option in zip(LETTERS, options, strict=False))
        question = f"{text(row, 'question', _REMEDY).strip()}\n\n{listed}"
        return made(row, question, _letter(row, len(options)))


def _standard(row: Row) -> Row:
    """Return a row of MMLU-Pro, ARC, CommonsenseQA, OpenBookQA or AQuA as one of MMLU."""
    own = row.fields
    fields = {_NAMES[name] if _NAMES.get(name, name) not in own else name: value for name, value in own.items()}
    choices = fields.get("choices")
    labels = [*LETTERS]
    if isinstance(choices, dict) and isinstance(choices.get("text"), list):
        labels = [str(label) for label in choices.get("label") or LETTERS]
        fields["choices"] = choices = choices["text"]
    if isinstance(choices, list) and len(choices) > 1:
        marked = [_MARK.fullmatch(option) if isinstance(option, str) else None for option in choices]
        if [mark and mark[1] for mark in marked] == [*LETTERS[: len(choices)]]:
            fields["choices"] = [mark[2] for mark in marked if mark]
    if "answerKey" in row.fields:
        key = str(row.fields["answerKey"]).strip()
        fields["answer"] = labels.index(key) if key in labels else row.fields["answerKey"] or None
    return Row(row.where, fields)


_NAMES = {
    **{"options": "choices", "category": "subject", "answerKey": "answer", "correct": "answer"},
    **{"question_stem": "question"},
}
_MARK = re.compile(r"\(?([A-J])\s*[).:]\s*(.*)", re.DOTALL)


def _options(row: Row) -> list[str]:
    fields = row.fields
    options = fields["choices"] if "choices" in fields else [field(row, letter, _REMEDY) for letter in "ABCD"]
    if not isinstance(options, list) or not 2 <= len(options) <= len(LETTERS):
        raise DataError(f"{row.where}: 'choices' must be a list of 2 to {len(LETTERS)} options, got {options!r:.80}.")
    if not all(isinstance(option, str | int | float) and str(option).strip() for option in options):
        raise DataError(f"{row.where}: every option must be a text or a number, got {options!r:.200}.")
    return [str(option).strip() for option in options]


def _letter(row: Row, num_options: int) -> str | None:
    value = field(row, "answer", _REMEDY)
    if value is None or value == -1:  # -1 is how data sets of classes write that it is not known
        return None
    letters = LETTERS[:num_options]
    said = str(value).strip().upper()
    if not isinstance(value, bool) and said.isdecimal() and int(said) < num_options:
        return letters[int(said)]
    if len(said) == 1 and said in letters:
        return said
    raise DataError(
        f"{row.where}: 'answer' must be an index from 0 to {num_options - 1} or a letter from A to {letters[-1]}, "
        f"got {value!r:.80}."
    )
