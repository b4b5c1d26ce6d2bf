"""The run folder: whole files or none, whole lines or none."""

import os
import subprocess

import pytest
from helpers import debate, problem, run, run_files, settings

from maft import files
from maft.errors import ConfigError, DataError
from maft.records import Debate, Problem
from maft.runs.folder import RunFolder


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "file.json"
    files.write_text(path, "old")
    monkeypatch.setattr(os, "replace", _fail)
    with pytest.raises(OSError, match="broken"):
        files.write_text(path, "new")
    assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]


def test_a_folder_of_weights_is_as_readable_as_any_other(tmp_path):
    (tmp_path / "usual").touch()
    with files.appearing_whole(tmp_path / "agent") as folder:
        (folder / "model.safetensors").touch(mode=0o600)
    assert (tmp_path / "agent/model.safetensors").stat().st_mode == (tmp_path / "usual").stat().st_mode


def _fail(*_: object) -> None:
    raise OSError("broken")


def test_what_is_written_is_on_the_disk_before_it_is_named(tmp_path, monkeypatch):
    done: list[str] = []
    replace = os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: done.append("fsync"))
    monkeypatch.setattr(os, "replace", lambda *ends: (done.append("replace"), replace(*ends)))
    files.write_text(tmp_path / "a", "text")
    files.append_records(tmp_path / "b", [problem()])
    assert done == ["fsync", "replace", "fsync", "fsync"]  # the file, its name, the folder; the appended lines


@pytest.mark.parametrize("text", ["", "\u2028\u2029\x85\x0b\x0c\x1c", "ünï 𝒙", "a\r\nb\rc", '"\\'])
def test_records_come_back_whatever_is_in_them(tmp_path, text):
    path = tmp_path / "p.jsonl"
    records = [problem(), Problem(id="x", question=text), problem()]
    files.write_records(path, records)
    files.append_records(path, records)
    assert files.read_records(path, Problem) == records * 2


def test_no_records_are_an_empty_file(tmp_path):
    files.write_records(tmp_path / "p.jsonl", [])
    assert files.read_records(tmp_path / "p.jsonl", Problem) == []


def test_a_torn_line_is_cut_off_at_every_byte(tmp_path):
    path = tmp_path / "d.jsonl"
    files.append_records(path, [debate(["ü"]), debate(["1", "2"])])
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        files.drop_torn_line(path)
        assert path.read_bytes() == whole[: 0 if cut < first else len(whole) if cut == len(whole) else first]
    files.drop_torn_line(tmp_path / "not there")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'{"id": "a"}\n', r"line 1, is not a Problem: question: Field required\. Got"),
        (b'{"id": "a", "question": "b"}\n\n', r"line 2, is not a Problem"),
        (b'{"id": "a", "question": "b", "hint": 3}\n', r"line 1, is not a Problem: hint: Extra inputs"),
        (b'{"id": "a", "question": "b"\n', r"line 1, is not a Problem: Invalid JSON"),
        (b'{"id": "a", "question": "\xff"}\n', r"invalid unicode code point"),
    ],
)
def test_a_broken_line_is_refused_with_its_number_and_what_to_do(tmp_path, data, said):
    path = tmp_path / "p.jsonl"
    path.write_bytes(data)
    with pytest.raises(DataError, match=said):
        files.read_records(path, Problem)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"p\.jsonl: No such file or directory"):
        files.read_records(tmp_path / "p.jsonl", Problem)


def test_json_that_cannot_be_read_says_how_to_have_it_made_again(tmp_path):
    (tmp_path / "summary.json").write_text("{")
    for name in ("summary.json", "none.json"):
        with pytest.raises(DataError, match="is damaged: .* Restore it from a copy"):
            files.read_json(tmp_path / name)


def test_a_folder_that_is_not_a_run_is_left_alone(tmp_path):
    config = settings(tmp_path)
    home = tmp_path / "run"
    home.mkdir()
    (home / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match="exists and is not a run folder"), RunFolder.open(config):
        pass
    assert [path.name for path in home.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("name", ["file", "file/run"])
def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="there is a file in its place"), RunFolder.open(settings(tmp_path, name=name)):
        pass


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "run").mkdir()
    with RunFolder.open(settings(tmp_path)) as folder:
        assert (folder.path / "config.json").exists()


def test_a_run_can_be_opened_again_after_an_error(tmp_path):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), RunFolder.open(settings(tmp_path)):
            raise ZeroDivisionError


def test_only_one_can_have_a_run_open_but_all_can_read_it(tmp_path):
    config = settings(tmp_path)
    with RunFolder.open(config) as folder:
        with pytest.raises(DataError, match="in use by another process"), RunFolder.open(config):
            pass
        assert RunFolder.existing(folder.path).config == config


def test_a_folder_without_a_run_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="is not a run folder: it has no config.json"):
        RunFolder.existing(tmp_path)


