"""Tasks that read files and data sets: GSM8K, MATH, MMLU and any other columns; nothing here needs the network."""

import gzip
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ENVIRONMENT, ROOT
from hub_stand_in import Hub

from maft import files, tasks
from maft.config import TaskConfig
from maft.errors import ConfigError, DataError, MissingExtra
from maft.records import Problem
from maft.tasks import prepare, rows
from maft.tasks.math import plain

DATA = Path(os.environ.get("MAFT_DATA", ROOT.parent / "shared" / "data"))
needs_data = pytest.mark.skipif(not (DATA / "math500.jsonl").exists(), reason="the data sets are not here (MAFT_DATA)")


def task(name: str, **settings: object) -> tasks.Task:
    return tasks.make(TaskConfig(name=name, **settings))


def jsonl(path: Path, *rows: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(name: str, *rows: object, home: Path, **settings: object) -> list[Problem]:
    """Read rows in their order, as the held-out side."""
    files = {"train_file": jsonl(home / "none.jsonl"), "eval_file": jsonl(home / "rows.jsonl", *rows)}
    return list(task(name, **files, **settings).questions().eval)


def everything(name: str, **settings: object) -> list[Problem]:
    split = task(name, **settings).questions()
    return [*split.train, *split.eval]


# GSM8K


def test_gsm8k_takes_the_number_after_the_hashes(tmp_path):
    rows = [
        {"question": f"Q{n}", "answer": answer}
        for n, answer in enumerate(["5 * 5 = <<5*5=25>>25\n#### 1,234", "#### -3", "#### $7", "1.50", 12, None])
    ]
    assert [p.gold for p in read("gsm8k", *rows, home=tmp_path)] == ["1234", "-3", "7", "1.50", "12", None]


@pytest.mark.parametrize("answer", ["so it is five", "#### five", "#### 1,23", "#### "])
def test_gsm8k_without_a_number_is_refused(tmp_path, answer):
    with pytest.raises(DataError, match=r"rows\.jsonl, line 1: 'answer' must be a number or end in #### and a number"):
        read("gsm8k", {"question": "Q", "answer": answer}, home=tmp_path)


def test_gsm8k_asks_for_a_single_number_and_reads_the_last_one():
    gsm8k = task("gsm8k")
    assert all("a single number" in text for text in gsm8k.prompts.values())
    assert set(gsm8k.prompts) == {"solve", "critic_summary", "critic_full", "critic_alone", "judge"}
    assert gsm8k.extract("That makes 3 and 4, so 12 in all.") == "12"


@pytest.mark.slow
@needs_data
def test_every_answer_of_gsm8k_passes_its_own_grader():
    home = DATA / "gsm8k"
    gsm8k = task("gsm8k", train_file=home / "train.jsonl", eval_file=home / "test.jsonl")
    split = gsm8k.questions()
    problems = [*split.train, *split.eval]
    assert (len(split.train), len(split.eval), split.duplicates) == (7_473, 1_319, 0)
    right = [gsm8k.grade(p, gsm8k.extract(gsm8k.show(p.gold))) for p in problems]
    assert sum(right) / len(right) == 1.0
    prepare(gsm8k)


# MATH


def maths(n: int, **more: object) -> dict[str, object]:
    return {"problem": f"Problem {n}?", "level": "Level 1", "type": "Algebra", "solution": f"So \\boxed{{{n}}}."} | more


def test_math_takes_the_answer_or_the_last_box_of_the_solution(tmp_path):
    rows = [
        maths(1, answer="\\frac12"),
        maths(2, solution="First \\boxed{3}, no: $\\boxed{\\frac{2}{3}}$."),
        maths(3, answer=None),
        maths(4, solution="Thus \\fbox{9}."),
    ]
    assert [p.gold for p in read("math", *rows, home=tmp_path)] == ["\\frac12", "\\frac{2}{3}", None, "9"]


def test_math_is_chosen_by_level_and_type_however_they_are_spelt(tmp_path):
    made = [
        maths(1, level="Level 1"),
        maths(2, level="Level 2", type="Counting & Probability"),
        maths(3, level=3, type="counting_and_probability"),
        maths(4, level="level 5"),
    ]

    def chosen(**settings: object) -> list[str]:
        return [p.gold for p in read("math", *made, home=tmp_path, **settings)]

    assert chosen() == ["1", "2", "3", "4"]
    assert chosen(levels=[1, 2, 3]) == chosen(levels=["Level 1", "level 2", "3"]) == ["1", "2", "3"]
    assert chosen(types=["Counting & Probability"]) == chosen(types=["counting and probability"]) == ["2", "3"]
    assert chosen(levels=[1, 3], types=["Algebra"]) == ["1"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"levels": [7]}, r"task\.levels has 7, but no question is of it\. The questions have: 1 \(2\)\."),
        ({"levels": ["Level one"]}, r"task\.levels has 'Level one', .* 1 \(2\)"),
        ({"types": ["Algebre"]}, r"task\.types has 'Algebre', .* algebra \(2\)"),
    ],
)
def test_levels_and_types_that_are_not_there_are_refused_with_those_that_are(tmp_path, settings, said):
    with pytest.raises(ConfigError, match=said):
        read("math", maths(1), maths(2), home=tmp_path, **settings)


