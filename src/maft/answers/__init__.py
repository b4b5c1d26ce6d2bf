r"""Read the final answer out of a reply, and say which answers are the same.

    extract.py     reply -> answer: the last box, or where else a task looks
    canonical.py   answer -> key: equal keys are equal answers
    compare.py     two keys -> yes, no, or: this takes algebra
    verify.py      algebra, by Math-Verify in processes that can be killed (worker.py)

docs/answers.md has the rules in words, and how often they agree with other graders.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

from maft.answers import verify
from maft.answers.canonical import MAX_ANSWER_CHARS, canonical
from maft.answers.compare import components
from maft.answers.extract import extract_answer, extract_choice, extract_number, extract_stated

__all__ = [
    "MAX_ANSWER_CHARS",
    "canonical",
    "equivalent",
    "extract_answer",
    "extract_choice",
    "extract_number",
    "extract_stated",
    "group",
    "representative",
]


def equivalent(a: str, b: str) -> bool:
    r"""Say whether two answers are the same mathematics. Symmetric; not always transitive, see `group`.

    >>> equivalent(r"\frac{1}{2}", "0.50"), equivalent(r"\$1,234", "1234"), equivalent("(B)", r"\text{B}")
    (True, True, True)
    >>> equivalent(r"\sqrt{8}", r"2\sqrt{2}"), equivalent("x+1", "x-1")
    (True, False)
    """
    return verify.same([(canonical(a), canonical(b))])[0]


def group(answers: Sequence[str | None]) -> list[list[int]]:
    r"""Partition the indices of the answers into classes of equal answers; None abstains and is in no class.

    The classes are the connected components of the pairwise relation `equivalent`. Equality by pairwise
    checks need not be transitive, and components do not depend on the order in which the pairs are looked at.

    Larger classes come first, classes of one size are sorted by key, and indices ascend: reordering the
    answers only renames the indices.

    >>> group(["0.5", "7", None, r"\frac12"])
    [[0, 3], [1]]
    """
    indices_by_key: dict[str, list[int]] = {}
    for index, answer in enumerate(answers):
        if answer is not None:
            indices_by_key.setdefault(canonical(answer), []).append(index)
    keys = sorted(indices_by_key)
    pairs = list(combinations(keys, 2))
    same = dict(zip(pairs, verify.same(pairs), strict=True))
    classes: dict[int, list[int]] = {}
    for key, place in zip(keys, components(keys, lambda a, b: same[a, b]), strict=True):
        classes.setdefault(place, []).extend(indices_by_key[key])
    # A class is named by the first of its sorted keys, and its place is the place of that key.
    ordered = sorted(classes.items(), key=lambda item: (-len(item[1]), item[0]))
    return [sorted(indices) for _, indices in ordered]


def representative(answers: Iterable[str]) -> str:
    r"""Pick the text to show for a class: the shortest, then the first in code-point order.

    >>> representative([r"\frac{1}{2}", "0.5", "1/2"])
    '0.5'
    """
    return min(answers, key=lambda answer: (len(answer), answer))
