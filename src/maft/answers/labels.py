"""A label out of a fixed set, read out of a reply: the one it states, ends with or mentions alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from maft.answers import thinking
from maft.answers.equality import folded
from maft.answers.extract import extract_stated

_BETWEEN = r"(?:(?:be|really|quite|very|at\s+all|exactly|a|an|the)\s+){0,3}"
_DENIED = (
    rf"\b(?:not|never|neither|nor|than|no|without|hardly|cannot)\s+{_BETWEEN}|n't\s+{_BETWEEN}"
    r"|\bnon-?\s?|\bfar\s+from\s+"
)


def read_label(text: str, labels: Sequence[str]) -> str | None:
    """Return the label that a reply gives, in the spelling of the set; None where it gives none or several.

    >>> labels = ("positive", "negative", "very negative")
    >>> read_label("It is **Positive**.", labels), read_label("Good, so not negative.", labels)
    ('positive', None)
    >>> read_label("Neither positive nor kind. Answer: very negative", labels), read_label("positive, negative", labels)
    ('very negative', None)
    """
    spelling, mention = _patterns(tuple(labels))
    rest = thinking.strip(text).rest
    last = rest.strip().rpartition("\n")[2].rpartition(":")[2]
    for said in (extract_stated(text), last):
        if said is not None and (label := spelling.get(folded(said).strip(" .,;!*_\"'`()[]"))):
            return label
    mentioned = {spelling[folded(match["label"])] for match in mention.finditer(rest) if match["label"]}
    return mentioned.pop() if len(mentioned) == 1 else None


@lru_cache(maxsize=8)
def _patterns(labels: tuple[str, ...]) -> tuple[dict[str, str], re.Pattern[str]]:
    """Return the labels by their folded text, and a pattern of one in prose; a letter alone is no mention of one."""
    spelling = {folded(label): label for label in labels}
    # "There is no difference" does not say no.
    ends = {"no": r"(?!\s+\w)"}
    words = sorted((label for label in spelling if len(label) > 1), key=len, reverse=True)
    names = "|".join(r"\s+".join(map(re.escape, word.split())) + ends.get(word, "") for word in words) or r"(?!)"
    return spelling, re.compile(rf"(?:(?<!\w)(?P<label>{names})|(?:{_DENIED})(?:{names}))(?!\w|-free\b)", re.IGNORECASE)
