"""A run folder kept at a URL: torn, moved and rewritten, it is always a run that can go on."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from helpers import ENVIRONMENT, ROOT, run, run_files, settings

from maft import files
from maft.cluster.mirror import REPLIES, Mirror, mirrored
from maft.cluster.storage import Remote
from maft.errors import ConfigError, DataError, StageFailed
from maft.records import Debate
from maft.runs.folder import RunFolder
from maft.samplers import Scripted
from maft.samplers.scripted import guess
from maft.trainers import NullTrainer

PUSH = Mirror.push
NOT_OURS = ("config.json", ".mirror.json")


def content(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in run_files(folder).items() if name not in NOT_OURS}


@pytest.fixture(params=["file", "memory"])
def url(request, tmp_path) -> str:
    if request.param == "file":
        return f"file://{tmp_path}/store"
    from fsspec.implementations.memory import MemoryFileSystem

    MemoryFileSystem.store.clear()
    return "memory://bucket/runs"


@pytest.fixture(autouse=True)
def _machines_work_at_first(monkeypatch):
    monkeypatch.setattr(Mirror, "push", PUSH)


class Dies(Exception):
    """The end of a machine."""


class Mortal(Scripted):
    """Answers until its machine is lost."""

    def __init__(self, calls: int):
        super().__init__(guess)
        self.left = calls

    def _answer(self, request):
        if self.left == 0:
            Mirror.push = lambda self: None  # a machine that is lost says no last word
            raise Dies
        self.left -= 1
        return super()._answer(request)


def test_a_run_goes_on_on_another_machine_from_what_is_stored(tmp_path, url):
    wanted = content(run(settings(tmp_path / "local", "num_iterations=2")).path)
    asked = 0
    for machine in range(100):
        config = settings(tmp_path / str(machine), "num_iterations=2", cluster={"storage": url})
        sampler = Mortal(100)
        try:
            folder = run(config, sampler)
        except Dies:
            Mirror.push = PUSH
            asked += len(sampler.history)
            continue
        break
    asked += len(sampler.history)
    assert content(folder.path) == wanted
    assert machine >= 3
    once = sum(len(d.calls()) for p in folder.path.rglob("debates.jsonl") for d in files.read_records(p, Debate))
    assert asked < 1.5 * once, "only the batch in flight is lost"


def test_the_same_machine_goes_on_without_fetching(tmp_path, url, monkeypatch):
    config = settings(tmp_path / "a", cluster={"storage": url})
    with pytest.raises(Dies):
        run(config, Mortal(90))
    Mirror.push = PUSH
    monkeypatch.setattr(Mirror, "_fetch", lambda *_: pytest.fail("fetched"))
    assert content(run(config).path) == content(run(settings(tmp_path / "local")).path)


def test_an_older_copy_is_not_mistaken_for_the_run(tmp_path, url):
    a, b = (settings(tmp_path / name, cluster={"storage": url}) for name in "ab")
    with pytest.raises(Dies):
        run(a, Mortal(90))
    Mirror.push = PUSH
    run(b)
    with pytest.raises(DataError, match="not the copy .* stored last.*Move this folder away"):
        run(a)
    shutil.rmtree(tmp_path / "a")
    assert content(run(a).path) == content(tmp_path / "b" / "run")


def test_a_process_that_another_one_replaced_stops(tmp_path, url):
    a, b = (settings(tmp_path / name, cluster={"storage": url}) for name in "ab")

    class Replaced(Mortal):
        def _answer(self, request):
            if self.left == 150:
                with RunFolder.open(b, mirrored):
                    pass
            return super()._answer(request)

    with pytest.raises(StageFailed, match="taken over by another process"):
        run(a, Replaced(200))


def test_a_run_with_other_settings_is_refused_and_takes_nothing_over(tmp_path, url):
    with pytest.raises(Dies):
        run(settings(tmp_path / "a", cluster={"storage": url}), Mortal(90))
    Mirror.push = PUSH
    with pytest.raises(ConfigError, match="seed: 0 there, 1 asked for"):
        run(settings(tmp_path / "b", "seed=1", cluster={"storage": url}))
    run(settings(tmp_path / "a", cluster={"storage": url}))


def test_a_fetch_that_was_killed_is_done_again(tmp_path, url, monkeypatch):
    run(settings(tmp_path / "a", cluster={"storage": url}))
    b = settings(tmp_path / "b", cluster={"storage": url})
    fetched = []

    def dying(self, local):
        fetched.append(self.url)
        if len(fetched) == 5:
            raise Dies
        return get_file(self, local)

    get_file = Remote.get_file
    with monkeypatch.context() as patch, pytest.raises(Dies):
        patch.setattr(Remote, "get_file", dying)
        run(b)
    assert content(run(b).path) == content(tmp_path / "a" / "run")


def test_files_that_grow_are_stored_in_pieces_and_anew_when_they_are_rewritten(tmp_path, url):
    storage, folder = Remote(url), tmp_path / "run"
    folder.mkdir()
    mirror, path = Mirror(folder, storage / "run"), folder / "debates.jsonl"
    path.write_text("one\n")
    mirror.push()
    with path.open("a") as file:
        file.write("two\n")
    mirror.push()
    mirror.push()
    assert (storage / "run/debates.jsonl").names() == ["000000000000000", "000000000000004"]
    assert (storage / "run/debates.jsonl/000000000000004").read() == b"two\n"
    files.write_text(path, "ONE\nTWO\nTHREE\n")
    mirror.push()
    assert (storage / "run/debates.jsonl").names() == ["000000000000000"]
    other = Mirror(tmp_path / "other", storage / "run")
    other.folder.mkdir()
    other.restore()
    assert (other.folder / "debates.jsonl").read_text() == "ONE\nTWO\nTHREE\n"


def test_who_was_replaced_removes_nothing_of_the_other_and_a_removal_may_be_done_again(tmp_path, url, monkeypatch):
    storage, mirrors = Remote(url), []
    for name in "ab":
        folder = tmp_path / name
        folder.mkdir()
        mirror = Mirror(folder, storage / "run")
        mirror.restore()
        (folder / REPLIES).write_bytes(name.encode())
        mirror.push()  # the second one takes over
        mirrors.append(mirror)
    first, second = mirrors
    (first.folder / REPLIES).unlink()
    with pytest.raises(StageFailed, match="taken over by another process"):
        first.push()
    assert (storage / "run" / REPLIES).read() == b"b"
    (second.folder / REPLIES).unlink()
    with monkeypatch.context() as patch, pytest.raises(Dies):

        def killed(self, **_):
            raise Dies

        patch.setattr(Mirror, "_remember", killed)
        second.push()
    assert (storage / "run" / REPLIES).read() is None
    again = Mirror(second.folder, storage / "run")
    again.push()
    assert REPLIES not in again.stored


def test_a_folder_that_was_stored_in_part_is_not_there(tmp_path, url, monkeypatch):
    folder = tmp_path / "agents" / "critic_0"
    folder.mkdir(parents=True)
    for name in ("a", "b"):
        (folder / name).write_text(name)
    storage = Remote(url)
    (storage / "run/agents/critic_0/a").put(folder / "a")
    assert (storage / "run/agents/critic_0").listing() is None
    with pytest.raises(DataError, match="is not there"):
        (storage / "run/agents/critic_0").get_folder(tmp_path / "got")
    assert not (tmp_path / "got").exists()
    (storage / "run/agents/critic_0").put(folder)
    (storage / "run/agents/critic_0").get_folder(tmp_path / "got")
    assert run_files(tmp_path / "got") == run_files(folder)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense://bucket", "cluster.storage: nonsense://bucket.* cannot be used: .*nonsense"),
        ("file:///proc/none", "/proc/none/run.* cannot be read or written.*Nothing is lost"),
    ],
)
def test_a_url_that_cannot_be_used_is_a_clean_error(tmp_path, url, message):
    with pytest.raises(ConfigError, match=message):
        run(settings(tmp_path, cluster={"storage": url}), Scripted(guess), NullTrainer())


@pytest.mark.slow
def test_the_script_for_jobs_continues_on_a_new_machine_what_another_left(tmp_path):
    script = ROOT / "recipes/hf_jobs/run.py"
    head = re.search(r"# /// script\n(.*?)# ///\n", script.read_text(), re.S)
    wanted = tomllib.loads(re.sub(r"^# ?", "", head[1], flags=re.M))
    assert wanted["requires-python"] == ">=3.11" and wanted["dependencies"][0].startswith("maft[hf,")
    store, config = tmp_path / "store", tmp_path / "mine.yaml"
    store.mkdir()
    config.write_text((ROOT / "recipes/demo/config.yaml").read_text())

    def job(machine: str, url: str, *overrides: str) -> Path:
        home = tmp_path / machine
        home.mkdir()
        words = [sys.executable, str(script), f"file://{store}", url, *overrides]
        done = subprocess.run(words, cwd=home, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return home / "runs/mine"

    first = job("a", f"file://{config}", "name=mine", "num_iterations=1")
    second = job("b", f"file://{config}", "name=mine", "num_iterations=2")
    names = {path.relative_to(first) for path in (first / "iter_01").rglob("*") if path.is_file()}
    assert names and all((second / name).read_bytes() == (first / name).read_bytes() for name in names)
    assert (second / "iter_02/eval/summary.json").exists()
    events = [json.loads(line) for line in (second / "events.jsonl").read_text().splitlines()]
    assert {event["iteration"] for event in events if event["event"] == "trained"} == {1, 2}
    assert len([event for event in events if event["event"] == "evaluated"]) == 3
