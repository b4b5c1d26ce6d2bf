r"""Find the final answer in a reply: in the last box, or else where the task says; never in what a model thought.

Every pattern here is linear in the length of the reply, or bounded.
"""

from __future__ import annotations

import re
import unicodedata
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from maft.answers import thinking
from maft.answers.canonical import MAX_ANSWER_CHARS, canonical
from maft.answers.latex import FONT

MAX_BOXES = 32
"""More boxes than this in one list are not one answer."""

# The optional second backslash reads over-escaped replies ("\\boxed{5}"). It is not `\\+`, which would make a
# long run of backslashes quadratic.
_BOX_OR_BRACE = re.compile(r"(?P<box>\\\\?(?:boxed|fbox)(?![A-Za-z])\s*(?P<open>\{)?)|\\.|[{}]", re.DOTALL)

# Without braces only what cannot be prose is an answer: "in a \boxed environment" is not.
_UNBRACED_START = re.compile(r"[-+\u2212]?(?:\\?\$)?(?:\.?[0-9]|\\[A-Za-z])|\(?[A-Z](?![A-Za-z])")
_UNBRACED = re.compile(r"(?:\\[A-Za-z]+|\\[%$]|\{(?:[^{}]|\{[^{}]*\})*\}|[^\s\\${}])+")

_PLACEHOLDER = re.compile(
    r"(?:(?:(?:insert )?(?:your|the) )?(?:final )?answer(?: here)?|\.\.\.|\\[lcv]?dots|\?+|[_{}]+|\\square)?"
)

# What parts boxes that are one answer: "\boxed{1} and \boxed{2}", "x = \boxed{1}, \quad x = \boxed{2}".
_LISTED = re.compile(
    r"(?:[\s$*)\]]|\\[)\]])*(?:[,;&]|\n[ \t]*(?:[-*•]|[0-9]{1,2}[.)])"
    r"|\\q?quad|(?:\\(?:text|mbox|textrm)\{\s*)?\b(?:and|or)\b(?:\s*\})?)"
    r"(?:[\s$*,~]|\\[,;:!(\[ ]|\\q?quad|(?:\\(?:text|mbox|textrm)\{\s*)?\b(?:and|or)\b(?:\s*\})?){0,12}"
    r"(?:[A-Za-z](?:_\{?[0-9A-Za-z]\}?)?\s?=\s?)?"
)
_MAX_BETWEEN = 60
_DENIED = re.compile(
    r"(?:\b(?:not|never|instead of|rather than)|(?:n't|\bcannot|\bnot|\bnever) be"
    r"|(?:n't|\bnot) (?:think|believe) (?:that )?(?:it|this|the answer) (?:is|was))\s+[$\\(\[]{0,3}$"
)
_CALLED_WRONG = re.compile(r"[$)\]\\]{0,4}\s+(?:is|was)\s+(?:wrong|incorrect|false|not (?:right|correct))\b")
_OF_OTHERS = re.compile(
    r"(?:\b(?:earlier|previous|initial|former|other|others'|another|their|his|her)|'s)\s+$", re.IGNORECASE
)
"""Before "answer": it is not the one that the reply settles on, if it gives another."""
_BY_OTHERS = re.compile(
    r"(?:\b(?:others?|they|those|who|agents?(?: [0-9]+)?|why not|do not|did not|never)|n't)\s+(?:\w+\s+)?$",
    re.IGNORECASE,
)
_ABOUT = re.compile(r"(?:helpful|useful|correct|incorrect|right|wrong|clear|unclear|close|off\b.*)", re.IGNORECASE)
"""Said about an answer, unless a reply says nothing else."""
_NOT_BUT = re.compile(
    r"not\s+[^,;]{1,40},?\s+but\s+(?:rather\s+)?((?!(?:it|this|that|we|i|you|they|there)\b).+)", re.IGNORECASE
)


class _Box(NamedTuple):
    head: int
    """Where its command starts."""
    start: int
    end: int
    """Where its content starts and ends; without braces both are where it starts."""
    braced: bool
    inner: list[_Box]


