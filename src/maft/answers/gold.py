r"""Known answers: data sets have them bare, boxed, stated, or at the end of a worked solution."""

from __future__ import annotations

import re
from collections.abc import Callable

_MARK = re.compile(r"####|\\(?:boxed|fbox)\b|</?(?:answer|think)>|\banswer\b[\s*_]{0,9}(?:is\b|:)", re.IGNORECASE)
MAX_ANSWER_WORDS = 10
"""A known answer of more words than this is a worked solution, for answers that are compared as mathematics."""


def read(text: str, extract: Callable[[str], str | None]) -> str:
    r"""Return the answer in a known answer: read as a reply where it says which it is, else the whole.

    >>> from maft.answers.extract import extract_stated
    >>> read("Add. #### 5", extract_stated), read(r"So \boxed{5}.", extract_stated), read("x = 5", extract_stated)
    ('5', '5', 'x = 5')
    """
    return (extract(text) if _MARK.search(text) else None) or text


def is_worked(text: str) -> bool:
    """Say whether a known answer is rather a worked solution: no reply gives it word by word.

    >>> is_worked("3 red apples"), is_worked("First add 2 and 3, which is 5, then take 1 away, so that 4 are left.")
    (False, True)
    """
    return len(re.findall(r"[A-Za-z]{2,}", re.sub(r"\\[A-Za-z]+(?:\{[a-z]*matrix\})?", "", text))) > MAX_ANSWER_WORDS
