"""Makes questions, compares and scores answers with reasoning-gym, in a process of its own.

Some data sets draw from sets of texts, whose order differs between processes unless it is fixed, and scorers are
handed what a model wrote. So the process has a fixed order of sets, is stopped when an answer takes too long, and can
start no program and write no file.

`Gym` is the side that asks. `python -m maft.tasks.gym_process` is the side that answers lines of JSON: first the name
and the settings of the data set, then "questions", or a question with an answer to score, or with answers to compare.
"""

import contextlib
import json
import logging
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import IO, Any

from maft.answers.compare import components
from maft.errors import ConfigError, DataError, StageFailed
from maft.records import Problem
from maft.sandbox import confine
from maft.sandbox.process import TRIES, Died, Killed, Process, forbid, limit_memory

log = logging.getLogger("maft")

SECONDS = 10.0
"""Maximum time of scoring one answer; one that takes longer is wrong."""

VOTE_SECONDS = 5.0
"""Maximum time of comparing the answers to one question; after it they are compared as texts."""

MEMORY_GB = 4
"""Maximum memory of the process, where the system can limit it."""


class Gym:
    """One data set; asks one process after another, and is safe to use from several threads."""

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        self._name = name
        self._settings = dict(settings)
        self._lock = threading.Lock()
        self._process: Process | None = None

    def questions(self) -> list[Problem]:
        """Make the questions; an id is an index.

        Raises:
            ConfigError: the data set refuses its settings.
            StageFailed: it could not make them.
        """
        made = self._ask("questions", limit=None)
        if made is None:
            raise StageFailed(f"reasoning_gym:{self._name} could not make its questions with {self._settings}.")
        return [Problem(id=str(n), question=question, gold=gold) for n, (question, gold) in enumerate(made)]

    def score(self, problem: Problem, answer: str) -> float:
        """Return the score of an answer, 0 where scoring it failed or took too long.

        Raises:
            DataError: the installed reasoning-gym makes another question for this id.
        """
        said = self._ask([int(problem.id), problem.question, problem.gold, answer], SECONDS)
        if said == "changed":
            raise DataError(
                f"reasoning-gym generates a different question {problem.id} than this run has. Install the version "
                "that the run was started with, or start a new run."
            )
        return float(said or 0)

    def classes(self, problem: Problem, answers: Sequence[str]) -> list[int] | None:
        """Return for each answer the place of the first that is the same, see `compared`; None: it took too long."""
        found: list[int] | None = self._ask([int(problem.id), problem.question, list(answers)], VOTE_SECONDS)
        return found

    def _ask(self, what: object, limit: float | None) -> Any:
        """Return the answer; None if it took too long, or the process ended by itself `TRIES` times."""
        with self._lock:
            for _ in range(TRIES):
                if self._process is None or not self._process.alive:
                    self._process = self._start()
                try:
                    return self._process.ask(what, limit)
                except Killed:
                    return None
                except Died:
                    continue
        log.warning("The process of reasoning_gym:%s died %d times on one question.", self._name, TRIES)
        return None

    def _start(self) -> Process:
        process = Process("maft.tasks.gym_process", PYTHONHASHSEED="0")
        weakref.finalize(self, process.close)
        try:
            said = process.ask([self._name, self._settings], None)
        except Died:
            raise StageFailed("the process that asks reasoning-gym did not start.") from None
        if said != "ready":
            process.close()
            raise ConfigError(f"reasoning_gym:{self._name} refuses the settings {self._settings}: {said}.")
        return process


def serve(lines: Iterator[str], out: IO[str]) -> None:
    """Answer every line until there are no more."""
    from reasoning_gym.dataset import ProceduralDataset
    from reasoning_gym.factory import create_dataset

    def say(what: object) -> None:
        print(json.dumps(what), file=out, flush=True)

    name, settings = json.loads(next(lines))
    try:
        data = create_dataset(name, **settings)
    except (AssertionError, ValueError, TypeError) as error:
        say(" ".join(str(error).split()) or type(error).__name__)
        return
    confine.reader()
    sys.addaudithook(forbid)
    entry = cache(data.__getitem__)
    plain = type(data).score_answer is ProceduralDataset.score_answer
    say("ready")
    for line in lines:
        asked = json.loads(line)
        if asked == "questions":
            say([(entry(n)["question"], _gold(data, entry(n))) for n in range(settings["size"])])
            continue
        index, question, *gold, answer = asked
        found = entry(index)
        if found["question"] != question and plain:  # one draws anew each time; its scorer needs only the answer
            found = {"question": question, "answer": gold[0] if gold else None, "metadata": {}}
        if not gold:
            say(compared(answer, found if found["question"] == question else None, data.score_answer))
        else:
            say(_score(data.score_answer, answer, found) if found["question"] == question else "changed")


def _score(score: Callable[[str, Any], float], answer: str, entry: Mapping[str, Any]) -> float:
    try:
        return float(score(answer, entry))
    except Exception:  # a reply that no scorer has foreseen is wrong
        return 0.0


def compared(answers: Sequence[str], entry: Mapping[str, Any] | None, score: Callable[[str, Any], float]) -> list[int]:
    """Return for each answer the place of the first one in its class.

    Two answers are the same if they are the same text, or if the scorer gives each of them 1 where the other one stands
    for the known answer. Scorers that check an answer against the question, and not against the known answer, make one
    class of all right answers.
    """

    def same(a: str, b: str) -> bool:
        if entry is None or a == b:
            return a == b
        return all(_score(score, x, {**entry, "answer": y}) >= 1 for x, y in ((a, b), (b, a)))

    return components(answers, same)


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


if __name__ == "__main__":
    limit_memory(MEMORY_GB << 30)
    with contextlib.redirect_stdout(sys.stderr):
        serve(iter(sys.stdin), sys.__stdout__)  # type: ignore[arg-type]