def extract_answer(text: str) -> str | None:
    r"""Return the content of the last `\boxed{...}` of a reply, or None if it has no usable one.

    A last box that is unclosed (a truncated reply) or longer than `MAX_ANSWER_CHARS` is None; empty ones, and the
    prompt's own "answer" or "...", are passed over. Boxes that are listed, "\boxed{1} and \boxed{2}", are one answer.
    `\fbox{...}` and `\boxed 5` count as boxes. A box in a box is unwrapped. What a model thought is not looked at.

    >>> extract_answer(r"First \boxed{3}; after checking, \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    >>> extract_answer(r"\boxed{4}, that is \boxed{1} or \boxed{3}."), extract_answer(r"<think>\boxed{5}</think> Hm.")
    ('1, 3', None)
    """
    return _boxed(thinking.strip(text).rest)


def _boxed(text: str) -> str | None:
    listed: list[str] = []
    head = len(text)  # where the box begins that was taken last
    for box in _boxes_from_the_last(text):
        content, end = _content(text, box)
        denied = _DENIED.search(text[max(0, box.head - 50) : box.head]) or _CALLED_WRONG.match(text, end)
        if denied and not listed:
            continue
        if listed and (head - end > _MAX_BETWEEN or not _LISTED.fullmatch(text, end, head) or len(listed) == MAX_BOXES):
            break
        if content is None or len(content) > MAX_ANSWER_CHARS:
            break
        if not is_placeholder(content):
            listed.insert(0, content)
            head = box.head
    if not listed:
        return None
    distinct = list({canonical(content): content for content in reversed(listed)}.values())[::-1]
    answer = ", ".join(distinct)
    return answer if len(answer) <= MAX_ANSWER_CHARS else listed[-1]


def _boxes_from_the_last(text: str) -> Iterator[_Box]:
    """Yield the outermost boxes, the last first; nothing if the last box is not closed."""
    boxes: list[_Box] = []
    open_braces: list[int] = []  # the box that each open brace belongs to, -1 for any other brace
    for match in _BOX_OR_BRACE.finditer(text):
        if match["box"]:
            if match["open"]:
                open_braces.append(len(boxes))
            elif "\n" in match[0] or not _UNBRACED_START.match(text, match.end()):
                continue
            end = -1 if match["open"] else match.end()
            boxes.append(_Box(match.start(), match.end(), end, bool(match["open"]), []))
        elif match[0] == "{":
            open_braces.append(-1)
        elif match[0] == "}" and open_braces:
            closed = open_braces.pop()
            if closed >= 0:
                boxes[closed] = boxes[closed]._replace(end=match.start())
    if not boxes or boxes[-1].end < 0:
        return
    outermost: list[_Box] = []
    for box in boxes:
        if box.end >= 0 and outermost and box.head < outermost[-1].end:
            outermost[-1].inner.append(box)
        elif box.end >= 0:
            outermost.append(box)
    yield from reversed(outermost)


def _content(text: str, box: _Box) -> tuple[str | None, int]:
    """Return what is in a box, boxes in it unwrapped, and where the box ends; None where its content has no end."""
    if not box.braced:
        run = _UNBRACED.match(text[box.start : box.start + 2 * MAX_ANSWER_CHARS])
        if run is None or text.startswith("{", box.start + run.end()):  # stopped within an argument
            return None, box.start
        content = run[0].rstrip(".,;:!?")
        return content, box.start + len(content)
    cuts = [(inner.head, inner.start) for inner in box.inner]
    cuts += [(inner.end, inner.end + 1) for inner in box.inner if inner.braced]
    pieces: list[str] = []
    position = box.start
    for cut_start, cut_end in sorted(cuts):
        pieces.append(text[position:cut_start])
        position = cut_end
    return "".join((*pieces, text[position : box.end])).strip(), box.end + 1


def is_placeholder(answer: str) -> bool:
    """Say whether an answer is empty, or one of the texts that prompts put in the place of an answer."""
    return _PLACEHOLDER.fullmatch(canonical(answer)) is not None


# ----------------------------------------------------------------------------------------------------
# Replies without a box. A task chooses: `extract_answer`, or one of these, which all look for a box first.

