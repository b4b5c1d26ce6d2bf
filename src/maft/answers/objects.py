"""JSON in a reply: found, read within bounds, and compared by structure.

Keys have no order, numbers are compared by value, texts without regard to case and spacing (or exactly, see
`ExactJson`), `true` is not 1. An object that gives one key two different values has no meaning, nor have NaN and
infinity; such JSON is not read, and no part of it, or of JSON that was cut.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import groupby, islice
from math import isfinite
from typing import Any, ClassVar

from maft.answers.equality import ByKey, folded

MAX_CHARS = 20_000
"""Longer JSON is not read."""
MAX_DEPTH = 32
"""Deeper nesting is not read."""


def values(text: str) -> Iterator[Any]:
    r"""Yield the objects and lists in a text, in order; not those within another.

    >>> list(values('First {"a": 1}, then ```json\n{"a": [2, {}]}\n``` and {"b": NaN} {"c": 1, "c": 2} {')) == [
    ...     {"a": 1}, {"a": [2, {}]}]
    True
    """
    place = 0
    while bracket := _OPEN.search(text, place):
        try:
            value, place = _DECODER.raw_decode(text, bracket.start())
        except (ValueError, RecursionError):
            place = _end_of_refused(text, bracket.start())
            continue
        if place - bracket.start() <= MAX_CHARS and _can_be_kept(value):
            yield value


_OPEN, _BRACKET = re.compile(r"[\[{]"), re.compile(r"[\[{\]}]")


def _end_of_refused(text: str, start: int) -> int:
    """Return where JSON ends that cannot be read: no part of it is an answer. Of text in brackets, the next place.

    It is JSON if its first key or item is; it ends where its brackets are closed, or never.
    """
    try:
        return _LENIENT.raw_decode(text, start)[1]
    except json.JSONDecodeError as error:
        if error.pos <= start + 1 or not text[start + 1 : error.pos].strip():
            return error.pos if not error.msg.startswith("Unterminated") else len(text)
        reached = error.pos
    except (ValueError, RecursionError):
        reached = start + 1
    depth = 0
    for bracket in _BRACKET.finditer(text, start):
        depth += 1 if bracket[0] in "[{" else -1
        if depth == 0:
            return max(bracket.end(), reached)
    return len(text)


_LENIENT = json.JSONDecoder(strict=False)
"""Reads what `_DECODER` refuses for its values, or for line ends within a text."""


def parse(text: str) -> Any:
    """Return the value of a text that is JSON and nothing else.

    Raises:
        ValueError: it is not, or it is too long or too deep.
    """
    try:
        value = _DECODER.decode(text) if len(text) <= MAX_CHARS else None
    except RecursionError:
        value = None
    if value is None or not _can_be_kept(value):
        raise ValueError(f"no JSON of at most {MAX_CHARS} characters and {MAX_DEPTH} levels")
    return value


def written(value: Any) -> str:
    """Return a value as one line of JSON."""
    return json.dumps(value, ensure_ascii=False)


class Json(ByKey):
    """The same JSON by structure, texts without regard to case and spacing; what is no JSON is compared as text.

    >>> Json().same('{"a": 1.0, "b": "New  York"}', '{"b": "new york", "a": 1}'), Json().same("[1, 2]", "[2, 1]")
    (True, False)
    >>> Json().same('{"a": true}', '{"a": 1}'), Json().same("none", " None")
    (False, True)
    """

    name = "json"
    fold: ClassVar[bool] = True
    """Whether case and spacing of texts do not count."""

    def key(self, answer: str) -> Hashable:
        """Return the structure without the order of keys."""
        text = folded if self.fold else str.strip
        try:
            return _key(parse(answer), text)
        except ValueError:
            return text(answer)


class ExactJson(Json):
    """The same, and each text by its characters.

    >>> ExactJson().same('{"a": 1, "b": "x"}', '{"b": "x", "a": 1.0}'), ExactJson().same('["X"]', '["x"]')
    (True, False)
    """

    name = "exact_json"
    fold = False


def _key(value: Any, text: Callable[[str], str]) -> Hashable:
    if isinstance(value, dict):
        return "object", frozenset((text(key), _key(inner, text)) for key, inner in value.items())
    if isinstance(value, list):
        return "list", tuple(_key(inner, text) for inner in value)
    if isinstance(value, str):
        return "text", text(value)
    return type(value).__name__ if value is None or isinstance(value, bool) else "number", value


def _can_be_kept(value: Any) -> bool:
    try:
        return _depth(value) <= MAX_DEPTH and bool(written(value).encode())
    except UnicodeEncodeError:  # half a surrogate pair, "\ud800", is JSON but no text
        return False


def _depth(value: Any) -> int:
    """Return the number of levels of a value, counted to one more than is allowed."""
    level, depth = [value], 0
    while level and depth <= MAX_DEPTH:
        depth += 1
        inner = (x.values() if isinstance(x, dict) else x for x in level if isinstance(x, dict | list))
        level = [x for part in inner for x in part]
    return depth


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    by_key = sorted(pairs, key=lambda pair: pair[0])
    for key, group in groupby(by_key, lambda pair: pair[0]):
        first, *others = (value for _, value in islice(group, None))
        if any(_key(other, str) != _key(first, str) for other in others):
            raise ValueError(f"two values of {key!r}")
    return dict(pairs)


def _number(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise ValueError(f"{text} is no number")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=_number, parse_constant=_number)
