r"""The key of an answer: what is decoration is gone, numbers are reduced fractions, solutions are sorted.

Answers with one key are equal, at the cost of one pass for each answer. Model text is only matched and rewritten,
never evaluated, and no power of ten beyond `MAX_EXPONENT` is expanded: any input is cheap.

Some things are decoration and never separate two answers: `$`, `%`, degrees, units after a number (5 cm, 5 m and 5
are one answer), the `x =` before a value (x = 5 and y = 5 are one answer), round brackets around a lone expression,
the shape of matrix brackets, spacing and sizing commands, and the case of plain words.

A bare list, "x = 1 or x = 2" and a set in braces are all sets of solutions: their order does not matter, and
`1 \pm \sqrt2` is two of them. Points, intervals and matrices keep their order. An inequality of one variable with
numbers at its ends is an interval. "(B) 12" is the choice B.

What algebra it takes beyond that, `x+1` and `1+x`, keys cannot tell: see `maft.answers.verify`.
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
    r" \langle ( \rangle ) \div /"
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


_FUNCTIONS = "sin cos tan cot sec csc sinh cosh tanh arcsin arccos arctan log ln exp"
_NAMED = re.compile(
    rf"\\(?:operatorname|mathrm|text)\s*\{{\s*({_FUNCTIONS.replace(' ', '|')})\s*\}}"
    rf"|(?<![A-Za-z\\])({_FUNCTIONS.replace(' ', '|')}|sqrt|pi|infinity)(?![A-Za-z])"
)
_GREEK = _words(
    r"\alpha \beta \gamma \delta \epsilon \varepsilon \zeta \eta \theta \iota \kappa \lambda \mu \nu \xi \rho \sigma"
    r" \tau \upsilon \phi \varphi \chi \psi \omega \Gamma \Delta \Theta \Lambda \Xi \Sigma \Phi \Psi \Omega"
)
_CHOICE_WITH_TEXT = re.compile(
    r"(?:\\(?:text|textbf|mathbf|mathrm|textrm)\s*\{\s*)?(?:\(([A-J])\)|([A-J])[).])\s*\}?(?:\s|~|\\[ ,;]|\\quad)+"
    r"(?=[0-9A-Za-z$\-]|\\(?:frac|dfrac|tfrac|sqrt|text|mathrm|\$))(?!\w\)|[A-Z]\b)"
)
_PROSE = re.compile(r"(?<![\\A-Za-z])(?!(?:and|text|mbox|textrm)(?![A-Za-z]))[A-Za-z]{3,}")
_WORD = r"(?<=\S)\s*,?\s*(?:\\(?:text|mbox|textrm)\s*\{{\s*,?\s*{0}\s*\}}|(?<![A-Za-z\\]){0}(?![A-Za-z]))\s*(?=\S)"
_OR, _AND = re.compile(_WORD.format("or")), re.compile(_WORD.format("and"))


class _TooDeep(Exception):
    """An answer is nested deeper than `MAX_DEPTH`."""


@lru_cache(maxsize=16_384)
def _canonical(text: str) -> str:
    """Compute the key of an answer of bounded length."""
    tidy = _DEGREE.sub("", _DIGIT_GLUE.sub("", _in_latex(text.translate(_UNICODE))))
    tidy = _FULL_STOP.sub("", _join(_clean(_TOKEN.findall(tidy))).strip())
    tidy = _FULL_STOP.sub("", _without_unit(tidy))
    try:
        tidy = _Reader(tidy).read()
    except _TooDeep:
        return text
    tidy = re.sub(r"(\\[A-Za-z]+)\*(?=[A-Za-z])", r"\1 ", tidy)
    # 2*x is 2x, but 2*3 is not 23, 1/2*x is not 1/2x, and 1*\\frac{1}{2} is no mixed number.
    tidy = re.sub(
        r"(/[0-9.]+\*|(?<=[0-9])\*(?=\\frac))|(?<=[0-9A-Za-z)}])\*(?=[A-Za-z\\(])", lambda match: match[1] or "", tidy
    )
    tidy = _FULL_STOP.sub("", tidy)
    value = without_assignment(tidy)
    # y = 2x + 3 stays an equation, so that it can be compared with 2x - y + 3 = 0; f(x) = 2x does not.
    if not (variables(value) and re.match(r"[A-Za-z](?:_\{[^{}]*\})?=", tidy)):
        tidy = value
    return _key(tidy, depth=0)


def without_assignment(text: str) -> str:
    r"""Return the right-hand side of a tidy `x=5`, `f(x)=5` or `x\in 5`, and any other text as it is."""
    assigned = _ASSIGNMENT.match(text) if text.count("=") <= 1 else None
    return text[assigned.end() :] if assigned and assigned.end() < len(text) else text


def variables(text: str) -> frozenset[str]:
    r"""Return the letters of a tidy text that stand for something unknown; e, i and \pi do not.

    >>> sorted(variables(r"2x+\sqrt{a}\theta+\pi+3i"))
    ['\\theta', 'a', 'x']
    """
    plain = re.sub(r"\\(?:begin|end)\{[a-z]*\}", "", text)
    greek = {name for name in _CONTROL_WORD.findall(plain) if name in _GREEK}
    return frozenset(re.findall(r"[A-Za-z]", _CONTROL_WORD.sub("", plain))) - {"e", "i"} | greek


def _in_latex(text: str) -> str:
    """Write in LaTeX what people write without it: sqrt(2), 2*pi, x**2, x = 1 or x = 2, (B) twelve."""
    if choice := _CHOICE_WITH_TEXT.match(text):
        return choice[1] or choice[2]
    text = _NAMED.sub(lambda m: rf"\{m[1] or m[2]} ", text).replace(r"\infinity", r"\infty")
    for plain, latex in (("**", "^"), ("<=", r"\le "), (">=", r"\ge "), ("!=", r"\ne ")):
        text = text.replace(plain, latex)
    if not _PROSE.search(text):
        related = re.search(r"[<>]|\\(?:le|ge|lt|gt|in)", text)
        text = _OR.sub(r" \\cup " if related else ", ", text)
        text = text if related else _AND.sub(", ", text)
    return text


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

    def __init__(self, text: str, depth: int = 0) -> None:
        self.tokens = _TOKEN.findall(text)
        self.position = 0
        self.depth = depth

    def read(self) -> str:
        pieces: list[str] = []
        while self.position < len(self.tokens):
            pieces.append(self._sequence(self.depth))
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
        if token in ("^", r"\sqrt") and self._next_is("(") and (inside := self._round()):
            return f"{token}{{{_Reader(inside, depth + 1).read()}}}"
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

    def _round(self) -> str:
        """Read a pair of round brackets, as in 2^(n+1), and return what is in it; nothing if it is not closed."""
        depth = 0
        for end in range(self.position, len(self.tokens)):
            depth += (self.tokens[end] == "(") - (self.tokens[end] == ")")
            if depth == 0:
                inside = "".join(self.tokens[self.position + 1 : end])
                self.position = end + 1 if inside else self.position
                return inside
        return ""

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

    def _next_is(self, token: str) -> bool:
        while self._peek() == " ":
            self.position += 1
        return self._peek() == token

    def _peek(self) -> str:
        return self.tokens[self.position] if self.position < len(self.tokens) else ""


# ----------------------------------------------------------------------------------------------------
# Units

_TEXT_UNIT = r"\\(?:text|textrm|textup|textnormal|textbf|mathrm|mbox|hbox) ?\{[^{}]*\}"
_TEXT_UNITS = re.compile(rf"(?:{_TEXT_UNIT}(?: ?\^ ?(?:[0-9]|\{{ ?-?[0-9] ?\}}))?[ /*]*)+$")
_PLAIN_UNITS = re.compile(r"(?<=[0-9}). ])[A-Za-z]+(?:[ /.]+[A-Za-z]+)*(?:\^[0-9]|\^\{[0-9]\})?\.?$")
_SHORT_UNITS = _words("pct mm cm km mg kg ml ft yd mi lb lbs oz hr hrs min mins sec secs day men mph in of per the")
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
_REPEATING = re.compile(r"([-+]?)([0-9]*)\.([0-9]*)\\overline\{([0-9]+)\}")
_POWER_OF_TEN = re.compile(rf"([-+]?)(?:({_DECIMAL})\*)?10\^\{{([-+]?[0-9]{{1,4}})\}}")
_PLAIN_DECIMAL = re.compile(rf"[-+]?{_DECIMAL}")
_QUOTIENT = re.compile(
    rf"([-+]?)(?:\\frac\{{([-+]?{_DECIMAL})\}}\{{([-+]?{_DECIMAL})\}}|({_DECIMAL})/([-+]?{_DECIMAL}))"
)
_MIXED = re.compile(r"([-+]?)([0-9]+)(?:\\frac\{([0-9]+)\}\{([0-9]+)\}| ([0-9]+)/([0-9]+))")
_MIXED_FACTOR = re.compile(r"(?<![0-9.}])([0-9]+)\\frac\{([0-9]+)\}\{([0-9]+)\}")
_THOUSANDS = re.compile(r"[-+]?[1-9][0-9]{0,2}(?:(?:,[0-9]{3})+|(?: [0-9]{3})+)(?:\.[0-9]*)?")

_INEQUALITY = re.compile(r"(<|>|\\le(?![A-Za-z])|\\ge(?![A-Za-z]))")
_VARIABLE = re.compile(r"[A-Za-z]|" + "|".join(map(re.escape, sorted(_GREEK))))

_OPENING = frozenset(["(", "[", "{", r"\{", r"\langle"])
_CLOSING = frozenset([")", "]", "}", r"\}", r"\rangle"])
MATRIX = re.compile(r"\\begin\{[pb]matrix\}((?:(?!\\begin|\\end).)*)\\end\{[pb]matrix\}")

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
    if matrix := MATRIX.fullmatch(text):
        rows = [row.split("&") for row in matrix[1].split(r"\\") if row]
        cells = r"\\".join("&".join(_key(cell, depth + 1) for cell in row) for row in rows)
        return rf"\begin{{pmatrix}}{cells}\end{{pmatrix}}"
    if len(parts := split(text, r"\cup")) > 1:
        return r"\cup".join(sorted({_key(_interval(part) or part, depth + 1) for part in parts}))
    if interval := _interval(text):
        return _key(interval, depth + 1)
    bracketed = brackets(text)
    if text == r"\{\}":
        return r"\emptyset"
    if depth == 0:
        braces = bracketed is not None and bracketed[0] == r"\{" and bracketed[2] == r"\}"
        items = _solutions(split(bracketed[1] if bracketed and braces else text, ","))
        if braces or len(items) > 1:
            return ", ".join(sorted({_key(item, depth + 1) for item in items}))
    elif len(parts := split(text, ",")) > 1:
        return ", ".join(_key(part, depth + 1) for part in parts)
    if bracketed:
        opening, inside, closing = bracketed
        keys = [_key(part, depth + 1) for part in split(inside, ",")]
        if (opening, closing, len(keys)) == ("(", ")", 1):
            return keys[0]
        if (opening, closing) == (r"\{", r"\}"):
            keys = sorted(set(keys))
        return opening + ", ".join(keys) + closing
    expression = _expression(text)
    value = _number(expression, thousands=False)  # (1)/(2) has become a fraction
    return expression if value is None else str(value)


def _solutions(items: list[str]) -> list[str]:
    r"""Write out `1 \pm x` as two solutions, and drop an `x=` that all of them have."""
    values = [without_assignment(item) for item in items]
    names = {item.removesuffix(value) for item, value in zip(items, values, strict=True)}
    chosen = values if len(names) == 1 else items
    both = [item.replace(r"\pm", sign) for item in chosen for sign in ("+", "-") if item.count(r"\pm") == 1]
    return [item for item in chosen if item.count(r"\pm") != 1] + [item.removeprefix("+").strip() for item in both]


def _interval(text: str) -> str | None:
    r"""Return `(-1, 5]` for -1<x\le5; None for anything but one variable between numbers."""
    parts = [part.strip() for part in _INEQUALITY.split(text)]
    ends, signs = parts[::2], parts[1::2]
    if len(signs) not in (1, 2) or "," in text or "=" in text or not all(ends):
        return None
    if len({sign in (">", r"\ge") for sign in signs}) > 1:  # 1 < x > 0
        return None
    if signs[0] in (">", r"\ge"):
        ends, signs = ends[::-1], [{">": "<", r"\ge": r"\le"}[sign] for sign in signs[::-1]]
    place = 1 if len(signs) == 2 or _VARIABLE.fullmatch(ends[1]) else 0
    if not _VARIABLE.fullmatch(ends[place]) or any(variables(end) for n, end in enumerate(ends) if n != place):
        return None
    if len(signs) == 1:
        ends, signs = (["", *ends], ["<", *signs]) if place == 0 else ([*ends, ""], [*signs, "<"])
    low, high = ends[0] or r"-\infty", ends[2] or r"\infty"
    return f"{'(' if signs[0] == '<' else '['}{low}, {high}{')' if signs[1] == '<' else ']'}"


def _number(text: str, *, thousands: bool) -> Fraction | None:
    """Return the exact value of a literal number, or None. At most one quotient or power is computed."""
    if thousands and _THOUSANDS.fullmatch(text):
        return Fraction(text.replace(",", "").replace(" ", ""))
    if _PLAIN_DECIMAL.fullmatch(text):
        return Fraction(text)
    if match := _QUOTIENT.fullmatch(text):
        over, under = Fraction(match[2] or match[4]), Fraction(match[3] or match[5])
        return _signed(match[1], over / under) if under else None
    if match := _REPEATING.fullmatch(text):
        fixed, cycle = Fraction(f"{match[2] or 0}.{match[3]}"), Fraction(int(match[4]), 10 ** len(match[4]) - 1)
        return _signed(match[1], fixed + cycle / 10 ** len(match[3]))
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


def split(text: str, separator: str) -> list[str]:
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


def brackets(text: str) -> tuple[str, str, str] | None:
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
    text = _MIXED_FACTOR.sub(_improper, text)
    text = _SLASH.sub(lambda m: rf"\frac{{{_bare(m['top'])}}}{{{_bare(m['bottom'])}}}", text)
    return _NEGATIVE_TOP.sub(r"-\\frac{\1}", text)


def _improper(match: re.Match[str]) -> str:
    whole, top, bottom = int(match[1]), int(match[2]), int(match[3])
    return rf"\frac{{{whole * bottom + top}}}{{{bottom}}}" if top < bottom else match[0]


def _bare(text: str) -> str:
    return text[1:-1] if text.startswith("(") else text.strip()
