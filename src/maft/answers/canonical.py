r"""The key of an answer: what is decoration is gone, numbers are reduced fractions, solutions are sorted.

Answers with one key are equal, at the cost of one pass for each answer. Model text is only matched and rewritten,
never evaluated, and no power of ten beyond `MAX_EXPONENT` is expanded: any input is cheap. The rules in words are in
docs/answers.md; what algebra it takes beyond them, `x+1` and `1+x`, keys cannot tell: see `maft.answers.verify`.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

from maft.answers.latex import CONTROL_WORD, GREEK, MAX_DEPTH, TOKEN, Reader, TooDeep, bare, join, tidy, without_unicode
from maft.answers.structure import is_maths, with_hyphens
from maft.answers.units import in_figures, without_units

MAX_ANSWER_CHARS = 1_000
"""A longer box is not an answer, and a longer answer is compared as it is written."""

MAX_EXPONENT = 100
"""Powers of ten up to this size are numbers; larger ones are compared as text."""


def canonical(answer: str) -> str:
    r"""Map an answer to the key that decides equality. Keys are for comparing; show people the answer itself.

    >>> canonical(r"x = 1\frac{1}{2}"), canonical(r"( 0.5 , \sqrt2 \, ]"), canonical(r"\text{Yes.}")
    ('3/2', '(1/2, \\sqrt{2}]', 'yes')
    """
    lines = [" ".join(line.split()) for line in answer.splitlines()]
    lines = [line for line in lines if line]
    text = " ".join(lines)
    if len(text) > MAX_ANSWER_CHARS:
        return text
    if len(lines) > 1 and not any(_NO_GRID.search(line) for line in lines):
        return "\n".join(lines).casefold()
    # Checked before the cache, so that the cache holds no long texts.
    return _canonical(text)


# Lines with none of these are a grid or a list, whose line breaks count.
_NO_GRID = re.compile(r"[\\=^{}$&]|[+*/,]$|^[+*/]")


# 1{,}234 and 1,\!234 mark the comma as a thousands separator anywhere; so does the thin space in 1\,234.
_DIGIT_GLUE = re.compile(r"(?<=[0-9])(?: ?\{ ?, ?\} ?| ?, ?\\! ?|\\,|')(?=[0-9]{3}(?![0-9]))")
_CIRCLE = r"(?:\^ ?(?:\\circ(?![A-Za-z])|\{ ?\\circ ?\})|\^? ?\\degree(?![A-Za-z]))"
_DEGREE = re.compile(_CIRCLE + r"(?: ?(?:\\(?:text|mathrm) ?\{ ?[CFK] ?\}|[CFK](?![A-Za-z])))?")
_ANGLE = re.compile(rf"(?:\( ?([0-9.]+) ?\)|([0-9.]+)) ?(?:{_CIRCLE}|(?:\\text ?\{{ ?)?degrees(?: ?\}})?)")
_FUNCTION_OF_ANGLE = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
_FULL_STOP = re.compile(r"(?<![. ]) ?\.$")
_DECIMAL_COMMA = re.compile(r"(?<=[0-9]),(?=[0-9])(?![0-9]{3}(?![0-9]))")
_CHOICE_WITH_TEXT = re.compile(
    r"(?:\\(?:text|textbf|mathbf|mathrm|textrm)\s*\{\s*)?(?:\(([A-J])\)|([A-J])[).])\s*\}?(?:\s|~|\\[ ,;]|\\quad)+"
    r"(?=[0-9A-Za-z$\-]|\\(?:frac|dfrac|tfrac|sqrt|text|mathrm|\$))(?!\w\)|[A-Z]\b)"
)


@lru_cache(maxsize=16_384)
def _canonical(text: str) -> str:
    """Compute the key of an answer of bounded length."""
    if choice := _CHOICE_WITH_TEXT.match(text):
        return str(choice[1] or choice[2])
    latex = _DIGIT_GLUE.sub("", in_figures(without_unicode(bare(text))))
    if re.search(r"(?<!\\);", latex):  # semicolons part what commas would
        latex = re.sub(r"(?<!\\);", ", ", latex if re.search(r"[(\[{]", latex) else _DECIMAL_COMMA.sub(".", latex))
    latex = re.sub(" +", " ", join(tidy(latex)))
    plain = "=".join(_without_degrees(side) for side in latex.split("="))
    plain = with_hyphens(_FULL_STOP.sub("", plain.strip()))
    plain = _FULL_STOP.sub("", without_units(plain))
    try:
        plain = Reader(plain).read()
    except TooDeep:
        return text
    plain = _FULL_STOP.sub("", plain)
    value = without_assignment(plain)
    # y = 2x + 3 stays an equation, so that it can be compared with 2x - y + 3 = 0; f(x) = 2x does not.
    if not (variables(value) and re.match(r"[A-Za-z](?:_\{[^{}]*\})?=", plain)):
        plain = value
    return _key(plain, depth=0)


def _without_degrees(text: str) -> str:
    r"""Drop the sign of degrees; in a sine and its like, write it as its value."""
    if _FUNCTION_OF_ANGLE.search(text):
        return _ANGLE.sub(lambda m: rf"({m[1] or m[2]}\frac{{\pi}}{{180}})", text)
    return _DEGREE.sub("", text)


# ----------------------------------------------------------------------------------------------------
# Equations

# x, x_{1}, Total area, f', n! and (x,y), [ABC], |AB| and a:b and \angle A and \sum ...
_NAME = re.compile(
    r"(?:[A-Za-z]+(?: [A-Za-z]+)*|\\[A-Za-z]+(?:\{[A-Za-z]+\})?)'*(?:_\{[^{}]*\})?(?:\^\{-1\})?'*!?"
    r"|\((?:[A-Za-z](?:,[A-Za-z])+)\)|\[[A-Z]+\]|\\?\|[^|\\]{1,9}\\?\|"
    r"|[A-Za-z]{1,3}(?::[A-Za-z]{1,3})+"
    r"|m?\\(?:angle|triangle|overline|bar|vec|hat) ?\{?[A-Za-z]{1,4}\}?"
    r"|\\(?:sin|cos|tan|cot|sec|csc|log|ln|det)(?:[_^]\{[0-9]+\})?(?: ?[A-Za-z]|\\[a-z]+)"
    r"|\\frac\{[A-Za-z]{1,2}\}\{[A-Za-z]{1,2}\}|[A-Za-z]{1,2}/[A-Za-z]{1,2}"
    r"|\\(?:sum|prod|int|lim|max|min)(?![A-Za-z]).*"
)
_MEMBER = re.compile(r"[A-Za-z]\\in(?![A-Za-z]) ?")
_POINT = re.compile(r"[ABD-Z](?=\([^(),]+(?:,[^(),]+)+\))")  # C(5,2) is rather a number


def without_assignment(text: str) -> str:
    r"""Return the value of a tidy `x=5`, `f(2)=5`, `7*8=56`, `5=x` or `x\in 5`, and any other text as it is.

    >>> without_assignment("P(X=2)=1/2"), without_assignment("7*8=56"), without_assignment("x+y=5")
    ('1/2', '56', 'x+y=5')
    """
    return _assigned(text)[1]


def _assigned(text: str) -> tuple[str, str]:
    """Return the name and the value of a tidy equation; no name where it only calculates, or is none."""
    if (member := _MEMBER.match(text)) and member.end() < len(text):
        return member[0], text[member.end() :]
    if _POINT.match(text) and brackets(text[1:]):
        return "", text[1:]
    sides = split(text.replace(r"\approx", "="), "=")
    if len(sides) == 1 and text.startswith("="):
        return "", text[1:] or text
    if len(sides) < 2 or not all(sides[1:]):
        return "", text
    first, last = sides[0], sides[-1]
    if any(map(variables, sides[1:-1])):  # A = \pi r^2 = 9\pi
        calculates = _is_name(first) and not variables(last) and not any("," in side for side in sides)
        return (first, last) if calculates else ("", text)
    if _is_name(first) and not CONTROL_WORD.fullmatch(last):
        return first, last
    if (not variables(first) or len(sides) > 2) and not _VARIABLE.fullmatch(last):
        return "", last
    return (last, first) if _VARIABLE.fullmatch(last) and not variables(first) else ("", text)


def _is_name(text: str) -> bool:
    """Say whether a side of an equation only names what the other side is: x, f(2), P(X=2), Total area, 15 of 80."""
    head, bracket, _ = (text + " ").partition("(") if "(" in text else (text + " ").partition("[")
    if head and bracket and _NAME.fullmatch(head.strip()):
        return brackets(text[len(head) :]) is not None
    return bool(text) and (_NAME.fullmatch(text) is not None or not is_maths(text))


def variables(text: str) -> frozenset[str]:
    r"""Return the letters of a tidy text that stand for something unknown; e, i and \pi do not.

    >>> sorted(variables(r"2x+\sqrt{a}\theta+\pi+3i"))
    ['\\theta', 'a', 'x']
    """
    plain = re.sub(r"\\(?:begin|end)\{[a-z]*\}", "", text)
    greek = {name for name in CONTROL_WORD.findall(plain) if name in GREEK}
    return frozenset(re.findall(r"[A-Za-z]", CONTROL_WORD.sub("", plain))) - {"e", "i"} | greek


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
_THOUSANDS = re.compile(
    r"[-+]?[1-9](?:[0-9]{0,2}(?:(?:,[0-9]{3})+|(?: [0-9]{3})+)|[0-9]?(?:,[0-9]{2})+,[0-9]{3})(?:\.[0-9]*)?"
)
# 1.234,56 and 1 234,56 and 1.234.567
_EUROPEAN = re.compile(
    r"([-+]?[1-9][0-9]{0,2}(?:(?:\.[0-9]{3})+|(?: [0-9]{3})+)),([0-9]+)|[-+]?[1-9][0-9]{0,2}(?:\.[0-9]{3}){2,}"
)

_UNEQUAL = re.compile(r"\\ne(?![A-Za-z])")
_INEQUALITY = re.compile(r"(<|>|\\le(?![A-Za-z])|\\ge(?![A-Za-z]))")
_VARIABLE = re.compile(r"[A-Za-z]|" + "|".join(map(re.escape, sorted(GREEK))))
_FLIPPED = {">": "<", r"\ge": r"\le", "<": ">", r"\le": r"\ge"}

_OPENING = frozenset(["(", "[", "{", r"\{", r"\langle"])
_CLOSING = frozenset([")", "]", "}", r"\}", r"\rangle"])
MATRIX = re.compile(r"\\begin\{pmatrix\}((?:(?!\\begin|\\end).)*)\\end\{pmatrix\}")


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
        return _matrix([[_key(cell.strip(), depth + 1) for cell in row] for row in rows])
    if len(parts := split(text, r"\cup")) > 1:
        return r"\cup".join(sorted({_key(_interval(part) or part, depth + 1) for part in parts}))
    if interval := _interval(text) or _intersection(text) or _unequal(text):
        return _key(interval, depth + 1)
    bracketed = brackets(text)
    if text == r"\{\}":
        return r"\emptyset"
    if depth == 0:
        braces = bracketed is not None and bracketed[0] == r"\{" and bracketed[2] == r"\}"
        items = split(bracketed[1] if bracketed and braces else text, ",")
        pairs = [_assigned(item) for item in items]
        names = {name.split("_")[0] for name, _ in pairs}  # x_1 and x_2 are solutions of one equation
        if not braces and "" not in names and len(names) == len(items) > 1:
            return f"({', '.join(_key(value, depth + 1) for _, value in sorted(pairs))})"
        items = _solutions(items)
        if braces or len(items) > 1:
            return ", ".join(sorted({_key(item, depth + 1) for item in items}))
    elif len(parts := split(text, ",")) > 1:
        return ", ".join(_key(part, depth + 1) for part in parts)
    if bracketed:
        opening, inside, closing = bracketed
        keys = [_key(part, depth + 1) for part in split(inside, ",")]
        around = (opening, closing) == ("(", ")") or MATRIX.fullmatch(keys[0]) or re.fullmatch("[A-J]", keys[0])
        if len(keys) == 1 and around:
            return keys[0]
        if (opening, closing) == (r"\{", r"\}"):
            keys = sorted(set(keys))
        rows = [split(key[1:-1], ",") for key in keys if key.startswith("[") and key.endswith("]")]
        if opening == "[" and closing == "]" and len(rows) == len(keys) and len({len(row) for row in rows}) == 1:
            return _matrix(rows)
        return opening + ", ".join(keys) + closing
    return _expression(text)


def _matrix(rows: list[list[str]]) -> str:
    return rf"\begin{{pmatrix}}{(chr(92) * 2).join('&'.join(row) for row in rows)}\end{{pmatrix}}"


def _solutions(items: list[str]) -> list[str]:
    r"""Write out `1 \pm x` as two solutions, and drop an `x=` that all of them have, or the first for all."""
    pairs = [_assigned(item) for item in items]
    names = [name.split("_")[0] for name, _ in pairs]
    alone = len(set(names)) == 1 or not any(names[1:])
    chosen = [value for _, value in pairs] if alone else items
    both = [item.replace(r"\pm", sign) for item in chosen for sign in ("+", "-") if item.count(r"\pm") == 1]
    return [item for item in chosen if item.count(r"\pm") != 1] + [item.removeprefix("+").strip() for item in both]


_TERM = re.compile(
    rf"([-+]?)(?:({_DECIMAL})|\\frac\{{([0-9]+)\}}\{{([0-9]+)\}})?\*?({_VARIABLE.pattern})?(?:/([0-9]+))?(?=[-+]|$)"
)


def _linear(text: str) -> tuple[str, Fraction, Fraction] | None:
    """Read `2x-3` as (x, 2, -3) and 5 as ("", 0, 5); None for anything else."""
    text = re.sub(r"\\frac\{([0-9]*[A-Za-z])\}\{([0-9]+)\}", r"\1/\2", text)
    name, slope, constant, end = "", Fraction(0), Fraction(0), 0
    while end < len(text):
        term = _TERM.match(text, end)
        if term is None or term.end() == end or not (term[2] or term[3] or term[5]):
            return None
        if int(term[4] or 1) == 0 or int(term[6] or 1) == 0 or (name and term[5] and name != term[5]):
            return None
        value = _signed(term[1], Fraction(term[2] or term[3] or 1) / int(term[4] or 1) / int(term[6] or 1))
        name = term[5] or name
        slope, constant = (slope + value, constant) if term[5] else (slope, constant + value)
        end = term.end()
    return (name, slope, constant) if text and name not in ("e", "i") else None


def _interval(text: str) -> str | None:
    r"""Return `(-1, 5]` for -1<x\le5 and for -2<2x\le10; None for anything but one variable between numbers."""
    parts = [part.strip() for part in _INEQUALITY.split(text)]
    ends, signs = parts[::2], parts[1::2]
    if len(signs) not in (1, 2) or "," in text or "=" in text or not all(ends):
        return None
    if len({sign in (">", r"\ge") for sign in signs}) > 1:  # 1 < x > 0
        return None
    ends, signs = _solved(ends, signs)
    if signs[0] in (">", r"\ge"):
        ends, signs = ends[::-1], [_FLIPPED[sign] for sign in signs[::-1]]
    place = 1 if len(signs) == 2 or _VARIABLE.fullmatch(ends[1]) else 0
    if not _VARIABLE.fullmatch(ends[place]) or any(variables(end) for n, end in enumerate(ends) if n != place):
        return None
    if len(signs) == 1:
        ends, signs = (["", *ends], ["<", *signs]) if place == 0 else ([*ends, ""], [*signs, "<"])
    low, high = ends[0] or r"-\infty", ends[2] or r"\infty"
    return f"{'(' if signs[0] == '<' else '['}{low}, {high}{')' if signs[1] == '<' else ']'}"


_BUILDER = re.compile(r"\\\{[A-Za-z](?:\\in(?![A-Za-z])[^|]*)?[|:](?P<condition>.*)\\\}")


def _intersection(text: str) -> str | None:
    r"""Return `(2, 5)` for x>2\land x<5, and the condition of {x|x>2}."""
    if (builder := _BUILDER.fullmatch(text)) and (interval := _interval(builder["condition"])):
        return interval
    sides = [_interval(part) or "" for part in split(text, r"\land")]
    if len(sides) == 2 and all(sides):
        low, high = sorted(sides, key=lambda side: "-\\infty" in side)
        if low.endswith(r", \infty)") and high.startswith(r"(-\infty, "):
            return low.removesuffix(r"\infty)") + high.removeprefix(r"(-\infty, ")
    return None


def _unequal(text: str) -> str | None:
    r"""Return the two intervals of x\ne3."""
    sides = [side.strip() for side in _UNEQUAL.split(text)]
    values = [side for side in sides if side and not variables(side)]
    if len(sides) != 2 or len(values) != 1 or not any(map(_VARIABLE.fullmatch, sides)):
        return None
    return rf"(-\infty, {values[0]})\cup({values[0]}, \infty)"


def _solved(ends: list[str], signs: list[str]) -> tuple[list[str], list[str]]:
    """Solve a linear inequality for its variable; any other stays as it is."""
    sides = [side for end in ends if (side := _linear(end)) is not None]
    names = {name for name, _, _ in sides if name}
    if len(sides) < len(ends) or len(names) != 1 or (len(ends) == 3 and (sides[0][0] or sides[2][0])):
        return ends, signs
    place = 1 if len(ends) == 3 else 0
    others = [side for n, side in enumerate(sides) if n != place]
    slope = sides[place][1] - (others[0][1] if len(ends) == 2 else 0)
    if not slope:
        return ends, signs
    values = [str((constant - sides[place][2]) / slope) for _, _, constant in others]
    signs = signs if slope > 0 else [_FLIPPED[sign] for sign in signs]
    return [*values[:place], names.pop(), *values[place:]], signs


def _number(text: str, *, thousands: bool) -> Fraction | None:
    """Return the exact value of a literal number, or None. At most one quotient or power is computed."""
    if thousands and _THOUSANDS.fullmatch(text):
        return Fraction(text.replace(",", "").replace(" ", ""))
    if thousands and (match := _EUROPEAN.fullmatch(text)):
        return Fraction(f"{(match[1] or match[0]).replace('.', '').replace(' ', '')}.{match[2] or 0}")
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
    for token in TOKEN.findall(text):
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
    tokens = TOKEN.findall(text)
    if len(tokens) < 3 or tokens[0] not in _OPENING or tokens[-1] not in _CLOSING:
        return None
    depth = 0
    for index, token in enumerate(tokens):
        depth += (token in _OPENING) - (token in _CLOSING)
        if depth == 0 and index < len(tokens) - 1:
            return None
    return (tokens[0], "".join(tokens[1:-1]).strip(), tokens[-1]) if depth == 0 else None


_TWO_LETTER_WORDS = re.compile("no|on|in|up|is|it|at|by|do|go|he|if|me|my|of|or|so|to|us|we|ok", re.IGNORECASE)


def _expression(text: str) -> str:
    """Write relations with the smaller side first, mixed numbers as fractions, and words in lower case."""
    if not is_maths(text) and not re.search(r"[\\^_=]", text):
        # Two capitals are rather a name (AB) than a word, and a letter may be a choice.
        name = text.isalpha() and text.isascii() and len(text) <= 2 and not _TWO_LETTER_WORDS.fullmatch(text)
        return text if (name and not text.istitle()) or is_maths(text.casefold()) else text.casefold()
    text = _MIXED_FACTOR.sub(_improper, text)
    left, sign, right = _INEQUALITY.split(text) if len(_INEQUALITY.findall(text)) == 1 else ("", "", "")
    if sign in (">", r"\ge") and left and right:
        text = join(TOKEN.findall(f"{right}{_FLIPPED[sign]} {left}".replace("< ", "<")))
    return r"\ne ".join(sorted(side.strip() for side in _UNEQUAL.split(text)))


def _improper(match: re.Match[str]) -> str:
    whole, top, bottom = int(match[1]), int(match[2]), int(match[3])
    return rf"\frac{{{whole * bottom + top}}}{{{bottom}}}" if top < bottom else match[0]