def test_a_file_without_levels_cannot_be_chosen_from(tmp_path):
    with pytest.raises(
        DataError, match=r"line 1 has no field 'level'; it has 'problem', 'answer'\. task\.levels chooses"
    ):
        read("math", {"problem": "P", "answer": "1"}, home=tmp_path, levels=[1])


def test_math_without_an_answer_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"'solution' has no answer in a \\boxed\{\}, got 'It is five\.'"):
        read("math", maths(1, solution="It is five."), home=tmp_path)
    with pytest.raises(
        DataError, match=r"has no field 'problem'; it has 'question', 'answer'\. MATH has problem, level"
    ):
        read("math", {"question": "Q", "answer": "1"}, home=tmp_path)


def test_the_folder_of_hendrycks_is_read_by_split(tmp_path):
    for n, place in enumerate(["train/algebra/1", "train/geometry/2", "test/algebra/1", "test/geometry/7"]):
        path = tmp_path / "MATH" / f"{place}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(maths(n, level=f"Level {n}"), indent=4))
    split = task("math", dataset=str(tmp_path / "MATH")).questions()
    assert [p.gold for p in split.train] == ["0", "1"] and [p.gold for p in split.eval] == ["2", "3"]
    files = task("math", train_file=tmp_path / "MATH/train", eval_file=tmp_path / "MATH/test").questions()
    assert files == split
    with pytest.raises(DataError, match=r"empty holds no \.json files"):
        (tmp_path / "empty").mkdir()
        task("math", train_file=tmp_path / "empty").questions()


def test_plain_spellings():
    assert plain("Level 3") == plain(3) == plain(" level 3 ") == "3"


@needs_data
def test_every_answer_of_math_500_passes_its_own_grader():
    math = task("math", train_file=DATA / "math500.jsonl")
    problems = [p for side in math.questions()[:2] for p in side]
    right = [math.grade(p, math.extract(math.show(p.gold))) for p in problems]
    assert len(right) == 500 and sum(right) / len(right) == 1.0
    assert problems[0].id.startswith("test/")
    easy = everything("math", train_file=DATA / "math500.jsonl", levels=[1, 2, 3])
    assert len(easy) == 43 + 90 + 105


# MMLU


def choices(n: int, answer: object = 1, **more: object) -> dict[str, object]:
    return {"question": f"Which {n}?", "choices": ["w", "x", "y", "z"], "answer": answer, "subject": "law"} | more


def test_mmlu_lists_the_options_and_asks_for_one_letter(tmp_path):
    made = read("mmlu", choices(1), home=tmp_path)
    assert made[0].question == "Which 1?\n\nA) w\nB) x\nC) y\nD) z" and made[0].gold == "B"
    mmlu = task("mmlu")
    assert all("the letter of the right option" in text for text in mmlu.prompts.values())
    assert mmlu.extract("The answer is (C).") == "C" and mmlu.extract("\\boxed{\\text{b}}") == "B"
    assert mmlu.grade(made[0], "B") is True and mmlu.grade(made[0], "C") is False and mmlu.grade(made[0], None) is False


