"""Scores answers with reasoning-gym in a process of its own, which is stopped when an answer takes too long.

`Scorer` is the side that asks. `python -m maft.tasks.gym_scorer` is the side that answers: the first line of JSON that
comes in has the settings, each following one a question and an answer, and the score goes out as a line.
"""

import contextlib
import json
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping
from functools import cache
from typing import IO, Any

from maft.errors import DataError, StageFailed
from maft.records import Problem

SECONDS = 10.0
"""The longest that scoring one answer may take; one that takes longer is wrong."""

MEMORY_GB = 4
"""The most memory that it may take, where the system can limit it."""

COMMAND = (sys.executable, "-m", "maft.tasks.gym_scorer")


class Scorer:
    """Asks one process after another; safe to use from several threads."""

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        self._settings = json.dumps([name, dict(settings)])
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def score(self, problem: Problem, answer: str) -> float:
        """Return the score of an answer, 0 where scoring it failed or took too long.

        Raises:
            DataError: the installed reasoning-gym makes another question for this id.
        """
        asked = json.dumps([int(problem.id), problem.question, problem.gold, answer])
        with self._lock:
            said = self._ask(asked)
        if said == "changed":
            raise DataError(
                f"reasoning-gym makes another question {problem.id} than the one in this run. Install the version that "
                "the run was begun with, or begin a new run."
            )
        return float(said or 0)

    def _ask(self, line: str) -> str:
        if self._process is None:
            self._process = self._start()
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        timer = threading.Timer(SECONDS, process.kill)
        timer.start()
        try:
            process.stdin.write(line + "\n")
            process.stdin.flush()
            said = process.stdout.readline().strip()
        except OSError:
            said = ""
        finally:
            timer.cancel()
        if not said:  # it was stopped, or went down by itself; the next answer gets a new one
            _stop(process)
            self._process = None
        return said

    def _start(self) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        weakref.finalize(self, _stop, process)
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(OSError):
            process.stdin.write(self._settings + "\n")
            process.stdin.flush()
        if process.stdout.readline().strip() != "ready":
            _stop(process)
            raise StageFailed("the process that scores answers with reasoning-gym did not start.")
        return process


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
    data = create_dataset(name, **settings)
    entry = cache(data.__getitem__)
    plain = type(data).score_answer is ProceduralDataset.score_answer
    print("ready", file=out, flush=True)
    for line in lines:
        index, question, gold, answer = json.loads(line)
        found = entry(index)
        if (
            found["question"] != question and plain
        ):  # one data set draws anew each time; its scorer needs the answer only
            found = {"question": question, "answer": gold, "metadata": {}}
        try:
            said = str(float(data.score_answer(answer, found))) if found["question"] == question else "changed"
        except Exception:  # a reply that no scorer has foreseen is wrong
            said = "0.0"
        print(said, file=out, flush=True)


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_GB << 30, MEMORY_GB << 30))


if __name__ == "__main__":
    _limit_memory()
    with contextlib.redirect_stdout(sys.stderr):
        serve(iter(sys.stdin), sys.__stdout__)  # type: ignore[arg-type]