_TAGS = ("answer", "final_answer", "final", "ans")
_HEADING = (
    r"^[ \t]{0,3}(?:#{1,6}[ \t]*)?(?:[^\w\n]|_){0,4}(?:the[ \t]+)?(?:final[ \t]+)?answer[*_]{0,3}[ \t]*:?[*_#]{0,6}"
    r"[ \t]*$[\s*_=-]{0,9}"
)
_STATED = re.compile(
    _HEADING + r"|####[ \t]*(?!(?:step|final|solution|note|explanation|conclusion|part|check)\b)"
    r"|\b(?:answers?|result|solutions?|antwort|respuesta|réponse|risposta|resposta|ответ)\b[ \t*_]{0,9}"
    r"(?:(?:is|are|was|(?:would|will|should|must) be|equals|ist|est|es|è|é)\b|=|:|—|[-–]>|→)"
    r"(?:[ \t]*:)?"
    r"(?:[ \t]+(?:therefore|thus|then|simply|just|now|clearly|indeed|exactly)\b)?[\s*_]{0,9}"
    r"|(?:答案|答え|答|정답|답)[】\]\s]{0,3}(?:应该)?(?:是|为|為|は|은|는|:|：|】|\s)[\s:：*_]{0,9}",
    re.IGNORECASE | re.MULTILINE,
)
_MATHS = re.compile(r"(?<!\\)\$\$?((?:\\\$|[^$\n])+)\$\$?|\\\(([^\n]+?)\\\)|\\\[([^\n]+?)\\\]")
_SENTENCE_END = re.compile(
    r"(?<!\\)[.!?;](?=\s|$)|[。！？；]|\n|\s*(?:です|입니다)|\*\*|,\s+(?=[a-z]{2})|\s+(?=(?:because|since|so|which|as)\b)"
)
_SUM = re.compile(r"[-+*/().,$\s\d]*=([^=]+)")  # 4 * 4 = 16
_COMMANDS = re.compile(r"\\[A-Za-z]+")
_MAX_ALONE = 60
MAX_STATED_WORDS = 6
"""More words than this after "the answer is" are prose."""
MAX_STATEMENTS = 50
"""Only the last 50 statements are looked at."""


def extract_stated(text: str) -> str | None:
    r"""Return the boxed answer of a reply, or else what it last says its answer is.

    >>> extract_stated("So the answer is $x = 5$, as shown."), extract_stated("#### 42"), extract_stated("It is 5.")
    ('x = 5', '42', None)
    >>> extract_stated("<answer>5</answer>"), extract_stated("### Final Answer\n4")
    ('5', '4')
    """
    text = thinking.strip(text).rest
    return _boxed(text) or _tagged(text) or next(_statements(text), None) or _alone(text.strip())


def _alone(text: str) -> str | None:
    """Return a reply that is nothing but one value."""
    value = len(text) <= _MAX_ALONE and "\n" not in text and not re.search(r"[A-Za-z]{2}", _COMMANDS.sub("", text))
    return (_first_phrase(text) or None) if value and re.search(r"[0-9]|\\[A-Za-z]", text) else None


def _tagged(text: str) -> str | None:
    """Return what is between the last `<answer>` and `</answer>`."""
    text = text.replace("[ANSWER]", "<answer>").replace("[/ANSWER]", "</answer>")
    lower = text.lower()
    for tag in _TAGS:
        end = lower.rfind(f"</{tag}>")
        start = lower.rfind(f"<{tag}>", 0, max(end, 0))
        if start >= 0:
            content = text[start + len(tag) + 2 : end].strip()
            if len(content) <= MAX_ANSWER_CHARS and not is_placeholder(content):
                return next(_statements(content), None) or content
    return None


def _statements(text: str) -> Iterator[str]:
    """Yield what a reply says its answer is, the last first; then what it says of other answers, or about its own."""
    later = []
    for match in reversed(deque(_STATED.finditer(text), MAX_STATEMENTS)):
        answer = _first_phrase(text[match.end() : match.end() + 2 * MAX_ANSWER_CHARS])
        if answer is not None and (correction := _NOT_BUT.fullmatch(answer)):
            answer = correction[1]
        if answer is None or re.match(r"(?:not|never)\s+\S", answer, re.IGNORECASE):
            continue
        if _ABOUT.fullmatch(answer) or _OF_OTHERS.search(text[max(0, match.start() - 20) : match.start()]):
            later.append(answer)
        else:
            yield answer
    yield from later