def test_mmlu_answers_are_indices_or_letters_and_options_a_list_or_columns(tmp_path):
    columns = {"question": "Columns?", "A": 1, "B": 2, "C": "None", "D": 4.5, "answer": "D"}
    made = read("mmlu", choices(0, 0), choices(1, "3"), choices(2, "c"), choices(3, -1), columns, home=tmp_path)
    assert [p.gold for p in made] == ["A", "D", "C", None, "D"]
    assert made[-1].question.endswith("A) 1\nB) 2\nC) None\nD) 4.5")


def test_mmlu_takes_single_subjects(tmp_path):
    made = [choices(1), choices(2, subject="abstract_algebra")]
    assert len(read("mmlu", *made, home=tmp_path, types=["Abstract algebra"])) == 1
    with pytest.raises(ConfigError, match=r"task\.types has 'algebra', .* abstract algebra \(1\), law \(1\)"):
        read("mmlu", *made, home=tmp_path, types=["algebra"])


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (choices(1, 4), "'answer' must be an index from 0 to 3 or a letter from A to D, got 4"),
        (choices(1, "E"), "got 'E'"),
        (choices(1, "x"), "got 'x'"),
        (choices(1, True), "got True"),
        (choices(1, ""), "got ''"),
        (choices(1, choices=["only"]), "'choices' must be a list of 2 to 10 options"),
        (choices(1, choices="w, x"), "'choices' must be a list of 2 to 10 options, got 'w, x'"),
        (choices(1, choices=["a", ""]), "every option must be a text or a number"),
        ({"question": "Q", "answer": 0}, "has no field 'A'; it has 'question', 'answer'. MMLU has question, choices"),
    ],
)
def test_mmlu_rows_that_make_no_sense_are_refused(tmp_path, row, said):
    with pytest.raises(DataError) as caught:
        read("mmlu", row, home=tmp_path)
    assert said in str(caught.value) and "rows.jsonl, line 1" in str(caught.value)


def test_the_same_question_with_other_options_is_another_question(tmp_path):
    made = read("mmlu", choices(1), choices(1, choices=["a", "b", "c", "d"]), choices(1), home=tmp_path)
    assert len(made) == 2


# Any columns, in any format


def test_csv_has_a_header_quotes_and_empty_cells(tmp_path):
    path = tmp_path / "q.csv"
    path.write_bytes('\ufeffquestion,answer\r\n"One, or\ntwo?",1\r\n\r\nThree?,\r\n'.encode())
    made = sorted(everything("dataset", train_file=path), key=lambda p: p.question)
    assert [(p.question, p.gold) for p in made] == [("One, or\ntwo?", "1"), ("Three?", None)]
    (tmp_path / "q.tsv").write_text("q\tgold\nOne, two\t5\n")
    assert everything("dataset", train_file=tmp_path / "q.tsv", question_field="q", gold_field="gold")[0].gold == "5"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"question,answer\nOne,1,2\n", r"line 2 has 3 cells, the header has 2"),
        (b"question,question\nOne,1\n", r"must name each column once in its first line, got question, question"),
        (b'question,answer\n"One,1\n', r"line 3, is not CSV: unexpected end of data|line 2, is not CSV"),
        (b"question,answer\nf\xfcr,1\n", r"q\.csv is not UTF-8 at byte 17"),
        (b"text,answer\nOne,1\n", r"line 2 has no field 'question'; it has 'text', 'answer'"),
        (b"question,answer\n,1\n", r"line 2: 'question' is empty"),
        (b"", r"has no training questions"),
    ],
)
def test_a_bad_csv_is_refused(tmp_path, content, said):
    (tmp_path / "q.csv").write_bytes(content)
    with pytest.raises(DataError, match=said):
        prepare(task("dataset", train_file=tmp_path / "q.csv"))


def test_json_files_hold_one_object_a_list_or_lines(tmp_path):
    for name, content in {
        "list.json": '[{"question": "a", "answer": 1}, {"question": "b", "answer": 2}]',
        "one.json": '{\n"question": "a", "answer": 1}',
        "lines.json": '{"question": "a", "answer": 1}\n{"question": "b", "answer": 2}\n',
    }.items():
        (tmp_path / name).write_text(content)
        assert {p.question for p in everything("dataset", train_file=tmp_path / name)} <= {"a", "b"}
    (tmp_path / "bad.json").write_text('[{"question": "a", "answer": 1}, 3]')
    with pytest.raises(DataError, match="entry 2 must be a JSON object, got int"):
        task("dataset", train_file=tmp_path / "bad.json").questions()


