"""Hard answers by kind of fault: whether two are the same, and what is read in a reply (`python -m bench.cases`)."""

import json
from itertools import groupby
from pathlib import Path

import pytest

from bench import cases
from maft.answers import equivalent, extract_answer, extract_choice, extract_number, extract_stated

FOLDER = Path(__file__).parent / "cases" / "hard"


def rows(name):
    read = [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    return [pytest.param(list(group), id=kind) for kind, group in groupby(read, key=lambda row: row["kind"])]


@pytest.mark.parametrize("kind", rows("equal"))
def test_answers_are_the_same_or_not(kind):
    assert [row for row in kind if not cases.same(row)] == []


@pytest.mark.parametrize("kind", rows("extract"))
def test_the_answer_is_read(kind):
    assert [row for row in kind if not cases.read(row)] == []


def test_every_kind_has_at_least_ten_rows():
    assert [kind.id for name in ("equal", "extract") for kind in rows(name) if len(kind.values[0]) < 10] == []


def test_the_bench_ends_with_the_shares(tmp_path, monkeypatch, capsys):
    equal = {"kind": "sums", "task": "math", "a": "1+1", "b": "2", "equal": True}
    (tmp_path / "equal.jsonl").write_text("".join(json.dumps({**equal, "b": b}) + "\n" for b in ("2", "3")))
    (tmp_path / "extract.jsonl").write_text(
        json.dumps({"kind": "boxes", "task": "math", "text": "It is 2", "answer": None})
    )
    monkeypatch.setattr("sys.argv", ["cases", str(tmp_path)])
    cases.main()
    said = capsys.readouterr().out.splitlines()
    assert json.loads(said[-1]) == {"equal": 0.5, "extract": 1.0}
    assert "1 of   2  sums" in said[1]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("one two three", "6"), ("two three", "5"), ("twenty-twenty", "40"), ("one and one", "2"), ("nine one one", "11"),
        ("12 novels", "November 12"), ("12 boys, 8 girls", "8 boys, 12 girls"), ("1 hour, 5 minutes", "5 hours, 1 minute"),
        (r"5\text{ apples}, 3\text{ pears}", r"3\text{ apples}, 5\text{ pears}"), ("10% increase", "10% decrease"),
        ("5 years older", "5 years younger"), ("5 units left", "5 units right"), ("5 wins", "5 losses"),
    ],
)  # fmt: skip
def test_words_that_tell_answers_apart(a, b):
    assert not equivalent(a, b)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("5 marbles", "5"), ("3 decks", "3"), ("5 march", "March 5"), ("Sept. 3", "3 September"), ("nineteen", "19"),
        ("three hundred and twenty-five", "325"), ("twelve hundred", "1200"), ("two million three hundred thousand five", "2300005"),
        ("12 boys, 8 girls", "8 girls, 12 boys"), ("1 hour, 2 hours", "1, 2"),
    ],
)  # fmt: skip
def test_words_that_are_units_dates_and_numbers(a, b):
    assert equivalent(a, b)


@pytest.mark.parametrize(
    ("extract", "reply", "answer"),
    [
        (extract_stated, "The answer is 42. I hope this answer is helpful.", "42"),
        (extract_stated, "**Answer:** 42\n\nLet me know if the answer is wrong!", "42"),
        (extract_stated, "The answer is not 5.", None),
        (extract_stated, "The answer is right.", "right"),
        (extract_stated, "Tom's answer is 5.", "5"),
        (extract_number, "The answer is 5. The other agent's answer is 7, which is wrong.", "5"),
        (extract_number, "So the answer is 5. My earlier answer was 7.", "5"),
        (extract_number, "The answer is not 5 but 6.", "6"),
        (extract_answer, r"\boxed{6}. Agent 2's \boxed{5} is wrong.", "6"),
        (extract_answer, r"The answer is \boxed{6} and it is never \boxed{5}.", "6"),
        (extract_answer, r"I do not think it is \boxed{5}.", None),
        (extract_choice, "I choose C. The others chose B.", "C"),
        (extract_choice, "The answer is C. Why not answer D? Because it is false.", "C"),
        (extract_choice, "It's (A) rather than (C).", "A"),
        (extract_choice, "I'm not sure, I choose C.", "C"),
        (extract_choice, "I have thought of it.\nB\nThat is all", "B"),
    ],
)
def test_what_a_reply_says_of_other_answers_is_not_its_own(extract, reply, answer):
    assert extract(reply) == answer
