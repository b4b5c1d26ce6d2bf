"""Answers: extraction and equality case by case, and what must hold for every answer."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from helpers import ENVIRONMENT, ROOT, data_lines, group, math500

from maft.answers import (
    MAX_ANSWER_CHARS,
    canonical,
    equivalent,
    extract_answer,
    extract_choice,
    extract_number,
    extract_stated,
)
from maft.answers.equality import representative

CASES: list[dict[str, Any]] = [
    json.loads(line) for line in (Path(__file__).parent / "cases" / "answers.jsonl").read_text("utf-8").splitlines()
]
READERS = {"extract": extract_answer, "stated": extract_stated, "number": extract_number, "choice": extract_choice}

# For the tests of shape: every text of the table, the wild ones included.
TEXTS: list[str] = sorted({case[side] for case in CASES if "a" in case for side in ("a", "b")})


def cases(kind: str) -> list[Any]:
    return [
        pytest.param(case, id=f"line {number}") for number, case in enumerate(CASES, start=1) if case["kind"] == kind
    ]


def gold_answers() -> Iterator[tuple[str, str]]:
    """Yield (where, answer) for every reference answer at hand; skips the test where there are none."""
    for row in math500():
        yield row["unique_id"], row["answer"]
    for split in ("train", "test"):
        for number, row in enumerate(data_lines(f"gsm8k/{split}.jsonl")):
            yield f"gsm8k {split} {number}", row["answer"].split("####")[-1].strip()


def test_every_case_has_a_kind_and_a_source() -> None:
    for case in CASES:
        fields = {"text", "answer"} if case["kind"] in READERS else {"a", "b"}
        assert set(case) == fields | {"kind", "source"} and case["source"], case
        assert case["kind"] in {*READERS, "equal", "different"}
    contents = {json.dumps({**case, "source": ""}, sort_keys=True) for case in CASES}
    assert len(contents) == len(CASES) >= 300


@pytest.mark.parametrize("kind", READERS)
def test_answers_are_read_from_replies(kind: str) -> None:
    for number, case in enumerate(CASES, start=1):
        if case["kind"] == kind:
            assert READERS[kind](case["text"]) == case["answer"], f"line {number}"


@pytest.mark.parametrize("case", cases("equal"))
def test_equal_answers_are_equal(case: dict[str, Any]) -> None:
    assert equivalent(case["a"], case["b"])
    assert equivalent(case["b"], case["a"])


@pytest.mark.parametrize("case", cases("different"))
def test_different_answers_are_kept_apart(case: dict[str, Any]) -> None:
    assert not equivalent(case["a"], case["b"]), f"both are {canonical(case['a'])!r}"
    assert not equivalent(case["b"], case["a"])


def test_equality_is_reflexive_symmetric_and_transitive() -> None:
    some = random.Random(0).sample(TEXTS, 60)
    for a in some:
        assert equivalent(a, a)
    for a, b in combinations(some, 2):
        assert equivalent(a, b) == equivalent(b, a)
        if equivalent(a, b):
            assert all(equivalent(a, c) == equivalent(b, c) for c in some)


KEYS = {
    r"x = 1\frac{1}{2}": "3/2",
    "1,234.50": "2469/2",
    "1.234,56": "30864/25",
    r"0.1\overline{6}": "1/6",
    r"3\times10^{4}": "30000",
    "1e200": "1e200",
    "3/0": "3/0",
    "twelve hundred": "1200",
    "5:30 pm": "17:30",
    r"3\pi\text{ cm}^2": r"3\pi",
    r"2\frac{1}{3}x": r"\frac{7}{3}x",
    r"3\frac{5}{4}x": r"3\frac{5}{4}x",
    "y = 2e": "2e",
    "x²": "x^{2}",
    "x₁y₂": "x_{1}y_{2}",
    "+": "+",
    r"( 0.5 , \sqrt2 \, ]": r"(1/2, \sqrt{2}]",
    r"\{3, 1, 2.0\}": "1, 2, 3",
    "y=1, x=3": "(3, 1)",
    "x_1=2, x_2=1": "1, 2",
    r"1 \pm \sqrt 2": r"1+\sqrt{2}, 1-\sqrt{2}",
    r"-1<x\le5": "(-1, 5]",
    "-2x < 6": r"(-3, \infty)",
    "2i>6": "6<2i",
    "3>y+x": "y+x<3",
    r"x\ne3": r"(-\infty, 3)\cup(3, \infty)",
    r"x>2\text{ and }x<5": "(2, 5)",
    r"\{x|x>2\}": r"(2, \infty)",
    r"(2,1)\cup(0,1)": r"(0, 1)\cup(2, 1)",
    "[[1, 0.5], [0, 2]]": r"\begin{pmatrix}1&1/2\\0&2\end{pmatrix}",
    "1 2\n\n 3  4 ": "1 2\n3 4",
    "x =\n5": "5",
    "y = 2x + 3": "y=2x+3",
    r"\sin 30^\circ": r"\sin(30\frac{\pi}{180})",
    "(A) 5 apples": "A",
    "AB": "AB",
    "No": "no",
}


def test_keys_are_the_value_in_its_shortest_form() -> None:
    assert {answer: canonical(answer) for answer in KEYS} == KEYS


def test_a_key_is_an_answer_equal_to_the_one_it_came_from() -> None:
    for text in TEXTS:
        assert canonical(canonical(text)) == canonical(text)


def test_a_key_does_not_depend_on_what_was_asked_before() -> None:
    keys = {text: canonical(text) for text in TEXTS}
    shuffled = random.Random(1).sample(TEXTS, len(TEXTS))
    canonical_uncached: Callable[[str], str] = sys.modules["maft.answers.canonical"]._canonical.__wrapped__
    for text in shuffled:
        assert canonical_uncached(" ".join(text.split())) == keys[text]


def test_groups_partition_the_answers_and_leave_out_abstentions() -> None:
    some = random.Random(4).sample(TEXTS, 100)
    answers = [*some, None, *some, None]
    groups = group(answers)
    indices = sorted(index for indices in groups for index in indices)
    assert indices == [index for index, answer in enumerate(answers) if answer is not None]
    assert all(indices == sorted(indices) for indices in groups)
    assert [len(indices) for indices in groups] == sorted(map(len, groups), reverse=True)


def test_groups_are_the_connected_components_of_pairwise_equality() -> None:
    some = random.Random(2).sample(TEXTS, 80)
    component = list(range(len(some)))
    for i, j in combinations(range(len(some)), 2):
        if equivalent(some[i], some[j]):
            old, new = component[j], component[i]
            component = [new if c == old else c for c in component]
    expected = {frozenset(i for i, c in enumerate(component) if c == name) for name in set(component)}
    assert {frozenset(indices) for indices in group(some)} == expected


@pytest.mark.parametrize("seed", range(20))
def test_reordering_the_answers_only_renames_the_indices(seed: int) -> None:
    rng = random.Random(seed)
    answers: list[str | None] = [*rng.choices(TEXTS, k=30), "0.5", r"\frac12", "1/2", None]
    order = rng.sample(range(len(answers)), len(answers))
    shuffled = [answers[index] for index in order]
    renamed = [sorted(order[index] for index in indices) for indices in group(shuffled)]
    assert renamed == group(answers)


def test_groups_of_nothing() -> None:
    assert group([]) == []
    assert group([None, None]) == []


def test_the_representative_does_not_depend_on_the_order() -> None:
    texts = [r"\frac{1}{2}", "1/2", "0.5", r"\frac12"]
    assert {representative(random.Random(seed).sample(texts, 4)) for seed in range(20)} == {"0.5"}


HOSTILE_REPLIES = {
    "open boxes": "\\boxed{" * 7_500,
    "open braces": "{" * 50_000,
    "closing braces": "\\boxed{5}" + "}" * 50_000,
    "backslashes": "\\" * 50_000 + "boxed{5}",
    "spaces": "\\boxed" + " " * 50_000,
    "bare boxes": "\\boxed5" * 7_500,
    "many boxes": "\\boxed{5}" * 6_000,
    "nested boxes": "\\boxed{" * 5_000 + "5" + "}" * 5_000,
    "nested braces": "\\boxed{" + "{" * 5_000 + "5" + "}" * 5_001,
    "boxes side by side in a box": "\\boxed{" + "\\boxed{1}" * 5_000 + "}",
    "a long bare answer": "\\boxed " + "1" * 50_000,
    "a long expression": "\\boxed{" + "9*" * 25_000 + "9}",
    "a tower": "\\boxed{9**9**9**9}",
    "answers": "the answer is " * 4_000,
    "stars": "answer " + "*" * 50_000,
    "choices": "(A" * 25_000,
    "letters": "A\n" * 25_000,
    "dollars": "answer is " + "$" * 50_000,
    "brackets": "answer is \\(" + "\\(" * 25_000,
    "blank lines": "answer:" + " \n" * 25_000,
    "numbers": "1," * 25_000,
    "boxes in a list": "\\boxed{1} and " * 4_000,
    "boxes in lines": "\n- \\boxed{1}" * 4_000,
    "denied boxes": "not \\boxed{5} " * 4_000,
    "boxes far apart": "\\boxed{1}" + " " * 50_000 + "\\boxed{2}",
    "headings": "\n### Final Answer" * 3_000,
    "tags": "<answer>" * 6_000,
    "empty tags": "<answer></answer>" * 3_000,
    "thinking": "<think>" * 7_500,
    "numbers in spaces": "100 " * 12_500,
    "quotients": "1/" * 25_000,
    "powers": "1 \\times 10^" * 4_500,
    "dots": "1.234." * 8_000,
    "a long number": "1" * 50_000 + "½",
    "so A": "so A " * 10_000,
    "is correct": "A. " + "x" * 50_000 + " is correct",
    "answer words": "answer " + "abc " * 15_000,
}

# Each is cut to the length that is still taken apart; longer ones are compared as they are.
HOSTILE_ANSWERS = {
    "tower": "9**9**9**9",
    "LaTeX tower": "9^{9^{9^{9}}}",
    "exponent": "1e999999999",
    "power of ten": r"3 \times 10^{9999}",
    "long exponent": "1e" + "9" * 2_000,
    "digits": "9" * 2_000,
    "digits and a letter": "9" * 999 + "x",
    "fraction": "9" * 499 + "/" + "7" * 499,
    "braces": "{" * 2_000,
    "brackets": "(" * 499 + ")" * 499,
    "sets": r"\{" * 240 + r"\}" * 240,
    "carets": "^" * 2_000,
    "roots": r"\sqrt" * 400,
    "root indices": r"\sqrt[" * 400,
    "fractions": r"\frac" * 400,
    "slashes": "1/" * 1_000,
    "text": r"\text{a}" * 120 + "x",
    "units": "5" + r"\text{ cm}" * 90,
    "words": "5 " + "abcde " * 150 + "1",
    "commas": "1,234" * 199 + "x",
    "unions": r"\cup" * 400,
    "matrices": r"\begin{pmatrix}" * 100,
    "minus top": r"\frac{-" + "{x}" * 300 + "+}{2}",
    "backslashes": "\\" * 999,
    "spaces": "1 " * 1_000,
    "full stops": "." * 2_000,
    "codes": "ab-1-" * 400,
    "equations": "x=" * 1_000,
    "names": "abc " * 240 + "=5",
    "ratios": "a:" * 1_000,
    "degrees": r"\sin " + r"30^\circ" * 240,
    "quotients over": r"{1 \over " * 200,
    "arrays": r"\begin{array}{" * 100,
    "colours": r"\textcolor{red}" * 100,
    "lists of lists": "[[1,2]," * 250,
    "inequalities": "1<x+" + "1+" * 900 + "1<3",
    "conjunctions": "x>1 and " * 240,
    "compound units": "5 " + "m/" * 900,
    "millions": "5 million " * 200,
    "semicolons": "1;" * 1_000,
    "superscripts": "x²" * 1_000,
    "ligatures": "ﷺ" * 2_000,
    "brackets of functions": "f(" * 400 + ")" * 400 + "=5",
    "grid": "1 2\n" * 400,
}


@pytest.mark.parametrize("name", HOSTILE_REPLIES)
def test_hostile_replies_are_read_quickly(name: str) -> None:
    start = time.thread_time()
    answers = [read(HOSTILE_REPLIES[name]) for read in READERS.values()]
    assert time.thread_time() - start < 1
    assert all(answer is None or len(answer) <= MAX_ANSWER_CHARS for answer in answers)


@pytest.mark.parametrize("name", HOSTILE_ANSWERS)
def test_hostile_answers_are_compared_quickly(name: str) -> None:
    whole = HOSTILE_ANSWERS[name]
    for text in (whole[:MAX_ANSWER_CHARS], whole, whole * 50):
        start = time.thread_time()
        key = canonical(text)
        assert time.thread_time() - start < 0.5
        assert len(key) <= 20 * len(text)


@pytest.mark.parametrize("num", [500, pytest.param(3_000, marks=pytest.mark.slow)])
def test_random_latex_is_never_an_error(num: int) -> None:
    rng = random.Random(3)
    pieces = [*"()[]{}^_,./=*+-$%&\\ 0123eBx", r"\frac", r"\sqrt", r"\text{", r"\boxed{", r"\cup", r"\pi"]
    pieces += [r"\{", r"\}", r"\\", "10^", "x=", " cm"]
    for _ in range(num):
        text = "".join(rng.choices(pieces, k=rng.randint(1, 40)))
        assert equivalent(text, f"  {text} ")
        for read in READERS.values():
            read(text)


def test_an_overlong_box_is_no_answer() -> None:
    assert extract_answer("\\boxed{" + "1" * MAX_ANSWER_CHARS + "}") == "1" * MAX_ANSWER_CHARS
    assert extract_answer("\\boxed{" + "1" * (MAX_ANSWER_CHARS + 1) + "}") is None


def test_gold_answers_survive_a_box() -> None:
    count = 0
    for where, gold in gold_answers():
        extracted = extract_answer(f"We add up and get $\\boxed{{{gold}}}$.")
        assert extracted is not None and equivalent(extracted, gold), (where, gold, extracted)
        count += 1
    assert count == 500 + 7_473 + 1_319


@pytest.mark.slow
def test_gold_answers_merge_only_where_they_are_equal() -> None:
    # Read by hand: each of these is one value in two spellings.
    allowed = {
        frozenset({r"90^\circ", "90"}),
        frozenset({"x=5", "5"}),
        frozenset({"120", r"120^\circ"}),
        frozenset({"36", r"\$36", r"36^\circ"}),
        frozenset({r"\frac{1}{4}", r"\frac14"}),
        frozenset({r"30^\circ", "30"}),
        frozenset({"10080", r"10,\!080"}),
        frozenset({r"15\mbox{ cm}^2", "15"}),
        frozenset({r"2 \sqrt{5}", r"2\sqrt{5}"}),
        frozenset({"1,-2", "-2,1"}),
    }
    golds = sorted({gold for where, gold in gold_answers() if not where.startswith("gsm8k")})
    merged = {frozenset(golds[index] for index in indices) for indices in group(golds) if len(indices) > 1}
    assert merged == allowed


@pytest.mark.slow
def test_the_page_lists_every_pair_that_other_graders_judge_otherwise() -> None:
    check = [sys.executable, "-m", "bench.answers", "--check"]
    done = subprocess.run(check, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