@pytest.mark.parametrize(("value", "said"), [("", "is empty. Write null"), (" ", "is empty"), ({"a": 1}, "got {")])
def test_answers_that_are_none_are_refused(tmp_path, value, said):
    with pytest.raises(DataError) as caught:
        read("dataset", {"question": "a", "answer": 1}, {"question": "b", "answer": value}, home=tmp_path)
    assert said in str(caught.value) and "line 2: 'answer'" in str(caught.value)


def test_numbers_without_end_are_refused(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "a", "answer": Infinity}\n')
    with pytest.raises(DataError, match="'answer' must be a text, a number or a list of one, got inf"):
        task("dataset", train_file=path).questions()


# Duplicates, and questions without an answer


def test_duplicates_are_kept_once_counted_and_told(tmp_path, caplog):
    made = [{"question": q, "answer": n} for n, q in enumerate(["What is 2 + 2?", "Else?", "what is 2+2 ?", "Else?"])]
    files = {
        "train_file": jsonl(tmp_path / "a.jsonl", *made),
        "eval_file": jsonl(tmp_path / "b.jsonl", made[3] | {"question": "New"}),
    }
    with caplog.at_level(logging.WARNING, logger="maft"):
        split = prepare(task("dataset", **files))
    assert split.duplicates == 2 and [p.gold for p in sorted(split.train, key=lambda p: p.gold)] == ["0", "1"]
    assert "2 of 4 questions occur more than once, such as 'what is 2+2 ?'; each is kept once" in caplog.text
    assert "(2 have others later)" in caplog.text


def test_the_manifest_counts_duplicates_and_keeps_the_count(tmp_path):
    from helpers import run, settings

    made = [{"question": f"What is {n % 8}?", "answer": n % 8} for n in range(10)]
    config = settings(
        tmp_path, task={"name": "dataset", "train_file": str(jsonl(tmp_path / "q.jsonl", *made)), "num_train": 4}
    )
    for _ in range(2):
        folder = run(config)
        assert files.read_json(folder.path / "manifest.json")["duplicates_left_out"] == 2


def test_questions_without_an_answer_are_for_training(tmp_path):
    made = [{"question": f"Q{n}", "answer": n if n % 2 else None} for n in range(20)]
    split = prepare(task("dataset", train_file=jsonl(tmp_path / "q.jsonl", *made), num_train=12))
    assert len(split.train) == 12 and sum(p.gold is None for p in split.train) == 10
    assert len(split.eval) == 8 and all(p.gold is not None for p in split.eval)
    small = prepare(task("dataset", train_file=tmp_path / "q.jsonl", num_train=4, num_eval=5))
    assert all(p.gold is None for p in small.train) and all(p.gold is not None for p in small.eval)
    few = [{"question": f"Q{n}", "answer": None if n % 4 else n} for n in range(20)]
    most = prepare(task("dataset", train_file=jsonl(tmp_path / "few.jsonl", *few)))
    assert (len(most.train), len(most.eval)) == (15, 5) and all(p.gold is None for p in most.train)


def test_held_out_questions_must_all_have_an_answer_or_none(tmp_path):
    one = jsonl(tmp_path / "a.jsonl", *({"question": f"a{n}", "answer": None} for n in range(4)))
    two = jsonl(tmp_path / "b.jsonl", *({"question": f"b{n}", "answer": n or None} for n in range(4)))
    with pytest.raises(DataError, match="1 of 4 held-out questions have no known answer, such as 'b0'"):
        prepare(task("dataset", train_file=one, eval_file=two))
    assert len(prepare(task("dataset", train_file=two, eval_file=one)).eval) == 4


