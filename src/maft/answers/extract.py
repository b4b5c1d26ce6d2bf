r"""Find the final answer in a reply: in the last box, or else where the task says."""

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
