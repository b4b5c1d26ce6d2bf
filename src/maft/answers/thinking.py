"""Part a reply of a thinking model into its thinking and the rest, which alone can hold the answer.

Marks known: `<think>` and kin (Qwen, DeepSeek, GLM, Seed, EXAONE, Granite), `[THINK]` (Mistral), `◁think▷` (Kimi),
`<|channel|>analysis` (gpt-oss, with and without its special tokens), `<|channel>thought` (Gemma),
`<|START_THINKING|>` (Cohere), and `<|begin_of_thought|>` (Sky-T1).
"""

from __future__ import annotations

import re
from typing import NamedTuple

_NAMES = r"(?:[a-z]{1,9}:)?(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflection|scratchpad|analysis)"
_MARK = re.compile(
    rf"(?P<open><{_NAMES}(?:\s[^<>]{{0,60}})?>|(?-i:\[THINK\])|◁think▷|<\|start_thinking\|>|<\|begin_of_thought\|>"
    r"|<\|im_start\|>think|<\|channel>thought|<unused94>thought)"
    rf"|(?P<close></{_NAMES}>|(?-i:\[/THINK\])|◁/think▷|<\|end_thinking\|>|<\|end_of_thought\|>|<\|im_start\|>answer"
    r"|<channel\|>|<unused95>)",
    re.IGNORECASE,
)
_CHANNEL = re.compile(
    r"(?:<\|start\|>\s{0,9}assistant\s{0,9})?<\|channel\|>\s{0,9}(?P<name>analysis|commentary|final)\b"
    r"(?:[^<]{0,80}(?:<\|constrain\|>[^<]{0,40})?<\|message\|>)?",
    re.IGNORECASE,
)
_WITHOUT_MARKS = re.compile(r"\s*analysis(?=[A-Z])")
_FINAL_WITHOUT_MARKS = "assistantfinal"
_WRAPPING = re.compile(
    r"<\|(?:start|end|return|call|message|start_response|end_response|begin_of_solution|end_of_solution)\|>",
    re.IGNORECASE,
)


class Parted(NamedTuple):
    """What a model thought, and what it then replied."""

    thinking: str
    rest: str


def strip(text: str) -> Parted:
    r"""Part a reply into its thinking and the rest, both without the marks; a reply without marks is all rest.

    Thinking that is not closed goes to the end, unless its tag, such as `<think>`, is only mentioned within a sentence.
    What comes before a closing mark without an opening one is thinking: many prompts end with the opening mark.

    >>> strip("<think>Is it 5? No.</think> It is 7.").rest, strip("So 5.</think>7").rest, strip("<think>5").rest
    ('It is 7.', '7', '')
    """
    if channels := list(_CHANNEL.finditer(text)):
        return _by_channel(text, channels)
    if analysis := _WITHOUT_MARKS.match(text):
        before, final, after = text[analysis.end() :].rpartition(_FINAL_WITHOUT_MARKS)
        return Parted(before.strip(), after.strip()) if final else Parted(after.strip(), "")
    thinking: list[str] = []
    rest: list[str] = []
    start = depth = 0
    marks = list(_MARK.finditer(text))
    if all(mark["open"] and _is_mentioned(text, mark) for mark in marks):
        marks = []
    for mark in marks:
        piece = text[start : mark.start()]
        if mark["open"]:
            (thinking if depth else rest).append(piece)
            depth = 1
        elif depth:
            thinking.append(piece)
            depth = 0
        else:  # a closing mark alone
            thinking, rest = [*thinking, *rest, piece], []
        start = mark.end()
    if not start:
        return Parted("", text)
    (thinking if depth else rest).append(text[start:])
    return Parted(_joined(thinking), _joined(rest))


def _is_mentioned(text: str, mark: re.Match[str]) -> bool:
    """Say whether an opening tag stands within a sentence: "I put it in <thinking> tags."."""
    before = text[: mark.start()].rpartition("\n")[2].rstrip()
    return mark[0][1].isalpha() and bool(before) and before[-1] not in ".!?:"


def is_mark(text: str) -> bool:
    """Say whether a text is a mark alone, as special tokens of some models are."""
    return bool(_MARK.fullmatch(text))


def _by_channel(text: str, channels: list[re.Match[str]]) -> Parted:
    """Take the final channel for the rest; a reply that was cut before it has none."""
    thinking: list[str] = []
    rest = [text[: channels[0].start()]]
    for channel, after in zip(channels, [*channels[1:], None], strict=True):
        content = text[channel.end() : after.start() if after else len(text)]
        (rest if channel["name"].lower() == "final" else thinking).append(content)
    return Parted(_joined(thinking), _joined(rest))


def _joined(pieces: list[str]) -> str:
    return "\n".join(tidy for piece in pieces if (tidy := _WRAPPING.sub("", piece).strip()))
