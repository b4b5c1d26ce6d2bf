"""JSON to be filled in from a text: fields with names and types."""

from collections.abc import Mapping
from typing import Any

from maft.answers import EQUALITIES, objects, thinking
from maft.config import TaskConfig, prompts
from maft.errors import DataError
from maft.records import Problem
from maft.tasks.dataset import REMEDY
from maft.tasks.rows import Row
from maft.tasks.table import Table, field, has, made, text

_FORMS: Mapping[str, str] = {
    "text": '"..."',
    "number": "...",
    "boolean": "true or false",
    "list": "[...]",
    "any": "...",
}


class Extraction(Table):
    """Rows with a question in one column and perhaps JSON in another; answers are JSON objects with `task.fields`."""

    own_equality = EQUALITIES["json"]

    def __init__(self, settings: TaskConfig) -> None:
        super().__init__(settings)
        inside = ", ".join(f"{objects.written(name)}: {_FORMS[kind]}" for name, kind in settings.fields.items())
        self.prompts = prompts.brief(f"Answer as JSON: {{{inside}}}" if inside else "Answer as JSON.")

    def extract(self, text: str) -> str | None:
        """Return the last JSON in a reply that has all fields, without other keys."""
        answer = None
        for value in objects.values(thinking.strip(text).rest):
            answer = fitted(value, self.settings.fields) or answer
        return answer

    def show(self, answer: str) -> str:
        """Return a reply with the JSON."""
        return f"```json\n{answer}\n```"

    def problem(self, row: Row) -> Problem:
        """Take question and JSON from the columns that are named; the JSON may be missing, an object or its text."""
        name = self.settings.gold_field
        known = field(row, name, REMEDY) if name and has(row, name) else None
        answer = None if known is None else self._gold(known, row, str(name))
        return made(row, text(row, self.settings.question_field, REMEDY), answer)

    def _gold(self, known: Any, row: Row, name: str) -> str:
        try:
            value = objects.parse(known if isinstance(known, str) else objects.written(known))
        except (TypeError, ValueError) as error:
            raise DataError(f"{row.where}: {name!r} must be JSON, got {known!r:.80}: {error}.") from None
        answer = fitted(value, self.settings.fields)
        if answer is None:
            raise DataError(
                f"{row.where}: {name!r} must have the fields {_listed(self.settings.fields)}, got {known!r:.80}. "
                "Change task.fields or the answers."
            )
        return answer


def fitted(value: Any, fields: Mapping[str, str]) -> str | None:
    """Return a JSON value with the given fields alone, as text; None if one is missing or of another type.

    A number may be written as text and the other way round; null fits every type.

    >>> fitted({"n": "14", "city": "Rome", "more": 1}, {"city": "text", "n": "number"})
    '{"city": "Rome", "n": 14}'
    >>> fitted({"n": "many"}, {"n": "number"}), fitted([1], {"n": "number"}), fitted([1], {})
    (None, None, '[1]')
    """
    if not fields:
        return objects.written(value)
    if not isinstance(value, dict) or not fields.keys() <= value.keys():
        return None
    typed = {name: _typed(value[name], kind) for name, kind in fields.items()}
    return None if _NONE in typed.values() else objects.written(typed)


class _Misfit:
    """No value of the type that a field has."""


_NONE = _Misfit()


def _typed(value: Any, kind: str) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is None or kind == "any":
        return value
    if kind == "number" and isinstance(value, str):
        try:
            parsed = objects.parse(value.strip())
        except ValueError:
            return _NONE
        return _NONE if isinstance(parsed, str) else _typed(parsed, kind)
    if kind == "text" and is_number:
        return objects.written(value)
    fits = {"text": isinstance(value, str), "number": is_number, "boolean": isinstance(value, bool)}
    return value if fits.get(kind, isinstance(value, list)) else _NONE


def _listed(fields: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in fields.items()) or "of an object"
