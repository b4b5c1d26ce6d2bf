"""Questions: how they are made, read, divided and kept apart."""

import json
from collections import Counter
from pathlib import Path

import pytest
from helpers import run, settings

from maft import config as config_
from maft import files
from maft.answers import equivalent
from maft.config import TaskConfig
from maft.errors import ConfigError, DataError
from maft.records import Debate, Problem
from maft.tasks import Split, Task, check_disjoint, make, prepare
from maft.tasks.base import normalised

SMALL = {"name": "arithmetic", "low": 1, "negative": False}


def task(name: str, **settings: object) -> Task:
    return make(TaskConfig(name=name, **settings))


def prepared(name: str, **settings: object) -> Split:
    return prepare(task(name, **settings))


def everything(name: str, **settings: object) -> list[Problem]:
    split = task(name, **settings).questions()
    return [*split.train, *split.eval]


def sums(**settings: object) -> list[Problem]:
    return everything("arithmetic", **settings)


def jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# Arithmetic


def test_there_are_three_hundred_sums_of_one_digit_numbers():
    made = sums()
    assert len({p.id for p in made}) == len({normalised(p.question) for p in made}) == len(made) == 300
    assert len(sums(**{k: v for k, v in SMALL.items() if k != "name"})) == 207


@pytest.mark.parametrize("shown", ["{}", "The answer is {}.", "It is \\boxed{{{}}}, not 12.", "\\boxed{{{}.0}}"])
def test_the_gold_answer_is_right_for_every_sum(shown):
    graded = [task("arithmetic").extract(shown.format(p.gold)) for p in sums()]
    right = [answer is not None and equivalent(answer, p.gold) for answer, p in zip(graded, sums(), strict=True)]
    assert sum(right) / len(right) == 1.0


def test_the_gold_answer_is_what_python_says():
    for p in sums():
        a, sign, b = p.question.removeprefix("What is ").removesuffix("?").split()
        assert int(p.gold) == {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign]


def test_an_answer_one_off_is_wrong():
    assert not any(equivalent(str(int(p.gold) + 1), p.gold) for p in sums())


@pytest.mark.parametrize("seed", range(5))
def test_sums_of_the_same_two_numbers_stay_on_one_side(seed):
    split = task("arithmetic", num_train=150, split_seed=seed).questions()
    assert not {p.split_key for p in split.train} & {p.split_key for p in split.eval}
    sides = Counter(p.split_key for p in [*split.train, *split.eval])
    assert set(sides.values()) == {1, 2}


