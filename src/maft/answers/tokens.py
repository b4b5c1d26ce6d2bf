"""Short answers and lists by their normalised tokens, as SQuAD compares them (Rajpurkar et al., 2016)."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Hashable

from maft.answers.equality import ByKey

_BETWEEN = re.compile(r"\s*(?:[,;]|\n\s*(?:[-*•]|\d{1,2}[.)])?|(?<=\s)(?:and|or|&)(?=\s))\s*", re.IGNORECASE)
_THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])")
_IN_NUMBER = re.compile(r"(?<=\d)[./:](?=\d)|(?<=\d)[-−–](?=\d)|(?<!\w)[-−](?=\.?\d)")
_KEPT = {".": "\ue000", "/": "\ue001", ":": "\ue002"}
"""Signs that are no punctuation in place of those that change a number; a hyphen becomes a minus."""
_ARTICLES = ("a", "an", "the")


def normalised(text: str) -> tuple[str, ...]:
    """Return the tokens of a text without case, punctuation and articles.

    >>> normalised("The  U.S. President's dog!")
    ('us', 'presidents', 'dog')
    """
    plain = "".join(sign for sign in unicodedata.normalize("NFC", text) if unicodedata.category(sign)[0] != "P")
    tokens = plain.casefold().split()
    return tuple(token for token in tokens if token not in _ARTICLES) or tuple(tokens)


def f1(a: str, b: str) -> float:
    """Return the harmonic mean of precision and recall of the normalised tokens of two texts.

    >>> f1("the red house", "a house"), f1("", "x")
    (0.6666666666666666, 0.0)
    """
    first, second = Counter(normalised(a)), Counter(normalised(b))
    if not first or not second:
        return float(first == second)
    shared = (first & second).total()
    return 2 * shared / (first.total() + second.total())


class Tokens(ByKey):
    """The same normalised tokens in the same order; in a list with commas, semicolons, "and" or lines, in any order.

    Signs within a number, and a minus before it, count, unlike in SQuAD, where 1.5 is 15.

    >>> same = Tokens().same
    >>> same("The Eiffel Tower.", "eiffel tower"), same("red, green and blue", "blue; red; green")
    (True, True)
    >>> same("1.5", "15"), same("-5", "5"), same("3,4,5", "345"), same("1,234", "1234")
    (False, False, False, True)
    >>> same("house boat", "boat house"), same("the", "a")
    (False, False)
    """

    name = "tokens"

    def key(self, answer: str) -> Hashable:
        """Return the tokens of each item."""
        text = _THOUSANDS.sub(lambda match: match[0].replace(",", ""), answer)
        text = _IN_NUMBER.sub(lambda match: _KEPT.get(match[0], "−"), text)
        items = [item for part in _BETWEEN.split(text) if (item := normalised(part))]
        return tuple(sorted(items)) if items else answer.strip().casefold()
