"""Hard answers by kind of fault: whether two are the same, and what is read in a reply (`python -m bench.cases`)."""

import json
from itertools import groupby
from pathlib import Path

import pytest

from bench import cases

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
