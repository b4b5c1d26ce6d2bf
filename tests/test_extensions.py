"""Parts from outside: named in a config, loaded, refused, recorded, and sent to other processes."""

import json

import pytest
from helpers import run, settings

from maft import config, engines, extensions, tasks
from maft.errors import ConfigError
from maft.samplers import Sampler
from maft.tasks import Task

CAPITALS = '''
from maft import Problem, Split, Task


class Capitals(Task):
    """Capitals of countries."""

    def questions(self):
        known = {"France": "Paris", "Peru": "Lima", "Kenya": "Nairobi", "Japan": "Tokyo"}
        problems = [Problem(id=c, question=f"What is the capital of {c}?", gold=g) for c, g in known.items()]
        return Split(problems[:2], problems[2:])

    def extract(self, text):
        return text.split()[-1].strip(".") if text else None
'''

PARROT = '''
from maft import Reply


class Parrot:
    """Says the last word of the question."""

    def __init__(self, config):
        self.config = config

    def sample(self, requests, on_reply=None):
        return [Reply(text=r.messages[-1].content.split()[-1], finish_reason="stop") for r in requests]

    def release(self):
        pass
'''


@pytest.fixture
def outside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "capitals.py").write_text(CAPITALS)
    (tmp_path / "parrot.py").write_text(PARROT)
    return tmp_path


def test_a_task_and_a_sampler_from_files_carry_a_run(outside):
    chosen = settings(
        outside, task={"name": "capitals.py:Capitals"}, engine={"sampler": "parrot.py:Parrot", "trainer": "null"}
    )
    folder = run(chosen, engines.make_sampler(chosen))
    manifest = json.loads(folder.manifest.read_text())
    assert sorted(manifest["parts"]) == ["capitals.py:Capitals", "parrot.py:Parrot"]
    assert [p["id"] for p in map(json.loads, folder.problems("train").read_text().splitlines())] == ["France", "Peru"]


def test_a_part_that_changed_is_said_when_the_run_continues(outside, caplog):
    chosen = settings(outside, task={"name": "capitals.py:Capitals"})
    run(chosen)
    (outside / "capitals.py").write_text(CAPITALS + "\n# edited\n")
    extensions._file_module.cache_clear()
    run(chosen)
    assert "capitals.py:Capitals changed" in caplog.text


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gone.py:Capitals", "gone.py is not a file"),
        ("capitals.py:Capital", "has no class Capital"),
        ("no_such.package:Capitals", "No module named 'no_such'"),
        ("broken.py:Task", "line 2"),
        ("parrot.py:Parrot", "must be a subclass of maft.tasks.base.Task"),
        ("abstract.py:Half", "lacks questions"),
    ],
)
def test_what_cannot_be_loaded_is_refused_in_one_line(outside, name, said):
    (outside / "broken.py").write_text("x = 1\ny = 1 / 0\n")
    (outside / "abstract.py").write_text("from maft import Task\n\nclass Half(Task):\n    pass\n")
    with pytest.raises(ConfigError) as error:
        extensions.find("task", name, Task)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_sampler_without_a_method_is_refused(outside):
    (outside / "mute.py").write_text("class Mute:\n    def release(self):\n        pass\n")
    with pytest.raises(ConfigError, match=r"mute.py:Mute lacks .*sample"):
        extensions.find("sampler", "mute.py:Mute", Sampler)


def test_a_name_that_is_no_part_is_refused_when_the_config_is_read():
    with pytest.raises(
        ConfigError, match=r"'openvine' is not a sampler. Did you mean openvino\? The samplers are: auto"
    ):
        config.parse({"task": {"name": "arithmetic"}, "engine": {"sampler": "openvine"}})


def test_a_package_and_an_entry_point_are_parts_too(outside, monkeypatch):
    package = outside / "chess_tasks"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "capitals.py").write_text(CAPITALS)
    info = outside / "chess_tasks-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: chess-tasks\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[maft.tasks]\ncapitals = chess_tasks.capitals:Capitals\n")
    monkeypatch.syspath_prepend(str(outside))
    by_module = config.parse({"task": {"name": "chess_tasks.capitals:Capitals"}})
    by_entry = config.parse({"task": {"name": "capitals"}})
    assert type(tasks.make(by_module.task)) is type(tasks.make(by_entry.task))
    assert config.parts(by_module) == ["chess_tasks.capitals:Capitals"] and config.parts(by_entry) == ["capitals"]
    assert len(set(extensions.fingerprints(["capitals", "chess_tasks.capitals:Capitals"]).values())) == 1


def test_a_packed_part_is_the_one_that_is_used_where_it_is_unpacked(outside, monkeypatch):
    packed = extensions.pack(["capitals.py:Capitals"])
    (outside / "capitals.py").unlink()
    monkeypatch.setattr(extensions, "_UNPACKED", {})
    extensions._file_module.cache_clear()
    extensions.unpack(packed)
    assert extensions.find("task", "capitals.py:Capitals", Task).__name__ == "Capitals"