def test_sources_that_contradict_each_other_are_refused(tmp_path):
    one = jsonl(tmp_path / "a.jsonl", {"question": "a", "answer": 1})
    with pytest.raises(ConfigError, match=r"task\.train_file and task\.dataset are both given"):
        task("gsm8k", train_file=one, dataset="openai/gsm8k").questions()
    with pytest.raises(ConfigError, match=r"task\.train_file is missing: .* beside task\.eval_file"):
        task("gsm8k", eval_file=one).questions()
    with pytest.raises(
        ConfigError, match=r"task\.train_file is missing: .* or the name of a data set in task\.dataset"
    ):
        task("dataset").questions()
    with pytest.raises(ConfigError, match=r"a\.jsonl is a file\. Give it as task\.train_file"):
        task("dataset", dataset=str(one)).questions()


# Parquet and data sets


@pytest.fixture
def hub_datasets(tmp_path, monkeypatch):
    """The `datasets` library, offline and with its cache in a temporary folder."""
    datasets = pytest.importorskip("datasets")
    import huggingface_hub.constants

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    return datasets


ROWS = [{"question": f"Q{n}?", "answer": f"#### {n}", "id": n} for n in range(6)]


def test_parquet_files_are_read(tmp_path, hub_datasets):
    hub_datasets.Dataset.from_list(ROWS).to_parquet(str(tmp_path / "q.parquet"))
    assert {p.gold for p in everything("gsm8k", train_file=tmp_path / "q.parquet")} == set("012345")
    (tmp_path / "bad.parquet").write_text("not parquet")
    with pytest.raises(DataError, match=r"bad\.parquet is not a Parquet file that can be read"):
        task("gsm8k", train_file=tmp_path / "bad.parquet").questions()
    with pytest.raises(DataError, match=r"none\.parquet: .*No such file"):
        task("gsm8k", train_file=tmp_path / "none.parquet").questions()


def test_saved_data_sets_are_read_with_and_without_splits(tmp_path, hub_datasets):
    sides = {"train": hub_datasets.Dataset.from_list(ROWS[:4]), "test": hub_datasets.Dataset.from_list(ROWS[4:])}
    hub_datasets.DatasetDict(sides).save_to_disk(str(tmp_path / "both"))
    split = prepare(task("gsm8k", dataset=str(tmp_path / "both")))
    assert (len(split.train), len(split.eval)) == (4, 2)
    sides["train"].save_to_disk(str(tmp_path / "one"))
    split = prepare(task("dataset", dataset=str(tmp_path / "one"), num_train=3))
    assert (len(split.train), len(split.eval)) == (3, 1)


def test_folders_of_data_files_are_read_by_split(tmp_path, hub_datasets):
    home = tmp_path / "home"
    jsonl(home / "train.jsonl", *ROWS[:4])
    jsonl(home / "test.jsonl", *ROWS[4:])
    split = prepare(task("gsm8k", dataset=str(home)))
    assert (len(split.train), len(split.eval)) == (4, 2)
    divided = prepare(task("dataset", dataset=str(home), num_train=3))
    assert (len(divided.train), len(divided.eval)) == (3, 1)
    same = prepare(task("gsm8k", dataset=str(home), train_split="test", eval_split="test"))
    assert (len(same.train), len(same.eval)) == (1, 1)
    with pytest.raises(DataError, match=r"the data set .*home \(subset default, split dev\) cannot be read: .*dev"):
        task("gsm8k", dataset=str(home), eval_split="dev").questions()


def test_published_splits_that_overlap_lose_the_training_question(tmp_path, hub_datasets, caplog):
    home = tmp_path / "home"
    jsonl(home / "train.jsonl", *ROWS[:4])
    jsonl(home / "test.jsonl", *ROWS[3:])
    split = prepare(task("gsm8k", dataset=str(home)))
    assert (len(split.train), len(split.eval), split.duplicates) == (3, 3, 1)
    assert "1 training questions of" in caplog.text and "also held-out questions" in caplog.text


CARD = """---
configs:
- config_name: easy
  data_files: [{split: train, path: easy/a.jsonl}, {split: test, path: easy/b.jsonl}]
- config_name: hard
  data_files: [{split: train, path: hard.jsonl}]
---
"""
READ = """
from maft.config import TaskConfig
from maft.tasks import make, prepare
easy = prepare(make(TaskConfig(name="dataset", dataset="me/sums", subset="easy", eval_split="test")))
hard = make(TaskConfig(name="dataset", dataset="me/sums", subset="hard", eval_split="train[2:]", train_split="train[:2]"))
for side in (easy.train, easy.eval, hard.questions().eval):
    print(*sorted(problem.gold for problem in side))
"""


