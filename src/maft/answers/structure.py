r"""Is a text mathematics? Algebra may see only what is.

Words, codes, dates and tokens side by side are texts: `cat` is no product of c, a and t, `1 2 3` is neither 6 nor
3 2 1, `2024-03-05` and `555-1234` are no differences, `3a0` is no product.
"""

from __future__ import annotations

import re

# What makes a text mathematics: an operator, a command, a power, an equation.
_SIGN = re.compile(r"[+\-*/^_=<>|!]|\\[A-Za-z]")

# Letters and digits in an order that no product has, and tokens with nothing but a space between them.
_NO_PRODUCT = re.compile(
    r"[A-Za-z] ?[0-9]"  # a0, x 2: what is meant is a name, a code, or x^2
    r"|[0-9] [0-9]"  # 1 2 3
    r"|\) ?[0-9]"  # (555) 123
    r"|[0-9]\.[0-9]*\."  # 192.168.1.1
    r"|[0-9] [A-Za-z]{3}"  # 5 cats
    r"|[A-Za-z]{4}|[A-Za-z]{2,} [A-Za-z]|[A-Za-z] [A-Za-z]{2,}"  # a word, or one beside another
    r"|\n"
)
_COMMAND = re.compile(r"\\(?:begin|end)\{[a-z]*\}|\\(?:[A-Za-z]+|.)")
_PLAIN = re.compile(r"[0-9]*[A-Za-z]+(?: [A-Za-z]+)*")
_NAMED_WORD = re.compile(r"[A-Za-z]=(?=[A-Za-z]{0,2}[AEIOUaeiou])[A-Za-z]{3}")  # x=two
_CAPITALS = re.compile(r"[0-9]+[A-Z]{2,}")  # 12AB is rather a code than a product
_SLASHES = re.compile(r"[A-Za-z0-9]+(?:/[A-Za-z0-9]+){2,}")  # 3/5/2024


def is_maths(text: str, *, beside: str = "") -> bool:
    r"""Say whether a tidy expression may be read as mathematics.

    A run of letters is a word, unless there is a sign, a digit or a command in the text or in the one `beside` which it
    is compared.

    >>> is_maths("xy"), is_maths("xy=6"), is_maths("2xy"), is_maths("xy", beside="y*x"), is_maths("p-q")
    (False, True, True, True, True)
    >>> is_maths("1 2 3"), is_maths("A B C"), is_maths("3a0"), is_maths("555‐1234"), is_maths("3/5/2024")
    (False, False, False, False, False)
    """
    if not text.isascii() or _NO_PRODUCT.search(_COMMAND.sub("\\\\", text)):
        return False
    if _CAPITALS.fullmatch(text) or _SLASHES.fullmatch(text):
        return False
    if _PLAIN.fullmatch(text):
        # Two letters may be a product where the other text says so: xy beside y*x, but not ee beside e^2.
        return len(text) == 1 or text[0].isdigit() or (len(set(text)) == len(text) == 2 and bool(_SIGN.search(beside)))
    return not _NAMED_WORD.fullmatch(text)


HYPHEN = "\u2010"
"""What the hyphens of a code are written with in a key; a minus is not."""

_HYPHENATED = re.compile(r"(?<![^\s,;(])\+?[A-Za-z0-9]+(?:-[A-Za-z0-9]+)+(?![^\s,;).])")


_NUMBERS = re.compile(r"-?[0-9.]+(?: -?[0-9.]+)+")  # 2 -3 is two numbers


def with_hyphens(text: str) -> str:
    """Mark the hyphens of dates, numbers of telephones, codes and words, where a text has no other sign of mathematics.

    >>> with_hyphens("2024-03-05"), with_hyphens("A-B-C"), with_hyphens("p-q"), with_hyphens("7 - 9")
    ('2024‐03‐05', 'A‐B‐C', 'p-q', '7 - 9')
    """
    if _NUMBERS.fullmatch(text):
        return text.replace("-", HYPHEN)
    if "-" not in text or _SIGN.search(text.replace("-", "").removeprefix("+")):
        return text
    return _HYPHENATED.sub(lambda m: m[0].replace("-", HYPHEN) if _is_code(m[0].lstrip("+").split("-")) else m[0], text)


def _is_code(parts: list[str]) -> bool:
    if all(part.isdigit() for part in parts):
        return True
    if any(re.search(r"[A-Za-z]{3}|[A-Z]{2}|[A-Za-z][0-9]", part) for part in parts):
        return True
    return len(parts) > 2 and all(part.isdigit() or (part.isalpha() and part.isupper()) for part in parts)
