"""Values of a program as JSON, so that another process can compare them without trusting the one that made them.

Plain values (numbers, texts, bytes, lists, tuples, dicts, sets) keep what `==` sees of them; iterators are unrolled; of
other objects there is the name of the type and a representation, or their attributes where that says nothing.
Functions, coroutines and classes of the program have a name only, which does not say what they do: they cannot be
compared.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

MAX_DEPTH = 60
MAX_ITEMS = 20_000
"""Values inside a value. More is too large to be compared."""
_SAYS_NOTHING: Any = object.__repr__
PROGRAM = "program"
"""Module of what a program defines."""


class TooMuch(ValueError):
    """The value is too large or too deep."""


class Incomparable(Exception):
    """Nothing in the value says whether it is equal to another."""

    word = "a value that cannot be compared"


def encode(value: Any) -> Any:
    """Return a value as JSON: null, true and texts as they are, all else as [kind, content].

    Raises:
        TooMuch: it is too large.
        Incomparable: it is or holds a function, or an object that shows nothing but its address.
    """
    left = MAX_ITEMS

    def inner(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > MAX_DEPTH:
            raise TooMuch
        if value is None or value is True or value is False:
            return value
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, int):
            return ["int", hex(int.__int__(value))]
        if isinstance(value, float):
            return ["float", float.__repr__(value)]
        if isinstance(value, complex):
            return ["complex", [complex.__repr__(value)]]
        if isinstance(value, bytes | bytearray):
            return ["bytes", bytes(value).hex()]
        if isinstance(value, list):
            return ["list", [inner(item, depth + 1) for item in list.__iter__(value)]]
        if isinstance(value, tuple):
            return ["tuple", [inner(item, depth + 1) for item in tuple.__iter__(value)]]
        if isinstance(value, set | frozenset):
            return ["set", sorted((inner(item, depth + 1) for item in value), key=json.dumps)]
        if isinstance(value, dict):
            pairs = [[inner(key, depth + 1), inner(item, depth + 1)] for key, item in dict.items(value)]
            return ["dict", sorted(pairs, key=json.dumps)]
        if hasattr(type(value), "__iter__"):
            return ["iterable", [inner(item, depth + 1) for item in value]]
        if isinstance(value, type) and value.__module__ == PROGRAM:
            raise Incomparable
        text, addresses = re.subn("0x[0-9a-f]+", "", repr(value))
        if type(value).__repr__ is _SAYS_NOTHING and hasattr(value, "__dict__"):
            text += json.dumps(inner(value.__dict__, depth + 1))
        elif addresses:
            raise Incomparable
        return ["object", [type(value).__name__, text]]

    return inner(value, 0)


def decode(content: Any) -> Any:
    """Return the value of what `encode` made; an object of an unknown type is its representation.

    Raises:
        ValueError: it is something else.
    """
    if content is None or isinstance(content, bool | str):
        return content
    if not (isinstance(content, list) and len(content) == 2 and isinstance(content[0], str)):
        raise ValueError("no encoded value")
    kind, inside = content
    try:
        if kind in ("list", "iterable"):
            return [decode(item) for item in inside]
        if kind == "tuple":
            return tuple(decode(item) for item in inside)
        if kind == "set":
            return {decode(item) for item in inside}
        if kind == "dict":
            return {decode(key): decode(item) for key, item in inside}
        if kind == "object":
            return str(inside[1])
        return _SIMPLE[kind](inside)
    except (TypeError, KeyError, IndexError, RecursionError) as error:
        raise ValueError(f"no encoded value: {error}") from None


_SIMPLE: dict[str, Any] = {
    "int": lambda text: int(text, 16),
    "float": float,
    "complex": lambda text: complex(text[0]),
    "bytes": bytes.fromhex,
}


def comparable(content: Any, depth: int = 0) -> Any:
    """Return an encoded value so that values which Python holds to be equal are the same JSON.

    1, 1.0 and True are equal; floats count to nine digits; NaN is equal to itself.

    Raises:
        ValueError: it is no encoded value, or too deep.
    """
    if depth > MAX_DEPTH + 1:
        raise TooMuch
    if isinstance(content, bool):
        return ["number", str(int(content))]
    if not isinstance(content, list):
        return content
    kind, inside = content
    if kind == "int":
        value = int(inside, 16)
        return ["number", hex(value) if abs(value) >= 10**9 else str(value)]
    if kind == "float":
        return ["number", _float(float(inside))]
    if kind in ("list", "tuple", "iterable"):
        return [kind, [comparable(item, depth + 1) for item in inside]]
    if kind == "set":
        return [kind, sorted((comparable(item, depth + 1) for item in inside), key=json.dumps)]
    if kind == "dict":
        pairs = ([comparable(key, depth + 1), comparable(item, depth + 1)] for key, item in inside)
        return [kind, sorted(pairs, key=json.dumps)]
    return content


def _float(value: float) -> str:
    if not math.isfinite(value):
        return repr(value)
    if abs(value) < 1e-12:
        return "0"
    rounded = float(f"{value:.9g}")
    if rounded.is_integer():
        return str(int(rounded)) if abs(rounded) < 10**9 else hex(int(value)) if value.is_integer() else repr(rounded)
    return repr(rounded)
