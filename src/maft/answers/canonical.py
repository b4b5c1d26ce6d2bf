r"""The key of an answer: what is decoration is gone, and numbers are reduced fractions.

Every answer is mapped to one key, `canonical`; two answers are equal when their keys are. That makes equality
symmetric and transitive, and costs one pass per answer instead of one comparison per pair. Model text is only
matched and rewritten, never evaluated, and no power of ten beyond `MAX_EXPONENT` is expanded: any input is
cheap.

Some things are decoration and never separate two answers: `$`, `%`, degrees, units after a number (5 cm, 5 m
and 5 are one answer), the `x =` of a leading assignment (x = 5 and y = 5 are one answer), round brackets
around a lone expression, the shape of matrix brackets, spacing and sizing commands, and the case of plain
words.

Left out (such answers are compared as tidied LaTeX, and come out different):
1. Algebra and arithmetic: `x+1` and `1+x`, `\sqrt{8}` and `2\sqrt{2}`, `2^{10}` and `1024`.
2. Repeating decimals, and rounding: `0.333` is not `\frac13`.
3. The order of a bare list: `1, 2` is not `2, 1`. Sets in braces and unions of intervals are unordered.
4. `\pm`, `\text{ or }` and `\text{ and }` as lists; multiple-choice letters followed by the option's text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fractions import Fraction
from functools import lru_cache

MAX_ANSWER_CHARS = 1_000
"""A longer box is not an answer, and a longer answer is compared as it is written."""

MAX_EXPONENT = 100
"""Powers of ten up to this size are numbers; larger ones are compared as text."""

MAX_DEPTH = 40
"""Answers nested deeper than this are compared as they are written."""


def canonical(answer: str) -> str:
    r"""Map an answer to the key that decides equality. Keys are for comparing; show people the answer itself.

    >>> canonical(r"x = 1\frac{1}{2}"), canonical(r"( 0.5 , \sqrt2 \, ]"), canonical(r"\text{Yes.}")
    ('3/2', '(1/2, \\sqrt{2}]', 'yes')
    """
    text = " ".join(answer.split())
    # Checked before the cache, so that the cache holds no long texts.
    return _canonical(text) if len(text) <= MAX_ANSWER_CHARS else text


# ----------------------------------------------------------------------------------------------------
# From an answer to tidy LaTeX


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _pairs(text: str) -> dict[str, str]:
    words = text.split()
    return dict(zip(words[::2], words[1::2], strict=True))


_SYMBOLS = _pairs(
    r"π \pi θ \theta ∞ \infty √ \sqrt ∅ \emptyset ° ^\circ · \cdot ≤ \le ≥ \ge ≠ \ne ± \pm ∈ \in ∩ \cap"
    r" ½ \frac12 ⅓ \frac13 ⅔ \frac23 ¼ \frac14 ¾ \frac34"
) | {"\u222a": r"\cup", "\u00d7": r"\times", "\u22c5": r"\cdot"}
_UNICODE = str.maketrans(
    dict.fromkeys("\u2212\u2013\u2010\u2011\ufe63\uff0d", "-")  # minus, dashes, hyphens
    | dict.fromkeys("\u2044\u2215", "/")
    | dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff€£", "")
    | {digit: f"^{value}" for value, digit in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}
    | {symbol: f"{name} " for symbol, name in _SYMBOLS.items()}
    | {"…": "..."}
)

_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|\s+|.", re.DOTALL)
_CONTROL_WORD = re.compile(r"\\[A-Za-z]+")

_DROPPED = _words(r"\! $ \$ % \% \( \) \[ \] \left \right \displaystyle \textstyle") | _words(
    r"\big \Big \bigg \Bigg \bigl \Bigl \biggl \Biggl \bigr \Bigr \biggr \Biggr"
)
_SPACES = _words(r"\, \; \: \> ~ \quad \qquad \thinspace \space") | {"\\ "}
_SYNONYMS = _pairs(
    r"\dfrac \frac \tfrac \frac \cfrac \frac \times * \cdot * \leq \le \leqslant \le \geq \ge \geqslant \ge"
    r" \neq \ne \lt < \gt > \lbrace \{ \rbrace \} \lbrack [ \rbrack ] \varnothing \emptyset \rightarrow \to"
    r" \dbinom \binom \tbinom \binom \mid | \vert | \lvert | \rvert |"
)
_TEXT = _words(
    r"\text \textbf \textit \textrm \textsf \texttt \textup \textnormal \mbox \hbox \rm \bf \operatorname"
    r" \boldsymbol \bm \mathrm \mathbf \mathit \mathsf \mathtt"
)
_ONE_ARGUMENT = _words(r"\sqrt \begin \end \mathbb \mathcal \overline \underline \bar \vec \hat \tilde")

# 1{,}234 and 1,\!234 mark the comma as a thousands separator anywhere; so does the thin space in 1\,234.
_DIGIT_GLUE = re.compile(r"(?<=[0-9])(?: ?\{ ?, ?\} ?| ?, ?\\! ?|\\,)(?=[0-9]{3}(?![0-9]))")
_DEGREE = re.compile(r"\^ ?(?:\\circ(?![A-Za-z])|\{ ?\\circ ?\})|\^? ?\\degree(?![A-Za-z])")
_FULL_STOP = re.compile(r"(?<![. ]) ?\.$")
_ASSIGNMENT = re.compile(
    r"(?:[A-Za-z]{1,2}|\\[A-Za-z]+)(?:_\{[^{}]*\})?(?:\([A-Za-z]\))?="  # x= x_{1}= f(x)=
    r"|\([A-Za-z](?:,[A-Za-z])+\)="  # (x,y)=
    r"|[A-Za-z]\\in(?![A-Za-z]) ?"
)


class _TooDeep(Exception):
    """An answer is nested deeper than `MAX_DEPTH`."""


@lru_cache(maxsize=16_384)
def _canonical(text: str) -> str:
    """Compute the key of an answer of bounded length."""
    tidy = _DEGREE.sub("", _DIGIT_GLUE.sub("", text.translate(_UNICODE)))
    tidy = _FULL_STOP.sub("", _join(_clean(_TOKEN.findall(tidy))).strip())
    tidy = _FULL_STOP.sub("", _without_unit(tidy))
    try:
        tidy = _Reader(tidy).read()
    except _TooDeep:
        return text
    tidy = re.sub(r"(\\[A-Za-z]+)\*(?=[A-Za-z])", r"\1 ", tidy)
    tidy = re.sub(r"(?<=[0-9A-Za-z)}])\*(?=[A-Za-z\\(])", "", tidy)  # 2*x is 2x, but 2*3 is not 23
    tidy = _FULL_STOP.sub("", tidy)
    if tidy.count("=") <= 1 and (assigned := _ASSIGNMENT.match(tidy)) and assigned.end() < len(tidy):
        tidy = tidy[assigned.end() :]
    return _key(tidy, depth=0)


def _clean(tokens: list[str]) -> list[str]:
    """Drop what is only typography, and give each symbol one name."""
    cleaned: list[str] = []
    previous = ""
    for token in tokens:
        # A lone backslash can only be the last token: "\\ " whose space was stripped.
        if token in _SPACES or token.isspace() or token == "\\":
            cleaned.append(" ")
        elif token not in _DROPPED and not (token == "." and previous in (r"\left", r"\right")):
            cleaned.append(_SYNONYMS.get(token, token))
        previous = token
    return cleaned


def _join(tokens: Iterable[str]) -> str:
    r"""Concatenate, keeping the space without which `\pi r` would become `\pir`."""
    pieces: list[str] = []
    for token in tokens:
        if pieces and token[:1].isalpha() and _CONTROL_WORD.fullmatch(pieces[-1]):
            pieces.append(" ")
        if token:
            pieces.append(token)
    return "".join(pieces)


class _Reader:
    r"""Rewrite LaTeX with all arguments in braces, no other braces, and hardly any spaces.

    `\frac12` becomes `\frac{1}{2}`, `x^2` becomes `x^{2}`, `\text{(B)}` becomes `(B)`. Spaces stay in `1 1/2`
    and in `100, 200`, which is a list where `100,200` is one number. Malformed input is never an error: a
    missing argument is empty and a stray brace stays.
    """

    def __init__(self, text: str) -> None:
        self.tokens = _TOKEN.findall(text)
        self.position = 0

    def read(self) -> str:
        pieces: list[str] = []
        while self.position < len(self.tokens):
            pieces.append(self._sequence(depth=0))
            if self.position < len(self.tokens):  # a stray closing brace ended the sequence
                pieces.append("}")
                self.position += 1
        return "".join(pieces)

    def _sequence(self, depth: int) -> str:
        pieces: list[str] = []
        spaced = False
        previous = ""
        while (token := self._peek()) and token != "}":
            if token == " ":
                spaced = True
                self.position += 1
                continue
            after_unknown_command = bool(_CONTROL_WORD.fullmatch(previous)) and previous not in _ONE_ARGUMENT | _TEXT
            piece = self._item(previous, depth)
            if token == "{" and after_unknown_command and len(piece) != 1:
                piece = "{" + piece + "}"
            if spaced and piece[:1].isdigit() and pieces and (pieces[-1] == "," or pieces[-1][-1:].isdigit()):
                pieces.append(" ")
            if piece:
                pieces.append(piece)
                spaced = False
            previous = token
        return _join(pieces)

    def _item(self, previous: str, depth: int) -> str:
        if depth > MAX_DEPTH:
            raise _TooDeep
        token = self._peek()
        self.position += 1
        if token == "{":
            content = self._sequence(depth + 1)
            if self._peek() == "}":
                self.position += 1
            return content
        if token in _TEXT:
            return self._argument(token, depth)
        if token in (r"\frac", r"\binom"):
            return rf"{token}{{{self._argument(token, depth)}}}{{{self._argument(token, depth)}}}"
        if token == r"\sqrt" and self._peek() == "[" and "]" in self.tokens[self.position :]:
            end = self.tokens.index("]", self.position)
            index = "".join(self.tokens[self.position : end + 1])
            self.position = end + 1
            return rf"\sqrt{index}{{{self._argument(token, depth)}}}"
        if token in ("^", "_", r"\sqrt"):
            # Plain-text writers mean x^{10} by x^10, where LaTeX reads x^{1}0. In \log_28 LaTeX is right.
            run = self._digits() if previous != r"\log" else ""
            return f"{token}{{{run or self._argument(token, depth)}}}"
        if token in _ONE_ARGUMENT:
            return f"{token}{{{self._argument(token, depth)}}}"
        return token

    def _argument(self, command: str, depth: int) -> str:
        while self._peek() == " ":
            self.position += 1
        if self._peek() in ("", "}"):
            return ""
        return self._item(command, depth + 1)

    def _digits(self) -> str:
        while self._peek() == " ":
            self.position += 1
        start = self.position
        end = start + 1 if self._peek() == "-" else start
        while end < len(self.tokens) and self.tokens[end] in "0123456789":
            end += 1
        if self.tokens[start:end] in ([], ["-"]):
            return ""
        self.position = end
        return "".join(self.tokens[start:end])

    def _peek(self) -> str:
        return self.tokens[self.position] if self.position < len(self.tokens) else ""


# ----------------------------------------------------------------------------------------------------
# Units

_TEXT_UNIT = r"\\(?:text|textrm|textup|textnormal|textbf|mathrm|mbox|hbox) ?\{[^{}]*\}"
_TEXT_UNITS = re.compile(rf"(?:{_TEXT_UNIT}(?: ?\^ ?(?:[0-9]|\{{ ?-?[0-9] ?\}}))?[ /*]*)+$")
_PLAIN_UNITS = re.compile(r"(?<=[0-9}). ])[A-Za-z]+(?:[ /.]+[A-Za-z]+)*(?:\^[0-9]|\^\{[0-9]\})?\.?$")
_SHORT_UNITS = _words("mm cm km mg kg ml ft yd mi lb lbs oz hr hrs min mins sec secs day men mph in of per the")
# A number before one of these words is not the whole answer.
_NOT_UNITS = _words(
    "hundred thousand million billion trillion dozen half halves third thirds quarter quarters fourth "
    "fourths fifth fifths sixth sixths eighth eighths tenth tenths hundredth hundredths two three four "
    "five six seven eight nine ten sixteen am pm ad bc bce ce base mod modulo remainder or and if to plus "
    "minus times factorial choose infinity pi theta alpha beta gamma delta sigma lambda sqrt sin cos tan "
    "cot sec csc sinh cosh tanh log exp arcsin arccos arctan i e j k n x y z"
)
_NUMERIC = re.compile(r"(?:[A-Za-z]{1,2} ?= ?)?(?:[-+0-9.,/^{}()* ]|\\(?:frac|sqrt|pi)(?![A-Za-z]))+(?<=[0-9.)}i])")


def _without_unit(text: str) -> str:
    r"""Drop a trailing unit, `5 \text{ cm}^2` or `5 apples`, if all before it is numeric like `8\pi`."""
    if match := _TEXT_UNITS.search(text):
        words = re.findall(r"[A-Za-z]+", re.sub(r"\\[A-Za-z]+", " ", match[0]))
        plausible = not re.search(r"[^A-Za-z0-9\\{}^.()/* '-]", match[0])
    elif (match := _PLAIN_UNITS.search(text)) and text[match.start() - 1] != "\\":
        words = re.findall(r"[A-Za-z]+", match[0])
        # Words must look like words: 6 abc is a product, and 5cm needs no space but 5apples is left alone.
        glued = text[match.start() - 1] != " "
        plausible = all(
            word.lower() in _SHORT_UNITS or (not glued and len(word) > 3 and re.search("[aeiou]", word))
            for word in words
        )
    else:
        return text
    number = text[: match.start()].rstrip()
    numeric = _NUMERIC.fullmatch(number) and re.search(r"[0-9]|\\pi", number)
    return number if numeric and plausible and _NOT_UNITS.isdisjoint(word.lower() for word in words) else text


# ----------------------------------------------------------------------------------------------------
# From tidy LaTeX to a key

_DECIMAL = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_SCIENTIFIC = re.compile(rf"([-+]?{_DECIMAL})[eE]([-+]?[0-9]{{1,4}})")
_POWER_OF_TEN = re.compile(rf"([-+]?)(?:({_DECIMAL})\*)?10\^\{{([-+]?[0-9]{{1,4}})\}}")
_PLAIN_DECIMAL = re.compile(rf"[-+]?{_DECIMAL}")
_QUOTIENT = re.compile(
    rf"([-+]?)(?:\\frac\{{([-+]?{_DECIMAL})\}}\{{([-+]?{_DECIMAL})\}}|({_DECIMAL})/([-+]?{_DECIMAL}))"
)
_MIXED = re.compile(r"([-+]?)([0-9]+)(?:\\frac\{([0-9]+)\}\{([0-9]+)\}| ([0-9]+)/([0-9]+))")
_THOUSANDS = re.compile(r"[-+]?[1-9][0-9]{0,2}(?:(?:,[0-9]{3})+|(?: [0-9]{3})+)(?:\.[0-9]*)?")

_OPENING = frozenset(["(", "[", "{", r"\{", r"\langle"])
_CLOSING = frozenset([")", "]", "}", r"\}", r"\rangle"])
_MATRIX = re.compile(r"\\begin\{[pb]matrix\}((?:(?!\\begin|\\end).)*)\\end\{[pb]matrix\}")

# A quotient that is a whole term: 2\sqrt{3}/3 in -2\sqrt{3}/3+1. In 1/2x the bottom is in doubt, so it stays
# as it is.
_ROOT = r"\\sqrt\{[^{}]*\}"
_SLASH = re.compile(
    rf"(?:(?<=^)|(?<=[-+=<>]))(?P<top>(?:[0-9.]|{_ROOT}|\\pi ?|[A-Za-z])+|\([^()]*\))/"
    rf"(?P<bottom>[0-9.]+|{_ROOT}|\\pi|[A-Za-z]|\([^()]*\))(?=$|[-+=<>])"
)
_NEGATIVE_TOP = re.compile(r"^\\frac\{-((?:[^-+{}]|\{[^{}]*\})+)\}")


def _key(text: str, depth: int) -> str:
    """Give numbers their reduced fraction, and take lists, tuples, sets, unions and matrices apart."""
    if text.startswith("+") and len(text) > 1:
        text = text[1:]
    value = _number(text, thousands=depth == 0)
    if value is not None:
        return str(value)
    if depth > MAX_DEPTH:
        return text
    if matrix := _MATRIX.fullmatch(text):
        rows = [row.split("&") for row in matrix[1].split(r"\\") if row]
        cells = r"\\".join("&".join(_key(cell, depth + 1) for cell in row) for row in rows)
        return rf"\begin{{pmatrix}}{cells}\end{{pmatrix}}"
    if len(parts := _split(text, r"\cup")) > 1:
        return r"\cup".join(sorted(_key(part, depth + 1) for part in parts))
    if len(parts := _split(text, ",")) > 1:
        return ", ".join(_key(part, depth + 1) for part in parts)
    if bracketed := _brackets(text):
        opening, inside, closing = bracketed
        keys = [_key(part, depth + 1) for part in _split(inside, ",")]
        if (opening, closing, len(keys)) == ("(", ")", 1):
            return keys[0]
        if (opening, closing) == (r"\{", r"\}"):
            keys = sorted(set(keys))
        return opening + ", ".join(keys) + closing
    expression = _expression(text)
    value = _number(expression, thousands=False)  # (1)/(2) has become a fraction
    return expression if value is None else str(value)


def _number(text: str, *, thousands: bool) -> Fraction | None:
    """Return the exact value of a literal number, or None. At most one quotient or power is computed."""
    if thousands and _THOUSANDS.fullmatch(text):
        return Fraction(text.replace(",", "").replace(" ", ""))
    if _PLAIN_DECIMAL.fullmatch(text):
        return Fraction(text)
    if match := _QUOTIENT.fullmatch(text):
        over, under = Fraction(match[2] or match[4]), Fraction(match[3] or match[5])
        return _signed(match[1], over / under) if under else None
    if match := _MIXED.fullmatch(text):
        top, bottom = int(match[3] or match[5]), int(match[4] or match[6])
        # 3\frac{5}{4} is more likely a product than a mixed number.
        return _signed(match[1], int(match[2]) + Fraction(top, bottom)) if top < bottom else None
    if match := _SCIENTIFIC.fullmatch(text):
        return _scaled("", match[1], int(match[2]))
    if match := _POWER_OF_TEN.fullmatch(text):
        return _scaled(match[1], match[2] or "1", int(match[3]))
    return None


def _scaled(sign: str, mantissa: str, exponent: int) -> Fraction | None:
    if abs(exponent) > MAX_EXPONENT:
        return None
    return _signed(sign, Fraction(mantissa) * Fraction(10) ** exponent)


def _signed(sign: str, value: Fraction) -> Fraction:
    return -value if sign == "-" else value


def _split(text: str, separator: str) -> list[str]:
    """Split at the separators outside all brackets; do not split where the brackets do not pair up."""
    parts: list[str] = []
    start = position = depth = 0
    for token in _TOKEN.findall(text):
        if token == separator and depth == 0:
            parts.append(text[start:position])
            start = position + len(token)
        position += len(token)
        depth += (token in _OPENING) - (token in _CLOSING)
        if depth < 0:
            return [text]
    if depth or not parts:
        return [text]
    return [part.strip() for part in (*parts, text[start:])]


def _brackets(text: str) -> tuple[str, str, str] | None:
    """Return (opening, inside, closing) if one pair of brackets encloses the whole text."""
    tokens = _TOKEN.findall(text)
    if len(tokens) < 3 or tokens[0] not in _OPENING or tokens[-1] not in _CLOSING:
        return None
    depth = 0
    for index, token in enumerate(tokens):
        depth += (token in _OPENING) - (token in _CLOSING)
        if depth == 0 and index < len(tokens) - 1:
            return None
    return (tokens[0], "".join(tokens[1:-1]).strip(), tokens[-1]) if depth == 0 else None


def _expression(text: str) -> str:
    """Write quotients one way, and plain words in lower case."""
    # Two letters are rather a product or a name (AB, xy) than a word; "no" is the exception.
    if text.isalpha() and (len(text) > 2 or text.lower() == "no"):
        return text.lower()
    text = _SLASH.sub(lambda m: rf"\frac{{{_bare(m['top'])}}}{{{_bare(m['bottom'])}}}", text)
    return _NEGATIVE_TOP.sub(r"-\\frac{\1}", text)


def _bare(text: str) -> str:
    return text[1:-1] if text.startswith("(") else text.strip()