def test_more_iterations_continue_a_finished_run_and_fewer_leave_it_whole(tmp_path):
    first = run(settings(tmp_path, "num_iterations=1"))
    before = run_files(first.path)
    grown = run(settings(tmp_path, "num_iterations=2"))
    unbroken = run(settings(tmp_path / "other", "num_iterations=2"))
    made, straight = run_files(grown.path), run_files(unbroken.path)
    skip = {"config.json", "metrics.jsonl"}
    assert {name: made[name] for name in made if name not in skip} == {
        name: straight[name] for name in straight if name not in skip
    }
    assert all(made[name] == content for name, content in before.items() if name not in skip)
    shrunk = run(settings(tmp_path, "num_iterations=1"))
    assert shrunk.config.num_iterations == 2 and run_files(shrunk.path) == made


def test_other_settings_are_refused_and_leave_the_folder_as_it_was(finished_run):
    before = (finished_run.path / "config.json").read_bytes()
    other = finished_run.config.model_copy(update={"seed": 9, "model": "x"})
    with (
        pytest.raises(ConfigError, match=r"model: .* there, 'x' asked for\n  seed: 0 there, 9 asked for"),
        RunFolder.open(other),
    ):
        pass
    assert (finished_run.path / "config.json").read_bytes() == before


def test_the_config_of_a_run_folder_starts_the_same_run(finished_run):
    from maft import config as config_

    again = config_.load(finished_run.path / "config.json")
    assert again == finished_run.config
    with RunFolder.open(again) as folder:
        assert folder.path == finished_run.path


def test_a_finished_run_has_the_files_it_promises(finished_run):
    home = finished_run.path
    agents = [f"{role}_{n}" for role in ("generator", "critic") for n in range(3)]
    wanted = {"config.json", "manifest.json", "problems/train.jsonl", "problems/eval.jsonl", "events.jsonl"}
    methods = {0: ("base", "majority@3", "debate"), 1: ("maft_single", "maft_majority@3", "maft")}
    for number in range(3):
        names = ("debates.jsonl", "votes.jsonl", "summary.json", *(f"{m}.jsonl" for m in methods[min(number, 1)]))
        wanted |= {f"iter_{number:02d}/eval/{name}" for name in names}
    for number in (1, 2):
        wanted |= {f"iter_{number:02d}/{name}.jsonl" for name in ("debates", "votes")}
        wanted |= {f"iter_{number:02d}/examples/{agent}.jsonl" for agent in agents}
        wanted |= {f"iter_{number:02d}/examples/summary.json"}
        wanted |= {f"iter_{number:02d}/agents/{agent}/adapter.json" for agent in agents}
    wanted |= {f"iter_{number:02d}/eval/votes.jsonl" for number in range(3)}
    found = {path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file() and path.name != ".lock"}
    assert found == wanted


def test_the_counts_in_the_summary_are_those_of_the_files(finished_run):
    for number in (1, 2):
        summary = files.read_json(finished_run.examples_summary(number))
        debates = len(files.read_records(finished_run.debates(number), Debate))
        for agent, counts in summary.items():
            lines = finished_run.examples(number, agent).read_text().splitlines()
            assert len(lines) == counts["examples"]
            reasons = ("failed", "no_answer", "low_agreement", "unparsed", "disagrees", "cut_for_mix")
            assert sum(counts[name] for name in reasons) + len(lines) - counts["repeated_for_mix"] == debates


def test_events_tell_what_every_batch_and_training_cost(finished_run):
    events = finished_run.events()
    debated = [event for event in events if event["event"] == "debated"]
    assert sum(event["debates"] for event in debated) == 2 * 10 + 3 * 6
    assert sum(event["calls"] for event in debated) == (2 * 10 + 3 * 6) * 9
    assert all(event["completion_tokens"] > 0 and event["seconds"] >= 0 for event in debated)
    assert [event["agent"] for event in events if event["event"] == "trained"] == [
        f"{role}_{n}" for _ in (1, 2) for role in ("generator", "critic") for n in range(3)
    ]


def test_only_what_a_dead_process_left_is_removed(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    names = {f".a.{dead.pid}.tmp": False, f".b.{os.getpid()}.tmp": True, ".c.tmp": True, f"maft-x.{dead.pid}.ab": False}
    for name in names:
        (tmp_path / name).write_text("")
    files.remove_leftovers(tmp_path.iterdir())
    assert {name: (tmp_path / name).exists() for name in names} == names


def test_a_temporary_folder_is_removed_by_the_next_start_after_a_kill(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mine = files.temporary("sandbox")
    dead = subprocess.Popen(["true"])
    dead.wait()
    left = mine.rename(mine.with_suffix(f".{dead.pid}"))
    again = files.temporary("sandbox")
    assert again.is_dir() and not left.exists()


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: path.symlink_to("/proc/none/x")])
def test_a_lock_that_is_no_file_is_said_in_one_line(tmp_path, make):
    (tmp_path / "run").mkdir()
    make(tmp_path / "run" / ".lock")
    with pytest.raises(DataError, match=r"\.lock cannot be locked: .*"), RunFolder.open(settings(tmp_path)):
        pass


def test_a_damaged_event_is_left_out_with_a_warning(finished_run, caplog):
    before = finished_run.events_file.read_bytes()
    finished_run.events_file.write_bytes(before + b'{"torn\n[1]\n\xff\n')
    try:
        assert len(finished_run.events()) == before.count(b"\n")
        assert caplog.text.count("is damaged and ignored") == 3
    finally:
        finished_run.events_file.write_bytes(before)
