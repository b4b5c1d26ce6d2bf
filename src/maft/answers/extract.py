r"""Find the final answer in a reply: in the last box, or else where the task says.

Every pattern here is linear in the length of the reply, or bounded.
"""

from __future__ import annotations

import re

from maft.answers.canonical import MAX_ANSWER_CHARS, canonical

# The optional second backslash reads over-escaped replies ("\\boxed{5}"). It is not `\\+`, which would make a
# long run of backslashes quadratic.
_BOX_OR_BRACE = re.compile(r"(?P<box>\\\\?(?:boxed|fbox)(?![A-Za-z])\s*(?P<open>\{)?)|\\.|[{}]", re.DOTALL)

# Without braces only what cannot be prose is an answer: "in a \boxed environment" is not.
_UNBRACED_START = re.compile(r"[-+\u2212]?(?:\\?\$)?(?:\.?[0-9]|\\[A-Za-z])|\(?[A-Z](?![A-Za-z])")
_UNBRACED = re.compile(r"(?:\\[A-Za-z]+|\\[%$]|\{(?:[^{}]|\{[^{}]*\})*\}|[^\s\\${}])+")

_PLACEHOLDERS = frozenset({"", "answer", "...", r"\ldots", r"\dots", r"\cdots"})


def extract_answer(text: str) -> str | None:
    r"""Return the content of the last `\boxed{...}` of a reply, or None if it has no usable one.

    The last box decides, even when it is unclosed (a truncated reply), empty, longer than `MAX_ANSWER_CHARS`,
    or the prompt's own placeholder "answer" or "...": each of these is None. `\fbox{...}` and `\boxed 5`
    count as boxes. A box in a box is unwrapped.

    >>> extract_answer(r"First \boxed{3}; after checking, \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    >>> extract_answer(r"The answer is \boxed{12")
    """
    heads: list[int] = []  # where each box command starts,
    starts: list[int] = []  # where its content starts,
    ends: list[int] = []  # and where its closing brace is: -1 while unclosed, the start if it has no braces
    open_braces: list[int] = []  # the box that each open brace belongs to, -1 for any other brace
    for match in _BOX_OR_BRACE.finditer(text):
        if match["box"]:
            if match["open"]:
                open_braces.append(len(starts))
            elif "\n" in match[0] or not _UNBRACED_START.match(text, match.end()):
                continue
            heads.append(match.start())
            starts.append(match.end())
            ends.append(-1 if match["open"] else match.end())
        elif match[0] == "{":
            open_braces.append(-1)
        elif match[0] == "}" and open_braces:
            box = open_braces.pop()
            if box >= 0:
                ends[box] = match.start()
    if not starts or ends[-1] < 0:
        return None

    outer = next(i for i, end in enumerate(ends) if end >= ends[-1])  # the widest box around the last one
    if ends[outer] == starts[outer] and text[ends[outer] - 1] != "{":
        run = _UNBRACED.match(text[starts[outer] : starts[outer] + 2 * MAX_ANSWER_CHARS])
        if run is None or text.startswith("{", starts[outer] + run.end()):  # stopped within an argument
            return None
        content = run[0].rstrip(".,;:!?")
    else:
        inner = range(outer + 1, len(starts))
        cuts = [(heads[i], starts[i]) for i in inner]
        cuts += [(ends[i], ends[i] + 1) for i in inner if text[starts[i] - 1] == "{"]
        pieces: list[str] = []
        position = starts[outer]
        for cut_start, cut_end in sorted(cuts):
            pieces.append(text[position:cut_start])
            position = cut_end
        pieces.append(text[position : ends[outer]])
        content = "".join(pieces)

    content = content.strip()
    if len(content) > MAX_ANSWER_CHARS or canonical(content) in _PLACEHOLDERS:
        return None
    return content


# ----------------------------------------------------------------------------------------------------
# Replies without a box. A task chooses: `extract_answer`, or one of these, which all look for a box first.

_NUMBER_IN_TEXT = re.compile(r"(?:(?<![\w)])[-\u2212])?\d+(?:,\d{3})*(?:\.\d+)?")