@pytest.mark.slow
@pytest.mark.parametrize("by", ["hub", "folder"])
def test_a_data_set_is_read_by_its_id_on_the_hub_or_by_its_folder_and_again_offline(tmp_path, by):
    def rows(*numbers: int) -> str:
        return "".join(json.dumps({"question": f"What is {n} + 1?", "answer": str(n + 1)}) + "\n" for n in numbers)

    content = {"README.md": CARD, "easy/a.jsonl": rows(0, 1), "easy/b.jsonl": rows(2, 3), "hard.jsonl": rows(7, 8, 9)}
    with Hub() as hub:
        if by == "hub":
            hub.put("datasets/me/sums", {name: text.encode() for name, text in content.items()})
        for name, text in content.items() if by == "folder" else ():
            files.write_text(tmp_path / "me/sums" / name, text)
        environment = ENVIRONMENT | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
        for more in ({}, {"HF_HUB_OFFLINE": "1"}):
            command = [sys.executable, "-c", READ]
            done = subprocess.run(command, cwd=tmp_path, env=environment | more, capture_output=True, text=True)
            assert (done.returncode, done.stdout) == (0, "1 2\n3 4\n10\n"), done.stderr
        assert bool(hub.asked) == (by == "hub")


def test_a_data_set_that_cannot_be_reached_is_a_clear_error(hub_datasets):
    for name in ("gsm8k", "math", "mmlu"):
        with pytest.raises(DataError, match=r"cannot be read: .* Check task\.dataset, .* task\.train_file"):
            task(name).questions()
    with pytest.raises(DataError, match=r"the data set nobody/nothing \(subset default, split train\) cannot be read"):
        task("dataset", dataset="nobody/nothing").questions()


@pytest.mark.parametrize(
    "error", [RuntimeError("the client has been closed"), ConnectionError("no route"), KeyError("x")]
)
def test_whatever_goes_wrong_on_the_way_is_a_clear_error(hub_datasets, monkeypatch, error):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(hub_datasets, "load_dataset", fail)
    with pytest.raises(
        DataError, match=rf"openai/gsm8k \(subset main, split train\) cannot be read: .*{type(error).__name__}"
    ):
        task("gsm8k").questions()


def test_a_missing_library_is_named_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"pip install .*\[tasks\]"):
        rows.from_dataset("openai/gsm8k", "main", "train")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match="Parquet"):
        rows.from_file(tmp_path / "q.parquet")


# Files as the world writes them


def golds(path: Path, **settings: object) -> dict[str, str | None]:
    return {p.question: p.gold for p in everything("dataset", train_file=path, **settings)}


AS_WRITTEN = {
    "semicolons.csv": "question;answer\nOne, or two?;1\nThree?;3\n",
    "tabs.csv": "question\tanswer\nOne, or two?\t1\nThree?\t3\n",
    "declared.csv": "sep=;\nquestion;answer\nOne, or two?;1\nThree?;3\n",
    "padded.csv": 'question , answer\n"One, or two?", 1\nThree?, 3\n',
    "pandas.csv": ',question,answer\n0,"One, or two?",1\n1,Three?,3\n',
    "excel.csv": 'question,answer,\r\n"One, or two?",1,\r\n,,\r\n,,\r\nThree?,3,\r\n',
    "array.jsonl": '[{"question": "One, or two?", "answer": 1},\n {"question": "Three?", "answer": 3}]',
    "pretty.jsonl": '{\n "question": "One, or two?",\n "answer": 1\n}\n{\n "question": "Three?",\n "answer": 3\n}\n',
    "joined.jsonl": '{"question": "One, or two?", "answer": 1}{"question": "Three?", "answer": 3}',
    "examples.json": '{"version": "1", "examples": [{"question": "One, or two?", "answer": 1}, {"question": "Three?", "answer": 3}]}',
    "data.json": '{"data": [{"question": "One, or two?", "answer": 1}, {"question": "Three?", "answer": 3}]}',
    "columns.json": '{"question": ["One, or two?", "Three?"], "answer": [1, 3]}',
    "pandas.json": '{"question": {"0": "One, or two?", "1": "Three?"}, "answer": {"0": 1, "1": 3}}',
    "by_id.json": '{"q1": {"question": "One, or two?", "answer": 1}, "q2": {"question": "Three?", "answer": 3}}',
}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_byte_order_marks_say_the_encoding(tmp_path, encoding):
    (tmp_path / "q.csv").write_bytes("question\tanswer\nGröße?\t1\n".encode(encoding))
    assert golds(tmp_path / "q.csv") == {"Größe?": "1"}


