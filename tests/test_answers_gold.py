"""Known answers are read as replies are."""

import pytest

from maft.answers import extract_choice, extract_number, extract_stated
from maft.answers.gold import is_worked, read


@pytest.mark.parametrize(
    ("known", "answer"),
    [
        ("5", "5"),
        ("x = 5", "x = 5"),
        ("Add. #### 5", "5"),
        ("2 + 3 = <<2+3=5>>5 apples\n#### 1,250", "1,250"),
        (r"We get $x = 4$, so $\boxed{x = 4}$.", "x = 4"),
        ("The answer is 7.", "7"),
        ("**Answer:** 12 cm", "12 cm"),
        ("<think>5?</think>The answer is 6.", "6"),
        ("<answer>Paris</answer>", "Paris"),
        ("Some steps.\n#### \\frac{1}{2}", r"\frac{1}{2}"),
        ("#### ", "#### "),
        ("\\boxed{}", "\\boxed{}"),
        ("a result is a number", "a result is a number"),
        ("True", "True"),
    ],
)
def test_an_answer_that_is_said_is_read(known, answer):
    assert read(known, extract_stated) == answer


def test_each_task_reads_its_own_way():
    assert read("So it is 5. The answer is (B)", extract_choice) == "B"
    assert read("Step 1. #### $1,200", extract_number) == "1,200"


@pytest.mark.parametrize(
    ("known", "worked"),
    [
        ("5", False),
        (r"\frac{\sqrt{3}}{2} \text{ square centimetres}", False),
        ("Ada, Ben, Carl, Dora, Emil and Fay", False),
        (r"\begin{pmatrix} -2 \\ -14 \\ -7 \end{pmatrix}" * 9, False),
        ("First we add both numbers and then we take the smaller one away, which leaves five.", True),
        ("Kim has 3 apples. She buys 4 more apples. So she has 3 + 4 = 7 apples in all.", True),
    ],
)
def test_worked_solutions_are_told_from_answers(known, worked):
    assert is_worked(known) == worked
