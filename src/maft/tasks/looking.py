"""Looks at a file of questions, and finds the settings of `task` that fit it."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from maft.answers import canonical, extract_stated, gold
from maft.answers.structure import is_maths
from maft.config import TASK_SETTINGS
from maft.errors import DataError
from maft.tasks import rows as rows_
from maft.tasks.rows import Row
from maft.tasks.table import has, known_answer

QUESTIONS = (
    "question",
    "problem",
    "prompt",
    "prompt.0.content",
    "messages.0.content",
    "query",
    "input",
    "instruction",
    "text",
)
"""Columns that hold the question in data sets of others, the likeliest first."""
ANSWERS = (
    *("answer", "gold", "final_answer", "expected_answer", "ground_truth", "reward_model.ground_truth", "target"),
    *("label", "expected", "output", "reference", "completion", "response", "solution"),
)
"""Columns that hold the known answer."""
CHOICES = ("choices", "options", "A")
TESTS = ("tests", "test", "test_list", "test_cases", "entry_point")
MAX_LABELS = 20
SHARE = 0.9
"""Share of the known answers that must be of a kind."""


class Looked(NamedTuple):
    """What a file of questions holds, and the task that fits."""

    rows: int
    columns: tuple[str, ...]
    kind: str
    """What the known answers are, in a few words."""
    known: int
    """Questions with a known answer."""
    task: Mapping[str, Any]
    """Settings of `task` besides the files and numbers."""
    notes: tuple[str, ...] = ()
    """What somebody should know who uses these settings."""


def look(file: Path) -> Looked:
    """Read a file of questions and choose a task for it by its columns and known answers.

    Raises:
        DataError: it cannot be read, is empty, or no column holds questions.
    """
    rows = rows_.from_file(file)
    if not rows:
        raise DataError(f"{file} holds no questions.")
    columns = tuple(dict.fromkeys(name for row in rows[:1000] for name in row.fields))
    question = _column(rows, QUESTIONS, "a question") or _longest_text(rows)
    if question is None:
        raise DataError(
            f"{file} has no column of texts that could be questions; it has {', '.join(map(repr, columns))}. "
            "Give each question a line with a field `question`."
        )
    answer = _column(rows, tuple(name for name in ANSWERS if name != question), "an answer")
    answers = [_known(row, answer) for row in rows] if answer else []
    known = [text for text in answers if text is not None]
    base = {"question_field": question, "gold_field": answer}
    looked = Looked(len(rows), columns, "", len(known), {"name": "dataset", **base})
    if set(columns) & set(CHOICES) and "question" in columns:
        return looked._replace(kind="choices", task={"name": "mmlu"})
    if set(columns) & set(TESTS) and "code" in TASK_SETTINGS:
        return looked._replace(kind="programs with tests", task={"name": "code"})
    if not known:
        why = "There is no known answer, so that accuracy will not be known: give some to a part of the questions."
        return looked._replace(kind="unknown", notes=(why,))
    return _by_answers(looked, known)


def _by_answers(looked: Looked, known: Sequence[str]) -> Looked:
    """Choose by what the known answers are."""
    read = [gold.read(text, extract_stated) for text in known]
    labels = {text.strip().casefold() for text in known}
    task = dict(looked.task)
    if _mostly(re.search(r"\d|\\", text) and is_maths(canonical(text)) for text in read):
        return looked._replace(kind="numbers and formulas")
    if _mostly(_is_object(text) for text in known):
        return looked._replace(kind="JSON objects", task=_instead(task, "extraction", "exact"))
    if len(labels) <= min(MAX_LABELS, max(2, len(known) // 3)) and not any(map(gold.is_worked, known)):
        return looked._replace(kind=f"{len(labels)} labels", task=_instead(task, "labels", "text"))
    task = _instead(task, "text", "text")
    if _mostly(not gold.is_worked(text) for text in read):
        return looked._replace(kind="short texts", task=task)
    why = "Known answers are long texts. A vote needs answers that can be equal: give them alone, boxed, or after ####."
    return looked._replace(kind="long texts", task=task, notes=(why,))


def _instead(task: Mapping[str, Any], name: str, equality: str) -> dict[str, Any]:
    """Return the task of this name where there is one; else a data set with this equality."""
    if name not in TASK_SETTINGS:
        return {**task, "equality": equality}
    return {"name": name, **{key: task[key] for key in task if key in TASK_SETTINGS[name]}}


def _column(rows: Sequence[Row], names: Iterable[str], what: str) -> str | None:
    """Return the first of these columns that some row has, with a text or number in it."""
    return next((name for name in names if any(has(row, name) and _known(row, name) for row in rows)), None)


def _longest_text(rows: Sequence[Row]) -> str | None:
    """Return the column with the longest texts."""
    lengths: dict[str, int] = {}
    for row in rows:
        for name, value in row.fields.items():
            if isinstance(value, str):
                lengths[name] = lengths.get(name, 0) + len(value)
    return max(lengths, key=lambda name: lengths[name], default=None)


def _known(row: Row, name: str) -> str | None:
    try:
        return known_answer(row, name, "")
    except DataError:  # an empty text, or a list
        return None


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict | list)
    except ValueError:
        return False


def _mostly(truths: Iterable[object]) -> bool:
    values = [bool(truth) for truth in truths]
    return sum(values) >= SHARE * len(values)
