r"""Read the final answer out of a reply, and say which answers are the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from maft.answers.canonical import MAX_ANSWER_CHARS, canonical
from maft.answers.extract import extract_answer, extract_number

__all__ = ["MAX_ANSWER_CHARS", "canonical", "equivalent", "extract_answer", "extract_number", "group", "representative"]


def equivalent(a: str, b: str) -> bool:
    r"""Say whether two answers are the same mathematics, as far as `canonical` can tell.

    >>> equivalent(r"\frac{1}{2}", "0.50"), equivalent(r"\$1,234", "1234"), equivalent("(B)", r"\text{B}")
    (True, True, True)
    """
    return canonical(a) == canonical(b)


def group(answers: Sequence[str | None]) -> list[list[int]]:
    r"""Partition the indices of the answers into classes of equal answers; None abstains and is in no class.

    The classes are the connected components of the pairwise relation `equivalent`. Equality by pairwise
    checks need not be transitive, and components do not depend on the order in which the pairs are looked at.
    Here `equivalent` compares keys, so the components are simply the answers with the same key.

    Larger classes come first, classes of one size are sorted by key, and indices ascend: reordering the
    answers only renames the indices.

    >>> group(["0.5", "7", None, r"\frac12"])
    [[0, 3], [1]]
    """
    indices_by_key: dict[str, list[int]] = {}
    for index, answer in enumerate(answers):
        if answer is not None:
            indices_by_key.setdefault(canonical(answer), []).append(index)
    ordered = sorted(indices_by_key.items(), key=lambda item: (-len(item[1]), item[0]))
    return [indices for _, indices in ordered]


def representative(answers: Iterable[str]) -> str:
    r"""Pick the text to show for a class: the shortest, then the first in code-point order.

    >>> representative([r"\frac{1}{2}", "0.5", "1/2"])
    '0.5'
    """
    return min(answers, key=lambda answer: (len(answer), answer))
