r"""Hold our verdicts on answers against other graders', on every pair of the case table; writes docs/answers.md.

    python -m bench.answers

Two other graders: bare Math-Verify, given `\boxed{a}` and `\boxed{b}` with its own settings and time limits, and one
that compares texts after tidying them, as the released code does. Where one of them differs from us, the pair is
listed under the reason; a pair that fits no reason stops the script.
"""

import json
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from maft.answers import canonical, equivalent
from maft.answers.compare import verdict

ROOT = Path(__file__).parent.parent
CASES = ROOT / "tests" / "cases" / "answers.jsonl"
PAGE = ROOT / "docs" / "answers.md"
HEADING = "## Agreement with other graders, measured\n"


# ---- the other graders


def math_verify(a: str, b: str) -> bool:
    """Ask Math-Verify, with `a` as the gold answer."""
    import math_verify as library

    return bool(library.verify(library.parse(rf"\boxed{{{a}}}"), library.parse(rf"\boxed{{{b}}}")))


def tidied_text(a: str, b: str) -> bool:
    """Compare texts after tidying them in the manner of the graders that came with the MATH data set."""
    return _tidied(a) == _tidied(b)


def _tidied(text: str) -> str:
    text = text.replace("\n", "").replace(r"\!", "").replace("\\\\", "\\")
    text = re.sub(r"\\[td]frac", r"\\frac", text)
    text = re.sub(r"\\left|\\right|\^\{?\\circ\}?|\\\$|\\?%", "", text)
    text = text.split(r"\text{ ")[0]  # a unit
    text = re.sub(r"(^|[ {])\.", r"\g<1>0.", text)
    left, equals, right = text.partition("=")
    if equals and "=" not in right and len(left) <= 2:
        text = right
    text = re.sub(r"\\sqrt\s*([^\s{\[])", r"\\sqrt{\1}", text).replace(" ", "")
    text = re.sub(r"\\frac([^{])([^{])", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac([^{])\{", r"\\frac{\1}{", text)
    if text == "0.5":
        return r"\frac{1}{2}"
    return re.sub(r"^(-?\d+)/(-?\d+)$", r"\\frac{\1}{\2}", text)


GRADERS: dict[str, Callable[[str, str], bool]] = {"Math-Verify": math_verify, "tidied text": tidied_text}


# ---- why they differ from us: the first that fits

Reason = tuple[str, Callable[[str, str], object]]


def has(pattern: str) -> Callable[[str, str], object]:
    """Return a test whether either answer has the pattern."""
    return lambda a, b: re.search(pattern, f"{a}\n{b}")


def numbers(a: str, b: str) -> bool:
    """Whether both are numbers to us."""
    return all(re.fullmatch(r"-?\d+(/\d+)?", canonical(text)) for text in (a, b))


WE_JOIN: dict[str, list[Reason]] = {
    "Math-Verify": [
        (
            "It takes an inequality for an interval only where the inequality is the gold answer; a vote has no gold "
            "answer, so to us they are one thing in either order.",
            has(r"[<>]|\\leq?(?![A-Za-z])"),
        ),
        ("A letter with the option's text is the choice of that letter to us.", has(r"[A-E]\)\}?(\\? )\w")),
        (
            "`i` is a letter to it, real or complex by what stands beside it; to us it is the imaginary unit.",
            has(r"i\\pi|\d - i"),
        ),
        (
            "Numbers that it reads otherwise or not at all: mixed without LaTeX, scientific, words, repeating.",
            has(r"\btw(o|elve)\b|\d/\d|[\d}]e\d|\d(\\,| )\d{3}|overline"),
        ),
        ("A full stop or a space command after the answer.", has(r"[.\\]\s?(\n|$)|\\ (\n|$)")),
        ("Units and currencies outside LaTeX.", has(r"cm|mile|dollars|€|degree|°")),
        (
            "Signs and words that are not LaTeX: `²`, `√`, `sqrt(2)`, `pi`, `**`.",
            has(r"[^\x00-\x7f]|(?<!\\)(sqrt|exp|pi)|\*|sqrt\("),
        ),
        (
            "Commands that it reads otherwise, not at all, or only with braces.",
            has(r"\\(theta|bigl|left\.|sqrt\[3\] |dbinom|mathbb|varnothing|langle|operatorname)"),
        ),
    ],
    "tidied text": [
        ("It calculates nothing: numbers written in two ways.", numbers),
        ("It knows no algebra.", lambda a, b: verdict(*sorted((canonical(a), canonical(b)))) is None),
        (
            "It knows no inequalities, and keeps the order and the brackets of solutions.",
            has(r"[<>]|\\(leq?|geq?|in)(?![A-Za-z])|\\cup|,|\\\{|\\pm|\\emptyset"),
        ),
        (
            "Letters of choices and words: brackets, fonts, capitals, full stops.",
            has(r"^\(?[A-E]\)?$|\\text|Yes|YES|No|B[).]"),
        ),
        ("It keeps commands, brackets, signs and names before `=` that mean nothing here.", lambda a, b: True),
    ],
}

WE_PART: dict[str, list[Reason]] = {
    "Math-Verify": [
        (
            "It rounds to six decimals, or to fifteen digits; decimals are exact to us.",
            has(r"0833|\d{4}!|\^\{\d\d|2006"),
        ),
        ("It ignores the base of a number.", has(r"52_8")),
        ("It ignores capitals. Problems in geometry use both R and r.", has(r"^[ABR]+\n[ab]+$|R\^2")),
        (
            "A point is not a list or a set of solutions to us: 2, 1 is 1, 2, but (2, 1) is not (1, 2).",
            has(r"^\(1,2\)\n"),
        ),
        (
            "It drops words and letters after a number as units, whatever they are. We drop known units and common "
            "words, and never a number word, AM, PM, or a single letter, which may be a variable.",
            has(r"million|PM|\\mathrm\{i\}|^5m"),
        ),
        ("It reads 3\\frac{5}{4} as a mixed number; an improper one is rather a product.", has(r"3\\frac\{5\}")),
        ("`1/2x` may mean either, so to us it is neither.", has(r"\d/\dx")),
        ("It compares right-hand sides only, or what it can read of the text.", has(r"=|\\ldots")),
    ],
    "tidied text": [
        ("It cuts the text at the first `\\text{ `, taking the rest for a unit.", has(r"\\text\{ ")),
        ("It deletes spaces, so that digits run together.", has(r"\d \d")),
    ],
}


def differences() -> tuple[int, dict[str, dict[str, list[str]]]]:
    """Ask all graders about all pairs: their number, and by grader and reason the pairs that are not judged alike."""
    cases: list[dict[str, Any]] = [json.loads(line) for line in CASES.read_text(encoding="utf-8").splitlines()]
    pairs = [(case["a"], case["b"]) for case in cases if "a" in case]
    found: dict[str, dict[str, list[str]]] = {name: {} for name in GRADERS}
    for a, b in pairs:
        ours = equivalent(a, b)
        for name, grader in GRADERS.items():
            if grader(a, b) != ours:
                reasons = (WE_JOIN if ours else WE_PART)[name]
                why = next((text for text, fits in reasons if fits(a, b)), None)
                if why is None:
                    raise SystemExit(f"No reason is given why {name} says {not ours} of {a!r} and {b!r}.")
                side = "equal to us" if ours else "different to us"
                found[name].setdefault(f"{side}: {why}", []).append(f"`{a}` and `{b}`")
    return len(pairs), found


def measured() -> str:
    """Return the generated part of the page."""
    num_pairs, found = differences()
    lines = [
        "",
        f"{num_pairs} pairs of the table; our own verdicts are those of the table, and a test holds them to it.",
        "",
    ]
    lines += ["| grader | agrees | equal to us only | equal to it only |", "|---|---|---|---|"]
    for name, by_reason in found.items():
        joined = sum(len(pairs) for why, pairs in by_reason.items() if why.startswith("equal"))
        parted = sum(len(pairs) for why, pairs in by_reason.items() if why.startswith("different"))
        agreed = num_pairs - joined - parted
        lines.append(f"| {name} | {agreed} ({agreed / num_pairs:.1%}) | {joined} | {parted} |")
    for name, by_reason in found.items():
        lines += ["", f"### {name}"]
        for why, pairs in sorted(by_reason.items()):
            side, text = why.split(": ", 1)
            lines += ["", f"**{side.capitalize()}.** {text}", "", *(f"- {pair}" for pair in pairs)]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write what was measured below the heading, or with --check compare it with what stands there."""
    logging.disable(logging.CRITICAL)  # Math-Verify logs what it cannot read
    before, heading, after = PAGE.read_text(encoding="utf-8").partition(HEADING)
    new = measured()
    if "--check" in sys.argv:
        sys.exit(0 if after == new else f"{PAGE.name} is out of date: run python -m bench.answers")
    PAGE.write_text(before + heading + new, encoding="utf-8")


if __name__ == "__main__":
    main()
