r"""Write an answer in one plain form of LaTeX, without Unicode, decoration and short forms, all arguments in braces.

Model text is only matched and rewritten. Malformed input is never an error.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

MAX_DEPTH = 40
"""Answers nested deeper than this are compared as they are written."""


def words(text: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(text.split())


def pairs(text: str) -> dict[str, str]:
    """Return a text of words and what each stands for as a dict."""
    parts = text.split()
    return dict(zip(parts[::2], parts[1::2], strict=True))


FONT = re.compile(r"\\(?:text(?:bf|rm|sf|tt|it|up|normal)?|math(?:rm|bf|sf|tt|it)|[mh]box|operatorname)\s*\{([^{}]*)\}")
TOKEN = re.compile(r"\\[A-Za-z]+|\\.|\s+|.", re.DOTALL)
CONTROL_WORD = re.compile(r"\\[A-Za-z]+")
GREEK = words(
    r"\alpha \beta \gamma \delta \epsilon \varepsilon \zeta \eta \theta \iota \kappa \lambda \mu \nu \xi \rho \sigma"
    r" \tau \upsilon \phi \varphi \chi \psi \omega \Gamma \Delta \Theta \Lambda \Xi \Sigma \Phi \Psi \Omega"
)


class TooDeep(Exception):
    """An answer is nested deeper than `MAX_DEPTH`."""


def tidy(text: str) -> list[str]:
    r"""Return the tokens of an answer in LaTeX, without what is only typography, each symbol by one name.

    >>> "".join(tidy(r"x \times \dfrac12 \leq \left( y \right)"))
    'x * \\frac12 \\le ( y )'
    """
    return _clean(TOKEN.findall(_in_latex(text)))


# ----------------------------------------------------------------------------------------------------
# Unicode

_SYMBOLS = pairs(
    r"∞ \infty √ \sqrt ∛ \sqrt[3] ∜ \sqrt[4] ∅ \emptyset ° ^\circ · \cdot ∙ \cdot ≤ \le ≦ \le ⩽ \le ≥ \ge ≧ \ge ⩾ \ge"
    r" ≠ \ne ± \pm ∈ \in ∩ \cap ÷ / ∕ / ⟨ \langle ⟩ \rangle 〈 \langle 〉 \rangle → \to"
    r" ≈ \approx ✕ \times ✖ \times ∘ ^\circ º ^\circ ∶ : ∧ \land ∥ \parallel"
    r" ⌊ \lfloor ⌋ \rfloor ⌈ \lceil ⌉ \rceil ℝ \mathbb{R} ℤ \mathbb{Z} ℚ \mathbb{Q} ℕ \mathbb{N} ℂ \mathbb{C}"
) | {"\u222a": r"\cup", "\u00d7": r"\times", "\u22c5": r"\cdot", "π": r"\pi", "∠": r"\angle"}
_GREEK_LETTERS = {
    chr(code): name
    for code in (*range(0x391, 0x3AA), *range(0x3B1, 0x3CA))
    if (letter := unicodedata.name(chr(code), "").rpartition(" ")[2].replace("LAMDA", "LAMBDA"))
    and (name := "\\" + (letter.capitalize() if code < 0x3B1 else letter.lower())) in GREEK
}
_UNICODE = str.maketrans(
    dict.fromkeys("\u2212\u2013\u2010\u2011\ufe63\uff0d", "-")  # minus, dashes, hyphens
    | dict.fromkeys("\u2044\u2215", "/")
    | dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff", "")
    | {symbol: f"{name} " for symbol, name in (_SYMBOLS | _GREEK_LETTERS).items()}
    | {"。": ".", "、": ",", "’": "'", "‘": "'"}
)
_FRACTION = re.compile("[¼-¾⅐-⅞↉]")
_RAISED = re.compile("[⁰¹²³⁴-⁹⁺-⁾ⁿⁱʰ-ʸˡ-ˣᴬ-ᵡ]+")
_LOWERED = re.compile("[₀-₉₊-₎ₐ-ₜ]+")


def without_unicode(text: str) -> str:
    """Write signs as LaTeX: superscripts, fractions, Greek letters, wide and mathematical letters."""
    if text.isascii():
        return text
    text = "".join(_ascii_digit(sign) for sign in text if unicodedata.category(sign) != "Sc" or sign == "$")
    for signs, form in ((_FRACTION, r"\frac{{{0}}}{{{1}}}"), (_RAISED, "^{{{0}}}"), (_LOWERED, "_{{{0}}}")):
        text = signs.sub(lambda m, form=form: form.format(*unicodedata.normalize("NFKC", m[0]).split("\u2044")), text)  # type: ignore[misc]
    return unicodedata.normalize("NFKC", text.translate(_UNICODE)).translate(_UNICODE)


def _ascii_digit(sign: str) -> str:
    """Return a digit of any script as one of ours: ٣ is 3."""
    return str(unicodedata.decimal(sign)) if unicodedata.category(sign) == "Nd" else sign


# ----------------------------------------------------------------------------------------------------
# What people write without LaTeX

_FUNCTIONS = "sin cos tan cot sec csc sinh cosh tanh arcsin arccos arctan log ln exp"
_NAMED = re.compile(
    rf"\\(?:operatorname|mathrm|text)\s*\{{\s*({_FUNCTIONS.replace(' ', '|')})\s*\}}"
    rf"|(?<![A-Za-z\\/])(?!sec *(?:$|[,)]))({_FUNCTIONS.replace(' ', '|')}|sqrt|pi|infinity)(?![A-Za-z])"
)
_NEXT_EQUATION = re.compile(r"(?<=[^,;\s])\s*\\q?quad\s+(?=[A-Za-z][A-Za-z0-9_]{0,3} ?=)")  # x = 3 \quad y = 4
_TIMES = re.compile(r"(?<=[0-9]) ?[xX] ?(?=10\^)")  # 3 x 10^4
_PLAIN = {
    "**": "^",
    "<=": r"\le ",
    "=<": r"\le ",
    "=>": r"\ge ",
    ">=": r"\ge ",
    "!=": r"\ne ",
    "<>": r"\ne ",
    r"\not=": r"\ne ",
}
_PLAIN |= {r"\not<": r"\ge ", r"\not>": r"\le "}
_PLAIN_MATRIX = re.compile(r"\\[pb]?matrix ?\{([^{}]*)\}")
_PROSE = re.compile(r"(?<![\\A-Za-z])(?!(?:and|text|mbox|textrm)(?![A-Za-z]))[A-Za-z]{3,}")
_WORD = r"(?<=\S)\s*,?\s*(?:\\(?:text|mbox|textrm)\s*\{{\s*,?\s*{0}\s*\}}|(?<![A-Za-z\\]){0}(?![A-Za-z]))\s*(?=\S)"
_OR, _AND = re.compile(_WORD.format("or")), re.compile(_WORD.format("and"))
_ENVIRONMENT = re.compile(
    r"\\(begin|end)\s*\{\s*(?:array\}\s*(?:\{[^{}]*\})?|[bB]?(?:small)?matrix\*?\}(?:\[.\])?|pmatrix\*\}(?:\[.\])?|psmallmatrix\})"
)
_ROW_SPACE = re.compile(r"\\\\\s*\[[^][]{0,9}\]|\\cr(?![A-Za-z])|\\hline(?![A-Za-z])")
_QUOTES = (
    ("**", "**"),
    ("*", "*"),
    ("__", "__"),
    ("_", "_"),
    ("``", "''"),
    ("`", "`"),
    ('"', '"'),
    ("“", "”"),
    ("'", "'"),
)
_PREFACE = re.compile(
    r"^(?:the )?(?:final |correct )?answer(?: is|:)\s*(?=\S)|<(b|i|u|em|strong|span|p|code)>(?=[^<]*</\1>)"
    r"|</(?:b|i|u|em|strong|span|p|code)>|^(?:option|choice) (?=\(?[A-J]\)?$)|(?<=^[A-J])\)$",
    re.IGNORECASE,
)


def bare(text: str) -> str:
    """Return an answer without quotes, emphasis and HTML around it, "Answer:" before it, and ";" after it."""
    text = _PREFACE.sub("", text).rstrip(",;: ")
    for left, right in _QUOTES:
        inside = text[len(left) : len(text) - len(right)]
        if text.startswith(left) and text.endswith(right) and inside and left not in inside:
            return inside
    return text


def _in_latex(text: str) -> str:
    """Write in LaTeX what people write without it: sqrt(2), 2*pi, x**2, x = 1 or x = 2."""
    text = _NAMED.sub(lambda m: rf"\{m[1] or m[2]} ", text).replace(r"\infinity", r"\infty")
    text = _NEXT_EQUATION.sub(", ", _TIMES.sub("*", text))
    for plain, latex in _PLAIN.items():
        text = text.replace(plain, latex)
    if "\\" in text:
        text = _ROW_SPACE.sub(lambda m: "" if "hline" in m[0] else r"\\ ", text)
        text = _PLAIN_MATRIX.sub(r"\\begin{pmatrix}\1\\end{pmatrix}", text)
        text = _ENVIRONMENT.sub(r"\\\1{pmatrix}", text)
    if not _PROSE.search(text):
        related = re.search(r"[<>]|\\(?:le|ge|lt|gt|in)", text)
        text = _OR.sub(r" \\cup " if related else ", ", text)
        text = _AND.sub(r" \\land " if related else ", ", text)
    return text


_DROPPED = words(
    r"\! $ \$ % \% \( \) \[ \] \left \right \displaystyle \textstyle \scriptstyle \limits \nolimits \strut \mathstrut"
    r" \big \Big \bigg \Bigg \bigl \Bigl \biggl \Biggl \bigr \Bigr \biggr \Biggr \tiny \small \large \Large \LARGE"
    r" \huge \Huge \therefore \checkmark \blacksquare \square \Box \qed \hfill \noindent \pounds \euro \yen \textdollar"
)
_SPACES = words(r"\, \; \: \> ~ \quad \qquad \thinspace \space") | {"\\ "}
_SYNONYMS = pairs(
    r"\dfrac \frac \tfrac \frac \cfrac \frac \times * \cdot * \leq \le \leqslant \le \leqq \le \geq \ge \geqslant \ge"
    r" \geqq \ge \neq \ne \lt < \gt > \lbrace \{ \rbrace \} \lbrack [ \rbrack ] \varnothing \emptyset \rightarrow \to"
    r" \langle ( \rangle ) \div / \dbinom \binom \tbinom \binom \mid | \vert | \lvert | \rvert | \colon :"
    r" \wedge \land"
)


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


# ----------------------------------------------------------------------------------------------------
# One form

_TEXT = words(
    r"\text \textbf \textit \textrm \textsf \texttt \textup \textnormal \mbox \hbox \rm \bf \it \operatorname \emph"
    r" \boldsymbol \bm \mathrm \mathbf \mathit \mathsf \mathtt \boxed \fbox \underline \ensuremath"
)
_ONE_ARGUMENT = words(r"\sqrt \begin \end \mathbb \mathcal \overline \bar \vec \hat \tilde")
_ARGUMENT_DROPPED = words(r"\color \textcolor \colorbox \hspace \vspace \phantom \tag \label")
_INFIX = {r"\over": r"\frac", r"\choose": r"\binom"}


def join(tokens: Iterable[str]) -> str:
    r"""Concatenate, keeping the space without which `\pi r` would become `\pir`."""
    pieces: list[str] = []
    for token in tokens:
        if pieces and token[:1].isalpha() and CONTROL_WORD.fullmatch(pieces[-1]):
            pieces.append(" ")
        if token:
            pieces.append(token)
    return "".join(pieces)


class Reader:
    r"""Rewrite LaTeX with all arguments in braces and no other braces.

    `\frac12` becomes `\frac{1}{2}`, `x^2` becomes `x^{2}`, `\text{(B)}` becomes `(B)`. Spaces stay where they part
    letters or digits, as in `1 1/2`, `1 2 3` and `not enough`, and in `100, 200`, which is a list where `100,200` is
    one number. A missing argument is empty and a stray brace stays.
    """

    def __init__(self, text: str, depth: int = 0) -> None:
        self.tokens = TOKEN.findall(text)
        self.position = 0
        self.depth = depth

    def read(self) -> str:
        """Return the whole text, rewritten.

        Raises:
            TooDeep: braces in braces, beyond `MAX_DEPTH`.
        """
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
            if token in _INFIX:
                self.position += 1
                return rf"{_INFIX[token]}{{{join(pieces)}}}{{{self._sequence(depth + 1)}}}"
            unknown_command = bool(CONTROL_WORD.fullmatch(previous)) and previous not in _ONE_ARGUMENT | _TEXT
            unknown_command = unknown_command and previous not in _ARGUMENT_DROPPED
            piece = self._item(previous, depth)
            if token == "{" and unknown_command and len(piece) != 1:
                piece = "{" + piece + "}"
            if spaced and pieces and self._parted(pieces[-1], piece):
                pieces.append(" ")
            if piece:
                pieces.append(piece)
                spaced = False
            previous = token
        return join(pieces)

    def _parted(self, before: str, piece: str) -> bool:
        """Say whether the space between two pieces tells something: not in `2 x`, nor beside signs and commands."""
        first, last = piece[:1], before[-1:]
        if CONTROL_WORD.fullmatch(before):
            return False
        if first.isdigit():
            return before == "," or last.isalnum()
        word = len(piece) > 1 or self._peek().isalpha()
        return first.isalpha() and (last.isalpha() or (last.isdigit() and word))

    def _item(self, previous: str, depth: int) -> str:
        if depth > MAX_DEPTH:
            raise TooDeep
        token = self._peek()
        self.position += 1
        if token == "{":
            content = self._sequence(depth + 1)
            if self._peek() == "}":
                self.position += 1
            return content
        if token in _TEXT:
            return self._argument(token, depth)
        if token in _ARGUMENT_DROPPED:
            self._argument(token, depth)
            return ""
        if token in (r"\frac", r"\binom"):
            return rf"{token}{{{self._argument(token, depth)}}}{{{self._argument(token, depth)}}}"
        if token == r"\sqrt" and self._peek() == "[" and "]" in self.tokens[self.position :]:
            end = self.tokens.index("]", self.position)
            index = "".join(self.tokens[self.position : end + 1])
            self.position = end + 1
            return rf"\sqrt{index}{{{self._digits() or self._argument(token, depth)}}}"
        if token in ("^", r"\sqrt") and self._next_is("(") and (inside := self._round()):
            return f"{token}{{{Reader(inside, depth + 1).read()}}}"
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
