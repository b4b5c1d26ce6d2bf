"""Makes questions and scores answers with reasoning-gym, in a process of its own.

Some data sets draw from sets of texts, whose order differs between processes unless told otherwise, and scorers are
handed what a model wrote. So the process has a fixed order of sets, is stopped when an answer takes too long, and can
start no program and change no file.

`Gym` is the side that asks. `python -m maft.tasks.gym_process` is the side that answers: the first line of JSON that
comes in has the settings, each following one is "questions" or a question with an answer to score, and each is answered
by a line.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping
from functools import cache
from typing import IO, Any

from maft.errors import ConfigError, DataError, StageFailed
from maft.records import Problem

SECONDS = 10.0
"""The longest that scoring one answer may take; one that takes longer is wrong."""

MEMORY_GB = 4
"""The most memory that it may take, where the system can limit it."""

COMMAND = (sys.executable, "-m", "maft.tasks.gym_process")


class Gym:
    """One data set; asks one process after another, and is safe to use from several threads."""

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        self._name = name
        self._settings = dict(settings)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def questions(self) -> list[Problem]:
        """Make the questions; an id is an index.

        Raises:
            ConfigError: the data set refuses its settings.
            StageFailed: it could not make them.
        """
        with self._lock:
            said = self._ask("questions", limit=None)
        if not said:
            raise StageFailed(f"reasoning_gym:{self._name} could not make its questions with {self._settings}.")
        return [Problem(id=str(n), question=question, gold=gold) for n, (question, gold) in enumerate(json.loads(said))]

    def score(self, problem: Problem, answer: str) -> float:
        """Return the score of an answer, 0 where scoring it failed or took too long.

        Raises:
            DataError: the installed reasoning-gym makes another question for this id.
        """
        with self._lock:
            said = self._ask([int(problem.id), problem.question, problem.gold, answer], limit=SECONDS)
        if said == "changed":
            raise DataError(
                f"reasoning-gym makes another question {problem.id} than the one in this run. Install the version that "
                "the run was begun with, or begin a new run."
            )
        return float(said or 0)

    def _ask(self, what: object, limit: float | None) -> str:
        if self._process is None:
            self._process = self._start()
        process = self._process
        timer = None if limit is None else threading.Timer(limit, process.kill)
        if timer is not None:
            timer.start()
        try:
            said = _exchange(process, what)
        finally:
            if timer is not None:
                timer.cancel()
        if not said:  # it was stopped, or went down by itself; the next question gets a new one
            _stop(process)
            self._process = None
        return said

    def _start(self) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env=os.environ | {"PYTHONHASHSEED": "0", "PYTHONIOENCODING": "utf-8"},
        )
        weakref.finalize(self, _stop, process)
        said = _exchange(process, [self._name, self._settings])
        if said != "ready":
            _stop(process)
            if said:
                raise ConfigError(f"reasoning_gym:{self._name} refuses the settings {self._settings}: {said}.")
            raise StageFailed("the process that asks reasoning-gym did not start.")
        return process


def _exchange(process: "subprocess.Popen[str]", what: object) -> str:
    """Send a line and return the one that comes back, nothing if the process is gone."""
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(json.dumps(what) + "\n")
        process.stdin.flush()
        return process.stdout.readline().strip()
    except (OSError, ValueError):
        return ""


def _stop(process: "subprocess.Popen[str]") -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    process.wait()


def serve(lines: Iterator[str], out: IO[str]) -> None:
    """Answer every line until there are no more."""
    from reasoning_gym.dataset import ProceduralDataset
    from reasoning_gym.factory import create_dataset

    name, settings = json.loads(next(lines))
    try:
        data = create_dataset(name, **settings)
    except (AssertionError, ValueError, TypeError) as error:
        print(" ".join(str(error).split()) or type(error).__name__, file=out, flush=True)
        return
    sys.addaudithook(refuse)
    entry = cache(data.__getitem__)
    plain = type(data).score_answer is ProceduralDataset.score_answer
    print("ready", file=out, flush=True)
    for line in lines:
        asked = json.loads(line)
        if asked == "questions":
            made = [(entry(n)["question"], _gold(data, entry(n))) for n in range(settings["size"])]
            print(json.dumps(made), file=out, flush=True)
            continue
        index, question, gold, answer = asked
        found = entry(index)
        if found["question"] != question and plain:  # one draws anew each time; its scorer needs only the answer
            found = {"question": question, "answer": gold, "metadata": {}}
        try:
            said = str(float(data.score_answer(answer, found))) if found["question"] == question else "changed"
        except Exception:  # a reply that no scorer has foreseen is wrong
            said = "0.0"
        print(said, file=out, flush=True)


def _gold(data: Any, entry: Mapping[str, Any]) -> str | None:
    """Return the known answer, or an example of several right ones, which some data sets keep beside the question."""
    if entry["answer"] is not None:
        return str(entry["answer"])
    for value in entry["metadata"].values():
        example = value if isinstance(value, str) else json.dumps(value, default=str)
        try:
            if data.score_answer(example, entry) >= 1:
                return example.strip()
        except (ValueError, TypeError, LookupError, AttributeError):
            continue  # this was no answer
    return None


REFUSED = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.kill",
)


def refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """Let nothing here start a program, open a connection or change a file, whatever an answer says (PEP 578)."""
    writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    if writes or event.startswith(("subprocess.", "socket.", "shutil.", *REFUSED)):
        raise PermissionError(f"scoring an answer must not do this: {event}")


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_GB << 30, MEMORY_GB << 30))


if __name__ == "__main__":
    _limit_memory()
    with contextlib.redirect_stdout(sys.stderr):
        serve(iter(sys.stdin), sys.__stdout__)  # type: ignore[arg-type]
