r"""Read the final answer out of a reply, and say which answers are the same.

    thinking.py    reply -> what the model thought, and the rest
    extract.py     the rest -> answer: the last box, or where else a task looks
    canonical.py   answer -> key: equal keys are equal answers (latex.py, units.py)
    structure.py   what is mathematics and what is text
    compare.py     two keys -> yes, no, or: this takes algebra
    equality.py    the rules of tasks: mathematics, text, sequences
    objects.py     JSON in a reply, and by structure
    labels.py      a label out of a fixed set
    tokens.py      short answers and lists, by normalised tokens
    meaning.py     texts that mean the same, by embeddings or a judge
    verify.py      algebra, by Math-Verify in processes that can be killed (worker.py)

docs/answers.md has the rules in words, and how often they agree with other graders.
"""

from __future__ import annotations

from collections.abc import Mapping

from maft.answers.canonical import MAX_ANSWER_CHARS, canonical
from maft.answers.equality import Equality, Exact, FoldedSequence, Mathematics, Text, TokenSequence
from maft.answers.extract import extract_answer, extract_choice, extract_number, extract_stated
from maft.answers.objects import ExactJson, Json
from maft.answers.tokens import Tokens

__all__ = [
    "EQUALITIES",
    "MAX_ANSWER_CHARS",
    "MEANINGS",
    "Equality",
    "canonical",
    "equivalent",
    "extract_answer",
    "extract_choice",
    "extract_number",
    "extract_stated",
]

MEANINGS = ("embedding", "judge")
"""Equalities that need a model, see `maft.tasks.base.Task.equality`."""
EQUALITIES: Mapping[str, type[Equality]] = {
    equality.name: equality
    for equality in (Mathematics, Text, Exact, TokenSequence, FoldedSequence, Json, ExactJson, Tokens)
}


def equivalent(a: str, b: str) -> bool:
    r"""Say whether two answers are the same mathematics. Symmetric; not always transitive, unlike `equality.classes`.

    >>> equivalent(r"\frac{1}{2}", "0.50"), equivalent(r"\$1,234", "1234"), equivalent("(B)", r"\text{B}")
    (True, True, True)
    >>> equivalent(r"\sqrt{8}", r"2\sqrt{2}"), equivalent("x+1", "x-1")
    (True, False)
    """
    return Mathematics().same(a, b)