def _first_phrase(text: str) -> str | None:
    if maths := _MATHS.match(text):
        answer = str(next(filter(None, maths.groups()))).strip()
    else:
        answer = _SENTENCE_END.split(text, maxsplit=1)[0].strip(" \t*_:`\"'")
    if sum_ := _SUM.fullmatch(answer):
        answer = sum_[1].strip()
    words = re.findall(r"(?<!\\)\b[A-Za-z]{2,}", answer)
    if len(answer) > MAX_ANSWER_CHARS or len(words) > MAX_STATED_WORDS or "\\boxed" in answer:
        return None
    return None if is_placeholder(answer) else answer


_DIGITS = r"(?:\d{1,3}(?:(?:,|\{,\}|\\,|[' \u00a0\u2009\u202f])\d{3}(?!\d))+|\d+)(?:\.\d+)?"
_SIGN = r"(?:(?<![\w)}])[-\u2212]|\bnegative )?"
_NUMBER_IN_TEXT = re.compile(
    r"\d{1,3}(?:\.\d{3}){2,}(?![\d.])|\d{0,9}[½⅓⅔¼¾⅛⅜⅝⅞]"
    rf"|{_SIGN}(?:\d{{1,9}})?\\[dt]?frac\{{\d+\}}\{{\d+\}}|{_SIGN}10\^(?:\{{-?\d{{1,3}}\}}|-?\d{{1,3}})"
    rf"|{_SIGN}(?:\d+ (?=\d+/\d))?(?:(?<![\d/])\d+/\d+(?![\d/])"
    rf"|(?<!\d)(?<!\d\.)(?:{_DIGITS}|\.\d+)"
    rf"(?:[eE][-+]?\d{{1,3}}(?![\w])| ?(?:\\times|\*|×|x) ?10\^\{{?-?\d{{1,3}}\}}?)?"
    r"(?: (?:hundred|thousand|million|billion|trillion|dozen)s?\b)?)"
)
_PLAIN_NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?(?:/\d+)?")


def extract_number(text: str) -> str | None:
    r"""Return the boxed answer of a reply, or else the number that it states, or else the last: for tasks of numbers.

    >>> extract_number("7 - 9 is -2."), extract_number(r"\boxed{4} is right, not 5."), extract_number("No idea.")
    ('-2', '4', None)
    >>> extract_number("The answer is 12, in 7 days."), extract_number("It is 3/4."), extract_number("so 1.5e3 in all")
    ('12', '3/4', '1500')
    """
    text = thinking.strip(text).rest
    boxed = _boxed(text)
    if boxed is not None:
        return boxed
    tagged = _tagged(text)
    for statement in (*([tagged] if tagged else []), *_statements(text)):
        if numbers := _numbers(statement.rpartition("=")[2]):
            return numbers[0]
        if _PLAIN_NUMBER.fullmatch(value := canonical(statement)):  # twelve
            return value
    numbers = _numbers(text)
    return numbers[-1] if numbers else None


def _numbers(text: str) -> list[str]:
    """Return the numbers in a text, each whole, and in figures."""
    numbers = [match[0].strip() for match in _NUMBER_IN_TEXT.finditer(text)]
    return [
        number if _PLAIN_NUMBER.fullmatch(number) else canonical(number)
        for number in numbers
        if len(number) <= MAX_ANSWER_CHARS
    ]


