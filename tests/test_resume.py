"""Killed at any moment and started again with the same command, a run ends as if nothing had happened."""

import errno
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from random import Random

import pytest
from helpers import SlowMaft, rules, run, run_files, settings

from maft import files
from maft.errors import DataError, StageFailed
from maft.pipeline import rollouts
from maft.pipeline import run as pipeline
from maft.records import Debate, Problem, Reply, Request
from maft.runs import societies
from maft.runs.folder import RunFolder
from maft.samplers import Scripted
from maft.samplers.scripted import guess
from maft.trainers import NullTrainer


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> dict[str, bytes]:
    maft = SlowMaft(tmp_path_factory.mktemp("unbroken"))
    code, complaints = maft.finish()
    assert code == 0, complaints
    return run_files(maft.folder)


@pytest.mark.slow
def test_a_process_killed_at_random_moments_ends_with_the_files_of_an_unbroken_one(tmp_path, unbroken):
    maft, rng = SlowMaft(tmp_path / "killed"), Random(3)
    kills, in_flight = 0, set[int]()
    while kills < 14:
        before = maft.asked()
        process = maft.start(seconds=0.005)
        try:
            process.wait(timeout=rng.uniform(0.0, 0.25))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            kills += 1
        _, complaints = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), complaints
        asked = maft.asked()
        assert not set(asked[len(before) :]) & (set(before) - in_flight), "only what was in flight is asked again"
        in_flight |= set(asked[-1:])
        if process.returncode == 0:
            break
    assert kills >= 12, "the run is too short to be killed often enough"
    code, complaints = maft.finish()
    assert code == 0, complaints
    assert run_files(maft.folder) == unbroken


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # the child touches no thread of the parent
def test_a_death_at_every_single_step_on_the_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny = ["debate.num_agents=1", "task.num_train=3", "task.num_eval=1", "engine.batch_size=2", "task.high=2"]
    wanted = run_files(run(settings(Path("straight"), *tiny)).path)
    wanted.pop("config.json")  # has the name of its folder in it
    step = 0
    while True:
        config = settings(Path(f"dies_at_{step}"), *tiny)
        child = os.fork()
        if child == 0:
            try:
                _die_at(step)
                run(config)
                os._exit(0)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) == 0:
            break
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
        got = run_files(run(config).path)
        got.pop("config.json")
        assert got == wanted, f"died at step {step}"
        step += 1
    assert step > 60


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # the child touches no thread of the parent
def test_a_kill_at_any_reply_loses_that_reply_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny = ["debate.num_agents=2", "task.num_train=3", "task.num_eval=1", "engine.batch_size=2", "task.high=2"]
    every = Scripted(guess)
    wanted = run_files(run(settings(Path("straight"), *tiny), every).path)
    wanted.pop("config.json")  # has the name of its folder in it
    total = len(every.history)
    assert total == 5 * 6
    for kept in range(total):

        class Mortal(Scripted):
            def _answer(self, request, kept=kept):
                if len(self.history) == kept:
                    os.kill(os.getpid(), signal.SIGKILL)
                return super()._answer(request)

        config = settings(Path(f"killed_at_{kept}"), *tiny)
        child = os.fork()
        if child == 0:
            try:
                run(config, Mortal(guess))
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
        again = Scripted(guess)
        got = run_files(run(config, again).path)
        got.pop("config.json")
        assert got == wanted, f"killed at reply {kept}"
        assert len(again.history) == total - kept, f"killed at reply {kept}"


