r"""Which answers to one question are the same: a rule of the task, asked once for all answers of a debate.

mathematics        `\frac12` is `0.5`; the rules are in docs/answers.md
text               the same words; case and spacing do not count
exact              the same characters
sequence           the same tokens in the same order and lines; `1.0` is `1`, `Uryyb` is not `uryyb`
folded_sequence    the same, without regard to case
json, exact_json   the same JSON, keys in any order; see objects.py
tokens             the same normalised tokens; see tokens.py
embedding, judge   the same meaning, see meaning.py
"""

from __future__ import annotations

import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Sequence
from fractions import Fraction
from itertools import combinations
from typing import ClassVar

from maft.answers import verify
from maft.answers.canonical import canonical
from maft.answers.compare import components
from maft.answers.latex import FONT
from maft.records import Problem

Classes = tuple[int | None, ...]
"""The class of each answer, numbered from 0 in the order of first appearance; None for an answer that is None."""


class Equality(ABC):
    """Divides the answers to a question into classes of equal answers."""

    name: ClassVar[str]

    @abstractmethod
    def classes(self, answers: Sequence[str | None], problem: Problem | None = None) -> Classes:
        """Return the class of each answer.

        The division must not depend on the order of the answers, and equal texts must be in one class.

        Args:
            answers: None abstains.
            problem: the question, for rules that need it. Votes leave out its known answer.
        """

    def knows(self, a: str, b: str, problem: Problem) -> bool:
        """Say whether two answers can be compared; some equalities have to ask somebody first."""
        return True

    def medoid(self, answers: Iterable[str]) -> str:
        """Return the answer that stands for a class of equal ones."""
        return representative(answers)

    def same(self, a: str, b: str, problem: Problem | None = None) -> bool:
        """Say whether two answers are the same; one without a class is like no other."""
        first, second = self.classes((a, b), problem)
        return first is not None and first == second


def representative(answers: Iterable[str]) -> str:
    r"""Pick the text to show for a class: the shortest, then the first in code-point order.

    >>> representative([r"\frac{1}{2}", "0.5", "1/2"])
    '0.5'
    """
    return min(answers, key=lambda answer: (len(answer), answer))


def numbered(keys: Iterable[Hashable | None]) -> Classes:
    """Number keys by first appearance; None stays None.

    >>> numbered(["b", None, "a", "b"])
    (0, None, 1, 0)
    """
    places: dict[Hashable, int] = {}
    return tuple(None if key is None else places.setdefault(key, len(places)) for key in keys)


class Mathematics(Equality):
    r"""Equal values and expressions: the connected components of pairwise equality, which need not be transitive.

    >>> Mathematics().classes(["0.5", "7", None, r"\frac12"])
    (0, 1, None, 0)
    """

    name = "mathematics"

    def classes(self, answers: Sequence[str | None], problem: Problem | None = None) -> Classes:
        """Compare the canonical forms of the answers; what takes algebra is asked of Math-Verify."""
        keys = [None if answer is None else canonical(answer) for answer in answers]
        distinct = sorted({key for key in keys if key is not None})
        pairs = list(combinations(distinct, 2))
        equal = dict(zip(pairs, verify.verifier.same(pairs), strict=True))
        places = dict(zip(distinct, components(distinct, lambda a, b: equal[a, b]), strict=True))
        return numbered(None if key is None else places[key] for key in keys)


class ByKey(Equality):
    """Answers with the same key are the same."""

    @abstractmethod
    def key(self, answer: str) -> Hashable:
        """Return what an answer is compared by."""

    def classes(self, answers: Sequence[str | None], problem: Problem | None = None) -> Classes:
        """Compare keys."""
        return numbered(None if answer is None else self.key(answer) for answer in answers)


class Exact(ByKey):
    r"""The same characters, without regard to spaces at the ends.

    >>> Exact().same("Dog", "dog"), Text().same(" Big  Dog", "big dog"), Text().same(r"\text{B}", "B")
    (False, True, True)
    """

    name = "exact"

    def key(self, answer: str) -> str:
        """Return the text."""
        return answer.strip()


class Text(ByKey):
    """The same words: case, spacing and a LaTeX command around the text do not count."""

    name = "text"

    def key(self, answer: str) -> str:
        """Return the text in one spelling."""
        return folded(_plain(answer))


class TokenSequence(ByKey):
    r"""The same tokens in the same order, line by line; tokens that are numbers are compared by value.

    Commas and semicolons separate the tokens of a line, spaces where there are none. Brackets around the whole
    answer, empty lines and quotation marks do not count.

    >>> equality = TokenSequence()
    >>> equality.same("[1, 2.0, 3]", "1 2 3"), equality.same("1 2 3", "3 2 1"), equality.same("1 2\n3", "1 2 3")
    (True, False, False)
    """

    name = "sequence"
    fold: ClassVar[bool] = False
    """Whether case does not count."""

    def key(self, answer: str) -> Hashable:
        """Return the tokens of each line."""
        text = _without_brackets(_plain(answer))
        lines = (self._tokens(line) for line in text.splitlines())
        return tuple(line for line in lines if line)

    def _tokens(self, line: str) -> tuple[str | Fraction, ...]:
        separator = r"[,;]" if re.search("[,;]", line) else r"\s"
        parts = (" ".join(part.split()) for part in re.split(rf"([\[\](){{}}])|{separator}", line) if part)
        tokens = (part.strip("\"'`") or part for part in parts if part)
        return tuple(_value(token.casefold() if self.fold else token) for token in tokens)


class FoldedSequence(TokenSequence):
    """The same, without regard to case."""

    name = "folded_sequence"
    fold = True


def folded(text: str) -> str:
    r"""Return a text without regard to case and spacing.

    >>> folded(" Big\n Dog")
    'big dog'
    """
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


_NUMBER = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,99})(?:\.[0-9]{1,99})?")
_CLOSING = {"[": "]", "(": ")", "{": "}"}


def _plain(answer: str) -> str:
    """Return an answer without a LaTeX command around it, in composed characters."""
    text = unicodedata.normalize("NFC", answer).strip()
    wrapped = FONT.fullmatch(text)
    return wrapped[1].strip() if wrapped else text


def _value(token: str) -> str | Fraction:
    """Return the value of a number, else the token; `007` and `1/2` are no numbers here.

    >>> _value("2.50") == _value("2.5"), _value("007")
    (True, '007')
    """
    plain = token.replace("−", "-")
    return Fraction(plain) if _NUMBER.fullmatch(plain) else token


def _without_brackets(text: str) -> str:
    """Return a text without the brackets that enclose all of it.

    >>> _without_brackets("[(1, 2), 3]"), _without_brackets("(1), (2)")
    ('(1, 2), 3', '(1), (2)')
    """
    closing = _CLOSING.get(text[:1])
    if closing is None:
        return text
    depth = 0
    for place, sign in enumerate(text):
        depth += (sign == text[0]) - (sign == closing)
        if depth == 0:
            return text[1:-1] if place == len(text) - 1 else text
    return text