def test_the_split_is_drawn_by_its_seed():
    drawn = [prepared("arithmetic", num_train=60, split_seed=s) for s in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert Counter(p.question.split()[3] for p in drawn[0].train).keys() == {"+", "-", "*"}


@pytest.mark.parametrize(
    ("num_train", "num_eval", "sizes"),
    [(100, 50, (100, 50)), (None, None, (150, 150)), (100, None, (100, 200)), (None, 100, (200, 100))],
)
def test_each_side_has_as_many_as_were_asked_for(num_train, num_eval, sizes):
    split = prepared("arithmetic", num_train=num_train, num_eval=num_eval)
    assert abs(len(split.train) - sizes[0]) <= 1 and abs(len(split.eval) - sizes[1]) <= 1
    if num_train:
        assert len(split.train) == num_train
    if num_eval:
        assert len(split.eval) == num_eval


@pytest.mark.parametrize("counts", [{"num_train": 200, "num_eval": 200}, {"num_train": 301}, {"num_eval": 301}])
def test_more_questions_than_there_are_is_refused(counts):
    with pytest.raises(DataError, match="only 300 questions.*Ask for fewer"):
        prepared("arithmetic", **counts)


@pytest.mark.parametrize("counts", [{"num_train": 300}, {"num_eval": 300}])
def test_a_side_without_questions_is_refused(counts):
    with pytest.raises(DataError, match=r"has no (training|held-out) questions"):
        prepared("arithmetic", **counts)


def test_settings_that_make_no_sums_are_refused():
    with pytest.raises(ConfigError, match=r"task.operators = '\+/'; allowed are one or more of \+ - \*"):
        sums(operators="+/")
    with pytest.raises(ConfigError, match="allowed are one or more"):
        sums(operators="")
    with pytest.raises(ConfigError, match=r"task.low = 5 is above task.high = 3"):
        sums(low=5, high=3)


def test_negative_numbers_have_questions_of_their_own():
    made = sums(low=-3, high=3)
    assert len({p.id for p in made}) == len(made) == 147


# JSONL


def questions(path: Path, **settings: object) -> list[Problem]:
    """Read one file in its order: as the held-out side, which nothing reorders."""
    other = path.with_name("other.jsonl")
    other.write_text("")
    return list(task("jsonl", train_file=other, eval_file=path, **settings).questions().eval)


def test_questions_are_read_with_their_answers_and_ids(tmp_path):
    path = jsonl(
        tmp_path / "q.jsonl",
        {"question": "One?", "answer": "1"},
        {"question": "Two?", "answer": 2, "id": 17, "more": [1]},
        {"question": "Three?", "answer": None, "id": None},
        {"question": "Half?", "answer": 0.5},
    )
    made = questions(path)
    assert [(p.question, p.gold) for p in made] == [("One?", "1"), ("Two?", "2"), ("Three?", None), ("Half?", "0.5")]
    assert made[1].id == "17" and len({p.id for p in made}) == 4
    assert made[2].id != "None"


def test_an_id_depends_on_the_question_alone(tmp_path):
    one = jsonl(tmp_path / "a.jsonl", {"question": "One?", "answer": 1}, {"question": "Two?", "answer": 2})
    two = jsonl(tmp_path / "b.jsonl", {"question": "Two?", "answer": 3})
    assert questions(one)[1].id == questions(two)[0].id


def test_other_field_names_and_no_answers_are_fine(tmp_path):
    path = jsonl(tmp_path / "q.jsonl", {"prompt": "One?"})
    assert questions(path, question_field="prompt", gold_field=None)[0].gold is None


def test_files_from_elsewhere_are_read(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_bytes('\ufeff{"question": "Eins ü\u2028?", "answer": 1}\r\n\r\n{"question": "b", "answer": 2}'.encode())
    assert [p.question for p in questions(path)] == ["Eins ü\u2028?", "b"]


def test_a_question_that_occurs_twice_is_kept_once(tmp_path):
    rows = [{"question": q, "answer": n} for n, q in enumerate(["What is 2 + 2?", "Else?", "what is 2+2 ?"])]
    made = questions(jsonl(tmp_path / "q.jsonl", *rows))
    assert [(p.question, p.gold) for p in made] == [("What is 2 + 2?", "0"), ("Else?", "1")]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{question", r"line 2 is not JSON"),
        ("[1, 2]", r"line 2 must be a JSON object, got list"),
        ('{"text": "One?", "answer": 1}', r"line 2 has no field 'question'; it has 'text', 'answer'\. Set task\.quest"),
        ('{"question": 3, "answer": 1}', r"line 2: 'question' must be a text, got 3"),
        ('{"question": " ", "answer": 1}', r"line 2: 'question' is empty. Give this row a text"),
        (
            '{"question": "a", "answer": [1, 2]}',
            r"line 2: 'answer' must be a text, a number or a list of one, got \[1, 2",
        ),
        ('{"question": "\\ud800", "answer": 1}', r"(line|entry) 2 is not JSON.*surrogates"),
        ('{"question": "a", "answer": ' + "9" * 5000 + "}", r"line 2 is not JSON"),
        ("[" * 100_000, r"line 2 is not JSON"),
    ],
)
def test_a_bad_line_is_refused_with_its_number_and_what_to_do(tmp_path, line, said):
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "Good?", "answer": 1}\n' + line + "\n")
    with pytest.raises(DataError, match=said) as caught:
        questions(path)
    assert len(str(caught.value)) < 600


