"""Questions of one's own, from local JSONL files; gold answers are optional."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from maft.answers import extract_answer
from maft.config import TaskConfig
from maft.errors import ConfigError, DataError
from maft.records import Problem
from maft.tasks.base import Split, normalised, split_by_key


class Jsonl:
    """One JSON object a line, with the question and perhaps the answer under the names given in the config."""

    prompts: Mapping[str, str] = {}

    def extract(self, text: str) -> str | None:
        """Take the boxed answer."""
        return extract_answer(text)

    def questions(self, settings: TaskConfig) -> Split:
        """Read the training and the held-out file, or divide one file by seed."""
        if settings.train_file is None:
            raise ConfigError("task.train_file is missing: task jsonl needs the path of a file with a question a line.")
        train = read(settings.train_file, settings)
        if settings.eval_file is None:
            return split_by_key(train, settings)
        return Split(train, read(settings.eval_file, settings))


def read(path: Path, settings: TaskConfig) -> list[Problem]:
    """Read questions; one that occurs twice, by normalised text, is kept once.

    Raises:
        DataError: the file or a line cannot be read, or lacks the question; names the line and the fields it has.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}. Check task.train_file and task.eval_file.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 at byte {error.start}. Convert it to UTF-8.") from None
    problems = [_problem(line, f"{path}, line {n}", settings) for n, line in enumerate(lines, 1) if line.strip()]
    kept: dict[str, Problem] = {}
    for problem in problems:
        kept.setdefault(normalised(problem.question), problem)
    return list(kept.values())


def _problem(line: str, where: str, settings: TaskConfig) -> Problem:
    try:
        row = json.loads(line)
        json.dumps(row, ensure_ascii=False).encode()  # half a surrogate pair, "\\ud800", is JSON but no text
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {error}. Got {line[:80]!r}.") from None
    if not isinstance(row, dict):
        raise DataError(f"{where} must be a JSON object, got {type(row).__name__}.")
    for name in filter(None, (settings.question_field, settings.gold_field)):
        if name not in row:
            raise DataError(
                f"{where} has no field {name!r}; it has {', '.join(map(repr, row))}. "
                "Set task.question_field and task.gold_field (null where no answers are known)."
            )
    question = row[settings.question_field]
    gold = row[settings.gold_field] if settings.gold_field else None
    if not isinstance(question, str) or not question.strip():
        raise DataError(f"{where}: {settings.question_field!r} must be a text, got {question!r}.")
    if gold is not None and not isinstance(gold, str | int | float):
        raise DataError(f"{where}: {settings.gold_field!r} must be a text or a number, got {gold!r}.")
    digest = hashlib.blake2b(normalised(question).encode(), digest_size=6).hexdigest()
    own = row.get("id")
    return Problem(id=digest if own is None else str(own), question=question, gold=None if gold is None else str(gold))
