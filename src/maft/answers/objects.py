"""JSON in a reply: found, read within bounds, and compared by structure.

Keys have no order, numbers are compared by value, texts without regard to case and spacing, `true` is not 1. An object
that gives one key two different values has no meaning, nor have NaN and infinity; such JSON is not read.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator, Sequence
from itertools import groupby, islice
from math import isfinite
from typing import Any

from maft.answers.equality import ByKey, folded

MAX_CHARS = 20_000
"""JSON is looked for in the last characters of a reply only."""
MAX_DEPTH = 32
"""Deeper nesting is not read."""
MAX_STARTS = 100
"""Number of brackets at which JSON may begin that are tried, the first in the reply first."""


def values(text: str) -> Iterator[Any]:
    r"""Yield the objects and lists in a text, in order; not those within another.

    >>> list(values('First {"a": 1}, then ```json\n{"a": [2, {}]}\n``` and {"b": NaN} {"c": 1, "c": 2} {')) == [
    ...     {"a": 1}, {"a": [2, {}]}]
    True
    """
    text, place = text[-MAX_CHARS:], 0
    for _ in range(MAX_STARTS):
        starts = [start for start in (text.find(sign, place) for sign in "{[") if start >= 0]
        if not starts:
            return
        place = min(starts)
        try:
            value, end = _DECODER.raw_decode(text, place)
        except (ValueError, RecursionError):
            place = _end_of_refused(text, place)
            continue
        place = end
        if _can_be_kept(value):
            yield value


def _end_of_refused(text: str, start: int) -> int:
    """Return where JSON ends that is not read, such as one with NaN, so that no part of it is; else the next place."""
    try:
        return json.JSONDecoder().raw_decode(text, start)[1]
    except (ValueError, RecursionError):
        return start + 1


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
    """The same JSON by structure; what is no JSON is compared as text.

    >>> Json().same('{"a": 1.0, "b": "New  York"}', '{"b": "new york", "a": 1}'), Json().same("[1, 2]", "[2, 1]")
    (True, False)
    >>> Json().same('{"a": true}', '{"a": 1}'), Json().same("none", " None")
    (False, True)
    """

    name = "json"

    def key(self, answer: str) -> Hashable:
        """Return the structure without the order of keys."""
        try:
            return _key(parse(answer))
        except ValueError:
            return folded(answer)


def _key(value: Any) -> Hashable:
    if isinstance(value, dict):
        return "object", frozenset((folded(key), _key(inner)) for key, inner in value.items())
    if isinstance(value, list):
        return "list", tuple(map(_key, value))
    if isinstance(value, str):
        return "text", folded(value)
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
        if any(_key(other) != _key(first) for other in others):
            raise ValueError(f"two values of {key!r}")
    return dict(pairs)


def _number(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise ValueError(f"{text} is no number")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=_number, parse_constant=_number)