def test_files_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"No such file or directory\. Check task\.train_file and task\.eval_file"):
        questions(tmp_path / "none.jsonl")
    (tmp_path / "latin.jsonl").write_bytes('{"question": "für"}'.encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.jsonl is not UTF-8 at byte 15\. Convert it to UTF-8"):
        questions(tmp_path / "latin.jsonl")
    with pytest.raises(ConfigError, match=r"task\.train_file is missing"):
        task("jsonl").questions()


def test_an_empty_file_has_no_training_questions(tmp_path):
    (tmp_path / "q.jsonl").write_text("")
    with pytest.raises(DataError, match="has no training questions"):
        prepared("jsonl", train_file=tmp_path / "q.jsonl")


def test_one_file_is_divided_and_two_files_are_not_mixed(tmp_path):
    one = jsonl(tmp_path / "a.jsonl", *({"question": f"a{n}", "answer": n} for n in range(10)))
    two = jsonl(tmp_path / "b.jsonl", *({"question": f"b{n}", "answer": n} for n in range(10)))
    split = prepared("jsonl", train_file=one, num_train=6)
    assert (len(split.train), len(split.eval)) == (6, 4)
    split = prepared("jsonl", train_file=one, eval_file=two, num_eval=3)
    assert {p.question[0] for p in split.train} == {"a"} and {p.question[0] for p in split.eval} == {"b"}
    assert (len(split.train), len(split.eval)) == (10, 3)


def test_questions_without_an_answer_that_find_no_place_are_counted(tmp_path, caplog):
    rows = [{"question": f"a{n}", "answer": None if n < 8 else n} for n in range(10)]
    one = jsonl(tmp_path / "a.jsonl", *rows)
    assert [len(side) for side in prepared("jsonl", train_file=one)[:2]] == [8, 2] and not caplog.messages
    split = prepared("jsonl", train_file=one, num_train=5)
    assert len(split.train) == 5 and {p.gold for p in split.eval} == {"8", "9"}
    assert "3 questions without a known answer are not used: task.num_train = 5" in caplog.text


def test_an_id_that_stands_for_two_questions_is_refused(tmp_path):
    one = jsonl(tmp_path / "a.jsonl", *({"question": f"a{n}", "answer": n, "id": n // 2} for n in range(6)))
    two = jsonl(tmp_path / "b.jsonl", {"question": "b", "answer": 1})
    with pytest.raises(DataError, match="are different questions with the same id '0'"):
        prepared("jsonl", train_file=one, eval_file=two)


# The two sides


def test_sides_that_share_a_question_are_refused_naming_three():
    train = [Problem(id=str(n), question=f"Question {n}?") for n in range(9)]
    held_out = [Problem(id=f"e{n}", question=f"  question  {n} ?") for n in range(4)] + [
        Problem(id="x", question="New")
    ]
    with pytest.raises(
        DataError, match=r"4 of 5 held-out questions .*e0 \(0\): .*e1 \(1\): .*e2 \(2\): .*Remove them from one"
    ) as caught:
        check_disjoint(train, held_out)
    assert "e3" not in str(caught.value)
    check_disjoint(train, held_out[4:])


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("What is 2+2?", "what  is\n2 + 2 ?", True),
        ("Straße", "STRASSE", True),
        ("ｘ＝１", "x=1", True),
        ("e\u0301", "\u00e9", True),
        ("ﬁnd", "find", True),
        ("2²", "22", False),
        ("x₁ + 1", "x1 + 1", False),
        ("2 + 2", "2 - 2", False),
        ("½ + 1", "12 + 1", False),
    ],
)
def test_questions_are_the_same_up_to_case_spaces_and_ways_of_writing_a_sign(a, b, same):
    assert (normalised(a) == normalised(b)) == same


# Shapes of sums


def test_a_shape_is_drawn_from_without_duplicates():
    made = sums(shape="a+b*c+d-e*f", high=29, size=300)
    assert len({p.question for p in made}) == len(made) == 300
    for p in made[:50]:
        asked = p.question.removeprefix("What is ").removesuffix("?")
        a, b, c, d, e, f = (
            int(number) for number in asked.replace("+", " ").replace("-", " ").replace("*", " ").split()
        )
        assert p.gold == str(a + b * c + d - e * f) and all(0 <= number <= 29 for number in (a, b, c, d, e, f))
    assert {p.question for p in made} == {p.question for p in sums(shape="a+b*c+d-e*f", high=29, size=300)}
    assert {p.question for p in made} != {
        p.question for p in sums(shape="a+b*c+d-e*f", high=29, size=300, split_seed=1)
    }


def test_further_training_sets_leave_the_first_and_the_held_out_questions_as_they_are(tmp_path):
    one, three = (prepared("arithmetic", shape="a+b*c", num_train=5, num_eval=4, train_sets=sets) for sets in (1, 3))
    assert three.train[:5] == one.train and three.eval == one.eval and len(three.train) == 15
    config = settings(tmp_path, task={"name": "arithmetic", "shape": "a+b*c", "num_train": 5, "num_eval": 4})
    folder = run(config_.parse(config.model_dump(mode="json"), ["task.train_sets=3", "num_iterations=4"]))
    asked = [[d.problem_id for d in files.read_records(folder.debates(n), Debate)] for n in (1, 2, 3, 4)]
    assert asked == [[p.id for p in three.train[start : start + 5]] for start in (0, 5, 10, 0)]
    for task in ({"name": "arithmetic", "num_train": 5}, {"name": "arithmetic", "shape": "a+b"}):
        with pytest.raises(ConfigError, match="task.train_sets generates further sets of task.num_train questions"):
            config_.parse({"task": task | {"train_sets": 2}})


def test_shapes_have_brackets_repeated_letters_numbers_and_negative_numbers():
    for p in sums(shape="(a-b)*a+2", low=-9, high=-1, size=40):
        a, b = (int(part) for part in p.question[len("What is (") :].split(")")[0].split(" - "))
        assert p.question == f"What is ({a} - {b}) * {a} + 2?" and p.gold == str((a - b) * a + 2)
    assert all(int(p.gold) >= 0 for p in sums(shape="a-b", negative=False, size=40))


def test_a_shape_makes_as_many_as_are_asked_for():
    split = prepared("arithmetic", shape="a+b+c", num_train=500, num_eval=500, high=29)
    assert (len(split.train), len(split.eval)) == (500, 500)
    assert len(sums(shape="a+b+c", high=29)) == 1_000
    with pytest.raises(
        DataError, match=r"only 4 different questions of the shape a\+b were found between 0 and 1, 5 are"
    ):
        sums(shape="a+b", high=1, size=5)


@pytest.mark.parametrize(
    "shape", ["", "a+", "a/b", "a**b", "3+4", "A+B", "a b", "ab+c", "a.b", "f(a)", "-a", "a+b" * 100, "1e5+a"]
)
def test_what_is_not_a_sum_is_refused(shape):
    with pytest.raises(ConfigError, match=r"is not a valid form\. Write one letter for each number"):
        sums(shape=shape)
