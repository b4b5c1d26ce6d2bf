"""Labels, JSON and free text as answers."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from maft.answers import objects
from maft.answers.labels import read_label
from maft.answers.objects import Json
from maft.config import TaskConfig
from maft.errors import ConfigError, DataError
from maft.tasks import make, prepare

LABELS = ("spam", "not spam", "unsure")


@pytest.mark.parametrize(
    ("reply", "label"),
    [
        ("Spam.", "spam"),
        ("It offers money for nothing, so the answer is **not  spam**.", "not spam"),
        (r"First I thought spam. \boxed{Unsure}", "unsure"),
        ("It could be spam or not spam.\n\nLabel: spam", "spam"),
        ("This is a typical not spam message.", "not spam"),
        ("It is not unsure.", None),
        ("It could be spam, or unsure.", None),
        ("<think>spam</think>I cannot say.", None),
        ("unspammed", None),
        ("", None),
    ],
)
def test_a_label_is_read(reply: str, label: str | None) -> None:
    assert read_label(reply, LABELS) == label


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        (["spam", " Spam"], "'spam' and ' Spam'"),
        (["a", "a"], "'a' and 'a'"),
        (["a"], "two labels"),
        (["a", " "], "empty"),
    ],
)
def test_a_set_of_labels_has_no_label_twice(labels: list[str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        make(TaskConfig(name="classification", labels=labels))


def _file(tmp_path: Path, *answers: Any) -> Path:
    path = tmp_path / "rows.jsonl"
    rows = [{"question": f"Question {n}?", "answer": answer} for n, answer in enumerate(answers)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def test_known_labels_are_of_the_set(tmp_path: Path) -> None:
    settings = {"name": "classification", "labels": LABELS}
    task = make(TaskConfig(**settings, train_file=_file(tmp_path, "SPAM", "unsure", None, "not spam")))
    train, held_out, _ = prepare(task)
    assert sorted(str(problem.gold) for problem in (*train, *held_out)) == ["None", "not spam", "spam", "unsure"]
    with pytest.raises(DataError, match=r"line 2.*labels in task.labels \(spam, not spam, unsure\), got 'ham'"):
        prepare(make(TaskConfig(**settings, train_file=_file(tmp_path, "spam", "ham"))))


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ('{"a": 1, "b": [1.0, "X y"]}', '{"b": [1, "x  Y"], "a": 1e0}', True),
        ('{"a": [1, 2]}', '{"a": [2, 1]}', False),
        ('{"a": {"b": 1, "c": null}}', '{"a": {"c": null, "b": 1}}', True),
        ('{"a": null}', "{}", False),
        ('{"a": "1"}', '{"a": 1}', False),
        ('{"a": false}', '{"a": 0}', False),
        ("not json", " Not JSON ", True),
        ('{"a": 9007199254740993}', '{"a": 9007199254740992.0}', False),
    ],
)
def test_json_is_compared_by_structure(a: str, b: str, same: bool) -> None:
    assert Json().same(a, b) is Json().same(b, a) is same


HOSTILE = {
    "deep": "[" * 100_000,
    "deep objects": '{"a":' * 30_000,
    "closed and deep": "[" * 5_000 + "]" * 5_000,
    "a large number": '{"n": ' + "9" * 10_000 + "}",
    "a large exponent": '{"n": 1e999999999}',
    "not a number": '{"n": NaN}',
    "infinite": '{"n": -Infinity}',
    "two values of a key": '{"n": 1, "n": 2}',
    "half a surrogate pair": '{"n": 1, "m": "\\ud800"}',
    "never closed": '{"n": "' + "x" * 100_000,
    "of another type": '{"n": "many"}',
    "another key": '{"N": 1}',
}


@pytest.mark.parametrize("reply", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_json_is_no_answer_and_takes_no_time(reply: str) -> None:
    task = make(TaskConfig(name="extraction", fields={"n": "number"}))
    began = time.monotonic()
    assert task.extract(reply) is None
    assert time.monotonic() - began < 2


def test_the_last_json_with_all_fields_is_the_answer() -> None:
    task = make(TaskConfig(name="extraction", fields={"city": "text", "n": "number", "ok": "boolean", "more": "list"}))
    whole = {"n": "14", "city": "Rome", "ok": True, "more": [1], "why": "said so"}
    reply = f'{{"city": "Oslo"}} Rather:\n```json\n{json.dumps(whole, indent=1)}\n``` and {{"n": 1}}'
    assert task.extract(reply) == '{"city": "Rome", "n": 14, "ok": true, "more": [1]}'
    assert task.extract(task.show('{"city": null, "n": 1, "ok": null, "more": null}')) is not None
    assert task.extract('{"city": "Rome", "n": true, "ok": true, "more": []}') is None
    assert '{"city": "...", "n": ..., "ok": true or false, "more": [...]}' in task.prompts["solve"]
    assert [len(list(objects.values("[" * depth + "]" * depth))) for depth in (32, 33)] == [1, 0]


def test_known_json_has_the_fields(tmp_path: Path) -> None:
    path = _file(tmp_path, {"city": "Rome", "n": 2, "more": 1}, '{"n": 3.0, "city": "Oslo"}')
    train, held_out, _ = prepare(
        make(TaskConfig(name="extraction", fields={"city": "text", "n": "number"}, train_file=path))
    )
    assert {p.gold for p in (*train, *held_out)} == {'{"city": "Rome", "n": 2}', '{"city": "Oslo", "n": 3.0}'}
    with pytest.raises(DataError, match=r"line 1: 'answer' must have the fields country \(text\), got"):
        prepare(make(TaskConfig(name="extraction", fields={"country": "text"}, train_file=path)))
    with pytest.raises(DataError, match=r"must be JSON, got 'Rome'"):
        prepare(make(TaskConfig(name="extraction", train_file=_file(tmp_path, "Rome", "Oslo"))))
