r"""Compare keys part by part: what can be told without algebra is told here, the rest is left to a `same` of leaves.

Keys are taken apart into lists, points, intervals, unions and matrices down to leaves, which are single expressions
or equations. Two leaves may need algebra; everything around them does not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache

from maft.answers.canonical import MATRIX, MAX_ANSWER_CHARS, brackets, split, variables, without_assignment
from maft.answers.latex import GREEK, MAX_DEPTH, words
from maft.answers.structure import is_maths

MAX_LEAF_CHARS = 250
"""A longer expression is compared as it is written."""

MAX_LEAF_DEPTH = 12
"""An expression with more brackets in brackets is compared as it is written."""

MAX_KEY_CHARS = 4 * MAX_ANSWER_CHARS
"""A longer key is not taken apart."""

MAX_SOLUTIONS = 32
"""More solutions are compared as they are written: each may have to be held against each."""

Same = Callable[[str, str], bool]


def alike(a: str, b: str, same: Same, depth: int = 0) -> bool:
    r"""Compare two keys; `same` decides about leaves that are written differently.

    Solutions, sets and unions are alike if each part on one side is connected with a part on the other.

    >>> alike("(x, 2]", "(y, 2]", lambda a, b: True), alike("(x, 2]", "(x, 2)", lambda a, b: True)
    (True, False)
    """
    if a == b:
        return True
    if depth > MAX_DEPTH:
        return False
    (shape, left), (other, right) = _parts(a), _parts(b)
    if shape != other:
        # A number times a matrix against a matrix.
        return "matrix" in a and "matrix" in b and same(a, b)
    if shape == "leaf":
        return same(a, b)
    if shape.endswith("unordered"):
        if len(left) + len(right) > 2 * MAX_SOLUTIONS:
            return False
        places = components([*left, *right], lambda x, y: alike(x, y, same, depth + 1))
        return {*places[: len(left)]} == {*places[len(left) :]}
    return all(alike(x, y, same, depth + 1) for x, y in zip(left, right, strict=True))


def components(items: Sequence[str], connected: Same) -> list[int]:
    """Return for each item the number of its connected component: the place of the first item in it.

    >>> components(["a", "b", "A", "a"], lambda x, y: x.lower() == y.lower())
    [0, 1, 0, 0]
    """
    names = list(range(len(items)))
    for j in range(len(items)):
        for i in range(j):
            if names[i] != names[j] and connected(items[i], items[j]):
                low, high = sorted((names[i], names[j]))
                names = [low if name == high else name for name in names]
    return names


def verdict(a: str, b: str) -> bool | None:
    """Say whether two keys are the same mathematics; None if it takes algebra to tell."""
    if a == b:
        return True
    if (_NUMBER.fullmatch(a) and _NUMBER.fullmatch(b)) or max(len(a), len(b)) > MAX_KEY_CHARS:
        return False
    if alike(a, b, lambda x, y: leaves(x, y) is True):
        return True
    return None if alike(a, b, lambda x, y: leaves(x, y) is not False) else False


def leaves(a: str, b: str) -> bool | None:
    r"""Say whether two leaves are the same; None if it takes algebra to tell.

    Numbers and words are their keys; `y=2x` is `2x`; and expressions in different variables differ.

    >>> leaves("3/2", "2"), leaves("y=2x", "2x"), leaves("2x", "2y"), leaves("x+1", "1+x")
    (False, True, False, None)
    """
    whole = a, b
    if bool(_RELATION.search(a)) != bool(_RELATION.search(b)):
        a, b = without_assignment(a), without_assignment(b)
    if a == b or (a.casefold() == b.casefold() and len(a) == 1):
        return True
    if (_NUMBER.fullmatch(a) and _NUMBER.fullmatch(b)) or bool(_RELATION.search(a)) != bool(_RELATION.search(b)):
        return False
    if variables(a) != variables(b) or not (is_maths(a, beside=whole[1]) and is_maths(b, beside=whole[0])):
        return False
    return None if is_algebra(a) and is_algebra(b) else False


_NUMBER = re.compile(r"-?[0-9]+(?:/[0-9]+)?")
_RELATION = re.compile(r"[=<>]|\\(?:le|ge|ne)(?![A-Za-z])")
_CHARACTERS = re.compile(r"[0-9A-Za-z\s+\-*/^_{}()\[\]=<>!.|&,\\]+")
_COMMAND = re.compile(r"\\(?:[A-Za-z]+|.)")
_ALGEBRA = GREEK | words(
    r"\frac \sqrt \pi \infty \le \ge \ne \binom \begin \end \lfloor \rfloor \lceil \rceil \\ \sin \cos \tan \cot \sec"
    r" \csc \arcsin \arccos \arctan \sinh \cosh \tanh \log \ln \exp"
)
# None of these is the answer of a question, and all of them can take longer than anyone waits: 9^{9^9}, 9^{9999},
# 10000!, 1e9999. A base, 52_8, is a way to write a number that algebra programs read as a name or not at all.
_NOT_ALGEBRA = re.compile(
    r"\^\{[^{}]*(?:\^|\}\^|[0-9]{4})|[0-9]{4,}!|!!|[0-9][eE][-+]?[0-9]{3}|[0-9)}]_|[A-Za-z]{4}|\.\.\."
)

# Is 1/2x the half of x, or one over 2x?
_AMBIGUOUS = re.compile(r"/ ?(?:[0-9.]+|[A-Za-z]) ?(?:[A-Za-z(]|\\(?!le|ge|ne|end|\\))")


@lru_cache(maxsize=4096)
def is_algebra(leaf: str) -> bool:
    r"""Say whether a leaf is worth the asking: short, shallow, of known commands, and with small exponents only.

    >>> is_algebra(r"2\sqrt{2}"), is_algebra("evelyn"), is_algebra("9^{9^{9}}"), is_algebra("__import__('os')")
    (True, False, False, False)
    """
    if len(leaf) > MAX_LEAF_CHARS or not _CHARACTERS.fullmatch(leaf) or _deepest(leaf) > MAX_LEAF_DEPTH:
        return False
    if _AMBIGUOUS.search(leaf):
        return False
    plain = re.sub(r"\\(?:begin|end)\{pmatrix\}", "", leaf)
    return not _NOT_ALGEBRA.search(_COMMAND.sub(" ", plain)) and _ALGEBRA.issuperset(_COMMAND.findall(leaf))


def _deepest(text: str) -> int:
    depth = deepest = 0
    for sign in text:
        depth += (sign in "({[") - (sign in ")}]")
        deepest = max(deepest, depth)
    return deepest


@lru_cache(maxsize=4096)
def _parts(key: str) -> tuple[str, Sequence[str]]:
    """Take a key apart: its shape, and the parts of it. Keys of one ordered shape have equally many parts."""
    if "\n" in key:
        return "leaf", [key]
    if matrix := MATRIX.fullmatch(key):
        rows = [row.split("&") for row in matrix[1].split(r"\\")]
        return f"matrix {[len(row) for row in rows]}", [cell for row in rows for cell in row]
    if len(parts := split(key, r"\cup")) > 1:
        return "union unordered", parts
    if len(parts := split(key, ",")) > 1:
        return "solutions unordered", parts
    if bracketed := brackets(key):
        opening, inside, closing = bracketed
        parts = split(inside, ",")
        if opening == r"\{":
            return "set unordered", parts
        return f"{opening}{len(parts)}{closing}", parts
    return "leaf", [key]
