"""Which answers are the same, by task."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maft.answers import EQUALITIES, MEANINGS
from maft.answers.equality import Equality
from maft.config import TaskConfig
from maft.config.method import EQUALITY_NAMES
from maft.records import Problem
from maft.tasks import TASKS, make

CASES = Path(__file__).parent / "cases" / "equal.jsonl"
LINES = [json.loads(line) for line in CASES.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("case", LINES, ids=lambda case: f"{case['equality']}: {case['a']} | {case['b']}")
def test_answers_are_the_same_or_not(case: dict[str, str]) -> None:
    equality = EQUALITIES[case["equality"]]()
    assert equality.same(case["a"], case["b"]) == equality.same(case["b"], case["a"]) == case["equal"]


SPELLINGS = [
    "1",
    "1.0",
    "2",
    "02",
    "Dog",
    "dog",
    " dog ",
    "1 2",
    "2 1",
    "1, 2",
    "[1, 2]",
    "1\n2",
    "x+1",
    "1+x",
    "",
    "½",
]
ANSWERS = st.lists(st.none() | st.sampled_from(SPELLINGS) | st.text(max_size=12), max_size=8)


@pytest.mark.parametrize("name", sorted(EQUALITIES))
@given(answers=ANSWERS, seed=st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_a_division_into_classes_does_not_depend_on_the_order(name: str, answers: list[str | None], seed: int) -> None:
    equality = EQUALITIES[name]()
    classes = equality.classes(answers)
    assert [number is None for number in classes] == [answer is None for answer in answers]
    seen = list(dict.fromkeys(number for number in classes if number is not None))
    assert seen == list(range(len(seen)))
    order = random.Random(seed).sample(range(len(answers)), len(answers))
    shuffled = equality.classes([answers[place] for place in order])
    for i, place in enumerate(order):
        for j, other in enumerate(order):
            assert (classes[place] == classes[other]) == (shuffled[i] == shuffled[j])


@pytest.mark.parametrize("name", sorted(EQUALITIES))
@given(answer=st.text(max_size=40))
@settings(max_examples=60, deadline=None)
def test_every_answer_is_the_same_as_itself(name: str, answer: str) -> None:
    assert EQUALITIES[name]().same(answer, answer)


def test_long_answers_are_compared_in_no_time() -> None:
    for text in ("[" * 4000, "1," * 2000, "9" * 4000, "\\text{" * 800, "[]" * 2000):
        for equality in EQUALITIES.values():
            assert equality().same(text, text) and not equality().same(text, f"{text} 1")


@pytest.mark.parametrize(
    ("task", "own"),
    [("arithmetic", "mathematics"), ("gsm8k", "mathematics"), ("math", "mathematics"), ("mmlu", "text"), ("dataset", "mathematics")],
)  # fmt: skip
def test_a_task_has_an_equality_of_its_own_and_takes_another(task: str, own: str) -> None:
    assert make(TaskConfig(name=task)).equality.name == own
    made = make(TaskConfig(name=task, equality="sequence"))
    assert made.equality.name == "sequence"
    assert made.correct(Problem(id="1", question="?", gold="1 2"), "[1, 2.0]")
    assert not made.correct(Problem(id="1", question="?", gold="1 2"), "2 1")


def test_the_setting_names_every_equality() -> None:
    assert set(EQUALITY_NAMES) == {*EQUALITIES, *MEANINGS}
    assert all(issubclass(equality, Equality) for equality in EQUALITIES.values())
    assert {"arithmetic", "reasoning_gym"} <= set(TASKS)