def extract_number(text: str) -> str | None:
    r"""Return the boxed answer of a reply, or else the last number in it: for tasks whose answers are numbers.

    >>> extract_number("7 - 9 is -2."), extract_number(r"\boxed{4} is right, not 5."), extract_number("No idea.")
    ('-2', '4', None)
    """
    boxed = extract_answer(text)
    if boxed is not None:
        return boxed
    numbers: list[str] = _NUMBER_IN_TEXT.findall(text)
    return numbers[-1] if numbers and len(numbers[-1]) <= MAX_ANSWER_CHARS else None


_STATED = re.compile(
    r"####[ \t]*|\b(?:answer|result|solution)\b[ \t*_]{0,9}(?:is|=|:)(?:[ \t]*:)?[\s*_]{0,9}",
    re.IGNORECASE,
)
_MATHS = re.compile(r"\$\$?([^$\n]+)\$\$?|\\\(([^\n]+?)\\\)|\\\[([^\n]+?)\\\]")
_SENTENCE_END = re.compile(r"[.!?;](?=\s|$)|\n|\*\*|,\s+(?=[a-z]{2})|\s+(?=(?:because|since|so|which|as)\b)")
_SUM = re.compile(r"[-+*/().,$\s\d]*=([^=]+)")  # 4 * 4 = 16
MAX_STATED_WORDS = 6
"""More words than this after "the answer is" are prose."""


def extract_stated(text: str) -> str | None:
    r"""Return the boxed answer of a reply, or else what it last says its answer is.

    >>> extract_stated("So the answer is $x = 5$, as shown."), extract_stated("#### 42"), extract_stated("It is 5.")
    ('x = 5', '42', None)
    """
    boxed = extract_answer(text)
    if boxed is not None:
        return boxed
    for match in reversed(list(_STATED.finditer(text))):
        answer = _first_phrase(text[match.end() : match.end() + 2 * MAX_ANSWER_CHARS])
        if answer is not None:
            return answer
    return None


def _first_phrase(text: str) -> str | None:
    if maths := _MATHS.match(text):
        answer = str(next(filter(None, maths.groups()))).strip()
    else:
        answer = _SENTENCE_END.split(text, maxsplit=1)[0].strip(" \t*_:`\"'")
    if sum_ := _SUM.fullmatch(answer):
        answer = sum_[1].strip()
    if len(answer) > MAX_ANSWER_CHARS or len(answer.split()) > MAX_STATED_WORDS or "\\boxed" in answer:
        return None
    return None if canonical(answer) in _PLACEHOLDERS else answer


_BOXED_CHOICE = re.compile(r"\(?([A-Ja-j])\)?(?:[.:)]|(?=\s)|$)|(?:choice|option)([a-j])$")
_STATED_CHOICE = re.compile(
    r"\b(?i:answer|choice|option)\b(?:\s+(?:is|would be|must be))?[\s:*_$]{0,9}(?:(?i:choice|option)\s+)?"
    r"(?:\\(?:text|textbf|mathrm|mathbf)\{)?(?:\(([A-Ja-j])\)|([B-HJ]|[AI](?!\s+[a-z]))(?![A-Za-z']))"
)
_LONE_CHOICE = re.compile(r"^[\s*_(\[]{0,9}([A-J])[\s*_)\].:]{0,9}$", re.MULTILINE)
_FIRST_CHOICE = re.compile(r"[\s*_]{0,9}(?:\(([A-J])\)|([A-J])[.):](?=\s))")
_ANY_CHOICE = re.compile(r"\(([A-J])\)")


def extract_choice(text: str, letters: str = "ABCDEFGHIJ") -> str | None:
    r"""Return the letter that a reply to a multiple-choice question settles on.

    Looked for in this order: the box, "the answer is (B)", a line with a letter only, a reply that begins with "B."
    or "(B)", and the last "(B)" anywhere. Within each the last one counts.

    >>> extract_choice(r"\boxed{\text{(B)}}"), extract_choice("The answer is **C**."), extract_choice("A cat.")
    ('B', 'C', None)
    """
    boxed = extract_answer(text)
    if boxed is not None and (match := _BOXED_CHOICE.match(canonical(boxed))):
        found = [match]
    else:
        found = list(_STATED_CHOICE.finditer(text))
        found = found or list(_LONE_CHOICE.finditer(text))
        if not found and (first := _FIRST_CHOICE.match(text)):
            found = [first]
        found = found or list(_ANY_CHOICE.finditer(text))
    if not found:
        return None
    letter = str(next(filter(None, found[-1].groups()))).upper()
    return letter if letter in letters else None
