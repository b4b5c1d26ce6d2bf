"""Looks at a file of questions, and finds the settings of `task` that fit it."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from maft.answers import canonical, extract_stated, gold
from maft.answers.structure import is_maths
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
CODE = ("entry_point", "test_list", "public_tests", "canonical_solution")
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
    if empty := [row for row in rows if not _known(row, question)]:
        raise DataError(
            f"{empty[0].where}: {question!r} is empty, as in {len(empty):,} of {len(rows):,} rows. Give these rows a "
            "text, or remove them."
        )
    answer = _column(rows, tuple(name for name in ANSWERS if name != question), "an answer")
    answers = [_known(row, answer) for row in rows] if answer else []
    known = [text for text in answers if text is not None]
    base = {"question_field": question, "gold_field": answer}
    looked = Looked(len(rows), columns, "", len(known), {"name": "dataset", **base})
    options = next((name for name in CHOICES if name in columns), None)
    if options and "question" in columns:
        return looked._replace(kind="choices", task={"name": "mmlu"})
    if options in ("choices", "options"):
        why = (
            f"Column {options} is not shown to agents. If it has options to choose from, rename {question} to question "
            "and the index or letter of the right one to answer; the task is then mmlu."
        )
        looked = looked._replace(notes=(why,))
    if set(columns) & set(CODE):
        return looked._replace(kind="programs", task={"name": "code"})
    if not known:
        why = "No known answers, so accuracy cannot be measured. Add known answers to some questions."
        return looked._replace(kind="unknown", notes=(*looked.notes, why))
    return _by_answers(looked, known)


def _by_answers(looked: Looked, known: Sequence[str]) -> Looked:
    """Choose by what the known answers are."""
    read = [gold.read(text, extract_stated) for text in known]
    labels = {text.strip().casefold(): text.strip() for text in reversed(known)}
    objects = [value for text in known if isinstance(value := _json(text), dict)]
    if _mostly(len(objects) * [True] + (len(known) - len(objects)) * [False]):
        task = {**looked.task, "name": "extraction", "fields": _fields(objects)}
        return looked._replace(kind="JSON objects", task=task)
    if _mostly(re.search(r"\d|\\", text) and is_maths(canonical(text)) for text in read):
        return looked._replace(kind="numbers and formulas")
    if 2 <= len(labels) <= min(MAX_LABELS, max(2, len(known) // 3)) and not any(map(gold.is_worked, known)):
        task = {**looked.task, "name": "classification", "labels": sorted(labels.values())}
        return looked._replace(kind=f"{len(labels)} labels", task=task)
    if _mostly(not gold.is_worked(text) for text in read):
        return looked._replace(kind="short texts", task={**looked.task, "name": "text"})
    why = "Known answers are long texts, which are compared by meaning: see docs/howto/text.md, or give answers alone."
    task = {**looked.task, "name": "text", "equality": "embedding"}
    return looked._replace(kind="long texts", task=task, notes=(*looked.notes, why))


def _fields(objects: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the fields that all objects have, with the type of each."""
    kinds = {str: "text", bool: "boolean", int: "number", float: "number", list: "list"}
    fields = {}
    for name in objects[0]:
        if all(name in one for one in objects):
            types = {kinds.get(type(one[name]), "any") for one in objects if one[name] is not None}
            fields[name] = types.pop() if len(types) == 1 else "any"
    return fields


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
    value = row.fields.get(name)
    if isinstance(value, dict):
        return json.dumps(value)
    try:
        return known_answer(row, name, "")
    except DataError:  # an empty text, or a list
        return None


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _mostly(truths: Iterable[object]) -> bool:
    values = [bool(truth) for truth in truths]
    return sum(values) >= SHARE * len(values)