def test_a_spreadsheet_is_named_as_one(tmp_path):
    (tmp_path / "q.csv").write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(DataError, match="is a spreadsheet or an archive. Save its table as CSV"):
        golds(tmp_path / "q.csv")


@pytest.mark.parametrize("name", AS_WRITTEN)
@pytest.mark.parametrize("zipped", [False, True])
def test_files_are_read_as_the_world_writes_them(tmp_path, name, zipped):
    path = tmp_path / (f"{name}.gz" if zipped else name)
    data = AS_WRITTEN[name].encode()
    path.write_bytes(gzip.compress(data) if zipped else data)
    assert golds(path) == {"One, or two?": "1", "Three?": "3"}


def test_what_is_left_out_or_found_out_is_said(tmp_path, caplog):
    (tmp_path / "q.csv").write_text("question;answer\nA;1\n;\n;\nB;2\n")
    with caplog.at_level(logging.INFO, logger="maft"):
        assert len(golds(tmp_path / "q.csv")) == 2
    assert [m for m in caplog.messages if "column separator is ';'" in m]
    assert [m for m in caplog.messages if "2 empty rows are skipped" in m]


def test_several_lists_in_one_file_are_refused_by_name(tmp_path):
    row = '[{"question": "a", "answer": 1}]'
    (tmp_path / "q.json").write_text(f'{{"train": {row}, "test": {row}}}')
    with pytest.raises(DataError, match=r"q\.json holds several lists: train, test"):
        golds(tmp_path / "q.json")


def test_a_torn_gzip_file_is_refused_in_a_line(tmp_path):
    (tmp_path / "q.jsonl.gz").write_bytes(gzip.compress(b'{"question": "a"}' * 100)[:40])
    with pytest.raises(DataError, match="is not a gzip file that can be read"):
        golds(tmp_path / "q.jsonl.gz")


def test_long_cells_are_read(tmp_path):
    (tmp_path / "q.csv").write_text(f"question,answer\n{'x' * 200_000},1\ny,2\n")
    assert sorted(map(len, golds(tmp_path / "q.csv"))) == [1, 200_000]


def test_answers_may_be_lists_of_one_truth_values_or_missing_as_nan(tmp_path):
    made = [("a", [5]), ("b", True), ("c", "NaN"), ("d", float("nan")), ("e", ["x"])]
    path = jsonl(tmp_path / "q.jsonl", *({"question": q, "answer": gold} for q, gold in made))
    assert golds(path) == {"a": "5", "b": "True", "c": None, "d": None, "e": "x"}