def test_what_was_debated_is_counted_though_a_kill_came_before_its_event(tmp_path, monkeypatch):
    config = settings(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        log = RunFolder.log

        def dying(self, event, **fields):
            if event == "debated" and fields["stage"] == "train":
                raise KeyboardInterrupt
            log(self, event, **fields)

        patch.setattr(RunFolder, "log", dying)
        run(config)
    events = run(config).events()
    debated = [event for event in events if event["event"] == "debated" and event["stage"] == "train"]
    held = files.read_records(RunFolder.existing(config.runs_dir / config.name).debates(1), Debate)
    assert sum(event["debates"] for event in debated) == len(held) == 10
    assert sum(event["calls"] for event in debated) == sum(len(debate.calls()) for debate in held)
    assert sum(event["prompt_tokens"] for event in debated) == sum(
        call.reply.prompt_tokens for debate in held for call in debate.calls()
    )


def _die_at(step: int) -> None:
    """Kill this process before its `step`-th operation that changes the disk."""
    left = [step]

    def dying(operation):
        def wrapped(*arguments, **options):
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return operation(*arguments, **options)

        return wrapped

    for name in ("fsync", "replace", "rename", "mkdir", "unlink"):
        setattr(os, name, dying(getattr(os, name)))


@pytest.mark.parametrize("where", ["iter_01/debates.jsonl", "iter_00/eval/debates.jsonl"])
def test_a_line_torn_at_any_byte_is_made_again(tmp_path, monkeypatch, where):
    monkeypatch.chdir(tmp_path)
    tiny = ["debate.num_agents=1", "debate.num_rounds=2", "task.num_train=2", "task.num_eval=2", "task.high=2"]
    folder = run(settings(Path("runs"), *tiny))
    wanted = run_files(folder.path)
    whole = (folder.path / where).read_bytes()
    last = whole[:-1].rfind(b"\n") + 1
    problems = pipeline.questions(folder)
    stage, asked = ("train", problems.train) if where.startswith("iter_01") else ("eval", problems.eval)
    iteration = int(where[5:7])
    how = pipeline.debate_rules(folder, iteration, societies.untrained(folder.config), stage)
    path = folder.path / where
    for cut in range(last, len(whole), 3):
        path.write_bytes(whole[:cut])
        sampler = Scripted(guess)
        list(rollouts.collect(asked, how, sampler, path, batch_size=4))
        assert path.read_bytes() == whole, f"torn at byte {cut}"
        assert len(sampler.history) == 2  # of the torn debate, not of the whole one
    assert run_files(folder.path) == wanted


def test_torn_events_are_cut_off_and_the_log_goes_on(tmp_path):
    config = settings(tmp_path)
    folder = run(config)
    path = folder.path / "events.jsonl"
    before = folder.events()
    path.write_bytes(path.read_bytes() + b'{"time": 1, "ev')
    with RunFolder.open(config) as again:
        again.log("looked")
        assert [event["event"] for event in again.events()] == [*(event["event"] for event in before), "looked"]


@pytest.mark.parametrize(
    "lost",
    [
        "iter_01/votes.jsonl",
        "iter_01/examples/summary.json",
        "iter_01/examples/critic_1.jsonl iter_01/examples/summary.json",
        "iter_02/agents/critic_2/adapter.json iter_02/agents/critic_2",
        "iter_01/eval/summary.json",
        "iter_02/eval/maft.jsonl iter_02/eval/summary.json",
        "iter_02/eval/debates.jsonl iter_02/eval/summary.json",
        "problems/eval.jsonl",
    ],
)
def test_what_is_missing_is_made_again_as_it_was(tmp_path, lost):
    config = settings(tmp_path, "num_iterations=2")
    folder = run(config)
    wanted = run_files(folder.path)
    for name in lost.split():
        path = folder.path / name
        path.rmdir() if path.is_dir() else path.unlink()
    run(config)
    assert run_files(folder.path) == wanted


def test_a_finished_run_does_nothing_when_started_again(tmp_path):
    config = settings(tmp_path)
    folder = run(config)
    stamps = {path: path.stat().st_mtime_ns for path in folder.path.rglob("iter_*/**/*")}
    sampler = Scripted([])  # a script that has nothing to say raises if it is asked
    run(config, sampler)
    assert sampler.history == []
    assert {path: path.stat().st_mtime_ns for path in folder.path.rglob("iter_*/**/*")} == stamps


def test_every_start_is_noted_in_the_manifest(tmp_path):
    config = settings(tmp_path)
    run(config)
    folder = run(config)
    manifest = json.loads((folder.path / "manifest.json").read_text())
    assert len(manifest["starts"]) == 2
    assert manifest["questions"]["train"]["count"] == 10
    assert not set(manifest["questions"]["train"]["ids"]) & set(manifest["questions"]["eval"]["ids"])


@pytest.mark.slow
def test_a_run_with_other_settings_is_refused_and_the_keys_are_named(tmp_path, unbroken):
    maft = SlowMaft(tmp_path / "other")
    assert maft.finish()[0] == 0
    code, complaints = maft.finish("seed=7", "debate.num_rounds=3")
    assert code == 2
    assert "seed: 0 there, 7 asked for" in complaints and "debate.num_rounds: 2 there, 3 asked for" in complaints
    assert "Traceback" not in complaints
    assert run_files(maft.folder) == unbroken


def test_settings_can_be_mended_until_the_questions_are_written(tmp_path):
    with pytest.raises(DataError, match="only 50"):
        run(settings(tmp_path, "task.num_train=400", "task.high=4", "task.operators=+-"))
    folder = run(settings(tmp_path, "task.num_train=8", "task.high=4", "task.operators=+-"))
    assert RunFolder.existing(folder.path).config.task.num_train == 8


@pytest.mark.slow
def test_two_processes_cannot_have_one_run_open(tmp_path):
    maft = SlowMaft(tmp_path / "shared")
    first = maft.start(seconds=0.5)
    try:
        deadline = time.monotonic() + 20
        while not maft.asked() and time.monotonic() < deadline:
            time.sleep(0.02)
        code, complaints = maft.finish()
    finally:
        first.kill()
        first.communicate()
    assert code == 2 and "in use by another process" in complaints and "Traceback" not in complaints


def test_the_lock_of_a_killed_start_stops_nobody(tmp_path):
    config = settings(tmp_path)
    folder = config.runs_dir / config.name
    folder.mkdir()
    (folder / ".lock").touch()
    (folder / ".config.json.123.tmp").write_text("{")
    run(config)
    assert [path.name for path in folder.rglob(".*.tmp")] == []


def flaky(*failing: str):
    """Fail on the questions named."""

    def say(request: Request) -> str | Reply:
        if any(f"What is {question}?" in request.messages[0].content for question in failing):
            return Reply(text="", finish_reason="error", error="the engine gave up")
        return guess(request)

    return Scripted(say)


def sums(count: int) -> list[Problem]:
    return [Problem(id=f"{n}+1", question=f"What is {n}+1?", gold=str(n + 1)) for n in range(count)]


def test_one_failed_debate_is_a_record_and_its_siblings_live_on(tmp_path):
    held = list(rollouts.collect(sums(10), rules(), flaky("3+1"), tmp_path / "d.jsonl", batch_size=4))
    assert [d.problem_id for d in held if d.error] == ["3+1"]
    assert held[3].error == "generator_0, round 1: the engine gave up" and held[3].turns == ()
    assert all(len(d.turns) == 6 for d in held if not d.error)


def test_failed_debates_are_held_again_and_only_they(tmp_path):
    path = tmp_path / "d.jsonl"
    straight = list(rollouts.collect(sums(10), rules(), Scripted(guess), tmp_path / "straight.jsonl", batch_size=4))
    with pytest.raises(StageFailed, match=r"2 of 8 debates failed, more than engine.max_failures = 10% of 10 allows"):
        list(rollouts.collect(sums(10), rules(), flaky("3+1", "5+1"), path, batch_size=4))
    assert len(files.read_records(path, Debate)) == 8  # kept to be looked at; no further batch is begun
    again = Scripted(guess)
    assert list(rollouts.collect(sums(10), rules(), again, path, batch_size=4)) == straight
    assert len(again.history) == 4 * (3 + 6)  # two that failed, and two that were not begun
    assert path.read_bytes() == (tmp_path / "straight.jsonl").read_bytes()


def test_debates_that_fail_at_every_start_leave_the_file_of_an_unbroken_run(tmp_path):
    list(rollouts.collect(sums(12), rules(), flaky("1+1"), tmp_path / "straight.jsonl", batch_size=4))
    list(rollouts.collect(sums(8), rules(), flaky("1+1"), tmp_path / "broken.jsonl", batch_size=4, max_failures=0.5))
    list(rollouts.collect(sums(12), rules(), flaky("1+1"), tmp_path / "broken.jsonl", batch_size=4))
    assert (tmp_path / "broken.jsonl").read_bytes() == (tmp_path / "straight.jsonl").read_bytes()


def test_too_many_failures_stop_the_run_before_the_vote(tmp_path):
    config = settings(tmp_path)
    with pytest.raises(StageFailed, match="the same command repeats them"):
        run(config, Scripted(lambda _: Reply(text="", finish_reason="error", error="out of memory")))
    assert not (config.runs_dir / config.name / "iter_00/eval/summary.json").exists()
    assert run_files(run(config).path).keys() == run_files(run(settings(tmp_path, name="straight")).path).keys()


def test_a_failed_training_keeps_the_agents_before_it(tmp_path):
    class Third(NullTrainer):
        def train(self, jobs, settings, on_progress):
            super().train(jobs[:2], settings, on_progress)
            raise StageFailed("critic_0: out of memory")

    config = settings(tmp_path)
    with pytest.raises(StageFailed):
        run(config, trainer=Third())
    agents = config.runs_dir / config.name / "iter_01" / "agents"
    assert sorted(path.name for path in agents.iterdir()) == ["generator_0", "generator_1"]
    again = NullTrainer()
    jobs = []
    train = again.train
    again.train = lambda owed, *rest: (jobs.extend(owed), train(owed, *rest))[1]  # type: ignore[method-assign]
    run(config, trainer=again)
    assert [job.agent for job in jobs] == ["generator_2", "critic_0", "critic_1", "critic_2"]


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wanted = run_files(run(settings(Path("runs"), name="straight")).path)
    config, fsync = settings(Path("runs"), name="full"), os.fsync
    for allowed in (0, 1, 2, 3, 5):
        left = [allowed]

        def full(descriptor: int, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            run(config)
    monkeypatch.setattr(os, "fsync", fsync)
    got = run_files(run(config).path)
    assert got.pop("config.json") != wanted.pop("config.json")  # the name
    assert got == wanted


def test_an_edited_record_is_refused_with_its_line_and_what_to_do(tmp_path):
    config = settings(tmp_path)
    folder = run(config)
    path = folder.votes(1)
    lines = path.read_text().splitlines()
    lines[2] = lines[2].replace('"label"', '"lable"')
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"votes\.jsonl, line 3, is not a Vote.*Restore the line from a copy"):
        run(config)


def test_a_config_written_by_another_version_is_refused_in_one_line(tmp_path):
    config = settings(tmp_path)
    folder = run(config)
    tree = json.loads((folder.path / "config.json").read_text())
    (folder.path / "config.json").write_text(json.dumps(tree | {"gone": 1}))
    with pytest.raises(DataError, match=r"made by another version of maft, or was edited.*\n.*gone is not a setting"):
        run(config)