_BOXED_CHOICE = re.compile(
    r"[\s*$\"']*(?:(?:choice|option|answer)[\s:]*)?(?:\(([A-Ja-j])\)|\[([A-Ja-j])\]|([A-Ja-j]))"
    r"(?:[\s*$\"'.)]*$|[.:)]\s*(?=[^\s=])|\s+(?![,&+=<>\\-]|and\b|or\b|[a-z])|(?<=\))\s+(?=[\w$-]|\\(?:d?frac|sqrt|text|\$|\()))",
    re.IGNORECASE,
)
_OPTION = (
    r"(?:\\\()?(?:\\(?:text|textbf|mathrm|mathbf)\{)?[*_\"'`“]{0,3}"
    r"(?:\(([A-Ja-j])\)|\[([A-J])\]|([B-HJ]|[AI](?!\s+(?!because|since|as|for|and|but|due|based|is)[a-z]))(?![A-Za-z'’])"
    r"|([a-j])(?=\)|[.,;!*\"']{0,3}(?:\s*$|\s+[A-Z])))"
)
_LINK = r"(?:\s+(?i:is|be|it|to|the|option|choice|letter|answer|would|must|should|has|therefore|thus|clearly)\b){0,4}"
_GAP = r"[\s:*_$=>→–—.\-]{0,9}"
_BARE = r"(?:\(([A-J])\)|([A-J]))"
_CHOICES = tuple(
    re.compile(pattern, re.MULTILINE)
    for pattern in (
        r"(?:\b(?i:answer|solution|ans|final(?:ly)?|choose|chose|pick|select|say|go(?:ing)? with|conclusion"
        r"|antwort|respuesta|réponse|risposta|resposta|ответ)\b|(?:答案|答え|答|정답|답|选择|选)[】\]]?(?:应该)?[是为為は은는]?)"
        r"(?:(?:\s+[a-z]{1,12}){1,6}?(?=\s+is\b))?"
        rf"{_LINK}{_GAP}(?i:option|choice)?\s?{_OPTION}",
        rf"(?<![A-Za-z']){_BARE}(?:[.):][^\n]{{0,80}}?)?[*_]{{0,2}}\s+is\s+(?:the\s+)?(?:most\s+)?(?:correct|right|best|true)\b",
        rf"\b(?i:correct|right|option|choice|letter)\b{_LINK}{_GAP}{_OPTION}",
        rf"\b(?i:so|thus|therefore|hence|it's|it is|must be)\b[\s,:*]{{1,4}}{_BARE}[*_]{{0,2}}(?=\s*[.!]|\s*$)",
        r"^[\s*_(\[]{0,9}([A-J])[\s*_)\].:]{0,9}$",
    )
)
_WHOLE_CHOICE = re.compile(r"[\s*_(\[{\"'`]{0,9}([A-Ja-j])[\s*_)\]}\"'`.:]{0,9}")
_FIRST_CHOICE = re.compile(r"[\s*_]{0,9}(?:\(([A-Ja-j])\)|([A-Ja-j])[.)](?=\s)|([A-J]):(?=\s))")
_LINE_CHOICE = re.compile(r"^[\s*_]{0,9}(?:\(([A-J])\)|([A-J])[.):](?=\s))", re.MULTILINE)
_ANY_CHOICE = re.compile(r"\(([A-J])\)")


_NO_CHOICE_BUT = re.compile(
    r"\b(?i:not)\s+(?:(?i:option|choice)\s)?(?:\(?[A-J]\)?(?:,\s?|\s(?:or|nor|and)\s)){0,4}\(?[A-J]\)?,?\s(?i:but)\s"
    r"(?:(?i:rather|instead)\s)?"
)


def extract_choice(text: str, letters: str = "ABCDEFGHIJ") -> str | None:
    r"""Return the letter that a reply to a multiple-choice question settles on.

    Looked for in this order: the box, a tag, "the answer is (B)", "B is correct", "option B", "so B.", a line with a
    letter only, a reply that begins with "B." or "(B)", and the last "(B)" anywhere. Within each the last one counts.

    >>> extract_choice(r"\boxed{\text{(B)}}"), extract_choice("The answer is **C**."), extract_choice("A cat.")
    ('B', 'C', None)
    """
    text = _NO_CHOICE_BUT.sub("", unicodedata.normalize("NFKC", thinking.strip(text).rest))  # not A but C
    if whole := _WHOLE_CHOICE.fullmatch(text):
        return _letter(whole, letters)
    for short in (_boxed(text), _tagged(text)):
        if short is not None and (match := _BOXED_CHOICE.match(FONT.sub(r"\1", short))):
            return _letter(match, letters)
    for pattern in _CHOICES:
        matches = [m for m in pattern.finditer(text) if not _BY_OTHERS.search(text[max(0, m.start() - 40) : m.start()])]
        if matches:
            return _letter(matches[-1], letters)
    lines = list(_LINE_CHOICE.finditer(text))
    if first := _FIRST_CHOICE.match(text):
        return _letter(first, letters)
    if len({_letter(line, letters) for line in lines}) == 1:
        return _letter(lines[0], letters)
    bracketed = [m for m in _ANY_CHOICE.finditer(text) if not _DENIED.search(text[max(0, m.start() - 20) : m.start()])]
    return _letter(bracketed[-1], letters) if bracketed else None


def _letter(match: re.Match[str], letters: str) -> str | None:
    letter = str(next(filter(None, match.groups()))).upper()
    return letter if letter in letters else None