def test_short_floats_and_decimals_of_parquet_are_what_was_written(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    import decimal

    from pyarrow import parquet

    table = pyarrow.table(
        {
            "question": ["a", "b", "c"],
            "answer": pyarrow.array([5.1, 0.1, None], pyarrow.float32()),
            "exact": pyarrow.array([decimal.Decimal("5.10"), decimal.Decimal("1E+2"), None], pyarrow.decimal128(6, 2)),
        }
    )
    parquet.write_table(table, tmp_path / "q.parquet")
    assert golds(tmp_path / "q.parquet") == {"a": "5.1", "b": "0.1", "c": None}
    assert golds(tmp_path / "q.parquet", gold_field="exact") == {"a": "5.10", "b": "100.00", "c": None}


def test_fields_within_fields_are_named_with_dots(tmp_path):
    rows = [{"prompt": [{"role": "user", "content": f"Q{n}"}], "reward": {"truth": n}} for n in range(2)]
    made = golds(jsonl(tmp_path / "q.jsonl", *rows), question_field="prompt.0.content", gold_field="reward.truth")
    assert made == {"Q0": "0", "Q1": "1"}
    with pytest.raises(DataError, match=r"has no field 'prompt\.1\.content'; it has 'prompt', 'reward'"):
        golds(tmp_path / "q.jsonl", question_field="prompt.1.content", gold_field=None)


def test_ids_are_of_a_file_and_unique_in_it(tmp_path):
    one = jsonl(tmp_path / "a.jsonl", *({"id": n, "question": f"a{n}", "answer": n} for n in range(3)))
    two = jsonl(tmp_path / "b.jsonl", *({"id": n, "question": f"b{n}", "answer": n} for n in range(3)))
    split = prepare(task("dataset", train_file=one, eval_file=two))
    assert {p.id for p in split.train} == {p.id for p in split.eval} == {"0", "1", "2"}
    same = jsonl(tmp_path / "c.jsonl", *({"id": "x", "question": f"c{n}", "answer": n} for n in range(3)))
    with pytest.raises(
        DataError, match=r"c\.jsonl, line 1 and .*c\.jsonl, line 2 are different questions with the same id"
    ):
        prepare(task("dataset", train_file=same))


def test_training_questions_need_no_field_for_answers(tmp_path, caplog):
    one = jsonl(tmp_path / "a.jsonl", *({"question": f"a{n}"} for n in range(3)))
    two = jsonl(tmp_path / "b.jsonl", *({"question": f"b{n}", "answer": n} for n in range(3)))
    split = prepare(task("dataset", train_file=one, eval_file=two))
    assert [p.gold for p in split.train] == [None] * 3 and None not in [p.gold for p in split.eval]
    assert caplog.messages == []
    prepare(task("dataset", train_file=two, eval_file=one))
    assert "Accuracy will not be known: no held-out question has the field 'answer'" in caplog.text
    with pytest.raises(DataError, match="no held-out question has the field 'target'"):
        prepare(task("dataset", train_file=two, eval_file=one, gold_field="target"))


def test_parts_of_saved_splits_are_read_as_datasets_names_them(tmp_path, hub_datasets):
    hub_datasets.DatasetDict({"train": hub_datasets.Dataset.from_list(ROWS)}).save_to_disk(str(tmp_path / "both"))
    sides = {"train_split": "train[:50%]", "eval_split": "train[-2:]"}
    split = prepare(task("gsm8k", dataset=str(tmp_path / "both"), **sides))
    assert (len(split.train), len(split.eval)) == (3, 2)
    with pytest.raises(DataError, match=r"there is no split test; the splits are: train"):
        task("gsm8k", dataset=str(tmp_path / "both"), eval_split="test").questions()


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Q", "options": ["w", "x", "y"], "answer": "B", "answer_index": 1, "category": "law"},
        {"question": "Q", "choices": {"text": ["w", "x", "y"], "label": ["A", "B", "C"]}, "answerKey": "B"},
        {"question": "Q", "choices": {"text": ["w", "x", "y"], "label": ["1", "2", "3"]}, "answerKey": "2"},
        {"question_stem": "Q", "choices": {"text": ["w", "x", "y"], "label": ["A", "B", "C"]}, "answerKey": "B"},
        {"question": "Q", "options": ["A)w", "B)x", "C)y"], "rationale": "...", "correct": "B"},
    ],
    ids=["MMLU-Pro", "ARC", "ARC with numbers", "OpenBookQA", "AQuA"],
)
def test_options_are_read_as_other_sets_have_them(tmp_path, row):
    made = read("mmlu", row, home=tmp_path)[0]
    assert (made.question, made.gold) == ("Q\n\nA) w\nB) x\nC) y", "B")


def test_subjects_are_categories_elsewhere_and_keys_may_be_hidden(tmp_path):
    rows = [{"question": "Q", "options": ["w", "x"], "answer": "B", "category": c} for c in ("law", "math")]
    assert len(read("mmlu", *rows, home=tmp_path, types=["law"])) == 1
    hidden = {"question": "Q", "choices": {"text": ["w", "x"], "label": ["A", "B"]}, "answerKey": ""}
    assert read("mmlu", hidden, home=tmp_path)[0].gold is None
